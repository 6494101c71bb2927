"""One controller, and the newest Placement on each voter: pysyncobj behind one small interface (DESIGN section 5).

`Raft` runs pysyncobj 0.3.17 in a thread of its own; `nodes` starts and stops it and hears of leaders and
Placements through two callbacks *in that thread*. What is replicated is one command, a Placement's bytes, of which
the greater version is kept (L32). It is never trusted for safety: it can lose a command it reported as applied, and
two nodes can believe themselves leader for `LEADER_FALLBACK_SECONDS`. The Logs see to that (L12, L28).

The names that begin with an underscore and a class are pysyncobj's private ones; the version is pinned for them.
What is replaced: its wire (pickle, see `cluster.raftwire`), its files but the journal (pickle), its look-up of names
(in the tick), its server (deaf after a failed accept), the wait for a leader whose port refuses, and inet_ntop.
"""

from __future__ import annotations

import _socket
import asyncio
import errno
import logging
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, SyncObjException
from pysyncobj import journal as pysyncobj_journal
from pysyncobj.monotonic import monotonic as raft_clock
from pysyncobj.node import TCPNode
from pysyncobj.tcp_connection import TcpConnection
from pysyncobj.tcp_server import SERVER_STATE, TcpServer
from pysyncobj.transport import TCPTransport

from cluster.errors import ClusterDenied, ClusterMisconfigured, MalformedMessage, PeerUnavailable
from cluster.placement import decode_placement
from cluster.raftconfig import Keeper, RaftConfig, quieten_pysyncobj
from cluster.raftfiles import (
    DUMP,
    JOURNAL,
    prepare,
    read_dump,
    read_meta,
    set_aside,
    with_checksum,
    write_dump,
    write_meta,
)
from cluster.raftnames import Resolver, literal, refuses
from cluster.raftwire import FRAME_BYTES_MAX, HELLO_BYTES_MAX, HELLO_KEY_BYTES, AnotherVoterList, Seal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Raft", "RaftConfig"]
socket.inet_ntop = _socket.inet_ntop  # pysyncobj has put one for Windows there, for the whole process
log = logging.getLogger(__name__)

ELECTION_SECONDS_MIN, ELECTION_SECONDS_MAX = 0.5, 1.2
"""Without a heartbeat for a random time between these a follower stands for election (every voter's the same)."""
LEADER_FALLBACK_SECONDS: Final = 2.0
"""A leader without a majority steps down after this."""
RECONNECT_SECONDS: Final = 0.3
TICK_SECONDS: Final = 0.05
PROBE_SECONDS: Final = 0.05
PROBE_ANSWER_SECONDS: Final = 0.02
"""A leader whose connection broke is asked so often whether its port still answers, and has so long to say so."""
RANK_SECONDS: Final = 0.3
"""A leader that refuses is gone: the voters stand one after another, so that they do not split the vote."""
COMMAND_BYTES_MAX: Final = 1 << 20
COMPACTION_ENTRIES: Final = 500
STRANGERS_MAX: Final = 32
"""Connections that have not yet said who they are; the oldest gives way."""
STRANGER_SECONDS: Final = 3.0
SILENCE_SECONDS: Final = 10.0
STOP_SECONDS: Final = 3.0
FAILED_TICKS_MAX: Final = 20
UNSENT_BYTES_MAX: Final = 2 * FRAME_BYTES_MAX
SOCKET_BYTES: Final = 1 << 16
SIGN_OF_LIFE_SECONDS: Final = 1.0
"""Between voters that are silent otherwise: pysyncobj gives up a connection, with the vote that it was about to send,
when it has heard nothing for 3.5 s, and followers have nothing to say to each other until they vote."""
_REGULAR: Final = 0
"""pysyncobj's type of a command that is for us; others are its own."""
_TRANSIENT: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ECONNABORTED})


