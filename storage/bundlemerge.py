"""Merging bundles: of each partition the slices of all of them become one (LOG L25, FORMAT F11, F18). Blocking.

`storage.bundleplan` says which; everything is in memory at once, which the planner bounds. Driven by
`nodes.mergeworker` in a process of its own, by tests directly.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.bundle import SliceOf, create_bundles
from storage.bundleplan import is_grown, runs_of
from storage.bundlereader import read_slices
from storage.datafile import CREATE_TRIES_MAX, create_datafile, encode_parquet, kind_of
from storage.deletes import of_file
from storage.errors import CorruptObject
from storage.fold import fold_layers
from storage.merge import MergeJob, change_of, merge_job
from storage.schema import OFFSET_COLUMN, OP_COLUMN, TIME_COLUMN, DataFile, Op
from storage.slices import SLICE_COLUMN, Slice, binned, fold_slices, numbers_of, tags_of, with_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from storage.bundleplan import BundleSlices
    from storage.bundlereader import Read
    from storage.filechange import FileChange
    from storage.objects import ObjectStore
    from storage.schema import Table
    from storage.shardstate import PartitionState
    from storage.slices import Bin, Tags

    Made = list[tuple[int, DataFile]]
    """Files, and which run each is of."""


@dataclass(frozen=True, slots=True)
class BundleJob:
    """Merge ``runs`` of slices, each of one partition, sorted by table and partition.

    One that has names becomes a file of its own under one of these, the others slices of bundles under ``names`` (L20).
    """

    runs: tuple[MergeJob, ...]
    names: tuple[str, ...]

    @property
    def files(self) -> tuple[DataFile, ...]:
        """All slices that go."""
        return tuple(file for run in self.runs for file in run.files)


def bundle_job(
    bundles: Sequence[BundleSlices],
    tables: Callable[[int], Table | None],
    partitions: Mapping[tuple[int, int], PartitionState],
    names_for: Callable[[Table | None, int], tuple[str, ...]],
) -> BundleJob:
    """Merge ``bundles``, with everything that is known now of deletes (L21, L25).

    ``names_for`` reserves names for new files of a table, or, without one, for bundles (L20).
    """
    files = {key: partitions[key].files for one in bundles for key in _partitions(one)}
    runs = []
    for run in runs_of(bundles, files):
        table = tables(run[0].table_id)
        assert table is not None, "bundles with rows of tables that are not known are not chosen"
        names = names_for(table, CREATE_TRIES_MAX) if is_grown(run) else ()
        runs.append(merge_job(table, partitions[table.id, run[0].partition], run, names))
    # Columns that do not agree may keep each run in an object of its own, also of tables that shared one before.
    return BundleJob(tuple(runs), names_for(None, len(runs) + CREATE_TRIES_MAX))


def _partitions(bundle: BundleSlices) -> Iterator[tuple[int, int]]:
    return ((one.table_id, one.partition) for one in bundle.slices)


def changes_of(job: BundleJob, made: Iterable[tuple[int, DataFile]]) -> list[FileChange]:
    """What a merge that is done makes of the list of files; of a run whose rows are all deleted nothing is left."""
    added = dict(made)
    return [change_of(run, [added[number]] if number in added else []) for number, run in enumerate(job.runs)]


def merge_bundles(store: ObjectStore, job: BundleJob, pause: Callable[[], None] = lambda: None) -> Made:
    """Merge; return what a Checkpoint has to name in place of the runs' slices (L21).

    ``pause`` is called between steps. Raises as `storage.merge.merge_files`.
    """
    reads: list[_Bundle] = []
    for found in _by_path(job.runs).values():
        reads.append(_Bundle(found, read_slices(store, [file for _, file in found])))
        pause()
    present = {name for one in reads for name in one.read.rows.column_names}
    slices = [_slice(run, present) for run in job.runs]
    slices_of = [_slice_of(run) for run in job.runs]
    names, made = iter(job.names), list[tuple[int, DataFile]]()
    try:
        for one in binned(slices):
            folded = _folded(job.runs, one, reads)
            pause()
            own, rest = _grown(store, job.runs, one, folded)
            made += own
            entries = create_bundles(store, names, slices_of, rest)
            number_of = {slices[number].partition: number for number in one.numbers}
            made += [(number_of[file.table_id, file.partition], file) for file in entries]
            pause()
    except pa.ArrowException as error:
        raise CorruptObject(f"merging {job.runs[0].files[0].path} and other bundles: {error}") from error
    return made


@dataclass(frozen=True, slots=True)
class _Bundle:
    """What was read of a bundle, and which run each of its slices is of."""

    slices: Sequence[tuple[int, DataFile]]
    read: Read


def _by_path(runs: Sequence[MergeJob]) -> dict[str, list[tuple[int, DataFile]]]:
    found: defaultdict[str, list[tuple[int, DataFile]]] = defaultdict(list)
    for number, run in enumerate(runs):
        for file in run.files:
            found[file.path].append((number, file))
    return found


def _slice(run: MergeJob, present: set[str]) -> Slice:
    columns = tuple(column for column in run.table.columns if column.storage_name in present)
    rows = sum(file.rows for file in run.files)
    return Slice((run.table.id, run.files[0].partition), columns, run.table.columns, rows)


def _slice_of(run: MergeJob) -> SliceOf:
    """It stands for what all of the run stood for (L25)."""
    orders = min(f.order_low for f in run.files), max(f.order_high for f in run.files)
    offsets = min(f.offset_low for f in run.files), max(f.offset_high for f in run.files)
    return SliceOf(run.table, run.files[0].partition, orders, offsets)


def _folded(runs: Sequence[MergeJob], one: Bin, reads: Sequence[_Bundle]) -> list[pa.Table]:
    """The rows of a bin's runs, folded, one table for all runs whose tables have the same tags."""
    by_tags: defaultdict[Tags, list[int]] = defaultdict(list)
    for number in one.numbers:
        by_tags[tags_of(runs[number].table)].append(number)
    found = []
    for tags, numbers in by_tags.items():
        parts = [part for read in reads if (part := _part(runs, read, numbers, one)).num_rows]
        if parts:
            found.append(_without_deletes(runs, fold_slices(tags, one.kinds, parts)))
    return found


