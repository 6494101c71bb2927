"""Accepted rows to Arrow columns: one slab of values for a call, cut into arrays without a copy.

`parser` calls `build_tables` once a call. The work here is per column; the rows move in compiled code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa

from wire.lineprotocol import numbers, planner
from wire.lineprotocol.model import FieldColumn, FieldType, ParsedTable, TagColumn

if TYPE_CHECKING:
    import numpy.typing as npt

    from wire.lineprotocol.kernel import Events, Lines
    from wire.lineprotocol.machine import Bytes, Int32s, Int64s
    from wire.lineprotocol.memory import Memory, Table, TagCodes

DICTIONARY_VALUES_MIN: Final = 1024
"""A dictionary up to this size goes along whole; that is cheaper than cutting it down."""
DICTIONARY_VALUES_PER_ROW: Final = 4
"""A larger one goes along whole if it has at most so many values a row."""

_STRING: Final = pa.string()
_BOOL: Final = pa.bool_()
_TAG: Final = pa.dictionary(pa.int32(), pa.string())
_NUMBERS: Final[dict[int, pa.DataType]] = {
    FieldType.INT64: pa.int64(),
    FieldType.UINT64: pa.uint64(),
    FieldType.FLOAT64: pa.float64(),
}
_FIELD_TYPES: Final = tuple(FieldType)
_ALIGNMENT: Final = 8
"""Validity bitmaps start at multiples of this."""


class _Slab(NamedTuple):
    """The rows of a call: values of all columns, validity of those with nulls, and what each row is."""

    values: Int64s
    validity: Bytes
    times: Int64s
    origins: npt.NDArray[np.int32]


class _Used(NamedTuple):
    """A field column with a value in this call."""

    column: int
    name: str
    kind: int


def build_tables(
    memory: Memory, buffer: Bytes, lines: Lines, events: Events, count: int, plan: planner.Plan
) -> list[ParsedTable]:
    """The tables that have an accepted row, in the order of their first. Clears the call's counts."""
    ordered = int(plan.meta[planner.ORDERED])
    if ordered == 0:
        return []
    arrays = memory.table_arrays
    order = arrays.order[:ordered].tolist()
    used = np.flatnonzero(memory.columns.values[: memory.pairs.used[0]])
    by_table = _group(memory, used, order)
    slab = _lay_out(memory, order, by_table)
    planner.scatter(
        count, lines, events, memory.series, memory.columns, arrays, plan,
        slab.values, slab.validity, slab.times, slab.origins,
    )  # fmt: skip
    new = _new_columns(memory, plan.defined[: plan.meta[planner.DEFINED]])
    tables = [
        _build(memory, memory.tables[table], buffer, slab, by_table[table], new.get(table, ([], []))) for table in order
    ]
    memory.columns.values[used] = 0
    return tables


def _group(memory: Memory, used: Int64s, order: list[int]) -> dict[int, list[_Used]]:
    """The used columns of each table."""
    columns = memory.columns
    groups: dict[int, list[_Used]] = {table: [] for table in order}
    owners = columns.table[used].tolist()
    kinds = columns.kind[used].tolist()
    for column, owner, kind in zip(used.tolist(), owners, kinds, strict=True):
        groups[owner].append(_Used(column, memory.column_names[column], kind))
    return groups


