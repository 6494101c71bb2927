"""The controller's rules one by one (LOG L32, L12). Histories of faults are in tests/sim/test_placement.py."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import pytest

from cluster.members import Kind, Member, MemberMeta, MemberState
from cluster.placement import Placement, PlacementVersion
from cluster.placer import Phase, Placer, PlacerTimes
from cluster.placerevents import (
    Announce,
    CatalogFailed,
    CatalogOpened,
    CloseCatalog,
    CommitFailed,
    Committed,
    Fenced,
    HandoverRequested,
    Issue,
    LeaderGained,
    LeaderLost,
    Learned,
    MembersChanged,
    OpenCatalog,
    Reachable,
    RebalanceRequested,
    Repeat,
    Reported,
    ReportFailed,
    ShardsChanged,
    Tick,
    Unreachable,
    Wake,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.placerevents import Effect, Event

_E = TypeVar("_E")
TIMES = PlacerTimes()
SHARDS = (1, 2, 3, 4)


def member(name: str, state: MemberState = MemberState.ALIVE, kind: Kind = Kind.INGEST, zone: str = "") -> Member:
    return Member(name, f"{name}:1", 1, state, MemberMeta(kind, zone=zone))


def of_kind(kind: type[_E], effects: Iterable[Effect]) -> list[_E]:
    return [effect for effect in effects if isinstance(effect, kind)]


class Script:
    """A placer with a clock, and nodes that answer what they are asked unless they are told not to."""

    def __init__(self, names: str = "abc", silent: str = "", seed: int = 0) -> None:
        self.placer = Placer("a", random.Random(seed))
        self.now = 100.0
        self.members = {name: member(name) for name in names}
        self.silent = set(silent)
        self.owned: dict[str, frozenset[int]] = {}
        self.draining: set[str] = set()
        self.wake = float("inf")
        self.done: list[Effect] = []

    def tell(self, event: Event) -> list[Effect]:
        """The event's effects, and those of the nodes' answers to them."""
        effects, events = [], deque([event])
        while events:
            for effect in self.placer.handle(events.popleft(), self.now):
                effects.append(effect)
                if isinstance(effect, Wake):
                    self.wake = effect.at
                elif isinstance(effect, Announce) and effect.name not in self.silent:
                    owned = self.owned.get(effect.name, frozenset())
                    events.append(Reported(effect.name, effect.epoch, owned, effect.name in self.draining))
        self.done += effects
        return effects

    def gossip(self, **states: MemberState | None) -> list[Effect]:
        for name, state in states.items():
            if state is None:
                del self.members[name]
            else:
                self.members[name] = member(name, state)
        return self.tell(MembersChanged(dict(self.members)))

    def lead(self, epoch: int = 7, shards: tuple[int, ...] = SHARDS) -> list[Effect]:
        self.gossip()
        self.tell(LeaderGained())
        return self.tell(CatalogOpened(epoch, shards))

    def wait(self, seconds: float) -> list[Effect]:
        """Pass time, with a Tick at each Wake."""
        until, effects = self.now + seconds, []
        while self.wake <= until:
            self.now, self.wake = max(self.now, self.wake), float("inf")
            effects += self.tell(Tick())
        self.now = until
        return effects

    @property
    def owners(self) -> dict[int, str]:
        return dict(self.placer.placement.owners)

    @property
    def version(self) -> tuple[int, int]:
        return self.placer.placement.version.catalog_epoch, self.placer.placement.version.number


# ---- becoming the controller ------------------------------------------------------------------------------------


def test_the_catalog_is_opened_before_anything_is_decided() -> None:
    script = Script()
    script.gossip()
    assert script.tell(LeaderGained()) == [OpenCatalog()]
    assert not script.placer.is_controller
    assert script.tell(LeaderGained()) == []


def test_the_epoch_is_announced_to_all_before_the_map_is_issued() -> None:
    script = Script()
    effects = script.lead()
    kinds = [type(e) for e in effects if isinstance(e, Announce | Issue)]
    assert kinds == [Announce, Announce, Announce, Issue]
    assert {e.epoch for e in of_kind(Announce, effects)} == {7}
    assert script.version == (7, 1)
    assert script.owners == {1: "a", 2: "b", 3: "c", 4: "a"}
    assert script.placer.placement.controller == "a"


def test_only_live_ingest_nodes_are_asked() -> None:
    script = Script("abcd")
    script.members["b"] = member("b", kind=Kind.QUERY)
    script.members["c"] = member("c", MemberState.DEAD)
    script.members["d"] = member("d", MemberState.LEFT)
    assert [e.name for e in of_kind(Announce, script.lead())] == ["a"]
    assert set(script.owners.values()) == {"a"}


def test_the_slow_are_waited_for_a_bounded_time_and_not_named() -> None:
    script = Script(silent="c")
    assert not of_kind(Issue, script.lead())
    assert not of_kind(Issue, script.wait(TIMES.gather - 0.01))
    assert len(of_kind(Issue, script.wait(0.02))) == 1
    assert set(script.owners.values()) == {"a", "b"}


def test_one_that_refuses_is_not_waited_for() -> None:
    script = Script(silent="c")
    script.lead()
    assert of_kind(Issue, script.tell(ReportFailed("c")))


def test_with_no_report_at_all_the_old_map_holds() -> None:
    script = Script(silent="abc")
    old = Placement(PlacementVersion(3, 1), "b", dict.fromkeys(SHARDS, "b"))
    script.tell(Learned(old))
    script.lead()
    assert not of_kind(Issue, script.wait(30.0))
    script.silent.clear()
    script.wait(TIMES.answer)
    assert script.version[0] == 7


def test_a_late_reporter_gets_its_share_after_quiet() -> None:
    script = Script("abc", silent="c")
    script.lead()
    script.wait(1.0)
    before = script.owners
    assert not of_kind(Issue, script.tell(Reported("c", 7, frozenset())))
    assert not of_kind(Issue, script.wait(TIMES.settle - 0.1))
    assert of_kind(Issue, script.wait(0.2))
    assert sum(before[s] != script.owners[s] for s in SHARDS) == 1
    assert "c" in script.owners.values()


def test_a_late_reporter_gets_what_has_no_owner_at_once() -> None:
    script = Script("ab", silent="b")
    script.lead()
    script.wait(1.0)
    script.gossip(a=MemberState.DEAD)
    assert script.owners == {}
    script.tell(Reported("b", 7, frozenset()))
    assert script.owners == dict.fromkeys(SHARDS, "b")


def test_a_new_epoch_keeps_every_live_owner() -> None:
    script = Script()
    script.tell(Learned(Placement(PlacementVersion(3, 9), "b", {1: "c", 2: "c", 3: "b", 4: "dead"})))
    script.lead(epoch=5)
    assert script.version == (5, 1)
    assert script.owners == {1: "c", 2: "c", 3: "b", 4: "a"}


def test_without_a_known_map_the_reports_say_who_has_what() -> None:
    """Raft's state may be lost whole: nothing moves for that."""
    script = Script()
    script.owned = {"a": frozenset({4}), "b": frozenset({1, 2}), "c": frozenset({3})}
    script.lead()
    assert script.owners == {4: "a", 1: "b", 2: "b", 3: "c"}


