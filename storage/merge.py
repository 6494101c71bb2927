"""Merging a run of a partition's DataFiles into new ones (LOG L25, FORMAT F11, F19). Blocking.

The files are sorted by their key, so they are read side by side, a few rows of each at a time: what is at or below the
least key that any of them has reached can be folded and written. What comes out is cut by time into files near
`TARGET_BYTES` that do not overlap. `storage.mergeworker` runs it in a process of its own, tests directly.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import mmap
import tempfile
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.bundlereader import slice_as_file
from storage.columnbounds import without_bounds
from storage.compaction import RUN_FILES_MAX, TARGET_BYTES, is_oldest
from storage.datafile import (
    CREATE_TRIES_MAX,
    ROW_GROUP_ROWS,
    SERIES_ROWS_MIN,
    create_datafile,
    file_schema,
    is_whole,
    kind_of,
    parquet_writer,
)
from storage.deletes import PendingDelete, of_file
from storage.errors import CorruptObject, ObjectMissing, StoreFull
from storage.filechange import FileChange
from storage.fold import fold_layers
from storage.keys import row_keys
from storage.pendingdeletes import known_deletes
from storage.rangereader import RangeReader
from storage.schema import (
    KEY_COLUMN,
    OFFSET_COLUMN,
    OP_COLUMN,
    OP_TYPE,
    SERIES_COLUMN,
    TIME_COLUMN,
    DataFile,
    Op,
    Table,
    TypeKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from storage.deletes import RangeDelete
    from storage.objects import ObjectStore
    from storage.shardstate import PartitionState

    Key = tuple[tuple[bytes, ...] | int, ...]
    """A row's tags in the order of the table's, each () for NULL or (its UTF-8 bytes,); then its time in ns."""

READ_BYTES_MAX: Final = 32 * 2**20
"""Rows that are read and not yet folded, of all files together; folding them holds them three times for a moment."""
WRITE_FACTOR: Final = 2
"""Folded rows that wait to be a row group, of all new files together: so many times what may be read."""
BATCH_ROWS_MAX: Final = 16_384
"""Rows that are decoded at once."""
BATCH_ROWS_MIN: Final = 64
TEXT_ROWS_MAX: Final = 1_024
"""The same where there are string fields: a row may be long that comes after many short ones."""
TEXT_BYTES: Final = 2**20
"""Of string fields, about, in so few rows as are decoded at once where they are very long."""
WHOLE_BYTES_MAX: Final = 4 * 2**20
"""A file of an object store up to this size is fetched with one request."""
GROUP_BYTES_MAX: Final = 4 * 2**20
"""Row groups of an object store up to this size are fetched whole, larger ones piece by piece."""
STREAM_BYTES: Final = 2**20
"""Such a piece, of one column."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
CUT_PLAY: Final = 0.15
"""By how much of a file's share of rows a cut may be moved to a rounder time."""
TIME_SAMPLES_MAX: Final = 65_536
"""Of each file's times, to find where to cut."""


@dataclass(frozen=True, slots=True)
class MergeJob:
    """Merge ``files``, a run of one partition of ``table``, into new files under some of ``names`` (L20)."""

    table: Table
    files: tuple[DataFile, ...]
    names: tuple[str, ...]
    is_oldest: bool = False
    """No older file shares a moment with the run: its deletes have nothing left to delete (L25)."""
    deletes: tuple[PendingDelete, ...] = ()
    """Range deletes to be carried out, each in those of ``files`` that it names."""


def new_files_max(files: Sequence[DataFile], target_bytes: int = TARGET_BYTES) -> int:
    """Into how many files a run is cut."""
    return max(1, round(sum(file.bytes for file in files) / target_bytes))


def names_wanted(files: Sequence[DataFile], target_bytes: int = TARGET_BYTES) -> int:
    """How many names a merge may need: a create whose outcome stays unknown uses one up."""
    return new_files_max(files, target_bytes) + CREATE_TRIES_MAX


