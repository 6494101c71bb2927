"""The compiled scan: bodies to lines and events, one pass, at about six million lines a second.

`parser` drives it. An *event* is one field of one line: a field name's id, a kind, 64 bits of value. The
scan knows no schema: it looks the raw series key up in a map (tags are parsed once per distinct key, in
Python), predicts each field name by what followed the last one, and leaves strings where they lie.

The buffer holds the bodies with a newline after each and `machine.PADDING` newlines at its end. So every
loop that stops at a newline stops at its body's end; only escapes and strings, in which newlines are
plain bytes, compare with the end. The grammar is that of `grammar.scan`, fault for fault.

Nothing here allocates. Where an array is full the scan returns a status, the caller makes room, and the
scan goes on with the line it could not finish.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from wire.lineprotocol.bytemap import FULL, SEED, U64, ByteMap, find_or_add, mix, same
from wire.lineprotocol.machine import Bytes, Int32s, Int64s, inlined, jit, load64, signed, trailing_zeros
from wire.lineprotocol.numbers import (
    BOOL,
    NO_VALUE,
    STRING,
    pack,
    scan_number,
    scan_timestamp,
    to_nanoseconds,
)

# A line's code; the order matters: the planner looks at all up to OUT_OF_RANGE.
GOOD: Final = 0
OUT_OF_RANGE: Final = 1
"""Good but for its timestamp, which is no int64 in nanoseconds."""
FAULT: Final = 2
NOT_UTF8: Final = 3
NO_ROOM: Final = 4
"""Never stored: the line must be scanned again."""

# Why the scan returned.
DONE: Final = 0
SERIES_FULL: Final = 1
NAMES_FULL: Final = 2
EVENTS_FULL: Final = 3
LINES_FULL: Final = 4

# Places in the state array.
BODY: Final = 0
"""The body to go on with."""
AT: Final = 1
"""The offset to go on with; -1 at a body's start."""
NUMBER: Final = 2
"""The line number (from 1) at AT."""
LINES: Final = 4
EVENTS: Final = 5
STATUS: Final = 6
OPEN_QUOTE: Final = 7
"""1 once a quote of this body was found to stay open."""
WANTED: Final = 8
"""Bytes of the key for which there was no room."""
STATE_SIZE: Final = 9

# Places in the settings array.
MULTIPLIER: Final = 0
DEFAULT_NS: Final = 1
STRING_BYTES_MAX: Final = 2
ERRORS_MAX: Final = 3

_ONES = U64(0x0101010101010101)
_HIGH_BITS = U64(0x8080808080808080)
_SPACES = U64(0x2020202020202020)
_BACKSLASHES = U64(0x5C5C5C5C5C5C5C5C)
_NEWLINES = U64(0x0A0A0A0A0A0A0A0A)
_QUOTES = U64(0x2222222222222222)


class Lines(NamedTuple):
    """One entry a line; ``event`` has one more: where the last line's events end. ``series`` -1 is no series."""

    series: Int32s
    time: Int64s
    event: Int32s
    start: Int32s
    end: Int32s
    number: Int32s
    body: Int32s
    code: Bytes


class Events(NamedTuple):
    """One entry a field. ``name`` is a name id after the scan, a column id after the planner's `resolve`."""

    name: Int32s
    kind: Bytes
    value: Int64s


class Bodies(NamedTuple):
    """Where the bodies lie and what the scan counts in them. ``suspect`` bodies are not all UTF-8."""

    start: Int64s
    end: Int64s
    suspect: Bytes
    lines: Int64s
    faults: Int64s


@inlined
def _zero_bytes(word: np.uint64) -> np.uint64:
    """The high bit of each zero byte; bytes above the first hit may be marked wrongly."""
    return (word - _ONES) & ~word & _HIGH_BITS


@inlined
def count_newlines(buffer: Bytes, start: int, end: int) -> int:
    """Newlines in ``buffer[start:end]``."""
    count = 0
    for index in range(start, end):
        count += buffer[index] == 10
    return count


