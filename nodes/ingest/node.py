"""The ingest node's parts: shards, controller, Raft, gRPC services; and its life within `nodes.node`.

A clean stop checkpoints, has the controller give the shards to others, and leaves; until a Placement names another
owner this one serves (LOG L32).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Self

import grpc
import structlog

from cluster.errors import ClusterError
from cluster.members import Kind
from cluster.raft import Raft, RaftConfig
from nodes.appender import Appender
from nodes.clustercontrol import MemberControl
from nodes.compaction import new_compactor
from nodes.doorless import DoorlessBackend
from nodes.gateway.assembly import open_operator
from nodes.grpcserver import GrpcServer, GrpcService
from nodes.housekeeping import Housekeeper
from nodes.ingest.controller import Controller
from nodes.ingest.keeper import Keeper
from nodes.ingest.service import CatalogService, IngestService, PlacementService
from nodes.member import ClusterMember
from nodes.node import NodeParts
from nodes.outcomes import all_or_worst
from nodes.rayhead import merges_on_ray, new_workers
from nodes.shardparts import log_status, shard_limits
from nodes.status import BackendStatus
from protos import internal_pb2, internal_pb2_grpc
from storage.budget import MemoryBudget
from storage.catalogstate import CatalogLimits
from storage.errors import StorageError

if TYPE_CHECKING:
    from nodes.compaction import Compactor
    from nodes.node import NodeContext
    from storage.shard import ShardLimits

HANDOVER_SECONDS_MAX: Final = 15.0
"""How long a stopping node waits until others own its shards; rows are safe in the Logs without that."""
HANDOVER_PAUSE_SECONDS: Final = 0.1
"""How often files that nothing names are looked for (LOG L20)."""

log = structlog.get_logger(__name__)


class IngestNode(DoorlessBackend):
    """Enter it to join and serve; leave it to let everything go."""

    def __init__(self, context: NodeContext, control: MemberControl) -> None:
        self._control = control
        self._settings = context.settings
        self._budgets = context.budgets
        self._fail = context.fail
        self.draining = False
        self.member = ClusterMember(context.settings, Kind.INGEST, context.fail, self._load)
        super().__init__(self.member)
        self.budget = MemoryBudget(context.budgets.memtable_bytes)
        self.keeper = Keeper(self.member, self.budget, self._shard_limits)
        self.appender: Appender
        self.controller: Controller
        self.compactor: Compactor
        self._raft: Raft | None = None
        self._server: GrpcServer
        self._stack = contextlib.AsyncExitStack()

    # -- life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.member)
            self.appender = Appender(self.member.store, self.budget, self.keeper.open_shards)
            self._raft = self._new_raft()
            settings = self._settings
            limits = CatalogLimits(
                settings.limits.databases_max, settings.limits.tables_max, settings.limits.columns_max,
                settings.cluster.partitions(in_cluster=True),
            )  # fmt: skip
            self.controller = Controller(self.member, self._raft, limits, settings.log.shards)
            await self._listen(stack)
            self.keeper.start()
            stack.push_async_callback(self.keeper.aclose)
            if self._raft is not None:
                stack.push_async_callback(self._raft.stop)
                await self._raft.start()
            store, shards = self.member.store, self.keeper.open_shards
            workers = new_workers(self._settings) if merges_on_ray(self._settings) else None
            if workers is not None:
                stack.push_async_callback(workers.aclose)
            self.compactor = new_compactor(self._settings, self._budgets, store, self.budget, shards, workers)
            stack.push_async_callback(self.compactor.aclose)
            self.housekeeper = Housekeeper(shards, self.member.catalog.refresh)
            for work in (self.controller.run(), self.housekeeper.run(), self.compactor.run()):
                stack.push_async_callback(_cancel, asyncio.create_task(work))
            self._stack = stack.pop_all()
        return self

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        to = internal_pb2_grpc
        services = [
            GrpcService("runnel.v1.Ingest", IngestService(self), to.add_IngestServicer_to_server),
            GrpcService("runnel.v1.Catalog", CatalogService(self), to.add_CatalogServicer_to_server),
            GrpcService(
                "runnel.v1.Placement", PlacementService(self), to.add_PlacementServicer_to_server,
                endless=frozenset({"Watch"}),
            ),
        ]  # fmt: skip
        self._server = await stack.enter_async_context(self.new_server(services))
        await self.member.join(self.listening(self._server))
        self._control.fill(self.member)

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def _new_raft(self) -> Raft | None:
        """On a voter; further ingest nodes only follow."""
        settings = self._settings
        voters = {voter.name: str(voter.address) for voter in settings.raft.voters}
        if self.member.name not in voters:
            return None
        loop = asyncio.get_running_loop()
        config = RaftConfig(
            name=self.member.name,
            listen=(settings.raft.listen.host, settings.raft.listen.port),
            voters=voters,
            folder=settings.data_dir / "raft",
            secrets=tuple(self.member.secrets) or (settings.cluster.name.encode(),),
        )
        return Raft(
            config,
            lambda command: _hop(loop, self._applied, command),
            lambda leader: _hop(loop, self._leader_is, leader),
        )

    def _applied(self, command: bytes) -> None:
        self.controller.applied(command)

    def _leader_is(self, leader: str | None) -> None:
        self.controller.leader_is(leader)

    def _shard_limits(self) -> ShardLimits:
        logs = len(self.member.catalog.current.logs) or self._settings.log.shards
        return shard_limits(self._settings, self.budget, logs)

    def _load(self) -> float:
        return float(len(self.keeper.open_shards()))

    # -- the end -----------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Checkpoint, hand the shards over, leave. Serves until a Placement names others (L32)."""
        self.draining = True
        await self.compactor.aclose()
        await self._checkpoint_quietly()
        if not await self._hand_over() and self._has_heirs():
            log.warning("not all shards were handed over in time; others will take them", kept=self._owned())
        await self.member.leave()
        await self._server.drain(1.0)

    def _has_heirs(self) -> bool:
        return any(member.name != self.member.name for member in self.member.usable(Kind.INGEST))

    def _owned(self) -> list[int]:
        return [shard.log_id for shard in self.keeper.open_shards()]

    async def _checkpoint_quietly(self) -> None:
        """So that the next owners replay little; it is only comfort."""
        with contextlib.suppress(StorageError):
            await self.checkpoint()

    async def _hand_over(self) -> bool:
        """Ask the controller, whoever that is now, until this node owns nothing."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + HANDOVER_SECONDS_MAX
        while self._has_heirs() and loop.time() < deadline:
            await self._ask_for_handover()
            if await self.keeper.let_go(HANDOVER_PAUSE_SECONDS):
                return True
        return False

    async def _ask_for_handover(self) -> None:
        controller = self.member.placement.current.controller
        try:
            if controller == self.member.name:
                self.controller.handover(self.member.name, leaving=True)
                return
            stub = self.member.channel(controller).stub(internal_pb2_grpc.IngestStub)
            await stub.Handover(internal_pb2.HandoverRequest(node=self.member.name, leaving=True), timeout=1.0)
        except (ClusterError, StorageError, grpc.aio.AioRpcError) as error:
            log.debug("the controller could not be asked for a handover", reason=str(error))

    # -- for services and operators ----------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Checkpoint every shard that is open here."""
        await all_or_worst([shard.checkpoint() for shard in self.keeper.open_shards()])

    async def compact(self) -> int:
        """Merge the files of every shard that is open here, as far as that is worth it."""
        return await self.compactor.compact()

    def status(self) -> BackendStatus:
        """What this node holds, without I/O."""
        return BackendStatus(
            store_id=self.store_id,
            catalog_revision=self.catalog.revision,
            memtable_bytes=self.budget.used,
            logs=[log_status(shard) for shard in self.keeper.open_shards()],
            compaction=self.compactor.status(self.housekeeper.files_gone),
        )


def _hop(loop: asyncio.AbstractEventLoop, call: object, argument: object) -> None:
    """From Raft's thread to the node's event loop; nothing if that has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, argument)  # type: ignore[arg-type]


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def parts() -> NodeParts:
    """What `nodes.node` needs for `runnel ingest`."""
    control = MemberControl()
    return NodeParts(open_operator, lambda context: IngestNode(context, control), control)
