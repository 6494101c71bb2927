"""The controller: decides which node owns which shard (LOG L32). A pure machine: events and ``now`` in, effects out.

Every voter has a `Placer`; a driver in `nodes` feeds it from Raft, gossip and the nodes' answers, and performs the
effects in the order given (`cluster.placerevents` says how each is answered). ``now`` is monotonic seconds. Answers
are events of their own: `handle` is not called from within the performing of its effects.

The way of a controller: Raft names it, it opens the Catalog, whose open object gives the epoch; it announces that
epoch to every live ingest node; it issues the whole map under it, naming only nodes that reported that epoch; then
it answers to what happens with new maps, until Raft names another or the Catalog's Log fences it. Then it issues
nothing until it has opened the Catalog again, after a growing, jittered pause (L12). Two that believe to be the
controller thus alternate ever more slowly, and the nodes follow the greater version.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cluster.members import Kind, Member, MemberState
from cluster.placement import Placement, PlacementVersion
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
    Reachable,
    RebalanceRequested,
    Repeat,
    Reported,
    ReportFailed,
    ShardsChanged,
    Unreachable,
    Wake,
)
from cluster.spread import Candidate, Rank, fill, level

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class PlacerTimes:
    """How long the controller waits, in seconds."""

    gather: float = 0.5  # for the slow to report a new epoch, before the first map without them
    repeat: float = 2.0  # between repetitions of the map, and of each announcement
    retry: float = 0.5  # after an announcement that failed
    answer: float = 5.0  # after which an announcement without an answer counts as failed
    settle: float = 2.0  # of quiet among the nodes before shards move for the sake of balance
    settle_most: float = 10.0  # if quiet never comes
    flap: float = 15.0  # after it was unreachable a node gets shards only if nobody else is there
    handover: float = 5.0  # in which "not draining" in a report may be older than the request
    pause: float = 1.0  # before the Catalog is opened again, doubled each time, times 0.5 to 1.5
    pause_most: float = 30.0


class Phase(enum.Enum):
    """Where a controller stands."""

    FOLLOWING = "following"
    OPENING = "opening"  # the Catalog is being opened
    GATHERING = "gathering"  # nodes are asked to report the new epoch
    LEADING = "leading"  # maps are issued
    PAUSED = "paused"  # leader by Raft's word, but the Catalog was lost or did not open


_WITH_EPOCH: Final = frozenset({Phase.GATHERING, Phase.LEADING})


@dataclass(slots=True)
class _Peer:
    """What is known of one ingest node."""

    member: Member
    has_reported: bool = False  # the epoch in force
    owned: frozenset[int] = frozenset()
    is_draining: bool = False
    is_leaving: bool = False
    handover_at: float = -math.inf
    is_unreachable: bool = False
    unreachable_at: float = -math.inf
    asked_at: float | None = None  # an announcement is under way since then
    ask_at: float = -math.inf  # when to announce (again)

    @property
    def is_usable(self) -> bool:
        return self.member.is_usable and not self.is_unreachable

    def ask_anew(self) -> None:
        self.asked_at, self.ask_at = None, -math.inf

    def forget_life(self) -> None:
        """The process is gone: the next one of this name has promised nothing."""
        self.has_reported = self.is_draining = self.is_leaving = False
        self.owned, self.handover_at = frozenset(), -math.inf
        self.ask_anew()


class Placer:
    """One node's controller. Call `handle` with each event, obey the effects."""

    def __init__(self, name: str, rng: random.Random, times: PlacerTimes | None = None) -> None:
        self.name = name
        self.times = times or PlacerTimes()
        self.phase = Phase.FOLLOWING
        self.placement = Placement()
        self.epoch = 0
        self._rng = rng
        self._number = 0
        self._shards: tuple[int, ...] = ()
        self._peers: dict[str, _Peer] = {}
        self._effects: list[Effect] = []
        self._now = 0.0
        self._is_committed = False
        self._gather_until = math.inf
        self._repeat_at = math.inf
        self._open_at = math.inf
        self._opened_at = -math.inf
        self._pauses = 0
        self._steady: frozenset[str] = frozenset()
        self._unsettled_since = math.inf
        self._steady_since = -math.inf
        self._level_now = False
        self._woken_at = math.inf

    @property
    def is_controller(self) -> bool:
        """Maps come from here: serve Handover and Rebalance, else say who leads."""
        return self.phase in _WITH_EPOCH

    def handle(self, event: Event, now: float) -> list[Effect]:
        """One event; the effects to perform, in order."""
        self._now = now
        self._effects = []
        fact = _FACTS.get(type(event))
        if fact is not None:
            fact(self, event)
        step = _STEPS.get((self.phase, type(event)))
        if step is not None:
            step(self, event)
        self._go_on()
        self._set_wake()
        return self._effects

    # ---- facts: noted in any phase --------------------------------------------------------------------------

    def _note_members(self, event: MembersChanged) -> None:
        ingest = {name: m for name, m in event.members.items() if m.meta.kind is Kind.INGEST}
        for name in self._peers.keys() - ingest.keys():
            del self._peers[name]
        for name, member in ingest.items():
            peer = self._peers.setdefault(name, _Peer(member))
            if peer.member.is_usable and not member.is_usable:
                peer.forget_life()
            peer.member = member

    def _note_unreachable(self, event: Unreachable) -> None:
        peer = self._peers.get(event.name)
        if peer is not None:
            peer.is_unreachable = True
            peer.unreachable_at = self._now
            peer.asked_at, peer.ask_at = None, self._now + self.times.retry  # one under way says nothing of now

    def _note_reachable(self, event: Reachable) -> None:
        peer = self._peers.get(event.name)
        if peer is not None and peer.is_unreachable:
            peer.is_unreachable = False
            peer.ask_anew()

    def _note_handover(self, event: HandoverRequested) -> None:
        peer = self._peers.get(event.name)
        if peer is not None:
            peer.is_draining = True
            peer.is_leaving = event.leaving
            peer.handover_at = self._now

    def _note_placement(self, event: Learned) -> None:
        if event.placement.version > self.placement.version:
            self.placement = event.placement

    def _note_report(self, event: Reported) -> None:
        peer = self._peers.get(event.name)
        if peer is None:
            return
        if peer.asked_at is not None:
            peer.is_unreachable = False
            peer.asked_at, peer.ask_at = None, self._now + self.times.repeat
        peer.owned = event.owned
        if event.draining or self._now - peer.handover_at >= self.times.handover:
            peer.is_draining = event.draining
            peer.is_leaving = peer.is_leaving and event.draining

    def _note_failed_report(self, event: ReportFailed) -> None:
        peer = self._peers.get(event.name)
        if peer is not None and peer.asked_at is not None:
            peer.asked_at, peer.ask_at = None, self._now + self.times.retry

    def _note_shards(self, event: ShardsChanged) -> None:
        self._shards = event.shards

    # ---- steps: by phase ------------------------------------------------------------------------------------

    def _open(self, _: Event) -> None:
        self.phase = Phase.OPENING
        self._pauses = 0
        self._effects.append(OpenCatalog())

    def _follow(self, _: Event) -> None:
        self.phase = Phase.FOLLOWING
        self._effects.append(CloseCatalog())

    def _stop_waiting(self, _: Event) -> None:
        self.phase = Phase.FOLLOWING

    def _gather(self, event: CatalogOpened) -> None:
        """L32: announce the epoch before any map is issued under it."""
        self.phase = Phase.GATHERING
        self.epoch, self._shards = event.epoch, event.shards
        self._number = 0
        self._opened_at = self._now
        self._gather_until = self._now + self.times.gather
        self._repeat_at = math.inf
        self._steady, self._unsettled_since = frozenset(), math.inf
        for peer in self._peers.values():
            peer.has_reported = False
            peer.ask_anew()

    def _pause(self, _: Event) -> None:
        """L12: the Catalog is opened again after a growing, jittered pause, so that of two rivals one gets through."""
        if self.phase in _WITH_EPOCH and self._now - self._opened_at > self.times.pause_most:
            self._pauses = 0
        pause = min(self.times.pause * 2**self._pauses, self.times.pause_most)
        self._pauses = min(self._pauses + 1, 16)
        self._open_at = self._now + pause * (0.5 + self._rng.random())
        self.phase = Phase.PAUSED
        self._effects.append(CloseCatalog())

    def _hear_report(self, event: Reported) -> None:
        if event.catalog_epoch > self.epoch:
            self._pause(event)  # somebody opened the Catalog after us
        elif event.catalog_epoch == self.epoch and event.name in self._peers:
            self._peers[event.name].has_reported = True

    def _hear_placement(self, event: Learned) -> None:
        version = event.placement.version
        if version.catalog_epoch > self.epoch:
            self._pause(event)
        elif version.catalog_epoch == self.epoch:
            self._number = max(self._number, version.number)

    def _hear_commit(self, event: Committed) -> None:
        if event.version == self.placement.version:
            self._is_committed = True

    def _hear_failed_commit(self, event: CommitFailed) -> None:
        if event.version == self.placement.version:
            self._is_committed = False

    def _level_soon(self, _: Event) -> None:
        self._level_now = True

    # ---- going on: what is due ------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if self.phase is Phase.PAUSED and self._now >= self._open_at:
            self.phase = Phase.OPENING
            self._effects.append(OpenCatalog())
        if self.phase not in _WITH_EPOCH:
            return
        if self.placement.version.catalog_epoch > self.epoch:
            self._pause(Fenced())  # known before our Catalog was open
            return
        self._announce()
        if self.phase is Phase.GATHERING:
            self._finish_gathering()
        elif self.phase is Phase.LEADING:
            self._decide()
        if self._now >= self._repeat_at:
            self._repeat_at = self._now + self.times.repeat
            self._effects.append(Repeat(self.placement, propose=not self._is_committed))

    def _announce(self) -> None:
        for name, peer in sorted(self._peers.items()):
            if peer.asked_at is not None and self._now - peer.asked_at >= self.times.answer:
                peer.ask_anew()
            if peer.member.is_usable and peer.asked_at is None and self._now >= peer.ask_at:
                peer.asked_at = self._now
                self._effects.append(Announce(name, self.epoch))

    def _finish_gathering(self) -> None:
        """All have reported or failed, or the slow have had their time. Nobody at all: wait on, the old map holds."""
        usable = [peer for peer in self._peers.values() if peer.is_usable]
        is_pending = any(not peer.has_reported and peer.asked_at is not None for peer in usable)
        if not any(peer.has_reported for peer in usable) or (is_pending and self._now < self._gather_until):
            return
        self.phase = Phase.LEADING
        candidates = self._candidates()
        self._note_steady(candidates)
        self._issue(self._settled(self._inherited(), candidates))

    def _decide(self) -> None:
        candidates = self._candidates()
        self._note_steady(candidates)
        owners = self._settled(self.placement.owners, candidates)
        if self._level_now or self._now >= self._level_at:
            owners = level(owners, candidates)
            self._unsettled_since = math.inf
        self._level_now = False
        if owners != self.placement.owners:
            self._issue(owners)

    def _issue(self, owners: Mapping[int, str]) -> None:
        self._number += 1
        self.placement = Placement(PlacementVersion(self.epoch, self._number), self.name, dict(owners))
        self._is_committed = False
        self._repeat_at = self._now + self.times.repeat
        self._effects.append(Issue(self.placement))

    # ---- the map --------------------------------------------------------------------------------------------

    def _inherited(self) -> dict[int, str]:
        """Who has what, for the first map of an epoch: the reports say, and the newest map where they do not."""
        owners: dict[int, str] = {}
        for shard in self._shards:
            named = self.placement.owners.get(shard)
            holders = [n for n, p in sorted(self._peers.items()) if p.has_reported and p.is_usable and shard in p.owned]
            if named in holders or (not holders and named is not None):
                owners[shard] = named
            elif holders:
                owners[shard] = holders[0]
        return owners

    def _settled(self, before: Mapping[int, str], candidates: list[Candidate]) -> dict[int, str]:
        """``before`` with every shard at a node that may have it, moving nothing else."""
        ranks = {c.name: c.rank for c in candidates}
        best = min(ranks.values(), default=None)
        kept: dict[int, str] = {}
        orphans = []
        for shard in self._shards:
            owner = before.get(shard)
            if owner is not None and self._may_keep(owner, ranks.get(owner), best):
                kept[shard] = owner
            else:
                orphans.append(shard)
        return fill(kept, orphans, candidates)

    def _may_keep(self, owner: str, rank: Rank | None, best: Rank | None) -> bool:
        if best is None:  # nobody else is there: better a doubtful owner than none, if it has reported this epoch
            peer = self._peers.get(owner)
            return peer is not None and peer.has_reported
        return rank is not None and (rank is not Rank.DRAINING or best is Rank.DRAINING)

    def _candidates(self) -> list[Candidate]:
        """Nodes that may be given shards: live, and they reported this epoch (L32)."""
        return [
            Candidate(name, self._rank(peer), peer.member.meta.zone, peer.member.meta.load)
            for name, peer in sorted(self._peers.items())
            if peer.has_reported and peer.is_usable and not peer.is_leaving
        ]

    def _rank(self, peer: _Peer) -> Rank:
        if peer.is_draining:
            return Rank.DRAINING
        is_suspect = peer.member.state is MemberState.SUSPECT
        return Rank.DOUBTFUL if is_suspect or self._now < peer.unreachable_at + self.times.flap else Rank.STEADY

    def _note_steady(self, candidates: list[Candidate]) -> None:
        """Balance waits until the steady nodes have been the same for a while."""
        steady = frozenset(c.name for c in candidates if c.rank is Rank.STEADY)
        if steady != self._steady:
            self._steady = steady
            self._steady_since = self._now
            self._unsettled_since = min(self._unsettled_since, self._now)

    @property
    def _level_at(self) -> float:
        """When shards may move for balance; never, if they have since the steady nodes last changed."""
        if self._unsettled_since == math.inf:
            return math.inf
        return min(self._steady_since + self.times.settle, self._unsettled_since + self.times.settle_most)

    # ---- time -----------------------------------------------------------------------------------------------

    def _set_wake(self) -> None:
        at = min(self._deadlines(), default=math.inf)
        if at != self._woken_at and at != math.inf:
            self._effects.append(Wake(at))
        self._woken_at = at

    def _deadlines(self) -> list[float]:
        if self.phase is Phase.PAUSED:
            return [self._open_at]
        if self.phase not in _WITH_EPOCH:
            return []
        times = [self._repeat_at]
        times.append(self._gather_until if self.phase is Phase.GATHERING else self._level_at)
        for peer in self._peers.values():
            if peer.member.is_usable:
                times.append(peer.ask_at if peer.asked_at is None else peer.asked_at + self.times.answer)
            times.append(peer.unreachable_at + self.times.flap)
        return [at for at in times if at > self._now]


