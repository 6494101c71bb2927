"""Fold rows with equal keys into one row each: pure columns in, columns out (FORMAT F11, LOG L24).

The checkpoint writer drives it to make sorted, internally unique DataFiles; the engine drives it to turn a
memtable's tail into one layer. The key is (all tags, time), and NULL tags are equal. For each field the value
of the row with the greatest offset that is not NULL wins, of rows from the newest put or delete on; a patch after
one of these acts as a put. The fold is associative, so a folded batch may be folded again together with newer rows.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.deletes import without_deleted
from storage.errors import UnsupportedFormat
from storage.schema import OFFSET_COLUMN, OP_COLUMN, OP_TYPE, RESERVED_PREFIX, TIME_COLUMN, Op, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from storage.schema import Column, Table, TailBatch

Ints = npt.NDArray[np.int64]
Ranks = npt.NDArray[np.int32]
Ops = npt.NDArray[np.int8]
PATCH: Final = Op.PATCH.code
PUT: Final = Op.PUT.code
DELETE: Final = Op.DELETE.code

SERIES_CODE_MAX: Final = 2**62
"""Series codes are recounted before the product of the tags' cardinalities passes this."""
DICTIONARY_VALUES_MIN: Final = 4096
"""A dictionary up to this size is sorted whole, a larger one only if there are as many rows."""


def fold(table: Table, tail: Sequence[TailBatch], base: pa.RecordBatch | None = None) -> pa.RecordBatch:
    """Fold `tail`, and `base` below it, into one batch with one row for each key.

    `base` is what an earlier `fold` of older rows of the same table returned. Range deletes in `tail` take what stands
    before them. The result is sorted by tags
    (by their UTF-8 bytes, NULL first, in the order of `table.tags`), then by time. Its columns are named by
    storage names: time, tags (dictionary<int32, string>, the dictionary sorted and without unused values),
    fields, `_runnel_op` (int8) if a row's op is not the table's default, and `_runnel_offset` (int64): the greatest
    offset of the key. A column without any value is left out (F19). Raises UnsupportedFormat.
    """
    rows, arrival = _gather(table, tail, base)
    return fold_rows(table, rows, arrival)


def fold_layers(table: Table, layers: Sequence[pa.Table]) -> pa.RecordBatch:
    """Fold rows of DataFiles, which carry their `_runnel_offset`: older layers first (LOG L25); see `fold`.

    Rows with the same key are in layers whose orders do not overlap, so the layers' order is that of their rows. A
    merged row has the highest offset of its key. Raises UnsupportedFormat as `fold` does.
    """
    parts = []
    for _, alike in itertools.groupby(layers, key=lambda layer: layer.schema):
        rows = pa.concat_tables(alike)
        offsets = rows.column(OFFSET_COLUMN)
        parts.append(_conform(table, rows.drop_columns([OFFSET_COLUMN])).append_column(OFFSET_COLUMN, offsets))
    return fold_rows(table, pa.concat_tables(parts, promote_options="default"), has_runs=True)


def fold_rows(table: Table, rows: pa.Table, arrival: Ints | None = None, *, has_runs: bool = False) -> pa.RecordBatch:
    """Fold rows that carry their `_runnel_offset`, in ascending offset order within each key; see `fold`.

    ``has_runs``: rows of a series mostly follow each other, as in a DataFile.

    `arrival` gives that order where the rows themselves do not stand in it. Columns are put together one at a
    time: with all of them at once the fold held the memtable twice, and touching so much fresh memory was half of
    its CPU. Tags are sorted out by series, of which there are few, and never moved by row.
    """
    times = _int64(rows.column(table.by_name[TIME_COLUMN].storage_name))
    names = frozenset(rows.column_names)  # a list made anew each time: over it 10,000 columns took minutes
    tags = [column for column in table.tags if column.storage_name in names]
    series, values = _series(tags, rows, has_runs)
    order = sort_keys(series.codes, series.counts, times, arrival)
    begins, ops = _resets(table, rows, order)
    columns: dict[str, pa.Array] = {}
    for column in table.columns:
        name = column.storage_name
        if name not in names:
            continue
        if column.role is Role.TAG:
            at = tags.index(column)
            array = _repeated(series.ranks[at], values[at], order.series_rows)
        elif column.role is Role.TIME:
            array = pa.Array.from_buffers(column.arrow_type, len(order.times), [None, pa.py_buffer(order.times)])
        elif order.starts is not None and rows.column(name).null_count:
            assert begins is not None
            array = _newest_values(rows.column(name), order.order, begins, order.starts)
        else:
            array = _take(rows.column(name), order.winners)
        if column.role is Role.TIME or array.null_count < len(array):
            columns[name] = array
    if ops is not None and bool(np.any(ops != table.default_op.code)):
        columns[OP_COLUMN] = pa.array(ops, OP_TYPE)
    columns[OFFSET_COLUMN] = _take(rows.column(OFFSET_COLUMN), order.winners)
    return pa.RecordBatch.from_pydict(columns)


