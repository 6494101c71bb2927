"""DataFiles: what is in them, how it is encoded, and that a name whose create is unclear is given up (LOG L20)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.datafile import (
    BATCH_ROWS,
    BLOOM_VALUES_MAX,
    CREATE_TRIES_MAX,
    OWN_FIELD_IDS,
    PAGE_BYTES,
    ROW_GROUP_ROWS,
    SERIES_ROWS_MIN,
    STRING_BATCH_ROWS,
    batch_rows,
    encode_parquet,
    is_whole,
)
from storage.errors import StoreFull, StoreUnavailable
from storage.fold import fold
from storage.keys import canonical_key, key_hash
from storage.schema import (
    KEY_COLUMN,
    OFFSET_COLUMN,
    OP_CODES,
    OP_COLUMN,
    OP_TYPE,
    SERIES_COLUMN,
    DataFile,
    Op,
    TailBatch,
)
from storage.store import epoch_of
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.harness.tables import make_rows, make_table, write_file

if TYPE_CHECKING:
    from pathlib import Path

TABLE = make_table(table_id=7)


def written(tail: list[TailBatch]) -> tuple[DataFile, pa.Table, MemoryStore]:
    store = MemoryStore()
    file = write_file(store, TABLE, 3, 5, 1, tail)
    return file, pq.read_table(pa.BufferReader(store.get(file.path))), store


Batches = list[list[tuple[int, str | None]]]
TAILS = st.lists(
    st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([None, "", "a", "b"])), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)


@given(TAILS, st.integers(0, 50))
@settings(deadline=None, max_examples=60)
def test_a_file_is_the_fold_of_its_rows_and_says_its_ranges(
    batches: list[list[tuple[int, str | None]]], base: int
) -> None:
    tail, following = [], base
    for batch in batches:
        times, hosts = [t for t, _ in batch], [h for _, h in batch]
        tail.append(TailBatch(following, make_rows(times, hosts, following)))
        following += len(batch)
    file, found, store = written(tail)
    expected = fold(TABLE, tail)
    plain = {n: c.dictionary_decode() if isinstance(c, pa.DictionaryArray) else c for n, c in zip(
        expected.schema.names, expected.columns, strict=True)}  # fmt: skip
    assert found.to_pydict() == pa.table(plain).to_pydict()
    keys = [(row["time"], row.get("host")) for row in found.to_pylist()]
    assert len(set(keys)) == len(keys) == file.rows  # each primary key once
    assert (file.offset_low, file.offset_high) == (file.order_low, file.order_high) == (base, following - 1)
    times = [t for batch in batches for t, _ in batch]
    assert (file.time_low, file.time_high) == (min(times), max(times))
    assert file.bytes == len(store.get(file.path))
    assert (file.table_id, file.partition, file.schema_version, epoch_of(file.path)) == (7, 1, TABLE.version, 5)
    assert file.path.startswith("data/3/1/7/5-")


def test_f19_columns_have_field_ids_and_those_without_a_value_are_left_out() -> None:
    _, found, _ = written([TailBatch(0, make_rows([1, 2], [None, None]))])
    ids = {field.name: int(field.metadata[b"PARQUET:field_id"]) for field in found.schema}
    assert ids == {c.storage_name: c.id for c in TABLE.columns if c.name not in ("host", "région")} | {
        OFFSET_COLUMN: OWN_FIELD_IDS[OFFSET_COLUMN]
    }


def test_encodings_and_row_groups() -> None:
    count = ROW_GROUP_ROWS + 10
    rows = make_rows(range(count), [f"h{n % 3}" for n in range(count)])
    _, _, store = written([TailBatch(0, rows)])
    (path,) = store.objects
    metadata = pq.read_metadata(pa.BufferReader(store.get(path)))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [ROW_GROUP_ROWS, 10]
    group = metadata.row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    for name in ("time", "i", "u", OFFSET_COLUMN):
        assert "DELTA_BINARY_PACKED" in encodings[name]
    assert "BYTE_STREAM_SPLIT" in encodings["f"]
    for name in ("host", "s"):
        assert "RLE_DICTIONARY" in encodings[name]
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}
    assert group.column(0).has_offset_index
    assert metadata.metadata is None or b"ARROW:schema" not in metadata.metadata


@pytest.mark.parametrize(
    ("hosts", "rows_of_a_series", "kind"),
    [(["a"], SERIES_ROWS_MIN, "parquet-keys-whole"), (["a", "b"], SERIES_ROWS_MIN - 1, "parquet-whole")],
)
def test_f22_a_file_has_keys_where_series_have_enough_rows(
    hosts: list[str | None], rows_of_a_series: int, kind: str
) -> None:
    times = range(rows_of_a_series)
    rows = [make_rows(times, [host] * rows_of_a_series, 1) for host in hosts]
    whole = [batch.set_column(3, "i", pa.array(times, pa.int64())) for batch in rows]
    file, found, _ = written([TailBatch(n * rows_of_a_series, batch) for n, batch in enumerate(whole)])
    assert file.kind == kind
    assert file.has_keys == (KEY_COLUMN in found.column_names)
    if file.has_keys:
        assert set(found.column(KEY_COLUMN).to_pylist()) == {canonical_key([(2, "a")])}
        assert set(found.column(SERIES_COLUMN).to_pylist()) == {key_hash(canonical_key([(2, "a")]))}
        ids = {field.name: int(field.metadata[b"PARQUET:field_id"]) for field in found.schema}
        assert {name: ids[name] for name in OWN_FIELD_IDS if name in ids} == {
            OFFSET_COLUMN: 2**31 - 1, SERIES_COLUMN: 2**31 - 5, KEY_COLUMN: 2**31 - 6,
        }  # fmt: skip


OPS_AND_FIELDS = st.lists(
    st.tuples(st.sampled_from([None, *OP_CODES.values()]), st.none() | st.integers(0, 1), st.none() | st.text()),
    max_size=4,
)


@given(OPS_AND_FIELDS, st.sampled_from([Op.PATCH, Op.PUT]), st.booleans())
def test_f11_rows_are_whole_if_each_is_a_put_a_delete_or_has_every_field(
    rows: list[tuple[int | None, int | None, str | None]], default_op: Op, has_ops: bool
) -> None:
    columns = [column for column in TABLE.columns if column.name in ("time", "i", "s")]
    table = dataclasses.replace(TABLE, columns=tuple(columns), default_op=default_op)
    arrays: dict[str, pa.Array] = {"time": pa.array(range(len(rows)), pa.timestamp("ns"))}
    arrays["i"] = pa.array([i for _, i, _ in rows], pa.int64())
    arrays["s"] = pa.array([s for _, _, s in rows], pa.string())
    if has_ops:
        arrays[OP_COLUMN] = pa.array([op for op, _, _ in rows], OP_TYPE)
    ops = [default_op.code if op is None or not has_ops else op for op, _, _ in rows]
    expected = all(op != Op.PATCH.code or None not in row[1:] for op, row in zip(ops, rows, strict=True))
    assert is_whole(table, pa.RecordBatch.from_pydict(arrays)) == expected
    if rows and not has_ops and default_op is Op.PATCH:
        del arrays["s"]
        assert not is_whole(table, pa.RecordBatch.from_pydict(arrays)), "a field that the rows do not have at all"


def test_the_same_rows_are_the_same_bytes() -> None:
    rows = fold(TABLE, [TailBatch(0, make_rows([3, 1], ["b", "a"]))])
    assert encode_parquet(TABLE, rows).equals(encode_parquet(TABLE, rows))


@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.LOST_REQUEST, Fault.LATE, Fault.TORN, Fault.CONFLICT])
def test_l20_a_name_whose_create_is_unclear_is_given_up(fault: Fault) -> None:
    """What may be torn or land later is never named; the sweep finds it."""
    inner = MemoryStore()
    store = FaultStore(inner)
    store.arm(fault, times=CREATE_TRIES_MAX - 1)
    file = write_file(store, TABLE, 3, 5, 1, [TailBatch(0, make_rows([1], ["a"]))])
    store.land_late()
    assert store.calls["create"] == CREATE_TRIES_MAX
    assert len(inner.get(file.path)) == file.bytes
    others = set(inner.objects) - {file.path}
    assert len(others) == (0 if fault in (Fault.LOST_REQUEST, Fault.CONFLICT) else CREATE_TRIES_MAX - 1)
    assert all(epoch_of(path) == 5 for path in others)


def test_a_store_that_never_answers_clearly_is_unavailable_and_a_full_one_is_full() -> None:
    tail = [TailBatch(0, make_rows([1], ["a"]))]
    store = FaultStore(MemoryStore())
    store.arm(Fault.LOST_ANSWER, times=CREATE_TRIES_MAX)
    with pytest.raises(StoreUnavailable, match=f"{CREATE_TRIES_MAX} times"):
        write_file(store, TABLE, 3, 5, 1, tail)
    store.arm(Fault.FULL)
    with pytest.raises(StoreFull):
        write_file(store, TABLE, 3, 5, 1, tail)


def test_rows_with_long_strings_are_encoded_few_at_a_time() -> None:
    """A page ends with what is encoded at once, and who reads it holds all of it."""
    short = pa.RecordBatch.from_pydict({"i": [1] * 5_000})
    assert batch_rows(short) == BATCH_ROWS
    texts = pa.array(["x"] * 3_000 + ["y" * 2**16] * 1_000 + [None] * 1_000)
    mixed = short.append_column("s", texts)
    assert batch_rows(mixed.slice(0, 2_900)) == STRING_BATCH_ROWS
    assert PAGE_BYTES // 2**16 <= batch_rows(mixed) <= 2 * PAGE_BYTES // 2**16
    assert batch_rows(pa.Table.from_batches([mixed.slice(0, 10), mixed.slice(10)])) == batch_rows(mixed.slice(10))
    assert batch_rows(mixed.slice(0, 0)) == STRING_BATCH_ROWS
    assert batch_rows(pa.RecordBatch.from_pydict({"s": ["x" * 2**19] * 9})) == 2


def bloom_bytes(data: pa.Buffer) -> list[dict[str, int]]:
    """For each row group the bytes of the Bloom filter of each column that has one."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
    return [{c.path_in_schema: c.bloom_filter_length for c in row if c.bloom_filter_offset} for row in columns]


