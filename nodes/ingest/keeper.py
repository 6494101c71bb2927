"""Keeps the shards that the Placement gives this node: opens them, reopens them, lets them go (LOG L3, L12, L32).

One task for each shard that was ever given to this node. A shard is opened under a Placement of a Catalog epoch that
was announced to this process: an older map may name a node that has died since and come back. Driven by
`nodes.ingest.node`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final

import structlog

from cluster.placement import PlacementVersion
from storage.errors import Fenced, LogDamaged, ShardClosed, StorageError
from storage.log import Identity
from storage.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodes.member import ClusterMember
    from storage.budget import MemoryBudget
    from storage.shard import ShardLimits

PAUSE_SECONDS: Final = 0.2
"""Before an open that the store refused is tried again."""
EPOCHS_KEPT: Final = 16
CLOSE_SECONDS_MAX: Final = 10.0

log = structlog.get_logger(__name__)


class Keeper:
    """Owns this node's shards. `start` it, tell it of announcements, `aclose` it at the end."""

    def __init__(self, member: ClusterMember, budget: MemoryBudget, limits: Callable[[], ShardLimits]) -> None:
        self.damaged: dict[int, str] = {}
        self.epochs: list[int] = []
        """Catalog epochs that were announced to this process, oldest first."""
        self._member = member
        self._budget = budget
        self._limits = limits
        self._shards: dict[int, Shard] = {}
        self._floors: dict[int, PlacementVersion] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._closing = False

    def start(self) -> None:
        """Follow the Placement from now on."""
        self._member.placement.listen(lambda _: self._wake())

    async def aclose(self) -> None:
        """Let every shard go, without a checkpoint. Idempotent."""
        self._closing = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def announced(self, epoch: int) -> None:
        """A controller has announced its Catalog epoch: maps under it may be acted on."""
        if epoch not in self.epochs:
            self.epochs = sorted([*self.epochs, epoch])[-EPOCHS_KEPT:]
            self._wake()

    @property
    def newest_epoch(self) -> int:
        return self.epochs[-1] if self.epochs else 0

    def open_shards(self) -> list[Shard]:
        """Those that are open here."""
        return list(self._shards.values())

    def shard(self, log_id: int) -> Shard:
        """An open shard. Raises ShardClosed, which says who owns it instead as far as this node knows."""
        shard = self._shards.get(log_id)
        if shard is not None:
            return shard
        if log_id in self.damaged:
            raise ShardClosed(f"shard {log_id} is closed: {self.damaged[log_id]}")
        owner = self._member.placement.current.owners.get(log_id, "nobody")
        raise ShardClosed(f"shard {log_id} is not open at {self._member.name}; its owner is {owner}: try again")

    async def let_go(self, seconds: float) -> bool:
        """Wait until the Placement gives this node nothing and every shard is closed; False if that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._shards or self._member.placement.current.shards_of(self._member.name):
                    await self._change()
        return not self._shards and not self._member.placement.current.shards_of(self._member.name)

    # -- one task for each shard -------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._closing:
            return
        for log_id in self._member.placement.current.shards_of(self._member.name):
            if log_id not in self._tasks:
                self._tasks[log_id] = asyncio.create_task(self._keep(log_id))
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()

    def _is_mine(self, log_id: int) -> bool:
        return self._member.placement.current.owners.get(log_id) == self._member.name

    def _may_open(self, log_id: int) -> bool:
        """L12, L32: the newest Placement names this node, its epoch was announced, and nobody newer took the Log."""
        version = self._member.placement.current.version
        floor = self._floors.get(log_id, PlacementVersion())
        return self._is_mine(log_id) and version.catalog_epoch in self.epochs and version >= floor

    async def _keep(self, log_id: int) -> None:
        while True:
            while not self._may_open(log_id):
                await self._change()
            try:
                await self._own(log_id)
            except LogDamaged as error:
                self._report_damage(log_id, error)
                await self._change()
            except Exception as error:  # noqa: BLE001 - a defect in one shard: the node ends, others take over
                self._member.fail(error)
                return

    async def _own(self, log_id: int) -> None:
        """Open the shard, serve it until it is someone else's, close it."""
        version, catalog = self._member.placement.current.version, self._member.catalog
        shard = Shard(
            self._member.store, Identity(self._member.identity.id.bytes, log_id, self._member.id),
            catalog.table_by_id, self._budget, self._member.executor, self._limits(), self._member.fail,
            revision=lambda: catalog.current.revision, catch_up=catalog.refresh,
        )  # fmt: skip
        try:
            try:
                await shard.open(placement=(version.catalog_epoch, version.number))
            except LogDamaged:
                raise
            except StorageError as error:
                log.info("a shard could not be opened", shard=log_id, reason=str(error))
                self._note_successor(log_id, shard)
                await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))
                return
            self.damaged.pop(log_id, None)
            self._shards[log_id] = shard
            log.info("shard opened", shard=log_id, epoch=shard.state.epoch, placement=f"{version}")
            self._notify()
            await self._serve(log_id, shard)
        finally:
            if self._shards.pop(log_id, None) is not None:
                self._notify()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS_MAX):
                    await shard.close()

    async def _serve(self, log_id: int, shard: Shard) -> None:
        """Until the Placement names another, or the ownership ends by itself."""
        closed = shard.closed
        closed.add_done_callback(lambda _: self._notify())
        while self._is_mine(log_id) and not closed.done():
            await self._change()
        if not closed.done():
            log.info("shard handed over", shard=log_id, to=self._member.placement.current.owners.get(log_id, ""))
            return
        error = closed.result()
        self._note_successor(log_id, shard)
        if isinstance(error, LogDamaged):
            raise error
        log.info("ownership ended", shard=log_id, reason=str(error), fenced=isinstance(error, Fenced))

    def _note_successor(self, log_id: int, shard: Shard) -> None:
        """L12: the open object that fenced us names the Placement it was made under: wait for one as new."""
        successor = shard.successor
        if successor is not None:
            found = PlacementVersion(successor.placement_epoch, successor.placement_number)
            if successor.node != self._member.id:
                found = PlacementVersion(found.catalog_epoch, found.number + 1)
            self._floors[log_id] = max(found, self._floors.get(log_id, PlacementVersion()))

    def _report_damage(self, log_id: int, error: LogDamaged) -> None:
        if self.damaged.get(log_id) != str(error):
            self.damaged[log_id] = str(error)
            way_out = f"stop the cluster, then: runnel store skip --log {log_id} --object SEQUENCE"
            log.error("a shard stays closed", shard=log_id, reason=str(error), to_give_up_the_object=way_out)
