"""Checkpoints as bytes: sections that are Arrow tables with named columns, inline or in parts (FORMAT F17, F18).

Pure. `storage.shardstate` and `storage.catalogstate` say what goes in; this module turns sections into the
entries of a Checkpoint object and back, and file lists into parts that later Checkpoints name again (LOG L23).
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from crc32c import crc32c

from storage.errors import CorruptObject, UnsupportedFormat
from storage.frames import FORMAT_VERSION, Entry, EntryKind, Frame, FrameType, decode_frame, encode_frame
from storage.schema import FILE_KINDS, DataFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FILES_INLINE_MAX: Final = 256
"""Files that a Checkpoint lists itself; beyond it they move into a part (LOG L23)."""
PART_MAGIC: Final = b"RUNNELPT"
PART: Final = struct.Struct("<8sHHHH16sQQ12sI")
"""A part's header: one frame as in a Log's object follows."""
_PART_CRC_AT: Final = PART.size - 4
_ZERO12: Final = bytes(12)


class Section(enum.IntEnum):
    """Numbers are for ever; they stand in the directory's table id."""

    META = 1
    FILES = 2
    PARTITIONS = 3
    WRITE_IDS = 4
    DROPS = 5
    CUTOFFS = 6
    DELETES = 7
    TRANSACTIONS = 8  # reserved
    PINS = 9  # reserved
    PARTS = 10
    CATALOG = 11
    TABLE_CUTOFFS = 12


RESERVED_SECTIONS: Final = frozenset({Section.TRANSACTIONS, Section.PINS})

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
    Section.DELETES: pa.schema(
        [
            ("table_id", pa.uint64()), ("partition", pa.uint32()), ("order", pa.int64()), ("delete", pa.binary()),
            ("files", pa.list_(pa.string())),
        ]
    ),
    Section.PARTS: pa.schema(
        [("section", pa.uint8()), ("owner_id", pa.uint64()), ("path", pa.string()), ("rows", pa.int64())]
    ),
    Section.CATALOG: pa.schema([("revision", pa.uint64()), ("database_id", pa.uint64()), ("state", pa.binary())]),
    Section.TABLE_CUTOFFS: pa.schema(
        [
            ("table_id", pa.uint64()), ("partition", pa.uint32()), ("cutoff", pa.int64()), ("recorded_ms", pa.int64()),
            ("database_id", pa.uint64()), ("limit", pa.int64()),
        ]
    ),
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
    return section_from_table(section, pa.Table.from_pylist(list(rows), schema=SCHEMAS[section]))


def section_from_table(section: Section, table: pa.Table) -> Entry:
    """The same from columns, for sections that are long."""
    assert table.schema == SCHEMAS[section]
    frame = Frame(FrameType.IPC, _ipc(table))
    return Entry(EntryKind.SECTION, (frame,), table_id=int(section), row_count=table.num_rows)


def decode_sections(entries: Iterable[Entry], where: str) -> dict[Section, list[dict[str, Any]]]:
    """All sections of a Checkpoint object as rows; see `decode_tables`."""
    return {section: table.to_pylist() for section, table in decode_tables(entries, where).items()}


def decode_tables(entries: Iterable[Entry], where: str) -> dict[Section, pa.Table]:
    """All sections of a Checkpoint object; one that is absent is empty, META always has its one row.

    Raises CorruptObject, and UnsupportedFormat for an unknown or reserved section or column.
    """
    found: dict[Section, pa.Table] = {}
    for entry in entries:
        if entry.kind != EntryKind.SECTION:
            raise CorruptObject(f"{where}: a Checkpoint holds an entry that is no section")
        if entry.table_id not in Section._value2member_map_ or Section(entry.table_id) in RESERVED_SECTIONS:
            raise UnsupportedFormat(f"{where}: section {entry.table_id} is reserved or unknown")
        section = Section(entry.table_id)
        if section in found or len(entry.frames) != 1 or entry.frames[0].type is not FrameType.IPC:
            raise CorruptObject(f"{where}: section {section.name} is there twice, or is no table")
        found[section] = _read_table(section, entry.frames[0].parts()[0], entry.row_count, where)
    if Section.META not in found or found[Section.META].num_rows != 1:
        raise CorruptObject(f"{where}: a Checkpoint without its META section")
    return {s: found[s] if s in found else SCHEMAS[s].empty_table() for s in SCHEMAS}


