"""L14: what a query node kept of a shard's tail, and what it is sent since, is always what a full read shows.

Seeded histories on the real Shards: writes, Checkpoints, take-overs by owners that a query node does not know yet,
answers that come late and out of order, and tails that were let go. Each rule of merging is then broken on purpose.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

import storage.kepttail
import storage.tailanswer
from storage.cutoffs import Cutoffs
from storage.errors import CorruptObject, StorageError
from storage.kepttail import KeptTails, whole_snapshot
from storage.storereader import StoreReader
from storage.tailanswer import TailAnswer, TailPartition, TailWanted
from tests.harness.merging import merge_all
from tests.harness.storagenode import Ledger, SimExecutor, StorageNode
from tests.harness.stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from storage.kepttail import TailAsk
    from storage.schema import PartitionSnapshot
    from storage.tailanswer import ShardSnapshot

    Plain = dict[int, list[tuple[Any, ...]]]

TABLES = ("t0", "t1", "t2")
STEPS = 60


class Wrong(AssertionError):
    """The merged snapshot is not the owner's."""


def plain(parts: Mapping[int, Sequence[PartitionSnapshot]]) -> Plain:
    """Snapshots so that they can be compared: position, files, and each row's offset and number."""
    return {
        table: [
            (
                part.partition,
                part.position,
                tuple(file.path for file in part.files),
                [(b.first_offset + i, n) for b in part.tail for i, n in enumerate(b.rows.column("n").to_pylist())],
            )
            for part in found
        ]
        for table, found in parts.items()
    }


class History:
    """One query node and the owners that follow each other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = MemoryStore()
        self.ledger = Ledger()
        self.owners: list[StorageNode] = []
        self.kept = KeptTails(self.random.choice((0, 4_000, 2**30, 2**30)))
        self.late: list[tuple[TailAsk, TailAnswer, Plain]] = []
        self.reached: set[str] = set()
        self.seen: dict[Any, Any] = {}
        self.reader: StoreReader

    async def run(self) -> None:
        await self.take_over()
        for name in TABLES:
            await self.owner.ensure(name, self.ledger)
        identity = self.owner.shards[1].identity
        tables = self.owner.catalog.table_by_id
        self.reader = StoreReader(self.store, identity.store_id, SimExecutor(1), tables)
        steps = {
            self.write: 8,
            self.query: 8,
            self.answer_late: 4,
            self.checkpoint: 2,
            self.compact: 1,
            self.take_over: 1,
            self.zombie: 1,
        }
        for _ in range(STEPS):
            (step,) = self.random.choices(list(steps), list(steps.values()))
            await step()
        while self.late:
            await self.answer_late()
        for owner in self.owners:
            await owner.close()

    @property
    def owner(self) -> StorageNode:
        return self.owners[-1]

    async def take_over(self) -> None:
        node = StorageNode(self.store, SimExecutor(self.random.randrange(2**32)))
        await node.open(logs=[1, 2], partitions=3)
        self.owners.append(node)

    async def write(self) -> None:
        await self.owner.write(self.random.choice(TABLES), self.random.randint(1, 4), self.ledger)

    async def checkpoint(self) -> None:
        await self.owner.shards[self.random.choice((1, 2))].checkpoint()

    async def compact(self) -> None:
        """Another list of files at the same k."""
        shard = self.owner.shards[self.random.choice((1, 2))]
        if True in await merge_all(self.owner, shard):
            self.reached.add("merged files")

    async def zombie(self) -> None:
        """An owner that was replaced proves nothing, so it answers nothing (L13)."""
        if len(self.owners) > 1:
            with pytest.raises(StorageError):
                await self.owners[-2].shards[1].prove()

    async def query(self) -> None:
        log_id = self.random.choice((1, 2))
        names = self.random.sample(TABLES, self.random.randint(1, len(TABLES)))
        tables = [self.owner.table(name) for name in names]
        ask = self.kept.ask(log_id, [table.id for table in tables])
        shard = self.owner.shards[log_id]
        await shard.prove()
        answer = shard.tail(ask.wanted)
        expected = plain({table.id: shard.snapshot(table) for table in tables})
        whole = shard.tail(TailWanted(dict.fromkeys(ask.wanted.tables)))
        self.judge(whole_snapshot(whole, ask.wanted.tables), expected)
        read = await self.reader.read_shard(log_id, ask.wanted.tables.keys())
        self.compare(whole_snapshot(read, ask.wanted.tables), expected)
        self.note(ask, answer)
        if self.random.random() < 0.4:
            self.late.append((ask, answer, expected))
        else:
            self.judge(self.kept.merge(ask, answer), expected)

    async def answer_late(self) -> None:
        if self.late:
            ask, answer, expected = self.late.pop(self.random.randrange(len(self.late)))
            self.judge(self.kept.merge(ask, answer), expected)

    def note(self, ask: TailAsk, answer: TailAnswer) -> None:
        if answer.files_known and any(ask.kept[table].files for table in ask.wanted.tables):
            self.reached.add("files that are known")
        if ask.kept and answer.epoch != ask.wanted.from_epoch:
            self.reached.add("another owner")
        elif ask.kept and answer.covered > ask.wanted.from_sequence:
            self.reached.add("k above all that was kept")
        elif ask.kept and any(
            r.sequence <= answer.covered for t in ask.kept.values() for p in t.rows.values() for r in p
        ):
            self.reached.add("k above some")
        elif ask.kept and answer.from_sequence > answer.covered:
            self.reached.add("only what is new")

    def compare(self, found: ShardSnapshot, expected: Plain) -> None:
        """L15: what the store shows. Where the position is the owner's the content must be."""
        for table, parts in plain(found.tables).items():
            for mine, theirs in zip(parts, expected[table], strict=True):
                if (mine[0], *mine[2:]) != (theirs[0], *theirs[2:]):
                    raise Wrong(f"the store shows {mine}, the owner {theirs}")
                if self.seen.setdefault((table, *mine[:2]), mine) != mine:
                    raise Wrong(f"two contents of position {mine[1]}")
                if self.seen.setdefault((table, *theirs[:2]), theirs) != theirs:
                    raise Wrong(f"two contents of position {theirs[1]}")

    def judge(self, found: ShardSnapshot, expected: Plain) -> None:
        if plain(found.tables) != expected:
            raise Wrong(f"{plain(found.tables)} is not {expected}")
        size = sum(t.bytes for t in self.kept._kept.values())
        assert size == self.kept.bytes <= max(self.kept._bytes_max, 0)


