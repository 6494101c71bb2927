"""Checkpoints as bytes: sections that are Arrow tables with named columns, inline or in parts (FORMAT F17, F18).

Pure. `storage.shardstate` and `storage.catalogstate` say what goes in; this module turns sections into the
entries of a Checkpoint object and back, and file lists into parts that later Checkpoints name again (LOG L23).
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from crc32c import crc32c

from storage.errors import CorruptObject, UnsupportedFormat
from storage.frames import Entry, EntryKind, Frame, FrameType
from storage.schema import DataFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FILES_INLINE_MAX: Final = 256
"""Files that a Checkpoint lists itself; beyond it they move into a part (LOG L23)."""
PART_MAGIC: Final = b"RUNNELPT"
_PART: Final = struct.Struct("<8sHHI16sQ")


class Section(enum.IntEnum):
    """Numbers are for ever; they stand in the directory's table id."""

    META = 1
    FILES = 2
    PARTITIONS = 3
    WRITE_IDS = 4
    DROPS = 5
    CUTOFFS = 6
    DELETES = 7  # reserved: pending deletes
    TRANSACTIONS = 8  # reserved
    PINS = 9  # reserved
    PARTS = 10
    CATALOG = 11


RESERVED_SECTIONS: Final = frozenset({Section.DELETES, Section.TRANSACTIONS, Section.PINS})

_FILE_SCHEMA: Final = pa.schema(
    [
        ("kind", pa.string()), ("path", pa.string()), ("byte_start", pa.int64()), ("bytes", pa.int64()),
        ("table_id", pa.uint64()), ("partition", pa.uint32()), ("order_low", pa.int64()), ("order_high", pa.int64()),
        ("offset_low", pa.int64()), ("offset_high", pa.int64()), ("time_low", pa.int64()), ("time_high", pa.int64()),
        ("rows", pa.int64()), ("schema_version", pa.uint32()), ("key_id", pa.uint32()), ("borrowed", pa.bool_()),
    ]
)  # fmt: skip
SCHEMAS: Final[Mapping[Section, pa.Schema]] = {
    Section.META: pa.schema([("covered", pa.uint64()), ("horizon", pa.uint64()), ("revision", pa.uint64())]),
    Section.FILES: _FILE_SCHEMA,
    Section.PARTITIONS: pa.schema(
        [
            ("table_id", pa.uint64()), ("partition", pa.uint32()), ("start", pa.int64()), ("next", pa.int64()),
            ("stable", pa.int64()), ("changes_from", pa.int64()), ("bytes", pa.int64()), ("time_high", pa.int64()),
        ]
    ),
    Section.WRITE_IDS: pa.schema(
        [
            ("kind", pa.uint8()), ("writer", pa.binary(16)), ("epoch", pa.uint32()), ("sequence", pa.uint64()),
            ("span", pa.uint32()), ("object", pa.uint64()), ("first_offset", pa.int64()), ("written_ms", pa.int64()),
        ]
    ),
    Section.DROPS: pa.schema([("table_id", pa.uint64()), ("revision", pa.uint64())]),
    Section.CUTOFFS: pa.schema([("database_id", pa.uint64()), ("cutoff", pa.int64()), ("recorded_ms", pa.int64())]),
    Section.PARTS: pa.schema([("path", pa.string()), ("files", pa.int64())]),
    Section.CATALOG: pa.schema([("revision", pa.uint64()), ("database_id", pa.uint64()), ("state", pa.binary())]),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the file list: an object that several Checkpoints name."""

    path: str
    files: tuple[DataFile, ...]


def _ipc(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def section_entry(section: Section, rows: Sequence[Mapping[str, Any]]) -> Entry:
    """One section as an entry of a Checkpoint object."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMAS[section])
    return Entry(EntryKind.SECTION, (Frame(FrameType.IPC, _ipc(table)),), table_id=int(section), row_count=len(rows))


def decode_sections(entries: Iterable[Entry], where: str) -> dict[Section, list[dict[str, Any]]]:
    """All sections of a Checkpoint object. An unknown or reserved section is refused (FORMAT, first lines)."""
    sections: dict[Section, list[dict[str, Any]]] = {s: [] for s in SCHEMAS}
    for entry in entries:
        if entry.kind != EntryKind.SECTION:
            raise CorruptObject(f"{where}: a Checkpoint holds an entry that is no section")
        if entry.table_id not in Section._value2member_map_ or Section(entry.table_id) in RESERVED_SECTIONS:
            raise UnsupportedFormat(f"{where}: section {entry.table_id} is reserved or unknown")
        sections[Section(entry.table_id)] = _read_table(entry.frames[0].parts()[0], where)
    return sections


def _read_table(payload: bytes | memoryview, where: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pa.ipc.open_stream(pa.py_buffer(payload)).read_all().to_pylist()
    except pa.ArrowInvalid as error:
        raise CorruptObject(f"{where}: {error}") from error
    return rows


def file_row(file: DataFile) -> dict[str, Any]:
    """A file entry (FORMAT F18)."""
    return {**dataclasses.asdict(file), "byte_start": 0}


def file_from_row(row: Mapping[str, Any], where: str) -> DataFile:
    """The reverse of `file_row`; kinds `segment` and `bundle` are reserved and refused."""
    if row["kind"] != "parquet" or row["byte_start"] or row["key_id"]:
        raise UnsupportedFormat(f"{where}: a file entry of kind {row['kind']!r} with reserved fields")
    fields = {k: v for k, v in row.items() if k != "byte_start"}
    return DataFile(**fields)


def encode_part(store_id: bytes, files: Sequence[DataFile]) -> bytes:
    """A part of the file list as an object of its own."""
    body = bytes(_ipc(pa.Table.from_pylist([file_row(f) for f in files], schema=_FILE_SCHEMA)))
    return _PART.pack(PART_MAGIC, 1, 0, crc32c(body), store_id, len(body)) + body


def decode_part(store_id: bytes, data: bytes, where: str) -> tuple[DataFile, ...]:
    """The files of a part, verified."""
    if len(data) < _PART.size:
        raise CorruptObject(f"{where}: torn part")
    magic, version, zero, crc, owner, length = _PART.unpack_from(data)
    if magic != PART_MAGIC or length != len(data) - _PART.size or crc32c(memoryview(data)[_PART.size :]) != crc:
        raise CorruptObject(f"{where}: not a part of a Checkpoint, or torn")
    if version != 1 or zero or owner != store_id:
        raise UnsupportedFormat(f"{where}: a part of another store or version")
    return tuple(file_from_row(row, where) for row in _read_table(memoryview(data)[_PART.size :], where))
