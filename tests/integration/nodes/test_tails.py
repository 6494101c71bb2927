"""Shards asked for together, over a real channel: what is small comes in one message, the rest alone (LOG L14, L15)."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from cluster.errors import MalformedMessage
from nodes.ingest.service import IngestService
from nodes.messages import file_to
from nodes.query.source import SMALL_BYTES, ShardSource
from nodes.tailmessages import FILE_BYTES, ROW_BYTES_LEAST, head_to, rows_to, small
from protos import internal_pb2 as pb
from storage.catalogstate import CatalogSnapshot
from storage.cutoffs import Cutoffs
from storage.errors import Fenced, LogDamaged, ShardClosed
from storage.schema import Database, DataFile, TailBatch
from storage.tailanswer import ShardSnapshot, TailAnswer, TailPartition, TailRows, TailWanted
from tests.harness.gateway import on_loop
from tests.harness.grpcpeer import Peer, ScriptedIngest, running
from tests.harness.tables import make_rows, make_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from nodes.ingest.node import IngestNode
    from nodes.member import ClusterMember

SHARDS = (1, 2, 3)
FILE = DataFile("data/1/a.parquet", 1, 0, 0, 9, 0, 9, -5, 5, 10, 1000, 1)


def answer(shard: int, rows: int, table_id: int | None = None) -> TailAnswer:
    table = shard if table_id is None else table_id
    batch = TailBatch(0, make_rows(range(rows), ["a"] * rows))
    entry = TailRows(table, 1, 7, batch)
    return TailAnswer(shard, 1, 9, 2, 5, 0, 5, (TailPartition(table, 1, 7, ()),), (entry,), Cutoffs(), frozenset())


def message(shard: int, rows: int) -> pb.TailReply:
    found = answer(shard, rows)
    return pb.TailReply(head=head_to(found), rows=rows_to(found.rows))


class Owner(ScriptedIngest):
    """Owns three shards; those in ``alone`` are not in an answer to several."""

    def __init__(self, alone: Collection[int] = (), rows: int = 2) -> None:
        super().__init__()
        self.alone, self.tail_rows = alone, rows
        self.files: list[pb.DataFile] = []
        self.extra: list[pb.ShardTail] = []
        self.together: list[list[int]] = []
        self.by_itself: list[int] = []

    async def Tails(self, request: pb.TailsRequest, context: Any) -> pb.TailsReply:
        self.together.append([one.shard for one in request.shards])
        if self.errors:
            raise self.errors.pop(0)
        found = [one.shard for one in request.shards if one.shard not in self.alone]
        return pb.TailsReply(shards=[*self.extra, *(pb.ShardTail(shard=s, whole=message(s, 2)) for s in found)])

    async def Tail(self, request: pb.TailRequest, context: Any) -> AsyncIterator[pb.TailReply]:
        self.by_itself.append(request.shard)
        whole = message(request.shard, self.tail_rows)
        whole.head.partitions[0].files.extend(self.files)
        yield pb.TailReply(head=whole.head)
        yield pb.TailReply(rows=whole.rows)


class Source(ShardSource):
    """Over one peer that owns all shards; reads of the store are counted, and not made."""

    def __init__(self, peer: Peer) -> None:
        tables = {shard: make_table(shard, log_id=shard) for shard in SHARDS}
        current = CatalogSnapshot(
            databases_by_id={1: Database(1, "db")},
            tables_by_id=tables,
        )
        member = SimpleNamespace(
            catalog=SimpleNamespace(current=current, table_by_id=None, refresh=None),
            store=None, executor=None, identity=SimpleNamespace(id=SimpleNamespace(bytes=bytes(16))),
            placement=SimpleNamespace(current=SimpleNamespace(owners=dict.fromkeys(SHARDS, "i1"))),
            channel=lambda _name: peer.channel, suspect=lambda _name: None,
        )  # fmt: skip
        super().__init__(cast("ClusterMember", member), 1 << 20)
        self.from_store: list[int] = []
        self.tables = list(tables.values())

    async def _read(self, log_id: int, table_ids: Collection[int]) -> ShardSnapshot:
        self.from_store.append(log_id)
        return ShardSnapshot(log_id, 1, 5, 0, dict.fromkeys(table_ids, ()), Cutoffs(), frozenset())

    async def rows(self) -> list[int]:
        """The rows of each shard's table."""
        found = await self.snapshot(self.tables)
        return [sum(b.rows.num_rows for part in one.partitions for b in part.tail) for one in found]


@contextlib.asynccontextmanager
async def owned(**how: Any) -> AsyncIterator[tuple[Owner, Source]]:
    owner = Owner(**how)  # type: ignore[abstract]
    async with running(owner) as peer:
        yield owner, Source(peer)


