"""How much memory rows may hold before they are in DataFiles (promise 4, LOG L23)."""

from __future__ import annotations

from storage.errors import MemoryExhausted


class MemoryBudget:
    """Counts bytes of memtables and of writes under way; one for a process, used on its event loop only."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0

    def require(self, size: int) -> None:
        """Raise MemoryExhausted if there is no room for ``size`` bytes: the client retries after a checkpoint."""
        if self.used + size > self.bytes_max:
            raise MemoryExhausted(
                f"the memory for rows that are not yet in files is used up ({self.used} of {self.bytes_max} bytes); "
                "a checkpoint is under way, try again"
            )

    def reserve(self, size: int) -> None:
        """Take ``size`` bytes, or raise as `require` does."""
        self.require(size)
        self.used += size

    def adjust(self, change: int) -> None:
        """Take or give back ``change`` bytes without asking: for what is held already."""
        self.used += change
        assert self.used >= 0, "released more than was reserved"
