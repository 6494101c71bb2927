"""A cluster in virtual time: real `Placer`s, and oracles for Raft, gossip, the Catalog's Log and the shards' Logs.

`World` runs one seed: a while of faults, then quiet. Nodes keep L12 (open only when the newest Placement or the
open object that fenced them names them; serve until another is named). What must never happen is asserted on the
way (`Violation`); what must hold in the end is for `tests.sim.test_placement` to ask.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.members import Kind, Member, MemberMeta, MemberState
from cluster.placement import Placement, PlacementVersion
from cluster.placer import Placer
from cluster.placerevents import (
    Announce,
    CatalogFailed,
    CatalogOpened,
    CloseCatalog,
    CommitFailed,
    Committed,
    Effect,
    Event,
    Fenced,
    HandoverRequested,
    Issue,
    LeaderGained,
    LeaderLost,
    Learned,
    MembersChanged,
    OpenCatalog,
    Repeat,
    Reported,
    ReportFailed,
    Tick,
    Unreachable,
    Wake,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SHARDS: Final = tuple(range(1, 7))
FALLBACK_SECONDS: Final = 2.0
"""A leader that lost its majority believes in itself for so long."""


class Violation(AssertionError):
    """Something that must never happen."""


@dataclass
class Faults:
    """What may go wrong, and how long. ``duel``: two leaders for ever. ``split``: and each half hears only its own."""

    seconds: float = 30.0
    crashes: float = 0.12  # each second, of some node
    pauses: float = 0.1
    cuts: float = 0.1  # between two nodes
    elections: float = 0.1
    flaps: float = 0.05  # "unreachable" that is not true
    drains: float = 0.03
    loss: float = 0.1
    duel: bool = False
    split: bool = False


@dataclass
class Node:
    """An ingest node. ``serving``: shard -> its open's place in that shard's Log."""

    name: str
    is_alive: bool = True
    paused_until: float = 0.0
    incarnation: int = 1
    is_draining: bool = False
    placement: Placement = field(default_factory=Placement)
    epoch: int = 0
    serving: dict[int, int] = field(default_factory=dict)
    news: dict[int, tuple[PlacementVersion, str]] = field(default_factory=dict)
    opening: set[int] = field(default_factory=set)
    life: int = 0
    refusals: Counter[str] = field(default_factory=Counter)

    def owner_of(self, shard: int) -> str | None:
        """By the newest that it has heard: a Placement, or an open object (L12)."""
        version, owner = self.news.get(shard, (PlacementVersion(), ""))
        return owner if version > self.placement.version else self.placement.owners.get(shard)


class World:
    """One history. `run` returns when quiet has lasted; then look at it."""

    def __init__(self, seed: int, nodes: int = 4, faults: Faults | None = None, kind: type[Placer] = Placer) -> None:
        self.kind = kind
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.now = 0.0
        self.nodes = {name: Node(name) for name in "abcde"[:nodes]}
        self.voters = tuple(self.nodes)[:3]
        self.halves = tuple(self.nodes)[::2], tuple(self.nodes)[1::2]
        self.placers = {name: self._new_placer(name) for name in self.voters}
        self.leaders: set[str] = set()
        self.raft_leader: str | None = None
        self.raft = Placement()
        self.catalog: list[str] = []  # who opened, by epoch
        self.opened: dict[str, int] = {}  # controller -> epoch of the Catalog it has open
        self.logs: dict[int, list[tuple[str, PlacementVersion]]] = {shard: [] for shard in SHARDS}
        self.reports: dict[str, set[str]] = {}  # controller -> who has reported its epoch
        self.issued: dict[PlacementVersion, Placement] = {}
        self.newest_of: dict[str, PlacementVersion] = {}
        self.cut: dict[frozenset[str], float] = {}
        self.believed: dict[str, tuple[MemberState, int]] = {}
        self.moves: list[tuple[float, int]] = []
        self.served: list[tuple[float, int]] = []
        self.reached: Counter[str] = Counter()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._wakes: dict[str, float] = {}

    # ---- time and messages ----------------------------------------------------------------------------------

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._count), what))

    def run(self, quiet_seconds: float = 45.0) -> None:
        self._begin()
        end = self.faults.seconds + quiet_seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = end

    def _begin(self) -> None:
        self._gossip()
        self._chaos()
        self._work()
        for name in self.voters[:2] if self.faults.duel else ():
            self.after(self.rng.random(), lambda name=name: self._lead(name))  # type: ignore[misc]
        if not self.faults.duel:
            self._elect()

    @property
    def is_quiet(self) -> bool:
        return self.now >= self.faults.seconds

    def _can_talk(self, one: str, other: str) -> bool:
        if self.faults.split and (one in self.halves[0]) != (other in self.halves[0]):
            return False
        return self.now >= self.cut.get(frozenset((one, other)), 0.0)

    def _is_up(self, name: str) -> bool:
        node = self.nodes[name]
        return node.is_alive and self.now >= node.paused_until

    def _is_lost(self) -> bool:
        return not self.is_quiet and self.rng.random() < self.faults.loss

    def _when_up(self, name: str, life: int, what: Callable[[], None]) -> None:
        """In this life of the node: now, or when it wakes from its pause. A zombie goes on where it stopped."""
        node = self.nodes[name]
        if not node.is_alive or node.life != life:
            return
        if self.now < node.paused_until:
            self.after(node.paused_until - self.now + 0.001, lambda: self._when_up(name, life, what))
        else:
            what()

    def _at(self, name: str, seconds: float, what: Callable[[], None]) -> None:
        life = self.nodes[name].life
        self.after(seconds, lambda: self._when_up(name, life, what))

    # ---- controllers ----------------------------------------------------------------------------------------

    def _new_placer(self, name: str) -> Placer:
        return self.kind(name, random.Random(self.rng.random()))

    def tell(self, name: str, event: Event) -> None:
        placer = self.placers[name]
        if isinstance(event, Reported) and event.catalog_epoch == self.opened.get(name):
            self.reports[name].add(event.name)
        before = placer.placement.version
        effects = placer.handle(event, self.now)
        if placer.placement.version < before:
            raise Violation(f"{name} forgot {before}")
        for effect in effects:
            self._perform(name, effect)

    def _perform(self, name: str, effect: Effect) -> None:
        if isinstance(effect, OpenCatalog):
            self._at(name, self.rng.uniform(0.02, 0.4), lambda: self._open_catalog(name))
        elif isinstance(effect, CloseCatalog):
            self.opened.pop(name, None)
        elif isinstance(effect, Announce):
            self._call(name, effect)
        elif isinstance(effect, Issue):
            self._judge(name, effect.placement)
            self._push(name, effect.placement)
            self._propose(name, effect.placement)
        elif isinstance(effect, Repeat):
            self._push(name, effect.placement)
            if effect.propose:
                self._propose(name, effect.placement)
        elif isinstance(effect, Wake):
            self._wakes[name] = effect.at
            self._at(name, effect.at - self.now, lambda: self._wake(name, effect.at))

    def _wake(self, name: str, at: float) -> None:
        if self._wakes.get(name) == at:
            self.tell(name, Tick())

    def _open_catalog(self, name: str) -> None:
        if self.placers[name].phase.value != "opening":
            return  # closed meanwhile: cancelled
        if not self.is_quiet and self.rng.random() < 0.1:
            self.tell(name, CatalogFailed())
            return
        self.catalog.append(name)
        self.opened[name] = len(self.catalog)
        self.reports[name] = set()
        self.reached["catalog opened"] += 1
        self.tell(name, CatalogOpened(len(self.catalog), SHARDS))

    def _check_catalog(self, name: str) -> None:
        """An append or a proof (L13): finds out that the Catalog was taken over."""
        if name in self.opened and self.opened[name] != len(self.catalog):
            self.reached["catalog fenced"] += 1
            del self.opened[name]
            self.tell(name, Fenced())

    def _judge(self, name: str, placement: Placement) -> None:
        version = placement.version
        if version.catalog_epoch != self.opened.get(name):
            raise Violation(f"{name} issues {version} but has open {self.opened.get(name)}")
        if version in self.issued or version <= self.newest_of.get(name, PlacementVersion()):
            raise Violation(f"{name} issues {version} again")
        if strangers := set(placement.owners.values()) - self.reports[name]:
            raise Violation(f"{version} names {strangers}, who have not reported that epoch")
        before = self.issued.get(PlacementVersion(version.catalog_epoch, version.number - 1))
        if before is not None:
            moved = sum(before.owners.get(s) not in (None, placement.owners.get(s)) for s in SHARDS)
            self.moves.append((self.now, moved))
        self.issued[version] = placement
        self.newest_of[name] = version
        self.reached["issued"] += 1

    def _call(self, caller: str, announce: Announce) -> None:
        name, life = announce.name, self.nodes[caller].life

        def back(event: Event) -> None:
            self.after(0.003, lambda: self._when_up(caller, life, lambda: self.tell(caller, event)))

        node = self.nodes[name]
        if not node.is_alive and self._can_talk(caller, name):
            self.nodes[caller].refusals[name] += 1
            back(ReportFailed(name))
            if self.nodes[caller].refusals[name] >= 2:
                self.reached["unreachable"] += 1
                back(Unreachable(name))
            return
        self.nodes[caller].refusals[name] = 0
        if not self._can_talk(caller, name) or self._is_lost():
            self.after(1.0, lambda: back(ReportFailed(name)))
            return
        self._at(name, self.rng.uniform(0.001, 0.1), lambda: back(self._answer(name, announce)))

    def _answer(self, name: str, announce: Announce) -> Reported:
        node = self.nodes[name]
        node.epoch = max(node.epoch, announce.epoch, node.placement.version.catalog_epoch)
        return Reported(name, node.epoch, frozenset(node.serving), node.is_draining)

    # ---- Placement on its way -------------------------------------------------------------------------------

    def _push(self, sender: str, placement: Placement) -> None:
        for name in self.nodes:
            if name == sender or (self._can_talk(sender, name) and not self._is_lost()):
                self._at(name, self.rng.uniform(0.001, 0.2), lambda name=name: self._hear(name, placement))  # type: ignore[misc]

    def _propose(self, name: str, placement: Placement) -> None:
        """Raft takes it if its proposer leads a majority; the answer may be lost either way."""
        is_taken = name == self.raft_leader and self._has_majority(name)
        if is_taken and placement.version > self.raft.version:
            self.raft = placement
            for voter in self.voters:
                if self._can_talk(name, voter):
                    self._at(voter, self.rng.uniform(0.001, 0.1), lambda voter=voter: self._apply(voter, placement))  # type: ignore[misc]
        answer: Event = Committed(placement.version) if is_taken else CommitFailed(placement.version)
        if self._is_lost():
            answer = CommitFailed(placement.version)
        self._at(name, 0.05 if is_taken else 1.0, lambda: self.tell(name, answer))

    def _apply(self, voter: str, placement: Placement) -> None:
        self.tell(voter, Learned(placement))
        self._push(voter, placement)  # to who watches this voter

    def _has_majority(self, name: str) -> bool:
        return sum(self._is_up(v) and self._can_talk(name, v) for v in self.voters) * 2 > len(self.voters)

    # ---- nodes (L12, L32) -----------------------------------------------------------------------------------

    def _hear(self, name: str, placement: Placement) -> None:
        node = self.nodes[name]
        if placement.version > node.placement.version:
            node.placement = placement
            if name in self.placers:
                self.tell(name, Learned(placement))
        self._follow(node)

    def _follow(self, node: Node) -> None:
        for shard in SHARDS:
            is_named = node.owner_of(shard) == node.name
            if not is_named:
                node.serving.pop(shard, None)  # checkpoints, and lets go
            elif shard not in node.serving and shard not in node.opening:
                node.opening.add(shard)
                self._at(node.name, self.rng.uniform(0.02, 0.3), lambda shard=shard: self._open_shard(node, shard))  # type: ignore[misc]

    def _open_shard(self, node: Node, shard: int) -> None:
        node.opening.discard(shard)
        if node.owner_of(shard) == node.name:
            version = max(node.placement.version, node.news.get(shard, (PlacementVersion(), ""))[0])
            self.logs[shard].append((node.name, version))
            node.serving[shard] = len(self.logs[shard])

    def _append(self, node: Node) -> None:
        """Each owner writes, and finds out when it is fenced; the open object is news to it."""
        for shard, place in list(node.serving.items()):
            if place != len(self.logs[shard]):
                self.reached["shard fenced"] += 1
                del node.serving[shard]
                owner, version = self.logs[shard][-1]
                if version > max(node.placement.version, node.news.get(shard, (PlacementVersion(), ""))[0]):
                    node.news[shard] = (version, owner)
        self._follow(node)

    def _work(self) -> None:
        for node in self.nodes.values():
            if self._is_up(node.name):
                self._append(node)
        for name in self.voters:
            if self._is_up(name) and self.rng.random() < 0.2:
                self._check_catalog(name)
        self.served.append((self.now, sum(len(self.owners_of(shard)) == 1 for shard in SHARDS)))
        self.after(0.5, self._work)

    def owners_of(self, shard: int) -> list[str]:
        """Who could get a write acknowledged now."""
        end = len(self.logs[shard])
        return [n.name for n in self.nodes.values() if self._is_up(n.name) and n.serving.get(shard) == end]

    # ---- Raft's leaders -------------------------------------------------------------------------------------

    def _elect(self) -> None:
        """One leader, when it has a majority; the one before may believe in itself a little longer."""
        able = [v for v in self.voters if self._is_up(v) and self._has_majority(v)]
        if self.raft_leader not in able or (not self.is_quiet and self.rng.random() < self.faults.elections / 2):
            old, self.raft_leader = self.raft_leader, self.rng.choice(able) if able else None
            if old is not None and old != self.raft_leader:
                self._at(old, self.rng.uniform(0.0, FALLBACK_SECONDS), lambda: self._step_down(old))
            if self.raft_leader is not None and self.raft_leader not in self.leaders:
                self._lead(self.raft_leader)
        self.after(0.5, self._elect)

    def _lead(self, name: str) -> None:
        self.leaders.add(name)
        self.raft_leader = name
        if len([leader for leader in self.leaders if self.nodes[leader].is_alive]) > 1:
            self.reached["two leaders"] += 1
        self.tell(name, LeaderGained())

    def _step_down(self, name: str) -> None:
        if name != self.raft_leader and name in self.leaders:
            self.leaders.discard(name)
            self.tell(name, LeaderLost())

    # ---- faults ---------------------------------------------------------------------------------------------

    def _chaos(self) -> None:
        if self.is_quiet:
            self._heal()
            return
        if self.rng.random() < self.faults.crashes:
            self._crash(self._any())
        if self.rng.random() < self.faults.pauses:
            self.nodes[self._any()].paused_until = self.now + self.rng.uniform(0.5, 8.0)
            self.reached["pause"] += 1
        if self.rng.random() < self.faults.cuts:
            pair = frozenset(self.rng.sample(sorted(self.nodes), 2))
            self.cut[pair] = self.now + self.rng.uniform(1.0, 12.0)
            self.reached["cut"] += 1
        if self.rng.random() < self.faults.flaps:
            self._tell_all(Unreachable(self._any()))
        if self.rng.random() < self.faults.drains:
            self._drain(self._any())
        self.after(1.0, self._chaos)

    def _any(self) -> str:
        return self.rng.choice(sorted(self.nodes))

    def _heal(self) -> None:
        self.cut.clear()
        for node in self.nodes.values():
            node.is_draining = False
            node.paused_until = min(node.paused_until, self.now)
            if not node.is_alive:
                self._restart(node.name)

    def _crash(self, name: str) -> None:
        node = self.nodes[name]
        if not node.is_alive or (self.faults.duel and name in self.voters[:2]):
            return
        self.reached["crash"] += 1
        node.is_alive = False
        node.life += 1
        node.serving.clear()
        node.opening.clear()
        self.opened.pop(name, None)
        self.leaders.discard(name)
        self.after(self.rng.uniform(0.5, 12.0), lambda: self._restart(name))

    def _restart(self, name: str) -> None:
        node = self.nodes[name]
        if node.is_alive:
            return
        self.nodes[name] = Node(name, incarnation=node.incarnation + 1, life=node.life)
        if name in self.placers:
            self.placers[name] = self._new_placer(name)
            self.newest_of.pop(name, None)
            self.tell(name, MembersChanged(self._members()))
            if self.raft.owners:
                self.tell(name, Learned(self.raft))  # what Raft kept on its disk
            if name == self.raft_leader:
                self._lead(name)

    def _drain(self, name: str) -> None:
        node = self.nodes[name]
        if self._is_up(name):
            self.reached["drain"] += 1
            node.is_draining = True
            self._tell_all(HandoverRequested(name, leaving=False))
            self._at(name, self.rng.uniform(2.0, 10.0), lambda: setattr(node, "is_draining", False))

    def _tell_all(self, event: Event) -> None:
        for voter in self.voters:
            if self._is_up(voter):
                self.tell(voter, event)

    # ---- gossip ---------------------------------------------------------------------------------------------

    def _gossip(self) -> None:
        """Slow to believe in a death, quick to see a life; told to each voter at its own time."""
        before = dict(self.believed)
        for name, node in self.nodes.items():
            state, incarnation = self.believed.get(name, (MemberState.DEAD, 0))
            if self._is_up(name):
                self.believed[name] = (MemberState.ALIVE, node.incarnation)
            elif state is MemberState.ALIVE:
                self.believed[name] = (MemberState.SUSPECT, incarnation)
            elif self.rng.random() < 0.3:
                self.believed[name] = (MemberState.DEAD, incarnation)
        if self.believed != before:
            for voter in self.voters:
                self._at(voter, self.rng.uniform(0.0, 0.5), lambda voter=voter: self._tell_members(voter))  # type: ignore[misc]
        self.after(1.0, self._gossip)

    def _tell_members(self, voter: str) -> None:
        self.tell(voter, MembersChanged(self._members()))

    def _members(self) -> dict[str, Member]:
        return {
            name: Member(name, f"{name}:1", incarnation, state, MemberMeta(Kind.INGEST, zone=name))
            for name, (state, incarnation) in self.believed.items()
        }