class Series(NamedTuple):
    """The distinct tag sets of some rows, numbered from 0 in the order of their ranks, first tag first.

    ``codes`` is the number of each row's, ``counts`` how many rows each has, ``ranks[i]`` its tag i.
    """

    codes: Ints
    counts: Ints
    ranks: list[Ints]


def number_series(tags: Iterable[tuple[Ranks, int]], rows: int) -> Series:
    """Number the series of `rows` rows, given for each tag the rank of each row, and what all ranks are below."""
    codes = np.zeros(rows, dtype=np.int64)
    found: list[Ints] = []
    open_digits: list[int] = []
    room = 1
    for ranks, cardinality in tags:
        if room * cardinality > SERIES_CODE_MAX:
            codes, uniques = _dense(codes)
            found, open_digits, room = _digits(uniques, found, open_digits), [], max(1, len(uniques))
        codes *= cardinality
        codes += ranks
        room *= cardinality
        open_digits.append(cardinality)
    codes, uniques = _dense(codes)
    return Series(codes, np.bincount(codes, minlength=len(uniques)), _digits(uniques, found, open_digits))


def _digits(uniques: Ints, found: list[Ints], cardinalities: list[int]) -> list[Ints]:
    """The rank of every tag so far, by series: the last ones are digits of its code, the rest were `found` before."""
    digits: list[Ints] = []
    for cardinality in reversed(cardinalities):
        uniques, digit = np.divmod(uniques, cardinality)
        digits.append(digit)
    return [*(ranks[uniques] for ranks in found), *reversed(digits)]


class KeyOrder(NamedTuple):
    """Rows sorted by key. ``order`` has all rows, ``winners`` the newest of each key, ``times`` the keys' times.

    ``series_rows`` counts the keys of each series; ``starts`` is where in ``order`` each key begins, None when
    no two rows have the same key.
    """

    order: Ints
    winners: Ints
    times: Ints
    series_rows: Ints
    starts: Ints | None


def sort_keys(series: Ints, counts: Ints, times: Ints, arrival: Ints | None = None) -> KeyOrder:
    """Sort rows by (series, time), those with equal keys as they came (`arrival`; None: as they stand).

    `series` are numbers from 0, each of which has `counts` rows, at least one.
    """
    if arrival is not None:
        series, times = series[arrival], times[arrival]
    begins = np.cumsum(counts) - counts  # where each series begins in sorted order
    order = _radix_order(series)
    sorted_times = times[order]
    backwards = sorted_times[1:] < sorted_times[:-1]
    backwards[begins[1:] - 1] = False
    if bool(np.any(backwards)):  # rows of one series mostly arrive in time order
        by_time = np.argsort(times, kind="stable")
        order = by_time[_radix_order(series[by_time])]
        sorted_times = times[order]
    first = np.ones(len(order), dtype=np.bool_)
    np.not_equal(sorted_times[1:], sorted_times[:-1], out=first[1:])
    first[begins] = True
    if arrival is not None:
        order = arrival[order]
    if bool(np.all(first)):
        return KeyOrder(order, order, sorted_times, counts, None)
    starts = np.flatnonzero(first)
    winners = order[_ends(starts, len(order))]
    return KeyOrder(order, winners, sorted_times[starts], np.add.reduceat(first, begins, dtype=np.int64), starts)


