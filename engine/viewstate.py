"""How far a materialized view is, and what has changed since: pure, in buckets of time.

A view is folded up to an offset of each partition of the table that it reads. Rows and deletes from there on say which
buckets are out of date; where deletes are gone without a trace (LOG L25, `changes_from`), all are.
`engine.materialized` looks into files, and makes rows of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from engine.layers import join_closest, join_touching
from storage.deletes import TIME_MAX, TIME_MIN
from storage.errors import CorruptObject, UnsupportedFormat
from storage.schema import TIME_COLUMN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from engine.layers import Range
    from storage.schema import DataFile, PartitionSnapshot, Table, TailBatch, ViewDefinition

RANGES_MAX: Final = 64
"""Over so many separate ranges of buckets the nearest are joined: folding a bucket that has not changed is no harm."""
EVERYTHING: Final[tuple[Range, ...]] = ((TIME_MIN, TIME_MAX),)
FOLDED_LOW: Final = -(2**62)
FOLDED_HIGH: Final = 2**62 - 1
"""Only buckets within these times, the years 1823 to 2116, are folded. Towards the ends of all times ``date_bin`` says
NULL, which is no key: rows there, if there are any, are computed whenever they are asked for."""
WIDTH_MAX: Final = 2**61
VERSION: Final = 1


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    positions: dict[str, int]
    left: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ViewState:
    """What has been folded: of each partition (by id) the rows below an offset, save those in the ranges ``left``."""

    positions: Mapping[int, int]
    left: tuple[Range, ...] = ()

    def encode(self) -> str:
        """As it is stored."""
        positions = {str(partition): offset for partition, offset in sorted(self.positions.items())}
        return msgspec.json.encode(_Record(VERSION, positions, list(self.left))).decode()


NEW: Final = ViewState({}, EVERYTHING)
"""Of a view of which nothing has been folded."""


def decode(text: str | None, where: str) -> ViewState:
    """The reverse of `ViewState.encode`; without a text nothing has been folded."""
    if text is None:
        return NEW
    try:
        record = msgspec.json.decode(text, type=_Record)
        positions = {int(partition): offset for partition, offset in record.positions.items()}
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptObject(f"{where}: no state of a materialized view: {error}") from error
    if record.v != VERSION:
        raise UnsupportedFormat(f"{where}: a state of version {record.v}")
    return ViewState(positions, tuple(record.left))


def end_of(part: PartitionSnapshot) -> int:
    """The offset up to which a snapshot has everything of its partition."""
    return max([part.changes_from, *_ends(part)])


def is_cut_off(part: PartitionSnapshot) -> bool:
    """Whether an object of its Log was given up since the newest of its rows was written (LOG L3)."""
    return part.changes_from > max(_ends(part), default=0)


def _ends(part: PartitionSnapshot) -> list[int]:
    ends = [file.order_high + 1 for file in part.files]
    ends += [one.order + 1 for one in part.pending]
    return ends + [batch.end for batch in part.tail[-1:]]


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed in a partition since an offset: buckets, and files of which it must be looked up."""

    ranges: tuple[Range, ...]
    files: tuple[DataFile, ...] = ()


def changes_since(part: PartitionSnapshot, since: int, table: Table, view: ViewDefinition) -> Changes:
    """The buckets of rows and deletes at ``since`` or above, as far as the snapshot itself says so."""
    if since < part.changes_from:
        return Changes(EVERYTHING)
    deletes = [one.delete for one in part.pending if one.order >= since]
    deletes += [b.delete for b in part.tail if b.delete is not None and b.first_offset >= since]
    found = [bucket_range(view, delete.time_low, delete.time_high) for delete in deletes]
    name = table.by_name[TIME_COLUMN].storage_name
    times = [_times(batch, since, name) for batch in part.tail if batch.delete is None and batch.end > since]
    if times:
        every = np.concatenate(times)
        found += buckets(view, every, every)
    files = tuple(file for file in part.files if file.order_high >= since)
    return Changes(joined(found), files)


