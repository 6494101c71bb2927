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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

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
    EntryKind,
    Header,
    LogObject,
    ObjectKind,
    decode_header,
    decode_object,
    encode_object,
    encoded_size,
)
from storage.logeffects import (
    CheckNext,
    CheckpointDraft,
    CheckpointStood,
    Closed,
    Collected,
    CreateObject,
    DeleteObject,
    Effect,
    Failed,
    ListObjects,
    Opened,
    Outcome,
    Proved,
    ReadObject,
    ReadPart,
    ReadsFailed,
    ReplayPaused,
    SettleObject,
    Stood,
    Ticket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GROUP_ENTRIES_MAX: Final = 4096
"""Entries of one group commit."""
REPLAY_READS_MAX: Final = 16
"""Objects asked for ahead of the one that is applied, while a Log is replayed."""
RELIST_MAX: Final = 64
"""Listings in a row that may contradict themselves before a take-over is called damaged."""


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


class LogState(Protocol):
    """What a Log's objects add up to. Called by the core in the order of the Log, never twice."""

    def load(self, checkpoint: LogObject | None) -> Sequence[str]:
        """Start from a Checkpoint (None: an empty Log); return the paths of its parts to be read."""
        ...

    def load_part(self, path: str, data: bytes) -> None:
        """Take one part of the Checkpoint just loaded."""
        ...

    def covered(self) -> int:
        """k of the Checkpoint that was loaded (0: none): replay starts above it (L18)."""
        ...

    def place(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """Give the entries of the next group their offsets (LOG L24). Called just before it is sent."""
        ...

    def apply(self, obj: LogObject, payloads: Sequence[object] = ()) -> None:
        """Apply a data object: from replay, or our own after its create has succeeded, with its payloads."""
        ...

    def checkpointed(self, sequence: int, covered: int, sections: Sequence[Entry]) -> None:
        """Our own Checkpoint stands: swap memtable rows up to ``covered`` for its files at once (L22)."""
        ...

    def replay_is_full(self) -> bool:
        """True when a Checkpoint must be made before more is replayed (L23)."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose Log this is, and who we are."""

    store_id: bytes
    log_id: int
    node: bytes


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


@dataclass(slots=True)
class _Replay:
    """Where a replay stands: the next object to apply and those read ahead."""

    following: int
    end: int
    asked: int
    ahead: dict[int, bytes] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Collection:
    """Garbage collection under way: sequences still to look at; ``busy`` while one answer is awaited."""

    pending: deque[int]
    busy: bool = False
    deleted: int = 0


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
        self._new_nonce = new_nonce
        self._effects: list[Effect] = []
        self._inflight: _InFlight | None = None
        self._below: Header | None = None  # the object directly below our open
        self._end = 0  # where the open goes
        self._relists = 0
        self._replay: _Replay | None = None
        self._parts: set[str] = set()
        self._queue: deque[Ticket] = deque()
        self._draft: CheckpointDraft | None = None
        self._waiting: list[int] = []
        self._checking: tuple[int, ...] | None = None
        self._known_opens: set[int] = set()
        self._known_data: set[int] = set()
        self._collection: _Collection | None = None

    # -- the surface for the driver ---------------------------------------------------------------------

    def take(self) -> list[Effect]:
        """Effects and notices since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def start(self, now_ms: int, skips: frozenset[int] = frozenset()) -> None:
        """Begin to take the Log over (L9). ``skips`` are corrupt sequences that an operator gave up (L3)."""
        assert self.phase is Phase.IDLE
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
        if self._collection is not None and self._collection.busy and self.phase is Phase.OWNER:
            self._collect_from(sequences)
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
        if data is None:  # collected meanwhile: a newer Checkpoint stands above
            self._relist()
            return
        try:
            below = decode_object(data, self._where(sequence)).header
        except (CorruptObject, UnsupportedFormat) as error:
            if sequence in self.skips and sequence > 1:
                self._effects.append(ReadObject(sequence - 1))
                return
            self._damaged(str(error))
            return
        self._below = below
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
            self._known_opens.add(self._end)
            self._relist()
            return
        if last < self._end:  # a listing from before our open: ask again, create nothing
            self._list_again()
            return
        present = set(sequences)
        self.phase = Phase.BASE
        self._replay = _Replay(0, self._end, 0)
        if self.checkpoint_seq == 0:
            self._base_loaded(None)
        elif self.checkpoint_seq in present:
            self._effects.append(ReadObject(self.checkpoint_seq))
        else:
            self._suspect()

    def _base_read(self, data: bytes | None) -> None:
        if data is None:
            self._suspect()
            return
        try:
            checkpoint = self._decode(self.checkpoint_seq, data)
            if checkpoint.header.kind is not ObjectKind.CHECKPOINT:
                raise CorruptObject(f"{self._where(self.checkpoint_seq)}: not the Checkpoint that the open names")
        except (CorruptObject, UnsupportedFormat) as error:
            self._damaged(str(error))
            return
        self._base_loaded(checkpoint)

    def _base_loaded(self, checkpoint: LogObject | None) -> None:
        self._parts = set(self.state.load(checkpoint))
        self._effects.extend(ReadPart(path) for path in sorted(self._parts))
        if not self._parts:
            self._begin_replay()

    def part_read(self, path: str, data: bytes | None) -> None:
        """A part of the Checkpoint, or None when it is missing."""
        if self.phase is not Phase.BASE or path not in self._parts:
            return
        if data is None:
            self._suspect()
            return
        try:
            self.state.load_part(path, data)
        except (CorruptObject, UnsupportedFormat) as error:
            self._damaged(str(error))
            return
        self._parts.discard(path)
        if not self._parts:
            self._begin_replay()

    def _begin_replay(self) -> None:
        assert self._replay is not None
        self.phase = Phase.REPLAYING
        self._replay.following = self._replay.asked = self.state.covered() + 1  # L18: from k + 1
        self._advance()

    def _advance(self) -> None:
        """Apply what has been read, in order, and ask for more."""
        replay = self._replay
        assert replay is not None
        while self.phase is Phase.REPLAYING and replay.following in replay.ahead:
            data = replay.ahead.pop(replay.following)
            if not self._apply_replayed(replay, data):
                return
            replay.following += 1
            if self.state.replay_is_full() and replay.following < replay.end:
                self.phase = Phase.PAUSED
                self._effects.append(ReplayPaused())
        if self.phase is not Phase.REPLAYING:
            return
        while replay.asked < replay.end and replay.asked < replay.following + REPLAY_READS_MAX:
            self._effects.append(ReadObject(replay.asked))
            replay.asked += 1
        if replay.following == replay.end:
            self._replayed(replay)

    def _apply_replayed(self, replay: _Replay, data: bytes) -> bool:
        sequence = replay.following
        try:
            obj = self._decode(sequence, data)
            if obj.header.kind is ObjectKind.DATA:
                self.state.apply(obj)
                self._known_data.add(sequence)
            elif obj.header.kind is ObjectKind.OPEN:
                self._known_opens.add(sequence)
        except (CorruptObject, UnsupportedFormat) as error:
            replay.unreadable[sequence] = str(error)  # L3: a skip record further up may give it up
            return True
        except StorageError as error:
            self._damaged(str(error))
            return False
        for entry in obj.entries:
            if entry.kind == EntryKind.SKIP:
                replay.unreadable.pop(entry.base_offset, None)
        return True

    def _replayed(self, replay: _Replay) -> None:
        for sequence in self.skips:
            replay.unreadable.pop(sequence, None)
        if replay.unreadable:
            self._damaged("; ".join(replay.unreadable.values()))
            return
        self._replay = None
        self._known_opens.add(self._end)
        self.phase = Phase.OWNER
        self._relists = 0
        self._effects.append(Opened(self.epoch))
        self._pump()

    def resume_replay(self) -> None:
        """The Checkpoint on the way stands: go on with the replay (L23)."""
        if self.phase is Phase.PAUSED:
            self.phase = Phase.REPLAYING
            self._advance()

    def _suspect(self) -> None:
        """An object that must stand is missing: somebody newer collected it, or there is damage (L10)."""
        self.phase = Phase.SUSPECT
        self._effects.append(ListObjects())

    def _judge(self, last: int) -> None:
        if last > max(self._end, self.next_seq - 1):
            self._fenced(None)
        else:
            self._damaged(f"log {self.identity.log_id}: a gap between the newest Checkpoint and its end")

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
        if flight.kind is ObjectKind.CHECKPOINT:
            self._effects.append(Failed((), error))
        else:
            self._effects.append(Failed(flight.tickets, error))
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
            else:  # L3: our own object stands torn; it must not be acknowledged
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
        else:
            size = sum(len(b) for b in flight.buffers)
            self.state.apply(LogObject(flight.header, flight.entries, size), [t.payload for t in flight.tickets])
            self._known_data.add(flight.sequence)
            self._effects.append(Stood(flight.sequence, flight.tickets, flight.entries))
        if flight.reads:
            self._effects.append(Proved(flight.reads))  # L13: sent after they arrived, and it succeeded
        self._pump()

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
        self.written_at_ms = max(self.written_at_ms, now_ms)
        self._draft = draft
        self._pump()

    def _pump(self) -> None:
        """Send what waits, if nothing is under way; else prove waiting reads; else collect."""
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
        if self.phase is Phase.OWNER and self._collection is None:
            self._collection = _Collection(deque(), busy=True)
            self._effects.append(ListObjects())

    def _collect_from(self, sequences: Sequence[int]) -> None:
        assert self._collection is not None
        covered = self.state.covered()
        self._collection.pending.extend(s for s in sequences if s <= covered and s not in self._known_opens)
        self._collection.busy = False
        self._pump_collection()

    def _pump_collection(self) -> None:
        work = self._collection
        if work is None or work.busy or self.phase is not Phase.OWNER:
            return
        if self._inflight is not None and self._inflight.kind is ObjectKind.CHECKPOINT:
            return  # L19: while a Checkpoint's outcome is unknown nothing at all is deleted
        if not work.pending:
            self._collection = None
            self._effects.append(Collected(work.deleted))
            return
        sequence = work.pending.popleft()
        work.busy = True
        if sequence in self._known_data:
            self._effects.append(DeleteObject(sequence))
        else:
            self._effects.append(ReadObject(sequence))

    def _kind_read(self, sequence: int, data: bytes | None) -> None:
        """What an object of an earlier owner is: opens stay for ever (L11)."""
        assert self._collection is not None
        self._collection.busy = False
        try:
            kind = None if data is None else decode_header(data, self._where(sequence)).kind
        except (CorruptObject, UnsupportedFormat):
            kind = ObjectKind.OPEN  # it cannot be read: keep it, an operator may want to see it
        if kind is ObjectKind.OPEN:
            self._known_opens.add(sequence)
        elif kind is not None:
            self._known_data.add(sequence)
            self._collection.pending.appendleft(sequence)
        self._pump_collection()

    def deleted(self, sequence: int) -> None:
        """The object is gone."""
        self._known_data.discard(sequence)
        if self._collection is not None:
            self._collection.busy = False
            self._collection.deleted += 1
            self._pump_collection()

    def collect_failed(self) -> None:
        """The store did not answer: the next collection starts again from a listing."""
        self._collection = None

    # -- answers of reads of objects --------------------------------------------------------------------

    def read(self, sequence: int, data: bytes | None) -> None:
        """The bytes of an object, or None when it is missing. Which question it answers follows from the phase."""
        flight = self._inflight
        if flight is not None and flight.sequence == sequence:
            self._exists_read(flight, data)
        elif self.phase is Phase.TAIL:
            self._tail_read(sequence, data)
        elif self.phase is Phase.BASE and sequence == self.checkpoint_seq:
            self._base_read(data)
        elif self.phase in (Phase.REPLAYING, Phase.PAUSED):
            self._replay_read(sequence, data)
        elif self._collection is not None and self.phase is Phase.OWNER:
            self._kind_read(sequence, data)

    def _replay_read(self, sequence: int, data: bytes | None) -> None:
        assert self._replay is not None
        if data is None:
            self._suspect()
            return
        self._replay.ahead[sequence] = data
        if self.phase is Phase.REPLAYING:
            self._advance()

    def _decode(self, sequence: int, data: bytes) -> LogObject:
        obj = decode_object(data, self._where(sequence))
        header = obj.header
        ours = (self.identity.store_id, self.identity.log_id, sequence)
        if (header.store_id, header.log_id, header.sequence) != ours:
            raise CorruptObject(f"{self._where(sequence)}: belongs to another store, Log or sequence")
        return obj

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
        self._waiting, self._checking, self._draft, self._collection = [], None, None, None
        self._effects.append(Closed(error, successor))


def _newest_checkpoint(below: Header) -> int:
    """The newest Checkpoint below the object that follows ``below`` (L2)."""
    return below.sequence if below.kind is ObjectKind.CHECKPOINT else below.checkpoint_seq