def with_regions(count: int, values: int, hosts: int = 1000) -> pa.RecordBatch:
    """Rows of which the first tag, and the second one, have so many values."""
    rows = make_rows(range(count), [f"h{n % hosts:06}" for n in range(count)])
    regions = pa.array([f"r{(n * 7919) % values:06}" for n in range(count)]).dictionary_encode()
    return rows.append_column("r_gion_3", regions)


def test_tags_with_many_values_have_bloom_filters_and_the_first_one_none() -> None:
    """Rows are sorted by the first tag, so its statistics say as much; of a few values each row group has all."""
    assert bloom_bytes(encode_parquet(TABLE, fold(TABLE, [TailBatch(0, with_regions(2000, 63))]))) == [{}]
    (found,) = bloom_bytes(encode_parquet(TABLE, fold(TABLE, [TailBatch(0, with_regions(2000, 1000))])))
    assert found.keys() == {"r_gion_3"}
    assert found["r_gion_3"] < 2.1 * 1000


def test_a_bloom_filter_is_bounded() -> None:
    rows = fold(TABLE, [TailBatch(0, with_regions(ROW_GROUP_ROWS, ROW_GROUP_ROWS))])
    (found,) = bloom_bytes(encode_parquet(TABLE, rows))
    assert BLOOM_VALUES_MAX <= found["r_gion_3"] <= BLOOM_VALUES_MAX + 64


def test_a_bloom_filter_never_denies_a_value_that_is_there(tmp_path: Path) -> None:
    """As a reader says that nobody here wrote."""
    import duckdb

    path = tmp_path / "file.parquet"
    path.write_bytes(encode_parquet(TABLE, fold(TABLE, [TailBatch(0, with_regions(3000, 500))])))

    def denied(value: str) -> bool:
        probe = f"SELECT bloom_filter_excludes FROM parquet_bloom_probe('{path}', 'r_gion_3', '{value}')"
        ((excludes,),) = duckdb.execute(probe).fetchall()
        return bool(excludes)

    assert not any(denied(f"r{n:06}") for n in range(0, 500, 25))
    assert sum(denied(f"r{n:06}") for n in range(600, 700)) > 80