class Raft:
    """One voter. ``on_applied`` gets the newest command, ``on_leader`` the leader's name or None."""

    def __init__(
        self,
        config: RaftConfig,
        on_applied: Callable[[bytes], None],
        on_leader: Callable[[str | None], None],
    ) -> None:
        self._config = config
        self._on_applied = on_applied
        self._on_leader = on_leader
        self._keeper = Keeper()
        self._names = {address: name for name, address in config.voters.items()}
        self._resolver = Resolver(config.voters.values())
        self._voter: _Voter | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._failed_ticks = 0
        self._leader: str | None = None
        self._told: bytes = b""
        self._silent_since: float | None = None
        self._waiting: set[asyncio.Future[int]] = set()

    @property
    def state(self) -> bytes:
        """The newest applied command; empty if there is none."""
        return self._keeper.command

    @property
    def leader(self) -> str | None:
        """Who leads, as far as this node knows."""
        return self._leader

    @property
    def is_leader(self) -> bool:
        """This node leads, or thinks so (LOG L32 copes with two)."""
        return self._leader == self._config.name

    async def start(self) -> None:
        """Read what was kept, listen, and begin. Raises ClusterMisconfigured if the address cannot be used."""
        assert self._thread is None, "a Raft is started once"
        quieten_pysyncobj()
        self._resolver.start()
        try:
            self._voter = await asyncio.to_thread(self._open)
        except BaseException:
            self._resolver.stop()
            raise
        self._thread = threading.Thread(target=self._run, name="raft", daemon=True)
        self._thread.start()

    async def propose(self, command: bytes, timeout: float) -> bool:
        """Replicate a Placement's bytes. True: applied here. False: lost, or unknown.

        Raises PeerUnavailable when there was no leader or no answer in ``timeout`` seconds (also unknown), and
        MalformedMessage when ``command`` is no Placement.
        """
        if len(command) > COMMAND_BYTES_MAX:
            raise MalformedMessage(f"a Placement of {len(command)} bytes")
        decode_placement(command)
        voter = self._voter
        if voter is None or self._stopping.is_set():
            raise PeerUnavailable("Raft is not running")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        self._waiting.add(answer)
        try:
            voter.submit(command, lambda reason: _settle_soon(loop, answer, reason))
            async with asyncio.timeout(timeout):
                reason = await answer
        except TimeoutError:
            raise PeerUnavailable(f"no majority of voters answered in {timeout} s") from None
        finally:
            self._waiting.discard(answer)
        if reason in (FAIL_REASON.MISSING_LEADER, FAIL_REASON.QUEUE_FULL):
            raise PeerUnavailable("no Raft leader")
        return bool(reason == FAIL_REASON.SUCCESS)

    async def stop(self) -> None:
        """Leave. May be called again, and when not started."""
        self._stopping.set()
        self._resolver.stop()
        for answer in tuple(self._waiting):
            _settle(answer, FAIL_REASON.MISSING_LEADER)
        thread, self._thread = self._thread, None
        if thread is None:
            return
        await asyncio.to_thread(thread.join, STOP_SECONDS)
        if thread.is_alive():
            log.warning("the raft thread did not end in %s s", STOP_SECONDS)

    # ---- below: in the raft thread --------------------------------------------------------------------------

    def _open(self) -> _Voter:
        listen = f"{literal(self._config.listen[0])}:{self._config.listen[1]}"
        prepare(self._config.folder)
        try:
            return _Voter(self._config, listen, self._keeper, self._resolver)
        except SyncObjException as error:
            raise ClusterMisconfigured(f"cannot listen for Raft on {listen}: is it in use?") from error
        except Exception as error:  # noqa: BLE001 - whatever the files made it do: without them it starts
            set_aside(self._config.folder, f"{type(error).__name__}: {error}")
            return _Voter(self._config, listen, self._keeper, self._resolver)

    def _run(self) -> None:
        self._silent_since = time.monotonic()
        while not self._stopping.is_set():
            self._tick()
            self._observe()
        voter, self._voter = self._voter, None
        if voter is not None:
            voter.close()

    def _tick(self) -> None:
        try:
            assert self._voter is not None
            self._voter.doTick(TICK_SECONDS)
            self._failed_ticks = 0
        except Exception:
            self._failed_ticks += 1
            log.exception("raft failed, try %d", self._failed_ticks)
            self._stopping.wait(TICK_SECONDS)
            if self._failed_ticks >= FAILED_TICKS_MAX:
                self._begin_anew()

    def _begin_anew(self) -> None:
        """pysyncobj repeats a step that fails for ever; its state is not worth that."""
        assert self._voter is not None
        self._voter.close()
        set_aside(self._config.folder, f"{FAILED_TICKS_MAX} ticks failed")
        self._failed_ticks = 0
        self._voter = self._open()

    def _observe(self) -> None:
        """Tell what changed in this tick, and not from within it: a callback that raised would wedge pysyncobj."""
        voter = self._voter
        assert voter is not None
        leader = self._names.get(voter.leader_address or "")
        if leader != self._leader:
            self._leader = leader
            log.info("raft leader: %s", leader or "none")
            _tell(self._on_leader, leader)
        command = self._keeper.command
        if command is not self._told:
            self._told = command
            _tell(self._on_applied, command)
        self._hear_silence(voter)

    def _hear_silence(self, voter: _Voter) -> None:
        if voter.is_connected:
            self._silent_since = time.monotonic()
        elif self._silent_since is not None and time.monotonic() - self._silent_since > SILENCE_SECONDS:
            self._silent_since = None  # said once, until one has answered
            log.warning("no voter answers: not up, or wrong secret, or another voter list")


