"""The grammar of one line, in plain Python: where it ends, what it says, and what is wrong with it.

Two readers with one grammar. `scan` finds a line's extent and its raw parts in one pass, as the kernel
does; it is the oracle's and the fallback's reader. `explain` takes a line that was refused and follows
InfluxDB 3's parser step by step to name the fault in the same words; both parsers use it, and only for
refused lines. `read_series` parses a series key, once for each distinct key.

Differences from InfluxDB 3, all on purpose: a comment ends at its newline whatever it holds, CRLF ends a
line, spaces may follow the last field, and a line with an unterminated quote ends at the newline after
the fault instead of swallowing all that follows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from wire.lineprotocol import messages
from wire.lineprotocol.errors import LineRefused
from wire.lineprotocol.messages import Kind
from wire.lineprotocol.model import RESERVED_PREFIX, TIME_COLUMN

if TYPE_CHECKING:
    from wire.lineprotocol.model import ParserLimits

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
UINT64_MAX: Final = (1 << 64) - 1

EXPLAINED_FIELDS_MAX: Final = 20_000
"""How far a bad line is read once more for the sake of its message; each field costs a microsecond or two."""

# A backslash escapes whatever byte follows, a newline too. One at the very end of the text escapes nothing.
_KEY: Final = re.compile(rb"(?:[^\\ \n]++|\\.)*+", re.DOTALL)
_MEASUREMENT: Final = re.compile(rb"(?:[^\\, \t\n\0]++|\\.)*+\\?", re.DOTALL)
_TAG_KEY: Final = re.compile(rb"(?:[^\\= \t\n]++|\\.)*+\\?", re.DOTALL)
_TAG_VALUE: Final = re.compile(rb"(?:[^\\, \t\n]++|\\.)*+\\?", re.DOTALL)
_FIELD_KEY: Final = re.compile(rb"(?:[^\\= \t\n]++|\\.)*+", re.DOTALL)
_STRING: Final = re.compile(rb'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_NUMBER: Final = re.compile(rb"(-?[0-9]++)i|([0-9]++)u|(-?[0-9]++(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+)")
_BOOL: Final = re.compile(rb"(true|True|TRUE|t|T)|(?:false|False|FALSE|f|F)")
_TIMESTAMP: Final = re.compile(rb"-?[0-9]++")
_SPACES: Final = re.compile(rb" *+")
_LINE_END: Final = re.compile(rb"\r?(?:\n|\Z)")
_BLANKS: Final = re.compile(rb"(?:[ \t\n]|\r(?=\n|\Z))*+")

_MEASUREMENT_ESCAPES: Final = b", "
_NAME_ESCAPES: Final = b",= "
_STRING_ESCAPES: Final = b'"'

Value = int | float | bool | str
Series = tuple[str, list[tuple[str, str]]]
"""A table's name and the tags of one series, in the order they were written."""


class Scan(NamedTuple):
    """One line as `scan` saw it: raw parts, before any rule that needs the schema.

    ``end`` is the offset of the newline (or of the body's end) that ends the line. ``fault`` is the
    offset where the grammar broke, None if it did not. ``fields`` are (raw key, value start, value end).
    ``timestamp`` is the raw number or None.
    """

    start: int
    end: int
    key: bytes
    fields: list[tuple[bytes, int, int]]
    timestamp: bytes | None
    fault: int | None


def skip_blanks(body: bytes, at: int) -> int:
    """The offset of the first byte at or after ``at`` that belongs to a line or a comment."""
    found = _BLANKS.match(body, at)
    return found.end() if found else at


def newline_from(body: bytes, at: int) -> int:
    """The offset of the first newline at or after ``at``, or the body's end."""
    found = body.find(b"\n", at)
    return len(body) if found < 0 else found


