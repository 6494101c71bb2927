"""A shard takes a part that rests on a snapshot only if none of its keys has been written since (LOG L26)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from storage.errors import RowsChanged
from storage.frames import WriteId
from tests.harness.storagenode import Ledger, StorageNode
from tests.integration.storage.test_shard import looped, node_at

if TYPE_CHECKING:
    from pathlib import Path

    from storage.shard import Append


async def prepared(node: StorageNode, numbers: tuple[int, ...]) -> Append:
    """One part of the table's one partition."""
    (part,) = node.parts("t0", numbers, writer=1)
    return part.append


def position(node: StorageNode) -> int:
    (part,) = node.shards[1].snapshot(node.table("t0"))
    return part.position[2]


@looped
async def test_l26_since_the_snapshot(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        shard = node.shards[1]
        first = await prepared(node, (1, 2))
        assert await shard.append([replace(first, unchanged_since=0)]) == [0], "there was nothing"
        seen = position(node)
        other = await prepared(node, (3,))
        await shard.append([other])
        again = await prepared(node, (1, 2))
        assert await shard.append([replace(again, unchanged_since=seen)]) == [3], "other keys do not matter"
        with pytest.raises(RowsChanged, match="written again") as caught:
            await shard.append([replace(await prepared(node, (2, 9)), unchanged_since=seen)])
        assert caught.value.retriable
        assert await shard.append([replace(again, unchanged_since=seen)]) == [3], "L7: the same write, answered"
        await shard.append([replace(await prepared(node, (2, 9)), unchanged_since=position(node))])


@looped
async def test_l26_a_refused_part_takes_its_whole_request_with_it(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        shard = node.shards[1]
        await shard.append([await prepared(node, (1,))])
        before = shard.state.position
        good, bad = await prepared(node, (5,)), await prepared(node, (1,))
        with pytest.raises(RowsChanged):
            await shard.append([good, replace(bad, unchanged_since=0)])
        assert shard.state.position == before
        assert node.budget.used == shard.state.tail_bytes


@looped
async def test_l26_decided_in_commit_order(tmp_path: Path) -> None:
    """Two that rest on one snapshot, sent at once: one of them stands."""
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        shard = node.shards[1]
        await shard.append([await prepared(node, (1,))])
        seen = position(node)
        sent = [replace(await prepared(node, (1,)), unchanged_since=seen) for _ in range(5)]
        outcomes = await asyncio.gather(*(shard.append([part]) for part in sent), return_exceptions=True)
        assert [isinstance(o, RowsChanged) for o in outcomes] == [False, True, True, True, True]
        assert node.budget.used == shard.state.tail_bytes


@looped
async def test_l26_what_a_checkpoint_has_moved_cannot_be_told_any_more(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        shard = node.shards[1]
        await shard.append([await prepared(node, (1,))])
        seen = position(node)
        await shard.append([await prepared(node, (2,))])
        await shard.checkpoint()
        part = await prepared(node, (3,))
        with pytest.raises(RowsChanged):
            await shard.append([replace(part, unchanged_since=seen)])
        await shard.append([replace(part, unchanged_since=position(node))])
    async with node_at(tmp_path) as node:  # the next owner knows as much
        shard = node.shards[1]
        late = replace(await prepared(node, (4,)), write_id=WriteId(1, b"w" * 16, 0, 99, 1))
        with pytest.raises(RowsChanged):
            await shard.append([replace(late, unchanged_since=seen)])
        with pytest.raises(RowsChanged):
            await shard.append([replace(await prepared(node, (3,)), unchanged_since=position(node) - 1)])
        await shard.append([replace(late, unchanged_since=position(node))])
