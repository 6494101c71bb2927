"""Calls to owners that were replaced: given up, and never at the price of their caller's own end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from cluster.placement import Placement, PlacementVersion
from nodes.gateway import movedcalls
from nodes.gateway.movedcalls import MovedCalls
from nodes.placementview import PlacementView
from storage.errors import OutcomeUnknown
from tests.harness.gateway import on_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc


def placed(number: int, owner: str) -> Placement:
    return Placement(PlacementVersion(1, number), owner, {1: owner})


class Call(asyncio.Future[int]):
    """Stands for a call: both end with a wait for them that is cancelled. ``beside`` is called as it is given up."""

    beside: Callable[[], object] | None = None

    def cancel(self, msg: object | None = None) -> bool:
        is_first = super().cancel(msg)
        beside, self.beside = self.beside, None
        if beside is not None:
            beside()
        return is_first


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_caller_that_is_cancelled_as_its_owner_is_replaced_stays_cancelled(
    monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    monkeypatch.setattr(movedcalls, "GRACE_SECONDS", 0.0)

    @on_loop
    async def run() -> None:
        view = PlacementView()
        view.offer(placed(1, "old"))
        call = Call()
        given = cast("grpc.aio.UnaryUnaryCall[Any, int]", call)
        work = MovedCalls(view).run(given, "old", lambda placement: placement.owners.get(1))
        caller = asyncio.create_task(work)
        await asyncio.sleep(0)
        call.beside = caller.cancel if is_cancelled else None
        view.offer(placed(2, "new"))
        with pytest.raises(asyncio.CancelledError if is_cancelled else OutcomeUnknown):
            await caller

    run()
