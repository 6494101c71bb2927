"""Health: phases follow one another as the table says, and holds decide readiness."""

from __future__ import annotations

import itertools

import pytest

from nodes.health import MOVES, Health, Phase


def at(phase: Phase) -> Health:
    health = Health()
    if phase is not Phase.STARTING:
        health.move(phase)
    return health


def test_a_whole_life() -> None:
    health = Health()
    seen = []
    for phase in (Phase.STARTING, Phase.REPLAYING, Phase.READY, Phase.DRAINING):
        health.move(phase)
        seen.append((health.is_live, health.is_started, health.is_ready))
    assert seen == [(True, False, False), (True, False, False), (True, True, True), (True, True, False)]


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Phase, Phase)))
def test_moves_are_those_of_the_table(before: Phase, after: Phase) -> None:
    health = at(before)
    if after is before or after in MOVES[before]:
        health.move(after)
        assert health.phase is after
    else:
        with pytest.raises(ValueError, match=f"from {before} to {after}"):
            health.move(after)


def test_a_hold_makes_it_not_ready_and_a_warning_does_not() -> None:
    health = at(Phase.READY)
    health.warn("shard 3", "damaged")
    assert health.is_ready
    health.hold("store", "does not answer")
    report = health.report()
    assert not report.is_ready
    assert report.is_started
    assert dict(report.reasons) == {"store": "does not answer", "shard 3": "damaged"}
    assert report.text == "ready: store: does not answer; shard 3: damaged"
    health.release("store")
    health.release("shard 3")
    assert health.report().text == "ready"
    assert health.is_ready


def test_the_first_failure_stays() -> None:
    health = at(Phase.READY)
    health.fail("fsync failed")
    health.fail("and then the rest")
    assert not health.is_live
    assert health.report().text == "failed: node: fsync failed"


def test_a_phase_can_be_announced_again_with_news() -> None:
    health = at(Phase.REPLAYING)
    health.move(Phase.REPLAYING, "3 of 8 shards")
    assert health.report().text == "replaying: node: 3 of 8 shards"
    health.move(Phase.READY)
    assert health.report().reasons == {}
