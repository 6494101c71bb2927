"""Where layers of a partition overlap in time, and where they do not: pure interval arithmetic.

A layer is a DataFile or a folded tail. Where only one layer has rows they are read as they are; where several
have, their rows must be merged by key (LOG L25). `engine.views` turns the answer into scans and joins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MERGES_MAX: Final = 4
"""More merges than this in one partition are joined over their smallest gaps: each costs every layer a scan."""

REMNANT_SHARE: Final = 16
"""A smaller share of a layer's time than one in so many is merged with the rest of it, not read alone."""

Range = tuple[int, int]
"""Inclusive event times in ns."""


@dataclass(frozen=True, slots=True)
class Span:
    """A layer's inclusive time range and its place in the fold: a greater ``order`` is newer."""

    low: int
    high: int
    order: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Alone:
    """Rows of layer ``index`` that no other layer can share a key with; all of its rows if ``ranges`` is empty."""

    index: int
    ranges: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class Merge:
    """A range of time in which several layers have rows; ``indexes`` newest first."""

    low: int
    high: int
    indexes: tuple[int, ...]


def split(spans: Sequence[Span], merges_max: int = MERGES_MAX) -> tuple[list[Alone], list[Merge]]:
    """Divide the layers' rows into ranges that stand alone and ranges that must be merged.

    Every row of every layer is in exactly one of the answers.
    """
    shared = join_closest(_with_remnants(spans, _shared_ranges(spans)), merges_max)
    alone: list[Alone] = []
    for index, span in enumerate(spans):
        ranges = _subtract((span.low, span.high), shared)
        if ranges == [(span.low, span.high)]:
            alone.append(Alone(index))
        elif ranges:
            alone.append(Alone(index, tuple(ranges)))
    return alone, [_merge(low, high, spans) for low, high in shared]


def levels(spans: Sequence[Span], indexes: Sequence[int]) -> list[list[int]]:
    """Layers, newest first, put together where they follow each other in the fold and share no moment.

    Such layers have no key in common, so all together they merge as one: each merge less is a join less.
    """
    found: list[list[int]] = []
    for index in indexes:
        span = spans[index]
        if not found or any(spans[i].low <= span.high and spans[i].high >= span.low for i in found[-1]):
            found.append([])
        found[-1].append(index)
    return found


def _merge(low: int, high: int, spans: Sequence[Span]) -> Merge:
    covering = [i for i, span in enumerate(spans) if span.low <= high and span.high >= low]
    return Merge(low, high, tuple(sorted(covering, key=lambda i: spans[i].order, reverse=True)))


def _shared_ranges(spans: Sequence[Span]) -> list[Range]:
    """The maximal ranges in which at least two spans run."""
    edges = sorted([(span.low, 1) for span in spans] + [(span.high + 1, -1) for span in spans])
    shared: list[Range] = []
    depth, begin = 0, 0
    for at, step in edges:
        before, depth = depth, depth + step
        if before < 2 <= depth:
            begin = at
        elif depth < 2 <= before and at > begin:
            shared.append((begin, at - 1))
    return join_touching(shared)


def _with_remnants(spans: Sequence[Span], shared: list[Range]) -> list[Range]:
    """Add what few moments of a layer lie outside: read alone they would cost a second scan of it, and filter both."""
    if not shared:
        return shared
    remnants = [
        (low, high)
        for span in spans
        for low, high in _subtract((span.low, span.high), shared)
        if (high - low) * REMNANT_SHARE < span.high - span.low
    ]
    return join_touching(sorted([*shared, *remnants]))


def join_touching(ranges: Sequence[Range]) -> list[Range]:
    """Ascending ranges that meet or follow each other as one."""
    joined: list[Range] = []
    for low, high in ranges:
        if joined and joined[-1][1] + 1 >= low:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined


def join_closest(ranges: list[Range], count_max: int) -> list[Range]:
    """Close the smallest gaps until at most `count_max` ranges are left."""
    excess = len(ranges) - count_max
    if excess <= 0:
        return ranges
    gaps = sorted(range(1, len(ranges)), key=lambda i: ranges[i][0] - ranges[i - 1][1])
    closed = set(gaps[:excess])
    joined: list[Range] = []
    for i, (low, high) in enumerate(ranges):
        if i in closed:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined


def _subtract(span: Range, holes: Sequence[Range]) -> list[Range]:
    """What is left of `span` without the ascending `holes`."""
    left: list[Range] = []
    low, high = span
    for hole_low, hole_high in holes:
        if hole_low > low:
            left.append((low, min(high, hole_low - 1)))
        low = max(low, hole_high + 1)
        if low > high:
            return left
    left.append((low, high))
    return left
