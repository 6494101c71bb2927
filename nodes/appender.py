"""Appends to the shards of this process, within bounds of time, memory and disk (LOG L17, L23).

Driven by `nodes.embedded` for its own doors and by `nodes.ingest.service` for gateways: both wait a bounded time
while a checkpoint makes room, and both keep room on a local disk for the next Checkpoint.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, TypeVar

from storage.errors import LogBacklogFull, MemoryExhausted, OutcomeUnknown, StoreFull

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from storage.budget import MemoryBudget
    from storage.objects import ObjectStore
    from storage.shard import Shard

T = TypeVar("T")

ROOM_SECONDS_MAX: Final = 5.0
"""How long a write waits for a checkpoint to make room, before 503."""
ROOM_POLL_SECONDS: Final = 0.02
ANSWER_SECONDS_MAX: Final = 90.0
"""How long a client waits for a store that says nothing: three times the longest request to it, by default."""
SILENT: Final = f"the store has not answered in {ANSWER_SECONDS_MAX:.0f} seconds"
DISK_SPARE_BYTES: Final = 2 * 2**20
"""Of a local disk, kept free beside what the next Checkpoints need: for the Checkpoints themselves and the Catalog."""
DISK_PLENTY_BYTES: Final = 512 * 2**20
"""More than all writes under way can need: above it nothing is counted."""


class _RoomIsKept(StoreFull):
    """What is free belongs to the next Checkpoint; when that stands there may be room again."""


class Appender:
    """Appends to shards of one process. ``shards`` gives those that are open here now."""

    def __init__(self, store: ObjectStore, budget: MemoryBudget, shards: Callable[[], Iterable[Shard]]) -> None:
        probe = store.local_path("probe")
        self._store = store
        self._disk: Path | None = None if probe is None else probe.parent
        self._budget = budget
        self._shards = shards

    async def append(self, shard: Shard, incoming: int, send: Callable[[], Awaitable[T]]) -> T:
        """Run ``send``, which appends about ``incoming`` bytes to ``shard``, within a bounded time.

        While a checkpoint makes room it is tried again: nothing was sent when room was missing, so that trying again
        is the first try (L7). Raises OutcomeUnknown when the store says nothing, and what ``send`` raises.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await self._when_there_is_room(incoming, send)
        except TimeoutError:
            raise OutcomeUnknown(f"shard {shard.log_id}: {SILENT}; the write may stand") from None

    async def _when_there_is_room(self, incoming: int, send: Callable[[], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ROOM_SECONDS_MAX
        while True:
            try:
                self._check_disk(incoming)
                return await send()
            except (LogBacklogFull, MemoryExhausted, _RoomIsKept):
                if loop.time() >= deadline:
                    raise
                self.relieve()
                await asyncio.sleep(ROOM_POLL_SECONDS)

    def _check_disk(self, incoming: int) -> None:
        """L23: appends leave so much of a local disk free that the Checkpoint of what is in the Logs still fits.

        A DataFile is smaller than the objects that it stands for. Without this the Log could fill the disk, and
        the Checkpoint that would free it could never be written.
        """
        if self._disk is None:
            return
        found = os.statvfs(self._disk)
        free = found.f_bavail * found.f_frsize
        pending = sum(shard.state.log_bytes_above_k for shard in self._shards())
        if free >= pending + DISK_PLENTY_BYTES:
            return
        if free >= pending + 2 * incoming + DISK_SPARE_BYTES:  # twice: in the Log, and in the file that follows
            return
        if not pending:
            raise StoreFull(f"{self._store.url}: no space left for new rows ({free} bytes free)")
        for shard in self._shards():
            shard.request_checkpoint()
        raise _RoomIsKept(
            f"{self._store.url}: no space left for new rows: the {free} bytes that are free are kept for a checkpoint, "
            "which is under way; free some space or try again"
        )

    def relieve(self) -> None:
        """When half of the memory for rows is used, the shard that holds most makes room (L23)."""
        if self._budget.used > self._budget.bytes_max // 2:
            fullest = max(self._shards(), key=lambda shard: shard.state.tail_bytes, default=None)
            if fullest is not None:
                fullest.request_checkpoint()