def merge_files(
    store: ObjectStore,
    job: MergeJob,
    scratch: Path,
    pause: Callable[[], None] = lambda: None,
    *,
    target_bytes: int = TARGET_BYTES,
    read_bytes: int = READ_BYTES_MAX,
) -> list[DataFile]:
    """Merge; return what a Checkpoint has to name instead of ``job.files`` (L21).

    ``pause`` is called between steps of some tens of milliseconds. New files are put together in unnamed files in
    ``scratch``. Memory: some eight times ``read_bytes``, however large the files are.
    Raises ObjectMissing (a file is gone), CorruptObject, UnsupportedFormat, StoreFull, StoreUnavailable.
    """
    table, files = job.table, sorted(job.files, key=lambda f: (f.order_low, f.order_high))
    assert 0 < len(files) <= RUN_FILES_MAX, "the planner bounds a run"
    share = read_bytes // len(files)
    try:
        inputs = [_opened(store, file, table, share, of_file(file, job.deletes, ())) for file in files]
        cuts = _cuts(inputs, new_files_max(files, target_bytes), pause)
        present = frozenset[str]().union(*(layer.names for layer in inputs))
        without = frozenset[str]().union(*(layer.without_bounds for layer in inputs))
        outputs = _Outputs(table, present, without, cuts, scratch, WRITE_FACTOR * read_bytes)
        for rows in _folded(table, inputs):
            left = without_deletes(rows) if job.is_oldest else rows
            if left.num_rows:
                outputs.add(left)
            pause()
        return outputs.create(store, job, pause)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StoreFull(f"{scratch}: no space left for merging files: {error}") from error
    except pa.ArrowException as error:
        raise CorruptObject(f"table {table.name!r}: merging {files[0].path} and others: {error}") from error


def _folded(table: Table, inputs: Sequence[_Input]) -> Iterator[pa.RecordBatch]:
    """The folded rows of all inputs in the order of their keys."""
    while True:
        for layer in inputs:
            with _naming_damage(layer.file):
                layer.fill()
        bounds = [layer.reached for layer in inputs if layer.reached is not None]
        bound = min(bounds) if bounds else None
        taken = [rows for layer in inputs for rows in layer.take(bound)]
        if taken:
            yield fold_layers(table, taken)
        if bound is None:
            return


def merge_job(table: Table, state: PartitionState, files: tuple[DataFile, ...], names: tuple[str, ...]) -> MergeJob:
    """Merge a run of a partition's files, with everything that is known now of deletes (L21, L25)."""
    return MergeJob(table, files, names, is_oldest(files, state.files), known_deletes(state))


def change_of(job: MergeJob, added: Iterable[DataFile]) -> FileChange:
    """What a merge that is done makes of the list of files."""
    known = frozenset(one.order for one in job.deletes)
    return FileChange(job.files, tuple(added), _changes_from(job), known)


def _changes_from(job: MergeJob) -> int:
    """The offset from which on all changes can still be seen: deletes as rows go with the oldest run (L25). 0: all."""
    has_ops = any(file.has_ops for file in job.files)
    return max(file.offset_high for file in job.files) + 1 if job.is_oldest and has_ops else 0


