"""Records retention cut-offs in a shard's Log, before rows are hidden by them (LOG L36).

A `storage.shard.Shard` has one; whoever is about to read or to let files go has it `record` first. By age a cut-off
rises with the clock, by bytes when a Checkpoint has brought files, or the Catalog other limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from storage.cutoffs import BY_AGE, Cutoff, Cutoffs, cut, period_of
from storage.entries import record_entry
from storage.errors import StoreFull
from storage.frames import EntryKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from storage.catalogstate import CatalogSnapshot
    from storage.cutoffs import Key, Share
    from storage.frames import Entry
    from storage.schema import Table
    from storage.shardstate import ShardState

CUTOFF_EVERY_MS: Final = 60_000
"""A cut-off by age is recorded at most so often for a database or table and Log (L36)."""
ENTRIES_AT_ONCE: Final = 1024
"""Cut-offs by bytes in one object of the Log."""


class CutoffRecorder:
    """``append`` makes entries durable in one object, ``clock_ms`` is the store's clock."""

    def __init__(
        self,
        state: ShardState,
        append: Callable[[Sequence[Entry]], Awaitable[None]],
        clock_ms: Callable[[], Awaitable[int]],
    ) -> None:
        self._state = state
        self._append = append
        self._clock_ms = clock_ms
        self._locks: dict[tuple[int, int], asyncio.Lock] = {}
        self._recorded: dict[tuple[int, int], float] = {}
        """When this owner recorded a cut-off by age, by its monotonic clock."""
        self.room: dict[Key, int] = {}
        """What partitions under a limit by bytes may have, some of them together, as it was when last looked at."""
        self._by_bytes = asyncio.Lock()
        self._judged = (0, 0)
        """The Checkpoint and the Revision of the Catalog whose files and limits were looked at last."""

    def known(self) -> Cutoffs:
        """What is recorded."""
        return Cutoffs(self._state.cutoffs, self._state.table_cutoffs)

    async def record(self, catalog: CatalogSnapshot, tables: Iterable[Table]) -> None:
        """Whatever ``catalog`` lets expire of these tables."""
        for database_id in await self._by_own_age(catalog, tables):
            database = catalog.databases_by_id[database_id]
            if database.retention_ns is not None:
                following = catalog.table_names.get(database_id, {}).values()
                ids = frozenset(table.id for table in following if table.retention_ns is None)
                await self.by_age(database_id, ids, database.retention_ns)
        await self.by_bytes(catalog)

    async def _by_own_age(self, catalog: CatalogSnapshot, tables: Iterable[Table]) -> set[int]:
        """Tables with a period of their own; the ids of the databases that the others follow."""
        databases = set()
        for table in tables:
            newest = catalog.tables_by_id.get(table.id, table)
            database = catalog.databases_by_id[newest.database_id]
            period = period_of(newest, database)
            if newest.retention_ns is None:
                databases.add(database.id)
            elif period is not None:
                await self.by_age(database.id, frozenset({newest.id}), period, newest.id)
        return databases

    async def by_age(self, database_id: int, table_ids: frozenset[int], retention_ns: int, own_table: int = 0) -> None:
        """L36: record a newer cut-off before it is used, at most once a minute, and only if it hides a row.

        Of a whole database, of which ``table_ids`` follow its period, or of the table that has its own.
        """
        scope = (database_id, own_table)
        async with self._locks.setdefault(scope, asyncio.Lock()):  # readers at once share one record
            with contextlib.suppress(StoreFull):  # then the recorded one goes on to hold: it stops no reader
                await self._raise(scope, table_ids, retention_ns)

    async def _raise(self, scope: tuple[int, int], table_ids: frozenset[int], retention_ns: int) -> None:
        database_id, own_table = scope
        state = self._state
        known = state.table_cutoffs.get((own_table, BY_AGE)) if own_table else state.cutoffs.get(database_id)
        now_ms = time.time_ns() // 1_000_000
        since = time.monotonic() - self._recorded.get(scope, float("-inf"))
        if known is not None and min(now_ms - known.recorded_ms, since * 1000) < CUTOFF_EVERY_MS:
            return
        hidden = None if known is None else known.for_period(retention_ns)  # of a longer period: less than recorded
        if not state.hides_a_row(table_ids, now_ms * 1_000_000 - retention_ns, hidden):
            return
        clock_ms = min(now_ms, await self._clock_ms())
        cutoff = clock_ms * 1_000_000 - retention_ns
        if (hidden is not None and cutoff <= hidden) or not state.hides_a_row(table_ids, cutoff, hidden):
            return
        # What is recorded never decreases, else it is ignored; under a longer period the clock beside it says what
        # holds (`Cutoff.for_period`), so that must be the same clock.
        time_ns = cutoff if known is None else max(cutoff, known.time_ns + 1)
        await self._append([_entry((own_table, BY_AGE), Cutoff(time_ns, clock_ms, 0, database_id))])
        self._recorded[scope] = time.monotonic()

    async def by_bytes(self, catalog: CatalogSnapshot) -> None:
        """Record where partitions are cut whose files have more bytes than they may.

        Looked at once for each Checkpoint and Revision. An owner's Catalog is at least that of every owner before it
        (L30), so a limit that was made greater since is never taken for one that was made less.
        """
        async with self._by_bytes:
            judged = (self._state.checkpoint_seq, catalog.revision)
            if judged == self._judged:
                return
            with contextlib.suppress(StoreFull):
                await self._record_cuts(catalog)
                self._judged = judged

    async def _record_cuts(self, catalog: CatalogSnapshot) -> None:
        every = catalog.shares.get(self._state.log_id, ())
        self.room = {key: share.bytes for share in every for key in share.partitions}
        found = [entry for share in every for entry in self._cut(share)]
        for at in range(0, len(found), ENTRIES_AT_ONCE):
            await self._append(found[at : at + ENTRIES_AT_ONCE])

    def _cut(self, share: Share) -> list[Entry]:
        state = self._state
        there = [key for key in share.partitions if key in state.partitions and key[0] not in state.drops]
        if sum(state.partitions[key].bytes for key in there) <= share.bytes:
            return []
        found = []
        now_ms = time.time_ns() // 1_000_000
        for key, time_ns in cut({key: state.partitions[key].files for key in there}, share.bytes).items():
            known = state.table_cutoffs.get(key)
            in_force = None if known is None else known.for_limit(share.limit)
            if in_force is None or time_ns > in_force:
                found.append(_entry(key, Cutoff(time_ns, now_ms, share.limit.bytes, share.limit.database_id)))
        return found


def _entry(key: Key, cutoff: Cutoff) -> Entry:
    """``key``: of a table and partition; of a database if there is no table."""
    record = {"database": cutoff.database_id, "cutoff": cutoff.time_ns, "recorded_ms": cutoff.recorded_ms}
    if not key[0]:
        return record_entry(EntryKind.RETENTION, record)
    return record_entry(EntryKind.RETENTION, {**record, "limit": cutoff.limit}, table_id=key[0], partition=key[1])