def scan(body: bytes, start: int, string_bytes_max: int) -> Scan:
    """Scan the line that begins at ``start`` (not blank, not a comment). ``end`` is not yet set after a fault."""
    at = _end(_KEY, body, start)
    key = body[start:at]
    fields: list[tuple[bytes, int, int]] = []
    if body[at : at + 1] != b" ":
        return Scan(start, -1, key, fields, None, at)
    at, broken = _scan_fields(body, _end(_SPACES, body, at), fields, string_bytes_max)
    if broken:
        return Scan(start, -1, key, fields, None, at)
    return _scan_timestamp(body, start, at, key, fields)


def _scan_fields(body: bytes, at: int, fields: list[tuple[bytes, int, int]], string_bytes_max: int) -> tuple[int, bool]:
    """Append the raw fields from ``at`` on; return where they stop and whether that is a fault."""
    while True:
        name_end = _end(_FIELD_KEY, body, at)
        if name_end == at or body[name_end : name_end + 1] != b"=":
            return name_end, True
        value_end = scan_value(body, name_end + 1, string_bytes_max)
        if value_end < 0:
            return -value_end - 1, True
        fields.append((body[at:name_end], name_end + 1, value_end))
        if body[value_end : value_end + 1] != b",":
            return value_end, False
        at = value_end + 1


def scan_value(body: bytes, at: int, string_bytes_max: int) -> int:
    """The end of the field value at ``at``; ``-1 - offset`` of the fault if there is no good value."""
    if body[at : at + 1] == b'"':
        string = _STRING.match(body, at)
        if not string:
            return -1 - at
        good = len(string[1]) <= string_bytes_max or (
            len(string[1]) <= 2 * string_bytes_max and len(_unescape(string[1], _STRING_ESCAPES)) <= string_bytes_max
        )
        return string.end() if good else -1 - string.end()
    number = _NUMBER.match(body, at)
    if number:
        return number.end() if _integer_fits(number) else -1 - number.end()
    boolean = _BOOL.match(body, at)
    return boolean.end() if boolean else -1 - at


def _integer_fits(number: re.Match[bytes]) -> bool:
    if number[1]:
        return parse_digits(number[1], INT64_MIN, INT64_MAX) is not None
    return not number[2] or parse_digits(number[2], 0, UINT64_MAX) is not None


def _scan_timestamp(body: bytes, start: int, at: int, key: bytes, fields: list[tuple[bytes, int, int]]) -> Scan:
    after = _end(_SPACES, body, at)
    end = line_end(body, after)
    if end >= 0:
        return Scan(start, end, key, fields, None, None)
    number = _TIMESTAMP.match(body, after) if after > at else None
    if not number:
        return Scan(start, -1, key, fields, None, after)
    after = _end(_SPACES, body, number.end())
    end = line_end(body, after)
    if end < 0 or parse_digits(number[0], INT64_MIN, INT64_MAX) is None:
        return Scan(start, -1, key, fields, None, after)
    return Scan(start, end, key, fields, number[0], None)


def line_end(body: bytes, at: int) -> int:
    """The offset of the newline that ends the line if nothing else (but a CR) stands at ``at``; -1 otherwise."""
    found = _LINE_END.match(body, at)
    if not found:
        return -1
    return found.end() - 1 if found[0].endswith(b"\n") else found.end()


def parse_digits(text: bytes, low: int, high: int) -> int | None:
    """The integer in ``text``, or None if it is not in [low, high]. Linear however many digits there are."""
    digits = text.lstrip(b"-0")
    if len(digits) > 20:
        return None
    value = -int(digits or b"0") if text[:1] == b"-" else int(digits or b"0")
    return value if low <= value <= high else None


def split_end(body: bytes, start: int) -> int:
    """Where InfluxDB 3 would end the line that begins at ``start``; -1 if a quote stays open to the body's end.

    This decides where to go on after a fault, so that text inside a later string of the same line is
    never taken for a line of its own.
    """
    quoted = fields = False
    equals = commas = 0
    at = start
    length = len(body)
    while at < length:
        byte = body[at]
        if byte == 0x5C:
            at += 1
        elif byte == 0x0A and not quoted:
            return at
        elif byte == 0x20:
            fields = True
        elif fields and byte == 0x22 and equals > commas:
            quoted = not quoted
        elif fields and not quoted:
            equals += byte == 0x3D
            commas += byte == 0x2C
        at += 1
    return -1 if quoted else length


