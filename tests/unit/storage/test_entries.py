"""Entries: rows and records as frames and back; what replay could not read is refused before it is sent (LOG L4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.entries import IPC_FROM_ROWS, RECORD_KEYS, decode_record, decode_rows, record_entry, rows_entry
from storage.errors import CorruptObject, SchemaConflict, UnsupportedFormat
from storage.frames import (
    Entry,
    EntryKind,
    Frame,
    FrameType,
    Header,
    ObjectKind,
    WriteId,
    decode_object,
    encode_object,
)
from tests.harness.tables import make_rows, make_table

TABLE = make_table()
HEADER = Header(ObjectKind.DATA, b"s" * 16, 1, 2, 1, b"n" * 16, b"o" * 16, 0, 1, 5)


def stored(entry: Entry) -> Entry:
    """The entry as it comes back from an object."""
    return decode_object(b"".join(encode_object(HEADER, [entry])), "here").entries[0]


def by_value(rows: pa.RecordBatch) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = rows.to_pydict()
    return values


VALUES = {
    "host": (st.text(max_size=5) | st.none(), pa.string()),
    "r_gion_3": (st.text(max_size=3) | st.none(), pa.string()),
    "f": (st.floats(allow_nan=False) | st.none(), pa.float64()),
    "i": (st.integers(-(2**63), 2**63 - 1) | st.none(), pa.int64()),
    "u": (st.integers(0, 2**64 - 1) | st.none(), pa.uint64()),
    "s": (st.text(max_size=9) | st.none(), pa.string()),
    "b": (st.booleans() | st.none(), pa.bool_()),
}


@st.composite
def batches(draw: st.DrawFn, rows_max: int = 20) -> pa.RecordBatch:
    """Rows of any of the table's columns; tags as dictionaries or plain."""
    count = draw(st.integers(1, rows_max))
    times = draw(st.lists(st.integers(-(2**62), 2**62), min_size=count, max_size=count))
    columns = {"time": pa.array(times, pa.timestamp("ns"))}
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True)):
        values, kind = VALUES[name]
        array = pa.array(draw(st.lists(values, min_size=count, max_size=count)), kind)
        tag = name in ("host", "r_gion_3")
        columns[name] = array.dictionary_encode() if tag and draw(st.booleans()) else array
    return pa.RecordBatch.from_pydict(columns)


@given(batches(), st.booleans())
@settings(deadline=None, max_examples=150)
def test_rows_come_back_in_either_form(rows: pa.RecordBatch, long: bool) -> None:
    size = IPC_FROM_ROWS if long else min(rows.num_rows, IPC_FROM_ROWS - 1)
    rows = rows.take(pa.array(np.arange(size) % rows.num_rows))
    entry = stored(rows_entry(TABLE, 3, rows, WriteId(1, b"w" * 16, 0, 9, 1)))
    assert entry.frames[0].type is (FrameType.IPC if long else FrameType.ROWS)
    found = decode_rows(TABLE, entry, "here")
    assert by_value(found) == by_value(rows)
    times = rows.column("time").cast(pa.int64()).to_pylist()
    assert (entry.time_low, entry.time_high) == (min(times), max(times))
    assert (entry.table_id, entry.partition, entry.schema_version) == (TABLE.id, 3, TABLE.version)
    assert entry.row_count == entry.offset_count == rows.num_rows
    assert entry.write_id == WriteId(1, b"w" * 16, 0, 9, 1)


def test_tags_of_small_batches_come_back_as_dictionaries() -> None:
    found = decode_rows(TABLE, stored(rows_entry(TABLE, 1, make_rows([1, 2], ["a", "a"]))), "here")
    assert found.schema.field("host").type == pa.dictionary(pa.int32(), pa.string())


def test_f8_three_columns_of_a_wide_table_stay_small() -> None:
    """Types come from the Catalog, so that a row does not carry the schema of its table."""
    entry = rows_entry(TABLE, 1, make_rows([1], ["a"]).select(["time", "host", "f"]))
    assert sum(len(p) for p in entry.frames[0].parts()) < 600


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("nobody", pa.array([1])),
        ("région", pa.array(["display names are not stored"])),
        ("i", pa.array([1], pa.int32())),
        ("f", pa.array([1.0], pa.float32())),
        ("s", pa.array(["x"], pa.large_string())),
        ("host", pa.array(["x"]).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))),
        ("time", pa.array([1], pa.timestamp("us"))),
    ],
)
def test_l4_what_could_not_be_read_back_is_refused_before_it_is_sent(name: str, array: pa.Array) -> None:
    columns = {"time": pa.array([1], pa.timestamp("ns")), name: array}
    with pytest.raises(SchemaConflict, match=name):
        rows_entry(TABLE, 1, pa.RecordBatch.from_pydict(columns))


