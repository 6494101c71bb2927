"""A shard read from the object store, by a query node whose owner does not answer (LOG L10, L15).

`nodes.query` drives it. Each read lists anew and is a full snapshot, in the shape of an owner's answer; objects that
were read before come from a small cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.errors import CatalogBehind, MemoryExhausted
from storage.logreader import LogReader
from storage.readdriver import ObjectCache, ReadDriver
from storage.shardstate import ShardState
from storage.tailanswer import TailWanted, tail_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from concurrent.futures import Executor

    from storage.frames import LogObject
    from storage.objects import ObjectStore
    from storage.schema import Table
    from storage.tailanswer import TailAnswer


@dataclass(frozen=True, slots=True)
class StoreReadLimits:
    """What reads may hold: the rows of one read, and objects kept between reads."""

    rows_bytes_max: int = 512 * 1024 * 1024
    cache_bytes_max: int = 64 * 1024 * 1024


class _ReadState(ShardState):
    """What a read adds up to, within a limit (promise 4)."""

    bytes_max = 0

    def apply(self, obj: LogObject, payloads: Sequence[object] = ()) -> None:
        super().apply(obj, payloads)
        if self.tail_bytes > self.bytes_max:
            raise MemoryExhausted(
                f"shard {self.log_id}: more than {self.bytes_max} bytes of rows stand above its last Checkpoint, too "
                "many to read from the store; try again when an owner has checkpointed"
            )


class StoreReader:
    """Reads shards of one store. ``tables`` looks into the Catalog as known here, ``revision`` says which one that is,
    ``catch_up`` lists it anew: rows may be of a Revision that this node has not seen (L30)."""

    def __init__(
        self,
        store: ObjectStore,
        store_id: bytes,
        executor: Executor,
        tables: Callable[[int], Table | None],
        *,
        revision: Callable[[], int] | None = None,
        catch_up: Callable[[], Awaitable[object]] | None = None,
        limits: StoreReadLimits | None = None,
    ) -> None:
        self._store = store
        self._store_id = store_id
        self._executor = executor
        self._tables = tables
        self._revision = revision or (lambda: 0)
        self._catch_up = catch_up
        self._limits = limits or StoreReadLimits()
        self._cache = ObjectCache(self._limits.cache_bytes_max)

    async def read_shard(self, log_id: int, table_ids: Collection[int]) -> TailAnswer:
        """A full snapshot of some tables in one shard: all that was acknowledged before the call is in it.

        Raises LogDamaged; SnapshotTooOld when owners were faster too often, StoreUnavailable, CatalogBehind and
        MemoryExhausted, which are retriable.
        """
        try:
            return await self._read(log_id, frozenset(table_ids))
        except CatalogBehind:
            if self._catch_up is None:
                raise
        await self._catch_up()  # begun after the rows were seen: what they rest on is there
        return await self._read(log_id, frozenset(table_ids))

    async def _read(self, log_id: int, table_ids: frozenset[int]) -> TailAnswer:
        tables = [table for table in map(self._tables, table_ids) if table is not None]
        if len(tables) < len(table_ids):
            raise CatalogBehind(f"shard {log_id}: a table of {sorted(table_ids)} is not known here yet")

        def new_state() -> ShardState:
            state = _ReadState(self._store_id, log_id, self._tables, only=table_ids)
            state.bytes_max = self._limits.rows_bytes_max
            return state

        reader = LogReader(self._store_id, log_id, new_state)
        await ReadDriver(self._store, log_id, self._executor, self._cache).run(reader)
        state = reader.state
        assert isinstance(state, ShardState)
        state.epoch = reader.epoch
        revision = max(state.revision, self._revision())
        return tail_answer(state, tables, TailWanted(dict.fromkeys(table_ids)), revision, reader.last)
