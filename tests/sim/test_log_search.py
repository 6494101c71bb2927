"""The real Log holds in every history of small length: nothing acknowledged is lost, nothing is read late,
nothing stands twice, nothing that was refused stands, and nobody says damage where there is none.

Each case is one set of bounds for `tests.sim.logsearch`; its last column says what the search must have met,
so that a case which reaches nothing cannot pass. Larger bounds: ``pytest -m slow`` or the script.
"""

from __future__ import annotations

import pytest

from tests.sim.logsearch import LARGE, Bounds, Search

CASES: dict[str, tuple[Bounds, set[str]]] = {
    # two take-overs
    "rows": (Bounds(nodes=3, opens=3, rows=2, lost=1), {"acked", "fenced", "late landing", "own nonce", "unknown"}),
    "lost answers": (Bounds(rows=3, lost=2), {"late landing", "own nonce", "unknown", "not written"}),
    "refusals": (Bounds(rows=3, lost=1, refused=1, closes=1), {"refused", "closed", "unknown", "left behind"}),
    "checkpoints": (Bounds(rows=2, checkpoints=1, lost=1), {"checkpoint", "collected", "late landing", "own nonce"}),
    "compaction": (Bounds(rows=2, checkpoints=2, compact=True), {"checkpoint", "collected", "fenced"}),
    "two take-overs with a checkpoint": (
        Bounds(nodes=3, opens=3, rows=1, checkpoints=1),
        {"checkpoint", "collected", "fenced"},
    ),
    "owner reads": (Bounds(rows=2, owner_reads=1, checkpoints=1), {"owner read", "collected", "reads failed"}),
    "owner reads, lost answers": (
        Bounds(rows=1, owner_reads=1, checkpoints=1, lost=1),
        {"owner read", "collected", "late landing", "own nonce"},
    ),
    "owner reads, two take-overs": (
        Bounds(nodes=3, opens=3, rows=1, owner_reads=1, lost=1),
        {"owner read", "late landing"},
    ),
    "store reads": (Bounds(rows=2, store_reads=1, checkpoints=1), {"store read", "collected", "fenced"}),
    "store reads, lost answers": (
        Bounds(rows=1, store_reads=1, checkpoints=1, lost=1),
        {"store read", "collected", "late landing", "own nonce"},
    ),
    "store reads, owners that come back": (
        Bounds(opens=3, rows=1, store_reads=1, checkpoints=1),
        {"store read", "collected"},
    ),
    "both reads": (Bounds(rows=1, owner_reads=1, store_reads=1, lost=1), {"store read", "owner read", "late landing"}),
    "replay that pauses": (
        Bounds(nodes=3, opens=3, rows=2, full_rows=1, lost=1),
        {"replay paused", "paused replay goes on", "collected", "fenced", "late landing"},
    ),
    "replay that pauses, store reads": (
        Bounds(rows=2, full_rows=1, store_reads=1, checkpoints=1),
        {"replay paused", "store read", "collected"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_log_holds_in_every_history(case: str) -> None:
    bounds, expected = CASES[case]
    search = Search(bounds)
    assert search.run() > 1_000
    assert expected <= search.reached


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", LARGE)
def test_the_log_holds_in_longer_histories(case: str) -> None:
    search = Search(LARGE[case])
    assert search.run() > 100_000
    assert {"acked", "fenced"} <= search.reached
