"""How many bytes of request bodies this process holds at once: one counter with a named limit.

Every body takes from it as it arrives and gives back when its request is answered; driven by
`nodes.gateway.http` on the event loop alone.
"""

from __future__ import annotations

from nodes.gateway.faults import Overloaded


class WaitingBudget:
    """Bytes of bodies in this process, at most ``limit_bytes`` (``write.waiting_bytes_max``)."""

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, count: int) -> None:
        """Reserve ``count`` bytes or raise Overloaded and reserve none."""
        if self.used_bytes + count > self.limit_bytes:
            raise Overloaded(
                f"too many request bodies wait ({self.used_bytes} of {self.limit_bytes} bytes); try again later"
            )
        self.used_bytes += count

    def give(self, count: int) -> None:
        """Give back what `take` reserved."""
        self.used_bytes -= count
