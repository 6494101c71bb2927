"""Files of format version 1 must stay readable for ever, and be written the same as long as it is written."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.bundle import FIELD_IDS
from storage.catalogstate import CatalogState, apply_effects
from storage.checkpoint import Section, decode_part, decode_sections
from storage.cutoffs import Cutoff
from storage.deletes import PendingDelete, from_record
from storage.entries import decode_record, decode_rows
from storage.fold import fold
from storage.frames import EntryKind, FrameType, LogObject, ObjectKind, decode_object, encode_object
from storage.keys import key_hash
from storage.schema import KEY_COLUMN, SERIES_COLUMN, TailBatch
from storage.shardstate import ShardState
from storage.store import decode_identity
from tests.golden import make
from tests.harness.tables import make_rows

OBJECTS = (
    "open.bin",
    "data.bin",
    "checkpoint.bin",
    "catalog-data.bin",
    "catalog-checkpoint.bin",
    "data-deletes.bin",
    "checkpoint-deletes.bin",
    "data-cutoffs.bin",
    "checkpoint-cutoffs.bin",
    "catalog-kept.bin",
)


def golden(name: str) -> bytes:
    return (make.FOLDER / name).read_bytes()


def decoded(name: str) -> LogObject:
    return decode_object(golden(name), name)


@pytest.mark.parametrize("name", sorted(make.golden_files()))
def test_what_is_written_today_is_what_was_written(name: str) -> None:
    assert make.golden_files()[name] == golden(name)


def test_the_script_refuses_to_overwrite() -> None:
    before = {path.name: path.read_bytes() for path in make.FOLDER.iterdir() if path.is_file()}
    run = subprocess.run([sys.executable, "-m", "tests.golden.make"], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    assert {path.name: path.read_bytes() for path in make.FOLDER.iterdir() if path.is_file()} == before


def test_the_script_says_what_differs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(make, "golden_files", lambda: {"open.bin": b"something else"})
    assert make.main() == 1
    assert "open.bin: is there and differs" in capsys.readouterr().out
    assert golden("open.bin") != b"something else"


@pytest.mark.parametrize("name", [n for n in OBJECTS if n != "data.bin"])
def test_decoded_and_encoded_again_byte_for_byte(name: str) -> None:
    obj = decoded(name)
    assert b"".join(encode_object(obj.header, obj.entries)) == golden(name)


def test_a_data_object_byte_for_byte_with_its_codecs_and_its_unknown_entry() -> None:
    """Decoding takes the codec off and skips what it does not know; both are put back for this comparison (F6)."""
    obj = decoded("data.bin")
    unknown = obj.entries[-1]
    assert (unknown.kind, unknown.frames) == (make.UNKNOWN_KIND, ())
    squeezed = obj.entries[1]
    codecs = make.data_entries()[1].frames[0].codec
    again = dataclasses.replace(squeezed, frames=(dataclasses.replace(squeezed.frames[0], codec=codecs),))
    entries = (obj.entries[0], again, *obj.entries[2:-1], make.data_entries()[-1])
    assert b"".join(encode_object(obj.header, entries)) == golden("data.bin")


def test_header() -> None:
    header = decoded("open.bin").header
    assert header == make.header(ObjectKind.OPEN, 1)
    assert (header.store_id, header.log_id, header.epoch) == (make.STORE_ID.bytes, 3, 1)


def test_rows_in_both_forms() -> None:
    small, many = decoded("data.bin").entries[:2]
    rows = make_rows([1_700_000_000_000_000_000, 5, -7], ["a", None, "b"])
    assert decode_rows(make.TABLE, small, "golden").equals(rows)
    assert (small.base_offset, small.offset_count, small.time_low, small.time_high) == (0, 3, -7, 17 * 10**17)
    assert small.write_id == make.WRITE_ID
    assert [frame.type for frame in small.frames] == [FrameType.ROWS, FrameType.CLIENT]
    assert many.frames[0].type is FrameType.IPC
    assert decode_rows(make.TABLE, many, "golden").equals(
        make_rows(list(range(600)), [f"h{n % 7}" for n in range(600)])
    )


def test_records() -> None:
    entries = {EntryKind(e.kind): e for e in decoded("data.bin").entries if e.kind != make.UNKNOWN_KIND}
    assert decode_record(entries[EntryKind.RETENTION], "golden") == {
        "v": 1, "database": 1, "cutoff": -5, "recorded_ms": 1_700_000_000_000,
    }  # fmt: skip
    assert decode_record(entries[EntryKind.DROP], "golden") == {"v": 1, "revision": 9}
    assert decode_record(entries[EntryKind.SKIP], "golden")["sequence"] == entries[EntryKind.SKIP].base_offset == 1


def test_a_checkpoint_of_a_shard() -> None:
    state = ShardState(make.STORE_ID.bytes, make.LOG_ID, make.lookup)
    assert state.load(decoded("checkpoint.bin")) == [make.PART_PATH]
    state.load_part(make.PART_PATH, golden("part.bin"))
    assert (state.k, state.horizon, state.revision) == (2, 0, 9)
    assert state.drops == {99: 9}
    assert state.cutoffs == {1: Cutoff(-5, 1_700_000_000_000)}
    assert list(state.all_files()) == [*make.PART_FILES, make.data_file(1), make.data_file(2)]
    partition = state.partitions[7, 1]
    assert (partition.start, partition.next_offset, partition.bytes) == (0, 603, 1100 + 1101 + 1001 + 1002)
    assert state.write_ids[make.WRITE_ID].first_offset == 0


def test_a_part() -> None:
    assert decode_part(make.STORE_ID.bytes, make.LOG_ID, golden("part.bin"), "golden") == make.PART_FILES


def test_the_catalog() -> None:
    record = decode_record(decoded("catalog-data.bin").entries[0], "golden")
    assert record == {"v": 1, "revision": 2, "effects": make.catalog_effects()}
    state = CatalogState()
    state.load(decoded("catalog-checkpoint.bin"))
    assert state.snapshot == make.catalog_state().snapshot
    table = state.snapshot.table("a db/..", "t")
    assert table is not None
    assert [c.storage_name for c in table.columns] == ["time", "host", "Host_3", "column_runnel_x_4"]
    rows = decode_sections(decoded("catalog-checkpoint.bin").entries, "golden")[Section.CATALOG]
    assert [row["database_id"] for row in rows] == [0, 1]


def test_the_store() -> None:
    identity = decode_identity(golden("store.json"), "golden")
    assert (identity.id, identity.format) == (make.STORE_ID, 1)


def test_a_datafile() -> None:
    found = pq.read_table(pa.BufferReader(golden("datafile.parquet")))
    expected = fold(make.TABLE, [TailBatch(40, make_rows([3, 1, 2, 1], ["b", "a", None, "a"]))])
    plain = [c.dictionary_decode() if isinstance(c, pa.DictionaryArray) else c for c in expected.columns]
    assert found.to_pydict() == pa.table(plain, names=expected.schema.names).to_pydict()
    ids = {field.name: field.metadata[b"PARQUET:field_id"] for field in found.schema}
    assert ids == {"time": b"1", "host": b"2", "f": b"4", "i": b"5", "u": b"6", "s": b"7", "b": b"8",
                   "_runnel_offset": b"2147483647"}  # fmt: skip


def test_rows_with_ops_and_range_deletes() -> None:
    few, many, delete = decoded("data-deletes.bin").entries
    for entry, count in ((few, 3), (many, 12)):
        rows = decode_rows(make.TABLE, entry, "golden")
        assert rows.num_rows == count
        assert rows.column("_runnel_op").to_pylist()[:3] == [1, 2, None]
    assert (few.frames[0].type, many.frames[0].type) == (FrameType.ROWS, FrameType.IPC)
    assert from_record(decode_record(delete, "golden"), make.TABLE, "golden") == make.DELETE
    assert (delete.base_offset, delete.offset_count, delete.row_count) == (15, 1, 0)


def test_deletes_that_wait() -> None:
    state = ShardState(make.STORE_ID.bytes, make.LOG_ID, make.lookup)
    state.load(decoded("checkpoint-deletes.bin"))
    (part,) = state.partitions.values()
    assert part.pending == (PendingDelete(15, make.DELETE, frozenset({make.data_file(1).path})),)
    assert [file.has_ops for file in part.files] == [False, True]
    assert part.next_offset == 16


def test_cutoffs_of_tables_and_partitions() -> None:
    state = ShardState(make.STORE_ID.bytes, make.LOG_ID, make.lookup)
    state.apply(decoded("data-cutoffs.bin"))
    again = ShardState(make.STORE_ID.bytes, make.LOG_ID, make.lookup)
    again.load(decoded("checkpoint-cutoffs.bin"))
    at = (-5, 1_700_000_000_000)
    expected = {(7, 0): Cutoff(*at, 0, 1), (7, 1): Cutoff(*at, 1_000, 1), (8, 2): Cutoff(*at, 2_000)}
    assert state.table_cutoffs == again.table_cutoffs == expected
    assert state.cutoffs == again.cutoffs == {}


def test_what_tables_are_kept_by() -> None:
    state = CatalogState()
    state.load(decoded("catalog-checkpoint.bin"))
    record = decode_record(decoded("catalog-kept.bin").entries[0], "golden")
    kept = apply_effects(state.snapshot, record["effects"], 3)
    table, database = kept.table("a db/..", "t"), kept.database("a db/..")
    assert table is not None
    assert database is not None
    assert (table.retention_ns, table.retention_bytes, database.retention_bytes) == (0, 10**9, 10**12)
    assert database.retention_ns == 86_400_000_000_000


def test_a_datafile_with_ops() -> None:
    rows = pq.read_table(make.FOLDER / "datafile-ops.parquet")
    assert rows.column("_runnel_op").to_pylist() == [0, 1, 2]
    assert rows.column("i").to_pylist() == [-2, None, None]


def test_a_datafile_with_keys() -> None:
    rows = pq.read_table(make.FOLDER / "datafile-keys.parquet")
    assert rows.drop_columns([SERIES_COLUMN, KEY_COLUMN]).equals(pq.read_table(make.FOLDER / "datafile.parquet"))
    assert rows.column(KEY_COLUMN).to_pylist()[:2] == [b"", b"\x02\0\0\0\x01\x01\0\0\0a"]
    assert rows.column(SERIES_COLUMN).to_pylist()[0] == key_hash(b"")
    ids = {field.name: field.metadata[b"PARQUET:field_id"] for field in rows.schema}
    assert (ids[SERIES_COLUMN], ids[KEY_COLUMN]) == (b"2147483643", b"2147483642")


def test_a_bundle() -> None:
    """Any reader's filter by table finds a table's rows; other columns' ids would be those of several tables."""
    rows = pq.read_table(make.FOLDER / "bundle.parquet")
    assert rows.column_names == [
        "_runnel_table", "_runnel_partition", "time", "b", "f", "host", "i", "s", "u", "_runnel_op", "_runnel_offset",
    ]  # fmt: skip
    assert rows.column("_runnel_table").to_pylist() == [7, 7, 7, 8, 9, 9, 9]
    assert rows.column("host").to_pylist() == [None, "a", "b", "ü", None, "a", "b"]
    assert rows.column("_runnel_op").to_pylist()[4:] == [0, 1, 2]
    ids = {field.name: int((field.metadata or {}).get(b"PARQUET:field_id", -1)) for field in rows.schema}
    assert {name: number for name, number in ids.items() if number >= 0} == FIELD_IDS


def test_a_checkpoint_that_names_slices() -> None:
    state = ShardState(make.STORE_ID.bytes, make.LOG_ID, make.lookup)
    state.load(decoded("checkpoint-bundles.bin"))
    files = [part.files for part in state.partitions.values()]
    assert [(f.path, f.table_id, f.partition, f.kind, f.rows) for ((f),) in files] == [
        (make.BUNDLE_PATH, 7, 2, "bundle", 3),
        (make.BUNDLE_PATH, 8, 2, "bundle", 1),
        (make.BUNDLE_PATH, 9, 2, "bundle-ops", 3),
    ]
    assert sum(f.bytes for ((f),) in files) == len(golden("bundle.parquet"))
