"""Drives a `Swim` on an event loop: sockets, timers, joining, the peers file. Lives in the thread of `cluster.gossip`.

UDP and TCP share one port number. What comes in is opened by the `Keyring` or counted and dropped; nothing that
another process sends can raise here. Seeds are tried for ever, with a growing pause, until a member answers; a seed
that is not among the live members is tried again from time to time even then, so that two halves that started apart
find each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import structlog

from cluster import streams
from cluster.errors import ClusterDenied, MalformedMessage, PeerUnavailable
from cluster.keyring import NotForUs
from cluster.messages import (
    NameIsTaken,
    OtherVersion,
    PushPull,
    StreamMessage,
    StreamPing,
    StreamPong,
    join_address,
)
from cluster.seeds import FILE_SECONDS, PEERS_MAX, Errands, read_peers, resolve_seed, write_peers
from cluster.swim import Swim, SwimCounters
from cluster.swimeffects import (
    Effect,
    Exchange,
    LeaveSent,
    MemberChanged,
    MemberDead,
    MemberJoined,
    MemberLeft,
    NameTaken,
    PacketsBlocked,
    PingStream,
    SendPacket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from cluster.keyring import Keyring
    from cluster.members import Member, MemberMeta
    from cluster.swim import SwimConfig

FIRST_JOIN_SECONDS: Final = 3.0
"""A start waits so long for the first answers of the seeds; then joining goes on in the background."""
JOIN_PAUSE_FIRST_SECONDS: Final = 0.25
JOIN_PAUSE_SECONDS_MAX: Final = 15.0
SEED_CHECK_SECONDS: Final = 30.0
"""How often a member that has company looks for seeds that are not among the live members."""
ADDRESSES_TRIED_MAX: Final = 4
"""Addresses of one seed that are tried in a round, drawn by lot: a name may stand for a whole cluster."""
PEERS_TRIED_MAX: Final = 32
"""Members from before the restart that are tried in a round, drawn by lot."""
NAME_WAIT_SECONDS: Final = 60.0
"""A name whose holder does not answer us stays refused so long before it counts as taken: until then the holder may
just have died, perhaps as our own former life at another address."""
STREAMS_IN_MAX: Final = 32
STREAMS_OUT_MAX: Final = 64
RECEIVE_BUFFER_BYTES: Final = 1 << 19
PEERS_WRITE_SECONDS: Final = 5.0
CLOCK_SKEW_SECONDS_MAX: Final = 3600.0
COMPLAINT_SECONDS: Final = 60.0
COMPLAINTS_MAX: Final = 1024

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class GossipCounters(SwimCounters):
    """What has happened, for metrics: plain numbers that any thread may read."""

    packets_dropped: int = 0
    streams_in: int = 0
    streams_out: int = 0
    streams_failed: int = 0


@dataclass(slots=True)
class Seldom:
    """Lets a complaint about the same thing pass once in a while. Bounded: the oldest is forgotten."""

    seconds: float
    _last: dict[str, float] = field(default_factory=dict)

    def allows(self, about: str, now: float) -> bool:
        if about in self._last and now - self._last[about] < self.seconds:
            return False
        self._last.pop(about, None)
        if len(self._last) >= COMPLAINTS_MAX:
            del self._last[next(iter(self._last))]
        self._last[about] = now
        return True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a `GossipLoop` works with. The callables are called in its thread."""

    name: str
    keyring: Keyring
    tcp: socket.socket
    udp: socket.socket
    address: str
    seeds: Sequence[str]
    peers_file: Path | None
    swim: SwimConfig
    counters: GossipCounters
    on_snapshot: Callable[[Mapping[str, Member]], None]
    on_change: Callable[[Member], None]
    on_denied: Callable[[ClusterDenied], None]


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, on_packet: Callable[[bytes, str], None]) -> None:
        self._on_packet = on_packet

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._on_packet(data, join_address(addr[0], addr[1]))


