"""Reading a Log from the store, by a node that does not own it (LOG L10, L15), as a pure machine.

One `LogReader` makes one full snapshot: list, find the newest Checkpoint, read it and every object above
what it covers, list once more; a Checkpoint above its base means start over. The driver performs the
effects of `take` (`ListObjects`, `ReadObject`, `ReadPart`) and reports the answers (`storage.readdriver`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.errors import CorruptObject, LogDamaged, SnapshotTooOld, StorageError, UnsupportedFormat
from storage.frames import EntryKind, LogObject, ObjectKind
from storage.logeffects import ListObjects, ReadObject, ReadPart
from storage.logstate import decode_own

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.logstate import LogState

READ_TRIES_MAX: Final = 12
"""How often one snapshot is begun before the reader is told to come back: owners checkpoint faster than it reads."""

ReadEffect = ListObjects | ReadObject | ReadPart


class ReadPhase(enum.Enum):
    """Where a store read stands."""

    LISTING = "listing"
    LAST = "last"  # the last object is the Checkpoint or names it
    BASE = "base"
    READING = "reading"
    RELISTING = "relisting"
    RECHECKING = "rechecking"  # the newest object of the second listing: does it name a newer Checkpoint?
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Resume:
    """What an earlier read came to: the Checkpoint it rests on, its last object, and copies of its state.

    While that Checkpoint is the newest nothing above it has been collected, so reading may go on from there.
    """

    base: int
    last: int
    new_state: Callable[[], LogState]


class LogReader:
    """One snapshot of one Log from the store. ``new_state`` makes an empty state for each start.

    With ``resume`` the first listing need not go below its last object (``list_from``). When it is done ``last`` is
    the last object that it stands for, ``epoch`` that object's, and ``base`` the Checkpoint below (0: none).
    """

    def __init__(
        self, store_id: bytes, log_id: int, new_state: Callable[[], LogState], resume: Resume | None = None
    ) -> None:
        self.store_id = store_id
        self.log_id = log_id
        self.phase = ReadPhase.LISTING
        self.error: StorageError | None = None
        self._new_state = new_state
        self.state = new_state()
        self.last = 0
        self.epoch = 0
        self.base = 0
        self.tries = 0
        self._resume = resume
        self._names: frozenset[int] = frozenset()
        self._parts: set[str] = set()
        self._unreadable: dict[int, str] = {}
        self._following = 0
        self._effects: list[ReadEffect] = []
        self._start_over()

    def take(self) -> list[ReadEffect]:
        """Effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def list_from(self) -> int:
        """The listing that is asked for may leave out what is below."""
        return 0 if self._resume is None else self._resume.last

    def _start_over(self) -> None:
        self.tries += 1
        if self.tries > READ_TRIES_MAX:  # nobody but an owner can tell whether a gap is damage (L10)
            self._fail(SnapshotTooOld(f"log {self.log_id}: no snapshot in {READ_TRIES_MAX} tries: try again"))
            return
        self.phase = ReadPhase.LISTING
        self.state = self._new_state()
        self._unreadable = {}
        self._effects.append(ListObjects())

    def listed(self, sequences: Sequence[int]) -> None:
        """All sequences of the Log, ascending."""
        last = sequences[-1] if sequences else 0
        if self.phase is ReadPhase.LISTING:
            self.last = last
            self._names = frozenset(sequences)
            if last < self.list_from:  # what was read before is neither there nor covered: a stale listing
                self._start_over()
                return
            if last == 0:
                self.phase = ReadPhase.DONE
                return
            self.phase = ReadPhase.LAST
            self._effects.append(ReadObject(last))
        elif self.phase is ReadPhase.RELISTING:
            if last == self.last:
                self._finish()
            else:
                self.phase = ReadPhase.RECHECKING
                self._effects.append(ReadObject(last))

    def read(self, sequence: int, data: bytes | None) -> None:
        """The bytes of an object, or None when it is missing (collected meanwhile: start over)."""
        if data is None:
            self._start_over()
            return
        try:
            self._take_object(decode_own(self.store_id, self.log_id, sequence, data))
        except (CorruptObject, UnsupportedFormat) as error:
            self._unreadable[sequence] = str(error)
            if self.phase is ReadPhase.READING:  # L3: a skip record further up may give it up
                self._following += 1
                self._ask()
            elif self.phase is ReadPhase.RECHECKING:
                self._start_over()
            else:
                self._relist()

    def _take_object(self, obj: LogObject) -> None:
        if self.phase is ReadPhase.LAST:
            self._find_base(obj)
        elif self.phase is ReadPhase.BASE:
            self._load(obj)
        elif self.phase is ReadPhase.READING:
            self._apply(obj)
        elif self.phase is ReadPhase.RECHECKING:
            # L10: the open of a sleeper may stand where one was collected; a skip may have been recorded since
            if _checkpoint_of(obj) > self.base or self._unreadable:
                self._start_over()
            else:
                self.phase = ReadPhase.DONE

    def part_read(self, path: str, data: bytes | None) -> None:
        """A part of the Checkpoint, or None when it is missing (L16: start over)."""
        if self.phase is not ReadPhase.BASE or path not in self._parts:
            return
        if data is None:
            self._start_over()
            return
        try:
            self.state.load_part(path, data)
        except (CorruptObject, UnsupportedFormat) as error:
            self._unreadable[self.base] = str(error)
            self._relist()
            return
        self._parts.discard(path)
        if not self._parts:
            self._begin()

    def _relist(self) -> None:
        """L10: list once more, also before anything is called damaged."""
        self.phase = ReadPhase.RELISTING
        self._effects.append(ListObjects())

    def _finish(self) -> None:
        """Nothing stands above what was read: it is the whole, or what could not be read is damage (L3)."""
        if self._unreadable:
            self._fail(LogDamaged("; ".join(self._unreadable.values())))
        else:
            self.phase = ReadPhase.DONE

    def _find_base(self, last: LogObject) -> None:
        self.base, self.epoch = _checkpoint_of(last), last.header.epoch
        self.phase = ReadPhase.BASE
        if self._resume is not None:
            self._go_on(self._resume)
        elif self.base == last.header.sequence:
            self._load(last)
        elif self.base == 0:
            self._load(None)
        else:
            self._effects.append(ReadObject(self.base))

    def _go_on(self, resume: Resume) -> None:
        """From where an earlier read came to, unless a newer Checkpoint stands: then from that, with all names."""
        if resume.base != self.base:
            self._resume = None
            self.tries -= 1
            self._start_over()
            return
        self.state = resume.new_state()
        self._begin_at(resume.last + 1)

    def _load(self, checkpoint: LogObject | None) -> None:
        if checkpoint is not None and checkpoint.header.kind is not ObjectKind.CHECKPOINT:
            self._start_over()
            return
        self._parts = set(self.state.load(checkpoint))
        self._effects.extend(ReadPart(path) for path in sorted(self._parts))
        if not self._parts:
            self._begin()

    def _begin(self) -> None:
        self._begin_at(self.state.covered() + 1)

    def _begin_at(self, first: int) -> None:
        if any(s not in self._names for s in range(first, self.last + 1)):
            self._start_over()  # a gap: a reader lists again
            return
        self.phase = ReadPhase.READING
        self._following = first
        self._ask()

    def _ask(self) -> None:
        if self._following > self.last:
            self._relist()
        else:
            self._effects.append(ReadObject(self._following))

    def _apply(self, obj: LogObject) -> None:
        if obj.header.kind is ObjectKind.DATA:
            self.state.apply(obj)
        for entry in obj.entries:
            if entry.kind == EntryKind.SKIP:
                self._unreadable.pop(entry.base_offset, None)
        self._following += 1
        self._ask()

    def _fail(self, error: StorageError) -> None:
        self.phase = ReadPhase.FAILED
        self.error = error


def _checkpoint_of(obj: LogObject) -> int:
    """The newest Checkpoint at or below this object."""
    header = obj.header
    return header.sequence if header.kind is ObjectKind.CHECKPOINT else header.checkpoint_seq
