"""The compiled half of planning: events to columns, lines to accepted rows, rows to Arrow's buffers.

`parser` drives the steps in this order: `resolve` (which column is each event of which table), `plan`
(which lines fit their tables), `count` (how many rows and values there are), `scatter` (values to their
places), `gather_strings` and `compact` (one column each).

A *column id* stands for one raw spelling of a name in one table; several spellings share the column
that ``canonical`` names. Ids live in the parser from call to call, all else is the call's.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from wire.lineprotocol.bytemap import U64, mix
from wire.lineprotocol.kernel import GOOD, OUT_OF_RANGE, Events, Lines
from wire.lineprotocol.machine import Bytes, Int32s, Int64s, UInt64s, inlined, jit, signed

# Kinds of column, as in `messages.Kind`.
TAG: Final = 5
RESERVED: Final = 7
BROKEN: Final = 8
NONE: Final = 9

# What is wrong with a line; `errors.CODE`.
FINE: Final = 0
BAD_LINE: Final = 1
"""Its code or its series says so."""
CONFLICT: Final = 2
DUPLICATE: Final = 3
RESERVED_NAME: Final = 4
TOO_MANY_COLUMNS: Final = 5

# What a body asks for.
PARTIAL: Final = 0
STRICT: Final = 1
EXCLUDED: Final = 2

REFUSED: Final = -1
ACCEPTED: Final = 0


class Columns(NamedTuple):
    """Columns by id. ``seen`` and ``kind`` are of canonical columns; ``values`` to ``nulls`` are the call's."""

    table: Int32s
    name: Int32s
    canonical: Int32s
    successor: Int32s
    kind: Bytes
    seen: Int64s
    values: Int64s
    base: Int64s
    nulls: Int64s


class Pairs(NamedTuple):
    """(table, raw name) -> column id, open addressing; ``id`` is -1 in free slots. ``used`` is [columns]."""

    key: UInt64s
    id: Int32s
    used: Int64s


class Series(NamedTuple):
    """Series by id: the table (-1: refused), the number within the table, the set of tag keys."""

    table: Int32s
    local: Int32s
    tagset: Int32s


class TagSets(NamedTuple):
    """Sets of tag keys: ``columns[first[s]:first[s + 1]]``; ``proven`` is the stamp under which all are tags."""

    first: Int32s
    columns: Int32s
    proven: Int64s


class Tables(NamedTuple):
    """Tables by id. ``first`` predicts the column of a line's first field; the rest is the call's."""

    first: Int32s
    width: Int64s
    rows: Int64s
    base: Int64s
    order: Int32s


class Plan(NamedTuple):
    """The growing plan of a call.

    ``row`` is by line. ``defined`` lists the columns that accepted lines made, ``errors`` rows of
    (line, what, column, expected kind, got kind). ``wish`` and ``rows`` are by body. ``meta`` holds
    [defined, errors, token, stamp, tables in order].
    """

    row: Int32s
    defined: Int32s
    errors: Int32s
    wish: Bytes
    rows: Int64s
    meta: Int64s


DEFINED: Final = 0
ERRORS: Final = 1
TOKEN: Final = 2
STAMP: Final = 3
ORDERED: Final = 4


@jit
def resolve(
    lines: Lines, first: int, count: int, events: Events, series: Series, columns: Columns, pairs: Pairs, tables: Tables
) -> int:
    """Give each event of lines [first, count) its column id in place of its name id.

    Returns ``count``, or the line for which there was no room: make some and call again from there.
    """
    for line in range(first, count):
        if lines.code[line] > OUT_OF_RANGE:
            continue
        table = series.table[lines.series[line]]
        if table < 0:
            continue
        if pairs.used[0] + lines.event[line + 1] - lines.event[line] > columns.table.size:
            return line
        _resolve_line(lines.event[line], lines.event[line + 1], table, events, columns, pairs, tables)
    return count


@inlined
def _resolve_line(
    first: int, end: int, table: int, events: Events, columns: Columns, pairs: Pairs, tables: Tables
) -> None:
    previous = -1
    for event in range(first, end):
        name = events.name[event]
        column = tables.first[table] if previous < 0 else columns.successor[previous]
        if column < 0 or columns.name[column] != name or columns.table[column] != table:
            column = _find_or_add_column(table, name, columns, pairs)
            if previous < 0:
                tables.first[table] = column
            else:
                columns.successor[previous] = column
        events.name[event] = column
        previous = column


@inlined
def _find_or_add_column(table: int, name: int, columns: Columns, pairs: Pairs) -> int:
    key = (U64(table) << U64(32)) | U64(name)
    mask = pairs.id.size - 1
    slot = signed(mix(U64(0), key) & U64(mask))
    while pairs.id[slot] >= 0:
        if pairs.key[slot] == key:
            return signed(pairs.id[slot])
        slot = (slot + 1) & mask
    column = pairs.used[0]
    pairs.used[0] = column + 1
    pairs.key[slot] = key
    pairs.id[slot] = column
    columns.table[column] = table
    columns.name[column] = name
    columns.successor[column] = -1
    return signed(column)


