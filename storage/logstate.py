"""What a Log needs to be told: whose it is, and what its objects add up to. Values and a Protocol only.

`storage.log` and `storage.logreader` are handed these; `storage.shardstate` and `storage.catalogstate` implement
`LogState`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from storage.errors import CorruptObject
from storage.frames import decode_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.frames import Entry, LogObject


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
        """Apply a data object: from replay, or our own after its create has succeeded, with its payloads.

        Wholly or, raising CorruptObject or UnsupportedFormat, not at all (L3).
        """
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


def decode_own(store_id: bytes, log_id: int, sequence: int, data: bytes) -> LogObject:
    """The object at ``sequence`` of this Log. Raises CorruptObject, also when it belongs somewhere else."""
    where = f"log {log_id} object {sequence}"
    obj = decode_object(data, where)
    header = obj.header
    if (header.store_id, header.log_id, header.sequence) != (store_id, log_id, sequence):
        raise CorruptObject(f"{where}: belongs to another store, Log or sequence")
    return obj
