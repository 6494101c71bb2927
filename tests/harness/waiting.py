"""Waiting for a condition on an event loop, with a deadline: tests never sleep and hope."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS_MAX: Final = 20.0
POLL_SECONDS: Final = 0.01


async def until(condition: Callable[[], bool], seconds: float = SECONDS_MAX) -> None:
    """Return when the condition holds; AssertionError if it does not in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not in {seconds} s"
        await asyncio.sleep(POLL_SECONDS)
