"""The owner's side of one Log as a pure machine: answers in, effects out (LOG sections 1-5).

`LogCore` holds no socket, no clock and no thread. A driver (`storage.logdriver`, or the exhaustive search
in ``tests/sim``) performs the effects of `LogCore.take` and reports each answer through the method that the
effect names. Effects of one `take` may be performed in any order; every answer may be late.

What the entries mean is not known here: a `LogState` applies objects and makes Checkpoints.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.collect import Collector
from storage.errors import (
    CorruptObject,
    Fenced,
    LogDamaged,
    OutcomeUnknown,
    ShardClosed,
    StorageError,
    UnsupportedFormat,
)
from storage.frames import (
    OBJECT_BYTES_MAX,
    Buffer,
    Entry,
    Header,
    LogObject,
    ObjectKind,
    decode_header,
    encode_object,
    encoded_size,
)
from storage.logeffects import (
    CheckNext,
    CheckpointDraft,
    CheckpointStood,
    Closed,
    CreateObject,
    Effect,
    Failed,
    ListObjects,
    Opened,
    Outcome,
    Proved,
    ReadObject,
    ReadsFailed,
    ReplayPaused,
    SettleObject,
    Stood,
    Ticket,
)
from storage.logstate import Identity, LogState, decode_own
from storage.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Identity", "LogCore", "LogState", "Phase"]

GROUP_ENTRIES_MAX: Final = 4096
"""Entries of one group commit."""
RELIST_MAX: Final = 64
"""Listings of one take-over: others may be faster so often before it is given up."""


class Phase(enum.Enum):
    """Where an owner stands. Appends are accepted in OWNER only."""

    IDLE = "idle"
    LISTING = "listing"  # L9: find the end by listing
    TAIL = "tail"  # read the header of the object below the end, which the open copies from (L2)
    OPENING = "opening"  # the open object's create is under way
    VERIFYING = "verifying"  # L9: list once more
    BASE = "base"  # read the Checkpoint that the open names (L10)
    REPLAYING = "replaying"
    PAUSED = "paused"  # replay waits for a Checkpoint on its way (L23)
    SUSPECT = "suspect"  # an object is missing: fenced, or damaged (L10)
    OWNER = "owner"
    FENCED = "fenced"
    DAMAGED = "damaged"
    CLOSED = "closed"  # the store refused, or the owner let go


@dataclass(slots=True)
class _InFlight:
    """The one create under way (L5)."""

    sequence: int
    kind: ObjectKind
    header: Header
    buffers: tuple[Buffer, ...]
    entries: tuple[Entry, ...] = ()
    tickets: tuple[Ticket, ...] = ()
    covered: int = 0
    attempt: int = 1
    unknown: bool = False
    reads: tuple[int, ...] = ()  # reads that arrived before it was sent: its success proves them (L13)


class LogCore:
    """One owner of one Log. Create it, call `start`, then obey `take`."""

    def __init__(self, identity: Identity, state: LogState, new_nonce: Callable[[], bytes]) -> None:
        self.identity = identity
        self.state = state
        self.phase = Phase.IDLE
        self.epoch = 0
        self.next_seq = 0
        self.checkpoint_seq = 0
        self.opens = 0
        self.written_at_ms = 0
        self.skips: frozenset[int] = frozenset()
        self.placement = (0, 0)
        self._new_nonce = new_nonce
        self._effects: list[Effect] = []
        self._inflight: _InFlight | None = None
        self._below: Header | None = None  # the object directly below our open
        self._end = 0  # where the open goes
        self._relists = 0
        self._replay: Replay | None = None
        self._doubt = ""
        self._queue: deque[Ticket] = deque()
        self._draft: CheckpointDraft | None = None
        self._waiting: list[int] = []
        self._checking: tuple[int, ...] | None = None
        self._collector = Collector()

    # -- the surface for the driver ---------------------------------------------------------------------

    def take(self) -> list[Effect]:
        """Effects and notices since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def start(self, now_ms: int, skips: frozenset[int] = frozenset(), placement: tuple[int, int] = (0, 0)) -> None:
        """Begin to take the Log over (L9). ``skips`` are corrupt sequences that an operator gave up (L3).

        ``placement`` (Catalog epoch, number) is what told us to: our headers tell it to whom we fence (L12).
        """
        assert self.phase is Phase.IDLE
        self.placement = placement
        self.written_at_ms = now_ms
        self.skips = skips
        self._relist()

    @property
    def is_owner(self) -> bool:
        return self.phase is Phase.OWNER

    @property
    def queued(self) -> int:
        """Appends that wait for the next group commit."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """True while a create is under way or something waits for one."""
        return self._inflight is not None or bool(self._queue) or self._draft is not None

    # -- taking over (L9, L10) --------------------------------------------------------------------------

    def _relist(self) -> None:
        self.phase = Phase.LISTING
        self._list_again()

    def _list_again(self) -> None:
        self._relists += 1
        if self._relists > RELIST_MAX:
            self.phase = Phase.CLOSED
            where = f"log {self.identity.log_id}"
            self._end_with(Fenced(f"{where}: others open it faster, {RELIST_MAX} times in a row: try again"), None)
            return
        self._effects.append(ListObjects())

    def listed(self, sequences: Sequence[int]) -> None:
        """All sequences of the Log, ascending, as one listing showed them."""
        last = sequences[-1] if sequences else 0
        if self.phase is Phase.OWNER:
            self._collector.listed(sequences, self.state.covered())
            self._pump_collection()
        elif self.phase is Phase.LISTING:
            self._end_found(last)
        elif self.phase is Phase.VERIFYING:
            self._verify(sequences, last)
        elif self.phase is Phase.SUSPECT:
            self._judge(last)

    def _end_found(self, last: int) -> None:
        self._end = last + 1
        self._below = None
        if last == 0:
            self._send_open()
            return
        self.phase = Phase.TAIL
        self._effects.append(ReadObject(last))

    def _tail_read(self, sequence: int, data: bytes | None) -> None:
        """The header that the open copies from: of the object below the end, or below those given up (L2, L3)."""
        if data is None and sequence + 1 == self._end:  # collected meanwhile: a newer Checkpoint stands above
            self._relist()
            return
        try:
            if data is None:
                raise CorruptObject(f"{self._where(sequence)}: missing below an object that was given up")
            self._below = self._decode(sequence, data).header
        except (CorruptObject, UnsupportedFormat) as error:
            if data is None or sequence not in self.skips:
                self.next_seq = self._end  # whatever stands from there on is newer
                self._suspect(str(error))
                return
            if sequence > 1:
                self._effects.append(ReadObject(sequence - 1))
                return
        self._send_open()

    def _send_open(self) -> None:
        """The open object, under the epoch that is its own sequence (L1)."""
        below = self._below
        self.phase = Phase.OPENING
        self.epoch = self._end
        self.checkpoint_seq = 0 if below is None else _newest_checkpoint(below)  # L2
        self.opens = 1 if below is None else below.opens + 1
        self.written_at_ms = max(self.written_at_ms, 0 if below is None else below.written_at_ms)
        self.next_seq = self._end
        self._send(ObjectKind.OPEN, ())

    def _verify(self, sequences: Sequence[int], last: int) -> None:
        """L9: anything above the open means that it was not the end. A listing without it is stale."""
        if last > self._end:
            self._collector.opens.add(self._end)
            self._relist()
        elif last < self._end:  # a listing from before our open: ask again, create nothing
            self._list_again()
        else:
            self.phase = Phase.BASE
            self._replay = Replay(self.identity, self.state, self.checkpoint_seq, self._end, self.skips)
            self._replay.begin(set(sequences))
            self._replay_goes_on(self._replay)

    def part_read(self, path: str, data: bytes | None) -> None:
        """A part of the Checkpoint, or None when it is missing."""
        if self.phase is Phase.BASE and self._replay is not None:
            self._replay.part_read(path, data)
            self._replay_goes_on(self._replay)

    def _replay_goes_on(self, replay: Replay) -> None:
        """What the last answer has led to."""
        effects, replay.effects = replay.effects, []
        self._effects.extend(effects)
        if replay.doubt is not None:
            self._suspect(replay.doubt)
        elif replay.done:
            self._replayed(replay)
        elif replay.paused and self.phase is not Phase.PAUSED:
            self.phase = Phase.PAUSED
            self._effects.append(ReplayPaused())
        elif not replay.loading and not replay.paused:
            self.phase = Phase.REPLAYING

    def _replayed(self, replay: Replay) -> None:
        self._replay = None
        self._collector.opens |= replay.opens | {self._end}
        self._collector.data |= replay.data
        self.phase = Phase.OWNER
        self._relists = 0
        self._effects.append(Opened(self.epoch))
        self._pump()

    def resume_replay(self) -> None:
        """The Checkpoint on the way stands: go on with the replay (L23)."""
        if self.phase is Phase.PAUSED and self._replay is not None:
            self.phase = Phase.REPLAYING
            self._replay.resume()
            self._replay_goes_on(self._replay)

    def _suspect(self, doubt: str) -> None:
        """L10: something is missing or does not fit: somebody newer collected it, or there is damage."""
        self.phase = Phase.SUSPECT
        self._doubt = doubt
        if self._inflight is None:  # else a Checkpoint of ours may land meanwhile: look when its outcome is known
            self._effects.append(ListObjects())

    def _judge(self, last: int) -> None:
        if last >= self.next_seq:
            self._fenced(None)
        else:
            self._damaged(self._doubt)

    # -- one create in flight (L5, L6) ------------------------------------------------------------------

    def _header(self, kind: ObjectKind) -> Header:
        return Header(
            kind=kind,
            store_id=self.identity.store_id,
            log_id=self.identity.log_id,
            sequence=self.next_seq,
            epoch=self.epoch,
            node=self.identity.node,
            nonce=self._new_nonce(),  # L2: new for each create, the same for each retry of it
            checkpoint_seq=self.checkpoint_seq,
            opens=self.opens,
            written_at_ms=self.written_at_ms,
            placement_epoch=self.placement[0],
            placement_number=self.placement[1],
        )

    def _send(
        self, kind: ObjectKind, entries: tuple[Entry, ...], tickets: tuple[Ticket, ...] = (), covered: int = 0
    ) -> None:
        assert self._inflight is None, "L5: one create in flight"
        header = self._header(kind)
        buffers = tuple(encode_object(header, entries))
        reads, self._waiting = tuple(self._waiting), []
        self._inflight = _InFlight(self.next_seq, kind, header, buffers, entries, tickets, covered, reads=reads)
        self._effects.append(CreateObject(self.next_seq, buffers, 1))

    def created(self, sequence: int, outcome: Outcome) -> None:
        """What the store said of the create at ``sequence``."""
        flight = self._inflight
        if flight is None or flight.sequence != sequence:
            return
        if outcome is Outcome.CREATED:
            self._stands(flight)
        elif outcome is Outcome.UNKNOWN:  # L6: the same bytes at the same sequence, and nothing else
            flight.unknown = True
            flight.attempt += 1
            self._effects.append(CreateObject(sequence, flight.buffers, flight.attempt))
        else:
            self._effects.append(ReadObject(sequence))

    def create_failed(self, sequence: int, error: StorageError) -> None:
        """The store is certain that nothing was created (no space, refused): the group fails, we stay owner.

        After an earlier unknown try nothing is certain, and the create goes on being unknown (L6).
        """
        flight = self._inflight
        if flight is None or flight.sequence != sequence:
            return
        if flight.unknown:
            self.created(sequence, Outcome.UNKNOWN)
            return
        self._inflight = None
        self._waiting = [*flight.reads, *self._waiting]
        if flight.kind is ObjectKind.OPEN:
            self.phase = Phase.CLOSED
            self._end_with(error, None)
            return
        self._effects.append(Failed(flight.tickets, error))  # of a Checkpoint: no tickets
        self._pump()

    def _exists_read(self, flight: _InFlight, data: bytes | None) -> None:
        """What stands where our create met an object: our earlier try (nonce), or another owner's (L6)."""
        header: Header | None = None
        if data is not None:
            try:
                header = decode_header(data, self._where(flight.sequence))
            except (CorruptObject, UnsupportedFormat):
                header = None  # not readable as ours: someone else's, or torn; either way it is not ours to judge
        if header is not None and header.nonce == flight.header.nonce:
            if data == b"".join(flight.buffers):
                self._effects.append(SettleObject(flight.sequence))
            else:  # L3: our own object stands torn: neither acknowledged nor called "not written"
                flight.unknown = True
                self._damaged(f"{self._where(flight.sequence)}: the store holds other bytes than were written")
        elif flight.kind is ObjectKind.OPEN:  # L9: someone was faster, list again
            self._inflight = None
            self._relist()
        else:
            self._fenced(header)

    def settled(self, sequence: int) -> None:
        """Our earlier try is durable now."""
        flight = self._inflight
        if flight is not None and flight.sequence == sequence:
            self._stands(flight)

    def _stands(self, flight: _InFlight) -> None:
        self._inflight = None
        self.next_seq = flight.sequence + 1
        if flight.kind is ObjectKind.OPEN:
            self.phase = Phase.VERIFYING
            self._effects.append(ListObjects())
            return
        if flight.kind is ObjectKind.CHECKPOINT:
            self.checkpoint_seq = flight.sequence
            self.state.checkpointed(flight.sequence, flight.covered, flight.entries)
            self._effects.append(CheckpointStood(flight.sequence, flight.covered))
        elif not self._apply_own(flight):
            return
        if flight.reads:
            self._effects.append(Proved(flight.reads))  # L13: sent after they arrived, and it succeeded
        self._pump()

    def _apply_own(self, flight: _InFlight) -> bool:
        """Our group is durable: apply it, then acknowledge it (L4)."""
        size = sum(len(b) for b in flight.buffers)
        try:
            self.state.apply(LogObject(flight.header, flight.entries, size), [t.payload for t in flight.tickets])
        except StorageError as error:  # it stands, and cannot be shown: neither acknowledged nor refused
            flight.unknown = True
            self._inflight = flight
            self._damaged(str(error))
            return False
        self._collector.data.add(flight.sequence)
        self._effects.append(Stood(flight.sequence, flight.tickets, flight.entries))
        return True

    # -- appends and Checkpoints ------------------------------------------------------------------------

    def append(self, tickets: Sequence[Ticket], now_ms: int) -> None:
        """Queue entries whose offsets are fixed for the next group commit (L4, L5)."""
        assert self.phase is Phase.OWNER
        self.written_at_ms = max(self.written_at_ms, now_ms)
        self._queue.extend(tickets)
        self._pump()

    def checkpoint(self, draft: CheckpointDraft, now_ms: int) -> None:
        """Create a Checkpoint as the next object; it takes precedence over waiting appends (L18)."""
        assert self.phase in (Phase.OWNER, Phase.PAUSED)
        assert self._draft is None, "one Checkpoint at a time"
        assert self.state.covered() <= draft.covered < self.next_seq, "k never decreases, and k < c (L18)"
        self.written_at_ms = max(self.written_at_ms, now_ms)
        self._draft = draft
        self._pump()

    def _pump(self) -> None:
        """Send what waits, if nothing is under way; else prove waiting reads; else collect."""
        if self.phase is Phase.SUSPECT and self._inflight is None:
            self._effects.append(ListObjects())
        if self.phase not in (Phase.OWNER, Phase.PAUSED):
            return
        if self._inflight is None and self._draft is not None:
            draft, self._draft = self._draft, None
            self._send(ObjectKind.CHECKPOINT, draft.sections, covered=draft.covered)
        elif self._inflight is None and self._queue and self.phase is Phase.OWNER:
            tickets = self._next_group()
            self._send(ObjectKind.DATA, self.state.place([t.entry for t in tickets]), tickets)
        self._check_reads()
        self._pump_collection()

    def _next_group(self) -> tuple[Ticket, ...]:
        """As many waiting requests as one object may hold; a request is never split (L17)."""
        group: list[Ticket] = []
        size = 0
        while self._queue:
            request = self._queue[0].request
            following = list(itertools.takewhile(lambda t: t.request == request, self._queue))  # noqa: B023
            size += sum(encoded_size(t.entry) for t in following)
            if group and (size > OBJECT_BYTES_MAX or len(group) + len(following) > GROUP_ENTRIES_MAX):
                break
            group.extend(following)
            for _ in following:
                self._queue.popleft()
        return tuple(group)

    # -- reads (L13) ------------------------------------------------------------------------------------

    def prove(self, read: int) -> None:
        """A read arrived: it is answered by `Proved` when nothing newer can stand."""
        if self.phase is not Phase.OWNER:
            self._effects.append(ReadsFailed((read,), self._not_owner()))
            return
        self._waiting.append(read)
        self._check_reads()

    def _check_reads(self) -> None:
        """Start a check for all waiting reads; never share one in transit, never beside a create (L13)."""
        if self._waiting and self._checking is None and self._inflight is None and self.phase is Phase.OWNER:
            self._checking, self._waiting = tuple(self._waiting), []
            self._effects.append(CheckNext(self.next_seq))

    def checked(self, sequence: int, exists: bool) -> None:
        """The check's answer. "Exists" while a create of ours was sent there says nothing about others."""
        reads, self._checking = self._checking, None
        if reads is None or self.phase is not Phase.OWNER:
            return
        if not exists:
            self._effects.append(Proved(reads))
            self._check_reads()
        elif self._inflight is not None or self.next_seq != sequence:
            self._waiting = [*reads, *self._waiting]
            self._check_reads()
        else:
            self._waiting = [*reads, *self._waiting]
            self._fenced(None)

    def check_failed(self, error: StorageError) -> None:
        """The store did not answer the check."""
        reads, self._checking = self._checking, None
        if reads:
            self._effects.append(ReadsFailed(reads, error))
        self._check_reads()

    # -- collecting (L11, L19) --------------------------------------------------------------------------

    def collect(self) -> None:
        """Delete objects up to k that are not opens, working from a listing."""
        if self.phase is Phase.OWNER and (effect := self._collector.begin()) is not None:
            self._effects.append(effect)

    def _pump_collection(self) -> None:
        if self.phase is not Phase.OWNER:
            return
        flight = self._inflight
        if flight is not None and (flight.unknown or flight.kind is ObjectKind.CHECKPOINT):
            return  # L6, L19: nothing is deleted while a create is unknown, nor while a Checkpoint is under way
        if (effect := self._collector.following()) is not None:
            self._effects.append(effect)

    def _kind_read(self, sequence: int, data: bytes | None) -> None:
        try:
            kind = None if data is None else self._decode(sequence, data).header.kind
        except (CorruptObject, UnsupportedFormat):
            kind = ObjectKind.OPEN  # nobody can say that it is none: keep it
        self._collector.kind_read(sequence, kind)
        self._pump_collection()

    def deleted(self, sequence: int) -> None:
        """The object is gone."""
        self._collector.deleted(sequence)
        self._pump_collection()

    def collect_failed(self) -> None:
        """The store did not answer: the next collection starts again from a listing."""
        self._collector.stop()

    # -- answers of reads of objects --------------------------------------------------------------------

    def read(self, sequence: int, data: bytes | None) -> None:
        """The bytes of an object, or None when it is missing. Which question it answers follows from the phase."""
        flight = self._inflight
        if flight is not None and flight.sequence == sequence:
            self._exists_read(flight, data)
        elif self.phase is Phase.TAIL:
            self._tail_read(sequence, data)
        elif self.phase in (Phase.BASE, Phase.REPLAYING, Phase.PAUSED) and self._replay is not None:
            self._replay.read(sequence, data)
            self._replay_goes_on(self._replay)
        elif self.phase is Phase.OWNER:
            self._kind_read(sequence, data)

    def _decode(self, sequence: int, data: bytes) -> LogObject:
        return decode_own(self.identity.store_id, self.identity.log_id, sequence, data)

    # -- the ends ---------------------------------------------------------------------------------------

    def _where(self, sequence: int) -> str:
        return f"log {self.identity.log_id} object {sequence}"

    def _not_owner(self) -> StorageError:
        return ShardClosed(f"log {self.identity.log_id} is not open here ({self.phase.value}): try again")

    def _fenced(self, successor: Header | None) -> None:
        """L12: another owner stands above us. Sent and never answered "created" is unknown, unsent is not written."""
        self.phase = Phase.FENCED
        epoch = f" (epoch {successor.epoch})" if successor is not None else ""
        error = Fenced(f"log {self.identity.log_id}: another owner{epoch} has taken over from epoch {self.epoch}")
        self._end_with(error, successor)

    def close(self) -> None:
        """Let go: what is queued fails, what is in flight is unknown. The Log itself is not touched."""
        if self.phase not in (Phase.FENCED, Phase.DAMAGED, Phase.CLOSED):
            self.phase = Phase.CLOSED
            if self._inflight is not None:
                self._inflight.unknown = True
            self._end_with(ShardClosed(f"log {self.identity.log_id} is closed here: try again"), None)

    def _damaged(self, reason: str) -> None:
        self.phase = Phase.DAMAGED
        self._end_with(LogDamaged(reason), None)

    def _end_with(self, error: StorageError, successor: Header | None) -> None:
        flight, self._inflight = self._inflight, None
        if flight is not None and flight.tickets:
            unknown = OutcomeUnknown(f"log {self.identity.log_id}: fenced while a write was under way; it may stand")
            self._effects.append(Failed(flight.tickets, unknown if flight.unknown else error))
        if self._queue:
            self._effects.append(Failed(tuple(self._queue), error))
            self._queue.clear()
        reads = (*(flight.reads if flight else ()), *(self._checking or ()), *self._waiting)
        if reads:
            self._effects.append(ReadsFailed(reads, error))
        self._waiting, self._checking, self._draft, self._replay = [], None, None, None
        self._collector.stop()
        self._effects.append(Closed(error, successor))


def _newest_checkpoint(below: Header) -> int:
    """The newest Checkpoint below the object that follows ``below`` (L2)."""
    return below.sequence if below.kind is ObjectKind.CHECKPOINT else below.checkpoint_seq
