"""What a member still has to tell: each broadcast rides on packets until it was sent often enough.

A pure queue, driven by `cluster.swim`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.messages import MEMBERS_MAX

_LENGTH_BYTES_MIN = 8
"""No message is shorter: with less room than this nothing more fits."""


@dataclass(slots=True)
class _Broadcast:
    data: bytes
    number: int
    sent: int = 0


class Broadcasts:
    """At most one for each member, the newest; so their number is bounded by that of the members."""

    def __init__(self) -> None:
        self._of: dict[str, _Broadcast] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def add(self, name: str, data: bytes) -> None:
        """Tell ``data`` about the member ``name``; what was to be told about it before is old news."""
        assert len(self._of) <= MEMBERS_MAX + 1
        self._number += 1
        self._of[name] = _Broadcast(data, self._number)

    def take(self, room_bytes: int, count_max: int, transmissions: int) -> list[bytes]:
        """What fits into a packet: the least often sent first, then the newest. Sent often enough, it is forgotten."""
        taken: list[bytes] = []
        if not self._of:
            return taken
        for name, item in sorted(self._of.items(), key=lambda entry: (entry[1].sent, -entry[1].number)):
            if room_bytes < _LENGTH_BYTES_MIN or len(taken) >= count_max:
                break
            if len(item.data) > room_bytes:
                continue
            taken.append(item.data)
            room_bytes -= len(item.data)
            item.sent += 1
            if item.sent >= transmissions:
                del self._of[name]
        return taken

    def forget(self, name: str) -> None:
        """Nobody needs to be told about this member any more."""
        self._of.pop(name, None)
