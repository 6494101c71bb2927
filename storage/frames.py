"""Objects of a Log as bytes: header, directory, frames (FORMAT F4-F9; docs/format.md gives every byte).

Pure: bytes in, values out. `storage.log` builds and reads objects through this module; nothing else in
the project knows the layout. All integers are little-endian; reserved bytes are written as zero and an
object in which one is not zero is refused. Every byte is under a checksum, compared with zero, or fixed by
the layout, so that no flipped bit and no cut passes (LOG L3).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import pyarrow as pa
from crc32c import crc32c

from storage.errors import CorruptObject, UnsupportedFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC: Final = b"RUNNELOB"
FORMAT_VERSION: Final = 1
"""The version this code writes, and the newest that it reads."""
OBJECT_BYTES_MAX: Final = 64 * 1024 * 1024
"""One object is one PUT and is held in memory while it is written (LOG L5, FORMAT F15)."""
ENTRIES_MAX: Final = 65_536
"""Entries of one object: bounds what a reader must hold for a directory."""
SKIPPABLE_FROM: Final = 128
"""Entry kinds and frame types from here up may be skipped by a reader that does not know them (FORMAT F6)."""

HEADER: Final = struct.Struct("<8sHBBHH16sQQQ16s16sQQQIIQ32sII")
ENTRY: Final = struct.Struct("<BBHIQIIQIIqqB3sI16sQ16sQQ")
FRAME: Final = struct.Struct("<BBHIQQII")
_FRAME_CRC_AT: Final = FRAME.size - 4
ALIGNMENT: Final = 16
"""Frames begin on this boundary, so that Arrow buffers inside them can be used in place."""
ZERO16: Final = bytes(16)
_ZERO32: Final = bytes(32)
_ZERO3: Final = bytes(3)

Buffer = bytes | memoryview


class ObjectKind(enum.IntEnum):
    """LOG L1."""

    OPEN = 1
    DATA = 2
    CHECKPOINT = 3


class EntryKind(enum.IntEnum):
    """What one entry of an object is. Numbers are for ever; 128 and up may be skipped by old readers."""

    ROWS = 1
    RETENTION = 2
    DROP = 3
    SKIP = 4
    RECORD = 5
    SECTION = 6
    SEAL = 7  # reserved (FORMAT F21)
    PIN = 8  # reserved (FORMAT F3)
    MARKER = 9  # reserved: transaction markers (FORMAT F12)
    DELETE = 10


RESERVED_ENTRY_KINDS: Final = frozenset({EntryKind.SEAL, EntryKind.PIN, EntryKind.MARKER})


class FrameType(enum.IntEnum):
    """FORMAT F8; RECORD is a MessagePack value with a version, for effects that are not rows."""

    ROWS = 1
    IPC = 2
    CLIENT = 3
    RECORD = 4


class Codec(enum.IntEnum):
    """How the stored bytes of a frame are compressed (FORMAT F7)."""

    NONE = 0
    LZ4 = 1
    ZSTD = 2


class WriteId(NamedTuple):
    """Makes a repeated Append harmless (LOG L7, FORMAT F14). ``kind`` 0 means none."""

    kind: int = 0
    writer: bytes = ZERO16
    epoch: int = 0
    sequence: int = 0
    span: int = 0


NO_WRITE_ID: Final = WriteId()


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of an object. ``checkpoint_seq`` is exactly the newest Checkpoint below it (LOG L2)."""

    kind: ObjectKind
    store_id: bytes
    log_id: int
    sequence: int
    epoch: int
    node: bytes
    nonce: bytes
    checkpoint_seq: int
    opens: int
    written_at_ms: int
    placement_epoch: int = 0
    placement_number: int = 0
    directory_length: int = 0
    format_version: int = FORMAT_VERSION
    min_reader: int = 1


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: ``payload`` is what was meant, before the codec."""

    type: FrameType
    payload: Buffer | Sequence[Buffer]
    codec: Codec = Codec.NONE

    def parts(self) -> Sequence[Buffer]:
        return (self.payload,) if isinstance(self.payload, (bytes, memoryview)) else self.payload


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry with its frames; in a decoded object the frames' payloads are views of the object's bytes.

    ``time_low`` and ``time_high`` are event times in ns (0, 0 where there are none).
    """

    kind: int
    frames: tuple[Frame, ...] = ()
    table_id: int = 0
    partition: int = 0
    schema_version: int = 0
    base_offset: int = 0
    offset_count: int = 0
    row_count: int = 0
    time_low: int = 0
    time_high: int = 0
    write_id: WriteId = NO_WRITE_ID
    flags: int = 0


@dataclass(frozen=True, slots=True)
class LogObject:
    """A decoded object. ``size`` is its length in bytes."""

    header: Header
    entries: tuple[Entry, ...]
    size: int = 0


