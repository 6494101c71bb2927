"""The objects of all Logs in a store that is a folder, as facts for the checkers of epochs, offsets and write ids.

Driven by `tests.chaos.cluster_rounds`. Objects may be collected while they are read; what was seen before stays known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from storage.frames import ObjectKind, WriteId, decode_object

if TYPE_CHECKING:
    from pathlib import Path


class ObjectFacts(NamedTuple):
    """An object's header."""

    log_id: int
    sequence: int
    kind: ObjectKind
    epoch: int


class LogEntry(NamedTuple):
    """One entry of an object; an object without entries has one with ``place`` -1 and kind 0."""

    log_id: int
    sequence: int
    place: int
    kind: int
    table_id: int = 0
    partition: int = 0
    base_offset: int = 0
    offset_count: int = 0
    write_id: WriteId = WriteId()


@dataclass(slots=True)
class LogArchive:
    """All that was ever seen of the Logs of one store."""

    store: Path
    facts: dict[tuple[int, int], ObjectFacts] = field(default_factory=dict)
    entries: dict[tuple[int, int], list[LogEntry]] = field(default_factory=dict)

    def gather(self) -> int:
        """Read what is new; objects known so far."""
        for folder in sorted(self.store.glob("logs/*")):
            for path in sorted(folder.iterdir()):
                if path.name.isdigit() and (int(folder.name), int(path.name)) not in self.facts:
                    self._read(int(folder.name), path)
        return len(self.facts)

    def _read(self, log_id: int, path: Path) -> None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # collected in the meantime
            return
        found = decode_object(data, f"log {log_id} object {path.name}")
        sequence = found.header.sequence
        assert (log_id, sequence) == (found.header.log_id, int(path.name)), f"{path} says that it is {found.header}"
        self.facts[log_id, sequence] = ObjectFacts(log_id, sequence, found.header.kind, found.header.epoch)
        self.entries[log_id, sequence] = [
            LogEntry(log_id, sequence, index, each.kind, each.table_id, each.partition, each.base_offset,
                     each.offset_count, each.write_id)
            for index, each in enumerate(found.entries)
            if found.header.kind is ObjectKind.DATA
        ] or [LogEntry(log_id, sequence, -1, 0)]  # fmt: skip

    def all_entries(self) -> list[LogEntry]:
        """Every entry of every object."""
        return [entry for entries in self.entries.values() for entry in entries]