@inlined
def _skip_blanks(buffer: Bytes, at: int, end: int, number: int) -> tuple[int, int]:
    """(offset of the next byte that belongs to a line, its line number): skips blank lines and comments."""
    while at < end:
        byte = buffer[at]
        if byte == 10:
            number += 1
        elif byte == 35:
            while buffer[at] != 10:
                at += 1
            continue
        elif byte != 32 and byte != 9 and not (byte == 13 and buffer[at + 1] == 10):
            break
        at += 1
    return at, number


@inlined
def _scan_key(buffer: Bytes, at: int, end: int, seed: np.uint64) -> tuple[int, np.uint64, bool]:
    """(offset after the series key, its hash, whether a newline is escaped in it)."""
    key_hash = seed
    newline = False
    while True:
        word = load64(buffer, at)
        stops = _zero_bytes(word ^ _SPACES) | _zero_bytes(word ^ _BACKSLASHES) | _zero_bytes(word ^ _NEWLINES)
        if stops == U64(0):
            key_hash = mix(key_hash, word)
            at += 8
            continue
        length = trailing_zeros(stops) >> 3
        if length > 0:
            key_hash = mix(key_hash, word & ((U64(1) << U64(8 * length)) - U64(1)))
            at += length
        if buffer[at] != 92 or at + 1 >= end:
            return at, key_hash, newline
        newline |= buffer[at + 1] == 10
        key_hash = mix(key_hash, U64(256) | U64(buffer[at + 1]))
        at += 2


@inlined
def _scan_name(buffer: Bytes, at: int, end: int, seed: np.uint64) -> tuple[int, np.uint64, bool]:
    """(offset after the field key, its hash, whether a newline is escaped in it)."""
    name_hash = seed
    newline = False
    while True:
        byte = buffer[at]
        if byte == 61 or byte == 32 or byte == 10 or byte == 9:
            return at, name_hash, newline
        if byte == 92:
            if at + 1 >= end:
                return at, name_hash, newline
            at += 1
            newline |= buffer[at] == 10
            name_hash = mix(name_hash, U64(92))
            byte = buffer[at]
        name_hash = mix(name_hash, U64(byte))
        at += 1


@inlined
def _scan_string(buffer: Bytes, quote: int, end: int, bytes_max: int) -> tuple[int, int, np.int64]:
    """The string that opens at ``quote``: (offset after it, kind, value), or (offset of the fault, NO_VALUE, 0)."""
    start = quote + 1
    at = start
    escaped = 0
    while at < end:
        word = load64(buffer, at)
        stops = _zero_bytes(word ^ _QUOTES) | _zero_bytes(word ^ _BACKSLASHES)
        if stops == U64(0):
            at += 8
            continue
        at += trailing_zeros(stops) >> 3
        if at >= end or buffer[at] == 34:
            break
        escaped = 1
        at += 2
    if at >= end:
        return quote, NO_VALUE, np.int64(0)
    length = at - start
    if length > bytes_max and (escaped == 0 or unescaped_length(buffer, start, length) > bytes_max):
        return at + 1, NO_VALUE, np.int64(0)
    return at + 1, STRING, pack(start, length, escaped)


@inlined
def unescaped_length(buffer: Bytes, start: int, length: int) -> int:
    """Bytes of a string once its escapes are resolved."""
    end = start + length
    at = start
    count = 0
    while at < end:
        escape = buffer[at] == 92 and at + 1 < end and (buffer[at + 1] == 34 or buffer[at + 1] == 92)
        at += 2 if escape else 1
        count += 1
    return count


@inlined
def _says_rue(buffer: Bytes, at: int) -> bool:
    return bool(buffer[at] == 114 and buffer[at + 1] == 117 and buffer[at + 2] == 101)