def _times(batch: TailBatch, since: int, name: str) -> npt.NDArray[np.int64]:
    rows = batch.rows.column(name).slice(max(0, since - batch.first_offset))
    times: npt.NDArray[np.int64] = rows.view(pa.int64()).to_numpy()
    return times


def buckets(view: ViewDefinition, lows: npt.NDArray[np.int64], highs: npt.NDArray[np.int64]) -> list[Range]:
    """The buckets in which inclusive times lie, each whole, as at most `RANGES_MAX` ranges."""
    if not len(lows):
        return []
    first, last = np.sort(_numbers(view, lows)), np.sort(_numbers(view, highs))
    gaps = first[1:] - last[:-1]
    edges = np.flatnonzero(gaps > 1)
    if len(edges) >= RANGES_MAX:
        edges = np.sort(edges[np.argsort(gaps[edges])[1 - RANGES_MAX :]])
    begins, ends = np.append(0, edges + 1), np.append(edges, len(last) - 1)
    return [_range(view, int(first[a]), int(last[b])) for a, b in zip(begins, ends, strict=True)]


def _numbers(view: ViewDefinition, times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    low = TIME_MIN + view.origin_ns  # below it the difference would not fit; nothing is folded there
    shifted: Any = np.maximum(times, low) - view.origin_ns
    numbers: npt.NDArray[np.int64] = np.floor_divide(shifted, view.width_ns)
    return numbers


def _range(view: ViewDefinition, first: int, last: int) -> Range:
    low = first * view.width_ns + view.origin_ns
    high = (last + 1) * view.width_ns + view.origin_ns - 1
    return max(low, TIME_MIN), min(high, TIME_MAX)


def foldable(view: ViewDefinition) -> Range:
    """The times of the whole buckets from `FOLDED_LOW` to `FOLDED_HIGH`."""
    first = -((view.origin_ns - FOLDED_LOW) // view.width_ns)
    last = (FOLDED_HIGH + 1 - view.origin_ns) // view.width_ns - 1
    return _range(view, first, last)


def bucket_range(view: ViewDefinition, low: int, high: int) -> Range:
    """The smallest range of whole buckets around inclusive times."""
    first, last = ((at - view.origin_ns) // view.width_ns for at in (low, high))
    return _range(view, first, last)


def joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same times, or a few more, as few ascending ranges."""
    return tuple(join_closest(join_touching(sorted(ranges)), RANGES_MAX))


def clipped(ranges: Iterable[Range], low: int, high: int) -> tuple[Range, ...]:
    """What of ranges lies within inclusive times."""
    return tuple((max(a, low), min(b, high)) for a, b in ranges if a <= high and b >= low)


def visible_from(view: ViewDefinition, *cutoffs_ns: int | None) -> int:
    """The beginning of the first bucket that no retention cut-off touches: older ones stay as they were folded."""
    known = [cutoff for cutoff in cutoffs_ns if cutoff is not None]
    if not known:
        return TIME_MIN
    cutoff = max(known)
    low, high = bucket_range(view, cutoff, cutoff)
    return low if low == cutoff else min(high + 1, TIME_MAX)


def first_buckets(
    view: ViewDefinition, ranges: Sequence[Range], count: int
) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """The oldest ``count`` buckets of ascending ranges of whole ones, and the others."""
    taken: list[Range] = []
    room = count
    for place, (low, high) in enumerate(ranges):
        size = -((low - 1 - high) // view.width_ns)
        if size <= room:
            taken.append((low, high))
            room -= size
            continue
        if room:
            middle = low + room * view.width_ns
            taken.append((low, middle - 1))
            return tuple(taken), ((middle, high), *ranges[place + 1 :])
        return tuple(taken), tuple(ranges[place:])
    return tuple(taken), ()
