"""Waiting for a condition, with a deadline: tests never sleep and hope."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS_MAX: Final = 20.0
POLL_SECONDS: Final = 0.01
THREAD_SECONDS_MAX: Final = 30.0


async def until(condition: Callable[[], bool], seconds: float = SECONDS_MAX) -> None:
    """Return when the condition holds; AssertionError if it does not in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not in {seconds} s"
        await asyncio.sleep(POLL_SECONDS)


def eventually(condition: Callable[[], bool], what: str, seconds: float = THREAD_SECONDS_MAX) -> None:
    """Poll until it holds; an AssertionError that names it when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(POLL_SECONDS)