def _read_table(section: Section, payload: bytes | memoryview, rows: int, where: str) -> pa.Table:
    try:
        table = pa.ipc.open_stream(pa.py_buffer(payload)).read_all()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise CorruptObject(f"{where}: section {section.name}: {error}") from error
    if table.schema != SCHEMAS[section]:
        raise UnsupportedFormat(f"{where}: section {section.name} has columns that this version does not know")
    if table.num_rows != rows:
        raise CorruptObject(f"{where}: section {section.name}: {table.num_rows} rows where {rows} were written")
    return table


def file_table(files: Sequence[DataFile]) -> pa.Table:
    """File entries (FORMAT F18). By columns: a Checkpoint of many tiny tables has ten thousand."""
    values = {f.name: [getattr(file, f.name) for file in files] for f in dataclasses.fields(DataFile)}
    values["byte_start"] = [0] * len(files)
    return pa.Table.from_pydict(values, schema=_FILE_SCHEMA)


def files_from_table(table: pa.Table, where: str) -> tuple[DataFile, ...]:
    """The reverse. Reserved and refused: kind `segment`, byte ranges, keys, borrowed files."""
    columns = {name: table.column(name).to_pylist() for name in _FILE_SCHEMA.names}
    starts = columns.pop("byte_start")
    for kind, *reserved in zip(columns["kind"], starts, columns["key_id"], columns["borrowed"], strict=True):
        if kind not in FILE_KINDS or any(reserved):
            raise UnsupportedFormat(f"{where}: a file entry of kind {kind!r} with reserved fields")
    rows = zip(*(columns[field.name] for field in dataclasses.fields(DataFile)), strict=True)
    return tuple(itertools.starmap(DataFile, rows))


def encode_part(store_id: bytes, log_id: int, files: Sequence[DataFile]) -> bytes:
    """A part of the file list as an object of its own."""
    body = _ipc(file_table(files))
    head = PART.pack(
        PART_MAGIC, FORMAT_VERSION, 1, Section.FILES, 0, store_id, log_id, len(files), _ZERO12, 0
    )[:_PART_CRC_AT]  # fmt: skip
    frame = encode_frame(Frame(FrameType.IPC, body))
    return b"".join([head, crc32c(head).to_bytes(4, "little"), *frame])


def decode_part(store_id: bytes, log_id: int, data: bytes, where: str) -> tuple[DataFile, ...]:
    """The files of a part, verified."""
    view = memoryview(data)
    if len(data) < PART.size:
        raise CorruptObject(f"{where}: torn part")
    magic, version, min_reader, section, pad, owner, log, rows, zeros, crc = PART.unpack_from(data)
    if magic != PART_MAGIC or crc32c(view[:_PART_CRC_AT]) != crc or not 1 <= min_reader <= version:
        raise CorruptObject(f"{where}: not a part of a Checkpoint, or torn")
    if min_reader > FORMAT_VERSION or section != Section.FILES or pad or zeros != _ZERO12:
        raise UnsupportedFormat(f"{where}: a part of a newer version, or with reserved fields")
    if (owner, log) != (store_id, log_id):
        raise CorruptObject(f"{where}: belongs to another store or Log")
    frame, end = decode_frame(view, PART.size, len(data), True, where)
    if frame is None or frame.type is not FrameType.IPC or end != len(data):
        raise CorruptObject(f"{where}: a part is one table and nothing else")
    table = _read_table(Section.FILES, frame.parts()[0], rows, where)
    return files_from_table(table, where)
