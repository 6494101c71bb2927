"""docs/format.md says what the code does: its tables of bytes, numbers, keys and columns are compared with it."""

from __future__ import annotations

import enum
import importlib
import re
import struct
from pathlib import Path

import pytest

from storage import bundle
from storage.catalogstate import EFFECT_KEYS, TYPE_RECORDS
from storage.checkpoint import FILES_INLINE_MAX, SCHEMAS, Section
from storage.datafile import OWN_FIELD_IDS, ROW_GROUP_ROWS
from storage.entries import IPC_FROM_ROWS, RECORD_KEYS, RECORD_VERSION
from storage.frames import ALIGNMENT, ENTRIES_MAX, FORMAT_VERSION, OBJECT_BYTES_MAX, SKIPPABLE_FROM, EntryKind
from storage.schema import FILE_KINDS, OFFSET_COLUMN
from storage.slices import COLUMNS_MAX

TEXT = (Path(__file__).parents[3] / "docs" / "format.md").read_text()
TYPES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}


def tables(kind: str) -> dict[str, list[list[str]]]:
    """The rows of each table that follows a comment of this kind, by what the comment names."""
    found = {}
    for name, body in re.findall(rf"<!-- {kind}:? ?(\S*) ?-->\n((?:\|.*\n)+)", TEXT):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in body.splitlines()]
        found[name] = rows[2:]
    return found


def resolve(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


STRUCTS = tables("struct")
ENUMS = tables("enum")
SECTIONS = tables("section")


def test_every_table_was_found() -> None:
    assert sorted(STRUCTS) == [
        "storage.checkpoint.PART", "storage.frames.ENTRY", "storage.frames.FRAME", "storage.frames.HEADER",
    ]  # fmt: skip
    assert len(ENUMS) == 6
    assert len(SECTIONS) == len(SCHEMAS)


@pytest.mark.parametrize("name", STRUCTS)
def test_the_bytes_of_a_structure(name: str) -> None:
    layout = resolve(name)
    assert isinstance(layout, struct.Struct)
    position, formats = 0, ""
    for offset, kind, _ in STRUCTS[name]:
        code = TYPES.get(kind) or re.sub(r"bytes\[(\d+)\]", r"\1s", kind)
        assert int(offset) == position, f"{name}: {offset}"
        assert code[-1] == "s" or position % struct.calcsize(code) == 0, f"{name}: {offset} is not aligned"
        position += struct.calcsize("<" + code)
        formats += code
    assert "<" + formats == layout.format
    assert position == layout.size


@pytest.mark.parametrize("name", ENUMS)
def test_the_numbers_of_a_kind(name: str) -> None:
    kinds = resolve(name)
    assert isinstance(kinds, enum.EnumType)
    documented = {int(row[0]): re.split(r"\W", row[1])[0].upper() for row in ENUMS[name]}
    assert documented == {member.value: member.name for member in kinds}  # type: ignore[var-annotated]


@pytest.mark.parametrize("section", SCHEMAS)
def test_the_columns_of_a_section(section: Section) -> None:
    documented = [(row[0], row[1]) for row in SECTIONS[section.name]]
    assert documented == [(field.name, str(field.type)) for field in SCHEMAS[section]]


def test_the_keys_of_records_and_effects() -> None:
    def keys(cell: str) -> frozenset[str]:
        return frozenset(re.findall(r"`(\w+)`", cell))

    records = {row[0]: keys(row[1]) for row in tables("records")[""]}
    assert records == {kind.name.lower(): wanted for kind, wanted in RECORD_KEYS.items()}
    assert {row[0]: keys(row[1]) for row in tables("effects")[""]} == EFFECT_KEYS


def test_the_numbers_in_the_prose() -> None:
    for statement in (
        f"Format version **{FORMAT_VERSION}**",
        f"at most {OBJECT_BYTES_MAX:,}",
        f"{ENTRIES_MAX:,} entries",
        f"at a multiple of {ALIGNMENT}",
        f"kinds from {SKIPPABLE_FROM} up",
        f"`v` is its version, {RECORD_VERSION}",
        f"Batches of {IPC_FROM_ROWS} rows or more",
        f"more than {FILES_INLINE_MAX} files",
        f"field id {OWN_FIELD_IDS[OFFSET_COLUMN]}",
        f"Row groups have {ROW_GROUP_ROWS:,} rows",
        f"at most {bundle.SLICE_ROWS_MAX:,} rows and {bundle.SLICE_BYTES_MAX // 1024} KiB in memory share",
        f"at most {COLUMNS_MAX} columns, {bundle.ROWS_MAX:,} rows and {bundle.CELLS_MAX:,} values",
        f"have {bundle.GROUP_ROWS_MIN:,} rows or, in large bundles, a\n  {bundle.GROUPS_MAX}th of all",
    ):
        assert statement in TEXT, statement


def test_the_kinds_of_files() -> None:
    assert {kind for row in tables("kinds")[""] for kind in re.findall(r"`([^`]+)`", row[0])} == FILE_KINDS


def test_the_columns_of_a_bundle() -> None:
    documented = {row[0].strip("`"): int(row[2]) for row in tables("columns")["bundle"]}
    assert documented == bundle.FIELD_IDS


def test_the_types_of_columns() -> None:
    for record in TYPE_RECORDS.values():
        assert f"`{record['kind']}`" in TEXT or f'"kind": "{record["kind"]}"' in TEXT


def test_every_reserved_kind_is_called_so() -> None:
    for kind in (EntryKind.SEAL, EntryKind.PIN, EntryKind.MARKER):
        assert re.search(rf"\| {kind.value} \| {kind.name.lower()} \| reserved", TEXT)
