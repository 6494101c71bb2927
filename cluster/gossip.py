"""Gossip: who is here. A member with its own thread and event loop, so that a busy node still answers pings.

`Gossip` is what a node holds. Its methods may be called from any thread; what it believes is read without a lock,
from a snapshot that the gossip thread swaps. `cluster.gossiploop` does the work, `cluster.swim` the thinking.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import threading
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from cluster.errors import ClusterMisconfigured
from cluster.gossiploop import GossipCounters, GossipLoop, Surroundings, bind
from cluster.keyring import Keyring
from cluster.messages import NAME_PATTERN, encode_meta, join_address, split_address
from cluster.seeds import SEEDS_MAX, Errands, own_address, resolve, resolve_seed
from cluster.swimconfig import SwimConfig

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from cluster.errors import ClusterDenied
    from cluster.members import Member, MemberMeta

__all__ = ["Gossip", "GossipConfig", "GossipCounters"]

LEAVE_SECONDS_MAX: Final = 3.0
STOP_SECONDS_MAX: Final = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """How a member takes part.

    ``listen`` is a host and a port for UDP and TCP, 0 for a free one. ``advertise`` is HOST or HOST:PORT as others
    reach us; None takes the listening address, or the one towards the first seed when that is a wildcard. ``join``
    holds seeds as HOST:PORT. Without ``secrets`` both addresses must be of the loopback.
    """

    name: str
    cluster: str
    listen: tuple[str, int]
    advertise: str | None = None
    join: Sequence[str] = ()
    secrets: Sequence[bytes] = ()
    peers_file: Path | None = None
    swim: SwimConfig = field(default_factory=SwimConfig)

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"GossipConfig(name={self.name!r}, cluster={self.cluster!r}, listen={self.listen!r})"


class Gossip:
    """One member of the cluster. ``async with``, or `start` and `stop`; it lives once."""

    def __init__(
        self,
        config: GossipConfig,
        meta: MemberMeta,
        on_change: Callable[[Member], None],
        *,
        on_denied: Callable[[ClusterDenied], None] | None = None,
    ) -> None:
        """``on_change`` is told, in the gossip thread, of each other member that joins, changes, is suspected,
        leaves or dies. ``on_denied``: a name turned out to be taken after the start. Raises ClusterMisconfigured.
        """
        check_config(config)
        encode_meta(meta)
        self.config = config
        self.address = ""
        self.counters = GossipCounters()
        self._meta = meta
        self._on_change = on_change
        self._on_denied = on_denied
        self._members: Mapping[str, Member] = MappingProxyType({})
        self._keyring = Keyring.of_cluster(config.cluster, config.secrets)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._work: GossipLoop | None = None
        self._started: Future[None] = Future()
        self._finished: Future[None] = Future()
        self._stopping = False

    # -- life -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind, and try the seeds once. Raises OSError for a port that is taken, ClusterDenied for a name that a
        live member has, ClusterMisconfigured. When no seed answers, joining goes on in the background.
        """
        assert self._thread is None, "a Gossip lives once"
        self._thread = threading.Thread(target=self._run, name=f"gossip-{self.config.name}", daemon=True)
        self._thread.start()
        try:
            await asyncio.wrap_future(self._started)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End without a word to others, who will find us dead: `leave` first. Idempotent, and has a deadline."""
        self._stopping = True
        if self._thread is None:
            return
        self._call(self._cancel)
        _, late = await asyncio.wait([asyncio.wrap_future(self._finished)], timeout=STOP_SECONDS_MAX)
        if late:
            log.warning("gossip_stop_late", seconds=STOP_SECONDS_MAX)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def leave(self) -> None:
        """Tell others that we go, and wait until that was sent, a moment at most."""
        work = self._work
        if work is None:
            return
        left: Future[None] = Future()
        self._call(lambda: work.leave(lambda: left.set_result(None)))
        waits = [asyncio.wrap_future(left), asyncio.wrap_future(self._finished)]
        await asyncio.wait(waits, timeout=LEAVE_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)

    # -- for the node -----------------------------------------------------------------------------------

    def members(self) -> Mapping[str, Member]:
        """Everybody who is known by name, this member included, and dead or left ones for a while."""
        return self._members

    def set_meta(self, meta: MemberMeta) -> None:
        """What others see of us from now on. Raises ClusterMisconfigured when it is too large."""
        encode_meta(meta)
        self._meta = meta
        if self._work is not None:
            self._call(self._work.set_meta, meta)

    def suspect_now(self, name: str) -> None:
        """An RPC to this member failed: probe it at once."""
        if self._work is not None:
            self._call(self._work.suspect_now, name)

    # -- in the gossip thread -----------------------------------------------------------------------------

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """In the gossip thread, if it still runs."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function, *arguments)

    def _cancel(self) -> None:
        main, self._main = self._main, None  # a second call must not cut the clean-up short
        if main is not None:
            main.cancel()

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except asyncio.CancelledError:
            _settle(self._started, OSError("gossip was stopped while it started"))
        except Exception as error:
            if self._started.done():
                log.exception("gossip_failed")
            _settle(self._started, error)
        finally:
            _settle(self._finished, None)

    async def _live(self) -> None:
        self._main = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        if self._stopping:
            raise asyncio.CancelledError
        around = await self._surroundings()
        self.address = around.address
        work = GossipLoop(around, self._meta)
        try:
            await work.open()
            self._work = work
            await work.first_join()
            _settle(self._started, None)
            await self._loop.create_future()  # until it is cancelled
        finally:
            self._work = None
            await work.close()

    async def _surroundings(self) -> Surroundings:
        config, errands = self.config, Errands()
        host = (await resolve(errands, *config.listen))[0]
        tcp, udp = bind(host, config.listen[1])
        try:
            address = await self._advertised(errands, host, tcp.getsockname()[1])
            if not config.secrets:
                _check_loopback(host, split_address(address)[0])
        except BaseException:
            tcp.close()
            udp.close()
            raise
        return self._around(tcp, udp, address)

    def _around(self, tcp: socket.socket, udp: socket.socket, address: str) -> Surroundings:
        return Surroundings(
            name=self.config.name,
            keyring=self._keyring,
            tcp=tcp,
            udp=udp,
            address=address,
            seeds=self.config.join,
            peers_file=self.config.peers_file,
            swim=self.config.swim,
            counters=self.counters,
            on_snapshot=self._snapshot,
            on_change=self._on_change,
            on_denied=self._denied,
        )

    async def _advertised(self, errands: Errands, host: str, port: int) -> str:
        given = self.config.advertise
        if given is not None:
            name, given_port = _host_and_port(given, port)
            return join_address((await resolve(errands, name, given_port))[0], given_port)
        if ipaddress.ip_address(host).is_unspecified:
            host = own_address(await resolve_seed(errands, self.config.join[0]) if self.config.join else ())
        return join_address(host, port)

    def _snapshot(self, members: Mapping[str, Member]) -> None:
        self._members = members

    def _denied(self, error: ClusterDenied) -> None:
        if not self._started.done():
            return  # `start` raises it
        log.error("gossip_denied", error=str(error))
        if self._on_denied is not None:
            self._on_denied(error)


def check_config(config: GossipConfig) -> None:
    """What can be checked before anything is opened. Raises ClusterMisconfigured."""
    if not re.match(NAME_PATTERN, config.name):
        raise ClusterMisconfigured(f"{config.name!r} cannot be a member's name: letters, digits, '.', '_', '-'")
    for seed in config.join:
        try:
            split_address(seed)
        except ValueError as error:
            raise ClusterMisconfigured(f"a member to join: {error}") from error
    if len(config.join) > SEEDS_MAX:
        raise ClusterMisconfigured(f"{len(config.join)} members to join, at most {SEEDS_MAX}: a few are enough")


def _host_and_port(text: str, port: int) -> tuple[str, int]:
    """HOST or HOST:PORT."""
    try:
        return split_address(text)
    except ValueError:
        return text.strip("[]"), port


def _check_loopback(*hosts: str) -> None:
    for host in hosts:
        if not ipaddress.ip_address(host).is_loopback:
            raise ClusterMisconfigured(f"without a cluster secret gossip stays on the loopback, not on {host}")


def _settle(future: Future[None], error: Exception | None) -> None:
    with contextlib.suppress(InvalidStateError):  # settled before, or nobody waits any more
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
