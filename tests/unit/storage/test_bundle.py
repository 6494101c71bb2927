"""Bundles: many tiny partitions in one Parquet object, read slice by slice (FORMAT F11, F18, F19, LOG L20, L24)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any
from unittest import mock

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import bundle
from storage.bundle import SLICE_ROWS_MAX, small_tail, sorted_out, write_tails
from storage.bundlereader import read_slices, slice_as_file
from storage.deletes import RangeDelete
from storage.errors import CorruptObject, ObjectMissing
from storage.schema import (
    BUNDLE,
    BUNDLE_OPS,
    NO_ROWS,
    OP_COLUMN,
    OP_TYPE,
    Column,
    Op,
    Role,
    Table,
    TailBatch,
    TypeKind,
)
from storage.slices import COLUMNS_MAX, FOLD_CELLS_MAX, Bin, Slice, binned
from storage.store import bundles_folder, epoch_of
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.harness.tables import make_rows, make_table, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from storage.bundle import SmallTail
    from storage.objects import ObjectStore
    from storage.schema import DataFile


def tail(table: Table, *batches: TailBatch, partition: int = 1) -> SmallTail:
    found = small_tail(table, partition, batches)
    assert found is not None
    return found


def some(count: int, rows: int = 1) -> list[SmallTail]:
    """Tables 1, 2, ..., each with rows of its own."""
    return [
        tail(make_table(n), TailBatch(0, make_rows(range(rows), ["h"] * rows, 10 * n))) for n in range(1, count + 1)
    ]


def content(store: ObjectStore, file: DataFile) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(slice_as_file(store, file))).to_pylist()
    return rows


def table_of(table_id: int, tags: Sequence[str], fields: Mapping[str, TypeKind]) -> Table:
    columns = [Column(1, "time", "time", Role.TIME, TypeKind.TIMESTAMP)]
    columns += [Column(2 + i, tag, tag, Role.TAG, TypeKind.STRING) for i, tag in enumerate(tags)]
    columns += [Column(50 + i, name, name, Role.FIELD, kind) for i, (name, kind) in enumerate(fields.items())]
    return dataclasses.replace(make_table(table_id), columns=tuple(columns))


def rows_of(table: Table, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    names = [column for column in table.columns if any(column.name in row for row in rows)]
    arrays = [
        pa.array([row.get(c.name) for row in rows], c.plain_type).cast(c.arrow_type)
        if c.role is not Role.TAG
        else pa.array([row.get(c.name) for row in rows], pa.string()).dictionary_encode()
        for c in names
    ]
    return pa.RecordBatch.from_arrays(arrays, [c.storage_name for c in names])


def test_f18_many_tables_are_one_object_and_an_entry_each() -> None:
    store = MemoryStore()
    files = write_tails(store, 3, 7, some(40, rows=2))
    (path,) = store.objects
    assert path.startswith(f"{bundles_folder(3)}/")
    assert epoch_of(path) == 7, "L20: its writer's epoch is in its name"
    assert [(f.path, f.table_id, f.partition, f.rows, f.kind) for f in files] == [
        (path, n, 1, 2, BUNDLE) for n in range(1, 41)
    ]
    assert sum(f.bytes for f in files) == len(store.objects[path]), "together they have all of its bytes"
    assert {(f.order_low, f.order_high, f.offset_low, f.offset_high, f.time_low, f.time_high) for f in files} == {
        (0, 1, 0, 1, 0, 1)
    }
    for number, file in enumerate(files, 1):
        assert [row["f"] for row in content(store, file)] == [number * 2.5, number * 2.5 + 0.25]


def test_a_slice_is_what_a_file_of_its_own_would_be() -> None:
    """Whatever the order of arrival, rewritten points and absent tags: sorted, folded, without empty columns."""
    store = MemoryStore()
    batches = [
        TailBatch(5, make_rows([9, 3, 9], ["b", None, "a"], 0)),
        TailBatch(8, make_rows([3, 9, 1], [None, "b", "a"], 50)),
    ]
    files = write_tails(store, 3, 7, [*some(3), *(tail(make_table(9), *batches, partition=p) for p in (2, 1))])
    alone = write_file(store, make_table(9), 3, 7, 1, batches)
    wanted = pq.read_table(pa.BufferReader(store.get(alone.path))).to_pylist()
    assert [(f.table_id, f.partition) for f in files[-2:]] == [(9, 1), (9, 2)]
    for file in files[-2:]:
        assert content(store, file) == wanted
        as_alone = dataclasses.replace(file, path=alone.path, kind=alone.kind, bytes=alone.bytes, partition=1)
        assert as_alone == alone


def test_tables_of_other_shapes_share_a_bundle() -> None:
    """Tags in another order, a tag here that is a field there, batches with other columns."""
    store = MemoryStore()
    first = table_of(1, ["a", "b"], {"x": TypeKind.FLOAT64})
    second = table_of(2, ["b", "a"], {"x": TypeKind.FLOAT64, "y": TypeKind.INT64})
    third = table_of(3, ["c"], {"a": TypeKind.STRING})
    rows = [{"time": 1, "a": "2", "b": "1", "x": 0.5}, {"time": 1, "a": "1", "b": "2", "x": 1.5}]
    tails = [
        tail(first, TailBatch(0, rows_of(first, rows))),
        tail(second, TailBatch(0, rows_of(second, rows)), TailBatch(2, rows_of(second, [{"time": 1, "y": 7}]))),
        tail(third, TailBatch(0, rows_of(third, [{"time": 4, "c": "z", "a": "f"}]))),
    ]
    one, two, three = write_tails(store, 3, 7, tails)
    assert len(store.objects) == 1
    assert [(row["a"], row["b"]) for row in content(store, one)] == [("1", "2"), ("2", "1")]
    assert [(row["b"], row["a"], row["y"]) for row in content(store, two)] == [
        (None, None, 7), ("1", "2", None), ("2", "1", None),
    ]  # fmt: skip
    (row,) = content(store, three)
    assert (row["c"], row["a"], set(row)) == ("z", "f", {"time", "a", "c", "_runnel_offset"})


@pytest.mark.parametrize("other", [("x", TypeKind.INT64), ("X", TypeKind.FLOAT64)])
def test_columns_that_do_not_agree_go_into_other_bundles(other: tuple[str, TypeKind]) -> None:
    """Also names that differ in case only: DuckDB and many others would take them for one."""
    store = MemoryStore()
    plain = [table_of(n, [], {"x": TypeKind.FLOAT64}) for n in (1, 3)]
    clashing = [table_of(n, [], {other[0]: other[1]}) for n in (2, 4)]
    tails = [tail(t, TailBatch(0, rows_of(t, [{"time": 1, t.fields[0].name: t.id}]))) for t in (*plain, *clashing)]
    files = write_tails(store, 3, 7, tails)
    assert len(store.objects) == 2
    assert {f.path for f in files if f.table_id % 2} != {f.path for f in files if not f.table_id % 2}
    assert [content(store, f)[0][other[0]] for f in files if not f.table_id % 2] == [2, 4]


def test_columns_that_a_table_has_and_a_slice_has_not_must_agree_too() -> None:
    """Else who reads the table finds another one's values under that name, of another type."""
    store = MemoryStore()
    first = table_of(1, [], {"x": TypeKind.FLOAT64, "y": TypeKind.INT64})
    others = [table_of(n, [], {"y": TypeKind.STRING}) for n in (2, 3)]
    tails = [tail(first, TailBatch(0, rows_of(first, [{"time": 1, "x": 1.5}])))]
    tails += [tail(t, TailBatch(0, rows_of(t, [{"time": 1, "y": "text"}]))) for t in others]
    one, *rest = sorted(write_tails(store, 3, 7, tails), key=lambda f: f.table_id)
    assert one.path not in {f.path for f in rest}