def _ends(starts: Ints, rows: int) -> Ints:
    """Where, in sorted order, the last row of each key is."""
    return np.append(starts[1:], rows) - 1


def _gather(table: Table, tail: Sequence[TailBatch], base: pa.RecordBatch | None) -> tuple[pa.Table, Ints | None]:
    """All rows under the table's types, with their offsets, and their order if they do not stand in it."""
    groups: dict[pa.Schema, list[TailBatch]] = defaultdict(list)
    ordered = sorted(tail, key=lambda batch: batch.first_offset)
    for batch in ordered:
        if batch.delete is None:
            groups[batch.rows.schema].append(batch)
    parts = [] if base is None else [pa.Table.from_batches([base])]
    for schema, batches in groups.items():
        part = _conform(table, pa.Table.from_batches([b.rows for b in batches], schema))
        parts.append(part.append_column(OFFSET_COLUMN, pa.array(_offsets(batches))))
    deletes = [(batch.first_offset, batch.delete) for batch in ordered if batch.delete is not None]
    if not parts:
        time = table.by_name[TIME_COLUMN]
        return pa.schema([(time.storage_name, time.arrow_type), (OFFSET_COLUMN, pa.int64())]).empty_table(), None
    rows = without_deleted(table, pa.concat_tables(parts, promote_options="default"), deletes)
    if len(groups) > 1:
        return rows, np.argsort(_int64(rows.column(OFFSET_COLUMN)), kind="stable")
    return rows, None


def _conform(table: Table, rows: pa.Table) -> pa.Table:
    """Keep the columns that the table has, with the types that it gives them."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in rows.column_names:
        if name == OP_COLUMN:
            columns[name] = rows.column(name)
            continue
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


def _series(tags: Sequence[Column], rows: pa.Table, has_runs: bool) -> tuple[Series, list[pa.Array]]:
    """The series of the rows, and of each tag the values that its ranks mean: rank 0 is NULL, 1 the first value."""
    values: list[pa.Array] = []

    def ranked(coded: Iterable[tuple[Ranks, pa.Array]]) -> Iterator[tuple[Ranks, int]]:
        for codes, dictionary in coded:
            lookup, distinct = _ranked(dictionary)
            values.append(distinct)
            yield np.take(lookup, codes), len(distinct) + 1

    coded = (_codes(rows.column(tag.storage_name)) for tag in tags)
    if not has_runs:
        return number_series(ranked(coded), rows.num_rows), values
    columns = list(coded)
    begins = _run_begins([codes for codes, _ in columns], rows.num_rows)
    lengths = np.diff(np.append(begins, rows.num_rows))
    runs = number_series(ranked((codes[begins], dictionary) for codes, dictionary in columns), len(begins))
    counts = np.bincount(runs.codes, lengths).astype(np.int64)
    return Series(np.repeat(runs.codes, lengths), counts, runs.ranks), values


def _run_begins(codes: Sequence[Ranks], rows: int) -> Ints:
    """Where rows begin that have other tags than the row before."""
    begins = np.zeros(rows, dtype=np.bool_)
    begins[:1] = True
    for column in codes:
        begins[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(begins)


def _codes(values: pa.ChunkedArray) -> tuple[Ranks, pa.Array]:
    """Each row's place in the dictionary, which has one more place, for NULL."""
    encoded = _single(values)
    size = len(encoded.dictionary)
    codes = pc.fill_null(encoded.indices, size).to_numpy(zero_copy_only=False)
    if size <= max(DICTIONARY_VALUES_MIN, len(codes)):
        return codes, encoded.dictionary
    used = np.zeros(size + 1, dtype=np.bool_)  # a large dictionary, little used: cut it down before it is sorted
    used[codes] = True
    in_use = np.flatnonzero(used[:size])
    places = np.full(size + 1, len(in_use), dtype=np.int32)
    places[in_use] = np.arange(len(in_use), dtype=np.int32)
    return np.take(places, codes), encoded.dictionary.take(pa.array(in_use))


