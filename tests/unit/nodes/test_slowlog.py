"""Which queries the slow-query log has, and what it says of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import structlog

from engine.ladder import Rung
from engine.running import DONE, Origin, Phase, RunningQueries
from nodes.settings import Settings
from nodes.slowlog import LEFT_OUT, slow_log

STATEMENT = "SELECT 'what nobody should read'"


def lines(seconds: float, **changes: Any) -> list[Any]:
    """What is logged of one query that took so long, half of it until its client took the only batch."""
    defaults = Settings()
    settings = dataclasses.replace(defaults, query=dataclasses.replace(defaults.query, **changes))
    now = [0.0]
    registry = RunningQueries(slow_log(settings), lambda: now[0])
    with structlog.testing.capture_logs() as captured:
        query = registry.add("db", STATEMENT, Origin("http", "10.0.0.1:5", "r1"))
        query.enter(Phase.PLANNING)
        query.reads(2, 900)
        query.runs_on(Rung.PARTIAL_FINAL, 4)
        query.enter(Phase.RUNNING)
        now[0] += seconds / 2
        query.hands_out(3, 24)
        now[0] += seconds / 2
        query.end(DONE)
    return list(captured)


def test_a_slow_one_is_one_line_with_what_system_queries_has() -> None:
    (line,) = lines(12.0)
    assert (line["event"], line["log_level"], line["outcome"]) == ("a slow query", "info", DONE)
    assert (line["query_text"], line["database"], line["phase"]) == (STATEMENT, "db", "sending")
    assert (line["door"], line["client"], line["request_id"]) == ("http", "10.0.0.1:5", "r1")
    assert (line["running_seconds"], line["sending_seconds"], line["total_seconds"]) == (6.0, 6.0, 12.0)
    assert (line["rows"], line["bytes"], line["parquet_files"], line["parquet_bytes"]) == (3, 24, 2, 900)
    assert (line["rung"], line["workers"]) == ("partial/final", 4)
    assert line["issue_time"].endswith(("Z", "+00:00"))


@pytest.mark.parametrize(("seconds", "limit", "count"), [(9.9, 10.0, 0), (10.0, 10.0, 1), (99.0, 0.0, 0)])
def test_only_one_that_took_as_long_as_the_setting_says(seconds: float, limit: float, count: int) -> None:
    assert len(lines(seconds, slow_log_seconds=limit)) == count


def test_its_text_can_be_left_out() -> None:
    (line,) = lines(12.0, slow_log_text="off")
    assert line["query_text"] == LEFT_OUT
    assert "nobody" not in repr(line)
