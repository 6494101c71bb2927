"""Keeping a process to its share of a core by sleeping between steps. Driven by `nodes.mergeworker`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Pace:
    """Call it between steps: what they cost in CPU is at most ``share`` of the time that they and the pauses take."""

    def __init__(
        self,
        cpu: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.share = 1.0
        self._cpu, self._now, self._sleep = cpu, now, sleep
        self._used, self._begun = 0.0, now()  # what it took to start counts too

    def __call__(self) -> None:
        """Sleep until the step since the last call was worth its time. What was not used is not saved up."""
        used = self._cpu()
        rest = self._begun + (used - self._used) / self.share - self._now()
        if self.share < 1 and rest > 0:
            self._sleep(rest)
        self._used, self._begun = used, self._now()
