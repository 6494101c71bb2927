"""Placement by L32, in hundreds of seeded histories of crashes, pauses, cuts, losses and two leaders at once.

In quiet each shard has exactly one owner that could get a write acknowledged, at the node that the newest Placement
names; shards lie evenly and no longer move; and on the way nobody issued what it may not (`World` asserts that).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from cluster import placer
from cluster.placer import Phase, Placer, PlacerTimes
from cluster.placerevents import Fenced
from tests.sim.placementworld import SHARDS, Faults, Violation, World

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from cluster.placerevents import Event
    from cluster.spread import Candidate

SEEDS = 480
CHUNK = 40


def finished(
    seed: int, faults: Faults | None = None, quiet_seconds: float = 45.0, kind: type[Placer] = Placer
) -> World:
    world = World(seed, nodes=3 + seed % 3, faults=faults, kind=kind)
    world.run(quiet_seconds)
    return world


def owners(world: World) -> dict[int, list[str]]:
    return {shard: world.owners_of(shard) for shard in SHARDS}


def newest(world: World) -> dict[int, str]:
    return dict(max(world.issued.items())[1].owners)


def moves(world: World, since: float) -> int:
    return sum(count for at, count in world.moves if at >= since)


def faults_of(world: World) -> list[str]:
    """What is wrong with a cluster that has had quiet for long."""
    named, found = newest(world), []
    if owners(world) != {shard: [named.get(shard)] for shard in SHARDS}:
        found.append(f"owned by {owners(world)}, named {named}")
    held = Counter(named.values())
    counts = [held[name] for name in world.nodes]
    if max(counts) - min(counts) > 1:
        found.append(f"uneven: {counts}")
    if moves(world, world.now - 15.0):
        found.append("shards still move")
    return found


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_shard_has_one_live_owner_in_quiet(first: int) -> None:
    for seed in range(first, first + CHUNK):
        assert not faults_of(finished(seed)), f"seed {seed}"


def test_the_histories_reach_what_they_are_for() -> None:
    reached: Counter[str] = Counter()
    for seed in range(CHUNK):
        reached += finished(seed).reached
    expected = {"crash", "pause", "cut", "two leaders", "catalog fenced", "shard fenced", "unreachable", "drain"}
    assert expected <= reached.keys()


@pytest.mark.parametrize("split", [False, True], ids=["both hear all", "each hears its half"])
def test_two_controllers_for_ever_let_the_nodes_serve(split: bool) -> None:
    """Neither is told by Raft to stop. They fence each other's Catalog ever more rarely, and some owner serves."""
    faults = Faults(seconds=20.0, crashes=0.03, pauses=0.03, cuts=0.05, flaps=0.0, drains=0.0, duel=True, split=split)
    for seed in range(12):
        world = finished(seed, faults, quiet_seconds=130.0)
        last = [count for at, count in world.served if at >= world.now - 60.0]
        assert sum(count == len(SHARDS) for count in last) >= 0.9 * len(last), f"seed {seed}"
        assert world.reached["catalog opened"] < 40


def test_calm_costs_no_move() -> None:
    """One election, nodes that come up within moments: one map, and one more for the balance at most."""
    calm = Faults(seconds=0.0)
    for seed in range(20):
        world = finished(seed, calm, quiet_seconds=20.0)
        assert len([count for _, count in world.moves if count]) <= 1, f"seed {seed}"


class _NamesAnybody(Placer):
    def _candidates(self) -> list[Candidate]:
        for peer in self._peers.values():
            peer.has_reported = True
        return super()._candidates()


class _GoesOnFenced(Placer):
    """Needs the two steps taken from the table, too."""

    def _pause(self, _: Event) -> None:
        pass


class _NeverLevels(Placer):
    def _note_steady(self, candidates: list[Candidate]) -> None:
        pass


class _KeepsItsNumber(Placer):
    def _issue(self, owners: Mapping[int, str]) -> None:
        self._number = 0
        super()._issue(owners)


class _OpensAtOnce(Placer):
    def __init__(self, name: str, rng: random.Random) -> None:
        super().__init__(name, rng, PlacerTimes(pause=0.1, pause_most=0.1))


@pytest.mark.parametrize("kind", [_NamesAnybody, _GoesOnFenced, _NeverLevels, _KeepsItsNumber])
def test_without_one_rule_a_history_goes_wrong(kind: type[Placer], monkeypatch: pytest.MonkeyPatch) -> None:
    """The search must be able to see: each rule that is taken away is missed within a few seeds."""
    if kind is _GoesOnFenced:
        monkeypatch.delitem(placer._STEPS, (Phase.LEADING, Fenced))
        monkeypatch.delitem(placer._STEPS, (Phase.GATHERING, Fenced))
    for seed in range(40):
        try:
            world = finished(seed, kind=kind)
        except Violation:
            return
        if faults_of(world):
            return
    pytest.fail("nothing went wrong")


def test_without_the_pause_a_duel_never_rests() -> None:
    faults = Faults(seconds=20.0, crashes=0.0, duel=True, split=True)
    opened = [finished(1, faults, 130.0, kind).reached["catalog opened"] for kind in (_OpensAtOnce, Placer)]
    assert opened[0] > 2 * opened[1]
