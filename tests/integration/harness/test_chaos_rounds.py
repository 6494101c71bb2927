"""The chaos rounds as a whole, on stand-in nodes: a good cluster passes, and each planted bug is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.cluster_rounds import Plan, main, parse, run
from tests.chaos.history import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.capture import CaptureFixture
    from _pytest.monkeypatch import MonkeyPatch

STANDIN = "tests.harness.standin"
FAULTS = ("kill-owner", "kill-gateway", "pause-query", "term-query")


def test_a_good_cluster_passes(tmp_path: Path) -> None:
    found = run(Plan(3, 11, 2.0, FAULTS, module=STANDIN), tmp_path)
    assert found.violations == []
    assert found.rounds == 3
    assert found.fired.total() >= 3
    assert found.outcomes[Outcome.ACKNOWLEDGED] > 100
    assert found.rows >= found.outcomes[Outcome.ACKNOWLEDGED]
    assert "VIOLATION" not in found.table()


@pytest.mark.parametrize(
    ("bug", "text"),
    [
        ("lose", "acknowledged rows are|have not their newest|are lost"),
        ("double", "twice"),
        ("stale", "went back|not seen|have not their newest"),
        ("name", "has no order"),
    ],
)
def test_a_planted_bug_is_found(tmp_path: Path, monkeypatch: MonkeyPatch, bug: str, text: str) -> None:
    monkeypatch.setenv("STANDIN_BUG", bug)
    found = run(Plan(8, 12, 4.0, ("term-query",), module=STANDIN, ingest=1, queries=1), tmp_path)
    assert any(part in violation for violation in found.violations for part in text.split("|")), found.violations


def test_the_command_line_names_its_faults(capsys: CaptureFixture[str]) -> None:
    plan = parse(["--seed", "5", "--network", "none", "--faults", "kill,cut,store-full"])
    assert plan.faults == ["kill-owner", "kill-two", "kill-all", "kill-gateway", "kill-query", "store-full"]
    assert plan.hurts_store
    assert "--seed 5" in plan.replay()
    with pytest.raises(SystemExit):
        main(["--faults", "earthquake"])
    assert "no fault 'earthquake'" in capsys.readouterr().err
