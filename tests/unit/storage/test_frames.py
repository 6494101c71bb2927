"""Objects as bytes: what is written comes back, and nothing that was damaged does (LOG L3, FORMAT F4-F9)."""

from __future__ import annotations

import dataclasses

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import CorruptObject, StorageError, UnsupportedFormat
from storage.frames import (
    ALIGNMENT,
    ENTRIES_MAX,
    ENTRY,
    FORMAT_VERSION,
    FRAME,
    HEADER,
    NO_WRITE_ID,
    RESERVED_ENTRY_KINDS,
    Codec,
    Entry,
    EntryKind,
    Frame,
    FrameType,
    Header,
    ObjectKind,
    WriteId,
    decode_header,
    decode_object,
    encode_frame,
    encode_object,
    encoded_size,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
ID = st.binary(min_size=16, max_size=16)
KINDS = st.sampled_from(sorted(set(EntryKind) - RESERVED_ENTRY_KINDS))
FRAMES = st.builds(Frame, st.sampled_from(FrameType), st.binary(max_size=70), st.sampled_from(Codec))
WRITE_IDS = st.just(NO_WRITE_ID) | st.builds(WriteId, st.integers(1, 255), ID, U32, U64, U32)
ENTRIES = st.builds(
    Entry, KINDS, st.lists(FRAMES, max_size=3).map(tuple), U64, U32, U32, U64, U32, U32, I64, I64, WRITE_IDS
)
HEADERS = st.builds(
    Header, st.sampled_from(ObjectKind), ID, U64, U64, U64, ID, ID, U64, U32, U64, U64, U64
)  # fmt: skip


def encode(header: Header, entries: list[Entry]) -> bytes:
    return b"".join(encode_object(header, entries))


def plain(entry: Entry) -> Entry:
    """The entry as a reader sees it: no codec, payloads as bytes."""
    frames = tuple(Frame(f.type, b"".join(bytes(p) for p in f.parts())) for f in entry.frames)
    return dataclasses.replace(entry, frames=frames)


def some_header() -> Header:
    return Header(ObjectKind.DATA, b"s" * 16, 1, 2, 1, b"n" * 16, b"o" * 16, 0, 1, 5)


def some_object() -> bytes:
    """Every structure: entries with no, one and two frames, codecs, padding of all lengths, an unknown kind."""
    entries = [
        Entry(EntryKind.ROWS, (Frame(FrameType.ROWS, b"r" * 21), Frame(FrameType.CLIENT, b"c")), row_count=3),
        Entry(EntryKind.RECORD, (Frame(FrameType.RECORD, b"m" * 16, Codec.LZ4),)),
        Entry(EntryKind.SKIP, ()),
        Entry(EntryKind.ROWS, (Frame(FrameType.IPC, b"i" * 40, Codec.ZSTD),), write_id=WriteId(1, b"w" * 16, 0, 7, 1)),
        Entry(130, (Frame(FrameType.RECORD, b"u" * 5),)),
    ]
    return encode(some_header(), entries)


@given(HEADERS, st.lists(ENTRIES, max_size=5))
@settings(deadline=None, max_examples=200)
def test_what_is_written_comes_back(header: Header, entries: list[Entry]) -> None:
    data = encode(header, entries)
    obj = decode_object(data, "here")
    expected = dataclasses.replace(header, directory_length=ENTRY.size * len(entries))
    assert obj.header == expected
    assert [plain(e) for e in obj.entries] == [plain(e) for e in entries]
    assert obj.size == len(data)
    assert decode_header(data[: HEADER.size], "here") == expected


@given(st.lists(ENTRIES, max_size=5))
@settings(deadline=None, max_examples=100)
def test_the_size_of_an_uncompressed_entry_is_bounded(entries: list[Entry]) -> None:
    """F15: a request is refused by this bound before it is encoded."""
    entries = [plain(e) for e in entries]
    assert len(encode(some_header(), entries)) <= HEADER.size + ALIGNMENT + sum(encoded_size(e) for e in entries)


def test_l3_every_flipped_bit_is_found() -> None:
    good = some_object()
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            with pytest.raises(StorageError) as caught:
                decode_object(bytes(bad), "logs/1/2")
            assert isinstance(caught.value, (CorruptObject, UnsupportedFormat))
            assert "logs/1/2" in str(caught.value)


def test_l3_every_cut_is_found() -> None:
    good = some_object()
    for length in range(len(good)):
        with pytest.raises(CorruptObject, match="logs/1/2"):
            decode_object(good[:length], "logs/1/2")


def test_l3_bytes_after_the_end_are_found() -> None:
    for tail in (b"\0", bytes(ALIGNMENT), some_object()):
        with pytest.raises(CorruptObject):
            decode_object(some_object() + tail, "here")
    with pytest.raises(CorruptObject, match="follow"):
        decode_object(encode(some_header(), []) + bytes(ALIGNMENT), "here")


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_anything_else_is_refused_in_words(data: bytes) -> None:
    for candidate in (data, b"RUNNELOB" + data, some_object()[: HEADER.size] + data):
        with pytest.raises((CorruptObject, UnsupportedFormat)):
            decode_object(candidate, "here")


def reseal(data: bytes) -> bytes:
    """The object with checksums that fit, as a writer with other ideas would have made it."""
    raw = bytearray(data)
    directory = int.from_bytes(raw[116:120], "little")
    for index in range(directory // ENTRY.size):
        row = HEADER.size + index * ENTRY.size
        position = int.from_bytes(raw[row + 104 : row + 112], "little")
        for _ in range(int.from_bytes(raw[row + 2 : row + 4], "little")):
            stored = int.from_bytes(raw[position + 8 : position + 16], "little")
            start = position + FRAME.size
            raw[position + 24 : position + 28] = crc32c(bytes(raw[start : start + stored])).to_bytes(4, "little")
            raw[position + 28 : position + 32] = crc32c(bytes(raw[position : position + 28])).to_bytes(4, "little")
            position = start + stored + -(start + stored) % ALIGNMENT
    end = HEADER.size + directory
    checksum = crc32c(bytes(raw[HEADER.size : end]), crc32c(bytes(raw[: HEADER.size - 4])))
    raw[HEADER.size - 4 : HEADER.size] = checksum.to_bytes(4, "little")
    return bytes(raw)


def patched(data: bytes, position: int, value: bytes) -> bytes:
    return reseal(data[:position] + value + data[position + len(value) :])


ROW = HEADER.size
FIRST_FRAME = HEADER.size + 5 * ENTRY.size + -(HEADER.size + 5 * ENTRY.size) % ALIGNMENT
RESERVED = {
    "header pad 0": 11, "header pad 1": 14, "header zeros, first": 128, "header zeros, last": 159, "header pad 2": 160,
    "entry flags": ROW + 1, "entry pad": ROW + 57, "entry transaction": ROW + 88, "entry transaction end": ROW + 103,
    "write id without a kind": ROW + 80, "frame pad": FIRST_FRAME + 2, "frame key": FIRST_FRAME + 4,
}  # fmt: skip


def test_resealing_changes_nothing_by_itself() -> None:
    assert reseal(some_object()) == some_object()


@pytest.mark.parametrize("field", RESERVED)
def test_f6_a_reserved_field_that_is_not_zero_is_refused(field: str) -> None:
    with pytest.raises(UnsupportedFormat):
        decode_object(patched(some_object(), RESERVED[field], b"\1"), "here")


@pytest.mark.parametrize("kind", sorted({*RESERVED_ENTRY_KINDS, 0, 11, 127}))
def test_f6_reserved_and_unknown_kinds_below_128_are_refused(kind: int) -> None:
    with pytest.raises(UnsupportedFormat, match=str(int(kind))):
        decode_object(patched(some_object(), ROW, bytes([kind])), "here")


@pytest.mark.parametrize("kind", [128, 200, 255])
def test_f6_kinds_from_128_up_are_skipped_whatever_they_hold(kind: int) -> None:
    data = patched(some_object(), ROW, bytes([kind, 9]))  # with flags
    data = patched(data, FIRST_FRAME, bytes([77, 99]))  # a frame type and a codec of another time
    data = patched(data, FIRST_FRAME + 4, b"\5\0\0\0")  # encrypted
    first, *others = decode_object(data, "here").entries
    assert (first.kind, first.frames) == (kind, ())
    assert [plain(e) for e in others] == [plain(e) for e in decode_object(some_object(), "here").entries[1:]]


def test_f6_frame_types_from_128_up_are_left_out_and_others_refused() -> None:
    entry = decode_object(patched(some_object(), FIRST_FRAME, b"\x80"), "here").entries[0]
    assert [frame.type for frame in entry.frames] == [FrameType.CLIENT]
    for position, value in ((FIRST_FRAME, b"\0"), (FIRST_FRAME, b"\5"), (FIRST_FRAME + 1, b"\3")):
        with pytest.raises(UnsupportedFormat):
            decode_object(patched(some_object(), position, value), "here")


def test_f6_an_object_that_needs_a_newer_reader_is_refused_and_one_written_by_a_newer_version_is_not() -> None:
    newer = dataclasses.replace(some_header(), format_version=FORMAT_VERSION + 1)
    assert decode_object(encode(newer, []), "here").header.format_version == FORMAT_VERSION + 1
    needs = dataclasses.replace(newer, min_reader=FORMAT_VERSION + 1)
    with pytest.raises(UnsupportedFormat, match="needs a reader of format 2"):
        decode_object(encode(needs, []), "here")
    for version, min_reader in ((0, 0), (1, 0), (1, 2)):
        wrong = dataclasses.replace(some_header(), format_version=version, min_reader=min_reader)
        with pytest.raises(StorageError):
            decode_object(encode(wrong, []), "here")


def test_unknown_object_kinds_are_refused() -> None:
    for kind in (0, 4, 255):
        with pytest.raises(CorruptObject, match=f"object kind {kind}"):
            decode_object(patched(some_object(), 10, bytes([kind])), "here")


def test_frames_that_overlap_or_leave_holes_are_refused() -> None:
    good = encode(some_header(), [Entry(1, (Frame(FrameType.ROWS, b"a"),)), Entry(1, (Frame(FrameType.ROWS, b"b"),))])
    second = int.from_bytes(good[ROW + ENTRY.size + 104 : ROW + ENTRY.size + 112], "little")
    for moved in (second - 48, second + ALIGNMENT, 2**64 - 16):
        raw = bytearray(good)
        raw[ROW + ENTRY.size + 104 : ROW + ENTRY.size + 112] = moved.to_bytes(8, "little")
        checksum = crc32c(bytes(raw[ROW : ROW + 2 * ENTRY.size]), crc32c(bytes(raw[: HEADER.size - 4])))
        raw[HEADER.size - 4 : HEADER.size] = checksum.to_bytes(4, "little")
        with pytest.raises(CorruptObject):
            decode_object(bytes(raw), "here")


def test_a_frame_that_lies_about_its_length_before_the_codec_is_refused() -> None:
    plain_frame = encode(some_header(), [Entry(1, (Frame(FrameType.ROWS, b"abc"),))])
    start = HEADER.size + ENTRY.size
    start += -start % ALIGNMENT
    with pytest.raises(CorruptObject, match="two lengths"):
        decode_object(patched(plain_frame, start + 16, b"\4"), "here")
    squeezed = encode(some_header(), [Entry(1, (Frame(FrameType.ROWS, b"abc" * 99, Codec.ZSTD),))])
    for claim in (bytes([1, 0, 0, 0, 0, 0, 0, 0]), (2**40).to_bytes(8, "little")):
        with pytest.raises(CorruptObject):
            decode_object(patched(squeezed, start + 16, claim), "here")


def test_frames_begin_where_arrow_can_use_them_in_place() -> None:
    data = some_object()
    for entry in range(5):
        position = int.from_bytes(data[ROW + entry * ENTRY.size + 104 :][:8], "little")
        assert position % ALIGNMENT == 0
    assert len(data) % ALIGNMENT == 0
    assert (HEADER.size % 8, ENTRY.size % 8, FRAME.size % ALIGNMENT) == (0, 0, 0)


def test_a_frame_of_many_buffers_is_one_payload_and_is_not_copied() -> None:
    big = memoryview(b"x" * 100)
    buffers = encode_frame(Frame(FrameType.ROWS, (b"head", big)))
    assert any(buffer is big for buffer in buffers)
    obj = encode(some_header(), [Entry(1, (Frame(FrameType.ROWS, (b"head", big)),))])
    assert bytes(decode_object(obj, "here").entries[0].frames[0].parts()[0]) == b"head" + bytes(big)


def test_entries_are_bounded() -> None:
    with pytest.raises(AssertionError):
        encode_object(some_header(), [Entry(EntryKind.SKIP)] * (ENTRIES_MAX + 1))