def _tell(callback: Callable[[Any], None], news: object) -> None:
    try:
        callback(news)
    except Exception:
        log.exception("nobody could be told of %s", "a leader" if not isinstance(news, bytes) else "a Placement")


def _settle(answer: asyncio.Future[int], reason: int) -> None:
    if not answer.done():
        answer.set_result(reason)


def _settle_soon(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[int], reason: int) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(_settle, answer, reason)


class _Node(TCPNode):  # type: ignore[misc]
    """Another voter, whose name is looked up elsewhere."""

    def __init__(self, address: str, resolver: Resolver) -> None:
        super().__init__(address)
        self._resolver = resolver

    @property
    def ip(self) -> str | None:
        return self._resolver.find(self.host)


class _Connection(TcpConnection):  # type: ignore[misc]
    """A connection that decodes nothing before it has opened the seal, and holds little until then."""

    encryptor: Seal
    _TcpConnection__readBuffer: bytes
    _sent = 0
    _received = 0

    def connect(self, host: str | None, port: int) -> bool:
        begun = bool(super().connect(host, port))
        if not begun:
            self.disconnect()
        return begun

    def disconnect(self) -> None:
        self._sent = self._received = 0
        super().disconnect()

    def send(self, message: object) -> None:
        self._sent += 1
        data = self.encryptor.seal(self.sendRandKey or b"", self._sent, message)
        self._TcpConnection__writeBuffer += struct.pack("<I", len(data)) + data
        if self.getSendBufferSize() > UNSENT_BYTES_MAX:
            self.disconnect()
            return
        self._TcpConnection__trySendBuffer()

    @property
    def _bytes_max(self) -> int:
        return FRAME_BYTES_MAX if self._received else HELLO_BYTES_MAX

    def _TcpConnection__processRead(self) -> bool:
        if len(self._TcpConnection__readBuffer) > self._bytes_max:
            return False  # there is at least one frame, or too long a one
        return bool(super()._TcpConnection__processRead())

    def _TcpConnection__processParseMessage(self) -> object:
        buffer: bytes = self._TcpConnection__readBuffer
        if len(buffer) < 4:
            return None
        (size,) = struct.unpack_from("<I", buffer)
        if size > self._bytes_max:
            self._refuse(f"a frame of {size} bytes")
            return None
        if len(buffer) < 4 + size:
            return None
        self._TcpConnection__readBuffer = buffer[4 + size :]
        return self._open(buffer[4 : 4 + size])

    def _open(self, data: bytes) -> object:
        try:
            message = self.encryptor.open(data, self.recvRandKey or b"", self._received + 1)
        except AnotherVoterList as error:
            if error.is_first:
                log.warning("%s; refused", error)
            if not self._sent:
                self.send(bytes(HELLO_KEY_BYTES))  # so that it finds out too
            self.disconnect()
            return None
        except (ClusterDenied, MalformedMessage) as error:
            self._refuse(str(error))
            return None
        self._received += 1
        return message

    def _refuse(self, reason: str) -> None:
        log.info("a raft connection is refused: %s", reason)
        self.disconnect()


class _Meta(pysyncobj_journal.MetaStorer):  # type: ignore[misc]
    """Term and vote in JSON: the last file that pysyncobj would pickle."""

    def getMeta(self) -> dict[str, object]:
        return read_meta(Path(self.getPath()))

    def storeMeta(self, meta: dict[str, object]) -> None:
        write_meta(Path(self.getPath()), meta)


pysyncobj_journal.MetaStorer = _Meta  # its journal makes its own and takes no other


class _Server(TcpServer):  # type: ignore[misc]
    """Makes our connections, and outlives a failed accept."""

    def bind(self) -> None:
        super().bind()
        self._TcpServer__socket.listen(STRANGERS_MAX)

    def _TcpServer__onNewConnection(self, descr: int, event: int) -> None:
        try:
            for _ in range(STRANGERS_MAX):
                self._accept()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                log.info("raft cannot accept: %s", error)
                self.unbind()  # no descriptors: `_Transport` binds again a second later

    def _accept(self) -> None:
        sock, _ = self._TcpServer__socket.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        poller, timeout = self._TcpServer__poller, self._TcpServer__connectionTimeout
        connection = _Connection(poller, socket=sock, timeout=timeout, recvBufferSize=SOCKET_BYTES)
        self._TcpServer__onNewConnectionCallback(connection)

    @property
    def is_bound(self) -> bool:
        return bool(self._TcpServer__state == SERVER_STATE.BINDED)


