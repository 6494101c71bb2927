"""Checkpoints of all shards of a node: one that fails does not cut the others short."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from nodes.embedded import EmbeddedBackend
from nodes.ingest.node import IngestNode
from storage.errors import ShardClosed
from tests.harness.gateway import on_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Lost:
    """A shard that another owner has taken."""

    async def checkpoint(self) -> None:
        raise ShardClosed("handed over")


class Slow:
    """A shard with much to write."""

    def __init__(self) -> None:
        self.stands = False

    async def checkpoint(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        self.stands = True


def ingest(*shards: object) -> Callable[[], Awaitable[None]]:
    node = SimpleNamespace(keeper=SimpleNamespace(open_shards=lambda: shards))
    return lambda: IngestNode.checkpoint(cast("IngestNode", node))


def embedded(*shards: object) -> Callable[[], Awaitable[None]]:
    async def shutdown() -> None:
        """The Catalog's."""

    node = SimpleNamespace(_open_ones=lambda: shards, _catalog=SimpleNamespace(shutdown=shutdown))
    return lambda: EmbeddedBackend.checkpoint(cast("EmbeddedBackend", node))


@pytest.mark.parametrize("kind", [ingest, embedded])
def test_a_node_waits_for_every_checkpoint_that_it_began(kind: Callable[..., Callable[[], Awaitable[None]]]) -> None:
    """A stopping node goes on with what would cut them off."""

    @on_loop
    async def run() -> None:
        slow = Slow()
        with pytest.raises(ShardClosed):
            await kind(Lost(), slow)()
        assert slow.stands

    run()


@pytest.mark.parametrize("kind", [ingest, embedded])
def test_a_node_without_shards_has_nothing_to_checkpoint(kind: Callable[..., Callable[[], Awaitable[None]]]) -> None:
    @on_loop
    async def run() -> None:
        await kind()()

    run()
