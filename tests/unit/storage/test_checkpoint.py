"""Sections and parts of Checkpoints: come back as they were, and refuse what they do not know (FORMAT F17, F18)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.checkpoint import (
    PART,
    RESERVED_SECTIONS,
    SCHEMAS,
    Section,
    decode_part,
    decode_sections,
    encode_part,
    file_table,
    files_from_table,
    section_entry,
    section_from_table,
)
from storage.errors import CorruptObject, StorageError, UnsupportedFormat
from storage.frames import Entry, EntryKind, Frame, FrameType
from storage.schema import DataFile

STORE = b"s" * 16
I64 = st.integers(-(2**63), 2**63 - 1)
FILES = st.builds(
    DataFile, st.text(min_size=1, max_size=20), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), I64, I64, I64,
    I64, I64, I64, I64, I64, st.integers(0, 2**32 - 1),
)  # fmt: skip
META = section_entry(Section.META, [{"covered": 3, "horizon": 2, "revision": 1}])


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_unsigned_integer(kind):
        return st.integers(0, 2**kind.bit_width - 1)
    if pa.types.is_integer(kind):
        return I64
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_fixed_size_binary(kind):
        return st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if pa.types.is_list(kind):
        return st.lists(values(kind.value_type), max_size=3)
    return st.binary(max_size=9) if pa.types.is_binary(kind) else st.text(max_size=9)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_sections_come_back(data: st.DataObject) -> None:
    written = {Section.META: [{"covered": 3, "horizon": 2, "revision": 1}]}
    for section in data.draw(st.sets(st.sampled_from(sorted(set(SCHEMAS) - {Section.META})))):
        row = st.fixed_dictionaries({field.name: values(field.type) for field in SCHEMAS[section]})
        written[section] = data.draw(st.lists(row, max_size=4))
    entries = [section_entry(section, rows) for section, rows in written.items()]
    assert decode_sections(entries, "here") == {section: written.get(section, []) for section in SCHEMAS}


def altered(section: Section, table: pa.Table) -> Entry:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    frame = Frame(FrameType.IPC, sink.getvalue().to_pybytes())
    return Entry(EntryKind.SECTION, (frame,), table_id=int(section), row_count=table.num_rows)


@pytest.mark.parametrize("number", [*sorted(RESERVED_SECTIONS), 0, 13, 200])
def test_reserved_and_unknown_sections_are_refused(number: int) -> None:
    entry = dataclasses.replace(META, table_id=number)
    with pytest.raises(UnsupportedFormat, match=f"section {int(number)}"):
        decode_sections([META, entry], "here")


def test_columns_that_this_version_does_not_know_are_refused() -> None:
    """A later version's column would be lost in this version's next Checkpoint."""
    table = pa.Table.from_pylist([{"table_id": 1, "revision": 2}], schema=SCHEMAS[Section.DROPS])
    more = table.append_column("why", pa.array(["because"]))
    fewer = table.drop_columns(["revision"])
    wider = table.cast(pa.schema([("table_id", pa.uint64()), ("revision", pa.int64())]))
    for candidate in (more, fewer, wider, table.select(["revision", "table_id"])):
        with pytest.raises(UnsupportedFormat, match="DROPS"):
            decode_sections([META, altered(Section.DROPS, candidate)], "here")
    assert decode_sections([META, altered(Section.DROPS, table)], "here")[Section.DROPS] == table.to_pylist()


def test_a_checkpoint_that_contradicts_itself_is_corrupt() -> None:
    drops = section_entry(Section.DROPS, [{"table_id": 1, "revision": 2}])
    cases = {
        "without its META": [drops],
        "there twice": [META, drops, drops],
        "1 rows where 2 were": [META, dataclasses.replace(drops, row_count=2)],
        "no section": [META, Entry(EntryKind.ROWS)],
        "no table": [META, dataclasses.replace(drops, frames=())],
        "section DROPS:": [META, dataclasses.replace(drops, frames=(Frame(FrameType.IPC, b"nonsense" * 4),))],
    }
    for words, entries in cases.items():
        with pytest.raises(CorruptObject, match=words):
            decode_sections(entries, "here")
    two = section_entry(Section.META, [{"covered": 3, "horizon": 2, "revision": 1}] * 2)
    with pytest.raises(CorruptObject, match="META"):
        decode_sections([two], "here")


def test_a_section_from_columns_is_the_section_from_rows() -> None:
    rows = [{"database_id": 1, "cutoff": 2, "recorded_ms": 3}]
    table = pa.Table.from_pylist(rows, schema=SCHEMAS[Section.CUTOFFS])
    by_columns = section_from_table(Section.CUTOFFS, table)
    assert decode_sections([META, by_columns], "here") == decode_sections(
        [META, section_entry(Section.CUTOFFS, rows)], "here"
    )
    with pytest.raises(AssertionError):
        section_from_table(Section.DROPS, table)


@given(st.lists(FILES, max_size=5))
@settings(deadline=None, max_examples=50)
def test_files_and_parts_come_back(files: list[DataFile]) -> None:
    assert files_from_table(file_table(files), "here") == tuple(files)
    assert decode_part(STORE, 4, encode_part(STORE, 4, files), "here") == tuple(files)


@pytest.mark.parametrize("change", [{"kind": "segment"}, {"byte_start": 1}, {"key_id": 1}, {"borrowed": True}])
def test_f18_reserved_file_fields_are_refused(change: dict[str, Any]) -> None:
    rows = file_table([DataFile("p", 1, 1, 0, 1, 0, 1, 0, 1, 2, 9, 1)])
    changed = pa.Table.from_pylist([{**rows.to_pylist()[0], **change}], schema=rows.schema)
    with pytest.raises(UnsupportedFormat):
        files_from_table(pa.concat_tables([rows, changed]), "here")


def some_part() -> bytes:
    return encode_part(STORE, 4, [DataFile("p", 1, 1, 0, 1, 0, 1, 0, 1, 2, 9, 1)])


def test_l3_every_flipped_bit_and_every_cut_of_a_part_is_found() -> None:
    good = some_part()
    for position in range(len(good)):
        with pytest.raises(CorruptObject, match="parts/4/x"):
            decode_part(STORE, 4, good[:position], "parts/4/x")
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            with pytest.raises(StorageError) as caught:
                decode_part(STORE, 4, bytes(bad), "parts/4/x")
            assert isinstance(caught.value, (CorruptObject, UnsupportedFormat))
    with pytest.raises(CorruptObject):
        decode_part(STORE, 4, good + bytes(16), "here")


def test_a_part_of_another_store_or_log_is_refused() -> None:
    for store, log in ((b"t" * 16, 4), (STORE, 5)):
        with pytest.raises(CorruptObject, match="another store or Log"):
            decode_part(store, log, some_part(), "here")


def test_a_part_begins_where_arrow_can_use_it_in_place() -> None:
    assert PART.size % 16 == 0
