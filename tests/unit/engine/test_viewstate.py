"""How far a materialized view is: whole buckets, few ranges of them, and nothing towards the ends of all times."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import viewstate
from engine.viewstate import FOLDED_HIGH, FOLDED_LOW, RANGES_MAX, WIDTH_MAX, ViewState
from storage.deletes import TIME_MAX, TIME_MIN
from storage.errors import CorruptObject, UnsupportedFormat
from storage.schema import ViewDefinition

HOUR = 3_600 * 10**9
widths = st.sampled_from([1, 7, 10**9, HOUR, 86_400 * 10**9, WIDTH_MAX]) | st.integers(1, WIDTH_MAX)
views = widths.flatmap(lambda width: st.builds(ViewDefinition, st.just(1), st.just(3), st.just(""), st.just(width),
                                               st.integers(0, width - 1)))  # fmt: skip
some_times = st.lists(st.integers(FOLDED_LOW, FOLDED_HIGH) | st.integers(-(10**15), 10**15), min_size=1, max_size=200)


def covers(ranges: list[tuple[int, int]], time: int) -> bool:
    return any(low <= time <= high for low, high in ranges)


@given(views, some_times)
def test_the_buckets_of_times_are_whole_and_few(view: ViewDefinition, times: list[int]) -> None:
    found = viewstate.buckets(view, np.array(times), np.array(times))
    assert all(covers(found, time) for time in times)
    assert 0 < len(found) <= RANGES_MAX
    for low, high in found:
        assert low == TIME_MIN or (low - view.origin_ns) % view.width_ns == 0
        assert high == TIME_MAX or (high + 1 - view.origin_ns) % view.width_ns == 0
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(found))


@given(views, st.lists(st.tuples(st.integers(-(10**18), 10**18), st.integers(0, 10**17)), min_size=1, max_size=90))
def test_spans_of_times_are_covered_whole(view: ViewDefinition, spans: list[tuple[int, int]]) -> None:
    lows, highs = np.array([low for low, _ in spans]), np.array([low + size for low, size in spans])
    found = viewstate.buckets(view, lows, highs)
    assert all(any(a <= low and high <= b for a, b in found) for low, high in zip(lows, highs, strict=True))


def test_few_buckets_are_named_one_by_one_and_many_by_the_largest_gaps() -> None:
    view = ViewDefinition(1, 3, "", HOUR, 0)
    few = np.array([0, 2, 5]) * HOUR
    assert viewstate.buckets(view, few, few) == [(at * HOUR, (at + 1) * HOUR - 1) for at in (0, 2, 5)]
    many = np.concatenate([np.arange(0, 2_000_000, 2), 10**7 + np.arange(0, 2_000_000, 2)]) * HOUR
    found = viewstate.buckets(view, many, many)
    assert len(found) == RANGES_MAX
    assert not covers(found, 5 * 10**6 * HOUR)


@given(views)
def test_what_is_folded_are_whole_buckets_that_begin_at_a_time(view: ViewDefinition) -> None:
    low, high = viewstate.foldable(view)
    assert FOLDED_LOW <= low < low + view.width_ns <= high + 1 <= FOLDED_HIGH + 1
    assert (low - view.origin_ns) % view.width_ns == (high + 1 - view.origin_ns) % view.width_ns == 0
    assert low - FOLDED_LOW < view.width_ns
    assert FOLDED_HIGH - high < view.width_ns


@given(views, st.integers(1, 50), st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 9)), min_size=1, max_size=9))
def test_the_first_buckets_and_the_others_are_all(
    view: ViewDefinition, count: int, spans: list[tuple[int, int]]
) -> None:
    width = min(view.width_ns, 10**15)
    view = ViewDefinition(1, 3, "", width, view.origin_ns % width)
    ranges = viewstate.joined(viewstate.bucket_range(view, at * width, (at + size) * width - 1) for at, size in spans)
    now, later = viewstate.first_buckets(view, ranges, count)
    assert viewstate.joined([*now, *later]) == ranges
    taken = sum((high + 1 - low) // width for low, high in now)
    assert taken == min(count, sum((high + 1 - low) // width for low, high in ranges))
    assert all((low - view.origin_ns) % width == 0 for low, _ in (*now, *later))
    assert not now or not later or now[-1][1] < later[0][0]


def test_a_state_comes_back_as_it_was() -> None:
    state = ViewState({7: 5, 3: 2**62}, ((TIME_MIN, -1), (5, TIME_MAX)))
    assert viewstate.decode(state.encode(), "x") == state
    assert viewstate.decode(None, "x") == viewstate.NEW


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", CorruptObject),
        ('{"v":1,"positions":{"a":1},"left":[]}', CorruptObject),
        ('{"v":1,"positions":{},"left":[],"more":1}', CorruptObject),
        ('{"v":2,"positions":{},"left":[]}', UnsupportedFormat),
    ],
)
def test_a_state_that_is_none_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="view v"):
        viewstate.decode(text, "view v")


@pytest.mark.parametrize(
    ("cutoffs", "first"),
    [((None, None), TIME_MIN), ((5 * HOUR, None), 5 * HOUR), ((5 * HOUR + 1, 2 * HOUR), 6 * HOUR),
     ((None, 7 * HOUR - 1), 7 * HOUR)],
)  # fmt: skip
def test_buckets_that_a_cutoff_touches_are_not_computed_again(cutoffs: tuple[int | None, ...], first: int) -> None:
    assert viewstate.visible_from(ViewDefinition(1, 3, "", HOUR, 0), *cutoffs) == first
