"""Every row of every layer is read once, and rows that may share a key are merged (LOG L25)."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from engine.layers import Alone, Merge, Span, levels, split


def spans(*ranges: tuple[int, int]) -> list[Span]:
    return [Span(low, high, (i, i)) for i, (low, high) in enumerate(ranges)]


def test_layers_apart_are_read_whole() -> None:
    assert split(spans((0, 9), (10, 19))) == ([Alone(0), Alone(1)], [])


def test_one_shared_instant_is_merged_and_the_rest_is_not() -> None:
    alone, merges = split(spans((0, 10), (10, 19)))
    assert alone == [Alone(0, ((0, 9),)), Alone(1, ((11, 19),))]
    assert merges == [Merge(10, 10, (1, 0))]


def test_a_small_layer_inside_a_large_one_cuts_it_in_two() -> None:
    alone, merges = split(spans((0, 100), (40, 50)))
    assert alone == [Alone(0, ((0, 39), (51, 100)))]
    assert merges == [Merge(40, 50, (1, 0))]


def test_touching_overlaps_are_one_merge() -> None:
    alone, merges = split(spans((0, 10), (5, 10), (11, 20), (11, 15)))
    assert merges == [Merge(5, 15, (3, 2, 1, 0))]
    assert alone == [Alone(0, ((0, 4),)), Alone(2, ((16, 20),))]


def test_many_overlaps_are_joined_over_the_smallest_gaps() -> None:
    wide = (0, 1000)
    small = [(100, 101), (103, 104), (500, 501), (900, 901)]
    alone, merges = split(spans(wide, *small), merges_max=3)
    assert [(m.low, m.high) for m in merges] == [(100, 104), (500, 501), (900, 901)]
    assert merges[0].indexes == (2, 1, 0)
    assert alone == [Alone(0, ((0, 99), (105, 499), (502, 899), (902, 1000)))]


def test_order_and_not_place_says_what_is_newer() -> None:
    _, merges = split([Span(0, 9, (7, 0)), Span(0, 9, (3, 0)), Span(0, 9, (9, 0))])
    assert merges == [Merge(0, 9, (2, 0, 1))]


def test_the_ends_of_time_do_not_overflow() -> None:
    ends = (-(2**63), 2**63 - 1)
    assert split(spans(ends)) == ([Alone(0)], [])
    assert split(spans(ends, ends)) == ([], [Merge(*ends, (1, 0))])


RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)).map(lambda p: (p[0], p[0] + p[1])), max_size=8)


@given(RANGES, st.integers(1, 5))
def test_every_instant_of_every_layer_is_read_once(ranges: list[tuple[int, int]], merges_max: int) -> None:
    alone, merges = split(spans(*ranges), merges_max)
    assert len(merges) <= merges_max
    for index, (low, high) in enumerate(ranges):
        pieces = [r for piece in alone if piece.index == index for r in (piece.ranges or ((low, high),))]
        pieces += [(m.low, m.high) for m in merges if index in m.indexes]
        for instant in range(low, high + 1):
            assert sum(a <= instant <= b for a, b in pieces) == 1


@given(RANGES, st.integers(1, 5))
def test_what_is_read_alone_meets_no_other_layer(ranges: list[tuple[int, int]], merges_max: int) -> None:
    alone, _ = split(spans(*ranges), merges_max)
    for piece in alone:
        for low, high in piece.ranges or (ranges[piece.index],):
            others = [r for i, r in enumerate(ranges) if i != piece.index]
            assert not any(a <= high and b >= low for a, b in others)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=8))
def test_levels_keep_the_order_of_layers_that_share_a_moment(found: list[tuple[int, int]]) -> None:
    spans = [Span(low, low + length, (order, order)) for order, (low, length) in enumerate(found)]
    newest_first = sorted(range(len(spans)), reverse=True)
    made = levels(spans, newest_first)
    assert [index for level in made for index in level] == newest_first
    for level in made:
        for a, b in itertools.combinations(level, 2):
            assert spans[a].high < spans[b].low or spans[b].high < spans[a].low
    for newer, older in itertools.pairwise(made):
        first = spans[older[0]]
        assert any(spans[i].low <= first.high and spans[i].high >= first.low for i in newer), (
            "no level more than needed"
        )