def _part(runs: Sequence[MergeJob], bundle: _Bundle, numbers: Sequence[int], one: Bin) -> pa.Table:
    """The rows of a bundle that are of these runs, without those that a range delete takes."""
    read = bundle.read
    of_run = np.array([number for number, _ in bundle.slices], np.int64)
    is_wanted = np.isin(of_run, np.array(numbers, np.int64))
    kept = np.repeat(is_wanted, read.counts)
    for place in np.flatnonzero(is_wanted).tolist():
        number, file = bundle.slices[place]
        table, start, count = runs[number].table, read.starts[place], read.counts[place]
        for delete in of_file(file, runs[number].deletes, ()):
            kept[start : start + count] &= ~delete.matches(table, _keys(table, read.rows.slice(start, count)))
    wanted = [name for name in read.rows.column_names if name in one.kinds or name in (OFFSET_COLUMN, OP_COLUMN)]
    rows = with_number(read.rows.select(wanted), of_run[read.numbers()])
    return rows if kept.all() else rows.filter(pa.array(kept))


def _keys(table: Table, rows: pa.Table) -> pa.Table:
    """What a range delete looks at: of a tag that came later there may be a namesake, another table's field (F18)."""
    is_text = {field.name for field in rows.schema if pa.types.is_string(field.type)}
    return rows.select([TIME_COLUMN, *(tag for tag in tags_of(table) if tag in is_text)])


def _without_deletes(runs: Sequence[MergeJob], rows: pa.Table) -> pa.Table:
    """Of runs below which there is nothing a delete is done, and a put is as good as a patch (L25, F11)."""
    if OP_COLUMN not in rows.column_names:
        return rows
    is_oldest = np.array([run.is_oldest for run in runs], np.bool_)[numbers_of(rows)]
    ops = pc.fill_null(rows.column(OP_COLUMN), Op.PATCH.code).to_numpy()
    kept = ~(is_oldest & (ops == Op.DELETE.code))
    left = np.where(is_oldest, Op.PATCH.code, ops)[kept].astype(np.int8)
    place = rows.schema.get_field_index(OP_COLUMN)
    rows = rows.filter(pa.array(kept))
    if left.any():
        return rows.set_column(place, OP_COLUMN, pa.array(left))
    return rows.drop_columns([OP_COLUMN])


def _grown(
    store: ObjectStore, runs: Sequence[MergeJob], one: Bin, folded: Sequence[pa.Table]
) -> tuple[Made, list[pa.Table]]:
    """Make files of the runs that have grown; these, and the rows of the others."""
    grown = np.array([number for number in one.numbers if runs[number].names], np.int64)
    made: Made = []
    rest = []
    for rows in folded:
        numbers = numbers_of(rows)
        edges = zip(*(np.searchsorted(numbers, grown, side=side).tolist() for side in ("left", "right")), strict=True)
        for number, (low, high) in zip(grown.tolist(), edges, strict=True):
            if high > low:
                made.append((number, _own_file(store, runs[number], rows.slice(low, high - low))))
        left = rows.filter(pa.array(~np.isin(numbers, grown))) if len(grown) else rows
        rest += [left] if left.num_rows else []
    return made, rest


def _own_file(store: ObjectStore, run: MergeJob, rows: pa.Table) -> DataFile:
    content = fold_layers(run.table, [rows.drop_columns([SLICE_COLUMN])])  # it leaves out columns without values (F19)
    data = encode_parquet(run.table, content)
    times = content.column(TIME_COLUMN).cast(pa.int64()).to_numpy(zero_copy_only=False)
    one = _slice_of(run)
    (order_low, order_high), (offset_low, offset_high) = one.orders, one.offsets
    assert order_high is not None
    assert offset_high is not None
    return DataFile(
        path=create_datafile(store, run.names, data), table_id=run.table.id, partition=one.partition,
        order_low=order_low, order_high=order_high, offset_low=offset_low, offset_high=offset_high,
        time_low=int(times.min()), time_high=int(times.max()), rows=content.num_rows, bytes=data.size,
        schema_version=run.table.version, kind=kind_of(content.schema.names),
    )  # fmt: skip