def value_of(body: bytes, start: int, end: int) -> tuple[int, Value]:
    """(FieldType code, value) of the good value in ``body[start:end]``."""
    raw = body[start:end]
    if raw[:1] == b'"':
        return 4, _unescape(raw[1:-1], _STRING_ESCAPES).decode()
    number = _NUMBER.match(raw)
    if not number:
        return 3, raw[:1] in b"tT"
    if number[1]:
        return 0, int(number[1])
    if number[2]:
        return 1, int(number[2])
    return 2, float(raw)


def read_name(raw: bytes, limits: ParserLimits) -> str:
    """A field key as the user meant it.

    Raises:
        LineRefused: it ends with a backslash, or is longer than `ParserLimits.name_bytes_max`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return _checked(raw, _NAME_ESCAPES, limits.name_bytes_max)


def read_series(text: bytes, limits: ParserLimits) -> tuple[str, list[tuple[str, str]], int]:
    """Parse the series key at the start of ``text``: (measurement, tags, offset after it).

    Raises:
        LineRefused: with InfluxDB's message; it quotes ``text``, which should be the whole line then.
        UnicodeDecodeError: a name or value is not UTF-8.
    """
    at = _end(_MEASUREMENT, text, 0)
    if at == 0:
        raise LineRefused(messages.NO_MEASUREMENT)
    measurement = _checked(text[:at], _MEASUREMENT_ESCAPES, limits.name_bytes_max)
    tags: list[tuple[str, str]] = []
    tags_at = at + 1
    while text[at : at + 1] == b",":
        key_at = at + 1
        at = _end(_TAG_KEY, text, key_at)
        if at == key_at:
            raise LineRefused(messages.no_tag_key(text[at:]))
        key = _checked(text[key_at:at], _NAME_ESCAPES, limits.name_bytes_max)
        if text[at : at + 1] != b"=":
            raise LineRefused(messages.no_equals_sign(text[tags_at:]))
        value_at = at + 1
        at = _end(_TAG_VALUE, text, value_at)
        if at == value_at:
            raise LineRefused(messages.no_tag_value(text[at:]))
        tags.append((key, _checked(text[value_at:at], _NAME_ESCAPES, limits.string_bytes_max)))
    return measurement, tags, at


def read_series_key(key: bytes, limits: ParserLimits) -> Series:
    """Parse a series key that `scan` or the kernel cut out.

    Raises:
        LineRefused: the key is bad; `explain` over the whole line has the message.
        UnicodeDecodeError: the key is not UTF-8.
    """
    if b"\\" not in key and b"\t" not in key and b"\0" not in key and len(key) <= limits.name_bytes_max:
        measurement, *pairs = key.decode().split(",")
        tags = [(name, value) for name, equals, value in (pair.partition("=") for pair in pairs) if name and value]
        if measurement and len(tags) == len(pairs):
            return measurement, tags
    measurement, tags, at = read_series(key, limits)
    if at != len(key):
        raise LineRefused(messages.no_space(key[at:]))
    return measurement, tags


def refused_series(name: str, tags: list[tuple[str, str]]) -> str | None:
    """What is wrong with a series whatever the schema says; None if nothing is."""
    if name.startswith(RESERVED_PREFIX):
        return messages.reserved(name)
    seen: set[str] = set()
    for key, _ in tags:
        if key.startswith(RESERVED_PREFIX):
            return messages.reserved(key)
        if key == TIME_COLUMN:
            return messages.conflict(key, Kind.TIME, Kind.TAG)
        if key in seen:
            return messages.duplicate_tag(key)
        seen.add(key)
    return None


def explain(line: bytes, limits: ParserLimits) -> str | None:
    """What InfluxDB 3 says of a line whose grammar is known to be broken. ``line`` has no newline at its end.

    None if no fault is found after all. Of a line with more than `EXPLAINED_FIELDS_MAX` fields, all after
    those counts as the fault.
    """
    try:
        _explain(line.removesuffix(b"\r"), limits)
    except LineRefused as refused:
        return str(refused)
    except UnicodeDecodeError:
        return messages.NOT_UTF8
    return None


def _explain(line: bytes, limits: ParserLimits) -> None:
    _, _, at = read_series(line, limits)
    fields_at = _end(_SPACES, line, at)
    if fields_at == at:
        raise LineRefused(messages.no_space(line[at:]))
    at = _explain_fields(line, fields_at, limits)
    number = _TIMESTAMP.match(line, _end(_SPACES, line, at)) if line[at : at + 1] == b" " else None
    if number:
        if parse_digits(number[0], INT64_MIN, INT64_MAX) is None:
            raise LineRefused(messages.bad_timestamp(number[0]))
        at = number.end()
    if line[at:].strip(b" "):
        raise LineRefused(messages.trailing(line[at:]))


def _explain_fields(line: bytes, at: int, limits: ParserLimits) -> int:
    """Follow InfluxDB's list of fields: where it stops. What remains then counts as trailing content."""
    count = 0
    resume = at
    while True:
        end = _explain_field(line, at, limits)
        if end is None:
            if count == 0:
                raise LineRefused(messages.NO_FIELDS)
            return resume
        count += 1
        if line[end : end + 1] != b"," or count == EXPLAINED_FIELDS_MAX:
            return end
        # InfluxDB's list gives back the comma before a bad field, save before the second.
        at = end + 1
        resume = at if count == 1 else end