def test_of_two_that_report_a_shard_the_named_one_keeps_it() -> None:
    script = Script()
    script.tell(Learned(Placement(PlacementVersion(3, 9), "b", {1: "c"})))
    script.owned = {"b": frozenset({1}), "c": frozenset({1})}
    script.lead(shards=(1,))
    assert script.owners == {1: "c"}


# ---- losing it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["opening", "gathering", "leading"])
def test_who_is_no_leader_lets_the_catalog_go(stage: str) -> None:
    script = Script(silent="c" if stage == "gathering" else "")
    script.gossip()
    script.tell(LeaderGained())
    if stage != "opening":
        script.tell(CatalogOpened(7, SHARDS))
    assert script.placer.phase.value == stage
    assert CloseCatalog() in script.tell(LeaderLost())
    assert script.placer.phase is Phase.FOLLOWING
    assert not of_kind(Issue, script.wait(60.0))
    assert not of_kind(Issue, script.gossip(b=MemberState.DEAD))


def test_once_fenced_nothing_is_issued_until_the_catalog_is_open_again() -> None:
    script = Script()
    script.lead()
    assert script.tell(Fenced()) == [CloseCatalog(), Wake(script.wake)]
    assert not of_kind(Issue, script.gossip(b=MemberState.DEAD))
    assert not of_kind(Issue, script.tell(RebalanceRequested()))
    effects = script.wait(2.0)
    assert of_kind(OpenCatalog, effects)
    assert not of_kind(Issue, effects)
    script.tell(CatalogOpened(9, SHARDS))
    assert script.version == (9, 1)
    assert "b" not in script.owners.values()


