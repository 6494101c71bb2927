"""Compaction of the shards that this process owns: what is worth a merge is merged, quietly, one run at a time.

`storage.compaction` says what, `nodes.mergeprocess` merges, the shard commits (LOG L21, L25). A shard that is lost in
the middle gets nothing committed: its new owner plans by itself, and sweeps what lies there. Driven by
`nodes.embedded` and `nodes.ingest.node`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import structlog

from nodes import machine
from nodes.bundlechoice import BundleChoice, bundle_sizes, no_sizes
from nodes.mergeprocess import MergeFailed, MergeProcess
from nodes.mergeworker import Setup
from nodes.status import CompactionStatus
from nodes.storeoptions import s3_options
from storage.bundlemerge import BundleJob, bundle_job, changes_of
from storage.compaction import RUN_BYTES_MAX, RUN_FILES_MAX, RUN_LAYERS_MIN, TARGET_BYTES, Policy, bytes_of_runs, plan
from storage.deletes import waiting_files
from storage.errors import ShardClosed, StorageError
from storage.merge import READ_BYTES_MAX, MergeJob, change_of, merge_job, names_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from engine.workers import RayWorkers
    from nodes.bundlechoice import BundleSizes
    from nodes.mergeworker import Answer
    from nodes.settings_model import Budgets, Settings
    from storage.budget import MemoryBudget
    from storage.deletes import PendingDelete
    from storage.filechange import FileChange
    from storage.objects import ObjectStore
    from storage.schema import DataFile, Table
    from storage.shard import Shard

    Run = tuple[Table, tuple[DataFile, ...]]
    Place = tuple[int, int, int]
    """(log id, table id, partition id)."""

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 10.0
"""How often it is looked whether something is worth a merge."""
QUIET_SECONDS: Final = 3600.0
"""A partition without new files for so long is tidied up: what overlaps is merged, if it is little."""
COLUMN_BYTES: Final = 24 * 2**10
"""Of `READ_BYTES_MAX`, for each column of each file of a merge: a decoder holds some pages, of 160 KB at the most."""
REST_SECONDS: Final = 60.0
"""Without work for so long the merging process ends: it holds what its largest merge took, some 350 MB to 460 MB."""
FORGIVE_SECONDS: Final = 600.0
"""After a merge that failed its files are left alone for about so long."""
BUNDLE_MERGES_MAX: Final = 16
"""Merges of one shard's bundles in one go: then it is the next shard's turn."""
COMMIT_CHANGES_MAX: Final = 256
"""Changes of one Checkpoint: each repeats all of a shard's write ids and its partitions."""
COMMIT_SECONDS: Final = 60.0
"""A finished merge waits at most about so long for others to share its Checkpoint: all of them stand above k."""
DISK_SPARE_BYTES: Final = 512 * 2**20
"""Of a local disk: below it nothing is merged, so that Checkpoints always fit (L23)."""
READ_BYTES_SHARE: Final = 1 / 8
"""Of the memory budget: rows of a merge in memory, at most `storage.merge.READ_BYTES_MAX`."""
WORKER_BYTES: Final = 256 * 2**20
"""What the merging process holds beside rows."""
WORKER_READ_FACTOR: Final = 8
"""What it holds for each byte of rows that are read and not yet folded, at most."""
FULL_SPEED: Final = 1.0


class Merger(Protocol):
    """Merges somewhere: `nodes.mergeprocess.MergeProcess`, `nodes.raymerge.RayMerger`."""

    async def merge(self, job: MergeJob | BundleJob, share: float) -> Answer:
        """Raises MergeFailed; cancelling it stops the work."""
        ...

    async def rest(self) -> None:
        """Let go of what merging needs, until the next merge. Idempotent."""
        ...

    async def aclose(self) -> None:
        """The same for ever: a merge under way fails at once. Idempotent."""
        ...


@dataclass(slots=True)
class _Look:
    """A partition's files, since when they are those, and up to which eagerness no merge of them is worth it."""

    files: tuple[DataFile, ...]
    pending: tuple[PendingDelete, ...]
    since: float
    eager_bytes: int = -1

    @property
    def waiting(self) -> frozenset[str]:
        """The files in which a range delete is still to be carried out."""
        return waiting_files(self.pending)