@jit
def rehash_pairs(columns: Columns, pairs: Pairs) -> None:
    """Put all columns that have a raw name into fresh ``pairs``."""
    mask = pairs.id.size - 1
    for column in range(pairs.used[0]):
        if columns.name[column] < 0:
            continue
        key = (U64(columns.table[column]) << U64(32)) | U64(columns.name[column])
        slot = signed(mix(U64(0), key) & U64(mask))
        while pairs.id[slot] >= 0:
            slot = (slot + 1) & mask
        pairs.key[slot] = key
        pairs.id[slot] = column


@inlined
def _define(column: int, kind: int, columns: Columns, tables: Tables, plan: Plan, columns_max: int) -> bool:
    """Make a column of this kind; False if its table has as many as it may have."""
    table = columns.table[column]
    if tables.width[table] >= columns_max:
        return False
    tables.width[table] += 1
    columns.kind[column] = kind
    plan.defined[plan.meta[DEFINED]] = column
    plan.meta[DEFINED] += 1
    return True


@jit
def undo(mark: int, columns: Columns, tables: Tables, plan: Plan) -> None:
    """Forget the columns defined since there were ``mark`` of them."""
    for index in range(mark, plan.meta[DEFINED]):
        column = plan.defined[index]
        columns.kind[column] = NONE
        tables.width[columns.table[column]] -= 1
    plan.meta[DEFINED] = mark


@inlined
def _check_tags(
    tagset: int, tagsets: TagSets, columns: Columns, tables: Tables, plan: Plan, columns_max: int
) -> tuple[int, int, int, int]:
    """(what is wrong, column, expected, got) with a line's tags; defines those that are new."""
    for index in range(tagsets.first[tagset], tagsets.first[tagset + 1]):
        column = tagsets.columns[index]
        kind = columns.kind[column]
        if kind == TAG:
            continue
        if kind != NONE:
            return CONFLICT, column, kind, TAG
        if not _define(column, TAG, columns, tables, plan, columns_max):
            return TOO_MANY_COLUMNS, column, kind, TAG
    return FINE, 0, 0, 0


@inlined
def _check_fields(
    first: int, end: int, events: Events, columns: Columns, tables: Tables, plan: Plan, columns_max: int
) -> tuple[int, int, int, int]:
    """The same for a line's fields. Leaves canonical column ids in the events."""
    token = plan.meta[TOKEN] + 1
    plan.meta[TOKEN] = token
    for event in range(first, end):
        column = columns.canonical[events.name[event]]
        kind, got = columns.kind[column], events.kind[event]
        if kind != got or columns.seen[column] == token:
            if kind == RESERVED:
                return RESERVED_NAME, column, kind, got
            if columns.seen[column] == token:
                return DUPLICATE, column, kind, got
            if kind != NONE:
                return CONFLICT, column, kind, got
            if not _define(column, got, columns, tables, plan, columns_max):
                return TOO_MANY_COLUMNS, column, kind, got
        columns.seen[column] = token
        events.name[event] = column
    return FINE, 0, 0, 0


@inlined
def _check_line(
    line: int,
    lines: Lines,
    events: Events,
    series: Series,
    tagsets: TagSets,
    columns: Columns,
    tables: Tables,
    plan: Plan,
    columns_max: int,
) -> tuple[int, int, int, int]:
    """(what is wrong, column, expected, got); a bad line has changed nothing."""
    code = lines.code[line]
    if code > OUT_OF_RANGE or series.table[lines.series[line]] < 0:
        return BAD_LINE, 0, 0, 0
    mark = plan.meta[DEFINED]
    tagset = series.tagset[lines.series[line]]
    wrong, column, expected, got = FINE, 0, 0, 0
    if tagsets.proven[tagset] != plan.meta[STAMP]:
        wrong, column, expected, got = _check_tags(tagset, tagsets, columns, tables, plan, columns_max)
    if wrong == FINE:
        first, end = lines.event[line], lines.event[line + 1]
        wrong, column, expected, got = _check_fields(first, end, events, columns, tables, plan, columns_max)
    if wrong == FINE and code != GOOD:
        wrong = BAD_LINE
    if wrong == FINE:
        tagsets.proven[tagset] = plan.meta[STAMP]
    else:
        undo(mark, columns, tables, plan)
    return wrong, column, expected, got


@inlined
def _record(plan: Plan, line: int, wrong: int, column: int, expected: int, got: int) -> None:
    at = plan.meta[ERRORS]
    plan.errors[at, 0] = line
    plan.errors[at, 1] = wrong
    plan.errors[at, 2] = column
    plan.errors[at, 3] = expected
    plan.errors[at, 4] = got
    plan.meta[ERRORS] = at + 1


@inlined
def _refuse_body(first: int, line: int, mark: int, columns: Columns, tables: Tables, plan: Plan) -> None:
    """Take back all that the body did whose lines [first, line) were planned."""
    for index in range(first, line):
        plan.row[index] = REFUSED
    undo(mark, columns, tables, plan)
    plan.meta[STAMP] += 1


