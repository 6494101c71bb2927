"""A shard: one Log of rows and the partitions in it, owned by this process (LOG sections 2-6).

`Shard` puts the pieces together on an event loop: the Log's driver, the state that the Log adds up to, the
memory budget, checkpoints, collection and the sweep. `nodes.embedded` owns shards; a cluster's ingest node
will own them the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Final, TypeVar

from storage import admission
from storage.appends import Append, EncodedAppend, append_entry, decode_append
from storage.bundle import sorted_out, write_tails
from storage.checkpoint import FILES_INLINE_MAX, Part, encode_part
from storage.cutoffrecorder import CutoffRecorder
from storage.datafile import write_datafile
from storage.entries import record_entry
from storage.errors import (
    CatalogBehind,
    FsyncFailed,
    LogBacklogFull,
    MemoryExhausted,
    RequestTooLarge,
    ShardClosed,
    StorageError,
    StoreUnavailable,
)
from storage.filechange import (
    FileLists,
    bytes_after,
    changed_lists,
    repeated_sections,
    standing,
)
from storage.frames import ENTRIES_MAX, NO_WRITE_ID, OBJECT_BYTES_MAX, EntryKind, encoded_size
from storage.logdriver import LogDriver
from storage.logeffects import CheckpointDraft
from storage.logstate import decode_own
from storage.objects import CreateOutcome
from storage.pendingdeletes import pending_after_changes
from storage.shardlimits import ShardCounters, ShardLimits
from storage.shardstate import ShardState, encode_frozen, held_bytes
from storage.store import (
    bundle_path,
    data_folder,
    data_path,
    epoch_of,
    log_folder,
    object_name,
    part_path,
    parts_folder,
)
from storage.tailanswer import tail_answer
from storage.writeids import RETRY_SECONDS_MAX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from concurrent.futures import Executor

    import pyarrow as pa

    from storage.budget import MemoryBudget
    from storage.filechange import FileChange
    from storage.frames import Entry, Header, WriteId
    from storage.log import Identity
    from storage.logdriver import Position
    from storage.objects import ObjectStore
    from storage.schema import DataFile, PartitionSnapshot, Table
    from storage.shardstate import Frozen
    from storage.tailanswer import TailAnswer, TailWanted

    _Queued = tuple[Entry, pa.RecordBatch]

__all__ = ["Append", "EncodedAppend", "Shard", "ShardCounters", "ShardLimits"]

_T = TypeVar("_T")
_Part = TypeVar("_Part", Append, EncodedAppend)

CHECKPOINT_PAUSE_SECONDS: Final = 1.0
"""The pause after a checkpoint that failed, before the next is tried."""
PART_TRIES_MAX: Final = 5


class Shard:
    """One owned Log of rows. `open`, then `append`, `snapshot`, `checkpoint`; `close` at the end."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        tables: Callable[[int], Table | None],
        budget: MemoryBudget,
        executor: Executor,
        limits: ShardLimits,
        on_fatal: Callable[[BaseException], None],
        *,
        revision: Callable[[], int] | None = None,
        catch_up: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """``tables`` looks into the Catalog as known here, ``revision`` says which one that is, and ``catch_up`` lists
        it anew (L30: awaited when the Log has been taken over, before it is replayed). The Catalog's owner needs none.
        """
        self.identity = identity
        self.limits = limits
        self.counters = ShardCounters()
        self.state = ShardState(identity.store_id, identity.log_id, tables, limits.replay_bytes_max)
        self.cutoffs = CutoffRecorder(self.state, self._record, lambda: self._in_thread(store.clock_ms))
        self._store = store
        self.tables = tables
        self._revision = revision or (lambda: 0)
        self._catch_up = catch_up
        self._budget = budget
        self._executor = executor
        self._reserved = 0
        self._in_transit = 0
        self._under_way: dict[asyncio.Future[Position], list[_Queued]] = {}
        self._on_fatal = on_fatal
        self._driver: LogDriver | None = None
        self._in_flight: dict[WriteId, asyncio.Future[Position]] = {}
        self._checkpointing = asyncio.Lock()
        self._due = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._unlisted: dict[str, float] = {}
        self._being_written: set[str] = set()

    @property
    def log_id(self) -> int:
        return self.identity.log_id

    @property
    def driver(self) -> LogDriver:
        """The ownership; raises ShardClosed when this shard is not open here."""
        if self._driver is None:
            raise ShardClosed(f"shard {self.log_id} is not open here: try again")
        return self._driver

    @property
    def closed(self) -> asyncio.Future[StorageError]:
        """Done with the error that ended this ownership. There once `open` was called."""
        return self.driver.closed

    @property
    def successor(self) -> Header | None:
        """The header of the open object that fenced us, when `closed` is done and it could be read (L12)."""
        return self.driver.successor

    @property
    def revision(self) -> int:
        """At least the highest Revision that anything in this Log rests on (L14, L30)."""
        return max(self.state.revision, self._revision())

    async def open(self, skips: frozenset[int] = frozenset(), placement: tuple[int, int] = (0, 0)) -> None:
        """Take the Log over, replay it, and begin to checkpoint by itself. When it fails nothing is left running.

        ``placement`` (Catalog epoch, number) is the one that named this node (L12); (0, 0) in one process.
        """
        inline = self._store.local_path("probe") is not None
        self._driver = LogDriver(
            self._store, self.identity, self.state, self._executor, self._on_fatal,
            check_inline=inline, on_replay_full=self._checkpoint_on_the_way,
            min_interval_seconds=self.limits.group_min_interval_seconds, catch_up=self._catch_up,
        )  # fmt: skip
        try:
            self.state.epoch = await self._driver.open(skips, placement)
        except BaseException:
            await self.close()
            raise
        self._settle_budget()
        self._spawn(self._checkpoint_when_due())

    async def close(self) -> None:
        """Stop without a checkpoint; the Log has everything. Idempotent."""
        self._closed = True
        if self._driver is not None:
            await self._driver.close()  # first: from now on no Checkpoint of ours can be said to stand
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._settle_budget()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a caller that has gone away is no reason for a warning

    # -- appends (L4, L7, L23, L30) ----------------------------------------------------------------------

    async def append(self, parts: Sequence[Append]) -> list[int]:
        """Make the parts durable, in one object or not at all; return their first offsets.

        Parts whose write ids are known get the first try's outcome. A caller that is cancelled changes nothing:
        the parts go on, and their ids stay known. Raises OutcomeUnknown (may stand), Fenced or ShardClosed,
        WriteRefused, NoSuchTable, CatalogBehind, MemoryExhausted, LogBacklogFull, RequestTooLarge, SchemaConflict,
        StoreFull.
        """
        return await self._append(parts, self._encode)

    async def append_encoded(self, parts: Sequence[EncodedAppend]) -> list[int]:
        """The same for parts that a gateway has encoded. Raises CorruptObject for what is not what it says."""
        return await self._append(parts, self._decode)

    async def _append(self, parts: Sequence[_Part], prepare: Callable[[Sequence[_Part]], list[_Queued]]) -> list[int]:
        driver = self.driver
        fresh = self._fresh(parts)
        if fresh:
            driver.check_owner()  # first: whose shard is gone must not wait for its checkpoint
            if admission.is_backlogged(self.state, self.limits):
                self._due.set()
                raise admission.backlog(self.state)
            self._check_first(fresh)
        sent = self._send(driver, fresh, prepare) if fresh else []
        anonymous = iter([at for part, at in zip(fresh, sent, strict=True) if part.write_id == NO_WRITE_ID])
        outcomes = [next(anonymous) if p.write_id == NO_WRITE_ID else self._known(p) for p in parts]
        offsets = await admission.first_offsets(outcomes)
        self._mark_due()
        return offsets

    def _fresh(self, parts: Sequence[_Part]) -> list[_Part]:
        """The parts that were never sent; one that is named twice is sent once (L7)."""
        fresh: list[_Part] = []
        named: set[WriteId] = set()
        for part in parts:
            if part.write_id == NO_WRITE_ID or (part.write_id not in named and self._known(part) is None):
                fresh.append(part)
                named.add(part.write_id)
        return fresh

    def _known(self, part: Append | EncodedAppend) -> int | asyncio.Future[Position] | None:
        """A repeated write is answered with the first one's outcome (L7)."""
        if part.write_id == NO_WRITE_ID:
            return None
        at = self.state.write_ids.get(part.write_id)
        return at.first_offset if at is not None else self._in_flight.get(part.write_id)

    def _check_first(self, parts: Sequence[Append | EncodedAppend]) -> None:
        """Everything that can be refused is refused before anything is sent (L4)."""
        try:
            admission.check_first(self.state, self.tables, parts)
        except LogBacklogFull:
            self._due.set()  # compaction carries out what a Checkpoint lists
            raise

    def _encode(self, parts: Sequence[Append]) -> list[_Queued]:
        self._require_room(sum(held_bytes(p.rows) for p in parts))  # first: who waits for room asks many times
        return [(append_entry(p), p.rows) for p in parts]

    def _decode(self, parts: Sequence[EncodedAppend]) -> list[_Queued]:
        self._require_room(sum(len(p.frame) for p in parts))
        return [decode_append(p, self._table(p.table_id), self.log_id) for p in parts]

    def _table(self, table_id: int) -> Table:
        table = self.tables(table_id)
        assert table is not None, "rows of a table that the Catalog does not name are refused"
        return table

    def _send(
        self, driver: LogDriver, parts: Sequence[_Part], prepare: Callable[[Sequence[_Part]], list[_Queued]]
    ) -> list[asyncio.Future[Position]]:
        queued = prepare(parts)
        if any(part.unchanged_since is not None for part in parts):
            under_way = [one for sent in self._under_way.values() for one in sent]
            admission.check_unchanged(self.state, self.tables, list(zip(parts, queued, strict=True)), under_way)
        entries = [entry for entry, _ in queued]
        size = sum(held_bytes(rows) for _, rows in queued)
        encoded = sum(encoded_size(entry) for entry in entries)
        if encoded > OBJECT_BYTES_MAX or len(entries) > ENTRIES_MAX:  # F15: one object holds it, or it is refused
            raise RequestTooLarge(
                f"a write of {encoded} bytes in {len(entries)} parts for one shard: "
                f"at most {OBJECT_BYTES_MAX} bytes in {ENTRIES_MAX} parts; send less at once"
            )
        self._reserve(size + encoded)  # under way they are held twice
        try:
            futures = driver.append(entries, [rows if e.kind == EntryKind.ROWS else None for e, rows in queued])
        except StorageError:
            self._arrived(size + encoded)
            raise
        self._under_way[futures[-1]] = queued
        futures[-1].add_done_callback(lambda done: self._landed_all(done, size + encoded))  # one object: one outcome
        self.counters.rows += sum(rows.num_rows for _, rows in queued)
        self.counters.bytes += size
        for part, future in zip(parts, futures, strict=True):
            if part.write_id != NO_WRITE_ID:
                self._in_flight[part.write_id] = future
                future.add_done_callback(functools.partial(self._landed, part.write_id))
        return futures

    def _landed(self, write_id: WriteId, _: asyncio.Future[Position]) -> None:
        self._in_flight.pop(write_id, None)

    def _require_room(self, size: int) -> None:
        try:
            self._budget.require(size)
        except MemoryExhausted:
            self._due.set()
            raise

    def _reserve(self, size: int) -> None:
        self._require_room(size)
        self._budget.adjust(size)
        self._reserved += size
        self._in_transit += size

    def _landed_all(self, last: asyncio.Future[Position], size: int) -> None:
        del self._under_way[last]
        self._arrived(size)

    def _arrived(self, size: int) -> None:
        """A write has landed in the memtable, or failed: either way it is under way no more."""
        self._in_transit -= size
        self._settle_budget()

    def _settle_budget(self) -> None:
        """Hold exactly what the memtable has and what is under way: replayed rows are there, room or no room."""
        held = 0 if self._closed else self.state.tail_bytes + self._in_transit
        self._budget.adjust(held - self._reserved)
        self._reserved = held

    async def drop(self, table_id: int, revision: int) -> None:
        """Record that the table is dropped by ``revision`` of the Catalog; return when that is durable (L31).

        From then on no row of it is taken or shown here. Idempotent by table id. Raises as `append` does.
        """
        if table_id not in self.state.drops:
            await self._record([record_entry(EntryKind.DROP, {"revision": revision}, table_id=table_id)])

    # -- reads (L13, L14) --------------------------------------------------------------------------------

    async def prove(self) -> None:
        """Return when nothing newer than this state can have been acknowledged before the call (L13)."""
        await self.driver.prove()

    def snapshot(self, table: Table) -> list[PartitionSnapshot]:
        """The partitions of ``table`` here, at one position. Call it right after `prove`, without awaiting."""
        return list(self.state.snapshot(table))

    def tail(self, wanted: TailWanted) -> TailAnswer:
        """One snapshot of some tables (L14). Call it right after `prove`, without awaiting.

        Raises ShardClosed, and CatalogBehind for a table that this node has not heard of.
        """
        core = self.driver.core
        if not core.is_owner:
            raise ShardClosed(f"shard {self.log_id} is not open here: try again")
        tables = [self.tables(table_id) for table_id in wanted.tables]
        if None in tables:
            raise CatalogBehind(f"shard {self.log_id}: a table of {list(wanted.tables)} is not known here yet")
        found = [table for table in tables if table is not None]
        return tail_answer(self.state, found, wanted, self.revision, core.next_seq - 1)

    async def _record(self, entries: Sequence[Entry]) -> None:
        """Make records durable, in one object."""
        futures = self.driver.append(entries, [None] * len(entries))
        await asyncio.shield(futures[-1])

    # -- checkpoints (L18, L22, L23) ---------------------------------------------------------------------

    def _mark_due(self) -> None:
        state, limits = self.state, self.limits
        if (
            state.tail_bytes >= limits.checkpoint_bytes
            or state.objects_above_k >= limits.checkpoint_objects
            or state.log_bytes_above_k >= limits.log_bytes
        ):
            self._due.set()

    def request_checkpoint(self) -> None:
        """Checkpoint soon, if none is under way: somebody needs the memory."""
        if not self._checkpointing.locked():
            self._due.set()

    async def _checkpoint_when_due(self) -> None:
        """Checkpoint when a bound of L23 is reached. A failure is tried again; appends are refused meanwhile."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_age()):  # `wait_for` may swallow a cancellation
                    await self._due.wait()
            self._due.clear()
            try:
                await self.checkpoint()
            except FsyncFailed:
                return  # the process ends
            except StorageError:
                if self._driver is None or self._driver.closed.done():
                    return  # fenced, damaged or closed: the driver's `closed` tells the owner of this shard
                await asyncio.sleep(CHECKPOINT_PAUSE_SECONDS)
                self._due.set()
            except Exception as error:  # noqa: BLE001  a defect: without checkpoints this shard would fill up unseen
                self._on_fatal(error)
                return

    def _seconds_to_age(self) -> float:
        return max(0.05, self.limits.checkpoint_seconds - admission.age_seconds(self.state))

    async def checkpoint(self) -> None:
        """Write the memtable to DataFiles, commit them, and collect what that made garbage (L18, L19).

        Runs to its end even if the caller is cancelled: the Checkpoint may stand, and the state must know.
        """
        await self._to_its_end(self._checkpoint_and_collect())

    async def _to_its_end(self, checkpointing: Coroutine[None, None, None]) -> None:
        work = self._spawn(checkpointing)
        await asyncio.wait({work})  # which never cancels what it waits for
        if work.cancelled():
            raise ShardClosed(f"shard {self.log_id} was closed while it was checkpointed: try again")
        work.result()

    async def _checkpoint_and_collect(self) -> None:
        async with self._checkpointing:
            if self.state.objects_above_k == 0:
                return  # L23: an idle shard writes nothing
            await self._checkpoint_now()
        collected = await self.driver.collect()
        self.counters.collected += collected

    async def _checkpoint_on_the_way(self) -> None:
        """L23: replay holds more than it may; make room before going on."""
        async with self._checkpointing:
            await self._checkpoint_now()

    async def _checkpoint_now(self) -> None:
        begun = time.monotonic()
        self.state.advance_horizon(time.time_ns() // 1_000_000 - RETRY_SECONDS_MAX * 1000)
        frozen = dataclasses.replace(self.state.freeze(), revision=self.revision)  # L30
        files = await self._write_files(frozen)
        is_due = self.state.part_is_due(len(files))
        part = await self._write_part((*self.state.loose, *files)) if is_due else None
        fixed = await self._in_thread(encode_frozen, frozen, files)
        await self._commit(frozen.covered, (*fixed, *self.state.prepare(frozen, files, part)))
        self._settle_budget()
        self.counters.checkpoints += 1
        self.counters.checkpoint_seconds += time.monotonic() - begun
        self.counters.datafiles += len(files)

    async def _write_files(self, frozen: Frozen) -> list[DataFile]:
        """Tails with few rows go into bundles (F18), each of the others into a file of its own."""
        epoch = self.driver.core.epoch
        small, large = await self._in_thread(sorted_out, self._table, frozen.tails)
        files: list[DataFile] = await self._in_thread(write_tails, self._store, self.log_id, epoch, small)
        for table, partition, tail in large:
            file = await self._in_thread(write_datafile, self._store, table, self.log_id, epoch, partition, tail)
            files += [] if file is None else [file]
        return files

    async def _commit(self, covered: int, sections: tuple[Entry, ...]) -> None:
        """Create the Checkpoint that was prepared."""
        try:
            await self.driver.checkpoint(CheckpointDraft(covered, sections))
        finally:
            self.state.prepared = None  # it did not stand; the files are orphans (L20), the next one writes its own

    async def _write_part(self, members: tuple[DataFile, ...]) -> Part:
        """Move loose files into a part that later Checkpoints only name (L23)."""
        data = await self._in_thread(encode_part, self.identity.store_id, self.log_id, members)
        for _ in range(PART_TRIES_MAX):
            path = part_path(self.log_id, self.driver.core.epoch)
            if await self._in_thread(self._store.create, path, [data]) is CreateOutcome.CREATED:
                return Part(path, members)
        raise StoreUnavailable(f"{self._store.url}: a part's create stayed unknown {PART_TRIES_MAX} times")

    # -- compaction (L21) --------------------------------------------------------------------------------

    def reserve_names(self, table: Table | None, count: int) -> tuple[str, ...]:
        """Paths for new DataFiles of ``table``, or bundles: until they are released the sweep spares them (L20)."""
        log_id, epoch = self.log_id, self.driver.core.epoch
        new = functools.partial(data_path, log_id, table.database_id, table.id) if table else None
        names = tuple(bundle_path(log_id, epoch) if new is None else new(epoch) for _ in range(count))
        self._being_written.update(names)
        return names

    def release_names(self, names: Iterable[str]) -> None:
        """Nothing is written under these any more: what no Checkpoint names is an orphan."""
        self._being_written.difference_update(names)

    async def replace_files(self, changes: Sequence[FileChange]) -> list[bool]:
        """Commit ``changes`` against the current list in one Checkpoint; say which stand and which are void (L21).

        The files that are added must exist, under reserved names. Runs to its end even if the caller is cancelled.
        Raises Fenced or ShardClosed, and what the store raises: then the list is as it was.
        """
        stands: list[bool] = []
        await self._to_its_end(self._replace_files(changes, stands))
        return stands

    async def _replace_files(self, changes: Sequence[FileChange], stands: list[bool]) -> None:
        async with self._checkpointing:
            self.driver.check_owner()
            stands += standing(changes, self.state.all_files(), self.state.pending())
            if any(stands):
                await self._replace_now([change for change, stand in zip(changes, stands, strict=True) if stand])

    async def _replace_now(self, changes: Sequence[FileChange]) -> None:
        """A Checkpoint at the k in force: the one that stands, with another list of files (L18)."""
        state, sequence = self.state, self.state.checkpoint_seq
        path = f"{log_folder(self.log_id)}/{object_name(sequence)}"
        data = await self._in_thread(self._store.get, path)
        in_force = decode_own(self.identity.store_id, self.log_id, sequence, data)
        sizes = bytes_after(state.partitions, changes)
        _, seen_from = pending_after_changes(state.pending(), changes)
        fixed = await self._in_thread(repeated_sections, in_force, self.revision, sizes, seen_from, path)
        lists = changed_lists(FileLists(state.loose, state.parts), changes)
        if len(lists.loose) > FILES_INLINE_MAX:
            lists = FileLists((), (*lists.parts, await self._write_part(lists.loose)))
        await self._commit(state.k, (*fixed, *state.prepare_change(changes, lists)))

    # -- garbage (L19, L20) ------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Delete files and parts of our own or a lower epoch that nothing names, a grace after they were first seen.

        Runs under the checkpoint lock: no file of ours is being written while it looks, save those of compactions,
        whose names are reserved.
        """
        async with self._checkpointing:
            core = self.driver.core
            if not core.is_owner:  # L19: only the owner collects
                raise ShardClosed(f"shard {self.log_id} is not open here: try again")
            epoch = core.epoch
            found = await self._unnamed(epoch)
            now = time.monotonic()
            self._unlisted = {path: self._unlisted.get(path, now) for path in found}
            ripe = [path for path, since in self._unlisted.items() if now - since >= self.limits.grace_seconds]
            for path in ripe:
                await self._in_thread(self._store.delete, path)
                del self._unlisted[path]
            return len(ripe)

    async def _unnamed(self, epoch: int) -> list[str]:
        named = {file.path for file in self.state.all_files()} | {part.path for part in self.state.parts}
        found = []
        for folder in (data_folder(self.log_id), parts_folder(self.log_id)):
            for item in await self._in_thread(self._store.list_all, folder):
                path = f"{folder}/{item.name}"
                owner = epoch_of(path)
                spared = path in named or path in self._being_written  # as of now
                if not spared and owner is not None and owner <= epoch:
                    found.append(path)
        return found

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        except FsyncFailed as error:  # L34: what the disk holds is unknown; the process ends
            self._on_fatal(error)
            raise
