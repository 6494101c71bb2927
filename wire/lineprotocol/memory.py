"""What a parser keeps from call to call: series, names, tables, columns, tag dictionaries.

`parser` fills it for what is new in a call, in Python and once for each distinct thing; the kernel reads
the arrays. It only grows, until `Memory.bytes` passes the limit: then the parser drops all of it and
starts over. What was handed out (Arrow arrays) shares nothing with it that is ever changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wire.lineprotocol import bytemap, grammar
from wire.lineprotocol.errors import LineRefused
from wire.lineprotocol.messages import Kind
from wire.lineprotocol.model import RESERVED_PREFIX, TIME_COLUMN, KnownTable, Numbering, ParserLimits
from wire.lineprotocol.planner import Columns, Pairs, Series, Tables, TagSets, rehash_pairs

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from wire.lineprotocol.machine import Int32s

SERIES_FIRST: Final = 1024
NAMES_FIRST: Final = 64
COLUMNS_FIRST: Final = 256

# Estimates for `Memory.bytes`, from sys.getsizeof and the arrays beside each thing; keys and values come on top.
SERIES_BYTES: Final = 80
TAG_OF_SERIES_BYTES: Final = 8
TAG_VALUE_BYTES: Final = 200
COLUMN_BYTES: Final = 300
TABLE_BYTES: Final = 2000

_INT32: Final = pa.int32()
_STRING: Final = pa.string()
_Scalar = TypeVar("_Scalar", bound=np.generic)


def enlarged(array: npt.NDArray[_Scalar], size: int, fill: int = 0) -> npt.NDArray[_Scalar]:
    """An array of at least ``size`` entries: itself, or a copy at least twice as large; new entries are ``fill``."""
    if array.size >= size:
        return array
    new = np.full(max(size, 2 * array.size), fill, array.dtype)
    new[: array.size] = array
    return new


def _strings(values: list[bytes]) -> pa.Array:
    """An array of these strings. (`pa.array` would import pandas, if it is there, to look for its types.)"""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(_STRING, len(values), buffers)


class TagCodes:
    """One tag of one table: its values by code, and the code of each series of the table (-1: has none)."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.codes: dict[str, int] = {}
        self.by_series: Int32s = np.full(64, -1, np.int32)
        self.series = 0
        """How many series of the table have this tag."""
        self._arrow: pa.Array | None = None
        self._stamps = np.zeros(0, np.int64)
        self._places: Int32s = np.zeros(0, np.int32)
        self._stamp = 0

    def set(self, series: int, value: str) -> int:
        """Give a series its value; return how many bytes that may have cost."""
        if series >= self.by_series.size:
            self.by_series = enlarged(self.by_series, series + 1, -1)
        self.series += 1
        code = self.codes.get(value)
        cost = TAG_OF_SERIES_BYTES
        if code is None:
            code = self.codes[value] = len(self.values)
            encoded = value.encode()
            self.values.append(encoded)
            cost += TAG_VALUE_BYTES + 3 * len(encoded)
        self.by_series[series] = code
        return cost

    def take(self, series: Int32s, table_series: int) -> Int32s:
        """The codes of these series of a table that has ``table_series``, as an array of the caller's own."""
        if table_series > self.by_series.size:
            self.by_series = enlarged(self.by_series, table_series, -1)
        return self.by_series.take(series)

    def dictionary(self) -> pa.Array:
        """All values by code."""
        if self._arrow is None or len(self._arrow) != len(self.values):
            self._arrow = _strings(self.values)
        return self._arrow

    def pick(self, used: Int32s) -> pa.Array:
        """The values of some codes, without building the whole dictionary for them."""
        if self._arrow is not None and len(self._arrow) == len(self.values):
            return self._arrow.take(pa.Array.from_buffers(_INT32, used.size, [None, pa.py_buffer(used)]))
        return _strings([self.values[code] for code in used.tolist()])

    def compaction(self) -> tuple[Int32s, npt.NDArray[np.int64], int]:
        """(places, stamps, a fresh stamp) for `planner.compact`."""
        if self._stamps.size < len(self.values):
            self._stamps = enlarged(self._stamps, len(self.values))
            self._places = enlarged(self._places, len(self.values))
        self._stamp += 1
        return self._places, self._stamps, self._stamp


