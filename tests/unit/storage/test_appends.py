"""Encoded appends: what a gateway encodes an owner reads back as the same entry, and refuses whatever else comes
(LOG L4, L7, L30)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.appends import Append, decode_append, encode_append
from storage.deletes import TAG_VALUES_MAX, RangeDelete, TagValues, from_record
from storage.entries import IPC_FROM_ROWS, decode_record, decode_rows, rows_entry
from storage.errors import CorruptObject, SchemaConflict, UnsupportedFormat
from storage.frames import NO_WRITE_ID, EntryKind, FrameType, WriteId
from storage.schema import NO_ROWS
from tests.harness.tables import make_rows, make_table

if TYPE_CHECKING:
    from storage.appends import EncodedAppend

TABLE = make_table(partitions=2, log_id=3)
ID = WriteId(1, b"w" * 16, 2, 3, 1)


def encoded(count: int = 20) -> EncodedAppend:
    hosts = [f"h{i % 3}" if i % 5 else None for i in range(count)]
    rows = make_rows(range(100, 100 + count), hosts)
    return encode_append(Append(TABLE, 2, rows, ID, 17))


@pytest.mark.parametrize("count", [1, IPC_FROM_ROWS - 1, IPC_FROM_ROWS, 500])
def test_what_is_encoded_comes_back(count: int) -> None:
    part = encoded(count)
    assert (part.table_id, part.partition, part.schema_version, part.born) == (TABLE.id, 2, TABLE.version, 17)
    assert part.frame_type == (FrameType.IPC if count >= IPC_FROM_ROWS else FrameType.ROWS)
    entry, rows = decode_append(part, TABLE, 3)
    assert rows.num_rows == count
    again = rows_entry(TABLE, 2, rows, ID)
    assert replace(again, frames=()) == replace(entry, frames=())
    assert [bytes(b"".join(f.parts())) for f in entry.frames] == [part.frame], "as it is, into the Log"
    assert decode_rows(TABLE, entry, "").equals(rows)
    assert rows.column("host").type == pa.dictionary(pa.int32(), pa.string())


def test_f8_rows_in_a_large_frame_are_views_of_it() -> None:
    part = encoded(10_000)
    _, rows = decode_append(part, TABLE, 3)
    assert rows.column("f").buffers()[1].address - id(part.frame) in range(len(part.frame) + 64)


ROWS = make_rows(range(100, 120), ["a"] * 20)


def broken(part: EncodedAppend, rows: pa.RecordBatch) -> EncodedAppend:
    """The same with other rows than the gateway's own code would send."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return replace(part, frame=sink.getvalue().to_pybytes(), frame_type=int(FrameType.IPC), row_count=rows.num_rows)


def bad_indices() -> pa.RecordBatch:
    bad = pa.DictionaryArray.from_arrays(pa.array([7] * 20, pa.int32()), pa.array(["x"]), safe=False)
    return ROWS.set_column(1, "host", bad)