def without_deletes(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Folded rows below which there are none: a delete is done, and a put is as good as a patch (L25, F11)."""
    if OP_COLUMN not in rows.schema.names:
        return rows
    kept = rows.filter(pc.not_equal(rows.column(OP_COLUMN), Op.DELETE.code))
    return kept.drop_columns([OP_COLUMN])


@contextlib.contextmanager
def _naming_damage(file: DataFile) -> Iterator[None]:
    """Say which file is damaged: Arrow's errors, of which some look like those of a disk, name none."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise CorruptObject(f"{file.path}: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise CorruptObject(f"{file.path}: {error}") from error


def _opened(
    store: ObjectStore, file: DataFile, table: Table, share_bytes: int, deletes: Sequence[RangeDelete]
) -> _Input:
    with _naming_damage(file):
        return _Input(store, file, table, share_bytes, deletes)


class _Input:
    """One file, read in its order. `fill`, then `take` what is at or below a key."""

    def __init__(
        self, store: ObjectStore, file: DataFile, table: Table, share_bytes: int, deletes: Sequence[RangeDelete]
    ) -> None:
        """Rows of about ``share_bytes`` are kept ready; those that ``deletes`` take are left out."""
        self.file = file
        self._table = table
        self._deletes = deletes
        source = open_file(store, file)
        metadata = pq.read_metadata(source)
        present = metadata.schema.to_arrow_schema().names
        tags = [tag.storage_name for tag in table.tags]
        is_mapped = isinstance(source, pa.MemoryMappedFile)
        piece = 0 if is_mapped else STREAM_BYTES
        is_large = file.bytes > GROUP_BYTES_MAX * metadata.num_row_groups
        self._file = pq.ParquetFile(
            source,
            metadata=metadata,
            read_dictionary=sorted({*tags} & {*present}),
            pre_buffer=not is_mapped and not is_large,
            buffer_size=piece if is_large else 0,
        )
        known = table.by_storage_name
        columns = [name for name in present if name in known or name in (OFFSET_COLUMN, OP_COLUMN)]
        self.names = frozenset(columns) - {OFFSET_COLUMN}
        self.without_bounds = without_bounds(metadata)
        self._tags = [(tag if tag in self.names else None) for tag in tags]
        self._share = share_bytes
        texts = {field.storage_name for field in table.fields if field.kind is TypeKind.STRING}
        self._texts = sorted(texts & self.names)
        if self._texts:
            self._probe = pq.ParquetFile(source, metadata=metadata, pre_buffer=False, buffer_size=piece)
        self._batches = self._read(columns)
        self._ready: deque[tuple[Key, pa.RecordBatch]] = deque()
        self._held = 0
        self._ended = False

    def _read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for group in range(self._file.metadata.num_row_groups):  # one at a time: else all are buffered before
            rows = min(BATCH_ROWS_MAX, max(BATCH_ROWS_MIN, self._share // (8 * len(columns))))
            if self._texts:
                rows = min(rows, self._text_rows(group))
            yield from self._file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)

    def _text_rows(self, group: int) -> int:
        """How many rows of a row group to decode at once: only the rows themselves say how long their strings are."""
        first = self._probe.iter_batches(BATCH_ROWS_MIN, row_groups=[group], columns=self._texts, use_threads=False)
        probe = next(first)
        each: int = max(1, probe.nbytes // probe.num_rows)
        return min(TEXT_ROWS_MAX, max(self._share // each, TEXT_BYTES // each, 1))

    def times(self) -> Iterator[npt.NDArray[np.int64]]:
        """Some of the times, evenly spread over the rows."""
        step = -(-self.file.rows // TIME_SAMPLES_MAX)
        for batch in self._file.iter_batches(ROW_GROUP_ROWS, columns=[TIME_COLUMN]):
            yield batch.column(TIME_COLUMN).cast(pa.int64()).to_numpy(zero_copy_only=False)[::step]

    def fill(self) -> None:
        while not self._ended and (not self._ready or self._held < self._share):
            batch = next(self._batches, None)
            if batch is None:
                self._ended = True
            elif batch.num_rows:
                last = self._key(batch, batch.num_rows - 1)
                left = self._left(batch)
                self._ready.append((last, left))
                self._held += left.nbytes

    def _left(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that no delete takes. There may be none: their last key is reached all the same."""
        rows = pa.Table.from_batches([batch])
        gone = [delete.matches(self._table, rows) for delete in self._deletes]
        return batch.filter(pa.array(~np.logical_or.reduce(gone))) if gone else batch

    @property
    def reached(self) -> Key | None:
        """Up to here all rows are read; None when that is all there are."""
        return None if self._ended else self._ready[-1][0]

    def take(self, bound: Key | None) -> list[pa.Table]:
        """The rows at or below ``bound`` (None: all), which are then here no more; none or one table."""
        taken = []
        while self._ready and (bound is None or self._ready[0][0] <= bound):
            taken.append(self._ready.popleft()[1])
        if self._ready and bound is not None:
            last, batch = self._ready[0]  # a key that a delete took may be the last: `bound` is below it
            count = self._count(batch, bound)
            if count:
                taken.append(batch.slice(0, count))
                self._ready[0] = (last, batch.slice(count))
        self._held = sum(batch.nbytes for _, batch in self._ready)
        rows = pa.Table.from_batches(taken) if taken else None
        return [] if rows is None or not rows.num_rows else [rows]

    def _count(self, batch: pa.RecordBatch, bound: Key) -> int:
        """How many rows are at or below ``bound``. Part by part of the key: to look at a value costs microseconds."""
        low, high = 0, int(batch.num_rows)
        rows = range(high)
        for at, wanted in enumerate(bound):
            if low == high:
                break
            part = self._part(batch, at)
            if not part(low) == wanted == part(high - 1):
                low = bisect.bisect_left(rows, wanted, low, high, key=part)
                high = bisect.bisect_right(rows, wanted, low, high, key=part)
        return high

    def _key(self, batch: pa.RecordBatch, row: int) -> Key:
        return tuple(self._part(batch, at)(row) for at in range(len(self._tags) + 1))

    def _part(self, batch: pa.RecordBatch, at: int) -> Callable[[int], Any]:
        """Part ``at`` of a row's `Key`."""
        if at == len(self._tags):
            times = batch.column(TIME_COLUMN)
            return lambda row: times[row].value
        name = self._tags[at]
        if name is None:
            return lambda row: ()
        values = batch.column(name)

        def tag(row: int) -> tuple[bytes, ...]:
            value = values[row].as_py()
            return () if value is None else (value.encode(),)

        return tag


def open_file(store: ObjectStore, file: DataFile) -> pa.NativeFile:
    """A DataFile for reading: mapped from a local disk, else by ranges; a slice as a file. Raises ObjectMissing."""
    if file.is_slice:
        return pa.BufferReader(slice_as_file(store, file))
    local = store.local_path(file.path)
    if local is not None:
        try:
            return pa.memory_map(str(local))
        except FileNotFoundError:
            raise ObjectMissing(f"{file.path}: not in the store") from None
    if file.bytes <= WHOLE_BYTES_MAX:
        return pa.BufferReader(store.get(file.path))
    return pa.PythonFile(RangeReader(store, file.path, file.bytes), mode="r")


def _cuts(inputs: Sequence[_Input], count: int, pause: Callable[[], None]) -> npt.NDArray[np.int64]:
    """Times at which the rows are cut into ``count`` parts of about as many rows: each part begins at one."""
    if count == 1:
        return np.empty(0, np.int64)
    samples: list[npt.NDArray[np.int64]] = []
    weights: list[npt.NDArray[np.float64]] = []
    for layer in inputs:
        with _naming_damage(layer.file):
            times = np.concatenate(list(layer.times()))
        samples.append(times)
        weights.append(np.full(len(times), layer.file.rows / len(times)))
        pause()
    times, weight = np.concatenate(samples), np.concatenate(weights)
    order = np.argsort(times)
    times, reached = times[order], np.cumsum(weight[order])
    parts = np.arange(1, count)
    low = times[np.searchsorted(reached, reached[-1] * (parts - CUT_PLAY) / count)]
    high = times[np.searchsorted(reached, reached[-1] * (parts + CUT_PLAY) / count)]
    return np.unique([roundest(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)])


def roundest(low: int, high: int) -> int:
    """The number in [low, high] that the highest power of two divides.

    Merges of other files of the same times are cut at the same places then, and those between two cuts can be merged
    again without the others.
    """
    if low <= 0 <= high:
        return 0
    places = ((low - 1) ^ high).bit_length() - 1
    return (high >> places) << places


class _Outputs:
    """The new files, side by side: rows come in the order of their keys, and go to the file of their time."""

    def __init__(
        self,
        table: Table,
        present: frozenset[str],
        without: frozenset[str],
        cuts: npt.NDArray[np.int64],
        scratch: Path,
        bytes_max: int,
    ) -> None:
        names = [column.storage_name for column in table.columns if column.storage_name in present]
        types = [(name, table.by_storage_name[name].arrow_type) for name in names]
        types += [(OP_COLUMN, OP_TYPE)] if OP_COLUMN in present else []
        schema = file_schema(table, pa.schema([*types, (OFFSET_COLUMN, pa.int64())]))
        self._cuts = cuts
        self._bytes_max = bytes_max
        self._outputs = [_Output(table, schema, without, scratch) for _ in range(len(cuts) + 1)]

    def add(self, rows: pa.RecordBatch) -> None:
        """Take folded rows; write row groups when they are full, or when all together hold too much."""
        if len(self._outputs) == 1:
            self._outputs[0].add(rows)
        else:
            times = rows.column(TIME_COLUMN).view(pa.int64()).to_numpy()
            place = np.searchsorted(self._cuts, times, side="right")
            for number in np.unique(place):
                self._outputs[number].add(rows.take(pa.array(np.flatnonzero(place == number))))
        while sum(output.held for output in self._outputs) > self._bytes_max:
            max(self._outputs, key=lambda output: output.held).flush()

    def create(self, store: ObjectStore, job: MergeJob, pause: Callable[[], None]) -> list[DataFile]:
        """Create the files that have rows."""
        names = iter(job.names)
        made = []
        for output in self._outputs:
            if output.rows:
                made.append(output.create(store, job, names))
                pause()
        return made


class _Output:
    """One new file: row groups in an unnamed file, then one object."""

    def __init__(self, table: Table, schema: pa.Schema, without: frozenset[str], scratch: Path) -> None:
        self.rows = self.held = 0
        self._table = table
        self._without = without
        self._schema = schema
        self._scratch = scratch
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._times = (2**63 - 1, -(2**63))
        self._seen: set[str] = set()
        self._is_whole = True
        self._has_keys = False
        self._spool: IO[bytes] | None = None
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.RecordBatch) -> None:
        """Rows whose keys follow those that are here."""
        times = rows.column(TIME_COLUMN).view(pa.int64()).to_numpy()
        self._times = min(self._times[0], int(times.min())), max(self._times[1], int(times.max()))
        self._seen.update(name for name in rows.schema.names if rows.column(name).null_count < rows.num_rows)
        self._is_whole = self._is_whole and is_whole(self._table, rows)
        self._waiting.append(self._complete(rows))
        self._waiting_rows += rows.num_rows
        self.rows += rows.num_rows
        self.held += self._waiting[-1].nbytes
        while self._waiting_rows >= ROW_GROUP_ROWS:
            self.flush()

    def _complete(self, rows: pa.RecordBatch) -> pa.Table:
        """A fold leaves out what is all NULL; a row group has every column."""
        names = frozenset(rows.schema.names)
        columns = [
            rows.column(field.name) if field.name in names else pa.nulls(rows.num_rows, field.type)
            for field in self._schema
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def flush(self) -> None:
        """Write what waits, at most one full row group."""
        waiting = pa.concat_tables(self._waiting)
        group, rest = waiting.slice(0, ROW_GROUP_ROWS), waiting.slice(ROW_GROUP_ROWS)
        self._write(group)
        self._waiting = [rest] if rest.num_rows else []
        self._waiting_rows, self.held = rest.num_rows, rest.nbytes if rest.num_rows else 0

    def _write(self, group: pa.Table) -> None:
        group = self._keyed(group.combine_chunks())
        if self._writer is None:
            self._spool = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115  no name: ends with this process
            self._writer = parquet_writer(self._table, group, self._spool, self._without)
        self._writer.write_table(group, row_group_size=ROW_GROUP_ROWS)

    def _keyed(self, group: pa.Table) -> pa.Table:
        """The row group with its keys; whether a file has them its first row group decides."""
        if self._writer is not None and not self._has_keys:
            return group
        found = row_keys(self._table, group, group.num_rows // (SERIES_ROWS_MIN if self._writer is None else 1))
        self._has_keys = found is not None
        if found is None:
            return group
        own = pa.schema([(SERIES_COLUMN, found[0].type), (KEY_COLUMN, found[1].type)])
        schema = pa.schema([*group.schema, *file_schema(self._table, own)])
        return pa.Table.from_arrays([*group.columns, *found], schema=schema)

    def create(self, store: ObjectStore, job: MergeJob, names: Iterator[str]) -> DataFile:
        """Create the object; its order is that of the whole run, for which it stands within its times (L25)."""
        while self._waiting_rows:
            self.flush()
        self._close()
        if missing := [name for name in self._schema.names if name not in self._seen]:
            self._leave_out(missing)
        assert self._spool is not None
        size = self._spool.seek(0, 2)
        with self._spool:  # the map is not closed but let go: an error's traceback may still hold on to it
            content = mmap.mmap(self._spool.fileno(), size, access=mmap.ACCESS_READ)
            path = create_datafile(store, names, memoryview(content))
        low, high = min(f.order_low for f in job.files), max(f.order_high for f in job.files)
        return DataFile(
            path=path, table_id=self._table.id, partition=job.files[0].partition,
            order_low=low, order_high=high,
            offset_low=min(f.offset_low for f in job.files), offset_high=max(f.offset_high for f in job.files),
            time_low=self._times[0], time_high=self._times[1], rows=self.rows, bytes=size,
            schema_version=self._table.version, kind=self._kind(),
        )  # fmt: skip

    def _kind(self) -> str:
        return kind_of(self._seen | ({KEY_COLUMN} if self._has_keys else set()), self._is_whole)

    def _close(self) -> None:
        assert self._writer is not None
        self._writer.close()
        self._writer = None

    def _leave_out(self, names: Sequence[str]) -> None:
        """F19: a column without any value is left out. Here that shows at the end: the file is written again."""
        before = self._spool
        assert before is not None
        columns = [name for name in self._schema.names if name not in names]
        schema = pa.schema([self._schema.field(name) for name in columns])
        tags = [name for name in columns if pa.types.is_dictionary(schema.field(name).type)]
        with before:
            before.seek(0)
            file = pq.ParquetFile(before, read_dictionary=tags)
            for group in range(file.metadata.num_row_groups):
                self._write(pa.Table.from_arrays(file.read_row_group(group, columns).columns, schema=schema))
        self._close()
