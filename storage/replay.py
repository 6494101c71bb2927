"""Replay of a Log by its new owner: the Checkpoint, its parts, and every object above k (LOG L3, L10, L18, L23).

Pure; `storage.log.LogCore` drives it with the answers of reads, and after each looks at `effects`, `doubt`,
`paused` and `done`. Objects are read ahead in any order and applied in the order of the Log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storage.errors import CorruptObject, StorageError, UnsupportedFormat
from storage.frames import EntryKind, LogObject, ObjectKind
from storage.logeffects import ReadObject, ReadPart
from storage.logstate import decode_own

if TYPE_CHECKING:
    from collections.abc import Collection

    from storage.logeffects import Effect
    from storage.logstate import Identity, LogState

REPLAY_READS_MAX: Final = 16
"""Objects asked for ahead of the one that is applied."""
REPLAY_READS_MIN: Final = 2
"""So many even when objects are large, and until the first one says how large they are."""
REPLAY_AHEAD_BYTES_MAX: Final = 128 * 1024 * 1024
"""Objects are asked for ahead only as far as so many bytes, if all are as large as the largest one met."""


class Replay:
    """One replay, from the Checkpoint at ``base`` (0: none) up to our open object at ``end``."""

    def __init__(self, identity: Identity, state: LogState, base: int, end: int, skips: frozenset[int]) -> None:
        self.effects: list[Effect] = []
        self.doubt: str | None = None
        self.loading = True
        self.paused = False
        self.opens: set[int] = set()
        self.data: set[int] = set()
        self._identity = identity
        self._state = state
        self._base = base
        self._end = end
        self._skips = skips
        self._parts: set[str] = set()
        self._following = 0
        self._asked = 0
        self._largest = 0
        self._ahead: dict[int, bytes] = {}
        self._unreadable: dict[int, str] = {}

    @property
    def done(self) -> bool:
        """Everything below our open has been applied."""
        return not self.loading and not self.paused and self.doubt is None and self._following == self._end

    def begin(self, present: Collection[int]) -> None:
        """Start from what the second listing showed (L10): the last object is the Checkpoint or names it."""
        if self._base == 0:
            self._load(None)
        elif self._base in present:
            self.effects.append(ReadObject(self._base))
        else:
            self._doubt_gap(self._base)

    def read(self, sequence: int, data: bytes | None) -> None:
        """The bytes of an object, or None when it is missing."""
        if self.doubt is not None:
            return
        if data is None:
            self._doubt_gap(sequence)
        elif self.loading:
            self._base_read(data)
        else:
            self._largest = max(self._largest, len(data))
            self._ahead[sequence] = data
            self._advance()

    def _base_read(self, data: bytes) -> None:
        try:
            checkpoint = decode_own(self._identity.store_id, self._identity.log_id, self._base, data)
            if checkpoint.header.kind is not ObjectKind.CHECKPOINT:
                raise CorruptObject(f"{self._where(self._base)}: not the Checkpoint that the open names")
            self._load(checkpoint)
        except (CorruptObject, UnsupportedFormat) as error:
            self.doubt = str(error)

    def _load(self, checkpoint: LogObject | None) -> None:
        self._parts = set(self._state.load(checkpoint))
        self.effects.extend(ReadPart(path) for path in sorted(self._parts))
        self._loaded()

    def part_read(self, path: str, data: bytes | None) -> None:
        """A part of the Checkpoint, or None when it is missing."""
        if self.doubt is not None or path not in self._parts:
            return
        if data is None:
            self.doubt = f"{path}: a part of the Checkpoint at {self._base} is missing"
            return
        try:
            self._state.load_part(path, data)
        except (CorruptObject, UnsupportedFormat) as error:
            self.doubt = str(error)
            return
        self._parts.discard(path)
        self._loaded()

    def _loaded(self) -> None:
        if not self._parts:
            self.loading = False
            self._following = self._asked = self._state.covered() + 1  # L18: from k + 1, not from the Checkpoint
            self._advance()

    def resume(self) -> None:
        """The Checkpoint on the way stands: go on, if it has made room (L23)."""
        self.paused = self._is_full()
        self._advance()

    def _advance(self) -> None:
        """Apply what has been read, in order, and ask for more."""
        while not self.paused and self._following in self._ahead:
            self._apply(self._following, self._ahead.pop(self._following))
            self._following += 1
            self.paused = self._is_full()
        if self.paused:
            return
        while self._asked < min(self._end, self._following + self._window()):
            self.effects.append(ReadObject(self._asked))
            self._asked += 1
        if self._following == self._end:
            self._finish()

    def _window(self) -> int:
        if self._largest == 0:
            return REPLAY_READS_MIN
        return max(REPLAY_READS_MIN, min(REPLAY_READS_MAX, REPLAY_AHEAD_BYTES_MAX // self._largest))

    def _is_full(self) -> bool:
        """L23: make a Checkpoint before more is replayed. Not while an object is unreadable that nobody has given
        up: that Checkpoint would cover and hide it (L3)."""
        return self._following < self._end and self._state.replay_is_full() and not self._lost()

    def _lost(self) -> list[str]:
        return [reason for sequence, reason in self._unreadable.items() if sequence not in self._skips]

    def _apply(self, sequence: int, data: bytes) -> None:
        try:
            obj = decode_own(self._identity.store_id, self._identity.log_id, sequence, data)
            if obj.header.kind is ObjectKind.DATA:
                self._state.apply(obj)
                self.data.add(sequence)
            elif obj.header.kind is ObjectKind.OPEN:
                self.opens.add(sequence)
        except StorageError as error:  # L3: a skip record further up may give it up
            self._unreadable[sequence] = str(error)
            return
        for entry in obj.entries:
            if entry.kind == EntryKind.SKIP:
                self._unreadable.pop(entry.base_offset, None)

    def _finish(self) -> None:
        if lost := self._lost():
            self.doubt = "; ".join(lost)

    def _doubt_gap(self, sequence: int) -> None:
        self.doubt = f"{self._where(sequence)}: missing, a gap between the newest Checkpoint and the end"

    def _where(self, sequence: int) -> str:
        return f"log {self._identity.log_id} object {sequence}"