BAD: dict[str, tuple[str, dict[str, Any] | pa.RecordBatch]] = {
    "another count": ("20 rows where the directory says 19", {"row_count": 19}),
    "another time": ("times from 100 to 119 where 100 to 120", {"time_high": 120}),
    "client bytes": ("does not hold rows", {"frame_type": int(FrameType.CLIENT)}),
    "unknown frame": ("does not hold rows", {"frame_type": 200}),
    "not ipc": ("cannot be decoded", {"frame": b"x" * 100}),
    "empty": ("cannot be decoded", {"frame": b""}),
    "cut": ("cannot be decoded", {"frame": b"".join([encoded().frame[:-400]])}),
    "partition of nobody": ("does not hold that partition", {"partition": 9}),
    "short writer": ("no write id", {"write_id": WriteId(1, b"w", 0, 1, 1)}),
    "kind too great": ("no write id", {"write_id": ID._replace(kind=256)}),
    "epoch too great": ("no write id", {"write_id": ID._replace(epoch=2**32)}),
    "kind 0 with an id": ("no write id", {"write_id": ID._replace(kind=0)}),
    "no rows": ("no rows", make_rows([], [])),
    "no time": ("no time", ROWS.drop_columns(["time"])),
    "null time": ("a row has no time", ROWS.set_column(0, "time", pa.nulls(20, pa.timestamp("ns")))),
    "unknown column": ("no column 'zzz'", ROWS.append_column("zzz", pa.array([1.0] * 20))),
    "another type": ("no column 'f' of type int64", ROWS.set_column(2, "f", pa.array([1] * 20))),
    "a column twice": ("twice", ROWS.append_column("f", pa.array([1.0] * 20))),
    "bad indices": ("out of bounds", bad_indices()),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_l4_what_is_not_what_it_says_is_refused_before_it_is_sent(case: str) -> None:
    words, change = BAD[case]
    part = encoded()
    part = broken(part, change) if isinstance(change, pa.RecordBatch) else replace(part, **change)
    with pytest.raises(CorruptObject, match=words):
        decode_append(part, TABLE, 3)


HOST = TABLE.tags[0].id
DELETE = RangeDelete(-5, 2**63 - 1, (TagValues(HOST, ("a", None)),))


def a_delete(**changes: Any) -> EncodedAppend:
    return replace(encode_append(Append(TABLE, 1, NO_ROWS, ID, 7, delete=DELETE)), **changes)


def test_f10_a_range_delete_comes_back_as_it_was_sent() -> None:
    entry, rows = decode_append(a_delete(), TABLE, 3)
    assert rows.num_rows == 0
    assert (entry.kind, entry.offset_count, entry.row_count) == (EntryKind.DELETE, 1, 0)
    assert (entry.write_id, entry.time_low, entry.time_high) == (ID, -5, 2**63 - 1)
    assert from_record(decode_record(entry, "here"), TABLE, "here") == DELETE


GOOD = {"v": 1, "low": -5, "high": 2**63 - 1, "tags": []}


@pytest.mark.parametrize(
    "record",
    [
        GOOD | {"v": 2},
        GOOD | {"more": 1},
        {"v": 1},
        [1],
        GOOD | {"low": "x"},
        GOOD | {"high": 2**64 - 1},
        GOOD | {"tags": [[TABLE.fields[0].id, ["a"]]]},
        GOOD | {"tags": [[99, ["a"]]]},
        GOOD | {"tags": [[HOST, []]]},
        GOOD | {"tags": [[HOST, [1]]]},
        GOOD | {"tags": [[HOST, ["a"]], [HOST, ["b"]]]},
        GOOD | {"tags": [[HOST]]},
        GOOD | {"tags": 7},
        GOOD | {"tags": [[HOST, ["a"] * (TAG_VALUES_MAX + 1)]]},
    ],
    ids=str,
)
def test_l4_a_delete_that_replay_would_stumble_over_is_refused(record: Any) -> None:
    with pytest.raises((CorruptObject, UnsupportedFormat)):
        decode_append(a_delete(frame=msgspec.msgpack.encode(record)), TABLE, 3)


@pytest.mark.parametrize("change", [{"time_low": 0}, {"row_count": 1}, {"frame": b""}, {"frame": b"\xff" * 9}], ids=str)
def test_l4_a_delete_says_what_its_record_does(change: dict[str, Any]) -> None:
    with pytest.raises((CorruptObject, UnsupportedFormat)):
        decode_append(a_delete(**change), TABLE, 3)


def test_a_partition_of_another_log_is_refused() -> None:
    with pytest.raises(CorruptObject, match="log 4 does not hold"):
        decode_append(encoded(), TABLE, 4)


def test_a_write_without_an_id_is_taken() -> None:
    entry, _ = decode_append(replace(encoded(), write_id=NO_WRITE_ID), TABLE, 3)
    assert entry.write_id == NO_WRITE_ID


def test_l4_a_gateway_refuses_what_is_not_of_the_table() -> None:
    rows = make_rows([1], ["a"]).append_column("zzz", pa.array([1]))
    with pytest.raises(SchemaConflict, match="zzz"):
        encode_append(Append(TABLE, 1, rows))


@given(st.integers(1, 40), st.data())
@settings(max_examples=300, deadline=None)
def test_l4_flipped_bytes_are_refused_or_are_rows_that_can_be_logged(count: int, data: st.DataObject) -> None:
    """Nothing else may happen, whatever a sick neighbour sends: no crash, no error of another kind."""
    part = encoded(count)
    frame = bytearray(part.frame)
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        entry, rows = decode_append(replace(part, frame=bytes(frame)), TABLE, 3)
    except (CorruptObject, UnsupportedFormat):
        return
    rows.validate(full=True)
    assert rows.num_rows == count
    assert decode_rows(TABLE, entry, "").num_rows == count
    assert set(rows.schema.names) <= set(TABLE.by_storage_name)
    assert len(entry.frames) == 1