@pytest.mark.parametrize(
    "sign",
    [Learned(Placement(PlacementVersion(8, 1), "b", {1: "b"})), Reported("b", 8, frozenset())],
    ids=["a map", "a report"],
)
def test_a_greater_epoch_from_anybody_is_a_fence(sign: Event) -> None:
    script = Script()
    script.lead()
    assert CloseCatalog() in script.tell(sign)
    assert script.placer.phase is Phase.PAUSED


def test_the_pause_grows_is_jittered_and_ends() -> None:
    pauses = []
    for seed in range(20):
        script = Script(seed=seed)
        script.gossip()
        script.tell(LeaderGained())
        row = []
        for _ in range(8):
            script.tell(CatalogFailed())
            row.append(script.wake - script.now)
            script.wait(row[-1])
            assert script.placer.phase is Phase.OPENING
        pauses.append(row)
    firsts = [row[0] for row in pauses]
    assert min(firsts) >= TIMES.pause / 2
    assert max(firsts) <= TIMES.pause * 1.5
    assert len(set(firsts)) == len(firsts)
    assert all(row[-1] > 4 * row[0] for row in pauses)
    assert max(max(row) for row in pauses) <= TIMES.pause_most * 1.5


def test_after_long_in_office_the_pause_is_short_again() -> None:
    script = Script()
    script.gossip()
    script.tell(LeaderGained())
    for _ in range(6):
        script.tell(CatalogFailed())
        script.wait(script.wake - script.now)
    script.tell(CatalogOpened(7, SHARDS))
    script.wait(TIMES.pause_most + 1.0)
    script.tell(Fenced())
    assert script.wake - script.now <= TIMES.pause * 1.5


def test_a_catalog_that_opens_for_nobody_is_ignored() -> None:
    script = Script()
    script.gossip()
    assert not of_kind(Issue, script.tell(CatalogOpened(7, SHARDS)))
    assert script.placer.phase is Phase.FOLLOWING


def test_a_catalog_that_opened_too_late_decides_nothing() -> None:
    script = Script()
    script.gossip()
    script.tell(LeaderGained())
    script.tell(Learned(Placement(PlacementVersion(9, 1), "b", {1: "b"})))
    assert not of_kind(Issue, script.tell(CatalogOpened(7, SHARDS)))
    assert script.placer.phase is Phase.PAUSED


