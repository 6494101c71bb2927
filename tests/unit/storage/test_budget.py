"""The memory budget counts what is held, and never less than nothing (LOG L23)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.budget import MemoryBudget
from storage.errors import MemoryExhausted


def test_over_it_the_client_is_told_to_try_again() -> None:
    budget = MemoryBudget(100)
    budget.reserve(60)
    with pytest.raises(MemoryExhausted, match="60 of 100 bytes") as caught:
        budget.reserve(41)
    assert caught.value.retriable
    assert budget.used == 60
    budget.reserve(40)
    budget.adjust(-100)
    assert budget.used == 0


def test_what_is_held_already_is_counted_whatever_the_limit() -> None:
    budget = MemoryBudget(100)
    budget.adjust(250)
    assert budget.used == 250
    with pytest.raises(MemoryExhausted):
        budget.reserve(1)


def test_more_cannot_be_given_back_than_was_taken() -> None:
    budget = MemoryBudget(100)
    budget.reserve(5)
    with pytest.raises(AssertionError):
        budget.adjust(-6)


@given(st.lists(st.integers(0, 60), max_size=40))
def test_reservations_never_pass_the_limit(sizes: list[int]) -> None:
    budget = MemoryBudget(100)
    held: list[int] = []
    for size in sizes:
        try:
            budget.reserve(size)
            held.append(size)
        except MemoryExhausted:
            assert sum(held) + size > 100
            budget.adjust(-held.pop(0))
        assert budget.used == sum(held) <= 100
