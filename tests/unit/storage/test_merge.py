"""Merging files: what comes out is the fold of what went in, in sorted files (LOG L25, F11, F19)."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import CorruptObject, ObjectMissing, StoreFull
from storage.fold import fold
from storage.keys import canonical_key, key_hash
from storage.merge import MergeJob, change_of, merge_files, names_wanted, roundest, without_deletes
from storage.schema import (
    KEY_COLUMN,
    OFFSET_COLUMN,
    OP_CODES,
    OP_COLUMN,
    OP_TYPE,
    SERIES_COLUMN,
    Column,
    DataFile,
    Op,
    Role,
    Table,
    TailBatch,
    TypeKind,
)
from storage.store import data_path
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.harness.tables import make_rows, make_table, write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from storage.objects import ObjectStore

TABLE = make_table(table_id=7)
LARGE = 2**40


def names(table: Table, count: int) -> tuple[str, ...]:
    return tuple(data_path(3, table.database_id, table.id, 9) for _ in range(count))


def merged(
    store: ObjectStore, files: Sequence[DataFile], folder: Path, table: Table = TABLE, target_bytes: int = LARGE
) -> list[DataFile]:
    job = MergeJob(table, tuple(files), names(table, names_wanted(files, target_bytes)))
    return merge_files(store, job, folder, target_bytes=target_bytes, read_bytes=4_096)


def content(store: ObjectStore, file: DataFile) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.get(file.path)))


def plain(rows: pa.RecordBatch) -> pa.Table:
    columns = [c.dictionary_decode() if isinstance(c, pa.DictionaryArray) else c for c in rows.columns]
    return pa.table(columns, rows.schema.names)


Layer = list[tuple[int, str | None]]
LAYERS = st.lists(
    st.lists(st.tuples(st.integers(-9, 9), st.sampled_from([None, "", "a", "b", "ü"])), min_size=1, max_size=30),
    min_size=2,
    max_size=6,
)


def write_layers(store: ObjectStore, layers: Sequence[Layer]) -> tuple[list[DataFile], list[TailBatch]]:
    files, tail, following = [], [], 0
    for layer in layers:
        batch = TailBatch(following, make_rows([t for t, _ in layer], [h for _, h in layer], following))
        files.append(write_file(store, TABLE, 3, 5, 1, [batch]))
        tail.append(batch)
        following += len(layer)
    return files, tail


@given(layers=LAYERS, target_bytes=st.sampled_from([LARGE, 6_000, 1_500]), batch_rows=st.sampled_from([1, 2, 7]))
@settings(deadline=None, max_examples=80)
def test_l25_a_merge_is_the_fold_of_its_layers(
    tmp_path_factory: pytest.TempPathFactory, layers: list[Layer], target_bytes: int, batch_rows: int
) -> None:
    store = MemoryStore()
    files, tail = write_layers(store, layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.merge.BATCH_ROWS_MAX", batch_rows)
        patch.setattr("storage.merge.BATCH_ROWS_MIN", batch_rows)
        patch.setattr("storage.merge.SERIES_ROWS_MIN", 2)
        patch.setattr("storage.merge.ROW_GROUP_ROWS", 5)
        made = merged(store, files, tmp_path_factory.getbasetemp(), target_bytes=target_bytes)
    expected = plain(fold(TABLE, tail))
    parts = [content(store, file) for file in made]
    found = pa.concat_tables(parts, promote_options="default").select(expected.column_names)
    assert sorted(found.to_pylist(), key=str) == sorted(expected.to_pylist(), key=str)
    for file, part in zip(made, parts, strict=True):
        rows = part.to_pylist()
        keys = [(r.get("host") is not None, (r.get("host") or "").encode(), r["time"]) for r in rows]
        assert keys == sorted(set(keys)), "sorted by key, and each key once"
        times = part.column("time").cast(pa.int64()).to_pylist()
        assert (file.time_low, file.time_high) == (min(times), max(times))
        assert (file.order_low, file.order_high) == (0, files[-1].order_high) == (file.offset_low, file.offset_high)
        assert (file.rows, file.bytes) == (len(rows), len(store.get(file.path)))
        assert all(part.column(name).null_count < len(rows) for name in part.column_names), "F19"
        assert file.is_whole == all(row.get("i") is not None for row in rows)
        if file.has_keys:
            assert [row[KEY_COLUMN] for row in rows] == [canonical_key([(2, row.get("host"))]) for row in rows]
            hashes = [key_hash(row[KEY_COLUMN]) for row in rows]
            assert [row[SERIES_COLUMN] % 2**64 for row in rows] == hashes
    ordered = sorted(made, key=lambda f: f.time_low)
    assert all(a.time_high < b.time_low for a, b in itertools.pairwise(ordered))


@given(
    layers=st.lists(
        st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from([None, "", "a", "b"]), st.sampled_from([None, "", "x", "y"])),
            min_size=1,
            max_size=40,
        ),
        min_size=2,
        max_size=5,
    ),
    batch_rows=st.sampled_from([2, 5, 16]),
)
@settings(deadline=None, max_examples=60)
def test_l25_keys_of_several_tags_are_cut_where_they_sort(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[int, str | None, str | None]]], batch_rows: int
) -> None:
    store, files, tail, following = MemoryStore(), [], [], 0
    for layer in layers:
        rows = make_rows([t for t, _, _ in layer], [h for _, h, _ in layer], following)
        regions = pa.array([r for _, _, r in layer], pa.string()).dictionary_encode()
        batch = TailBatch(following, rows.append_column("r_gion_3", regions))
        files.append(write_file(store, TABLE, 3, 5, 1, [batch]))
        tail.append(batch)
        following += len(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.merge.BATCH_ROWS_MAX", batch_rows)
        patch.setattr("storage.merge.BATCH_ROWS_MIN", batch_rows)
        (made,) = merged(store, files, tmp_path_factory.getbasetemp())
    expected = plain(fold(TABLE, tail))
    assert content(store, made).select(expected.column_names).to_pylist() == expected.to_pylist()


def test_l25_merging_in_any_contiguous_grouping_is_the_same(tmp_path: Path) -> None:
    store = MemoryStore()
    layers: list[Layer] = [[(t, h) for t in range(n, n + 3)] for n, h in enumerate(["a", "b", "a", None, "a", "b"])]
    files, tail = write_layers(store, layers)
    expected = plain(fold(TABLE, tail)).to_pylist()
    for cut in range(2, 5):
        older, newer = merged(store, files[:cut], tmp_path), merged(store, files[cut:], tmp_path)
        (last,) = merged(store, [*newer, *older], tmp_path)
        assert content(store, last).select(list(expected[0])).to_pylist() == expected


def test_f19_a_table_that_has_grown(tmp_path: Path) -> None:
    """New tags sort last and are NULL before; a type has widened; a column that the table lost is left out."""
    store = MemoryStore()
    files, _ = write_layers(store, [[(1, "a"), (2, "a")], [(2, "a")], [(1, "b")]])
    columns = [c for c in TABLE.columns if c.name != "b"]
    columns = [dataclasses.replace(c, kind=TypeKind.FLOAT64) if c.name == "i" else c for c in columns]
    columns.append(Column(9, "rack", "rack", Role.TAG, TypeKind.STRING))
    grown = dataclasses.replace(TABLE, columns=tuple(columns), version=2)
    rows = make_rows([2, 2], ["a", "a"], 4).drop_columns(["b", "i"])
    tagged = rows.append_column("rack", pa.array(["r", None]).dictionary_encode())
    files.append(write_file(store, grown, 3, 5, 1, [TailBatch(4, tagged)]))
    (file,) = merged(store, files, tmp_path, grown)
    found = content(store, file)
    assert file.schema_version == 2
    assert set(found.column_names) == {"time", "host", "rack", "f", "i", "u", "s", OFFSET_COLUMN}
    assert found.schema.field("i").type == pa.float64()
    keys = found.select(["host", "rack", OFFSET_COLUMN]).to_pylist()
    assert [tuple(row.values()) for row in keys] == [("a", None, 0), ("a", None, 5), ("a", "r", 4), ("b", None, 3)]


def test_l20_a_create_whose_outcome_is_unclear_takes_the_next_name(tmp_path: Path) -> None:
    store = FaultStore(MemoryStore())
    files, _ = write_layers(store, [[(1, "a")], [(1, "a")]])
    store.arm(Fault.LOST_ANSWER, match="data/3/1/7/9-*")
    job = MergeJob(TABLE, tuple(files), names(TABLE, 3))
    (file,) = merge_files(store, job, tmp_path)
    assert file.path == job.names[1]


@pytest.mark.parametrize(
    ("low", "high", "cut"), [(5, 9, 8), (8, 15, 8), (9, 15, 12), (7, 7, 7), (-9, -5, -8), (-3, 4, 0), (1, 2**40, 2**40)]
)
def test_cuts_are_round(low: int, high: int, cut: int) -> None:
    assert roundest(low, high) == cut


def test_l25_merges_of_the_same_times_are_cut_at_the_same_places(tmp_path: Path) -> None:
    """So that what lies between two cuts can be merged again without the rest."""
    store = MemoryStore()
    chooser = random.Random(7)
    groups = []
    for number in range(3):
        times = sorted(chooser.randrange(2**40) for _ in range(4_000))
        files, _ = write_layers(store, [[(t, "a") for t in times[at::4]] for at in range(4)])
        made = merged(store, files, tmp_path, target_bytes=sum(f.bytes for f in files) // 4)
        groups.append(sorted(made, key=lambda f: f.time_low))
        assert len(made) == 4, number
    for pieces in zip(*groups, strict=True):
        hull = min(f.time_low for f in pieces), max(f.time_high for f in pieces)
        others = [f for group in groups for f in group if f not in pieces]
        assert not any(f.time_low <= hull[1] and f.time_high >= hull[0] for f in others)


def test_long_strings_take_no_more_memory_than_others(tmp_path: Path) -> None:
    """Rows are decoded by what they hold: 64 MB here, four times of which were in memory at once."""
    store, files, count, length = MemoryStore(), [], 256, 2**15
    for number in range(8):
        rows = make_rows(range(number, 8 * count, 8), ["a"] * count, count * number)
        texts = pa.array([f"{n}".ljust(length, "x") for n in range(count)])
        rows = rows.set_column(rows.schema.names.index("s"), "s", texts)
        files.append(write_file(store, TABLE, 3, 5, 1, [TailBatch(count * number, rows)]))
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        job = MergeJob(TABLE, tuple(files), names(TABLE, 9))
        (file,) = merge_files(store, job, tmp_path, read_bytes=4 * 2**20)
    finally:
        pa.set_memory_pool(before)
    assert file.rows == 8 * count
    assert pool.max_memory() < 2 * 8 * count * length


class CountingStore(MemoryStore):
    """Remembers how much was fetched at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[int] = []

    def get_range(self, path: str, start: int, length: int) -> bytes:
        self.fetched.append(length)
        return super().get_range(path, start, length)