def _lay_out(memory: Memory, order: list[int], by_table: dict[int, list[_Used]]) -> _Slab:
    """Give each table and each used column its place."""
    columns, tables = memory.columns, memory.table_arrays
    cells = bits = rows = 0
    for table in order:
        size = int(tables.rows[table])
        tables.base[table] = rows
        rows += size
        for column, _, _ in by_table[table]:
            columns.base[column] = cells
            cells += size
            if columns.values[column] == size:
                columns.nulls[column] = -1
            else:
                columns.nulls[column] = bits
                bits += -(-size // (8 * _ALIGNMENT)) * _ALIGNMENT
    # Values under a null are zero, never what the memory held before.
    values = np.zeros(cells, np.int64) if bits else np.empty(cells, np.int64)
    return _Slab(values, np.zeros(bits, np.uint8), np.empty(rows, np.int64), np.empty((3, rows), np.int32))


def _build(
    memory: Memory, table: Table, buffer: Bytes, slab: _Slab, used: list[_Used], new: tuple[list[str], list[str]]
) -> ParsedTable:
    rows = int(memory.table_arrays.rows[table.id])
    first = int(memory.table_arrays.base[table.id])
    part = slice(first, first + rows)
    new_tags, new_fields = new
    return ParsedTable(
        name=table.name,
        rows=rows,
        time=slab.times[part],
        tags=_build_tags(table, slab.origins[0, part], new_tags),
        fields=[_build_field(memory, buffer, slab, one, rows) for one in _in_order(used, table, new_fields)],
        new_tags=tuple(new_tags),
        new_fields=tuple(new_fields),
        body=slab.origins[1, part],
        line=slab.origins[2, part],
        series=slab.origins[0, part],
        numbering=table.numbering,
    )


def _new_columns(memory: Memory, defined: Int32s) -> dict[int, tuple[list[str], list[str]]]:
    """Of each table, the (tags, fields) that accepted lines made, in their order."""
    new: dict[int, tuple[list[str], list[str]]] = {}
    if not defined.size:
        return new
    names = memory.column_names
    owners = memory.columns.table[defined].tolist()
    kinds = memory.columns.kind[defined].tolist()
    for column, owner, kind in zip(defined.tolist(), owners, kinds, strict=True):
        new.setdefault(owner, ([], []))[kind != planner.TAG].append(names[column])
    return new


def _in_order(used: list[_Used], table: Table, new_fields: list[str]) -> list[_Used]:
    """Known fields first, in the catalog's order, then the new ones in theirs."""
    place = table.order
    if new_fields:
        place = place | {name: len(place) + position for position, name in enumerate(new_fields)}
    return sorted(used, key=lambda one: place[one.name])


def _build_tags(table: Table, series: Int32s, new_tags: list[str]) -> list[TagColumn]:
    names = [name for name in table.order if name in table.tags] if table.order else []
    names += new_tags
    built = (_build_tag(table, name, table.tags[name], series) for name in names)
    return [tag for tag in built if tag is not None]


def _build_tag(table: Table, name: str, tag: TagCodes, series: Int32s) -> TagColumn | None:
    """The tag of each row as a dictionary array; None if no row has it."""
    codes = tag.take(series, table.series)
    nullable = False
    if tag.series < table.series:
        missing = int(np.count_nonzero(codes < 0))
        if missing == codes.size:
            return None
        nullable = missing > 0
    values = len(tag.values)
    if values > DICTIONARY_VALUES_MIN and values > DICTIONARY_VALUES_PER_ROW * codes.size:
        used: Int32s = np.empty(codes.size, np.int32)
        places, stamps, stamp = tag.compaction()
        dictionary = tag.pick(used[: planner.compact(codes, places, stamps, stamp, used)])
    else:
        dictionary = tag.dictionary()
    validity = _bitmap(codes >= 0) if nullable else None
    if nullable:
        np.maximum(codes, 0, out=codes)
    array = pa.DictionaryArray.from_buffers(_TAG, codes.size, [validity, pa.py_buffer(codes)], dictionary)
    return TagColumn(name, array, nullable)


def _build_field(memory: Memory, buffer: Bytes, slab: _Slab, used: _Used, rows: int) -> FieldColumn:
    base = int(memory.columns.base[used.column])
    nulls = int(memory.columns.nulls[used.column])
    values = slab.values[base : base + rows]
    validity = None
    if nulls >= 0:
        validity = pa.py_buffer(slab.validity[nulls : nulls + -(-rows // 8)])
    if used.kind == numbers.STRING:
        array = _build_strings(buffer, values, validity)
    elif used.kind == numbers.BOOL:
        array = pa.Array.from_buffers(_BOOL, rows, [validity, _bitmap(values != 0)])
    else:
        array = pa.Array.from_buffers(_NUMBERS[used.kind], rows, [validity, pa.py_buffer(values)])
    return FieldColumn(used.name, _FIELD_TYPES[used.kind], array)


def _build_strings(buffer: Bytes, values: Int64s, validity: pa.Buffer | None) -> pa.Array:
    out = np.empty(planner.string_bytes(values), np.uint8)
    offsets = np.empty(values.size + 1, np.int32)
    planner.gather_strings(buffer, values, offsets, out)
    data = out[: offsets[-1]]
    return pa.Array.from_buffers(_STRING, values.size, [validity, pa.py_buffer(offsets), pa.py_buffer(data)])


def _bitmap(bits: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(bits, bitorder="little"))
