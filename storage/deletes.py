"""Range deletes: all rows of a table with certain tags in a range of time, stored as they were asked for (LOG L26).

Pure. A delete hides the rows that stand before it in its partition. Those of the memtable go when it is folded; the
files that were there before it are listed with it until compaction has carried it out in each (L25). What depends on a
field is no range delete: `nodes.rowchanges` resolves that to keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import CorruptObject, UnsupportedFormat
from storage.schema import OFFSET_COLUMN, TIME_COLUMN, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from storage.schema import DataFile, Table

    Mask = npt.NDArray[np.bool_]

RECORD_VERSION: Final = 1
RECORD_KEYS: Final = frozenset({"v", "low", "high", "tags"})
TIME_MIN: Final = -(2**63)
TIME_MAX: Final = 2**63 - 1
DELETES_MAX: Final = 1000
"""Of one partition, that wait for compaction: each is looked at for every file that a query reads."""
TAG_VALUES_MAX: Final = 10_000
"""Of one delete, all tags together."""
DELETE_BYTES_MAX: Final = 4 * 2**20
"""Of one delete."""
WAITING_BYTES_MAX: Final = 16 * 2**20
"""Of all of a shard that wait, with the names of the files that they wait for: each Checkpoint repeats them, and each
answer to a query node that does not have them."""
VALUE_BYTES: Final = 16
"""What a value takes beside its text, about."""
NAME_BYTES: Final = 100
"""What the name of a file takes, about."""


@dataclass(frozen=True, slots=True)
class TagValues:
    """The tag of ``column_id`` has one of these values; None is an absent tag."""

    column_id: int
    values: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class RangeDelete:
    """Inclusive times in ns; a row must fit every tag too. Evaluated on keys, which never change (F10)."""

    time_low: int = TIME_MIN
    time_high: int = TIME_MAX
    tags: tuple[TagValues, ...] = ()

    @property
    def bytes(self) -> int:
        """What it takes in memory, in the Log and on its way, about."""
        values = [value or "" for tag in self.tags for value in tag.values]
        return VALUE_BYTES * (len(values) + 4) + sum(map(len, values))

    def meets(self, low: int, high: int) -> bool:
        """Whether it may delete a row with a time from ``low`` to ``high``."""
        return self.time_low <= high and self.time_high >= low

    def takes_all(self, low: int, high: int) -> bool:
        """Whether it deletes every row with a time from ``low`` to ``high``."""
        return not self.tags and self.time_low <= low and self.time_high >= high

    def matches(self, table: Table, rows: pa.Table) -> Mask:
        """Which rows it deletes: a mask. Columns are named by storage names; a tag column that is not there is NULL."""
        times = rows.column(TIME_COLUMN).combine_chunks().view(pa.int64()).to_numpy(zero_copy_only=False)
        found: Mask = (times >= self.time_low) & (times <= self.time_high)
        for tag in self.tags:
            if found.any():
                found &= _has_value(table, rows, tag)
        return found


@dataclass(frozen=True, slots=True)
class PendingDelete:
    """A delete at offset ``order`` that is still to be carried out in ``files`` (paths), all older than it."""

    order: int
    delete: RangeDelete
    files: frozenset[str]

    @property
    def bytes(self) -> int:
        """What it takes in a Checkpoint and on its way, about."""
        return self.delete.bytes + NAME_BYTES * len(self.files)


def _has_value(table: Table, rows: pa.Table, tag: TagValues) -> Mask:
    name = table.by_id[tag.column_id].storage_name
    if name not in rows.column_names:
        return np.full(rows.num_rows, None in tag.values)
    wanted = pa.array([value for value in tag.values if value is not None], pa.string())
    masks = [_fits(values, wanted, None in tag.values) for values in rows.column(name).chunks]
    return np.concatenate(masks) if masks else np.zeros(0, np.bool_)


def _fits(values: Any, wanted: Any, is_absent_wanted: bool) -> Mask:
    """Which values are wanted. Of a dictionary each is looked at once: a tail may be long and its deletes many."""
    if pa.types.is_dictionary(values.type):
        if len(values.dictionary) <= len(values):
            flags = np.append(_fits(values.dictionary, wanted, is_absent_wanted), is_absent_wanted)
            places = pc.fill_null(values.indices, len(values.dictionary)).to_numpy(zero_copy_only=False)
            taken: Mask = flags.take(places)
            return taken
        values = values.cast(pa.string())
    found = pc.is_in(values, value_set=wanted)
    if is_absent_wanted:
        found = pc.or_(found, pc.is_null(values))
    mask: Mask = found.to_numpy(zero_copy_only=False)
    return mask


def without_deleted(table: Table, rows: pa.Table, deletes: Sequence[tuple[int, RangeDelete]]) -> pa.Table:
    """Rows that carry their `_runnel_offset`, without those that a delete of a higher offset takes."""
    gone = np.zeros(rows.num_rows, np.bool_)
    for order, delete in deletes:
        before = rows.column(OFFSET_COLUMN).combine_chunks().to_numpy(zero_copy_only=False) < order
        if before.any():
            gone |= before & delete.matches(table, rows)
    return rows.filter(pa.array(~gone)) if gone.any() else rows


def of_file(file: DataFile, pending: Iterable[PendingDelete], newer: Iterable[RangeDelete]) -> list[RangeDelete]:
    """The deletes that a reader of ``file`` must heed: ``pending`` ones that name it, and all ``newer`` ones."""
    found = [one.delete for one in pending if file.path in one.files]
    return [delete for delete in (*found, *newer) if delete.meets(file.time_low, file.time_high)]


def waiting_files(pending: Iterable[PendingDelete]) -> frozenset[str]:
    """The paths of the files in which one of them is still to be carried out."""
    return frozenset().union(*(one.files for one in pending))


def after_merge(
    pending: Sequence[PendingDelete], removed: frozenset[str]
) -> tuple[tuple[PendingDelete, ...], tuple[PendingDelete, ...]]:
    """What is still to be done when it is carried out in the files ``removed``; and what is done altogether."""
    left: list[PendingDelete] = []
    done: list[PendingDelete] = []
    for one in pending:
        files = one.files - removed
        (left if files else done).append(PendingDelete(one.order, one.delete, files))
    return tuple(left), tuple(done)


# -- as bytes ----------------------------------------------------------------------------------------------------


def to_record(delete: RangeDelete) -> dict[str, Any]:
    """The map of its entry, without the version that every record has (FORMAT F10)."""
    tags = [[tag.column_id, list(tag.values)] for tag in delete.tags]
    return {"low": delete.time_low, "high": delete.time_high, "tags": tags}


def encode_delete(delete: RangeDelete) -> bytes:
    """The record by itself."""
    data: bytes = msgspec.msgpack.encode({"v": RECORD_VERSION, **to_record(delete)})
    return data


def decode_delete(data: bytes, table: Table | None, where: str) -> RangeDelete:
    """The reverse, as `from_record`."""
    try:
        record = msgspec.msgpack.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise CorruptObject(f"{where}: a delete that is no record: {error}") from error
    return from_record(record, table, where)


def from_record(record: dict[str, Any], table: Table | None, where: str) -> RangeDelete:
    """The reverse of `to_record`; with None it is not compared with a table's columns.

    Raises CorruptObject, and UnsupportedFormat for another version.
    """
    if record.get("v") != RECORD_VERSION or record.keys() != RECORD_KEYS:
        raise UnsupportedFormat(f"{where}: a delete of a version that this reader does not know")
    low, high, tags = record["low"], record["high"], record["tags"]
    try:
        found = RangeDelete(low, high, tuple(TagValues(column_id, tuple(values)) for column_id, values in tags))
    except (TypeError, ValueError) as error:
        raise CorruptObject(f"{where}: a delete that is none: {error}") from error
    if not _is_sound(found, table):
        raise CorruptObject(f"{where}: a delete with impossible times or tags")
    return found


def _is_sound(delete: RangeDelete, table: Table | None) -> bool:
    """What was read may be anything, whatever the types say."""
    times: list[Any] = [delete.time_low, delete.time_high]
    if not all(isinstance(time, int) and TIME_MIN <= time <= TIME_MAX for time in times):
        return False
    ids: list[Any] = [tag.column_id for tag in delete.tags]
    values: list[Any] = [value for tag in delete.tags for value in tag.values]
    tags = None if table is None else {column.id for column in table.columns if column.role is Role.TAG}
    return (
        all(isinstance(one, int) and (tags is None or one in tags) for one in ids)
        and len(set(ids)) == len(ids)
        and all(tag.values for tag in delete.tags)
        and len(values) <= TAG_VALUES_MAX
        and all(value is None or isinstance(value, str) for value in values)
    )
