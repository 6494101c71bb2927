"""The Catalog's owner: a Log of effects and the snapshot they add up to (LOG L28-L30, FORMAT F19-F23).

One process owns it (the controller; here, the only one). Changes go through one at a time: each is planned
against the newest Revision and is one record, or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from storage.catalogplan import drop_blocks, drop_targets, plan
from storage.catalogstate import CatalogState
from storage.changes import FinishDrop
from storage.entries import record_entry
from storage.errors import StorageError, TableDropping, WriteRefused
from storage.frames import FORMAT_VERSION, NO_WRITE_ID, EntryKind
from storage.logdriver import LogDriver
from storage.logeffects import CheckpointDraft
from storage.writeids import RETRY_SECONDS_MAX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
    from concurrent.futures import Executor

    from storage.catalogstate import CatalogLimits, CatalogSnapshot, Effect
    from storage.changes import Change
    from storage.frames import Header, WriteId
    from storage.log import Identity
    from storage.objects import ObjectStore
    from storage.schema import Table

    SendDrop = Callable[[int, Table], Awaitable[object]]
    """``send(log id, table)`` returns when the table's drop record stands in that Log: `Shard.drop` at its owner."""

_T = TypeVar("_T")

REFUSED_MAX: Final = 10_000
"""Proposals that were refused for good and are remembered, by this owner only."""
CHECKPOINT_OBJECTS: Final = 1_000
"""Records above the last Checkpoint that start the next one (L23)."""


@dataclass(frozen=True, slots=True)
class Altered:
    """What a proposal became: a Catalog that has it, its own Revision, and the next proposal's ``born``."""

    catalog: CatalogSnapshot
    revision: int
    position: int


