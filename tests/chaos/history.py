"""What the clients of a chaos run know: plain values, gathered by threads, judged by `tests.chaos.checkers`.

Two kinds of data are written. **Rows** are unique points: nobody writes the same (table, client, number) twice.
**Keys** are points that one client rewrites with n = 0, 1, 2...: even n also sets the field ``a`` to n, odd n sets
``b``, so that patches of different fields are told apart. After a write of unknown outcome its client never writes to
that key again: the unknown write may take effect at any later time, and would hide a lost one.
"""

from __future__ import annotations

import enum
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tests.chaos.wgl import Operation


class Outcome(enum.Enum):
    """What a client was told."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    """A status of 400 to 499: certainly not written."""
    UNKNOWN = "unknown"
    """Anything else: no answer, a time-out, a status of 500 and above."""


class Row(NamedTuple):
    """Names a unique row."""

    table: str
    client: int
    number: int


class Sent(NamedTuple):
    """What was written for a row, and how it ended."""

    value: int
    outcome: Outcome


class Found(NamedTuple):
    """A row as a query answered it."""

    row: Row
    value: int


class KeyState(NamedTuple):
    """A rewritten key as a query answered it."""

    key: str
    n: int
    a: int | None
    b: int | None


GONE: Final = -1
UNCERTAIN: Final = -2


@dataclass(slots=True)
class KeyHistory:
    """``acknowledged``: the last n that was acknowledged, -1 for none. ``unknown``: the last write's n, if unknown."""

    acknowledged: int = -1
    unknown: int | None = None


class Seen(NamedTuple):
    """What a reader saw of one client's rows in a table, or of one key: numbers that may never become less."""

    reader: int
    what: str
    values: tuple[int, ...]


@dataclass(slots=True)
class Pulse:
    """One write that touches every shard: when it began and ended (monotonic seconds), and its outcome."""

    begun: float
    ended: float
    outcome: Outcome


@dataclass(slots=True)
class History:
    """Everything of one run. The lock guards what several threads change; violations are found as it goes too."""

    rows: dict[Row, Sent] = field(default_factory=dict)
    keys: dict[str, KeyHistory] = field(default_factory=dict)
    deletes: dict[Row, int] = field(default_factory=dict)
    """Rows that may be deleted or updated, with the value that they must have: GONE for none, UNCERTAIN for any."""
    changes: int = 0
    views: int = 0
    """Answers of a materialized view that were compared."""
    seen: list[Seen] = field(default_factory=list)
    revisions: list[tuple[str, int]] = field(default_factory=list)
    schema: dict[str, list[Operation]] = field(default_factory=dict)
    pulses: list[Pulse] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    read_backs: int = 0
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, rows: dict[Row, int], outcome: Outcome) -> None:
        """Rows of one body, with its outcome."""
        with self.lock:
            self.rows.update({row: Sent(value, outcome) for row, value in rows.items()})
            self.outcomes[outcome] += len(rows)

    def key_sent(self, key: str, n: int, outcome: Outcome) -> None:
        """One rewrite of a key."""
        with self.lock:
            found = self.keys.setdefault(key, KeyHistory())
            if outcome is Outcome.ACKNOWLEDGED:
                found.acknowledged = n
            elif outcome is Outcome.UNKNOWN:
                found.unknown = n

    def saw(self, seen: Seen) -> None:
        with self.lock:
            self.seen.append(seen)

    def violated(self, found: list[str]) -> None:
        """Violations that a checker found in something that is not kept."""
        if found:
            with self.lock:
                self.violations.extend(found)

    def called(self, name: str, operation: Operation) -> None:
        """One schema change or look at a database's name."""
        with self.lock:
            self.schema.setdefault(name, []).append(operation)