class _Transport(TCPTransport):  # type: ignore[misc]
    """Connections between voters and nobody else: no readers, no utility commands."""

    _ready: bool

    def __init__(self, voter: _Voter, self_node: _Node, others: set[_Node]) -> None:
        self._strangers: dict[_Connection, float] = {}  # with the time when they must have said who they are
        self._next_probe = 0.0
        self._next_sign = 0.0
        super().__init__(voter, self_node, others)

    def _createServer(self) -> None:
        conf = self._syncObj.conf
        host, _, port = conf.bindAddress.rpartition(":")
        self._server = _Server(
            self._syncObj._poller, host, port, self._onNewIncomingConnection, connectionTimeout=conf.connectionTimeout
        )

    def addNode(self, node: _Node) -> None:
        super().addNode(node)
        stock = self._connections.get(node)
        if stock is not None:
            self._connections[node] = self._new_connection(node)

    def _new_connection(self, node: _Node) -> _Connection:
        conf = self._syncObj.conf
        connection = _Connection(
            self._syncObj._poller,
            timeout=conf.connectionTimeout,
            sendBufferSize=SOCKET_BYTES,
            recvBufferSize=SOCKET_BYTES,
            keepalive=conf.tcp_keepalive,
        )
        connection.encryptor = self._syncObj.encryptor
        connection.setOnConnectedCallback(lambda: self._onOutgoingConnected(connection))
        connection.setOnMessageReceivedCallback(lambda message: self._onMessageReceived(node, message))
        connection.setOnDisconnectedCallback(lambda: self._onDisconnected(connection))
        return connection

    def _onNewIncomingConnection(self, conn: _Connection) -> None:
        super()._onNewIncomingConnection(conn)
        self._strangers[conn] = time.monotonic() + STRANGER_SECONDS
        if len(self._strangers) > STRANGERS_MAX:
            next(iter(self._strangers)).disconnect()

    def _onIncomingMessageReceived(self, conn: _Connection, message: object) -> None:
        if conn.sendRandKey is None:
            self._greet(conn, message)
            return
        node = self._nodeAddrToNode.get(message) if isinstance(message, str) else None
        if node is None:
            conn.disconnect()
            return
        self._strangers.pop(conn, None)
        older = self._connections.get(node)
        super()._onIncomingMessageReceived(conn, message)
        if older is not None and older is not conn:
            older.setOnDisconnectedCallback(None)  # of a life that has ended without a word
            older.disconnect()

    def _greet(self, conn: _Connection, message: object) -> None:
        if isinstance(message, bytes) and len(message) == HELLO_KEY_BYTES:
            super()._onIncomingMessageReceived(conn, message)
        else:
            conn.disconnect()

    def _onOutgoingConnected(self, conn: _Connection) -> None:
        self._strangers[conn] = time.monotonic() + STRANGER_SECONDS
        super()._onOutgoingConnected(conn)

    def _onOutgoingMessageReceived(self, conn: _Connection, message: object) -> None:
        self._strangers.pop(conn, None)
        if isinstance(message, bytes) and len(message) == HELLO_KEY_BYTES:
            super()._onOutgoingMessageReceived(conn, message)
        else:
            conn.disconnect()

    def _onMessageReceived(self, node: _Node, message: object) -> None:
        if isinstance(message, dict):  # a sign of life is a str
            super()._onMessageReceived(node, message)

    def _onDisconnected(self, conn: _Connection) -> None:
        self._strangers.pop(conn, None)
        super()._onDisconnected(conn)

    def _onTick(self) -> None:
        now = time.monotonic()
        for conn in [conn for conn, until in self._strangers.items() if until < now]:
            conn.disconnect()
        if self._ready and not self._server.is_bound:
            self._ready = False
        super()._onTick()
        if now >= self._next_sign:
            self._next_sign = now + SIGN_OF_LIFE_SECONDS
            for node in tuple(self._nodes):
                if self._syncObj.isNodeConnected(node):
                    self.send(node, "")
        self._probe_leader(now)

    def _probe_leader(self, now: float) -> None:
        """A leader that was killed refuses at once: its followers need not wait for the time-out."""
        voter = self._syncObj
        leader = voter._getLeader()
        if leader is None or leader == self._selfNode or voter.isNodeConnected(leader) or now < self._next_probe:
            return
        self._next_probe = now + PROBE_SECONDS
        if refuses(leader.ip, leader.port, PROBE_ANSWER_SECONDS):
            living = sorted({self._selfNode.address, *self._nodeAddrToNode} - {leader.address})
            voter.stand_in(living.index(self._selfNode.address) * RANK_SECONDS)

    def destroy(self) -> None:
        self._server.unbind()  # first: our followers ask our port whether we are gone
        super().destroy()


