"""Columns as lines of line protocol, for COPY, `runnel import` and `runnel export`: whole batches, no row in Python.

Pure. `wire.lineprotocol` reads the lines back as the same values. What they cannot say is left out (floats that are no
numbers, as NULLs are) or refused (`REFUSED`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from nodes.exitcodes import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Collection

REFUSED: Final = "the row has no time, no field, or a tag with a tab, a newline or a backslash at its end"
TAG_REFUSED: Final = r"[\t\n]|\\$"
_TEXT: Final = pa.string()
_NAME_REFUSED: Final = ("\t", "\n", "\0")


def to_lines(table: str, rows: pa.RecordBatch, tags: Collection[str], time: str) -> Any:
    """One line for each row, without a newline at its end, as an Arrow array; NULL for a row that is refused.

    ``tags`` and ``time`` name columns of ``rows``; all others are fields, if they are numbers, strings or booleans. The
    time is a timestamp, whose line is in ns, or an integer as it is. Raises CommandFailed for another type.
    """
    head = _scalar(_name(table, "the table's name", ", "))
    refused = pc.is_null(rows.column(time))
    for name in rows.schema.names:
        if name in tags:
            value = _text(rows.column(name))
            head = pc.binary_join_element_wise(head, _part(f",{_name(name, 'a tag')}=", _escaped(value), ""), "")
            refused = pc.or_(refused, pc.fill_null(pc.match_substring_regex(value, TAG_REFUSED), False))
    parts = [_field(name, rows.column(name)) for name in rows.schema.names if name not in tags and name != time]
    if not parts:
        raise CommandFailed("there is no column beside the time and the tags: a row needs a field")
    fields = pc.utf8_rtrim(pc.binary_join_element_wise(*parts, ""), characters=",")
    refused = pc.or_(refused, pc.equal(fields, _scalar("")))
    lines = pc.binary_join_element_wise(head, fields, _time(time, rows.column(time)), " ")
    return pc.if_else(refused, pa.scalar(None, _TEXT), lines)


def joined(lines: Any) -> bytes:
    """All lines with their newlines. Raises CommandFailed if one was refused."""
    if lines.null_count:
        raise CommandFailed(f"{lines.null_count} rows have no line: {REFUSED}; Parquet takes them")
    whole = pa.ListArray.from_arrays(pa.array([0, len(lines)], pa.int32()), lines)
    text: bytes = pc.binary_join(whole, "\n")[0].as_buffer().to_pybytes()
    return text + b"\n" if len(lines) else text


def _field(name: str, values: Any) -> Any:
    """``name=value,`` for each row; nothing where there is no value."""
    kind = values.type
    key = f"{_name(name, 'a field')}="
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = values.cast(pa.float64())
        numbers = pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))
        return _part(key, numbers.cast(_TEXT), ",")
    if pa.types.is_boolean(kind):
        return _part(key, values.cast(_TEXT), ",")
    if pa.types.is_integer(kind):
        return _part(key, values.cast(_TEXT), "i," if pa.types.is_signed_integer(kind) else "u,")
    text = _text(values, name)
    for character in ("\\", '"'):
        text = pc.replace_substring(text, character, "\\" + character)
    return _part(f'{key}"', text, '",')


def _part(before: str, values: Any, after: str) -> Any:
    """``before``, the value and ``after``; empty where the value is NULL or, of a tag, empty."""
    joined = pc.binary_join_element_wise(_scalar(before), values, _scalar(after), "")
    if not after:
        joined = pc.if_else(pc.equal(values, _scalar("")), _scalar(""), joined)
    return pc.fill_null(joined, "")


def _text(values: Any, name: str = "") -> Any:
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if name and not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        if pa.types.is_null(kind):
            return pa.nulls(len(values), _TEXT)
        raise CommandFailed(
            f"the column {name!r} has type {kind}: fields are numbers, strings or booleans; leave it out, or convert it"
        )
    try:
        return values.cast(_TEXT)
    except pa.ArrowException as error:
        raise CommandFailed(f"a tag of type {kind} cannot be written as text: {error}") from error


def _escaped(text: Any) -> Any:
    for character in ("\\", ",", "=", " "):
        text = pc.replace_substring(text, character, "\\" + character)
    return text


def _time(name: str, values: Any) -> Any:
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("ns", values.type.tz)).cast(pa.int64())
    elif pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("ns")).cast(pa.int64())
    elif not pa.types.is_integer(values.type):
        raise CommandFailed(f"the column {name!r} has type {values.type}: a time is a timestamp or an integer")
    return values.cast(_TEXT)


def _name(name: str, what: str, escapes: str = ",= ") -> str:
    if not name or name.endswith("\\") or any(bad in name for bad in _NAME_REFUSED):
        raise CommandFailed(f"{name!r} cannot be {what} in line protocol")
    name = name.replace("\\", "\\\\")
    for character in escapes:
        name = name.replace(character, "\\" + character)
    return name


def _scalar(text: str) -> Any:
    return pa.scalar(text, _TEXT)