def test_large_row_groups_of_an_object_store_are_fetched_once_and_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, those of all files together would be as large as the merge itself."""
    monkeypatch.setattr("storage.merge.WHOLE_BYTES_MAX", 0)
    monkeypatch.setattr("storage.merge.GROUP_BYTES_MAX", 2**20)
    monkeypatch.setattr("storage.merge.STREAM_BYTES", 2**16)
    monkeypatch.setattr("storage.datafile.PAGE_BYTES", 2**16)
    store, chooser = CountingStore(), random.Random(7)
    files = []
    for number in range(2):
        rows = make_rows(range(200), ["a"] * 200, 200 * number)
        texts = pa.array([chooser.randbytes(10_000).hex() for _ in range(200)])
        rows = rows.set_column(rows.schema.names.index("s"), "s", texts)
        files.append(write_file(store, TABLE, 3, 5, 1, [TailBatch(200 * number, rows)]))
    assert all(file.bytes > 3 * 2**19 for file in files)
    merged(store, files, tmp_path)
    assert sum(store.fetched) < 1.75 * sum(file.bytes for file in files)
    assert max(store.fetched) < 2**20, "a dictionary is fetched whole"
    monkeypatch.setattr("storage.merge.GROUP_BYTES_MAX", LARGE)
    store.fetched = []
    merged(store, files, tmp_path)
    assert max(store.fetched) > 3 * 2**19, "small ones with few requests"


def test_merged_files_have_bloom_filters_of_their_tags_of_many_values(tmp_path: Path) -> None:
    store, files = MemoryStore(), []
    for first in range(0, 3000, 1000):
        rows = make_rows(range(first, first + 1000), [f"h{n % 10}" for n in range(1000)], first)
        regions = pa.array([f"r{n}" for n in range(1000)]).dictionary_encode()
        tail = [TailBatch(first, rows.append_column("r_gion_3", regions))]
        files.append(write_file(store, TABLE, 3, 5, 1, tail))
    (made,) = merge_files(store, MergeJob(TABLE, tuple(files), names(TABLE, 6)), tmp_path)
    group = pq.read_metadata(pa.BufferReader(store.get(made.path))).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["r_gion_3"].bloom_filter_length > 500
    assert columns["host"].bloom_filter_offset is None


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    store = MemoryStore()
    files, _ = write_layers(store, [[(1, "a")], [(1, "a")]])
    whole = store.get(files[1].path)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    damages = [whole[:at] + bytes(40) + whole[at + 40 :] for at in (4, footer)]
    for damaged in (b"PAR1 this is no Parquet PAR1", *damages):
        store.objects[files[1].path] = damaged
        with pytest.raises(CorruptObject, match=files[1].path):
            merged(store, files, tmp_path)
    store.delete(files[1].path)
    with pytest.raises(ObjectMissing):
        merged(store, files, tmp_path)
    full = FaultStore(MemoryStore())
    files, _ = write_layers(full, [[(1, "a")], [(1, "a")]])
    full.arm(Fault.FULL, match="data/3/1/7/9-*")
    with pytest.raises(StoreFull):
        merged(full, files, tmp_path)
    assert list(tmp_path.iterdir()) == []


OPS = st.lists(
    st.lists(
        st.tuples(st.integers(-2, 2), st.sampled_from([None, "a"]), st.sampled_from([None, *OP_CODES.values()])),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=5,
)


def with_ops(rows: pa.RecordBatch, ops: list[int | None]) -> pa.RecordBatch:
    """``rows`` with their ops; a delete has no fields."""
    deletes = pa.array([op == Op.DELETE.code for op in ops])
    arrays = {
        name: array if TABLE.by_storage_name[name].role is not Role.FIELD else pc.if_else(deletes, None, array)
        for name, array in zip(rows.schema.names, rows.columns, strict=True)
    }
    return pa.RecordBatch.from_pydict({**arrays, OP_COLUMN: pa.array(ops, OP_TYPE)})


@given(layers=OPS, is_oldest=st.booleans(), cut=st.integers(0, 5))
@settings(deadline=None, max_examples=100)
def test_l25_deletes_and_puts_are_merged_in_any_grouping_and_end_with_the_oldest_layer(
    tmp_path_factory: pytest.TempPathFactory,
    layers: list[list[tuple[int, str | None, int | None]]],
    is_oldest: bool,
    cut: int,
) -> None:
    store, folder = MemoryStore(), tmp_path_factory.getbasetemp()
    tail, following = [], 0
    for layer in layers:
        rows = make_rows([t for t, _, _ in layer], [h for _, h, _ in layer], following)
        tail.append(TailBatch(following, with_ops(rows, [op for _, _, op in layer])))
        following += len(layer)
    files = [write_file(store, TABLE, 3, 5, 1, [batch]) for batch in tail]
    groups = [group for group in (files[:cut], files[cut:]) if group]
    files = [file for group in groups for file in merged(store, group, folder)]
    job = MergeJob(TABLE, tuple(files), names(TABLE, names_wanted(files)), is_oldest)
    made = merge_files(store, job, folder, read_bytes=4_096)
    folded = fold(TABLE, tail)
    expected = plain(without_deletes(folded) if is_oldest else folded)
    assert all(file.has_ops == (OP_COLUMN in expected.column_names) for file in made)
    found = [row for file in made for row in content(store, file).to_pylist()]
    assert present(found) == present(expected.to_pylist())
    assert change_of(job, made).changes_from == (following if is_oldest and any(file.has_ops for file in files) else 0)


def present(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """In the order of their keys, without what is NULL or the table's default op."""
    ordered = sorted(rows, key=lambda r: (r.get("host") is not None, str(r.get("host")), r["time"]))
    return [{k: v for k, v in row.items() if v is not None and (k, v) != (OP_COLUMN, 0)} for row in ordered]
