"""The newest Placement that this node knows, and how it hears of newer ones (LOG L32).

`PlacementView` is fed by Raft (voters), by `PlacementWatch` (every node), and read by everybody in this process.
The greater version wins, whoever sends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from cluster.errors import ClusterError
from cluster.members import Kind
from cluster.placement import Placement, PlacementVersion, decode_placement
from protos import internal_pb2, internal_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cluster.channels import PeerChannel
    from cluster.members import Member

REPEAT_SECONDS: Final = 2.0
"""A Placement is sent again so often, so that a silent stream is noticed."""
SILENT_SECONDS_MAX: Final = 3 * REPEAT_SECONDS
"""A watch that says nothing for so long is given up: its server is paused or cut off."""
WATCHES_MAX: Final = 3
"""Ingest nodes that are watched at once: one of them may be paused, and says nothing of what happened since."""
PAUSE_SECONDS: Final = 0.3

log = structlog.get_logger(__name__)


class PlacementView:
    """The newest Placement. Lives on one event loop."""

    def __init__(self) -> None:
        self.current = Placement()
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[Placement], None]] = []

    def offer(self, placement: Placement) -> bool:
        """Take it if it is newer; tell everybody who waits."""
        if placement.version <= self.current.version:
            return False
        self.current = placement
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener(placement)
        return True

    def listen(self, listener: Callable[[Placement], None]) -> None:
        """Call ``listener`` with each newer Placement."""
        self._listeners.append(listener)

    async def newer(self, than: PlacementVersion, seconds: float) -> bool:
        """Wait for a Placement after ``than``, at most ``seconds``; False if none came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.current.version <= than:
                    await self._changed.wait()
        return self.current.version > than


class PlacementWatch:
    """Follows the Placement by watches on up to `WATCHES_MAX` ingest nodes. `run` it as a task."""

    def __init__(
        self,
        name: str,
        view: PlacementView,
        members: Callable[[], Mapping[str, Member]],
        channel: Callable[[str], PeerChannel],
        on_revision: Callable[[int], None],
    ) -> None:
        self._name = name
        self._view = view
        self._members = members
        self._channel = channel
        self._on_revision = on_revision
        self._watched: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._choose()
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            for task in self._watched.values():
                task.cancel()
            await asyncio.gather(*self._watched.values(), return_exceptions=True)

    def _choose(self) -> None:
        for address, task in list(self._watched.items()):
            if task.done():
                del self._watched[address]
        for address in self._candidates():
            if len(self._watched) >= WATCHES_MAX:
                return
            self._watched[address] = asyncio.create_task(self._watch(address))

    def _candidates(self) -> list[str]:
        found = [
            member.meta.addresses["grpc"]
            for name, member in self._members().items()
            if member.meta.kind is Kind.INGEST and member.is_usable and name != self._name
        ]
        random.shuffle(found)
        return [address for address in found if address not in self._watched]

    async def _watch(self, address: str) -> None:
        """One stream, until it breaks or falls silent; another is chosen then."""
        stub = self._channel(address).stub(internal_pb2_grpc.PlacementStub)
        call = stub.Watch(internal_pb2.WatchRequest(node=self._name))
        try:
            while True:
                async with asyncio.timeout(SILENT_SECONDS_MAX):
                    reply = await call.read()
                if not isinstance(reply, internal_pb2.WatchReply):  # EOF
                    return
                self._on_revision(reply.revision)
                if reply.placement:
                    self._view.offer(decode_placement(reply.placement))
        except (TimeoutError, grpc.aio.AioRpcError, ClusterError) as error:
            log.debug("a watch of the Placement ended", peer=address, reason=str(error) or type(error).__name__)
        finally:
            call.cancel()
