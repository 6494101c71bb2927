"""The rows that range deletes take, for DataFusion: a few deletes as conditions, many as tables to be joined against.

Driven by `engine.views`, for one file. Measured: over three files the conditions of 400 deletes took 7 s to plan, those
of ten deletes with 10,000 values each more than a minute; against 100,000 keys a join is planned in a millisecond, and
a million rows pass it in 0.1 s.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from engine.viewsql import NEWER, not_deleted, quote
from storage.schema import TIME_COLUMN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datafusion import DataFrame, SessionContext

    from storage.deletes import RangeDelete
    from storage.schema import Table

    Shape = tuple[tuple[int, ...], tuple[int, ...]]
    """Column ids of the tags that must have a value, and of those that must be absent."""

CONDITIONS_MAX: Final = 8
"""Up to so many deletes are conditions, if they have so many values each."""
KEYS_MAX: Final = 250_000
"""Combinations of tags' values in all tables together; a delete for which there is no room is a condition."""
LOW: Final = "_runnel_low"
HIGH: Final = "_runnel_high"
TIME_TYPE: Final = pa.timestamp("ns")


@dataclass(frozen=True)
class DeletedKeys:
    """Deletes of one shape: rows of ``LOW``, ``HIGH`` and a value for each tag that must have one (`key_name`)."""

    valued: tuple[int, ...]
    absent: tuple[int, ...]
    rows: pa.RecordBatch


def key_name(column_id: int) -> str:
    """The column of a tag in `DeletedKeys`."""
    return f"_runnel_key_{column_id}"


@dataclass(frozen=True)
class Divided:
    """Deletes as conditions, and the tables of the others."""

    conditions: list[RangeDelete]
    tables: list[DeletedKeys]


def divided(deletes: Sequence[RangeDelete]) -> Divided:
    """A few as conditions; of many only those with too many combinations of values."""
    values = sum(len(tag.values) for delete in deletes for tag in delete.tags)
    if len(deletes) <= CONDITIONS_MAX and values <= CONDITIONS_MAX**2:
        return Divided(list(deletes), [])
    conditions: list[RangeDelete] = []
    room = KEYS_MAX
    found: dict[Shape, list[tuple[Any, ...]]] = {}
    for delete in deletes:
        count = math.prod(len(tag.values) for tag in delete.tags)
        if count > room:
            conditions.append(delete)
            continue
        room -= count
        ids = [tag.column_id for tag in delete.tags]
        for key in itertools.product(*(tag.values for tag in delete.tags)):
            pairs = sorted(zip(ids, key, strict=True))
            shape = tuple(i for i, value in pairs if value is not None), tuple(i for i, v in pairs if v is None)
            row = (delete.time_low, delete.time_high, *(value for _, value in pairs if value is not None))
            found.setdefault(shape, []).append(row)
    return Divided(conditions, [_keys(shape, rows) for shape, rows in found.items()])


def _keys(shape: Shape, rows: Sequence[tuple[Any, ...]]) -> DeletedKeys:
    valued, absent = shape
    low, high, *values = zip(*rows, strict=True)
    arrays = [pa.array(low, pa.int64()).view(TIME_TYPE), pa.array(high, pa.int64()).view(TIME_TYPE)]
    arrays += [pa.array(column, pa.string_view()) for column in values]
    return DeletedKeys(valued, absent, pa.RecordBatch.from_arrays(arrays, [LOW, HIGH, *map(key_name, valued)]))


def without_deleted(context: SessionContext, table: Table, frame: DataFrame, deletes: Divided) -> DataFrame:
    """Rows of a layer, by storage names, without those that ``deletes`` take."""
    if deletes.conditions:
        frame = frame.filter(not_deleted(table, deletes.conditions))
    for keys in deletes.tables:
        layer = frame.alias(NEWER)  # as a merge's: `engine.stoppable` need not heed it, for it makes no rows
        frame = layer.join_on(context.read_batch(keys.rows), *_matches(table, keys), how="anti")
    return frame


def _matches(table: Table, keys: DeletedKeys) -> list[Any]:
    """Equality is what makes it a hash join. By time alone it is a nested loop, which is no slower than conditions."""
    from datafusion import col

    def tag(column_id: int) -> Any:
        return col(quote(table.by_id[column_id].storage_name))

    time = col(quote(table.by_name[TIME_COLUMN].storage_name))
    return [
        *(tag(i) == col(quote(key_name(i))) for i in keys.valued),
        *(tag(i).is_null() for i in keys.absent),
        time >= col(quote(LOW)),
        time <= col(quote(HIGH)),
    ]
