"""What a Log's machine asks for and reports: effects, notices, and what callers hand in (values only).

The driver performs each effect and answers through the method of `storage.log.LogCore` that it names.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.errors import StorageError
    from storage.frames import Buffer, Entry, Header


class Outcome(enum.Enum):
    """What the store said of a create. UNKNOWN: it may stand or not, now or later (L6)."""

    CREATED = "created"
    EXISTS = "exists"
    UNKNOWN = "unknown"


# -- effects: what the driver has to do, and by which method it answers ---------------------------------


@dataclass(frozen=True, slots=True)
class ListObjects:
    """List all sequences of the Log. Answer: `LogCore.listed`."""


@dataclass(frozen=True, slots=True)
class CreateObject:
    """Create the object exclusively, one transmission (L1, L7). Answer: `LogCore.created`.

    ``attempt`` counts from 1; from the second on the driver waits a growing, jittered while before.
    """

    sequence: int
    buffers: tuple[Buffer, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class ReadObject:
    """Read an object. Answer: `LogCore.read` with its bytes, or None when it is missing."""

    sequence: int


@dataclass(frozen=True, slots=True)
class ReadPart:
    """Read a part of a Checkpoint by its path. Answer: `LogCore.part_read`."""

    path: str


@dataclass(frozen=True, slots=True)
class SettleObject:
    """Our own earlier create stands: make its directory entry durable (L6). Answer: `LogCore.settled`."""

    sequence: int


@dataclass(frozen=True, slots=True)
class CheckNext:
    """Does an object exist at the owner's next sequence? Answer: `LogCore.checked`."""

    sequence: int


@dataclass(frozen=True, slots=True)
class DeleteObject:
    """Delete garbage (L19). Answer: `LogCore.deleted`."""

    sequence: int


# -- notices: what happened, for the driver's callers ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """This node owns the Log under ``epoch``; replay is complete."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ReplayPaused:
    """The state asked for a Checkpoint before the rest is replayed (L23)."""


@dataclass(frozen=True, slots=True)
class Stood:
    """The object at ``sequence`` stands: its tickets are durable and may be acknowledged (L4)."""

    sequence: int
    tickets: tuple[Ticket, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class CheckpointStood:
    """The Checkpoint at ``sequence`` stands and covers ``covered`` (L18)."""

    sequence: int
    covered: int


@dataclass(frozen=True, slots=True)
class Failed:
    """These tickets were not acknowledged; ``error`` says whether they may stand (L6)."""

    tickets: tuple[Ticket, ...]
    error: StorageError


@dataclass(frozen=True, slots=True)
class Proved:
    """These reads may be answered from the state as it is now (L13)."""

    reads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadsFailed:
    """These reads cannot be answered here."""

    reads: tuple[int, ...]
    error: StorageError


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of this ownership: fenced or damaged. Nothing more will be acknowledged."""

    error: StorageError
    successor: Header | None = None


@dataclass(frozen=True, slots=True)
class Collected:
    """Garbage collection reached the end of its list."""

    deleted: int


Effect = (
    ListObjects | CreateObject | ReadObject | ReadPart | SettleObject | CheckNext | DeleteObject
    | Opened | ReplayPaused | Stood | CheckpointStood | Failed | Proved | ReadsFailed | Closed | Collected
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ticket:
    """One append that waits for its group commit. ``key`` and ``payload`` are the caller's.

    ``entry`` gets its base offset when its group is sent (`LogState.place`). Tickets of one ``request`` go into
    one object, so that a write is atomic per shard (L17).
    """

    key: int
    entry: Entry
    payload: object = None
    request: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointDraft:
    """What a Checkpoint will say: everything up to ``covered`` now stands in the named files (L18)."""

    covered: int
    sections: tuple[Entry, ...]