@dataclass(slots=True)
class Table:
    """One table by name: its canonical columns, its tags, and what the catalog last said of it."""

    id: int
    name: str
    columns: dict[str, int] = field(default_factory=dict)
    tags: dict[str, TagCodes] = field(default_factory=dict)
    tagsets: dict[tuple[str, ...], int] = field(default_factory=dict)
    series: int = 0
    numbering: Numbering = field(default_factory=Numbering)
    told: bool = False
    """Whether `tell` was ever called."""
    key: Hashable = None
    order: dict[str, int] = field(default_factory=dict)
    """Known columns, name to position: tags, then fields."""
    kinds: dict[str, int] = field(default_factory=dict)

    def kind_of(self, name: str) -> int:
        """What the catalog, or a rule, says of a column."""
        if name == TIME_COLUMN:
            return Kind.TIME
        if name.startswith(RESERVED_PREFIX):
            return Kind.RESERVED
        return self.kinds.get(name, Kind.NONE)


class Memory:
    """All of it. The NamedTuples of arrays are replaced when they grow; nobody else keeps one over a call."""

    def __init__(self, limits: ParserLimits) -> None:
        self._limits = limits
        self.series_map = bytemap.create(SERIES_FIRST, SERIES_FIRST * 64)
        self.series = Series(*(np.full(SERIES_FIRST, -1, np.int32) for _ in range(3)))
        self.refusals: dict[int, str | None] = {}
        """Series that no schema can make good; None where the grammar explains it."""
        self._series_known = 0
        self.names_map = bytemap.create(NAMES_FIRST, NAMES_FIRST * 16)
        self.successor: Int32s = np.full(NAMES_FIRST + 1, -1, np.int32)
        self._names: dict[int, str | None] = {}
        self.tables: list[Table] = []
        self._by_name: dict[str, Table] = {}
        self.table_arrays = Tables(
            np.full(64, -1, np.int32), np.zeros(64, np.int64), np.zeros(64, np.int64), np.zeros(64, np.int64),
            np.zeros(64, np.int32),
        )  # fmt: skip
        self.tagsets = TagSets(np.zeros(64, np.int32), np.zeros(256, np.int32), np.zeros(64, np.int64))
        self._tagset_count = 0
        self.columns = _create_columns(COLUMNS_FIRST)
        self.pairs = _create_pairs(COLUMNS_FIRST)
        self._columns_known = 0
        self.column_names: list[str] = []
        """Of each column id, the name users see."""
        self.defined: Int32s = np.zeros(COLUMNS_FIRST, np.int32)
        self._python_bytes = 0

    @property
    def bytes(self) -> int:
        """An estimate of what all this occupies."""
        arenas = int(self.series_map.meta[bytemap.ARENA_USED]) + int(self.names_map.meta[bytemap.ARENA_USED])
        return arenas + self._python_bytes

    def grow_series(self, key_bytes: int) -> None:
        """Make room for a raw series key."""
        self.series_map = bytemap.grown(self.series_map, key_bytes + bytemap.ARENA_SLACK)

    def grow_names(self, key_bytes: int) -> None:
        """Make room for a raw field name."""
        self.names_map = bytemap.grown(self.names_map, key_bytes + bytemap.ARENA_SLACK)
        self.successor = enlarged(self.successor, self.names_map.offsets.size + 1, -1)

    def grow_columns(self, count: int) -> None:
        """Make room for ``count`` more columns."""
        size = self.columns.table.size
        while size < int(self.pairs.used[0]) + count:
            size *= 2
        if size == self.columns.table.size:
            return
        old = self.columns
        self.columns = _create_columns(size)
        for source, target in zip(cast("Iterable[Any]", old), cast("Iterable[Any]", self.columns), strict=True):
            target[: source.size] = source
        used = self.pairs.used
        self.pairs = _create_pairs(size)
        self.pairs.used[:] = used
        rehash_pairs(self.columns, self.pairs)
        self.defined = enlarged(self.defined, size)

    def learn_series(self) -> None:
        """Parse the series keys that the last scan added."""
        count = int(self.series_map.meta[bytemap.COUNT])
        if count > self.series.table.size:
            self.series = Series(*(enlarged(array, count, -1) for array in self.series))
        for series in range(self._series_known, count):
            self._python_bytes += SERIES_BYTES
            try:
                name, tags = grammar.read_series_key(bytemap.key_of(self.series_map, series), self._limits)
            except (LineRefused, UnicodeDecodeError):
                self.refusals[series] = None
                continue
            refusal = grammar.refused_series(name, tags)
            if refusal is None:
                self._add_series(series, name, tags)
            else:
                self.refusals[series] = refusal
        self._series_known = count

    def _add_series(self, series: int, name: str, tags: list[tuple[str, str]]) -> None:
        table = self._by_name.get(name)
        if table is None:
            table = self._add_table(name)
        self.series.table[series] = table.id
        self.series.local[series] = local = table.series
        table.series += 1
        keys = tuple(key for key, _ in tags)
        tagset = table.tagsets.get(keys)
        if tagset is None:
            tagset = table.tagsets[keys] = self._add_tagset(table, keys)
        self.series.tagset[series] = tagset
        for key, value in tags:
            self._python_bytes += table.tags[key].set(local, value)

    def _add_table(self, name: str) -> Table:
        table = Table(len(self.tables), name)
        self.tables.append(table)
        self._by_name[name] = table
        if table.id >= self.table_arrays.first.size:
            size = table.id + 1
            first, width, rows, base, order = self.table_arrays
            self.table_arrays = Tables(
                enlarged(first, size, -1), enlarged(width, size), enlarged(rows, size), enlarged(base, size),
                enlarged(order, size),
            )  # fmt: skip
        self._python_bytes += TABLE_BYTES + 3 * len(name)
        return table

    def _add_tagset(self, table: Table, keys: tuple[str, ...]) -> int:
        columns = [self._column(table, key) for key in keys]
        for key in keys:
            if key not in table.tags:
                table.tags[key] = TagCodes()
        tagset = self._tagset_count
        self._tagset_count += 1
        first, members, proven = self.tagsets
        start = int(first[tagset])
        if tagset + 2 > first.size:
            first, proven = enlarged(first, tagset + 2), enlarged(proven, tagset + 2)
        if start + len(columns) > members.size:
            members = enlarged(members, start + len(columns))
        members[start : start + len(columns)] = columns
        first[tagset + 1] = start + len(columns)
        self.tagsets = TagSets(first, members, proven)
        self._python_bytes += TAG_OF_SERIES_BYTES * len(keys) + COLUMN_BYTES
        return tagset

    def _column(self, table: Table, name: str) -> int:
        """The canonical column of a name that the user means, made if need be."""
        found = table.columns.get(name)
        if found is not None:
            return found
        self.learn_columns()
        self.grow_columns(1)
        column = int(self.pairs.used[0])
        self.pairs.used[0] = column + 1
        self.columns.table[column] = table.id
        self.columns.name[column] = -1
        self.columns.successor[column] = -1
        self._name_column(table, column, name)
        self._columns_known = column + 1
        return column

    def _name_column(self, table: Table, column: int, name: str) -> None:
        """Let a fresh column id stand for ``name``."""
        self.column_names.append(name)
        self.columns.canonical[column] = canonical = table.columns.setdefault(name, column)
        self.columns.kind[column] = table.kind_of(name)
        self._python_bytes += COLUMN_BYTES + (3 * len(name) if canonical == column else 0)

    def learn_columns(self) -> None:
        """Read the names of the columns that `planner.resolve` added."""
        for column in range(self._columns_known, int(self.pairs.used[0])):
            table = self.tables[int(self.columns.table[column])]
            name = self.field_name(int(self.columns.name[column]))
            if name is not None:
                self._name_column(table, column, name)
                continue
            self.column_names.append("")
            self.columns.canonical[column] = column
            self.columns.kind[column] = Kind.BROKEN
        self._columns_known = int(self.pairs.used[0])

    def field_name(self, raw: int) -> str | None:
        """What a raw field name means; None if it breaks the grammar."""
        if raw not in self._names:
            try:
                self._names[raw] = grammar.read_name(bytemap.key_of(self.names_map, raw), self._limits)
            except (LineRefused, UnicodeDecodeError):
                self._names[raw] = None
            self._python_bytes += COLUMN_BYTES
        return self._names[raw]

    def tell(self, table: Table, known: KnownTable | None) -> None:
        """Let the catalog's word stand for the table, if it is not the last one."""
        key = known.key if known else None
        if table.told and key == table.key:
            return
        table.told, table.key = True, key
        table.kinds = {}
        if known:
            table.kinds.update(dict.fromkeys(known.tags, Kind.TAG))
            table.kinds.update({name: int(kind) for name, kind in known.fields.items()})
        table.order = {name: position for position, name in enumerate(table.kinds)}
        for name, column in table.columns.items():
            self.columns.kind[column] = table.kind_of(name)
        self.table_arrays.width[table.id] = 1 + len(table.kinds)


def _create_columns(size: int) -> Columns:
    table, name, canonical, successor = (np.full(size, -1, np.int32) for _ in range(4))
    seen, values, base, nulls = (np.zeros(size, np.int64) for _ in range(4))
    kind = np.full(size, Kind.NONE, np.uint8)
    return Columns(table, name, canonical, successor, kind, seen, values, base, nulls)


def _create_pairs(columns: int) -> Pairs:
    return Pairs(np.zeros(2 * columns, np.uint64), np.full(2 * columns, -1, np.int32), np.zeros(1, np.int64))
