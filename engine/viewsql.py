"""The SQL that turns layers of a table into the table that users see: pure text.

`engine.views` registers each layer under the name it gives here. Users see columns by their names, sorted, as
InfluxDB has them; layers have storage names.
"""

# ruff: noqa: S608 - identifiers are quoted by `quote`, everything else is a constant or an integer

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.schema import KEY_COLUMN, OFFSET_COLUMN, OP_COLUMN, SERIES_COLUMN, TIME_COLUMN, Op, Role, TypeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.layers import Range
    from storage.deletes import RangeDelete
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


PATCH: Final = Op.PATCH.code
PUT: Final = Op.PUT.code
OP: Final = quote(OP_COLUMN)
OFFSET: Final = quote(OFFSET_COLUMN)
SERIES: Final = quote(SERIES_COLUMN)
KEY: Final = quote(KEY_COLUMN)
RESET: Final = quote("_runnel_reset")
IS_THERE: Final = f"{OP} <> {Op.DELETE.code}"
"""The condition that a merged row was not deleted."""


def shown(table: Table) -> list[Column]:
    """The columns in the order of `SELECT *`: by name, as InfluxDB has them."""
    return sorted(table.columns, key=lambda column: column.name)


def keys(table: Table) -> list[Column]:
    """The columns of the primary key."""
    return [column for column in shown(table) if column.role is not Role.FIELD]


@dataclass(frozen=True)
class Frame:
    """A level of a merge, by the name that it is registered under. ``is_whole``: see `storage.schema.WHOLE`."""

    name: str
    is_whole: bool = False


def join_layers(table: Table, frames: Sequence[Frame], has_ops: bool = False, has_keys: bool = False) -> str:
    """Merge layers, newest first, each with unique keys: per field the newest value (FORMAT F11).

    With ``has_ops`` the layers have `OP_COLUMN`, never NULL; with ``has_keys`` all have `SERIES_COLUMN` and
    `KEY_COLUMN`. Where all that is newer is whole, those rows of an older layer are passed on that have no newer one: a
    hash table of the newer keys is all that is held. Else rows are joined, field by field.
    """
    merged = [quote(c.name) for c in shown(table)]
    kept = [*merged, *([OP] if has_ops else []), *([SERIES, KEY] if has_keys else [])]
    match = same_key(table, has_keys)
    text = frames[0].name
    for count, frame in enumerate(frames[1:], 1):
        newer = frames[:count]
        if all(layer.is_whole for layer in newer):
            text = f"({_replaced(table, newer, frame, kept, match, has_keys)} UNION ALL {_all_of(kept, text)})"
        else:
            text = f"({_patched(table, text, frame, match, has_ops, has_keys)})"
    condition = f" WHERE {IS_THERE}" if has_ops else ""
    return f"SELECT {', '.join(merged)} FROM {text} AS merged{condition}"


def _all_of(columns: Sequence[str], text: str) -> str:
    return f"SELECT {', '.join(columns)} FROM {text} AS merged"


def _replaced(
    table: Table, newer: Sequence[Frame], older: Frame, columns: Sequence[str], match: str, has_keys: bool
) -> str:
    """The rows of ``older`` whose keys none of the newer layers has."""
    key = [SERIES, KEY, quote(TIME_COLUMN)] if has_keys else [quote(c.name) for c in keys(table)]
    taken = union_all(f"SELECT {', '.join(key)} FROM {frame.name}" for frame in newer)
    items = ", ".join(f"{OLDER}.{column}" for column in columns)
    return f"SELECT {items} FROM {older.name} AS {OLDER} LEFT ANTI JOIN ({taken}) AS {NEWER} ON {match}"


def _patched(table: Table, newer: str, older: Frame, match: str, has_ops: bool, has_keys: bool) -> str:
    """The rows of both, those with the same key as one."""
    items = [_merged(column, has_ops) for column in shown(table)]
    if has_ops:
        items.append(_merged_op())
    if has_keys:
        items += [f"coalesce({NEWER}.{name}, {OLDER}.{name}) AS {name}" for name in (SERIES, KEY)]
    return f"SELECT {', '.join(items)} FROM {newer} AS {NEWER} FULL JOIN {older.name} AS {OLDER} ON {match}"


