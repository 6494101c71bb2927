"""The SQL that turns layers of a table into the table that users see: pure text.

`engine.views` registers each layer under the name it gives here. Users see columns by their names, sorted, as
InfluxDB has them; layers have storage names.
"""

# ruff: noqa: S608 - identifiers are quoted by `quote`, everything else is a constant or an integer

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storage.schema import OFFSET_COLUMN, TIME_COLUMN, Role, TypeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.layers import Range
    from storage.schema import Column, Table

SQL_TYPES: Final = {
    TypeKind.INT64: "Int64",
    TypeKind.UINT64: "UInt64",
    TypeKind.FLOAT64: "Float64",
    TypeKind.STRING: "Utf8View",
    TypeKind.BOOL: "Boolean",
    TypeKind.TIMESTAMP: "Timestamp(ns)",
}


NEWER: Final = "_runnel_newer"
OLDER: Final = "_runnel_older"
"""The two sides of a merge; `engine.stoppable` knows merges by them."""


def quote(name: str) -> str:
    """A name as a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def shown(table: Table) -> list[Column]:
    """The columns in the order of `SELECT *`: by name, as InfluxDB has them."""
    return sorted(table.columns, key=lambda column: column.name)


def keys(table: Table) -> list[Column]:
    """The columns of the primary key."""
    return [column for column in shown(table) if column.role is not Role.FIELD]


def join_layers(table: Table, frames: Sequence[str]) -> str:
    """Merge layers, newest first, each with unique keys: per field the newest value (FORMAT F11).

    IS NOT DISTINCT FROM in every term, in parentheses, lets DataFusion take one hash join in which NULL tags are
    equal; a term of another kind among them, or no parentheses, would not.
    """
    matches = " AND ".join(
        f"({NEWER}.{quote(c.name)} IS NOT DISTINCT FROM {OLDER}.{quote(c.name)})" for c in keys(table)
    )
    items = ", ".join(
        f"coalesce({NEWER}.{quote(c.name)}, {OLDER}.{quote(c.name)}) AS {quote(c.name)}" for c in shown(table)
    )
    newest, *older = frames
    text = newest
    for frame in older:
        text = f"(SELECT {items} FROM {text} AS {NEWER} FULL JOIN {frame} AS {OLDER} ON {matches})"
    return f"SELECT {_names(shown(table))} FROM {text} AS merged"


def group_layers(table: Table, frames: Sequence[str]) -> str:
    """Merge any number of layers that carry their offsets; slower than `join_layers`, but it spills."""
    by_key = {column.name for column in keys(table)}
    offset = quote(OFFSET_COLUMN)
    items = [
        name
        if column.name in by_key
        else f"last_value({name} ORDER BY {offset}) FILTER (WHERE {name} IS NOT NULL) AS {name}"
        for column in shown(table)
        for name in (quote(column.name),)
    ]
    union = union_all([f"SELECT * FROM {frame}" for frame in frames])
    return f"SELECT {', '.join(items)} FROM ({union}) AS layers GROUP BY {_names(keys(table))}"


def union_all(parts: Iterable[str]) -> str:
    """The rows of all parts."""
    return " UNION ALL ".join(parts)


def _names(columns: Iterable[Column]) -> str:
    return ", ".join(quote(column.name) for column in columns)


def in_ranges(table: Table, ranges: Sequence[Range]) -> str:
    """The condition that a row of a layer lies in one of the ranges."""
    time = quote(table.by_name[TIME_COLUMN].storage_name)
    return " OR ".join(f"({time} >= {_instant(low)} AND {time} <= {_instant(high)})" for low, high in ranges)


def _instant(time_ns: int) -> str:
    return f"arrow_cast({time_ns}, 'Timestamp(ns)')"
