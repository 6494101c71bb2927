"""A process keeps to its share of a core, over any ten seconds, with a clock that is pretended."""

from __future__ import annotations

import random

import pytest

from nodes.pace import Pace

WINDOW_SECONDS = 10.0


class Clock:
    """Time that passes by work and by sleep only."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.spans: list[tuple[float, float]] = []

    def work(self, seconds: float) -> None:
        self.spans.append((self.wall, self.wall + seconds))
        self.cpu += seconds
        self.wall += seconds

    def sleep(self, seconds: float) -> None:
        self.wall += seconds

    def pace(self, share: float) -> Pace:
        pace = Pace(lambda: self.cpu, lambda: self.wall, self.sleep)
        pace.share = share
        return pace

    def used_between(self, low: float, high: float) -> float:
        return sum(max(0.0, min(high, end) - max(low, begin)) for begin, end in self.spans)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_kept_in_every_window(share: float, seed: int) -> None:
    """Within one step: it is paid for after it was made. Idle time is not saved up for later."""
    clock, chooser = Clock(), random.Random(seed)
    pace, step_max = clock.pace(share), 0.5
    for _ in range(200):
        clock.work(chooser.uniform(0.001, step_max))
        pace()
        if chooser.random() < 0.1:
            clock.sleep(chooser.uniform(0, 60))  # between two merges
            pace()
    for begin, _ in clock.spans:
        used = clock.used_between(begin, begin + WINDOW_SECONDS)
        assert used <= share * WINDOW_SECONDS + step_max + 1e-9


def test_at_full_speed_it_does_not_sleep() -> None:
    clock = Clock()
    pace = clock.pace(1.0)
    for _ in range(10):
        clock.work(1.0)
        pace()
    assert clock.wall == pytest.approx(10.0)
