"""DataFiles: what is in them, how it is encoded, and that a name whose create is unclear is given up (LOG L20)."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.datafile import CREATE_TRIES_MAX, OWN_FIELD_IDS, ROW_GROUP_ROWS, encode_parquet, write_datafile
from storage.errors import StoreFull, StoreUnavailable
from storage.fold import fold
from storage.schema import OFFSET_COLUMN, DataFile, TailBatch
from storage.store import epoch_of
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.harness.tables import make_rows, make_table

TABLE = make_table(table_id=7)


def written(tail: list[TailBatch]) -> tuple[DataFile, pa.Table, MemoryStore]:
    store = MemoryStore()
    file = write_datafile(store, TABLE, 3, 5, 1, tail)
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


def test_the_same_rows_are_the_same_bytes() -> None:
    rows = fold(TABLE, [TailBatch(0, make_rows([3, 1], ["b", "a"]))])
    assert encode_parquet(TABLE, rows).equals(encode_parquet(TABLE, rows))


@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.LOST_REQUEST, Fault.LATE, Fault.TORN, Fault.CONFLICT])
def test_l20_a_name_whose_create_is_unclear_is_given_up(fault: Fault) -> None:
    """What may be torn or land later is never named; the sweep finds it."""
    inner = MemoryStore()
    store = FaultStore(inner)
    store.arm(fault, times=CREATE_TRIES_MAX - 1)
    file = write_datafile(store, TABLE, 3, 5, 1, [TailBatch(0, make_rows([1], ["a"]))])
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
        write_datafile(store, TABLE, 3, 5, 1, tail)
    store.arm(Fault.FULL)
    with pytest.raises(StoreFull):
        write_datafile(store, TABLE, 3, 5, 1, tail)
