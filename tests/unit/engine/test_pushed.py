"""What conditions say of the time, from their text."""

from __future__ import annotations

import pytest

from engine.pushed import time_range
from storage.deletes import TIME_MAX, TIME_MIN


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], (TIME_MIN, TIME_MAX)),
        (["q.time >= TimestampNanosecond(5, None)"], (5, TIME_MAX)),
        (["q.time > TimestampNanosecond(-5, None)", "q.time < TimestampNanosecond(9, None)"], (-4, 8)),
        (["q.time <= TimestampNanosecond(9, None)", "q.time <= TimestampNanosecond(7, None)"], (TIME_MIN, 7)),
        (["q.time = TimestampNanosecond(3, None)"], (3, 3)),
        (["q.time > TimestampNanosecond(1, None) OR q.a = 1"], (TIME_MIN, TIME_MAX)),
        (["x.time > TimestampNanosecond(1, None)"], (TIME_MIN, TIME_MAX)),
        (["q.time != TimestampNanosecond(1, None)", 'q.time > Utf8("1")'], (TIME_MIN, TIME_MAX)),
    ],
)
def test_time_range(conditions: list[str], expected: tuple[int, int]) -> None:
    assert time_range([f"Expr({condition})" for condition in conditions], "q") == expected