@jit
def plan_lines(
    count: int,
    lines: Lines,
    events: Events,
    series: Series,
    tagsets: TagSets,
    columns: Columns,
    tables: Tables,
    plan: Plan,
    columns_max: int,
    errors_max: int,
) -> None:
    """Judge each line after the ones before it; write ``plan``."""
    body = -1
    body_first = body_mark = body_errors = 0
    for line in range(count):
        if lines.body[line] != body:
            body = lines.body[line]
            body_first, body_mark, body_errors = line, plan.meta[DEFINED], 0
        plan.row[line] = REFUSED
        if plan.wish[body] == EXCLUDED or (plan.wish[body] == STRICT and body_errors > 0):
            continue
        wrong, column, expected, got = _check_line(
            line, lines, events, series, tagsets, columns, tables, plan, columns_max
        )
        if wrong == FINE:
            plan.row[line] = ACCEPTED
            continue
        body_errors += 1
        if body_errors <= errors_max:
            _record(plan, line, wrong, column, expected, got)
        if plan.wish[body] == STRICT:
            _refuse_body(body_first, line, body_mark, columns, tables, plan)


@jit
def count_rows(
    count: int, lines: Lines, events: Events, series: Series, columns: Columns, tables: Tables, plan: Plan
) -> None:
    """Number the rows of each table, count the values of each column; list the tables by their first row."""
    for line in range(count):
        if plan.row[line] == REFUSED:
            continue
        table = series.table[lines.series[line]]
        row = tables.rows[table]
        if row == 0:
            tables.order[plan.meta[ORDERED]] = table
            plan.meta[ORDERED] += 1
        plan.row[line] = row
        tables.rows[table] = row + 1
        plan.rows[lines.body[line]] += 1
        for event in range(lines.event[line], lines.event[line + 1]):
            columns.values[events.name[event]] += 1


@jit
def scatter(
    count: int,
    lines: Lines,
    events: Events,
    series: Series,
    columns: Columns,
    tables: Tables,
    plan: Plan,
    values: Int64s,
    validity: Bytes,
    times: Int64s,
    origins: Int32s,
) -> None:
    """Write each accepted line to its row.

    ``values`` holds each column's 64-bit values from ``columns.base`` on, ``validity`` its bits from byte
    ``columns.nulls`` on (-1: it has no nulls). ``origins`` has 3 rows: series within the table, body, line.
    """
    for line in range(count):
        row = plan.row[line]
        if row == REFUSED:
            continue
        found = lines.series[line]
        at = tables.base[series.table[found]] + row
        times[at] = lines.time[line]
        origins[0, at] = series.local[found]
        origins[1, at] = lines.body[line]
        origins[2, at] = lines.number[line]
        for event in range(lines.event[line], lines.event[line + 1]):
            column = events.name[event]
            values[columns.base[column] + row] = events.value[event]
            nulls = columns.nulls[column]
            if nulls >= 0:
                validity[nulls + (row >> 3)] |= np.uint8(1 << (row & 7))


@jit
def string_bytes(values: Int64s) -> int:
    """Bytes of all strings of a column before their escapes are resolved. A null's value is 0."""
    total = 0
    for row in range(values.size):
        total += (values[row] & 0xFFFFFFFF) >> 1
    return total


@jit
def gather_strings(buffer: Bytes, values: Int64s, offsets: Int32s, out: Bytes) -> None:
    """Copy a column's strings together, resolving escapes; ``offsets`` has one entry more than there are rows."""
    at = 0
    for row in range(values.size):
        offsets[row] = at
        source = values[row] >> 32
        length = (values[row] & 0xFFFFFFFF) >> 1
        if values[row] & 1 == 0:
            for index in range(length):
                out[at + index] = buffer[source + index]
            at += length
        else:
            at = _copy_unescaped(buffer, source, source + length, out, at)
    offsets[values.size] = at


@inlined
def _copy_unescaped(buffer: Bytes, source: int, end: int, out: Bytes, at: int) -> int:
    while source < end:
        byte = buffer[source]
        if byte == 92 and source + 1 < end and (buffer[source + 1] == 34 or buffer[source + 1] == 92):
            source += 1
            byte = buffer[source]
        out[at] = byte
        at += 1
        source += 1
    return at


@jit
def compact(codes: Int32s, places: Int32s, stamps: Int64s, stamp: int, used: Int32s) -> int:
    """Renumber ``codes`` in place by first use; ``used`` gets the old codes. Returns how many there are.

    ``stamps`` and ``places`` have one entry for each old code; a stamp is used once. -1 (null) stays.
    """
    count = 0
    for row in range(codes.size):
        code = codes[row]
        if code < 0:
            continue
        if stamps[code] != stamp:
            stamps[code] = stamp
            places[code] = count
            used[count] = code
            count += 1
        codes[row] = places[code]
    return count
