"""The cluster benchmark's arithmetic and report: pauses, first successes, goals that are met, missed and open."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.cluster import PARTS, measures, parse
from benchmarks.clustergoals import GOALS, ClusterGoal, ClusterReport
from benchmarks.clusterload import Track, wait_served

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = {"cpu": "Some CPU", "cores": 2}


def test_pauses_and_first_successes() -> None:
    track = Track([(0.0, 1.0), (1.0, 1.5), (2.0, 4.5), (4.5, 5.0)])
    assert track.longest_pause() == 3.0
    assert track.seconds_until_served(1.2) == pytest.approx(3.3)
    assert track.seconds_until_served(4.6) is None
    assert Track().longest_pause() == 0.0
    with pytest.raises(TimeoutError, match="not served again"):
        wait_served(track, time.monotonic(), 0.0)


def test_goals_are_named_once_and_judged(tmp_path: Path) -> None:
    names = [goal.figure for goal in GOALS]
    assert len(set(names)) == len(names)
    report = ClusterReport(MACHINE, ("query",))
    report.put("one-row SELECT through a gateway: p50", 5.0)
    report.put("one-row SELECT through a gateway: p99", 50.0)
    report.put("rolling restart: client errors", 1.0)
    met = {goal.figure: report.is_met(goal) for goal in GOALS}
    assert met["one-row SELECT through a gateway: p50"] is True
    assert met["one-row SELECT through a gateway: p99"] is None
    assert met["rolling restart: client errors"] is False
    assert report.is_met(ClusterGoal("nothing", "", 1)) is None
    with pytest.raises(AssertionError, match="no such figure"):
        report.put("no such figure", 1.0)
    page = report.store(partial=True, folder=tmp_path)
    assert page.name.endswith("-cluster-partial.md")
    assert "| one-row SELECT through a gateway: p50 | ms   | <= 6   |" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["figures"]["rolling restart: client errors"] == 1.0


def test_every_part_can_be_asked_for(tmp_path: Path) -> None:
    assert tuple(measures(ClusterReport(MACHINE), tmp_path, 1, 1)) == PARTS
    assert parse(["--only", "kill, cut-fast"]).only == ("kill", "cut-fast")
    assert not parse([]).store
    with pytest.raises(SystemExit):
        parse(["--only", "flood"])
