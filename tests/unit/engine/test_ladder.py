"""The rung by the bytes of files, of rows in memory, and by the workers that are free."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from engine.ladder import TAILS_BYTES_MAX, Choice, LadderLimits, Rung, choose

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.ladder import Gathered
    from engine.stages import Stages

LIMITS = LadderLimits(query_bytes_min=1_000, shuffle_bytes_min=10_000, task_bytes=500)


class Free:
    """So many workers, and how often it was asked for them."""

    def __init__(self, slots: int) -> None:
        self.asked = 0
        self._slots = slots

    def slots(self) -> int:
        self.asked += 1
        return self._slots

    def reason(self) -> str:
        return "few"

    async def run(self, stages: Stages, began: Callable[[int], None]) -> Gathered:
        raise AssertionError

    async def aclose(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("file_bytes", "slots", "rung", "partitions"),
    [
        (999, 8, Rung.LOCAL, 0),
        (1_000, 8, Rung.PARTIAL_FINAL, 2),
        (1_001, 8, Rung.PARTIAL_FINAL, 3),
        (3_000, 8, Rung.PARTIAL_FINAL, 6),
        (9_999, 8, Rung.PARTIAL_FINAL, 8),
        (10_000, 8, Rung.FULL_SHUFFLE, 8),
        (10_000, 2, Rung.FULL_SHUFFLE, 2),
        (10_000, 1, Rung.LOCAL, 0),
        (10_000, 0, Rung.LOCAL, 0),
    ],
)
def test_the_rung_and_its_partitions(file_bytes: int, slots: int, rung: Rung, partitions: int) -> None:
    choice = choose(file_bytes, 0, Free(slots), LIMITS)
    assert (choice.rung, choice.partitions) == (rung, partitions)
    assert choice.reason


def test_what_is_less_than_two_tasks_is_divided_all_the_same() -> None:
    """One worker that does it all is slower than this process."""
    assert choose(1_000, 0, Free(8), dataclasses.replace(LIMITS, task_bytes=2**30)).partitions == 2


def test_workers_are_asked_for_only_when_they_are_wanted() -> None:
    workers = Free(8)
    choose(999, 0, workers, LIMITS)
    choose(10_000, TAILS_BYTES_MAX + 1, workers, LIMITS)
    assert workers.asked == 0
    choose(10_000, TAILS_BYTES_MAX, workers, LIMITS)
    assert workers.asked == 1


def test_too_few_workers_is_what_they_say() -> None:
    assert choose(10_000, 0, Free(1), LIMITS) == Choice(Rung.LOCAL, 0, "few")