def test_one_that_nothing_goes_with_is_a_file_of_its_own() -> None:
    store = MemoryStore()
    tables = [table_of(n, [], {"x": kind}) for n, kind in enumerate([TypeKind.FLOAT64, TypeKind.INT64], 1)]
    tails = [tail(t, TailBatch(0, rows_of(t, [{"time": 1, "x": 1}]))) for t in tables]
    assert [file.kind for file in write_tails(store, 3, 7, tails)] == ["parquet-whole", "parquet-whole"]


def test_what_is_few() -> None:
    table = make_table()
    many = TailBatch(0, make_rows(range(SLICE_ROWS_MAX + 1), ["h"] * (SLICE_ROWS_MAX + 1)))
    assert small_tail(table, 1, [many]) is None
    long = TailBatch(0, rows_of(table, [{"time": 1, "s": "x" * 300_000}]))
    assert small_tail(table, 1, [long]) is None
    wide = table_of(1, [], {f"f{n}": TypeKind.INT64 for n in range(COLUMNS_MAX)})
    assert small_tail(wide, 1, [TailBatch(0, rows_of(wide, [{c.name: 1 for c in wide.columns}]))]) is None
    few = TailBatch(0, make_rows([1], ["h"]))
    tails = {(1, 1): (few,), (2, 1): (many,), (3, 1): (few,)}
    small, large = sorted_out(make_table, tails)
    assert ([t.table.id for t in small], [t.id for t, _, _ in large]) == ([1, 3], [2])
    small, large = sorted_out(make_table, {(1, 1): (few,), (2, 1): (many,)})
    assert ([t.table.id for t in small], [t.id for t, _, _ in large]) == ([], [2, 1]), "one alone is no bundle"


