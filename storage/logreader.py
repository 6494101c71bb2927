"""Reading a Log from the store, by a node that does not own it (LOG L10, L15), as a pure machine.

One `LogReader` makes one full snapshot: list, find the newest Checkpoint, read it and every object above
what it covers, list once more; a Checkpoint above its base means start over. The driver performs the
effects of `take` (`ListObjects`, `ReadObject`, `ReadPart`) and reports the answers.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from storage.errors import CorruptObject, LogDamaged, StorageError, UnsupportedFormat
from storage.frames import LogObject, ObjectKind, decode_object
from storage.logeffects import ListObjects, ReadObject, ReadPart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.log import LogState

READ_TRIES_MAX: Final = 64
"""How often one snapshot is started over before it is called damaged."""

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


class LogReader:
    """One snapshot of one Log from the store. ``new_state`` makes an empty state for each start."""

    def __init__(self, store_id: bytes, log_id: int, new_state: Callable[[], LogState]) -> None:
        self.store_id = store_id
        self.log_id = log_id
        self.phase = ReadPhase.LISTING
        self.error: StorageError | None = None
        self._new_state = new_state
        self.state = new_state()
        self.last = 0
        self._base = 0
        self._names: frozenset[int] = frozenset()
        self._parts: set[str] = set()
        self._following = 0
        self._tries = 0
        self._effects: list[ReadEffect] = []
        self._start_over()

    def take(self) -> list[ReadEffect]:
        """Effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def _start_over(self) -> None:
        self._tries += 1
        if self._tries > READ_TRIES_MAX:
            self._fail(LogDamaged(f"log {self.log_id}: no consistent snapshot in {READ_TRIES_MAX} tries"))
            return
        self.phase = ReadPhase.LISTING
        self.state = self._new_state()
        self._effects.append(ListObjects())

    def listed(self, sequences: Sequence[int]) -> None:
        """All sequences of the Log, ascending."""
        last = sequences[-1] if sequences else 0
        if self.phase is ReadPhase.LISTING:
            self.last = last
            self._names = frozenset(sequences)
            if last == 0:
                self.phase = ReadPhase.DONE
                return
            self.phase = ReadPhase.LAST
            self._effects.append(ReadObject(last))
        elif self.phase is ReadPhase.RELISTING:
            if last == self.last:
                self.phase = ReadPhase.DONE
            else:
                self.phase = ReadPhase.RECHECKING
                self._effects.append(ReadObject(last))

    def read(self, sequence: int, data: bytes | None) -> None:
        """The bytes of an object, or None when it is missing (collected meanwhile: start over)."""
        if data is None:
            self._start_over()
            return
        try:
            obj = self._decode(sequence, data)
        except (CorruptObject, UnsupportedFormat) as error:
            self._fail(LogDamaged(str(error)))
            return
        if self.phase is ReadPhase.LAST:
            self._find_base(obj)
        elif self.phase is ReadPhase.BASE:
            self._load(obj)
        elif self.phase is ReadPhase.READING:
            self._take_object(obj)
        elif self.phase is ReadPhase.RECHECKING:
            if _checkpoint_of(obj) > self._base:  # L10: the open of a sleeper may stand where one was collected
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
            self._fail(LogDamaged(str(error)))
            return
        self._parts.discard(path)
        if not self._parts:
            self._begin()

    def _find_base(self, last: LogObject) -> None:
        self._base = _checkpoint_of(last)
        self.phase = ReadPhase.BASE
        if self._base == last.header.sequence:
            self._load(last)
        elif self._base == 0:
            self._load(None)
        else:
            self._effects.append(ReadObject(self._base))

    def _load(self, checkpoint: LogObject | None) -> None:
        if checkpoint is not None and checkpoint.header.kind is not ObjectKind.CHECKPOINT:
            self._start_over()
            return
        self._parts = set(self.state.load(checkpoint))
        self._effects.extend(ReadPart(path) for path in sorted(self._parts))
        if not self._parts:
            self._begin()

    def _begin(self) -> None:
        first = self.state.covered() + 1
        if any(s not in self._names for s in range(first, self.last + 1)):
            self._start_over()  # a gap: a reader lists again
            return
        self.phase = ReadPhase.READING
        self._following = first
        self._ask()

    def _ask(self) -> None:
        if self._following > self.last:
            self.phase = ReadPhase.RELISTING
            self._effects.append(ListObjects())
        else:
            self._effects.append(ReadObject(self._following))

    def _take_object(self, obj: LogObject) -> None:
        if obj.header.sequence != self._following:
            return
        if obj.header.kind is ObjectKind.DATA:
            self.state.apply(obj)
        self._following += 1
        self._ask()

    def _decode(self, sequence: int, data: bytes) -> LogObject:
        where = f"log {self.log_id} object {sequence}"
        obj = decode_object(data, where)
        if (obj.header.store_id, obj.header.log_id, obj.header.sequence) != (self.store_id, self.log_id, sequence):
            raise CorruptObject(f"{where}: belongs to another store, Log or sequence")
        return obj

    def _fail(self, error: StorageError) -> None:
        self.phase = ReadPhase.FAILED
        self.error = error


def _checkpoint_of(obj: LogObject) -> int:
    """The newest Checkpoint at or below this object."""
    header = obj.header
    return header.sequence if header.kind is ObjectKind.CHECKPOINT else header.checkpoint_seq