def _explain_field(line: bytes, at: int, limits: ParserLimits) -> int | None:
    """The end of the field at ``at``; None if there is none, which ends InfluxDB's list."""
    name_end = _end(_FIELD_KEY, line, at)
    if name_end == at and line[at : at + 1] != b"\\":
        return None
    if name_end + 1 == len(line) and line[name_end] == 0x5C:
        raise LineRefused(messages.ENDS_WITH_BACKSLASH)
    read_name(line[at:name_end], limits)
    if line[name_end : name_end + 1] != b"=":
        return None
    end = scan_value(line, name_end + 1, limits.string_bytes_max)
    if end >= 0:
        return end
    fault = -1 - end
    if fault == name_end + 1:
        return None
    raw = line[name_end + 1 : fault]
    if raw[:1] == b'"':
        raise LineRefused(messages.too_large(limits.string_bytes_max))
    say = messages.bad_integer if raw.endswith(b"i") else messages.bad_unsigned
    raise LineRefused(say(raw[:-1]))


def _checked(raw: bytes, escapes: bytes, bytes_max: int) -> str:
    if len(raw) > 2 * bytes_max:
        raise LineRefused(messages.too_large(bytes_max))
    name = _unescape(raw, escapes)
    if name.endswith(b"\\"):
        raise LineRefused(messages.ENDS_WITH_BACKSLASH)
    if len(name) > bytes_max:
        raise LineRefused(messages.too_large(bytes_max))
    return name.decode()


def _unescape(raw: bytes, escapes: bytes) -> bytes:
    """Drop the backslash before a backslash and before each byte of ``escapes``; any other stays."""
    if b"\\" not in raw:
        return raw
    # Between pairs of backslashes none stands before another, so the rest can be replaced in any order.
    parts = raw.split(b"\\\\")
    for byte in escapes:
        escape = bytes((0x5C, byte))
        if escape in raw:
            parts = [part.replace(escape, escape[1:]) for part in parts]
    return b"\\".join(parts)


def _end(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    """The end of the match at ``at`` of a pattern that can match nothing."""
    found = pattern.match(text, at)
    return found.end() if found else at