@on_loop
async def test_all_shards_of_an_owner_take_one_call() -> None:
    async with owned() as (owner, source):
        assert await source.rows() == [2, 2, 2]
        assert await source.rows() == [2, 2, 2], "what is kept is not added again"
        assert (owner.together, owner.by_itself) == ([[1, 2, 3]] * 2, [])


@on_loop
async def test_what_is_left_out_is_asked_for_alone_until_it_is_small_again() -> None:
    large = SMALL_BYTES // 20
    async with owned(alone=(2,), rows=large) as (owner, source):
        assert await source.rows() == [2, large, 2]
        assert (owner.together, owner.by_itself) == ([[1, 2, 3]], [2])
        owner.tail_rows = 3
        source._kept.forget(2)
        assert await source.rows() == [2, 3, 2]
        assert (owner.together[1:], owner.by_itself) == ([[1, 3]], [2, 2])
        owner.alone = ()
        await source.rows()
        assert (owner.together[2:], owner.by_itself) == ([[1, 2, 3]], [2, 2])


@on_loop
async def test_a_shard_with_many_files_is_not_small() -> None:
    async with owned(alone=(2,)) as (owner, source):
        owner.files = [file_to(FILE)] * (SMALL_BYTES // 40)
        await source.rows()
        await source.rows()
        assert (owner.together, owner.by_itself) == ([[1, 2, 3], [1, 3]], [2, 2])


@on_loop
async def test_an_owner_that_fails_leaves_its_shards_to_the_store() -> None:
    async with owned() as (owner, source):
        owner.errors.append(ShardClosed("it stops"))
        assert await source.rows() == [0, 0, 0]
        assert sorted(source.from_store) == list(SHARDS)
        assert await source.rows() == [2, 2, 2]


@on_loop
async def test_damage_that_an_owner_reports_is_not_read_around() -> None:
    async with owned() as (owner, source):
        owner.errors.append(LogDamaged("object 3 is torn"))
        with pytest.raises(LogDamaged, match="object 3"):
            await source.rows()
        assert source.from_store == []


@on_loop
async def test_an_answer_about_another_shard_is_refused() -> None:
    async with owned() as (owner, source):
        owner.extra.append(pb.ShardTail(shard=9, whole=message(9, 1)))
        with pytest.raises(MalformedMessage, match="shard 9"):
            await source._ask_together("i1", {1: [1]}, source._member.catalog.current)


def test_the_smallest_answers_go_together() -> None:
    answers = [answer(1, 5_000), answer(2, 1), answer(3, 1)]
    least = ROW_BYTES_LEAST + FILE_BYTES
    assert [one.shard for one in small(answers, 2 * least)] == [2, 3]
    assert [one.shard for one in small(answers, least)] == [2]
    assert [one.shard for one in small(answers, 1 << 20)] == [2, 3, 1]
    assert small(answers, 100) == []


def test_a_shard_with_many_files_leaves_room_for_the_others() -> None:
    """L14: its few rows do not make it the smallest, or no answer at all would go together."""
    files = (FILE,) * 1_000
    many = replace(answer(1, 1), partitions=(TailPartition(1, 1, 7, files),), rows=())
    assert [one.shard for one in small([many, answer(2, 1)], 100 * FILE_BYTES)] == [2]


class Zombie:
    """A shard that another node has taken over: it proves nothing, and would answer."""

    def __init__(self) -> None:
        self.answered = 0
        self.cutoffs = self

    async def record(self, *_: object) -> None:
        """No rows expire."""

    async def prove(self) -> None:
        raise Fenced("another owner")

    def tail(self, _wanted: TailWanted) -> TailAnswer:
        self.answered += 1
        return answer(1, 2)


@on_loop
async def test_l13_an_owner_that_proves_nothing_answers_nothing() -> None:
    """Neither alone nor together with the shards that it does own (DESIGN promise 2)."""
    zombie = Zombie()

    async def nothing(*_: object) -> None:
        return None

    node = SimpleNamespace(
        keeper=SimpleNamespace(shard=lambda _number: zombie),
        member=SimpleNamespace(catalog=SimpleNamespace(wait_revision=nothing)),
        catalog=CatalogSnapshot(),
    )
    service = IngestService(cast("IngestNode", node))
    context: Any = None
    together = await service.Tails(pb.TailsRequest(shards=[pb.TailRequest(shard=1)]), context)
    assert list(together.shards) == []
    with pytest.raises(Fenced):
        await anext(service.Tail(pb.TailRequest(shard=1), context))
    assert zombie.answered == 0
