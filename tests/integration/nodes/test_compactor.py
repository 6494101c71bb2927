"""The background work of compaction over real shards: what it commits, puts off, gives up and counts (LOG L12, L21)."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from nodes.compaction import Compactor, Room
from nodes.mergeprocess import MergeFailed
from nodes.mergeworker import Answer, carried_out
from nodes.settings_model import DataSettings, Settings
from storage.budget import MemoryBudget
from storage.changes import SetRetentionBytes
from storage.deletes import RangeDelete
from storage.errors import Fenced
from storage.filechange import FileChange
from storage.merge import READ_BYTES_MAX
from storage.schema import NO_ROWS
from storage.shard import Append
from tests.harness.merging import merged
from tests.harness.storagenode import Ledger, StorageNode, check_node, read_all
from tests.harness.stores import MemoryStore
from tests.harness.waiting import until
from tests.integration.storage.test_shard import looped
from tests.integration.storage.test_two_owners import owner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from storage.bundlemerge import BundleJob
    from storage.merge import MergeJob
    from storage.objects import ObjectStore
    from storage.schema import DataFile


class ThreadMerger:
    """Merges in a thread. While ``gate`` is closed it waits; a table named in ``refused`` fails."""

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0
        self.shares: list[float] = []
        self.refuses = False
        self.closed = False
        self._store, self._scratch = store, scratch

    async def merge(self, job: MergeJob | BundleJob, share: float) -> Answer:
        self.begun += 1
        self.shares.append(share)
        await self.gate.wait()
        if self.refuses or self.closed:
            raise MergeFailed("refused")
        made = asyncio.to_thread(carried_out, self._store, job, self._scratch, lambda: None, READ_BYTES_MAX)
        files, runs = await made
        return Answer(0.5, files, runs=runs)

    async def rest(self) -> None:
        assert self.gate.is_set()

    async def aclose(self) -> None:
        self.closed = True
        self.gate.set()


def always(_: Sequence[DataFile]) -> str:
    return ""


class World:
    """One owner with files that are worth a merge, and what compacts them."""

    def __init__(self, tmp_path: Path) -> None:
        self.store, self.ledger = MemoryStore(), Ledger()
        self.merger = ThreadMerger(self.store, tmp_path)
        self.node: StorageNode
        self.compactor: Compactor

    async def open(self, share: float | None = 0.25, room: Any = always, files: int = 5) -> None:
        self.node = await owner(self.store, b"a")
        self.compactor = Compactor(self.node.shards.values, self.merger, share, room)
        await self.node.ensure("t0", self.ledger)
        await self.more(files)

    async def more(self, files: int) -> None:
        for _ in range(files):
            await self.node.write("t0", 3, self.ledger)
            await self.node.shards[1].checkpoint()

    @property
    def files(self) -> list[DataFile]:
        return list(self.node.shards[1].state.all_files())


@looped
async def test_it_merges_until_nothing_is_worth_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open()
    assert await world.compactor.compact() == 1
    assert len(world.files) == 1
    assert await world.compactor.compact() == 0
    assert world.merger.begun == 1
    counters = world.compactor.counters
    assert (counters.merges, counters.files_in, counters.files_out, counters.rows) == (1, 5, 1, 15)
    assert (counters.failed, counters.void, counters.waiting, counters.cpu_seconds) == (0, 0, 0, 0.5)
    assert counters.bytes_out == world.files[0].bytes
    assert await world.node.shards[1].sweep() == 5, "names are released when the merge is committed"
    await check_node(world.node, world.ledger)


async def with_bundles(world: World, checkpoints: int) -> None:
    """Three tables whose rows share an object in each Checkpoint."""
    for name in ("t0", "t1", "t2"):
        await world.node.ensure(name, world.ledger)
    for _ in range(checkpoints):
        for name in ("t0", "t1", "t2"):
            await world.node.write(name, 2, world.ledger)
        await world.node.shards[1].checkpoint()


def objects(world: World) -> set[str]:
    return {file.path for file in world.files}


@looped
async def test_f18_bundles_are_merged_into_one_and_what_they_were_is_swept(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open(files=0)
    await with_bundles(world, 5)
    assert (len(world.files), len(objects(world))) == (15, 5)
    assert await world.compactor.compact() == 1
    assert (len(world.files), len(objects(world))) == (3, 1)
    assert all(file.is_slice for file in world.files)
    assert await world.compactor.compact() == 0
    counters = world.compactor.counters
    assert (counters.merges, counters.files_in, counters.files_out, counters.rows) == (1, 15, 3, 30)
    assert await world.node.shards[1].sweep() == 5, "L20: names are released when the merge is committed"
    await check_node(world.node, world.ledger)
    heir = await owner(world.store, b"b")
    await check_node(heir, world.ledger)


@looped
async def test_f18_the_background_waits_for_several_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.compaction.LOOK_SECONDS", 0.01)
    world = World(tmp_path)
    await world.open(files=0)
    await with_bundles(world, 3)
    work = asyncio.create_task(world.compactor.run())
    await asyncio.sleep(0.1)
    assert len(objects(world)) == 3
    await with_bundles(world, 1)
    await until(lambda: len(objects(world)) == 1)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await check_node(world.node, world.ledger)


@looped
async def test_l21_a_delete_that_comes_in_mid_merge_makes_one_slice_void_and_no_other(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open(files=0)
    await with_bundles(world, 4)
    shard, table = world.node.shards[1], world.node.table("t1")
    world.merger.gate.clear()
    compacting = asyncio.create_task(world.compactor.compact())
    await until(lambda: world.merger.begun == 1)
    place = table.partitions[0].id
    await shard.append([Append(table, place, NO_ROWS, delete=RangeDelete())])
    await shard.checkpoint()
    world.merger.gate.set()
    await compacting
    assert world.compactor.counters.void == 1
    assert [len(part.files) for (table_id, _), part in shard.state.partitions.items() if table_id != table.id] == [1, 1]
    while await world.compactor.compact():
        pass
    assert shard.state.partitions[table.id, place].files == (), (
        "the delete is carried out, and nothing is left of its rows"
    )
    assert shard.state.pending() == {}
    assert [len(part.files) for part in shard.state.partitions.values()].count(1) == 2
    heir = await owner(world.store, b"b")
    assert sorted(heir.shards[1].state.all_files(), key=str) == sorted(shard.state.all_files(), key=str)


@looped
async def test_l36_under_a_limit_by_bytes_files_stay_small_enough_to_go_one_by_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open(files=12)
    size = sum(file.bytes for file in world.files)
    await world.node.catalog.alter([SetRetentionBytes("db", size, "t0")])
    await world.node.shards[1].cutoffs.by_bytes(world.node.catalog.current)
    assert await world.compactor.compact() == 0, "no merge takes more than an eighth of the limit"
    await world.node.catalog.alter([SetRetentionBytes("db", None, "t0")])
    await world.node.shards[1].cutoffs.by_bytes(world.node.catalog.current)
    await world.more(1)
    await world.compactor.compact()
    assert len(world.files) == 1
    await check_node(world.node, world.ledger)


@looped
async def test_in_the_background_it_keeps_to_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.compaction.LOOK_SECONDS", 0.01)
    world = World(tmp_path)
    await world.open(share=0.1)
    work = asyncio.create_task(world.compactor.run())
    await until(lambda: len(world.files) == 1)
    await world.more(4)
    await until(lambda: world.compactor.counters.merges == 2)
    assert set(world.merger.shares) == {0.1}
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await check_node(world.node, world.ledger)


@looped
async def test_without_a_share_only_an_operator_makes_it_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.compaction.LOOK_SECONDS", 0.001)
    world = World(tmp_path)
    await world.open(share=None)
    work = asyncio.create_task(world.compactor.run())
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert world.merger.begun == 0
    assert await world.compactor.compact() == 1
    assert world.merger.shares == [1.0]
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


@looped
async def test_an_operator_gets_everything_merged_and_the_background_only_what_pays(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open(files=3)
    assert await world.compactor._round() == 0
    assert await world.compactor.compact() == 1
    assert len(world.files) == 1
    await world.more(2)
    assert await world.compactor._round() == 0, "the operator has gone"


@looped
async def test_an_operator_waits_for_what_was_there_and_not_for_what_comes_meanwhile(tmp_path: Path) -> None:
    """Where there is a new file after every merge it would never end."""
    world = World(tmp_path)
    await world.open(share=0.25, files=3)
    merge, merges = world.merger.merge, 0

    async def merge_beside_writes(job: MergeJob | BundleJob, share: float) -> Answer:
        nonlocal merges
        merges += 1
        assert merges < 5, "no end"
        await world.more(1)
        return await merge(job, share)

    world.merger.merge = merge_beside_writes  # type: ignore[method-assign]
    assert await world.compactor.compact() == 1
    assert len(world.files) == 2
    assert await world.compactor.compact() == 1, "the next one has that too"
    await check_node(world.node, world.ledger)


@looped
async def test_l25_what_an_operator_does_not_want_merged_is_between_its_files_all_the_same(tmp_path: Path) -> None:
    """What the background has merged of older and of newer files is above `upto`, and beside some below it."""
    world = World(tmp_path)
    await world.open(files=0)
    shard = world.node.shards[1]
    for keys in ([1, 100], [50], [200], [60]):
        (part,) = world.node.parts("t0", keys, writer=1)
        await shard.append([part.append])
        await shard.checkpoint()
    ((place, state),) = [((1, *key), state) for key, state in shard.state.partitions.items()]
    _, second, _, fourth = state.files
    change, names = await merged(world.node, shard, (second, fourth))
    assert await shard.replace_files([change]) == [True]
    shard.release_names(names)
    assert await world.compactor._plan(shard, {place: fourth.order_high}) == []
    ((_, run),) = await world.compactor._plan(shard, {place: fourth.order_high + 1})
    assert set(run) == set(state.files)


@looped
async def test_what_is_remembered_of_a_table_goes_with_its_files(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open()
    await world.compactor.compact()
    assert len(world.compactor._looks) > 0
    shard = world.node.shards[1]
    await shard.replace_files([FileChange((file,), ()) for file in world.files])
    world.compactor._forgive()
    assert world.compactor._looks == {}


@looped
async def test_what_has_not_changed_for_long_is_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    await world.open(files=3)
    assert await world.compactor._round() == 0
    monkeypatch.setattr("nodes.compaction.QUIET_SECONDS", 0.0)
    assert await world.compactor._round() == 1
    assert await world.compactor._round() == 0
    await check_node(world.node, world.ledger)


@looped
async def test_a_defect_is_said_and_does_not_end_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.compaction.LOOK_SECONDS", 0.001)
    world = World(tmp_path)
    await world.open()
    asked = iter([ZeroDivisionError(), None])

    def room(_: object) -> str:
        if error := next(asked, None):
            raise error
        return ""

    world.compactor = Compactor(world.node.shards.values, world.merger, 0.5, room)
    with capture_logs() as lines:
        work = asyncio.create_task(world.compactor.run())
        await until(lambda: world.compactor.counters.merges == 1)
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["compaction failed"]
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


@looped
async def test_l21_a_shard_that_is_lost_in_mid_merge_gets_nothing_committed(tmp_path: Path) -> None:
    """The work ends at once, and the heir, who knows nothing of it, does it again."""
    world = World(tmp_path)
    await world.open()
    world.merger.gate.clear()
    compacting = asyncio.create_task(world.compactor.compact())
    await until(lambda: world.merger.begun == 1)
    before = world.files
    heir = await owner(world.store, b"b")
    with pytest.raises(Fenced):
        await world.node.shards[1].prove()  # now it knows
    assert await compacting == 0
    world.merger.gate.set()
    assert list(heir.shards[1].state.all_files()) == before
    other = Compactor(heir.shards.values, world.merger, None, always)
    assert await other.compact() == 1
    await check_node(heir, world.ledger)


@looped
async def test_a_hand_over_ends_the_merge_that_is_under_way(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open()
    world.merger.gate.clear()
    compacting = asyncio.create_task(world.compactor.compact())
    await until(lambda: world.merger.begun == 1)
    await world.node.close()
    assert await compacting == 0
    heir = await owner(world.store, b"b")
    assert len(list(heir.shards[1].state.all_files())) == 5
    await check_node(heir, world.ledger)


@looped
async def test_appends_and_checkpoints_go_on_beside_a_merge(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open()
    world.merger.gate.clear()
    compacting = asyncio.create_task(world.compactor.compact())
    await until(lambda: world.merger.begun == 1)
    await world.more(3)
    assert await world.node.shards[1].sweep() == 0
    assert sorted(await read_all(world.node)) == sorted(world.ledger.acknowledged)
    world.merger.gate.set()
    assert await compacting >= 1
    await check_node(world.node, world.ledger)


@looped
async def test_a_merge_that_fails_is_left_alone_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when there are more files since."""
    world = World(tmp_path)
    await world.open()
    world.merger.refuses = True
    for _ in range(3):
        await world.compactor._round()
    assert world.merger.begun == 1
    assert world.compactor.counters.failed == 1
    assert len(world.files) == 5
    world.merger.refuses = False
    await world.more(1)
    assert await world.compactor._round() == 0
    assert world.merger.begun == 1
    monkeypatch.setattr("nodes.compaction.FORGIVE_SECONDS", 0.0)
    world.compactor._forgive_at = 0.0
    assert await world.compactor._round() == 1
    await check_node(world.node, world.ledger)


