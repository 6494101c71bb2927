"""Encoded appends at an owner: the same promises as plain ones, and the refusals of L30 (LOG L4, L7, L23, L30)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from storage.appends import encode_append
from storage.changes import DropTable
from storage.errors import (
    CatalogBehind,
    CorruptObject,
    MemoryExhausted,
    NoSuchTable,
    OutcomeUnknown,
    RequestTooLarge,
    ShardClosed,
    WriteRefused,
)
from tests.harness.storagenode import Ledger, StorageNode, check_node, read_all, read_store
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.integration.storage.test_shard import kinds, looped, node_at

if TYPE_CHECKING:
    from pathlib import Path

    from storage.appends import EncodedAppend


async def write(node: StorageNode, ledger: Ledger, count: int, writer: int = 1) -> list[EncodedAppend]:
    """Encode a write, append it, remember it; returns what was sent."""
    sent = []
    for part in node.parts("t0", ledger.take(count), writer):
        sent.append(encode_append(part.append))
        await node.shards[part.log_id].append_encoded(sent[-1:])
        ledger.acknowledged.update(part.keys)
    return sent


@looped
async def test_rows_that_a_gateway_encoded_stand_like_any_others(tmp_path: Path) -> None:
    ledger = Ledger()
    for round_ in range(3):
        async with node_at(tmp_path, logs=(1, 2), partitions=3) as node:
            await node.ensure("t0", ledger)
            for count in (1, 5, 400):
                await write(node, ledger, count)
                await node.write("t0", count, ledger)
            await check_node(node, ledger)
            if round_:
                await node.shards[1].checkpoint()
                await check_node(node, ledger)


@looped
async def test_l7_one_id_is_one_row_whichever_way_it_comes(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        shard = node.shards[1]
        (part,) = node.parts("t0", ledger.take(4), writer=1)
        coded = encode_append(part.append)
        first, again, plain = await asyncio.gather(
            shard.append_encoded([coded]), shard.append_encoded([coded, coded]), shard.append([part.append])
        )
        assert (first, again, plain) == ([0], [0, 0], [0])
    async with node_at(tmp_path) as node:
        assert await node.shards[1].append_encoded([coded]) == [0]
        assert len(await read_all(node)) == 4
        node.shards[1].state.advance_horizon(2**60)
        with pytest.raises(WriteRefused):
            await node.shards[1].append_encoded([coded])


@looped
async def test_l30_a_table_that_is_not_live_and_a_schema_that_is_not_known_are_refused(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        (part,) = await write(node, ledger, 2)
        shard = node.shards[1]
        before = kinds(node)
        fresh = replace(part, write_id=part.write_id._replace(sequence=99))
        for behind in (replace(fresh, table_id=77), replace(fresh, schema_version=part.schema_version + 1)):
            with pytest.raises(CatalogBehind) as caught:
                await shard.append_encoded([behind])
            assert caught.value.retriable
        await node.catalog.alter([DropTable("db", "t0")])
        await node.catalog.finish_drop(part.table_id)
        (late,) = [replace(fresh, write_id=part.write_id._replace(sequence=100))]
        with pytest.raises(NoSuchTable):
            await shard.append_encoded([late])
        assert await shard.append_encoded([part]) == [0], "L7: what is known is answered"
        assert kinds(node) == before


@looped
async def test_l4_one_bad_part_and_nothing_is_sent(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        before = kinds(node)
        (good,) = (encode_append(p.append) for p in node.parts("t0", (1, 2), writer=1))
        (bad,) = (encode_append(p.append) for p in node.parts("t0", (3, 4), writer=1))
        with pytest.raises(CorruptObject):
            await node.shards[1].append_encoded([good, replace(bad, row_count=3)])
        with mock.patch("storage.shard.OBJECT_BYTES_MAX", 100), pytest.raises(RequestTooLarge):
            await node.shards[1].append_encoded([good])
        with mock.patch.object(node.budget, "bytes_max", len(good.frame) - 1), pytest.raises(MemoryExhausted):
            await node.shards[1].append_encoded([good])
        assert node.budget.used == 0
        assert kinds(node) == before
        await node.shards[1].close()
        with pytest.raises(ShardClosed):
            await node.shards[1].append_encoded([good])


@looped
async def test_l6_a_lost_answer_and_a_zombie() -> None:
    inner, ledger = MemoryStore(), Ledger()
    store = FaultStore(inner)
    async with node_at(store) as zombie:
        await zombie.ensure("t0", ledger)
        store.arm(Fault.LOST_ANSWER)
        await write(zombie, ledger, 10)
        assert store.fired[Fault.LOST_ANSWER] == 1
        async with node_at(inner) as node:
            store.arm(Fault.LOST_REQUEST)
            with pytest.raises(OutcomeUnknown):
                await write(zombie, Ledger(numbers=100), 10)
            await write(node, ledger, 10)
            await check_node(node, ledger)
            assert sorted(read_store(inner, node)) == sorted(ledger.acknowledged)
