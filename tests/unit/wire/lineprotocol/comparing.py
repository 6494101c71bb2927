"""What one parse found, as plain values that can be compared; and the two parsers under test."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

from wire.lineprotocol import KnownTable, Parsed, ParserLimits, Precision
from wire.lineprotocol.parser import KernelParser
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wire.lineprotocol import FieldColumn, LineParser, ParsedTable, TagColumn
    from wire.lineprotocol.model import Body

NOW_NS = 1_763_596_800_123_456_789
LIMITS = ParserLimits()


def nothing_known(_name: str) -> KnownTable | None:
    """An empty catalog."""
    return None


def parse(
    parser: LineParser,
    *bodies: Body,
    precision: Precision = Precision.NANOSECOND,
    known: Callable[[str], KnownTable | None] = nothing_known,
    strict: Sequence[bool] | None = None,
) -> Parsed:
    """One call with a fixed clock."""
    return parser.parse(bodies, precision=precision, now_ns=NOW_NS, known=known, all_or_nothing=strict)


def cut(body: bytes) -> tuple[bytes, ...]:
    """A body in three pieces, which may end within a line or a character and may be empty."""
    first, second = len(body) // 3, len(body) * 2 // 3
    return body[:first], body[first:second], body[second:]


def columns_of(table: ParsedTable) -> list[TagColumn | FieldColumn]:
    """Tags, then fields."""
    return [*table.tags, *table.fields]


def rows(table: ParsedTable) -> list[dict[str, Any]]:
    """A table's rows, nulls left out."""
    columns = {column.name: column.values.to_pylist() for column in columns_of(table)}
    return [
        {"time": int(table.time[row])}
        | {name: values[row] for name, values in columns.items() if values[row] is not None}
        for row in range(table.rows)
    ]


def plain(parsed: Parsed) -> dict[str, Any]:
    """All of the answer; doubles by their bits. Validates every Arrow array on the way."""
    return {
        "tables": [_plain_table(table) for table in parsed.tables],
        "errors": parsed.errors,
        "lines": parsed.lines.tolist(),
        "rows": parsed.rows.tolist(),
        "bytes": parsed.bytes,
    }


def _plain_table(table: ParsedTable) -> dict[str, Any]:
    for column in columns_of(table):
        column.values.validate(full=True)
        assert len(column.values) == table.rows
        assert column.values.null_count < max(table.rows, 1)
    for tag in table.tags:
        assert (tag.values.null_count > 0) == tag.nullable
    return {
        "name": table.name,
        "rows": table.rows,
        "time": table.time.tolist(),
        "tags": [(tag.name, tag.values.to_pylist()) for tag in table.tags],
        "fields": [
            (field.name, field.type, str(field.values.type), [_bits(value) for value in field.values.to_pylist()])
            for field in table.fields
        ],
        "new": (table.new_tags, table.new_fields),
        "body": table.body.tolist(),
        "line": table.line.tolist(),
    }


def _bits(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    assert not math.isnan(value)
    return struct.pack("<d", value)


def assert_same(
    bodies: Sequence[bytes],
    *,
    precision: Precision = Precision.AUTO,
    known: Callable[[str], KnownTable | None] = nothing_known,
    strict: Sequence[bool] | None = None,
    limits: ParserLimits = LIMITS,
    kernel: KernelParser | None = None,
) -> dict[str, Any]:
    """Parse with both, thrice with the kernel (cold, warm, cut to pieces); all must agree. Returns the answer."""
    expected = plain(parse(ReferenceParser(limits), *bodies, precision=precision, known=known, strict=strict))
    kernel = kernel or KernelParser(limits)
    for state in ("cold", "warm", "pieces"):
        given = [cut(body) for body in bodies] if state == "pieces" else bodies
        found = plain(parse(kernel, *given, precision=precision, known=known, strict=strict))
        for key, value in expected.items():
            assert found[key] == value, (state, key, bodies)
    return expected
