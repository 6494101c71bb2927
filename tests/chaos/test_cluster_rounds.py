"""The short form of ``make chaos``: a few rounds against a whole cluster (DESIGN promises 1 to 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.cluster_rounds import Plan, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "faults", [("kill-owner", "pause-owner", "term-ingest"), ("store", "kill-all")], ids=["deaths", "answers lost"]
)
def test_nothing_acknowledged_is_lost_or_doubled(tmp_path: Path, faults: tuple[str, ...]) -> None:
    found = run(Plan(2, 20261128, 6.0, faults), tmp_path)
    assert found.violations == [], found.table()
    assert found.fired.total() >= 2