@inlined
def _says_RUE(buffer: Bytes, at: int) -> bool:
    return bool(buffer[at] == 82 and buffer[at + 1] == 85 and buffer[at + 2] == 69)


@inlined
def _says_alse(buffer: Bytes, at: int) -> bool:
    return bool(buffer[at] == 97 and buffer[at + 1] == 108 and buffer[at + 2] == 115 and buffer[at + 3] == 101)


@inlined
def _says_ALSE(buffer: Bytes, at: int) -> bool:
    return bool(buffer[at] == 65 and buffer[at + 1] == 76 and buffer[at + 2] == 83 and buffer[at + 3] == 69)


@inlined
def _scan_bool(buffer: Bytes, at: int) -> tuple[int, int, np.int64]:
    """(offset after it, kind, value) of the bool at ``at``, as the longest spelling that fits."""
    byte = buffer[at]
    if byte == 116 or byte == 84:
        whole = _says_rue(buffer, at + 1) or (byte == 84 and _says_RUE(buffer, at + 1))
        return at + 4 if whole else at + 1, BOOL, np.int64(1)
    if byte == 102 or byte == 70:
        whole = _says_alse(buffer, at + 1) or (byte == 70 and _says_ALSE(buffer, at + 1))
        return at + 5 if whole else at + 1, BOOL, np.int64(0)
    return at, NO_VALUE, np.int64(0)


@inlined
def _scan_value(buffer: Bytes, at: int, end: int, string_bytes_max: int) -> tuple[int, int, np.int64]:
    byte = buffer[at]
    if byte == 45 or 48 <= byte <= 57:
        return scan_number(buffer, at)
    if byte == 34:
        return _scan_string(buffer, at, end, string_bytes_max)
    return _scan_bool(buffer, at)


@inlined
def _find_name(
    buffer: Bytes, at: int, end: int, names: ByteMap, successor: Int32s, previous: int, state: Int64s
) -> tuple[int, int, bool]:
    """(offset of the equals sign, name id, newline) of the field key at ``at``.

    ``successor`` predicts it by the last name (-1: not at all). The id is -1 at a fault, and -2, with the
    status set, if there was no room.
    """
    guess = successor[previous]
    length = names.lengths[max(guess, 0)]
    fits = guess >= 0 and at + length < end and buffer[at + length] == 61
    if fits and same(buffer, at, names.arena, names.offsets[guess], length):
        return at + length, signed(guess), False
    name_end, name_hash, newline = _scan_name(buffer, at, end, U64(names.meta[SEED]))
    if name_end == at or buffer[name_end] != 61:
        return name_end, -1, newline
    found = find_or_add(names, name_hash, buffer, at, name_end - at)
    if found == FULL:
        state[STATUS] = NAMES_FULL
        state[WANTED] = name_end - at
        return at, -2, newline
    if not newline:
        # A predicted name is not looked at again, so one with a newline in it would not be counted.
        successor[previous] = found
    return name_end, found, newline


@inlined
def _scan_fields(
    buffer: Bytes,
    at: int,
    end: int,
    names: ByteMap,
    successor: Int32s,
    events: Events,
    event: int,
    settings: Int64s,
    state: Int64s,
) -> tuple[int, int, int, bool]:
    """(code, offset where the fields stop, events so far, whether newlines may be inside)."""
    previous = 0
    multiline = False
    while True:
        name_end, name, newline = _find_name(buffer, at, end, names, successor, previous, state)
        multiline |= newline
        if name < 0:
            return FAULT if name == -1 else NO_ROOM, name_end, event, multiline
        previous = name + 1
        at, kind, value = _scan_value(buffer, name_end + 1, end, settings[STRING_BYTES_MAX])
        if kind < 0:
            return FAULT, at, event, multiline
        multiline |= kind == STRING
        if event >= events.name.size:
            state[STATUS] = EVENTS_FULL
            return NO_ROOM, at, event, multiline
        events.name[event] = name
        events.kind[event] = kind
        events.value[event] = value
        event += 1
        if buffer[at] != 44:
            return GOOD, at, event, multiline
        at += 1


