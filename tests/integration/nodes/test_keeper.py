"""A node's shards under the Placement: what it says of them while they are opened and given away."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from cluster.placement import Placement, PlacementVersion
from nodes.ingest.keeper import Keeper
from nodes.placementview import PlacementView
from storage.budget import MemoryBudget
from tests.harness.gateway import on_loop
from tests.harness.storagenode import LIMITS

if TYPE_CHECKING:
    from nodes.member import ClusterMember


@on_loop
async def test_l32_a_node_has_not_let_go_of_what_it_has_yet_to_open() -> None:
    """It would leave as the owner that the Placement names, and nobody would have been asked to take its place."""
    view = PlacementView()
    member = cast("ClusterMember", SimpleNamespace(name="n1", placement=view))
    keeper = Keeper(member, MemoryBudget(1 << 20), lambda: LIMITS)
    keeper.start()
    view.offer(Placement(PlacementVersion(1, 1), "n2", {1: "n1"}))
    assert not await keeper.let_go(0.01)
    view.offer(Placement(PlacementVersion(1, 2), "n2", {1: "n2"}))
    assert await keeper.let_go(0.01)
    await keeper.aclose()
    assert len(asyncio.all_tasks()) == 1
