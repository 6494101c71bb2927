"""Drives the Placement's machine on a voter: Raft's leader opens the Catalog and decides who owns what (LOG L28, L32).

`cluster.placer` decides; this module performs what it asks for: open and close the Catalog, announce its epoch,
commit maps through Raft, look who refuses connections. Everything runs on the node's event loop, one event at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog

from cluster.errors import ClusterError, PeerUnavailable
from cluster.members import Kind, MemberState
from cluster.placement import Placement, decode_placement, encode_placement
from cluster.placer import Placer
from cluster.placerevents import (
    Announce,
    CatalogFailed,
    CatalogOpened,
    CloseCatalog,
    CommitFailed,
    Committed,
    Fenced,
    HandoverRequested,
    Issue,
    LeaderGained,
    LeaderLost,
    Learned,
    MembersChanged,
    OpenCatalog,
    Reachable,
    RebalanceRequested,
    Repeat,
    Reported,
    ReportFailed,
    Tick,
    Unreachable,
    Wake,
)
from nodes.reachable import Reachability
from nodes.rpcerrors import write_error
from protos import internal_pb2, internal_pb2_grpc
from storage.catalog import Catalog
from storage.errors import ShardClosed, StorageError
from storage.log import Identity
from storage.store import CATALOG_LOG

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from cluster.placerevents import Effect, Event
    from cluster.raft import Raft
    from nodes.member import ClusterMember
    from storage.catalogstate import CatalogLimits
    from storage.changes import Change
    from storage.frames import WriteId
    from storage.schema import Table

ANNOUNCE_SECONDS_MAX: Final = 1.0
COMMIT_SECONDS_MAX: Final = 2.0
OPEN_SECONDS_MAX: Final = 30.0
DROP_SECONDS_MAX: Final = 20.0
"""How long a drop waits for the owner of a shard; then the client hears "still dropping"."""
DROP_TRY_SECONDS_MAX: Final = 5.0
DROP_PAUSE_SECONDS: Final = 0.2
DROP_AGAIN_SECONDS: Final = 5.0
TICK_SECONDS: Final = 0.25

log = structlog.get_logger(__name__)


class Controller:
    """The controller's part of an ingest node. `run` it as a task; without Raft it only refuses."""

    def __init__(self, member: ClusterMember, raft: Raft | None, limits: CatalogLimits, shards: int) -> None:
        self._member = member
        self._raft = raft
        self._limits = limits
        self._shards = shards
        self._placer = Placer(member.name, random.Random())
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._catalog: Catalog | None = None
        self._opening = asyncio.Lock()
        self._reachability = Reachability(self._reached)
        self._announcing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_task: asyncio.Task[None] | None = None
        self._proving = False
        self._wake_at: float | None = None

    # -- what the services ask ---------------------------------------------------------------------------

    @property
    def is_controller(self) -> bool:
        """The Catalog is open here."""
        return self._catalog is not None

    @property
    def position(self) -> int:
        """The next `born` of a proposal."""
        return self._open_catalog().state.position

    async def propose(self, changes: Sequence[Change], write_id: WriteId, born: int) -> tuple[int, int]:
        """Apply changes once; return the Revision and the Catalog's position (L28)."""
        catalog = self._open_catalog()
        altered = await catalog.carry_out(changes, self._drop, write_id, born)
        self._member.catalog.hint(altered.revision)
        return altered.revision, altered.position

    async def _drop(self, log_id: int, table: Table) -> None:
        """L31: the drop record in one Log, at its owner. Sent until one takes it, within a bounded time."""
        request = internal_pb2.DropRequest(shard=log_id, table_id=table.id, revision=table.dropping)
        deadline = asyncio.get_running_loop().time() + DROP_SECONDS_MAX
        while True:
            owner = self._member.placement.current.owners.get(log_id, "")
            try:
                stub = self._member.channel(owner).stub(internal_pb2_grpc.IngestStub)
                await stub.Drop(request, timeout=DROP_TRY_SECONDS_MAX)
            except (ClusterError, grpc.aio.AioRpcError) as error:  # idempotent by table id: again, whoever owns it now
                failure = write_error(error, owner) if isinstance(error, grpc.aio.AioRpcError) else error
                if asyncio.get_running_loop().time() >= deadline:
                    raise ShardClosed(f"shard {log_id}: no owner took a drop in time ({failure})") from error
                await asyncio.sleep(DROP_PAUSE_SECONDS)
            else:
                return

    async def _finish_drops(self, catalog: Catalog) -> None:
        """L31: a controller that opens the Catalog finishes every drop that another began."""
        while self._catalog is catalog and catalog.dropping():
            try:
                await catalog.finish_drops(self._drop)
            except StorageError as error:
                log.info("drops are put off", reason=str(error))
                await asyncio.sleep(DROP_AGAIN_SECONDS)

    def handover(self, node: str, leaving: bool) -> int:
        """Give a node's shards to others; return how many it has now. Asked again until it says 0."""
        self._open_catalog()
        self._post(HandoverRequested(node, leaving))
        return len(self._member.placement.current.shards_of(node))

    def rebalance(self) -> int:
        """Spread the shards; return how many live nodes share them."""
        self._open_catalog()
        self._post(RebalanceRequested())
        return len(self._member.usable(Kind.INGEST))

    def _open_catalog(self) -> Catalog:
        if self._catalog is None:
            raise ShardClosed(f"{self._member.name} is not the controller: try again")
        return self._catalog

    # -- events ------------------------------------------------------------------------------------------

    def leader_is(self, leader: str | None) -> None:
        """Raft has a new leader. Called on the event loop."""
        self._post(LeaderGained() if leader == self._member.name else LeaderLost())

    def applied(self, command: bytes) -> None:
        """Raft has applied a Placement. Called on the event loop."""
        try:
            placement = decode_placement(command)
        except ClusterError as error:
            log.warning("Raft holds something that is no Placement", reason=str(error))
            return
        self._member.placement.offer(placement)

    def members_changed(self) -> None:
        """Gossip has news."""
        members = dict(self._member.members())
        self._post(MembersChanged(members))
        if self.is_controller:
            self._watch_ports()

    def _post(self, event: Event) -> None:
        self._events.put_nowait(event)

    def _reached(self, name: str, reachable: bool) -> None:
        self._post(Reachable(name) if reachable else Unreachable(name))
        if not reachable:
            self._member.suspect(name)

    def _watch_ports(self) -> None:
        self._reachability.watch(
            {
                member.name: member.meta.addresses["grpc"]
                for member in self._member.members().values()
                if member.meta.kind is Kind.INGEST
                and member.state in (MemberState.ALIVE, MemberState.SUSPECT)
                and member.name != self._member.name
            }
        )

    async def run(self) -> None:
        """Until cancelled."""
        self._member.placement.listen(lambda placement: self._post(Learned(placement)))
        self._member.listen(self.members_changed)
        self.members_changed()
        self._post(Learned(self._member.placement.current))
        try:
            while True:
                event = await self._next()
                for effect in self._placer.handle(event, time.monotonic()):
                    self._perform(effect)
        finally:
            await self.aclose()

    async def _next(self) -> Event:
        wait = TICK_SECONDS if self._wake_at is None else max(0.0, min(TICK_SECONDS, self._wake_at - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                return await self._events.get()
        self._wake_at = None
        return Tick()

    async def aclose(self) -> None:
        """Let the Catalog go, and whatever is under way. Idempotent."""
        await self._reachability.aclose()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_catalog()

    # -- effects -----------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Wake):
            self._wake_at = effect.at
        elif isinstance(effect, Announce):
            if effect.name not in self._announcing:
                self._announcing.add(effect.name)
                self._spawn(self._announce(effect.name, effect.epoch))
        elif isinstance(effect, Issue):
            self._member.placement.offer(effect.placement)
            self._spawn(self._commit(effect.placement))
        elif isinstance(effect, Repeat):
            self._spawn(self._prove())
            if effect.propose:
                self._spawn(self._commit(effect.placement))
        elif isinstance(effect, OpenCatalog):
            self._open_task = self._spawn(self._open())
        elif isinstance(effect, CloseCatalog):
            if self._open_task is not None:
                self._open_task.cancel()
            self._spawn(self._close_catalog())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _open(self) -> None:
        """Take the Catalog over; its epoch numbers the Placements to come."""
        async with self._opening:
            if self._catalog is not None:
                self._post(self._opened(self._catalog))
                return
            version = self._member.placement.current.version
            identity = Identity(self._member.identity.id.bytes, CATALOG_LOG, self._member.id)
            catalog = Catalog(self._member.store, identity, self._member.executor, self._limits, self._member.fail)
            try:
                async with asyncio.timeout(OPEN_SECONDS_MAX):
                    await catalog.open(range(1, self._shards + 1), placement=(version.catalog_epoch, version.number))
            except BaseException as error:
                await catalog.close()
                if not isinstance(error, StorageError | TimeoutError):
                    raise
                log.warning("the Catalog could not be opened", reason=str(error))
                self._post(CatalogFailed())
                return
            self._catalog = catalog
            catalog.driver.closed.add_done_callback(lambda _: self._ended(catalog))
            log.info("controller", epoch=catalog.driver.core.epoch, revision=catalog.current.revision)
            self._member.catalog.hint(catalog.current.revision)
            self._watch_ports()
            self._post(self._opened(catalog))
            self._spawn(self._finish_drops(catalog))

    def _opened(self, catalog: Catalog) -> CatalogOpened:
        return CatalogOpened(catalog.driver.core.epoch, tuple(catalog.current.logs))

    def _ended(self, catalog: Catalog) -> None:
        """L12, L32: another controller has taken the Catalog over; this one issues nothing more."""
        if self._catalog is catalog:
            self._catalog = None
            log.info("no controller any more", reason=str(catalog.driver.closed.result()))
            self._post(Fenced())
            self._spawn(catalog.close())

    async def _prove(self) -> None:
        """L32: a controller that was replaced while it was cut off finds out, and issues nothing more."""
        if self._catalog is not None and not self._proving:
            self._proving = True
            try:
                await self._catalog.prove()
            except StorageError as error:
                log.debug("the Catalog could not be proved", reason=str(error))
            finally:
                self._proving = False

    async def _close_catalog(self) -> None:
        async with self._opening:
            catalog, self._catalog = self._catalog, None
            self._reachability.watch({})
            if catalog is not None:
                await catalog.close()

    async def _announce(self, name: str, epoch: int) -> None:
        try:
            stub = self._member.channel(name).stub(internal_pb2_grpc.IngestStub)
            reply = await stub.Announce(
                internal_pb2.AnnounceRequest(controller=self._member.name, catalog_epoch=epoch),
                timeout=ANNOUNCE_SECONDS_MAX,
            )
        except (PeerUnavailable, grpc.aio.AioRpcError):
            self._post(ReportFailed(name))
        else:
            self._post(Reported(name, reply.catalog_epoch, frozenset(reply.owned), reply.draining))
        finally:
            self._announcing.discard(name)

    async def _commit(self, placement: Placement) -> None:
        """Replicate by Raft, so that the other voters know it, and the next controller starts from it."""
        assert self._raft is not None, "only a voter leads"
        try:
            done = await self._raft.propose(encode_placement(placement), COMMIT_SECONDS_MAX)
        except ClusterError as error:
            log.info("a Placement was not committed", version=f"{placement.version}", reason=str(error))
            done = False
        self._post(Committed(placement.version) if done else CommitFailed(placement.version))
