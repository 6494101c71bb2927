"""Logs that break one rule each, on purpose: `tests.sim.test_broken_rules` asserts that the search sees it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from storage.collect import Collector
from storage.errors import ShardClosed
from storage.frames import Header, ObjectKind
from storage.log import LogCore, Phase
from storage.logeffects import CheckNext, Failed, Outcome, Proved, Stood
from storage.logreader import LogReader
from storage.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.frames import Entry
    from storage.log import Identity, LogState, _InFlight
    from storage.logeffects import Ticket


class OpenNamesWhatItKnew(LogCore):
    """L2: the open names the Checkpoint that the node knows, not the one that the object below names."""

    def _header(self, kind: ObjectKind) -> Header:
        header = super()._header(kind)
        return dataclasses.replace(header, checkpoint_seq=0) if kind is ObjectKind.OPEN else header


class OneNonceForAll(LogCore):
    """L2: every create carries the same nonce."""

    def _header(self, kind: ObjectKind) -> Header:
        return dataclasses.replace(super()._header(kind), nonce=bytes(16))


class AcknowledgesFirst(LogCore):
    """L4: acknowledges when the create is sent."""

    def _send(
        self, kind: ObjectKind, entries: tuple[Entry, ...], tickets: tuple[Ticket, ...] = (), covered: int = 0
    ) -> None:
        super()._send(kind, entries, tickets, covered)
        if tickets:
            self._effects.append(Stood(self.next_seq, tickets, entries))


class TwoInFlight(LogCore):
    """L5: sends a second group while the first is under way, and acknowledges whichever stands."""

    def __init__(self, identity: Identity, state: LogState, new_nonce: Callable[[], bytes]) -> None:
        super().__init__(identity, state, new_nonce)
        self._second: _InFlight | None = None
        self._second_stands = False

    def append(self, tickets: Sequence[Ticket], now_ms: int) -> None:
        first = self._inflight
        if first is None or first.kind is not ObjectKind.DATA or self._second is not None:
            super().append(tickets, now_ms)
            return
        placed = self.state.place([t.entry for t in tickets])
        entries = tuple(dataclasses.replace(e, base_offset=e.base_offset + len(first.entries)) for e in placed)
        self._inflight = None
        self.next_seq += 1
        self._send(ObjectKind.DATA, entries, tuple(tickets))
        self.next_seq -= 1
        self._second, self._inflight = self._inflight, first

    def created(self, sequence: int, outcome: Outcome) -> None:
        second = self._second
        if second is None or second.sequence != sequence:
            super().created(sequence, outcome)
        elif outcome is Outcome.CREATED:
            self._effects.append(Stood(sequence, second.tickets, second.entries))
            self._second_stands = True

    def _stands(self, flight: _InFlight) -> None:
        super()._stands(flight)
        second, self._second = self._second, None
        if second is not None and self._second_stands:
            super()._stands(second)
        elif second is not None:
            self._inflight = second


class GivesUpTheUnknown(LogCore):
    """L6: takes a create without an answer for one that did nothing, and goes on."""

    def created(self, sequence: int, outcome: Outcome) -> None:
        flight = self._inflight
        if outcome is not Outcome.UNKNOWN or flight is None or flight.kind is not ObjectKind.DATA:
            super().created(sequence, outcome)
            return
        self._inflight = None
        self._effects.append(Failed(flight.tickets, ShardClosed("no answer")))
        self._pump()


class TakesWhatExistsForItsOwn(LogCore):
    """L6: after an unknown try it takes whatever stands there for its own, without comparing nonces."""

    def created(self, sequence: int, outcome: Outcome) -> None:
        flight = self._inflight
        if outcome is Outcome.EXISTS and flight is not None and flight.unknown:
            self._stands(flight)
        else:
            super().created(sequence, outcome)


class TakesItsOwnForARival(LogCore):
    """L6: takes whatever stands there for another owner's, and tells the client "not written"."""

    def created(self, sequence: int, outcome: Outcome) -> None:
        flight = self._inflight
        if outcome is Outcome.EXISTS and flight is not None and flight.kind is ObjectKind.DATA:
            flight.unknown = False
            self._fenced(None)
        else:
            super().created(sequence, outcome)


class SaysNotWritten(LogCore):
    """L6: lets go while a create is under way and tells the client "not written"."""

    def close(self) -> None:
        flight = self._inflight
        if flight is not None:
            self._inflight = None
            self._effects.append(Failed(flight.tickets, ShardClosed("closed")))
        super().close()


class ListsOnce(LogCore):
    """L9: does not list again after its open stands."""

    def __init__(self, identity: Identity, state: LogState, new_nonce: Callable[[], bytes]) -> None:
        super().__init__(identity, state, new_nonce)
        self._first: tuple[int, ...] = ()

    def listed(self, sequences: Sequence[int]) -> None:
        if self.phase is Phase.LISTING:
            self._first = tuple(sequences)
        super().listed(sequences)

    def _stands(self, flight: _InFlight) -> None:
        super()._stands(flight)
        if flight.kind is ObjectKind.OPEN:
            self._effects.pop()  # the second listing
            self._verify((*self._first, flight.sequence), flight.sequence)