@dataclass(slots=True)
class _Layout:
    """Where frames will lie, while an object is put together."""

    position: int
    buffers: list[Buffer] = field(default_factory=list)

    def add(self, buffer: Buffer) -> None:
        self.buffers.append(buffer)
        self.position += len(buffer)

    def align(self) -> None:
        pad = -self.position % ALIGNMENT
        if pad:
            self.add(bytes(pad))


def _compress(frame: Frame) -> tuple[Sequence[Buffer], int]:
    """The stored buffers of a frame and the length before compression."""
    parts = frame.parts()
    raw = sum(len(p) for p in parts)
    if frame.codec is Codec.NONE:
        return parts, raw
    joined = b"".join(memoryview(p) for p in parts)
    return (pa.Codec(frame.codec.name.lower()).compress(joined, asbytes=True),), raw


def _add_frame(layout: _Layout, frame: Frame) -> None:
    stored, raw = _compress(frame)
    crc = 0
    for part in stored:
        crc = crc32c(part, crc)
    length = sum(len(p) for p in stored)
    head = FRAME.pack(frame.type, frame.codec, 0, 0, length, raw, crc, 0)[:_FRAME_CRC_AT]
    layout.add(head + crc32c(head).to_bytes(4, "little"))
    for part in stored:
        layout.add(part)
    layout.align()


def encode_frame(frame: Frame) -> list[Buffer]:
    """One frame by itself, padded to `ALIGNMENT`; it must stand on such a boundary."""
    layout = _Layout(0)
    _add_frame(layout, frame)
    return layout.buffers


def _pack_entry(entry: Entry, position: int, length: int) -> bytes:
    w = entry.write_id
    return ENTRY.pack(
        entry.kind, entry.flags, len(entry.frames), entry.partition, entry.table_id, entry.schema_version,
        entry.offset_count, entry.base_offset, entry.row_count, w.span, entry.time_low, entry.time_high,
        w.kind, _ZERO3, w.epoch, w.writer, w.sequence, ZERO16, position, length,
    )  # fmt: skip


def _pack_header(header: Header, directory: bytes) -> bytes:
    head = HEADER.pack(
        MAGIC, header.format_version, header.kind, 0, header.min_reader, 0, header.store_id, header.log_id,
        header.sequence, header.epoch, header.node, header.nonce, header.checkpoint_seq, header.placement_epoch,
        header.placement_number, header.opens, len(directory), header.written_at_ms, _ZERO32, 0, 0,
    )  # fmt: skip
    return head[:-4] + crc32c(directory, crc32c(head[:-4])).to_bytes(4, "little")


def encode_object(header: Header, entries: Sequence[Entry]) -> list[Buffer]:
    """The object's bytes as buffers in order; frames are not copied."""
    assert len(entries) <= ENTRIES_MAX, "the caller bounds a group commit"
    directory_length = ENTRY.size * len(entries)
    layout = _Layout(HEADER.size + directory_length)
    layout.align()
    rows = []
    for entry in entries:
        start = layout.position
        for frame in entry.frames:
            _add_frame(layout, frame)
        rows.append(_pack_entry(entry, start, layout.position - start))
    directory = b"".join(rows)
    return [_pack_header(header, directory), directory, *layout.buffers]


def encoded_size(entry: Entry) -> int:
    """An upper bound of what one uncompressed entry adds to an object, in bytes."""
    return ENTRY.size + sum(FRAME.size + ALIGNMENT + sum(len(p) for p in frame.parts()) for frame in entry.frames)


def _refuse(condition: bool, where: str, what: str) -> None:
    if condition:
        raise CorruptObject(f"{where}: {what}")


def decode_header(data: bytes | memoryview, where: str) -> Header:
    """Decode the fixed part. Its checksum covers the directory too and is verified if ``data`` reaches that far."""
    _refuse(len(data) < HEADER.size, where, f"{len(data)} bytes are shorter than a header")
    (
        magic, version, kind, pad0, min_reader, pad1, store_id, log_id, sequence, epoch, node, nonce,
        checkpoint_seq, placement_epoch, placement_number, opens, directory_length, written_at, zeros, pad2, crc,
    ) = HEADER.unpack_from(data)  # fmt: skip
    _refuse(magic != MAGIC, where, "not an object of a Log (bad magic)")
    _refuse(not 1 <= min_reader <= version, where, f"format {version} with least reader {min_reader}")
    if min_reader > FORMAT_VERSION:
        raise UnsupportedFormat(f"{where}: needs a reader of format {min_reader}, this one reads {FORMAT_VERSION}")
    end = HEADER.size + directory_length
    if len(data) >= end:
        view = memoryview(data)
        actual = crc32c(view[HEADER.size : end], crc32c(view[: HEADER.size - 4]))
        _refuse(actual != crc, where, "header checksum differs")
    if pad0 or pad1 or pad2 or zeros != _ZERO32:
        raise UnsupportedFormat(f"{where}: a reserved header field is not zero")
    _refuse(kind not in ObjectKind._value2member_map_, where, f"unknown object kind {kind}")
    return Header(
        ObjectKind(kind), store_id, log_id, sequence, epoch, node, nonce, checkpoint_seq, opens, written_at,
        placement_epoch, placement_number, directory_length, version, min_reader,
    )  # fmt: skip