class GossipLoop:
    """One member at work. `open`, `first_join`, then it runs by itself until `close`."""

    def __init__(self, around: Surroundings, meta: MemberMeta) -> None:
        self._around = around
        self._counters = around.counters
        self._loop = asyncio.get_running_loop()
        self.swim = Swim(
            around.name,
            around.address,
            meta,
            around.swim,
            random.Random(),
            self._loop.time(),
            incarnation=max(1, _now_ms()),  # greater than in former lives, unless the clock went back
            counters=around.counters,
        )
        self._errands = Errands()
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams_in = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._published: Member | None = None
        self._peers: list[str] = []
        self._peers_changed = False
        self._on_left: list[Callable[[], None]] = []
        self._complaints = Seldom(COMPLAINT_SECONDS)
        self._skewed: set[str] = set()
        self._refused_since: float | None = None
        self._denied: ClusterDenied | None = None
        self._first_answer = asyncio.Event()

    # -- life -------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Serve. From here on `close` is needed."""
        transport, _ = await self._loop.create_datagram_endpoint(
            lambda: _Datagrams(self._packet_in), sock=self._around.udp
        )
        self._transport = transport
        self._server = await asyncio.start_server(self._connected, sock=self._around.tcp)
        path = self._around.peers_file
        if path is not None:
            with contextlib.suppress(TimeoutError):
                self._peers = await self._errands.run(FILE_SECONDS, read_peers, path)
            self._spawn(self._keep_peers(path))
        self._pump()

    async def first_join(self) -> None:
        """Try the seeds until one answers, none does, or a while has passed; it goes on in the background.

        Raises ClusterDenied.
        """
        self._spawn(self._join_for_ever())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_JOIN_SECONDS):
                await self._first_answer.wait()
        if self._denied is not None:
            raise self._denied

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        if self._transport is not None:
            self._transport.close()
        if self._around.peers_file is not None:
            await self._write_peers(self._around.peers_file)

    def set_meta(self, meta: MemberMeta) -> None:
        self.swim.set_meta(meta, self._loop.time())
        self._pump()

    def suspect_now(self, name: str) -> None:
        self.swim.suspect_now(name, self._loop.time())
        self._pump()

    def leave(self, on_left: Callable[[], None]) -> None:
        """Say that we leave; ``on_left`` is called when it was said often enough."""
        self._on_left.append(on_left)
        self.swim.leave(self._loop.time())
        self._pump()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # of a task that ended before its first turn it never began

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """A defect in one task must not silence the member: others would bury a node that works."""
        try:
            await work
        except Exception:
            log.exception("gossip_task_failed")

    # -- effects ----------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Perform what the machine asks for, show what it believes, and set the timer."""
        effects = self.swim.take()
        if self.swim.member is not self._published or any(isinstance(e, _CHANGES) for e in effects):
            self._published = self.swim.member
            self._around.on_snapshot(MappingProxyType(self.swim.members()))
        for effect in effects:
            self._perform(effect)
        if self._timer is None or self._timer.when() != self.swim.wake_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self.swim.wake_at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.swim.tick(self._loop.time())
        self._pump()

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, SendPacket):
            self._packet_out(effect)
        elif isinstance(effect, (Exchange, PingStream)) and len(self._tasks) < STREAMS_OUT_MAX:
            self._spawn(self._push_pull(effect.address) if isinstance(effect, Exchange) else self._ping_stream(effect))
        elif isinstance(effect, _CHANGES):
            self._changed(effect)
        elif isinstance(effect, NameTaken):
            self._complain("gossip_name_taken", effect.claimant, name=effect.name, holder=effect.holder)
        elif isinstance(effect, PacketsBlocked):
            self._complain("gossip_packets_blocked", effect.member.address, name=effect.member.name)
        elif isinstance(effect, LeaveSent):
            while self._on_left:
                self._on_left.pop()()

    def _changed(self, notice: MemberJoined | MemberChanged | MemberLeft | MemberDead) -> None:
        member = notice.member
        self._peers_changed = True
        if not isinstance(notice, MemberChanged):
            log.info(_CHANGES_LOGGED[type(notice)], name=member.name, address=member.address)
        try:
            self._around.on_change(member)
        except Exception:
            log.exception("gossip_listener_failed", name=member.name)

    def _complain(self, event: str, address: str, **more: Any) -> None:
        if self._complaints.allows(f"{event} {address}", self._loop.time()):
            log.warning(event, address=address, **more)

    def _refuse(self, error: MalformedMessage, address: str) -> None:
        """Count what is not for us or not readable; say so where an operator can do something about it."""
        self._counters.refused += 1
        if isinstance(error, OtherVersion):
            self._complain("gossip_other_wire_version", address, theirs=error.version, error=str(error))
        elif isinstance(error, streams.CannotOpen):
            self._complain("gossip_not_understood", address, error=str(error))
        else:
            log.debug("gossip_refused", address=address, error=str(error))

    # -- packets ----------------------------------------------------------------------------------------

    def _packet_in(self, data: bytes, source: str) -> None:
        self._counters.packets_in += 1
        try:
            self.swim.receive(self._around.keyring.open(data), source, self._loop.time())
        except MalformedMessage as error:
            self._refuse(error, source)
        self._pump()

    def _packet_out(self, packet: SendPacket) -> None:
        """Straight into the socket: a packet that finds its buffer full is dropped, not queued."""
        host, _, port = packet.address.rpartition(":")
        try:
            self._around.udp.sendto(self._around.keyring.seal(packet.data), (host.strip("[]"), int(port)))
        except OSError as error:
            self._counters.packets_dropped += 1
            log.debug("packet_not_sent", address=packet.address, error=str(error))
        else:
            self._counters.packets_out += 1

    # -- streams ----------------------------------------------------------------------------------------

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._streams_in >= STREAMS_IN_MAX:
            writer.transport.abort()
            return
        self._streams_in += 1
        self._counters.streams_in += 1
        self._spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername") or ("unknown", 0)
        try:
            async with asyncio.timeout(self._around.swim.stream_timeout):
                await self._answer(reader, writer, join_address(peer[0], peer[1]))
                await writer.drain()
                writer.write_eof()
                await reader.read(1)  # the other side closes first, so that the answer is not lost in a reset
        except (OSError, EOFError, TimeoutError):
            self._counters.streams_failed += 1
        finally:
            self._streams_in -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        try:
            answer = self._answer_to(await streams.read_message(reader, self._around.keyring), peer)
            await streams.write_message(writer, self._around.keyring, answer)
        except MalformedMessage as error:
            self._refuse(error, peer.rpartition(":")[0])  # its port is new each time
            if isinstance(error, NotForUs):
                writer.write(streams.CANNOT_OPEN)
        self._pump()

    def _answer_to(self, asked: StreamMessage, peer: str) -> StreamMessage:
        if isinstance(asked, StreamPing):
            if asked.target != self._around.name:
                raise MalformedMessage(f"a ping for {asked.target}")
            return StreamPong(self._around.name)
        if not isinstance(asked, PushPull):
            raise MalformedMessage(f"an answer, but nothing was asked: {type(asked).__name__}")
        self._check_clock(asked)
        return self.swim.answer(asked, _now_ms(), self._loop.time())

    async def _ask(self, address: str, message: StreamMessage) -> StreamMessage | None:
        self._counters.streams_out += 1
        try:
            return await streams.ask(address, self._around.keyring, message, self._around.swim.stream_timeout)
        except MalformedMessage as error:
            self._refuse(error, address)
        except PeerUnavailable as error:
            self._counters.streams_failed += 1
            log.debug("gossip_stream_failed", error=str(error))
        return None

    async def _ping_stream(self, effect: PingStream) -> None:
        answer = await self._ask(effect.address, StreamPing(effect.name))
        if isinstance(answer, StreamPong) and answer.name == effect.name:
            self.swim.stream_acked(effect.sequence)

    async def _push_pull(self, address: str) -> None:
        """Exchange everything with the member there, if it answers."""
        answer = await self._ask(address, self.swim.state(_now_ms()))
        if isinstance(answer, NameIsTaken):
            await self._name_refused(answer.holder)
        if not isinstance(answer, PushPull) or answer.name == self._around.name:
            return
        self._refused_since = None
        self._check_clock(answer)
        try:
            self.swim.merge(answer, self._loop.time())
        except MalformedMessage as error:
            self._refuse(error, address)
        self._pump()
        self._first_answer.set()

    def _check_clock(self, theirs: PushPull) -> None:
        skew = theirs.sent_at_ms / 1000 - time.time()
        if abs(skew) > CLOCK_SKEW_SECONDS_MAX and theirs.name not in self._skewed:
            if len(self._skewed) >= COMPLAINTS_MAX:
                self._skewed.clear()
            self._skewed.add(theirs.name)
            log.warning("gossip_clock_skew", name=theirs.name, address=theirs.address, skew_seconds=round(skew))

    # -- joining ----------------------------------------------------------------------------------------

    async def _name_refused(self, holder: str) -> None:
        """Somebody holds our name. If the holder answers, or stays, we are the one too many."""
        now = self._loop.time()
        self._refused_since = self._refused_since or now
        answer = await self._ask(holder, StreamPing(self._around.name))
        if isinstance(answer, StreamPong) or now - self._refused_since > NAME_WAIT_SECONDS:
            self._deny(ClusterDenied(f"the name {self._around.name} is taken by the live member at {holder}"))

    def _deny(self, error: ClusterDenied) -> None:
        if self._denied is None:
            self._denied = error
            self._first_answer.set()
            self._around.on_denied(error)

    async def _join_round(self) -> None:
        """Try every seed that is not a live member; while nobody is known, members from before the restart too."""
        tries = [self._try_seed(seed) for seed in self._around.seeds]
        if self.swim.live == 1:
            tries += [self._try_any([peer]) for peer in _some(self._peers, PEERS_TRIED_MAX)]
        await asyncio.gather(*tries)

    async def _try_seed(self, seed: str) -> None:
        await self._try_any(await resolve_seed(self._errands, seed))

    async def _try_any(self, addresses: Sequence[str]) -> None:
        """One member at several addresses, or several behind one name: no need to ask when one of them is known."""
        known = {self._around.address} | {m.address for m in self.swim.members().values() if m.is_usable}
        if not any(address in known for address in addresses):
            await asyncio.gather(*map(self._push_pull, _some(addresses, ADDRESSES_TRIED_MAX)))

    async def _join_for_ever(self) -> None:
        pause = JOIN_PAUSE_FIRST_SECONDS
        while True:
            await self._join_round()
            self._first_answer.set()
            if self.swim.live > 1:
                pause = JOIN_PAUSE_FIRST_SECONDS
                await asyncio.sleep(SEED_CHECK_SECONDS * random.uniform(0.5, 1.0))
            else:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(JOIN_PAUSE_SECONDS_MAX, pause * 2)

    # -- the peers file ---------------------------------------------------------------------------------

    async def _keep_peers(self, path: Path) -> None:
        while True:
            await asyncio.sleep(PEERS_WRITE_SECONDS)
            await self._write_peers(path)

    async def _write_peers(self, path: Path) -> None:
        """Live members first; the others too, as a cluster that is stopped as a whole leaves one by one."""
        if not self._peers_changed:
            return
        self._peers_changed = False
        others = [m for m in self.swim.members().values() if m.name != self._around.name]
        others.sort(key=lambda member: not member.is_usable)
        self._peers = list(dict.fromkeys([*(m.address for m in others), *self._peers]))[:PEERS_MAX]
        try:
            await self._errands.run(FILE_SECONDS, write_peers, path, tuple(self._peers))
        except OSError as error:
            self._complain("peers_file_not_written", str(path), error=str(error))


_CHANGES: Final = (MemberJoined, MemberChanged, MemberLeft, MemberDead)
_CHANGES_LOGGED: Final = {
    MemberJoined: "member_joined",
    MemberLeft: "member_left",
    MemberDead: "member_dead",
}


def _some(addresses: Sequence[str], count_max: int) -> Sequence[str]:
    return random.sample(addresses, count_max) if len(addresses) > count_max else addresses


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- sockets ---------------------------------------------------------------------------------------------

BIND_TRIES_MAX: Final = 16
"""Tries to find a number that is free for both UDP and TCP, when any port will do."""


def bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket on the same number; 0 takes a free one. Raises OSError."""
    for attempt in range(BIND_TRIES_MAX):
        try:
            return _bind_both(host, port)
        except OSError:
            if port or attempt == BIND_TRIES_MAX - 1:
                raise
    raise AssertionError("the last try returns or raises")


def _bind_both(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as undo:
        tcp = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((host, port))
        tcp.listen(STREAMS_IN_MAX)
        udp = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        udp.bind((host, tcp.getsockname()[1]))
        for found in (tcp, udp):
            found.setblocking(False)
        undo.pop_all()
        return tcp, udp