_FACTS: Final[dict[type, Callable[[Placer, Any], None]]] = {
    MembersChanged: Placer._note_members,
    Unreachable: Placer._note_unreachable,
    Reachable: Placer._note_reachable,
    Reported: Placer._note_report,
    ReportFailed: Placer._note_failed_report,
    HandoverRequested: Placer._note_handover,
    Learned: Placer._note_placement,
    ShardsChanged: Placer._note_shards,
}
"""What an event makes known, whatever the phase."""

_STEPS: Final[dict[tuple[Phase, type], Callable[[Placer, Any], None]]] = {
    (Phase.FOLLOWING, LeaderGained): Placer._open,
    (Phase.OPENING, CatalogOpened): Placer._gather,
    (Phase.OPENING, CatalogFailed): Placer._pause,
    (Phase.OPENING, LeaderLost): Placer._follow,
    (Phase.GATHERING, Reported): Placer._hear_report,
    (Phase.GATHERING, Learned): Placer._hear_placement,
    (Phase.GATHERING, Fenced): Placer._pause,
    (Phase.GATHERING, LeaderLost): Placer._follow,
    (Phase.LEADING, Reported): Placer._hear_report,
    (Phase.LEADING, Learned): Placer._hear_placement,
    (Phase.LEADING, Committed): Placer._hear_commit,
    (Phase.LEADING, CommitFailed): Placer._hear_failed_commit,
    (Phase.LEADING, RebalanceRequested): Placer._level_soon,
    (Phase.LEADING, Fenced): Placer._pause,
    (Phase.LEADING, LeaderLost): Placer._follow,
    (Phase.PAUSED, LeaderLost): Placer._stop_waiting,
}
"""What an event does in a phase. Every other pair does nothing."""