def same_key(table: Table, has_keys: bool = False) -> str:
    """Whether two rows have the same key: by the hashes of their series, and then by what was hashed (F22).

    What is an equality DataFusion hashes; the one term of another kind it looks at where those hold: hashing the
    canonical keys too, which are long, took 15 % longer. Without keys: IS NOT DISTINCT FROM in every term, in
    parentheses, lets it take one hash join in which NULL tags are equal; a term of another kind among them, or no
    parentheses, would not.
    """
    if has_keys:
        hashed = " AND ".join(f"{NEWER}.{name} = {OLDER}.{name}" for name in (SERIES, quote(TIME_COLUMN)))
        return f"{hashed} AND ({NEWER}.{KEY} IS NOT DISTINCT FROM {OLDER}.{KEY})"
    names = [quote(column.name) for column in keys(table)]
    return " AND ".join(f"({NEWER}.{name} IS NOT DISTINCT FROM {OLDER}.{name})" for name in names)


def _merged(column: Column, has_ops: bool) -> str:
    """A column of a merged row: of the newer one if it has a value there, or if it leaves nothing of the older."""
    name = quote(column.name)
    value = f"coalesce({NEWER}.{name}, {OLDER}.{name})"
    if has_ops and column.role is Role.FIELD:
        value = f"CASE WHEN {NEWER}.{OP} > {PATCH} THEN {NEWER}.{name} ELSE {value} END"
    return f"{value} AS {name}"


def _merged_op() -> str:
    """A patch after a put or a delete is as a put; where one side has no row, its op is NULL."""
    return (
        f"CASE WHEN {NEWER}.{OP} IS NULL THEN {OLDER}.{OP} WHEN {NEWER}.{OP} > {PATCH} THEN {NEWER}.{OP} "
        f"WHEN {OLDER}.{OP} > {PATCH} THEN {PUT} ELSE {PATCH} END AS {OP}"
    )


def group_layers(table: Table, frames: Sequence[Frame], has_ops: bool = False) -> str:
    """Merge any number of layers that carry their offsets; slower than `join_layers`, but it spills.

    With ``has_ops`` the layers have `OP_COLUMN`, never NULL, and rows before the newest put or delete do not count.
    """
    by_key = {column.name for column in keys(table)}
    counts = f" AND {OFFSET} >= {RESET}" if has_ops else ""
    items = [
        name
        if column.name in by_key
        else f"last_value({name} ORDER BY {OFFSET}) FILTER (WHERE {name} IS NOT NULL{counts}) AS {name}"
        for column in shown(table)
        for name in (quote(column.name),)
    ]
    rows = union_all(f"SELECT * FROM {frame.name}" for frame in frames)
    by = _names(keys(table))
    if not has_ops:
        return f"SELECT {', '.join(items)} FROM ({rows}) AS layers GROUP BY {by}"
    reset = f"max(CASE WHEN {OP} > {PATCH} THEN {OFFSET} ELSE -1 END) OVER (PARTITION BY {by}) AS {RESET}"
    newest = f"last_value({OP} ORDER BY {OFFSET}) AS {OP}"
    merged = f"SELECT {', '.join(items)}, {newest} FROM (SELECT *, {reset} FROM ({rows})) AS layers GROUP BY {by}"
    return f"SELECT {_names(shown(table))} FROM ({merged}) AS merged WHERE {IS_THERE}"


def union_all(parts: Iterable[str]) -> str:
    """The rows of all parts."""
    return " UNION ALL ".join(parts)


def _names(columns: Iterable[Column]) -> str:
    return ", ".join(quote(column.name) for column in columns)


def in_ranges(table: Table, ranges: Sequence[Range]) -> str:
    """The condition that a row of a layer lies in one of the ranges."""
    time = quote(table.by_name[TIME_COLUMN].storage_name)
    return " OR ".join(f"({time} >= {_instant(low)} AND {time} <= {_instant(high)})" for low, high in ranges)


def not_deleted(table: Table, deletes: Sequence[RangeDelete]) -> str:
    """The condition that a row of a layer, by storage names, is taken by none of ``deletes``; never NULL."""
    return " AND ".join(f"NOT ({_taken(table, delete)})" for delete in deletes)


def _taken(table: Table, delete: RangeDelete) -> str:
    parts = [in_ranges(table, [(delete.time_low, delete.time_high)])]
    for tag in delete.tags:
        name = quote(table.by_id[tag.column_id].storage_name)
        values = ", ".join(_text(value) for value in tag.values if value is not None)
        some = f"({name} IS NOT NULL AND {name} IN ({values}))" if values else "FALSE"
        parts.append(f"({name} IS NULL OR {some})" if None in tag.values else some)
    return " AND ".join(parts)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _instant(time_ns: int) -> str:
    return f"arrow_cast({time_ns}, 'Timestamp(ns)')"