class _Voter(SyncObj):  # type: ignore[misc]
    """pysyncobj's object with one command, no pickle, and no methods of ours that it could replicate."""

    _SyncObj__raftElectionDeadline: float

    def __init__(self, config: RaftConfig, listen: str, keeper: Keeper, resolver: Resolver) -> None:
        self._seal = Seal(config.name, config.voters, config.secrets)
        self._keeper = keeper
        self._closing = threading.Lock()
        self._is_closed = False
        nodes = {name: _Node(address, resolver) for name, address in config.voters.items()}
        own = nodes.pop(config.name)
        conf = self._conf(config.folder, listen)
        try:
            super().__init__(own, set(nodes.values()), conf, transportClass=_Transport)
        except SyncObjException:  # the last thing that it does is to bind
            self.close()
            raise
        if not nodes:
            self.stand_in(0.0)

    def _conf(self, folder: Path, listen: str) -> SyncObjConf:
        return SyncObjConf(
            autoTick=False,
            useFork=False,
            dynamicMembershipChange=False,
            appendEntriesUseBatch=False,
            appendEntriesBatchSizeBytes=2 * COMMAND_BYTES_MAX,  # above a command: entries in pieces are pickled
            logCompactionBatchSize=2 * COMMAND_BYTES_MAX,  # above a snapshot: with pieces it counts too early
            logCompactionMinEntries=COMPACTION_ENTRIES,
            commandsWaitLeader=False,
            commandsQueueSize=64,
            bindAddress=listen,
            maxBindRetries=1,  # 0 would spin in the constructor for ever
            raftMinTimeout=ELECTION_SECONDS_MIN,
            raftMaxTimeout=ELECTION_SECONDS_MAX,
            leaderFallbackTimeout=LEADER_FALLBACK_SECONDS,
            connectionRetryTime=RECONNECT_SECONDS,
            dnsCacheTime=5.0,
            dnsFailCacheTime=1.0,
            fullDumpFile=str(folder / DUMP),
            journalFile=str(folder / JOURNAL),
            serializer=self._dump,
            deserializer=self._load,
        )

    @property
    def encryptor(self) -> Seal:
        return self._seal

    @property
    def is_connected(self) -> bool:
        """To any other voter, or there is none."""
        return bool(self._SyncObj__connectedToAnyone())

    @property
    def leader_address(self) -> str | None:
        leader = self._getLeader()
        return None if leader is None else str(leader.address)

    def submit(self, command: bytes, on_answer: Callable[[int], None]) -> None:
        """From any thread. ``on_answer`` is called in the raft thread, or never (a lost link to the leader)."""
        with self._closing:
            if self._is_closed:
                raise PeerUnavailable("Raft is not running")
            self._applyCommand(with_checksum(command), lambda _, reason: on_answer(reason), _REGULAR)

    def stand_in(self, seconds: float) -> None:
        """Stand for election in ``seconds``, if not sooner. In the raft thread."""
        self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, raft_clock() + seconds)
        self._SyncObj__pipeNotifier.notify()  # the tick goes on at once

    def close(self) -> None:
        with self._closing:
            self._is_closed = True
            self.destroy()
            pipe = self._SyncObj__pipeNotifier
            for descriptor in (pipe._PipeNotifier__pipeR, pipe._PipeNotifier__pipeW):
                os.close(descriptor)

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        if command[:1] == bytes([_REGULAR]):
            self._apply(command[1:])

    def _apply(self, checked: bytes) -> None:
        """The one replicated method. Never raises."""
        command = checked[4:]
        if with_checksum(command) == checked:
            self._keeper.keep(command)
        else:
            log.warning("a damaged raft entry is ignored")

    def _dump(self, path: str, entries: tuple[Any, ...]) -> None:
        write_dump(Path(path), self._keeper.command, entries[0], entries[1])

    def _load(self, path: str) -> tuple[Any, ...]:
        state, last, before = read_dump(Path(path))
        if state:
            self._keeper.keep(state)
        return last, before, set()