def _check_padding(view: memoryview, start: int, where: str) -> int:
    """Where the next frame begins; what lies between must be there and be zero."""
    following = start + -start % ALIGNMENT
    _refuse(bytes(view[start:following]) != bytes(following - start), where, f"torn, or padding at byte {start}")
    return following


def _decompress(codec: int, payload: memoryview, raw: int, where: str) -> memoryview:
    if codec == Codec.NONE:
        _refuse(raw != len(payload), where, "a plain frame of two lengths")
        return payload
    _refuse(raw > OBJECT_BYTES_MAX, where, f"a frame claims to hold {raw} bytes")
    try:
        plain = pa.Codec(Codec(codec).name.lower()).decompress(payload, decompressed_size=raw)
    except (OSError, pa.ArrowException) as error:
        raise CorruptObject(f"{where}: a frame cannot be decompressed: {error}") from error
    return memoryview(plain)


def decode_frame(view: memoryview, position: int, end: int, known: bool, where: str) -> tuple[Frame | None, int]:
    """One frame and where the next begins; its checksums are verified (LOG L3). None: of a type to be skipped.

    Frames of an entry that is not ``known`` are verified and skipped.
    """
    _refuse(position + FRAME.size > end, where, "a frame header lies outside its entry")
    kind, codec, pad, key_id, stored, raw, crc, head_crc = FRAME.unpack_from(view, position)
    actual = crc32c(view[position : position + _FRAME_CRC_AT])
    _refuse(actual != head_crc, where, f"frame header checksum differs at byte {position}")
    start = position + FRAME.size
    _refuse(start + stored > end, where, "a frame lies outside its entry")
    payload = view[start : start + stored]
    _refuse(crc32c(payload) != crc, where, f"frame checksum differs at byte {position}")
    following = _check_padding(view, start + stored, where)
    if not known or kind >= SKIPPABLE_FROM:
        return None, following
    if pad or key_id:
        raise UnsupportedFormat(f"{where}: a reserved frame field is not zero")
    if kind not in FrameType._value2member_map_ or codec not in Codec._value2member_map_:
        raise UnsupportedFormat(f"{where}: frame type {kind} with codec {codec} is not known here")
    return Frame(FrameType(kind), _decompress(codec, payload, raw, where)), following


def _decode_entry(view: memoryview, index: int, begin: int, where: str) -> tuple[Entry, int]:
    """One entry, whose frames begin at ``begin``, and where the frames of the next do."""
    (
        kind, flags, frame_count, partition, table_id, schema_version, offset_count, base_offset, row_count,
        id_count, time_low, time_high, id_kind, pad, id_epoch, writer, id_sequence, transaction, position, length,
    ) = ENTRY.unpack_from(view, HEADER.size + index * ENTRY.size)  # fmt: skip
    known = kind in EntryKind._value2member_map_
    write_id = WriteId(id_kind, writer, id_epoch, id_sequence, id_count)
    if kind in RESERVED_ENTRY_KINDS or (not known and kind < SKIPPABLE_FROM):
        raise UnsupportedFormat(f"{where}: entry kind {kind} is reserved or unknown")
    reserved = flags or pad != _ZERO3 or transaction != ZERO16 or (not id_kind and write_id != NO_WRITE_ID)
    if known and reserved:
        raise UnsupportedFormat(f"{where}: entry {index} uses a reserved field")
    end = position + length
    _refuse(position != begin or end > len(view), where, f"torn: entry {index} lies outside the object")
    frames = []
    for _ in range(frame_count):
        frame, position = decode_frame(view, position, end, known, where)
        if frame is not None:
            frames.append(frame)
    _refuse(position != end, where, f"entry {index} holds more than its frames")
    return Entry(
        kind, tuple(frames), table_id, partition, schema_version, base_offset, offset_count, row_count,
        time_low, time_high, write_id, flags,
    ), end  # fmt: skip


def decode_object(data: bytes, where: str) -> LogObject:
    """Decode and verify a whole object, or raise naming ``where`` (LOG L3: never half-applied)."""
    view = memoryview(data)
    header = decode_header(view, where)
    end = HEADER.size + header.directory_length
    _refuse(end > len(view) or header.directory_length % ENTRY.size != 0, where, "torn: the directory is cut")
    entries = []
    position = _check_padding(view, end, where)
    for index in range(header.directory_length // ENTRY.size):
        entry, position = _decode_entry(view, index, position, where)
        entries.append(entry)
    _refuse(position != len(view), where, "bytes follow the last frame")
    return LogObject(header, tuple(entries), len(data))