@inlined
def _at_line_end(buffer: Bytes, at: int) -> bool:
    return bool(buffer[at] == 10 or (buffer[at] == 13 and buffer[at + 1] == 10))


@inlined
def _skip_spaces(buffer: Bytes, at: int) -> int:
    while buffer[at] == 32:
        at += 1
    return at


@inlined
def _scan_time(buffer: Bytes, at: int, settings: Int64s) -> tuple[int, int, np.int64]:
    """(code, offset, ns) of all that follows the fields."""
    after = _skip_spaces(buffer, at)
    if _at_line_end(buffer, after):
        return GOOD, after, settings[DEFAULT_NS]
    if after == at:
        return FAULT, after, np.int64(0)
    number_end, good, timestamp = scan_timestamp(buffer, after)
    if number_end == after:
        return FAULT, after, np.int64(0)
    after = _skip_spaces(buffer, number_end)
    if not good or not _at_line_end(buffer, after):
        return FAULT, after, np.int64(0)
    in_range, time = to_nanoseconds(timestamp, settings[MULTIPLIER])
    return GOOD if in_range else OUT_OF_RANGE, after, time if in_range else timestamp


@inlined
def _newline_from(buffer: Bytes, at: int) -> int:
    while buffer[at] != 10:
        at += 1
    return at


@inlined
def _split_end(buffer: Bytes, start: int, end: int) -> int:
    """`grammar.split_end` over ``buffer[start:end]``."""
    quoted = fields = False
    balance = 0
    at = start
    while at < end:
        byte = buffer[at]
        if byte == 92:
            at += 1
        elif byte == 10 and not quoted:
            return at
        elif byte == 32:
            fields = True
        elif fields and byte == 34 and balance > 0:
            quoted = not quoted
        elif fields and not quoted:
            balance += (byte == 61) - (byte == 44)
        at += 1
    return -1 if quoted else end


@inlined
def _line_end_after_fault(buffer: Bytes, start: int, fault: int, end: int, state: Int64s) -> int:
    """Where a bad line ends. Only one scan a body may run to its end in vain, so all of them are linear."""
    split = -1 if state[OPEN_QUOTE] else _split_end(buffer, start, end)
    if split < 0:
        state[OPEN_QUOTE] = 1
    return max(split, _newline_from(buffer, min(fault, end)))


@inlined
def _continuation(buffer: Bytes, at: int, end: int, count: int) -> bool:
    """Whether ``count`` UTF-8 continuation bytes stand before ``end``."""
    if at + count > end:
        return False
    good = True
    for index in range(at, at + count):
        good &= buffer[index] & 0xC0 == 0x80
    return good


@inlined
def is_utf8(buffer: Bytes, at: int, end: int) -> bool:
    """Whether ``buffer[at:end]`` is UTF-8 by RFC 3629: no overlong forms, no surrogates, nothing above 10FFFF."""
    while at < end:
        byte = buffer[at]
        if byte < 0x80:
            at += 1
            continue
        second = buffer[at + 1]
        if 0xC2 <= byte <= 0xDF:
            count = 1
        elif 0xE0 <= byte <= 0xEF:
            count = 2
            if (byte == 0xE0 and second < 0xA0) or (byte == 0xED and second > 0x9F):
                return False
        elif 0xF0 <= byte <= 0xF4:
            count = 3
            if (byte == 0xF0 and second < 0x90) or (byte == 0xF4 and second > 0x8F):
                return False
        else:
            return False
        if not _continuation(buffer, at + 1, end, count):
            return False
        at += count + 1
    return True


