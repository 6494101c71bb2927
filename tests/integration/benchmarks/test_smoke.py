"""The whole of ``python -m benchmarks.run`` against a real Runnel, in small: every figure that a goal names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import goals, ingest, queries, run, startup

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that take seconds: the figures mean nothing, the way to them is the real one."""
    monkeypatch.setattr(ingest, "QUICK_DIVISOR", 500)
    monkeypatch.setattr(
        ingest, "LOADS", tuple(load for load in ingest.LOADS if load.name in ("narrow", "1-line bodies"))
    )
    monkeypatch.setattr(queries, "LINES_QUICK", 100_000)
    monkeypatch.setattr(queries, "ASKS_QUICK", 1)
    monkeypatch.setattr(startup, "QUICK_DIVISOR", 400)
    monkeypatch.setattr(startup, "STARTS_QUICK", 1)
    monkeypatch.setattr(startup, "IDLE_SECONDS", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_quick_run_without_peers_measures_everything(tmp_path: Path) -> None:
    assert run.main(["--quick", "--peers", "none", "--results", str(tmp_path)]) == 0
    (page,) = tmp_path.glob("*-quick-partial.json")
    kept = json.loads(page.read_text())
    assert kept["failures"] == []
    measured = {goal["load"]: goal["runnel"] for goal in kept["goals"]}
    loads = {f"{load.name}, CPU s per million lines" for load in ingest.LOADS}
    others = {goal.load for goal in goals.GOALS if not goal.figure.startswith("ingest/")}
    assert all(measured[name] is not None for name in loads | others)
    assert kept["startup"]["rss_ready_bytes"] > 10_000_000
    assert {each["query"]: each["rows"] for each in kept["queries"]}["groupby-orderby-limit"] == 5