# ---- deaths and moves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["dead", "left", "gone", "unreachable"])
def test_only_the_shards_of_the_lost_node_move(sign: str) -> None:
    script = Script("abc")
    script.lead(shards=tuple(range(1, 10)))
    before = script.owners
    if sign == "unreachable":
        script.silent.add("b")
        effects = script.tell(Unreachable("b"))
    else:
        states = {"dead": MemberState.DEAD, "left": MemberState.LEFT, "gone": None}
        effects = script.gossip(b=states[sign])
    assert len(of_kind(Issue, effects)) == 1
    assert script.version == (7, 2)
    assert {s for s in before if before[s] != script.owners[s]} == {s for s, o in before.items() if o == "b"}
    assert sorted(script.owners.values()).count("a") in (4, 5)
    assert not of_kind(Issue, script.wait(60.0))


def test_a_suspect_keeps_its_shards_and_gets_none() -> None:
    script = Script("ab")
    script.lead()
    before = script.owners
    assert not of_kind(Issue, script.gossip(b=MemberState.SUSPECT))
    assert script.owners == before
    script.tell(ShardsChanged((*SHARDS, 5, 6)))
    assert script.owners == {**before, 5: "a", 6: "a"}


def test_if_nobody_else_is_there_an_unreachable_owner_stays_named() -> None:
    script = Script("a")
    script.lead()
    assert not of_kind(Issue, script.tell(Unreachable("a")))
    assert set(script.owners.values()) == {"a"}


def test_a_node_that_flaps_gets_nothing_back_for_a_while() -> None:
    script = Script("abc")
    script.lead()
    script.silent.add("b")
    assert of_kind(Issue, script.tell(Unreachable("b")))
    moved = script.owners
    script.silent.clear()
    script.tell(Reachable("b"))
    assert not of_kind(Issue, script.wait(TIMES.flap - 1.0))
    assert not of_kind(Issue, script.tell(Unreachable("b"))), "a second flap finds nothing to move"
    assert script.owners == moved
    script.wait(TIMES.flap + TIMES.settle + TIMES.retry + 1.0)
    assert "b" in script.owners.values()


def test_a_report_asked_before_a_node_was_unreachable_does_not_make_it_reachable() -> None:
    script = Script("ab", silent="b")
    script.lead()
    script.tell(Unreachable("b"))
    script.tell(Reported("b", 7, frozenset()))
    assert not script.placer._peers["a"].is_unreachable
    assert script.placer._peers["b"].is_unreachable


def test_a_node_that_cannot_be_reached_is_not_asked_in_a_hurry() -> None:
    script = Script("ab")
    script.lead()
    script.silent.add("b")
    asked = 0
    for _ in range(20):
        asked += len(of_kind(Announce, script.tell(ReportFailed("b")))) + len(of_kind(Announce, script.wait(0.1)))
        script.tell(Unreachable("b"))
    assert asked <= 6


def test_a_new_node_gets_its_share_in_one_map_after_quiet() -> None:
    script = Script("ab")
    script.lead(shards=tuple(range(1, 10)))
    script.wait(10.0)
    before = script.owners
    script.gossip(c=MemberState.ALIVE)
    assert not of_kind(Issue, script.wait(TIMES.settle - 0.1))
    assert len(of_kind(Issue, script.wait(10.0))) == 1
    assert sum(before[s] != script.owners[s] for s in before) == 3
    assert list(script.owners.values()).count("c") == 3


def test_nodes_that_keep_coming_do_not_put_off_the_balance_for_ever() -> None:
    script = Script("a")
    script.lead(shards=tuple(range(1, 10)))
    issues: list[Issue] = []
    for i in range(12):
        script.gossip(**{f"n{i}": MemberState.ALIVE})
        issues += of_kind(Issue, script.wait(1.0))
    assert 1 <= len(issues) <= 2


def test_a_rebalance_on_request_is_at_once() -> None:
    script = Script("ab")
    script.lead()
    script.gossip(c=MemberState.ALIVE)
    assert of_kind(Issue, script.tell(RebalanceRequested()))
    assert not of_kind(Issue, script.tell(RebalanceRequested()))