class ProbesForTheEnd(LogCore):
    """L9: finds the end, both times, by asking for one sequence after the other."""

    def listed(self, sequences: Sequence[int]) -> None:
        if self.phase is Phase.LISTING:
            end = next(s for s in range(1, len(sequences) + 2) if s not in sequences)
            super().listed([s for s in sequences if s < end])
        elif self.phase is Phase.VERIFYING:
            end = next(s for s in range(self._end, self._end + len(sequences) + 1) if s not in sequences)
            super().listed([s for s in sequences if s < end])
        else:
            super().listed(sequences)


class ReadsWithoutListingAgain(LogReader):
    """L10: a store read is answered from its first listing."""

    def _relist(self) -> None:
        self._finish()


class CallsEveryGapDamage(LogCore):
    """L10: an owner that misses an object does not ask whether somebody newer has collected it."""

    def _suspect(self, doubt: str) -> None:
        self._damaged(doubt)


class _CollectsOpens(Collector):
    def listed(self, sequences: Sequence[int], covered: int) -> None:
        self.opens.clear()
        super().listed(sequences, covered)

    def kind_read(self, sequence: int, kind: ObjectKind | None) -> None:
        super().kind_read(sequence, ObjectKind.DATA if kind is ObjectKind.OPEN else kind)


class CollectsOpens(LogCore):
    """L11: open objects at or below k are deleted like all others."""

    def __init__(self, identity: Identity, state: LogState, new_nonce: Callable[[], bytes]) -> None:
        super().__init__(identity, state, new_nonce)
        self._collector = _CollectsOpens()


class AnswersWithoutProof(LogCore):
    """L13: answers a read from what it knows."""

    def prove(self, read: int) -> None:
        self._effects.append(Proved((read,)))


class ChecksBesideACreate(LogCore):
    """L13: checks its next sequence while a create of its own is under way there."""

    def _check_reads(self) -> None:
        if self._waiting and self._checking is None and self.phase is Phase.OWNER:
            self._checking, self._waiting = tuple(self._waiting), []
            self._effects.append(CheckNext(self.next_seq))


class ChecksBesideACreateAndTakesItForItsOwn(ChecksBesideACreate):
    """L13: the same, and what it finds there is taken for its own create."""

    def checked(self, sequence: int, exists: bool) -> None:
        super().checked(sequence, exists and self._inflight is None)


class SharesAChecksTransit(LogCore):
    """L13: a read shares a check that was already on its way when the read arrived."""

    def prove(self, read: int) -> None:
        if self._checking is not None:
            self._checking = (*self._checking, read)
        else:
            super().prove(read)


class TakesAnOlderCreateForProof(LogCore):
    """L13: a create that was sent before the read arrived is taken for its proof."""

    def prove(self, read: int) -> None:
        if self._inflight is not None:
            self._inflight.reads = (*self._inflight.reads, read)
        else:
            super().prove(read)


class ReplayFromTheCheckpoint(Replay):
    """L18: replays from the Checkpoint's own sequence on, not from k + 1."""

    def _loaded(self) -> None:
        if not self._parts:
            self.loading = False
            self._following = self._asked = self._base + 1
            self._advance()


class ReadsFromTheCheckpoint(LogReader):
    """L18: a store read starts above the Checkpoint's own sequence, not above k."""

    def _begin(self) -> None:
        super()._begin()
        if self._following <= self.base:
            self._effects.pop()
            self._following = self.base + 1
            self._ask()


class CollectsBelowTheCheckpoint(LogCore):
    """L19: takes everything below the Checkpoint for garbage, not only what is at or below k."""

    def listed(self, sequences: Sequence[int]) -> None:
        if self.phase is Phase.OWNER:
            self._collector.listed(sequences, self.checkpoint_seq - 1)
            self._pump_collection()
        else:
            super().listed(sequences)


class CollectsOlderCheckpoints(LogCore):
    """L19: takes older Checkpoints for garbage, wherever they stand."""

    def __init__(self, identity: Identity, state: LogState, new_nonce: Callable[[], bytes]) -> None:
        super().__init__(identity, state, new_nonce)
        self._checkpoints: set[int] = set()

    def _stands(self, flight: _InFlight) -> None:
        if flight.kind is ObjectKind.CHECKPOINT:
            self._checkpoints.add(flight.sequence)
        super()._stands(flight)

    def listed(self, sequences: Sequence[int]) -> None:
        if self.phase is Phase.OWNER:
            older = self._checkpoints - {self.checkpoint_seq}
            garbage = [s for s in sequences if s in older or s <= self.state.covered()]
            self._collector.listed(garbage, self.next_seq)
            self._pump_collection()
        else:
            super().listed(sequences)


class CollectsForAnUnknownCheckpoint(LogCore):
    """L19: collects what a Checkpoint covers while its outcome is unknown."""

    def _send(
        self, kind: ObjectKind, entries: tuple[Entry, ...], tickets: tuple[Ticket, ...] = (), covered: int = 0
    ) -> None:
        super()._send(kind, entries, tickets, covered)
        if kind is ObjectKind.CHECKPOINT and (effect := self._collector.begin()) is not None:
            self._effects.append(effect)

    def listed(self, sequences: Sequence[int]) -> None:
        if self.phase is Phase.OWNER:
            covered = self.state.covered() if self._inflight is None else self._inflight.covered
            self._collector.listed(sequences, covered)
            self._pump_collection()
        else:
            super().listed(sequences)

    def _pump_collection(self) -> None:
        if self.phase is Phase.OWNER and (effect := self._collector.following()) is not None:
            self._effects.append(effect)
