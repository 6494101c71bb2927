"""Whom a query node asks for a shard, and whose answer counts (LOG L15)."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from cluster.errors import MalformedMessage
from nodes.query import source
from nodes.query.source import ShardSource
from nodes.tailmessages import head_to
from storage.catalogstate import CatalogSnapshot
from storage.cutoffs import Cutoffs
from storage.errors import LogDamaged, MemoryExhausted, ShardClosed, SnapshotTooOld, StorageError
from storage.schema import Database
from storage.tailanswer import ShardSnapshot, TailAnswer, TailPartition, TailWanted
from tests.harness.gateway import on_loop
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from collections.abc import Collection

    from nodes.member import ClusterMember

ANSWER = ShardSnapshot(1, 1, 5, 0, {1: ()}, Cutoffs(), frozenset())


NOWHERE = SimpleNamespace(owners={})


class Source(ShardSource):
    """An owner that takes its time, and a store that cannot be read."""

    def __init__(self, owner: StorageError | None, store: StorageError) -> None:
        catalog = SimpleNamespace(
            current=CatalogSnapshot(databases_by_id={1: Database(1, "db")}),
            table_by_id=None,
            refresh=None,
        )
        identity = SimpleNamespace(id=SimpleNamespace(bytes=bytes(16)))
        super().__init__(
            cast(
                "ClusterMember",
                SimpleNamespace(
                    catalog=catalog,
                    store=None,
                    identity=identity,
                    executor=None,
                    placement=SimpleNamespace(current=NOWHERE),
                ),
            ),
            1 << 20,
        )
        self.store_failed = asyncio.Event()
        self._owner, self._store = owner, store

    async def _ask_alone(self, log_id: int, table_ids: Collection[int], catalog: CatalogSnapshot) -> ShardSnapshot:
        await self.store_failed.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        if self._owner is not None:
            raise self._owner
        return ANSWER

    async def _read(self, log_id: int, table_ids: Collection[int]) -> ShardSnapshot:
        self.store_failed.set()
        raise self._store


@pytest.mark.parametrize("error", [SnapshotTooOld("owners were faster"), MemoryExhausted("too many rows")])
def test_l15_a_slow_owner_still_answers_when_the_store_cannot(
    monkeypatch: pytest.MonkeyPatch, error: StorageError
) -> None:
    monkeypatch.setattr(source, "PATIENCE_SECONDS", 0.001)

    @on_loop
    async def run() -> None:
        (found,) = await Source(None, error).snapshot([make_table()])
        assert found.partitions == ()

    run()


def test_l15_when_neither_answers_the_store_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PATIENCE_SECONDS", 0.001)

    @on_loop
    async def run() -> None:
        with pytest.raises(SnapshotTooOld):
            await Source(ShardClosed("handed over"), SnapshotTooOld("owners were faster")).snapshot([make_table()])

    run()


def test_a_query_that_fails_leaves_no_read_of_another_shard_behind() -> None:
    class Halves(Source):
        async def _ask_alone(self, log_id: int, table_ids: Collection[int], catalog: CatalogSnapshot) -> ShardSnapshot:
            if log_id == 1:
                raise LogDamaged("object 3 is torn")
            await asyncio.Event().wait()
            return ANSWER

    @on_loop
    async def run() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(LogDamaged):
            await Halves(None, LogDamaged("")).snapshot([make_table(1, log_id=1), make_table(2, log_id=2)])
        assert asyncio.all_tasks() == before

    run()


def test_what_does_not_fit_to_what_was_kept_is_not_asked_for_again() -> None:
    """Else the store would be read for every query, until others had pushed it out."""
    asking = Source(None, SnapshotTooOld(""))
    part = TailPartition(1, 1, 3, ())
    answer = TailAnswer(1, 1, 9, 5, 4, 0, 4, (part,), (), Cutoffs(), frozenset())
    asking._merged(asking._kept.ask(1, [1]), head_to(answer), ())
    ask = asking._kept.ask(1, [1])
    assert (ask.wanted.from_sequence, ask.wanted.known_checkpoint) == (9, 5)
    with pytest.raises(MalformedMessage):
        asking._merged(ask, head_to(dataclasses.replace(answer, from_sequence=7)), ())
    assert asking._kept.ask(1, [1]).wanted == TailWanted({1: None})