def test_bins_are_bounded() -> None:
    columns = [
        tuple(Column(i, f"c{i}", f"c{i}", Role.FIELD, TypeKind.BOOL) for i in range(n, n + 10)) for n in range(900)
    ]
    bins = binned(Slice((n, 1), columns[n], columns[n], 1) for n in range(900))
    assert sum(len(one.numbers) for one in bins) == 900
    assert len(bins) == 2
    assert all(len(one.kinds) <= COLUMNS_MAX for one in bins)
    same = Bin()
    assert same.takes(0, Slice((1, 1), columns[0], columns[0], 1))
    assert not same.takes(1, Slice((1, 1), columns[0], columns[0], 1)), (
        "in one object a partition has one slice, or they would be one"
    )
    assert not same.takes(1, Slice((2, 1), columns[7], columns[7], FOLD_CELLS_MAX // 17)), (
        "columns of all, in the rows of all"
    )
    assert same.takes(1, Slice((2, 1), columns[7], columns[7], FOLD_CELLS_MAX // 17 - 1))


def test_many_kinds_by_turns_have_a_bin_each() -> None:
    kinds = [
        tuple(
            Column(i, f"c{i}", f"c{i}", Role.FIELD, TypeKind.INT64 if kind >> i & 1 else TypeKind.BOOL)
            for i in range(5)
        )
        for kind in range(32)
    ]
    bins = binned(Slice((n, 1), kinds[n % 32], kinds[n % 32], 1) for n in range(320))
    assert sorted(one.numbers for one in bins) == [list(range(kind, 320, 32)) for kind in range(32)]


def test_rows_of_a_bundle_are_bounded_and_no_slice_is_cut() -> None:
    store = MemoryStore()
    with mock.patch.object(bundle, "ROWS_MAX", 25):
        files = write_tails(store, 3, 7, some(10, rows=10))
    assert len(store.objects) == 5
    assert [len(content(store, file)) for file in files] == [10] * 10


def test_deletes_and_ops_are_heeded() -> None:
    store = MemoryStore()
    ops = make_rows([1, 2], ["a", "b"]).append_column(OP_COLUMN, pa.array([Op.DELETE.code, None], OP_TYPE))
    gone = RangeDelete(0, 5, ())
    tails = [
        *some(2),
        tail(make_table(7), TailBatch(0, ops)),
        tail(make_table(8), TailBatch(0, make_rows([1, 9], ["a", "a"])), TailBatch(2, NO_ROWS, gone)),
        tail(make_table(9), TailBatch(0, make_rows([1], ["a"])), TailBatch(1, NO_ROWS, gone)),
    ]
    files = write_tails(store, 3, 7, tails)
    assert [(f.table_id, f.kind, f.rows) for f in files] == [
        (1, BUNDLE, 1), (2, BUNDLE, 1), (7, BUNDLE_OPS, 2), (8, BUNDLE, 1),
    ]  # fmt: skip
    assert [row[OP_COLUMN] for row in content(store, files[2])] == [2, 0]
    assert [row["time"].value for row in content(store, files[3])] == [9]


def test_duckdb_reads_a_slice_of_a_bundle_as_it_lies(tmp_path: Path) -> None:
    """Promise 5. And what is not asked for is skipped: row groups by their statistics."""
    store = MemoryStore()
    files = write_tails(store, 3, 7, some(300, rows=20))
    (data,) = store.objects.values()
    path = tmp_path / "bundle.parquet"
    path.write_bytes(data)
    found = duckdb.execute("SELECT f FROM read_parquet(?) WHERE _runnel_table = 250 ORDER BY f", [str(path)]).fetchall()
    assert found == [(n / 4,) for n in range(2500, 2520)]
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i).column(0).statistics for i in range(metadata.num_row_groups)]
    assert sum(g.min <= 250 <= g.max for g in groups) == 1 < len(groups)
    assert metadata.schema.names[:3] == ["_runnel_table", "_runnel_partition", "time"]
    assert metadata.schema.names[-1] == "_runnel_offset"
    assert len(files) == 300


def test_a_slice_that_is_not_as_its_entry_says_is_damage() -> None:
    store = MemoryStore()
    file, *_ = write_tails(store, 3, 7, some(5))
    with pytest.raises(CorruptObject, match=file.path):
        read_slices(store, [dataclasses.replace(file, rows=2)])
    with pytest.raises(CorruptObject, match="0 rows of table 77"):
        read_slices(store, [dataclasses.replace(file, table_id=77)])
    whole = store.objects[file.path]
    store.objects[file.path] = whole[: len(whole) // 2]
    with pytest.raises(CorruptObject, match=file.path):
        read_slices(store, [file])
    del store.objects[file.path]
    with pytest.raises(ObjectMissing, match=file.path):
        read_slices(store, [file])


def test_l20_a_name_whose_create_stays_unknown_is_used_up() -> None:
    store = FaultStore(MemoryStore())
    store.arm(Fault.LOST_ANSWER, match="data/*")
    files = write_tails(store, 3, 7, some(3))
    assert len({file.path for file in files}) == 1
    assert content(store, files[1])
