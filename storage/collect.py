"""Deleting what a Checkpoint made garbage, as a pure part of a Log's owner (LOG L11, L19).

`storage.log.LogCore` drives it: it passes on listings, reads and "deleted", and asks `following` for the next
effect whenever something may be deleted. Collecting works from a listing, so a crash leaks nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from storage.frames import ObjectKind
from storage.logeffects import Collected, DeleteObject, ListObjects, ReadObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.logeffects import Effect


class Collector:
    """One owner's collections, one after the other, and what it knows of the kinds of objects."""

    def __init__(self) -> None:
        self.opens: set[int] = set()
        self.data: set[int] = set()
        self.active = False
        self._listing = False
        self._asked = 0  # the sequence whose kind or deletion is awaited; 0: none
        self._pending: deque[int] = deque()
        self._deleted = 0

    def begin(self) -> Effect | None:
        """Start a collection, unless one is under way."""
        if self.active:
            return None
        self.active = self._listing = True
        self._deleted = self._asked = 0
        self._pending.clear()
        return ListObjects()

    def listed(self, sequences: Sequence[int], covered: int) -> None:
        """L19: garbage is only what is at or below k and no open. (An older Checkpoint above k closes the gap.)"""
        if self._listing:
            self._listing = False
            self._pending.extend(s for s in sequences if s <= covered and s not in self.opens)

    def following(self) -> Effect | None:
        """What to do next: a kind to look up, a deletion, the end; None while an answer is awaited."""
        if not self.active or self._listing or self._asked:
            return None
        if not self._pending:
            self.active = False
            return Collected(self._deleted)
        self._asked = self._pending.popleft()
        if self._asked in self.data:
            return DeleteObject(self._asked)
        return ReadObject(self._asked)

    def kind_read(self, sequence: int, kind: ObjectKind | None) -> None:
        """What an object of an earlier owner is, or None when it is gone: opens stay for ever (L11)."""
        if sequence != self._asked:
            return
        self._asked = 0
        if kind is ObjectKind.OPEN:
            self.opens.add(sequence)
        elif kind is not None:
            self.data.add(sequence)
            self._pending.appendleft(sequence)

    def deleted(self, sequence: int) -> None:
        """The object is gone."""
        self.data.discard(sequence)
        if sequence == self._asked:
            self._asked = 0
            self._deleted += 1

    def stop(self) -> None:
        """The store did not answer, or the ownership ends: the next collection starts again from a listing."""
        self.active = self._listing = False
        self._asked = 0
        self._pending.clear()
