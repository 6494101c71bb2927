"""Fold rows with equal keys into one row each: pure columns in, columns out (FORMAT F11, LOG L24).

The checkpoint writer drives it to make sorted, internally unique DataFiles; the engine drives it to turn a
memtable's tail into one layer. The key is (all tags, time), and NULL tags are equal. For each field the value
of the row with the greatest offset that is not NULL wins. The fold is associative, so a folded batch may be
folded again together with newer rows.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import UnsupportedFormat
from storage.schema import OFFSET_COLUMN, RESERVED_PREFIX, TIME_COLUMN, Op, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from storage.schema import Column, Table, TailBatch

    Ints = npt.NDArray[np.int64]

SERIES_CODE_MAX: Final = 2**62
"""Series codes are recounted before the product of the tags' cardinalities passes this."""


def fold(table: Table, tail: Sequence[TailBatch], base: pa.RecordBatch | None = None) -> pa.RecordBatch:
    """Fold `tail`, and `base` below it, into one batch with one row for each key.

    `base` is what an earlier `fold` of older rows of the same table returned. The result is sorted by tags
    (by their UTF-8 bytes, NULL first, in the order of `table.tags`), then by time. Its columns are named by
    storage names: time, tags (dictionary<int32, string>, the dictionary sorted and without unused values),
    fields, and `_runnel_offset` (int64): the greatest offset of the key. A column without any value is left
    out (F19). Raises UnsupportedFormat for rows whose op is not patch.
    """
    _check_ops(table)
    rows = _gather(table, tail, base)
    return fold_rows(table, rows)


def fold_rows(table: Table, rows: pa.Table) -> pa.RecordBatch:
    """Fold rows that carry their `_runnel_offset`, in ascending offset order within each key; see `fold`."""
    rows = rows.combine_chunks()
    times = _int64(rows.column(table.by_name[TIME_COLUMN].storage_name))
    present = {name: rows.column(name) for name in rows.column_names}
    tags = {c.storage_name: _ranked(present[c.storage_name]) for c in table.tags if c.storage_name in present}
    series = series_codes([rank for rank, _ in tags.values()], [len(d) + 1 for _, d in tags.values()], len(times))
    order = sort_order(series, times)
    starts = _group_starts(series, times, order)
    ends = np.append(starts[1:], len(order)) - 1
    winners = order[ends] if len(order) else order
    folded = len(winners) < len(order)
    columns: dict[str, pa.Array] = {}
    for column in table.columns:
        name = column.storage_name
        if name not in present:
            continue
        if column.role is Role.TAG:
            array = _dictionary(tags[name][0][winners], tags[name][1])
        elif folded and present[name].null_count:
            array = _newest_values(present[name], order, starts, ends)
        else:
            array = _take(present[name], winners)
        if column.role is Role.TIME or array.null_count < len(array):
            columns[name] = array
    columns[OFFSET_COLUMN] = _take(present[OFFSET_COLUMN], winners)
    return pa.RecordBatch.from_pydict(columns)


def series_codes(ranks: Sequence[Ints], cardinalities: Sequence[int], rows: int) -> Ints:
    """Give each row an int64 code so that codes sort as the tags' ranks do, first tag first.

    `ranks[i]` is tag i of every row, each in [0, cardinalities[i]). Equal tags have equal codes.
    """
    codes = np.zeros(rows, dtype=np.int64)
    room = 1
    for rank, cardinality in zip(ranks, cardinalities, strict=True):
        if room * cardinality > SERIES_CODE_MAX:
            codes, room = _dense(codes)
        codes = codes * cardinality + rank
        room *= cardinality
    return _dense(codes)[0]


def sort_order(series: Ints, times: Ints) -> Ints:
    """The stable permutation that sorts by (series, time). `series` are dense codes from 0.

    Rows of one series mostly arrive in time order, so a radix sort of the series alone is tried first.
    """
    order = _radix_order(series)
    if len(order) < 2:
        return order
    same = series[order[1:]] == series[order[:-1]]
    backwards = times[order[1:]] < times[order[:-1]]
    if not bool(np.any(same & backwards)):
        return order
    return np.lexsort((times, series))


def _check_ops(table: Table) -> None:
    if table.default_op is not Op.PATCH:
        raise UnsupportedFormat(f"table {table.name!r}: op {table.default_op} cannot be folded by this version")


def _gather(table: Table, tail: Sequence[TailBatch], base: pa.RecordBatch | None) -> pa.Table:
    """All rows in ascending offset order within each key, under the table's types, with their offsets."""
    groups: dict[pa.Schema, list[TailBatch]] = defaultdict(list)
    ordered = sorted(tail, key=lambda batch: batch.first_offset)
    for batch in ordered:
        groups[batch.rows.schema].append(batch)
    parts = [] if base is None else [pa.Table.from_batches([base])]
    for schema, batches in groups.items():
        part = _conform(table, pa.Table.from_batches([b.rows for b in batches], schema))
        parts.append(part.append_column(OFFSET_COLUMN, pa.array(_offsets(batches))))
    if not parts:
        time = table.by_name[TIME_COLUMN]
        return pa.schema([(time.storage_name, time.arrow_type), (OFFSET_COLUMN, pa.int64())]).empty_table()
    rows = pa.concat_tables(parts, promote_options="default")
    if len(groups) > 1:
        rows = rows.combine_chunks()
        order = np.argsort(_int64(rows.column(OFFSET_COLUMN)), kind="stable")
        rows = rows.take(pa.array(order))
    return rows