@looped
async def test_what_there_is_no_room_for_is_put_off_and_not_forgotten(tmp_path: Path) -> None:
    reasons = ["no room", "no room", ""]
    world = World(tmp_path)
    await world.open(room=lambda _: reasons.pop(0))
    assert await world.compactor._round() == 0
    assert await world.compactor._round() == 0
    assert world.merger.begun == 0
    assert world.compactor.counters.put_off == "no room"
    assert await world.compactor._round() == 1
    assert world.compactor.counters.put_off == ""


@looped
async def test_what_was_put_off_and_needs_no_merge_any_more_is_not_reported(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open(room=lambda _: "no room")
    with capture_logs() as lines:
        assert await world.compactor._round() == await world.compactor._round() == 0
    assert [line["reason"] for line in lines] == ["no room"], "said once"
    assert world.compactor.counters.put_off == "no room"
    await world.node.shards[1].replace_files([FileChange(tuple(world.files), ())])
    assert await world.compactor.compact() == 0
    assert world.compactor.counters.put_off == ""


@looped
async def test_closing_ends_it_at_once_and_for_ever(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.open()
    world.merger.gate.clear()
    compacting = asyncio.create_task(world.compactor.compact())
    await until(lambda: world.merger.begun == 1)
    await world.compactor.aclose()
    assert await compacting == 0
    assert world.compactor.counters.failed == 0
    assert await world.compactor.compact() == 0
    await check_node(world.node, world.ledger)


def test_l23_there_is_room_only_while_memory_and_disk_are_plenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(Settings(), data=DataSettings(dir=str(tmp_path)))
    budget = MemoryBudget(1_000)
    room = Room(MemoryStore(), settings, budget, 10_000)
    files: list[Any] = []
    monkeypatch.setattr("nodes.machine.memory_free_bytes", lambda: 10_000)
    monkeypatch.setattr("nodes.compaction.DISK_SPARE_BYTES", 1)
    assert room(files) == ""
    budget.adjust(501)
    assert "half full" in room(files)
    budget.adjust(-1)
    assert room(files) == ""
    monkeypatch.setattr("nodes.machine.memory_free_bytes", lambda: 9_999)
    assert "memory" in room(files)
    monkeypatch.setattr("nodes.machine.memory_free_bytes", lambda: 10_000)
    monkeypatch.setattr("nodes.compaction.DISK_SPARE_BYTES", 2**62)
    assert str(tmp_path) in room(files)
