"""The words for what is wrong with a line: InfluxDB 3's own, since clients and people search for them.

The source is `influxdb_line_protocol` and the write validator of InfluxDB 3.
"""

from __future__ import annotations

import enum
from typing import Final

from wire.lineprotocol.model import ORIGINAL_BYTES_MAX, RESERVED_PREFIX, FieldType, Precision

CONTEXT_CHARS_MAX: Final = 10
"""How much of the offending text a grammar message repeats (InfluxDB 3 has the same bound)."""
SPACE_CONTEXT_CHARS_MAX: Final = 64
"""InfluxDB 3 repeats the whole rest of the line where a space is missing; that could be megabytes."""

NAME_CHARS_MAX: Final = 256
"""How much of a name a message repeats. InfluxDB 3 repeats all of it; a thousand errors could be 64 MB then."""


class Kind(enum.IntEnum):
    """What a column is in the eyes of the planner: a `FieldType`, or one of these. Also the kernel's codes."""

    INT64 = 0
    UINT64 = 1
    FLOAT64 = 2
    BOOL = 3
    STRING = 4
    TAG = 5
    TIME = 6
    RESERVED = 7
    BROKEN = 8
    NONE = 9


_INFLUX_TYPES: Final[dict[int, str]] = {
    FieldType.INT64: "iox::column_type::field::integer",
    FieldType.UINT64: "iox::column_type::field::uinteger",
    FieldType.FLOAT64: "iox::column_type::field::float",
    FieldType.BOOL: "iox::column_type::field::boolean",
    FieldType.STRING: "iox::column_type::field::string",
    Kind.TAG: "iox::column_type::tag",
    Kind.TIME: "iox::column_type::timestamp",
}

NO_MEASUREMENT: Final = "Invalid measurement was provided"
NO_FIELDS: Final = "No fields were provided"
ENDS_WITH_BACKSLASH: Final = "Measurements, tag keys and values, and field keys may not end with a backslash"
NOT_UTF8: Final = "invalid UTF-8 in the line"


def too_large(limit_bytes: int) -> str:
    """A name or a string is longer than the limit."""
    size = f"{limit_bytes >> 20}MB" if limit_bytes % (1 << 20) == 0 else f"{limit_bytes >> 10}KB"
    if limit_bytes % (1 << 10):
        size = f"{limit_bytes} bytes"
    return f"String is greater than {size}"


def no_space(rest: bytes) -> str:
    """Nothing separates the series key from the fields."""
    return f"Expected at least one space character, got {_got(rest, SPACE_CONTEXT_CHARS_MAX)}"


def no_tag_key(rest: bytes) -> str:
    """A comma is followed by no tag key."""
    return f"Expected tag key, got {_got(rest)}"


def no_tag_value(rest: bytes) -> str:
    """A tag key and its equals sign are followed by no value."""
    return f"Expected tag value, got {_got(rest)}"


def no_equals_sign(tags: bytes) -> str:
    """A tag key without an equals sign; ``tags`` is all that follows the measurement's comma."""
    return f"Tag set malformed: could not find equals sign in `{_context(tags)}`"


def trailing(rest: bytes) -> str:
    """Bytes remain where the line should have ended."""
    return f"Could not parse entire line. Found trailing content: `{_context(rest)}`"


def bad_integer(digits: bytes) -> str:
    """A signed integer out of range."""
    return f"Unable to parse integer value `{_context(digits, SPACE_CONTEXT_CHARS_MAX)}`"


def bad_unsigned(digits: bytes) -> str:
    """An unsigned integer out of range."""
    return f"Unable to parse unsigned integer value `{_context(digits, SPACE_CONTEXT_CHARS_MAX)}`"


def bad_timestamp(digits: bytes) -> str:
    """A timestamp that is no int64."""
    return f"Unable to parse timestamp value `{_context(digits, SPACE_CONTEXT_CHARS_MAX)}`"


def out_of_range(timestamp: int, precision: Precision) -> str:
    """A timestamp that is no int64 once it is in nanoseconds."""
    return f"timestamp, {timestamp}, out of range for precision: {precision.name.capitalize()}"


def duplicate_tag(name: str) -> str:
    """A tag key stands twice in one line."""
    return f"Must not contain duplicate tags, but '{_shown(name)}' was repeated"


def duplicate_field(name: str) -> str:
    """A field key stands twice in one line."""
    return f"invalid line protocol - multiple instances of '{_shown(name)}' field found"


def conflict(name: str, expected: int, got: int) -> str:
    """A column is used as another type than it has."""
    types = f"expected {_INFLUX_TYPES[expected]}, got {_INFLUX_TYPES[got]}"
    return f"invalid column type for column '{_shown(name)}', {types}"


def reserved(name: str) -> str:
    """A name that belongs to the store."""
    return f"the name '{_shown(name)}' is reserved: names that begin with '{RESERVED_PREFIX}' belong to the store"


def too_many_columns(limit: int) -> str:
    """The line would give its table more columns than the limit."""
    return f"Update to schema would exceed number of columns per table limit of {limit} columns"


def too_sparse(cells: int, limit: int) -> str:
    """A request's rows times columns exceed the limit."""
    return (
        f"the request needs {cells} cells (rows times columns of each table), more than {limit}: "
        "send fewer lines, or fewer different fields, at once"
    )


def original(line: bytes) -> str:
    """The start of a bad line, cut between characters."""
    cut = line[:ORIGINAL_BYTES_MAX]
    if len(line) > len(cut):
        # A character cut in half leaves one to three bytes that decode to nothing.
        for length in range(len(cut), len(cut) - 4, -1):
            if line[length] & 0xC0 != 0x80:
                cut = cut[:length]
                break
    return cut.decode("utf-8", "replace")


def _shown(name: str) -> str:
    return name if len(name) <= NAME_CHARS_MAX else f"{name[:NAME_CHARS_MAX]}..."


def _got(rest: bytes, chars_max: int = CONTEXT_CHARS_MAX) -> str:
    return f"`{_context(rest, chars_max)}`" if rest else "end of input"


def _context(text: bytes, chars_max: int = CONTEXT_CHARS_MAX) -> str:
    """The first characters of ``text``, with an ellipsis where it has more *bytes* than that, as InfluxDB 3 counts."""
    shown = text[: 4 * chars_max + 4].decode("utf-8", "replace")
    return f"{shown[:chars_max]}..." if len(text) > chars_max else shown