SEEDS = range(40)


def run(seeds: range = SEEDS) -> set[str]:
    reached: set[str] = set()
    for seed in seeds:
        history = History(seed)
        asyncio.run(history.run())
        reached |= history.reached
    return reached


def test_l14_kept_tails_and_deltas_are_a_full_read() -> None:
    found = run()
    assert found == {
        "another owner", "k above all that was kept", "k above some", "only what is new", "files that are known",
        "merged files",
    }  # fmt: skip


def keep_what_files_have(before: Any, new: Any, answer: Any) -> Any:
    """Rows at or below k are kept though files stand for them."""
    numbers = {*before, *new}
    high = answer.from_sequence
    kept = {n: tuple(r for r in before.get(n, ()) if r.sequence <= high) for n in numbers}
    return {n: (*kept[n], *new.get(n, ())) for n in numbers}


def keep_what_comes_again(before: Any, new: Any, answer: Any) -> Any:
    """Rows are kept also above where the answer goes on."""
    numbers = {*before, *new}
    kept = {n: tuple(r for r in before.get(n, ()) if r.sequence > answer.covered) for n in numbers}
    return {n: (*kept[n], *new.get(n, ())) for n in numbers}


@pytest.mark.parametrize("breach", [keep_what_files_have, keep_what_comes_again])
def test_l14_broken_is_found(breach: Callable[..., Any]) -> None:
    with mock.patch.object(storage.kepttail, "_joined", breach), pytest.raises(Wrong):
        run()


def test_l14_an_owner_that_trusts_another_epoch_is_found() -> None:
    """Sequences say nothing of what an earlier owner had seen: it may have answered from less."""
    real = storage.tailanswer.tail_answer

    def trusting(state: Any, tables: Any, wanted: Any, revision: int, position: int) -> Any:
        epoch = state.epoch
        asked = TailWanted(wanted.tables, epoch, min(wanted.from_sequence, position))
        return real(state, tables, asked, revision, position)

    with mock.patch("storage.shard.tail_answer", trusting), pytest.raises((Wrong, StorageError)):
        run()


def test_l14_an_owner_that_leaves_out_the_files_of_another_checkpoint_is_found() -> None:
    real = storage.tailanswer.tail_answer

    def lazy(state: Any, tables: Any, wanted: Any, revision: int, position: int) -> Any:
        answer = real(state, tables, wanted, revision, position)
        if not wanted.known_checkpoint:
            return answer
        bare = tuple(dataclasses.replace(part, files=()) for part in answer.partitions)
        return dataclasses.replace(answer, partitions=bare, files_known=True, checkpoint_seq=wanted.known_checkpoint)

    with mock.patch("storage.shard.tail_answer", lazy), pytest.raises(Wrong):
        run()


def test_l14_an_answer_without_the_files_of_a_checkpoint_that_nobody_knows_is_refused() -> None:
    kept = KeptTails(2**30)
    ask = kept.ask(1, [7])
    part = TailPartition(7, 1, 3, ())
    answer = TailAnswer(1, 1, 9, 5, 4, 0, 4, (part,), (), Cutoffs(), frozenset(), files_known=True)
    with pytest.raises(CorruptObject, match="Checkpoint 5"):
        kept.merge(ask, answer)


def test_tables_that_come_and_go_leave_nothing_behind() -> None:
    """Also without a row: ids are never used again, so what is kept of one that was dropped is never asked for."""
    kept = KeptTails(100_000)
    for table in range(1_000):
        ask = kept.ask(1, [table])
        kept.merge(ask, TailAnswer(1, 1, 9 + table, 5, 4, 0, 4, (), (), Cutoffs(), frozenset({table})))
    assert len(kept._kept) < 200
