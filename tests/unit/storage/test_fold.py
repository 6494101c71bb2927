"""The fold against a naive oracle: a dictionary updated row by row (FORMAT F11)."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import UnsupportedFormat
from storage.fold import DELETE, PATCH, PUT, fold, fold_layers, number_series, sort_keys
from storage.schema import (
    OFFSET_COLUMN,
    OP_COLUMN,
    OP_TYPE,
    TAG_ARROW_TYPE,
    Column,
    Op,
    Role,
    Table,
    TailBatch,
    TypeKind,
)

TIME = Column(0, "time", "time", Role.TIME, TypeKind.TIMESTAMP)


def make_table(tags: int, kinds: tuple[TypeKind, ...]) -> Table:
    """A table whose storage names differ from its names."""
    columns = [TIME]
    columns += [Column(1 + i, f"tag{i}", f"t{i}", Role.TAG, TypeKind.STRING) for i in range(tags)]
    columns += [Column(50 + i, f"field{i}", f"f{i}", Role.FIELD, kind) for i, kind in enumerate(kinds)]
    return Table(1, "u", 1, "m", 1, tuple(columns), ())


TABLE = make_table(2, (TypeKind.INT64, TypeKind.STRING, TypeKind.BOOL, TypeKind.FLOAT64))
PUTS = dataclasses.replace(TABLE, default_op=Op.PUT)
Row = dict[str, Any]


def to_batch(table: Table, rows: list[Row], columns: list[str]) -> pa.RecordBatch:
    arrays = {}
    for name in columns:
        if name == OP_COLUMN:
            arrays[name] = pa.array([row.get(name) for row in rows], OP_TYPE)
            continue
        column = table.by_storage_name[name]
        values = pa.array([row.get(name) for row in rows], column.plain_type)
        arrays[name] = values.dictionary_encode() if column.role is Role.TAG else values
    return pa.RecordBatch.from_pydict(arrays)


def to_tail(table: Table, batches: list[tuple[int, list[Row], list[str]]]) -> list[TailBatch]:
    tail, offset = [], 0
    for gap, rows, columns in batches:
        offset += gap
        tail.append(TailBatch(offset, to_batch(table, rows, columns)))
        offset += len(rows)
    return tail


def plain_rows(batch: pa.RecordBatch) -> list[Row]:
    columns = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        columns[name] = (array.view(pa.int64()) if pa.types.is_timestamp(array.type) else array).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def oracle(table: Table, tail: list[TailBatch]) -> list[Row]:
    """What F11 says, one row at a time."""
    keys = [c.storage_name for c in (*table.tags, TIME)]
    state: dict[tuple[Any, ...], Row] = {}
    for batch in sorted(tail, key=lambda b: b.first_offset):
        for i, row in enumerate(plain_rows(batch.rows)):
            key = tuple(row.get(name) for name in keys)
            merged = state.setdefault(key, {})
            op = row.pop(OP_COLUMN, None)
            op = table.default_op.code if op is None else op
            if op != PATCH:
                merged.clear()
            elif merged.get(OP_COLUMN, PATCH) != PATCH:
                op = PUT
            merged[OP_COLUMN] = op
            merged.update({name: value for name, value in row.items() if value is not None})
            merged[OFFSET_COLUMN] = batch.first_offset + i
    ranked = sorted(state, key=lambda key: [(v is not None, v.encode() if isinstance(v, str) else v or 0) for v in key])
    return [without_default(table, state[key]) for key in ranked]


def without_default(table: Table, row: Row) -> Row:
    return {k: v for k, v in row.items() if (k, v) != (OP_COLUMN, table.default_op.code)}


def present(batch: pa.RecordBatch, table: Table | None = None) -> list[Row]:
    rows = [{k: v for k, v in row.items() if v is not None} for row in plain_rows(batch)]
    return [without_default(table or TABLE, row) for row in rows]


ROW = st.fixed_dictionaries(
    {"time": st.integers(-3, 3)},
    optional={
        "t0": st.sampled_from(["a", "b", "é", "", "\U0001f600", "\uffff"]),
        "t1": st.sampled_from(["x", "y"]),
        "f0": st.integers(-5, 5),
        "f1": st.text(max_size=3),
        "f2": st.booleans(),
        "f3": st.floats(allow_nan=False),
        OP_COLUMN: st.sampled_from([PATCH, PUT, DELETE]),
    },
).map(lambda row: {k: v for k, v in row.items() if row.get(OP_COLUMN) != DELETE or k[0] != "f"})
COLUMNS = st.lists(st.sampled_from(["t0", "t1", "f0", "f1", "f2", "f3", OP_COLUMN]), unique=True).map(
    lambda c: ["time", *c]
)
BATCH = st.tuples(st.integers(0, 3), st.lists(ROW, max_size=8), COLUMNS)


@settings(max_examples=300, deadline=None)
@given(st.lists(BATCH, max_size=6), st.sampled_from([TABLE, PUTS]))
def test_fold_is_the_oracle(batches: list[tuple[int, list[Row], list[str]]], table: Table) -> None:
    tail = to_tail(table, batches)
    folded = fold(table, tail)
    assert present(folded, table) == oracle(table, tail)
    for name in folded.schema.names[1:-1]:
        assert folded.column(name).null_count < folded.num_rows


@settings(max_examples=200, deadline=None)
@given(st.lists(BATCH, min_size=1, max_size=6), st.integers(0, 6), st.sampled_from([TABLE, PUTS]))
def test_fold_of_a_fold_is_the_fold(batches: list[tuple[int, list[Row], list[str]]], cut: int, table: Table) -> None:
    tail = to_tail(table, batches)
    base = fold(table, tail[:cut])
    assert fold(table, tail[cut:], base).equals(fold(table, tail))


@settings(max_examples=200, deadline=None)
@given(st.lists(BATCH, min_size=1, max_size=6))
def test_l25_layers_that_are_folded_fold_to_the_same(batches: list[tuple[int, list[Row], list[str]]]) -> None:
    tail = to_tail(TABLE, batches)
    layers = [pa.Table.from_batches([fold(TABLE, [batch])]) for batch in tail]
    assert fold_layers(TABLE, layers).equals(fold(TABLE, tail))


@settings(max_examples=100, deadline=None)
@given(st.lists(BATCH, max_size=4), st.randoms())
def test_the_order_of_the_list_does_not_matter(batches: list[tuple[int, list[Row], list[str]]], random: Any) -> None:
    tail = to_tail(TABLE, batches)
    shuffled = list(tail)
    random.shuffle(shuffled)
    # Batches without rows share an offset with their neighbour; they add nothing wherever they stand.
    assert present(fold(TABLE, shuffled)) == present(fold(TABLE, tail))


def test_tags_are_dictionaries_sorted_by_bytes_without_unused_values() -> None:
    tags = pa.DictionaryArray.from_arrays(pa.array([3, None, 0], pa.int32()), ["b", "unused", "zz", "\U0001f600"])
    rows = pa.RecordBatch.from_pydict(
        {"time": pa.array([1, 1, 1], pa.timestamp("ns")), "t0": tags, "f0": pa.array([1, 2, 3])}
    )
    folded = fold(TABLE, [TailBatch(7, rows)])
    assert folded.schema.field("t0").type == TAG_ARROW_TYPE
    assert folded.column("t0").dictionary.to_pylist() == ["b", "\U0001f600"]
    assert folded.column("t0").to_pylist() == [None, "b", "\U0001f600"]
    assert folded.column(OFFSET_COLUMN).to_pylist() == [8, 9, 7]
    assert folded.schema.names == ["time", "t0", "f0", OFFSET_COLUMN]


def test_null_and_doubled_dictionary_values_are_one_key() -> None:
    tags = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None], pa.int32()), pa.array(["a", "a", None]))
    rows = pa.RecordBatch.from_pydict(
        {"time": pa.array([1] * 4, pa.timestamp("ns")), "t0": tags, "f0": pa.array([1, 2, 3, None])}
    )
    folded = fold(TABLE, [TailBatch(0, rows)])
    assert present(folded) == [
        {"time": 1, "f0": 3, OFFSET_COLUMN: 3},
        {"time": 1, "t0": "a", "f0": 2, OFFSET_COLUMN: 1},
    ]


def test_plain_string_tags_and_narrower_types_take_the_tables_types() -> None:
    rows = pa.RecordBatch.from_pydict(
        {"time": pa.array([1], pa.timestamp("ns")), "t0": pa.array(["a"]), "f3": pa.array([1], pa.int32())}
    )
    folded = fold(TABLE, [TailBatch(0, rows)])
    assert folded.schema.field("t0").type == TAG_ARROW_TYPE
    assert folded.schema.field("f3").type == pa.float64()


def test_nothing_folds_to_nothing() -> None:
    folded = fold(TABLE, [])
    assert folded.num_rows == 0
    assert folded.schema.names == ["time", OFFSET_COLUMN]


def test_columns_that_the_table_does_not_know_are_left_out() -> None:
    rows = pa.RecordBatch.from_pydict({"time": pa.array([1], pa.timestamp("ns")), "gone": pa.array([1])})
    assert fold(TABLE, [TailBatch(0, rows)]).schema.names == ["time", OFFSET_COLUMN]


def test_other_reserved_columns_are_refused() -> None:
    rows = pa.RecordBatch.from_pydict({"time": pa.array([1], pa.timestamp("ns")), "_runnel_order": pa.array([1])})
    with pytest.raises(UnsupportedFormat, match="_runnel_order"):
        fold(TABLE, [TailBatch(0, rows)])


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(-(2**62), 2**62)), max_size=50))
def test_keys_sort_as_lexsort_does(rows: list[tuple[int, int]]) -> None:
    _, series, counts = np.unique([s for s, _ in rows], return_inverse=True, return_counts=True)
    times = np.array([t for _, t in rows], dtype=np.int64)
    assert sort_keys(series, counts, times).order.tolist() == np.lexsort((times, series)).tolist()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20), st.randoms())
def test_of_equal_keys_the_last_to_come_wins(rows: list[tuple[int, int]], random: Any) -> None:
    _, series, counts = np.unique([s for s, _ in rows], return_inverse=True, return_counts=True)
    times = np.array([t for _, t in rows], dtype=np.int64)
    arrival = list(range(len(rows)))
    random.shuffle(arrival)
    found = sort_keys(series, counts, times, np.array(arrival, dtype=np.int64))
    newest = {(series[row], times[row]): row for row in arrival}
    assert found.winners.tolist() == [newest[key] for key in sorted(newest)]
    assert found.times.tolist() == [time for _, time in sorted(newest)]
    assert np.repeat(np.arange(len(counts)), found.series_rows).tolist() == [number for number, _ in sorted(newest)]


def test_many_series_sort_too() -> None:
    series = np.random.default_rng(1).permutation(200_000)
    found = sort_keys(series, np.ones(200_000, dtype=np.int64), np.zeros(200_000, dtype=np.int64))
    assert (series[found.order] == np.arange(200_000)).all()


@given(st.lists(st.lists(st.integers(0, 9), min_size=30, max_size=30), max_size=20))
def test_series_are_numbered_as_the_tags_sort_when_cardinalities_overflow(rows: list[list[int]]) -> None:
    ranks = [np.array([row[i] for row in rows], dtype=np.int32) for i in range(30)]
    series = number_series([(rank, 10**6) for rank in ranks], len(rows))
    distinct = sorted({tuple(row) for row in rows})
    assert series.codes.tolist() == [distinct.index(tuple(row)) for row in rows]
    assert series.counts.tolist() == [rows.count(list(row)) for row in distinct]
    assert [rank.tolist() for rank in series.ranks] == [[row[i] for row in distinct] for i in range(30)]


def test_a_large_dictionary_of_which_little_is_used_is_cut_down() -> None:
    values = pa.array([f"v{i:05}" for i in range(5_000)])
    tags = pa.DictionaryArray.from_arrays(pa.array([4_000, None, 7, 4_000], pa.int32()), values)
    rows = pa.RecordBatch.from_pydict({"time": pa.array([1, 1, 1, 2], pa.timestamp("ns")), "t0": tags})
    folded = fold(TABLE, [TailBatch(0, rows)])
    assert folded.column("t0").dictionary.to_pylist() == ["v00007", "v04000"]
    assert folded.column("t0").to_pylist() == [None, "v00007", "v04000", "v04000"]


def test_two_hundred_thousand_rows_take_milliseconds() -> None:
    table = make_table(10, (TypeKind.INT64,) * 10)
    hosts = np.arange(200_000) % 100
    columns: dict[str, pa.Array] = {"time": pa.array(np.arange(200_000) // 100 * 10**10, pa.timestamp("ns"))}
    for i in range(10):
        values = pa.array([f"v{j}" for j in range(100)])
        columns[f"t{i}"] = pa.DictionaryArray.from_arrays(pa.array((hosts // (i + 1)).astype(np.int32)), values)
        columns[f"f{i}"] = pa.array(hosts)
    tail = [TailBatch(0, pa.RecordBatch.from_pydict(columns))]
    spent = []
    for _ in range(3):
        start = time.process_time()
        assert fold(table, tail).num_rows == 200_000
        spent.append(time.process_time() - start)
    assert min(spent) < 0.25  # 22 ms on an idle core; the bound only catches a change of order