class Compactor:
    """`run` it in the background; `compact` does everything at once. ``shards`` are those that are open here now."""

    def __init__(
        self,
        shards: Callable[[], Iterable[Shard]],
        merger: Merger,
        share: float | None,
        room: Callable[[Sequence[DataFile]], str],
        read_bytes: int = READ_BYTES_MAX,
        sizes: BundleSizes = no_sizes,
    ) -> None:
        """``share`` of a core is what `run` may use (None: it does nothing); ``room`` says why a merge must wait.

        ``sizes`` lists the bundles of a Log.
        """
        self.counters = CompactionStatus()
        self._shards = shards
        self._merger = merger
        self._share = share
        self._room = room
        self._columns_max = read_bytes // COLUMN_BYTES
        self._lock = asyncio.Lock()
        self._closing = False
        self._waiting_operators = 0
        self._said = ""
        self._looks: dict[Place, _Look] = {}
        self._bundles = BundleChoice(sizes, QUIET_SECONDS)
        self._failed: set[str] = set()
        self._forgive_at = time.monotonic() + FORGIVE_SECONDS

    async def run(self) -> None:
        """Look now and then, merge what is worth it, for ever."""
        worked = time.monotonic()
        while not self._closing:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if self._share is not None and await self._round():
                    worked = time.monotonic()
                elif time.monotonic() - worked > REST_SECONDS:
                    await self._merger.rest()
            except Exception:  # a defect: no row is at risk, and files that are not merged are only slow
                log.exception("compaction failed")

    def status(self, files_gone: int) -> CompactionStatus:
        """What was done, and what deletes still wait for; ``files_gone`` as `nodes.housekeeping` counts them."""
        pending = sum(_files_with_deletes(shard) for shard in self._shards())
        return msgspec.structs.replace(self.counters, files_gone=files_gone, files_with_deletes=pending)

    async def aclose(self) -> None:
        """Merge no more; what was not committed is left to the sweep. Idempotent."""
        self._closing = True
        await self._merger.aclose()

    async def compact(self) -> int:
        """Merge, at full speed, until of what is here now nothing overlaps that can be merged; how many merges it took.

        What is written meanwhile is left out: where much is written there would be no end.
        """
        self._forgive()
        self._waiting_operators += 1
        here = {(s.log_id, *key): part.next_offset for s in self._shards() for key, part in s.state.partitions.items()}
        merges = 0
        try:
            while done := await self._round(here):
                merges += done
        finally:
            self._waiting_operators -= 1
        return merges

    async def _round(self, upto: Mapping[Place, int] | None = None) -> int:
        """Everything that is planned now, shard by shard; how many changes stand.

        An operator's wants all merged of which the order is below ``upto``.
        """
        async with self._lock:
            done = 0
            self.counters.put_off = ""
            for shard in list(self._shards()):
                try:
                    done += await self._compact(shard, upto)
                except StorageError as error:
                    self._put_off(shard, str(error))
            self._said = self.counters.put_off
            return done

    def _put_off(self, shard: Shard, reason: str) -> None:
        if reason != self._said:
            log.info("compaction put off", shard=shard.log_id, reason=reason)
        self._said = self.counters.put_off = reason

    async def _compact(self, shard: Shard, upto: Mapping[Place, int] | None) -> int:
        runs = await self._plan(shard, upto)
        done = 0
        self.counters.waiting = len(runs)
        try:
            async with _Batch(shard, self.counters) as batch:
                for table, files in runs:
                    if reason := self._room(files):
                        self._put_off(shard, reason)
                        break
                    await self._merge(shard, table, files, batch)
                    self.counters.waiting -= 1
                    if batch.is_due:
                        await batch.commit()
            done = batch.stood
        finally:
            self.counters.waiting = 0
        return done + await self._compact_bundles(shard, upto)

    async def _compact_bundles(self, shard: Shard, upto: Mapping[Place, int] | None) -> int:
        """Merge bundles until nothing of what is here is worth it (F18); how many changes stand."""
        done = 0
        for _ in range(BUNDLE_MERGES_MAX):
            chosen = await self._bundles.chosen(shard, upto, self._failed)
            if reason := self._room([file for one in chosen for file in one.slices]) if chosen else "":
                self._put_off(shard, reason)
            if reason or not chosen:
                break
            async with _Batch(shard, self.counters, is_one=True) as batch:
                job = bundle_job(chosen, shard.tables, shard.state.partitions, batch.names)
                answer = await self._answer(shard, job, job.files, "bundles")
                if answer is None:
                    break
                self._bundles.made(shard, job.files, answer.files)
                for change in changes_of(job, zip(answer.runs, answer.files, strict=True)):
                    batch.add(change)
            done += batch.stood
        return done

    async def _plan(self, shard: Shard, upto: Mapping[Place, int] | None) -> list[Run]:
        """Of partitions whose files have changed since: what is worth a merge."""
        if time.monotonic() >= self._forgive_at:
            self._forgive()
            self._forgive_at = time.monotonic() + FORGIVE_SECONDS
        wanted: list[tuple[Table, _Look, tuple[DataFile, ...], Policy]] = []
        for (table_id, partition), state in shard.state.partitions.items():
            look = self._looks.get(place := (shard.log_id, table_id, partition))
            if not state.files or table_id in shard.state.drops:
                continue
            if all(file.is_slice for file in state.files):  # `nodes.bundlechoice` looks after these
                continue
            if look is None or look.files is not state.files or look.pending is not state.pending:
                since = time.monotonic() if look is None or look.files is not state.files else look.since
                look = self._looks[place] = _Look(state.files, state.pending, since)
            files = state.files if upto is None else _below(state.files, upto.get(place, 0))
            table, policy = shard.tables(table_id), self._policy(look, upto is not None)
            newest = max((file.schema_version for file in files), default=0)
            if files and look.eager_bytes < policy.eager_bytes and table is not None and newest <= table.version:  # L30
                files_max = max(RUN_LAYERS_MIN, min(RUN_FILES_MAX, self._columns_max // len(table.columns)))
                bytes_max = bytes_of_runs(shard.cutoffs.room.get((table_id, partition)))
                bounded = dataclasses.replace(policy, files_max=files_max, bytes_max=bytes_max)
                wanted.append((table, look, files, bounded))
        if not wanted:
            return []
        planned = await asyncio.to_thread(
            lambda: [
                plan(files, policy, look.waiting, () if files is look.files else _beside(look.files, files))
                for _, look, files, policy in wanted
            ]
        )
        found: list[Run] = []
        for (table, look, files, policy), runs in zip(wanted, planned, strict=True):
            good = [run for run in runs if self._failed.isdisjoint(file.path for file in run)]
            found += [(table, run) for run in good]
            if not good and files is look.files:
                look.eager_bytes = policy.eager_bytes
        return found

    def _policy(self, look: _Look, is_asked_for: bool) -> Policy:
        """What an operator wants merged, and what has not changed for long, is merged also where it saves little."""
        if is_asked_for:
            return Policy(RUN_BYTES_MAX)
        return Policy(TARGET_BYTES if time.monotonic() - look.since >= QUIET_SECONDS else 0)

    def _forgive(self) -> None:
        """Look at everything anew, also at what has failed; forget what is not here any more."""
        self._failed.clear()
        self._bundles.forget({shard.log_id for shard in self._shards()})
        here = {(s.log_id, *key) for s in self._shards() for key, part in s.state.partitions.items() if part.files}
        self._looks = {place: look for place, look in self._looks.items() if place in here}
        for look in self._looks.values():
            look.eager_bytes = -1

    async def _merge(self, shard: Shard, table: Table, files: tuple[DataFile, ...], batch: _Batch) -> None:
        """One merge. Raises ShardClosed as soon as the shard is ours no more."""
        names = batch.names(table, names_wanted(files))
        state = shard.state.partitions[table.id, files[0].partition]
        job = merge_job(table, state, files, names)
        answer = await self._answer(shard, job, files, table.name)
        if answer is not None:
            batch.add(change_of(job, answer.files))

    async def _answer(
        self, shard: Shard, job: MergeJob | BundleJob, files: Sequence[DataFile], what: str
    ) -> Answer | None:
        """What comes of a merge; None if it fails. Raises ShardClosed as soon as the shard is ours no more."""
        share = FULL_SPEED if self._waiting_operators or self._share is None else self._share
        merging = asyncio.ensure_future(self._merger.merge(job, share))
        ended: set[asyncio.Future[Any]] = {merging, shard.closed}
        try:
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
            if not merging.done():
                raise ShardClosed(f"shard {shard.log_id} was closed while its files were merged")
            answer = merging.result()
        except MergeFailed as error:
            if self._closing:
                raise ShardClosed("this node is stopping") from error
            self.counters.failed += 1
            self._failed.update(file.path for file in files)
            say = log.info if error.passing else log.warning
            say("files could not be merged", shard=shard.log_id, table=what, reason=str(error))
            return None
        finally:
            merging.cancel()
            await asyncio.gather(merging, return_exceptions=True)
        self.counters.cpu_seconds += answer.cpu_seconds
        self.counters.on_ray += answer.on_ray
        return answer


def _files_with_deletes(shard: Shard) -> int:
    """Files with rows that delete others, and those in which a range delete is still to be carried out."""
    pending = {key: waiting_files(found) for key, found in shard.state.pending().items()}
    waiting = {(path, *key) for key, paths in pending.items() for path in paths}
    return len(waiting) + sum(file.has_ops and file.identity not in waiting for file in shard.state.all_files())


def _below(files: tuple[DataFile, ...], order: int) -> tuple[DataFile, ...]:
    """Those of which the order is below; the very same if that is all."""
    return files if all(f.order_high < order for f in files) else tuple(f for f in files if f.order_high < order)


def _beside(all_files: tuple[DataFile, ...], files: tuple[DataFile, ...]) -> list[DataFile]:
    """Those that are not to be merged now: also between those that are, if a merge took newer ones and some of them."""
    chosen = {file.path for file in files}
    return [file for file in all_files if file.path not in chosen]


class _Batch(contextlib.AbstractAsyncContextManager["_Batch"]):
    """Changes of one shard that share a Checkpoint. What was added is committed at the end, unless an error ends it."""

    def __init__(self, shard: Shard, counters: CompactionStatus, is_one: bool = False) -> None:
        """``is_one``: the changes are what one merge made of bundles."""
        self.stood = 0
        self._is_one = is_one
        self._shard = shard
        self._counters = counters
        self._names: list[str] = []
        self._changes: list[FileChange] = []
        self._oldest = 0.0

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                await self.commit()
        finally:
            self._shard.release_names(self._names)

    def names(self, table: Table | None, count: int) -> tuple[str, ...]:
        """Paths for new files, or bundles, spared by the sweep until the batch ends (L20)."""
        names = self._shard.reserve_names(table, count)
        self._names += names
        return names

    def add(self, change: FileChange) -> None:
        """A merge that is done."""
        self._oldest = time.monotonic() if not self._changes else self._oldest
        self._changes.append(change)

    @property
    def is_due(self) -> bool:
        waited = time.monotonic() - self._oldest
        return bool(self._changes) and (len(self._changes) >= COMMIT_CHANGES_MAX or waited >= COMMIT_SECONDS)

    async def commit(self) -> None:
        """Replace the files in the shard's list; a change that came too late is void (L21)."""
        changes, self._changes = self._changes, []
        if not changes:
            return
        stands = await self._shard.replace_files(changes)
        counters, merges = self._counters, min(1, sum(stands)) if self._is_one else sum(stands)
        self.stood += merges
        counters.merges += merges
        for change, stand in zip(changes, stands, strict=True):
            if not stand:
                counters.void += 1
                continue
            counters.files_in += len(change.removed)
            counters.files_out += len(change.added)
            counters.bytes_in += sum(file.bytes for file in change.removed)
            counters.bytes_out += sum(file.bytes for file in change.added)
            counters.rows += sum(file.rows for file in change.added)
        log.info(
            "files merged", shard=self._shard.log_id, merges=merges, void=len(stands) - sum(stands),
            files=sum(len(c.removed) for c in changes), into=sum(len(c.added) for c in changes),
        )  # fmt: skip


class Room:
    """Whether there is room for a merge: call it with the files to be merged; it says what is missing, or nothing."""

    def __init__(self, store: ObjectStore, settings: Settings, budget: MemoryBudget, worker_bytes: int) -> None:
        probe = store.local_path("probe")
        self._disks = [settings.data_dir] if probe is None else [settings.data_dir, probe.parent]
        self._budget = budget
        self._worker_bytes = worker_bytes

    def __call__(self, files: Sequence[DataFile]) -> str:
        if self._budget.used > self._budget.bytes_max // 2:
            return "the memory for rows is more than half full"
        if machine.memory_free_bytes() < self._worker_bytes:
            return f"less than {self._worker_bytes} bytes of memory are free"
        wanted = DISK_SPARE_BYTES + 2 * sum(file.bytes for file in files)  # put together in one place, then kept
        for disk in self._disks:
            found = os.statvfs(disk)
            if found.f_bavail * found.f_frsize < wanted:
                return f"less than {wanted} bytes are free in {disk}"
        return ""


def new_compactor(
    settings: Settings,
    budgets: Budgets,
    store: ObjectStore,
    budget: MemoryBudget,
    shards: Callable[[], Iterable[Shard]],
    workers: RayWorkers | None = None,
) -> Compactor:
    """The compactor of a node, which merges on a Ray worker, if there are ``workers``, or in a process of its own."""
    read_bytes = min(READ_BYTES_MAX, int(budgets.total_bytes * READ_BYTES_SHARE))
    options = s3_options(settings)
    merger: Merger = MergeProcess(settings.store_url, options, settings.data_dir / "compaction", read_bytes)
    if workers is not None:
        from nodes.raymerge import RayMerger

        merger = RayMerger(workers, Setup(store.url, options, ""), read_bytes, merger)
    room = Room(store, settings, budget, WORKER_BYTES + WORKER_READ_FACTOR * read_bytes)
    return Compactor(shards, merger, settings.compaction.cpu_share, room, read_bytes, bundle_sizes(store))