@inlined
def _scan_line(
    buffer: Bytes,
    start: int,
    end: int,
    series: ByteMap,
    names: ByteMap,
    successor: Int32s,
    lines: Lines,
    events: Events,
    settings: Int64s,
    state: Int64s,
) -> tuple[int, int, bool]:
    """Scan one line into the next entry of ``lines``: (code, offset where it stopped, newlines may be inside)."""
    line, event = state[LINES], state[EVENTS]
    lines.series[line] = -1
    key_end, key_hash, newline = _scan_key(buffer, start, end, U64(series.meta[SEED]))
    if buffer[key_end] != 32:
        return FAULT, key_end, newline
    found = find_or_add(series, key_hash, buffer, start, key_end - start)
    if found == FULL:
        state[STATUS] = SERIES_FULL
        state[WANTED] = key_end - start
        return NO_ROOM, start, newline
    fields_at = _skip_spaces(buffer, key_end)
    code, at, event, multiline = _scan_fields(buffer, fields_at, end, names, successor, events, event, settings, state)
    multiline |= newline
    if code != GOOD:
        return code, at, multiline
    code, at, time = _scan_time(buffer, at, settings)
    if code != FAULT:
        lines.series[line] = found
        lines.time[line] = time
        state[EVENTS] = event
    return code, at, multiline


@inlined
def _keep_line(lines: Lines, bodies: Bodies, settings: Int64s, state: Int64s, code: int) -> None:
    """Keep the entry that was just filled, unless its body has errors enough."""
    body, line = state[BODY], state[LINES]
    if code >= FAULT:
        bodies.faults[body] += 1
        state[EVENTS] = lines.event[line]
        if bodies.faults[body] > settings[ERRORS_MAX]:
            return
    lines.code[line] = code
    lines.body[line] = body
    state[LINES] = line + 1
    lines.event[line + 1] = state[EVENTS]


@inlined
def _scan_body(
    buffer: Bytes,
    bodies: Bodies,
    series: ByteMap,
    names: ByteMap,
    successor: Int32s,
    lines: Lines,
    events: Events,
    settings: Int64s,
    state: Int64s,
) -> bool:
    """Scan on from ``state``; False, with the status set, if an array is full."""
    body = state[BODY]
    end = bodies.end[body]
    number = state[NUMBER]
    at = state[AT]
    while True:
        at, number = _skip_blanks(buffer, at, end, number)
        state[AT], state[NUMBER] = at, number
        if at >= end:
            return True
        line = state[LINES]
        if line >= lines.series.size:
            state[STATUS] = LINES_FULL
            return False
        lines.event[line] = state[EVENTS]
        code, stopped, multiline = _scan_line(buffer, at, end, series, names, successor, lines, events, settings, state)
        if code == NO_ROOM:
            return False
        if code == FAULT:
            line_end = _line_end_after_fault(buffer, at, stopped, end, state)
            multiline = True
        else:
            line_end = stopped + (buffer[stopped] == 13)
        if bodies.suspect[body] and not is_utf8(buffer, at, line_end):
            code = NOT_UTF8
        lines.start[line], lines.end[line], lines.number[line] = at, line_end, number
        bodies.lines[body] += 1
        _keep_line(lines, bodies, settings, state, code)
        number += 1
        if multiline:
            number += count_newlines(buffer, at, line_end)
        at = line_end + 1


@jit
def scan(
    buffer: Bytes,
    bodies: Bodies,
    series: ByteMap,
    names: ByteMap,
    successor: Int32s,
    lines: Lines,
    events: Events,
    settings: Int64s,
    state: Int64s,
) -> None:
    """Scan all bodies, or as many as there is room for; ``state[STATUS]`` says which. Call again to go on."""
    state[STATUS] = DONE
    while state[BODY] < bodies.start.size:
        if state[AT] < 0:
            state[AT], state[NUMBER], state[OPEN_QUOTE] = bodies.start[state[BODY]], 1, 0
        if not _scan_body(buffer, bodies, series, names, successor, lines, events, settings, state):
            return
        state[BODY] += 1
        state[AT] = -1