def replaced(entry: Entry, payload: bytes, kind: FrameType = FrameType.ROWS, rows: int = 1) -> Entry:
    return dataclasses.replace(entry, frames=(Frame(kind, payload),), row_count=rows)


@given(st.binary(max_size=200), st.sampled_from([FrameType.ROWS, FrameType.IPC]))
@settings(deadline=None)
def test_bytes_that_are_no_rows_are_corrupt(payload: bytes, kind: FrameType) -> None:
    entry = rows_entry(TABLE, 1, make_rows([1], ["a"]))
    for candidate in (payload, b"\1\0\0\0\1\0\0\0\1\0\0\0" + payload):
        with pytest.raises((CorruptObject, UnsupportedFormat)):
            decode_rows(TABLE, replaced(entry, candidate, kind), "log 1 object 2")


def test_rows_that_contradict_the_directory_or_the_catalog_are_corrupt() -> None:
    small = stored(rows_entry(TABLE, 1, make_rows([1], ["a"])))
    many = stored(rows_entry(TABLE, 1, make_rows(list(range(IPC_FROM_ROWS)), ["a"] * IPC_FROM_ROWS)))
    other = dataclasses.replace(TABLE, columns=TABLE.columns[:2])
    for entry in (small, many):
        with pytest.raises(CorruptObject, match="directory says"):
            decode_rows(TABLE, dataclasses.replace(entry, row_count=7), "here")
        with pytest.raises(CorruptObject, match="no column"):
            decode_rows(other, entry, "here")
        with pytest.raises(CorruptObject, match="no frame of rows"):
            decode_rows(TABLE, dataclasses.replace(entry, frames=()), "here")
    version = bytearray(bytes(small.frames[0].parts()[0]))
    version[0] = 2
    with pytest.raises(UnsupportedFormat, match="version 2"):
        decode_rows(TABLE, replaced(small, bytes(version)), "here")


def test_f9_client_bytes_beside_the_rows_are_passed_over() -> None:
    entry = rows_entry(TABLE, 1, make_rows([1], ["a"]))
    both = stored(dataclasses.replace(entry, frames=(Frame(FrameType.CLIENT, b"raw"), *entry.frames)))
    assert decode_rows(TABLE, both, "here").num_rows == 1


RECORDS: dict[EntryKind, dict[str, Any]] = {
    EntryKind.RETENTION: {"database": 1, "cutoff": -(2**63), "recorded_ms": 5},
    EntryKind.DROP: {"revision": 2**64 - 1},
    EntryKind.SKIP: {"sequence": 4, "skipped_at_ms": 1},
    EntryKind.RECORD: {"revision": 1, "effects": [{"do": "logs", "ids": [1]}]},
}


@pytest.mark.parametrize("kind", RECORDS)
def test_records_come_back(kind: EntryKind) -> None:
    table_id = 0 if kind is EntryKind.RETENTION else 6
    entry = stored(record_entry(kind, RECORDS[kind], table_id=table_id))
    assert decode_record(entry, "here") == {"v": 1, **RECORDS[kind]}
    assert entry.table_id == table_id
    assert RECORD_KEYS[kind] == {"v", *RECORDS[kind]}


def test_l36_a_cutoff_of_a_table_is_never_taken_for_one_of_its_database() -> None:
    """By a node that looks at the record alone, as those did that knew none of tables."""
    record = RECORDS[EntryKind.RETENTION]
    own = {**record, "limit": 7}
    entry = stored(record_entry(EntryKind.RETENTION, own, table_id=6, partition=2))
    assert (decode_record(entry, "here"), entry.partition) == ({"v": 1, **own}, 2)
    for wrong in (record_entry(EntryKind.RETENTION, record, table_id=6), record_entry(EntryKind.RETENTION, own)):
        with pytest.raises(UnsupportedFormat, match="keys"):
            decode_record(wrong, "here")


@pytest.mark.parametrize("kind", RECORDS)
def test_records_with_other_keys_or_versions_are_refused(kind: EntryKind) -> None:
    for record in ({**RECORDS[kind], "more": 1}, {}, {**RECORDS[kind], "v": 2}):
        with pytest.raises(UnsupportedFormat):
            decode_record(record_entry(kind, record), "here")


def test_a_record_that_is_none_is_refused() -> None:
    with pytest.raises(CorruptObject, match="no record frame"):
        decode_record(Entry(EntryKind.DROP), "here")
    for payload in (b"", b"\xc1", b"\x81\xa1v"):
        with pytest.raises(CorruptObject):
            decode_record(Entry(EntryKind.DROP, (Frame(FrameType.RECORD, payload),)), "here")
    with pytest.raises(UnsupportedFormat):
        decode_record(Entry(EntryKind.DROP, (Frame(FrameType.RECORD, msgspec.msgpack.encode([1])),)), "here")
