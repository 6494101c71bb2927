"""Calls to owners that have been replaced meanwhile: given up, so that the new owner is asked (DESIGN section 6).

A paused owner answers nothing; its caller must not wait for the deadline when another has taken its place. Driven by
`nodes.gateway.remote`, on the node's event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Final, TypeVar

from storage.errors import OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from cluster.placement import Placement
    from nodes.placementview import PlacementView

_T = TypeVar("_T")

GRACE_SECONDS: Final = 0.3
"""An owner that hands over still answers what it had begun."""


class MovedCalls:
    """`run` a call as long as its peer is the one that the Placement names for it."""

    def __init__(self, view: PlacementView) -> None:
        self._view = view
        self._calls: dict[int, tuple[Callable[[Placement], str | None], str, Any]] = {}
        self._moved: set[int] = set()
        self._numbers = itertools.count()
        view.listen(self._look)

    async def run(
        self, call: grpc.aio.UnaryUnaryCall[Any, _T], peer: str, named: Callable[[Placement], str | None]
    ) -> _T:
        """The call's answer. OutcomeUnknown when ``named`` of a newer Placement is somebody else than ``peer``."""
        number = next(self._numbers)
        self._calls[number] = (named, peer, call)
        try:
            return await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if number not in self._moved or (task is not None and task.cancelling()):  # its own end comes first
                raise
            raise OutcomeUnknown(f"{peer} was replaced before it answered") from None
        finally:
            self._calls.pop(number, None)
            self._moved.discard(number)

    def _look(self, placement: Placement) -> None:
        for number, (named, peer, _) in self._calls.items():
            if named(placement) != peer:
                asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up, number)

    def _give_up(self, number: int) -> None:
        entry = self._calls.get(number)
        if entry is None:
            return
        named, peer, call = entry
        if named(self._view.current) != peer:  # it may have come back
            self._moved.add(number)
            call.cancel()