class Catalog:
    """The Catalog while this process owns it. `open`, then `alter`, `prove`, `current`; `close` at the end."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        executor: Executor,
        limits: CatalogLimits,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.state = CatalogState()
        self.limits = limits
        self._store = store
        self._identity = identity
        self._executor = executor
        self._on_fatal = on_fatal
        self._altering = asyncio.Lock()
        self._checkpointing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._finishing: dict[int, asyncio.Task[None]] = {}
        self._refused: OrderedDict[WriteId, StorageError] = OrderedDict()
        self._driver: LogDriver | None = None

    @property
    def driver(self) -> LogDriver:
        assert self._driver is not None, "open the Catalog first"
        return self._driver

    @property
    def current(self) -> CatalogSnapshot:
        """The newest Revision known here."""
        return self.state.snapshot

    def table_by_id(self, table_id: int) -> Table | None:
        """A table at its newest schema, also a deleted one: ids are never used again."""
        return self.state.snapshot.tables_by_id.get(table_id)

    @property
    def closed(self) -> asyncio.Future[StorageError]:
        """Done with the error that ended this ownership. There once `open` was called."""
        return self.driver.closed

    @property
    def successor(self) -> Header | None:
        """The header of the open object that fenced us, when `closed` is done and it could be read (L12)."""
        return self.driver.successor

    async def open(
        self, logs: Sequence[int], skips: frozenset[int] = frozenset(), placement: tuple[int, int] = (0, 0)
    ) -> None:
        """Take the Catalog over; an empty one is told its format and which Logs there are (F6, F21).

        When it fails nothing is left running. ``placement`` is the newest that this node knows (L12).
        """
        inline = self._store.local_path("probe") is not None
        self._driver = LogDriver(
            self._store, self._identity, self.state, self._executor, self._on_fatal, check_inline=inline
        )
        try:
            await self._driver.open(skips, placement)
            if logs and not self.current.logs:
                effects: list[Effect] = [{"do": "format", "version": FORMAT_VERSION}, {"do": "logs", "ids": list(logs)}]
                await self._commit(effects)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let it go. Idempotent."""
        if self._driver is not None:
            await self._driver.close()
        for attempt in self._finishing.values():
            attempt.cancel()  # it may wait for a shard that never answers; the next controller goes on
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def prove(self) -> CatalogSnapshot:
        """The Catalog, proved to be the newest (L13, L29)."""
        await self.driver.prove()
        return self.current

    async def alter(self, changes: Sequence[Change]) -> CatalogSnapshot:
        """Apply all changes as one record, or none; return the Catalog after them, durable. See `propose`."""
        return (await self.propose(changes)).catalog

    async def propose(
        self, changes: Sequence[Change | FinishDrop], write_id: WriteId = NO_WRITE_ID, born: int = 0
    ) -> Altered:
        """Apply all changes as one record, or none. A repeated proposal is answered with the first one's Revision.

        Runs to its end even if the caller is cancelled: the next change must see what this one became. Raises what
        planning raises, WriteRefused for one that was born below the horizon, OutcomeUnknown, Fenced, ShardClosed.
        """
        return await asyncio.shield(self._spawn(self._propose(changes, write_id, born)))

    async def _propose(self, changes: Sequence[Change | FinishDrop], write_id: WriteId, born: int) -> Altered:
        async with self._altering:
            known = self._known(write_id, born)
            if known is not None:
                return known
            effects = await self._plan(changes, write_id)
            # L28: also when all is so already, or a late copy of this DROP would drop the next table of that name
            if effects or write_id != NO_WRITE_ID:
                await self._commit(effects, write_id)
            else:
                await self.driver.prove()  # L13: who was replaced does not know what is so
            after = Altered(self.current, self.current.revision, self.state.position)
        if self.state.objects_above_k >= CHECKPOINT_OBJECTS and not self._checkpointing.locked():
            self._spawn(self._checkpoint_quietly())  # beside: the change stands, whatever becomes of this
        return after

    def _known(self, write_id: WriteId, born: int) -> Altered | None:
        """L7, L28: a repeated proposal gets the first one's outcome; one that is older than what is known has none."""
        if write_id == NO_WRITE_ID:
            return None
        at = self.state.write_ids.get(write_id)
        if at is not None:
            return Altered(self.current, at.first_offset, self.state.position)
        if write_id in self._refused:
            error = self._refused[write_id]
            raise type(error)(*error.args)
        if born < self.state.horizon:
            raise WriteRefused(f"the Catalog: a proposal born at {born} is below the horizon {self.state.horizon}")
        return None

    async def _plan(self, changes: Sequence[Change | FinishDrop], write_id: WriteId) -> list[Effect]:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        try:
            return plan(self.current, changes, self.limits, stamp)
        except StorageError as error:
            await self.driver.prove()  # L13: a Catalog that was replaced is no reason to refuse anything
            if write_id != NO_WRITE_ID and not error.retriable:  # a late copy must not be taken after all
                self._refused[write_id] = error
                while len(self._refused) > REFUSED_MAX:
                    self._refused.popitem(last=False)
            raise

    # -- drops (L31) -------------------------------------------------------------------------------------

    def dropping(self) -> list[Table]:
        """Tables whose drop has begun and is not finished. ``dropping`` is the Revision for their drop records."""
        return [t for t in self.current.tables_by_id.values() if t.dropping and not t.deleted]

    async def finish_drop(self, table_id: int) -> CatalogSnapshot:
        """Each Log that holds the table has its drop record: free the name. Idempotent by the table's id."""
        return (await self.propose([FinishDrop(table_id)])).catalog

    async def carry_out(
        self, changes: Sequence[Change], send: SendDrop, write_id: WriteId = NO_WRITE_ID, born: int = 0
    ) -> Altered:
        """`propose`, and see to it that drops are finished: those that are asked for, and those that are in the way.

        Raises TableDropping (retriable) while a shard cannot be told.
        """
        try:
            altered = await self.propose(changes, write_id, born)
        except TableDropping:  # somebody else's: CREATE waits for it
            await self.finish_drops(send, drop_blocks(self.current, changes))
            altered = await self.propose(changes, write_id, born)
        if targets := drop_targets(altered.catalog, changes):
            catalog = await self.finish_drops(send, targets)
            return Altered(catalog, catalog.revision, self.state.position)
        return altered

    async def finish_drops(self, send: SendDrop, table_ids: Collection[int] | None = None) -> CatalogSnapshot:
        """Finish the drops of these tables, or of all: tell every shard, then free the names.

        Callers share one attempt for each table. Raises TableDropping if one of them is still being dropped; whoever
        asks for the same drop tries again, and so does a controller when it opens the Catalog.
        """
        tables = [table for table in self.dropping() if table_ids is None or table.id in table_ids]
        outcomes = await asyncio.gather(*(self._finish_once(t, send) for t in tables), return_exceptions=True)
        for table, outcome in zip(tables, outcomes, strict=True):
            if isinstance(outcome, (StorageError, asyncio.CancelledError)):
                reason = str(outcome) or "the Catalog is closed here"
                raise TableDropping(f"table {table.name!r} is still being dropped: {reason}") from outcome
            if isinstance(outcome, BaseException):
                raise outcome
        return self.current

    async def _finish_once(self, table: Table, send: SendDrop) -> None:
        attempt = self._finishing.get(table.id)
        if attempt is None:
            attempt = self._finishing[table.id] = self._spawn(self._finish(table, send))
            attempt.add_done_callback(lambda _: self._finishing.pop(table.id, None))
        await asyncio.shield(attempt)

    async def _finish(self, table: Table, send: SendDrop) -> None:
        logs = sorted({partition.log_id for partition in table.partitions})
        outcomes = await asyncio.gather(*(send(log_id, table) for log_id in logs), return_exceptions=True)
        for outcome in outcomes:  # after all: those that have it need not be asked again by the next attempt
            if isinstance(outcome, BaseException):
                raise outcome
        await self.finish_drop(table.id)

    # -- records -----------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that has gone away is no reason for a warning

    async def _commit(self, effects: list[Effect], write_id: WriteId = NO_WRITE_ID) -> None:
        record = {"revision": self.current.revision + 1, "effects": effects}
        (future,) = self.driver.append([record_entry(EntryKind.RECORD, record, write_id=write_id)], [None])
        await asyncio.shield(future)

    async def checkpoint(self) -> None:
        """Write the whole Catalog, so that replay and the Log stay short (L18, L19), to the end in any case."""
        await asyncio.shield(self._spawn(self._checkpoint()))

    async def _checkpoint(self) -> None:
        async with self._checkpointing:
            if self.state.objects_above_k == 0:
                return
            self.state.advance_horizon(time.time_ns() // 1_000_000 - RETRY_SECONDS_MAX * 1000)
            draft = CheckpointDraft(self.state.position, self.state.sections())
            await self.driver.checkpoint(draft)
            await self.driver.collect()

    async def _checkpoint_quietly(self) -> None:
        """The next change tries again; `closed` tells of the end of an ownership."""
        with contextlib.suppress(StorageError):
            await self._checkpoint()

    async def shutdown(self) -> None:
        """Checkpoint under the lock that changes take, for a clean stop."""
        async with self._altering:
            await self.checkpoint()