def _conform(table: Table, rows: pa.Table) -> pa.Table:
    """Keep the columns that the table has, with the types that it gives them."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in rows.column_names:
        if name.startswith(RESERVED_PREFIX):
            raise UnsupportedFormat(f"table {table.name!r}: rows with {name} cannot be folded by this version")
        column = table.by_storage_name.get(name)
        if column is not None:
            columns[name] = _typed(rows.column(name), column)
    return pa.table(columns)


def _typed(values: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    if values.type == column.arrow_type:
        return values
    if column.role is Role.TAG:
        return values.cast(pa.string()).dictionary_encode()
    return values.cast(column.arrow_type)


def _offsets(batches: Sequence[TailBatch]) -> Ints:
    """The offset of each row of the batches, in their order."""
    counts = np.fromiter((b.rows.num_rows for b in batches), dtype=np.int64, count=len(batches))
    firsts = np.fromiter((b.first_offset for b in batches), dtype=np.int64, count=len(batches))
    shifts: Ints = np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    return np.arange(len(shifts), dtype=np.int64) + shifts


def _ranked(values: pa.ChunkedArray) -> tuple[Ints, pa.Array]:
    """Ranks of a tag's values (0 is NULL, then 1.. in byte order), and the sorted values in use."""
    encoded = _single(values)
    size = len(encoded.dictionary)
    codes = pc.fill_null(encoded.indices, size).to_numpy(zero_copy_only=False).astype(np.int64)
    used = np.zeros(size + 1, dtype=np.bool_)
    used[codes] = True
    in_use = np.flatnonzero(used[:size])
    uniques = encoded.dictionary.take(pa.array(in_use)).dictionary_encode()
    distinct = uniques.dictionary
    by_value = pc.sort_indices(distinct).to_numpy()
    position = np.empty(len(distinct) + 1, dtype=np.int64)
    position[by_value] = np.arange(1, len(distinct) + 1)
    position[len(distinct)] = 0  # a NULL inside a dictionary is NULL
    ranks = np.zeros(size + 1, dtype=np.int64)
    ranks[in_use] = position[pc.fill_null(uniques.indices, len(distinct)).to_numpy(zero_copy_only=False)]
    return ranks[codes], distinct.take(pa.array(by_value))


def _dictionary(ranks: Ints, values: pa.Array) -> pa.Array:
    indices = pa.array((ranks - 1).astype(np.int32), mask=ranks == 0)
    return pa.DictionaryArray.from_arrays(indices, values)


def _dense(codes: Ints) -> tuple[Ints, int]:
    """Replace codes by their rank among the codes that occur; also return how many occur."""
    encoded = pc.dictionary_encode(pa.array(codes))
    uniques = encoded.dictionary.to_numpy()
    by_value = np.argsort(uniques)
    rank = np.empty(len(uniques), dtype=np.int64)
    rank[by_value] = np.arange(len(uniques))
    return rank[encoded.indices.to_numpy()], max(1, len(uniques))


def _radix_order(codes: Ints) -> Ints:
    """Stable argsort of dense codes, 16 bits at a time: NumPy sorts 16-bit integers by radix."""
    order = np.argsort(codes.astype(np.uint16), kind="stable")
    high = codes >> 16
    while bool(np.any(high)):
        order = order[np.argsort(high[order].astype(np.uint16), kind="stable")]
        high = high >> 16
    return order


def _group_starts(series: Ints, times: Ints, order: Ints) -> Ints:
    """Where, in sorted order, each key begins."""
    if len(order) == 0:
        return order
    sorted_series, sorted_times = series[order], times[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (sorted_series[1:] != sorted_series[:-1]) | (sorted_times[1:] != sorted_times[:-1])
    return np.flatnonzero(first)


def _newest_values(values: pa.ChunkedArray, order: Ints, starts: Ints, ends: Ints) -> pa.Array:
    """For each key the last value in order that is not NULL."""
    valid = pc.is_valid(_single(values)).to_numpy(zero_copy_only=False)[order]
    last = np.maximum.accumulate(np.where(valid, np.arange(len(order)), -1))[ends]
    missing = last < starts
    rows = order[np.where(missing, 0, last)]
    return _single(values).take(pa.array(rows, mask=missing))


def _take(values: pa.ChunkedArray, rows: Ints) -> pa.Array:
    return _single(values).take(pa.array(rows))


def _single(values: pa.ChunkedArray) -> pa.Array:
    """The one array behind combined chunks."""
    if values.num_chunks == 1:
        return values.chunk(0)
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _int64(values: pa.ChunkedArray) -> Ints:
    return cast("Ints", _single(values).view(pa.int64()).to_numpy())