def test_new_shards_are_given_out() -> None:
    script = Script()
    script.lead()
    assert of_kind(Issue, script.tell(ShardsChanged((*SHARDS, 5, 6))))
    assert len(set(script.owners.values())) == 3
    assert script.owners.keys() == {1, 2, 3, 4, 5, 6}


# ---- handing over -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaving", [True, False])
def test_a_node_that_hands_over_gives_all_and_gets_none(leaving: bool) -> None:
    script = Script()
    script.lead()
    script.draining.add("b")
    effects = script.tell(HandoverRequested("b", leaving))
    assert len(of_kind(Issue, effects)) == 1
    assert not script.placer.placement.shards_of("b")
    assert not of_kind(Issue, script.wait(60.0))
    assert not script.placer.placement.shards_of("b")


@pytest.mark.parametrize("leaving", [True, False])
def test_if_nobody_else_is_there_it_keeps_them_until_somebody_is(leaving: bool) -> None:
    script = Script("a")
    script.lead()
    script.draining.add("a")
    assert not of_kind(Issue, script.tell(HandoverRequested("a", leaving)))
    assert set(script.owners.values()) == {"a"}
    script.gossip(b=MemberState.ALIVE)
    assert set(script.owners.values()) == {"b"}


def test_a_report_that_crossed_the_request_does_not_undo_it() -> None:
    script = Script()
    script.lead()
    script.tell(HandoverRequested("b", leaving=True))
    script.tell(Reported("b", 7, frozenset(), draining=False))
    script.wait(TIMES.handover - 1.0)
    assert not script.placer.placement.shards_of("b")


def test_a_new_controller_hears_of_drains_from_the_nodes_themselves() -> None:
    script = Script()
    script.draining.add("b")
    script.lead()
    assert "b" not in script.owners.values()


def test_a_node_that_left_and_came_back_has_promised_nothing() -> None:
    script = Script()
    script.lead()
    script.tell(HandoverRequested("b", leaving=True))
    script.gossip(b=MemberState.LEFT)
    script.gossip(b=MemberState.ALIVE)
    script.wait(TIMES.settle_most)
    assert script.placer.placement.shards_of("b")


# ---- repeating --------------------------------------------------------------------------------------------------


def test_the_map_is_repeated_and_proposed_again_until_raft_has_it() -> None:
    script = Script()
    script.lead()
    repeats = of_kind(Repeat, script.wait(2 * TIMES.repeat + 0.1))
    assert repeats == [Repeat(script.placer.placement, propose=True)] * 2
    script.tell(Committed(PlacementVersion(7, 0)))
    assert of_kind(Repeat, script.wait(TIMES.repeat))[0].propose
    script.tell(Committed(PlacementVersion(7, 1)))
    assert not of_kind(Repeat, script.wait(TIMES.repeat))[0].propose
    script.tell(CommitFailed(PlacementVersion(7, 1)))
    assert of_kind(Repeat, script.wait(TIMES.repeat))[0].propose


def test_announcements_are_repeated_one_at_a_time_to_each() -> None:
    script = Script(silent="c")
    script.lead()
    names = [e.name for e in of_kind(Announce, script.wait(TIMES.answer + 0.1))]
    assert names.count("b") == 2
    assert names.count("c") == 1


def test_versions_only_grow_and_never_come_twice() -> None:
    script = Script("abcd")
    script.lead()
    for name in "bcd":
        script.gossip(**{name: MemberState.DEAD})
        script.gossip(**{name: MemberState.ALIVE})
        script.wait(TIMES.settle_most)
    versions = [e.placement.version for e in of_kind(Issue, script.done)]
    assert versions == sorted(set(versions))
    assert len(versions) > 3


def test_what_is_learned_is_kept_only_if_it_is_greater() -> None:
    script = Script()
    newer = Placement(PlacementVersion(5, 5), "b", {1: "b"})
    script.tell(Learned(newer))
    script.tell(Learned(Placement(PlacementVersion(5, 4), "c", {1: "c"})))
    assert script.placer.placement == newer