def _ranked(dictionary: pa.Array) -> tuple[Ranks, pa.Array]:
    """The rank of each value of a dictionary by its bytes, from 1, and 0 at its end; and the sorted values."""
    uniques = dictionary.dictionary_encode()
    distinct = uniques.dictionary
    by_value = pc.sort_indices(distinct).to_numpy()
    position = np.empty(len(distinct) + 1, dtype=np.int32)
    position[by_value] = np.arange(1, len(distinct) + 1, dtype=np.int32)
    position[len(distinct)] = 0  # a NULL inside a dictionary is NULL
    lookup = np.zeros(len(dictionary) + 1, dtype=np.int32)
    lookup[:-1] = position[pc.fill_null(uniques.indices, len(distinct)).to_numpy(zero_copy_only=False)]
    return lookup, distinct.take(pa.array(by_value))


def _repeated(ranks: Ints, values: pa.Array, rows: Ints) -> pa.Array:
    """A tag column in sorted order: the value of each series for as many rows as it has."""
    used = np.unique(ranks[ranks > 0])
    places = np.zeros(len(values) + 1, dtype=np.int32)
    places[used] = np.arange(len(used), dtype=np.int32)
    indices = np.repeat(places[ranks], rows)
    mask = None if np.all(ranks) else np.repeat(ranks == 0, rows)
    return pa.DictionaryArray.from_arrays(pa.array(indices, mask=mask), values.take(pa.array(used - 1)), safe=False)


def _dense(codes: Ints) -> tuple[Ints, Ints]:
    """Replace codes by their rank among the codes that occur, and return these, sorted."""
    encoded = pc.dictionary_encode(pa.array(codes))
    uniques = encoded.dictionary.to_numpy()
    by_value = np.argsort(uniques)
    rank = np.empty(len(uniques), dtype=np.int64)
    rank[by_value] = np.arange(len(uniques))
    return np.take(rank, encoded.indices.to_numpy()), uniques[by_value]


def _radix_order(codes: Ints) -> Ints:
    """Stable argsort of dense codes, 16 bits at a time: NumPy sorts 16-bit integers by radix."""
    order = np.argsort(codes.astype(np.uint16), kind="stable")
    high = codes >> 16
    while bool(np.any(high)):
        order = order[np.argsort(high[order].astype(np.uint16), kind="stable")]
        high = high >> 16
    return order


def _resets(table: Table, rows: pa.Table, order: KeyOrder) -> tuple[Ints | None, Ops | None]:
    """For each key where in sorted order the rows begin that count: its newest put or delete. And its op (F11).

    No ops where all rows are the table's default.
    """
    if OP_COLUMN in rows.column_names:
        ops = pc.fill_null(_single(rows.column(OP_COLUMN)), table.default_op.code).to_numpy()
    elif table.default_op is Op.PATCH or order.starts is None:
        return order.starts, None
    else:
        return _ends(order.starts, len(order.order)), None
    newest = ops[order.winners]
    if order.starts is None:
        return None, newest
    resets = np.where(ops[order.order] != PATCH, np.arange(len(order.order)), -1)
    last = np.maximum.accumulate(resets)[_ends(order.starts, len(order.order))]
    is_reset = last >= order.starts
    merged = np.where(newest == DELETE, DELETE, np.where(is_reset, PUT, PATCH)).astype(np.int8)
    return np.where(is_reset, last, order.starts), merged


def _newest_values(values: pa.ChunkedArray, order: Ints, begins: Ints, starts: Ints) -> pa.Array:
    """For each key, which begin at ``starts``, the last value in order that is not NULL, from ``begins`` on."""
    array = _single(values)
    valid = pc.is_valid(array).to_numpy(zero_copy_only=False)[order]
    last = np.maximum.accumulate(np.where(valid, np.arange(len(order)), -1))[_ends(starts, len(order))]
    missing = last < begins
    rows = order[np.where(missing, 0, last)]
    return array.take(pa.array(rows, mask=missing))


def _take(values: pa.ChunkedArray, rows: Ints) -> pa.Array:
    return pc.take(_single(values), pa.array(rows), boundscheck=False)  # they are places of these rows


def _single(values: pa.ChunkedArray) -> pa.Array:
    """The one array behind combined chunks."""
    if values.num_chunks == 1:
        return values.chunk(0)
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _int64(values: pa.ChunkedArray) -> Ints:
    return cast("Ints", _single(values).view(pa.int64()).to_numpy())
