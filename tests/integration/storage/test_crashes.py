"""A crash at every I/O step of the real Shard, Catalog and drivers: nothing acknowledged is lost or stands twice
(LOG L4, L5, L6, L7, L9, L10, L15, L16, L18, L19, L20, L22, L24, L28).

Each test names its seeds; `python -m tests.harness.crashruns --first SEED --step STEP [--faults]` repeats a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from storage.errors import LogDamaged, StorageError, StoreFull, StoreUnavailable
from storage.frames import decode_object
from storage.shard import Shard
from storage.shardstate import ShardState
from tests.harness.crashruns import FAULTY, compacting, run
from tests.harness.storagenode import Ledger, SimExecutor, StorageNode, check_node, check_rows, read_all
from tests.harness.stores import Fault, FaultStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from storage.frames import Entry, LogObject


@pytest.mark.timeout(300)
def test_a_crash_at_every_step() -> None:
    whole = run(1)
    assert whole.unknown == 0
    assert any("parts/" in step or "data/" in step for step in whole.trail)
    assert any(step.startswith("after delete logs/") for step in whole.trail), "nothing was collected (L19)"
    unknown = acknowledged = 0
    for step in range(1, whole.steps + 1):
        seen = run(1, crash_at=step)
        unknown += seen.unknown
        acknowledged += seen.acknowledged
    assert unknown > 100
    assert acknowledged > 1000


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("seed", "rates"), [(1, None), (2, FAULTY), (5, FAULTY)])
def test_l21_a_crash_at_every_step_of_a_compaction(seed: int, rates: dict[Fault, float] | None) -> None:
    whole = run(seed, rates=rates, work=compacting)
    assert any(step.startswith("after delete data/") for step in whole.trail), "files were replaced and swept"
    is_bundled = any("delete data/" in step and "/bundles/" in step for step in whole.trail)
    assert is_bundled or seed % 2 == 0, "F18: so were bundles"
    for step in range(1, whole.steps + 1, 2 if rates is None else 4):
        run(seed, step, rates, compacting)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", [21, 31, 41])
def test_a_crash_while_the_store_misbehaves(first: int) -> None:
    """Lost answers, 409, refusals, a full disk, and creates that land when nobody waits for them any more (L6)."""
    fired: Counter[Fault] = Counter()
    for seed in range(first, first + 8):
        whole = run(seed, rates=FAULTY)
        fired += whole.fired
        for step in range(seed % 8 + 1, whole.steps + 1, 8):
            fired += run(seed, step, FAULTY).fired
    assert {fault for fault in FAULTY if fired[fault]} == set(FAULTY)


# -- the check itself: each of these breaks one rule, and it must be noticed --------------------------------


def broken() -> dict[str, Callable[[], Any]]:
    def without_ids(self: ShardState, obj: LogObject, payloads: Sequence[object] = ()) -> None:
        kept_apply(self, obj, payloads)
        self.write_ids.clear()

    def covers_too_much(self: ShardState) -> Any:
        frozen = kept_freeze(self)
        return type(frozen)(
            **{name: getattr(frozen, name) for name in frozen.__slots__} | {"covered": self.position + 1}
        )

    def forgets_files(self: ShardState, sequence: int, covered: int, sections: Sequence[Entry]) -> None:
        prepared, self.prepared = self.prepared, None
        assert prepared is not None
        self.prepared = type(prepared)(prepared.covered, (), (), (), {})
        kept_checkpointed(self, sequence, covered, sections)

    kept_apply, kept_freeze, kept_checkpointed = ShardState.apply, ShardState.freeze, ShardState.checkpointed
    return {
        "L7: write ids are forgotten": lambda: mock.patch.object(ShardState, "apply", without_ids),
        "L18: a checkpoint covers what came after": lambda: mock.patch.object(ShardState, "freeze", covers_too_much),
        "L22: files do not take over": lambda: mock.patch.object(ShardState, "checkpointed", forgets_files),
    }


@pytest.mark.parametrize("rule", broken())
def test_the_check_notices(rule: str) -> None:
    steps = [n for n, name in enumerate(run(1).trail, 1) if re.match("after create logs/[12]", name)]
    noticed = 0
    with broken()[rule]():
        for step in steps:
            try:
                run(1, step)
            except (AssertionError, StorageError):
                noticed += 1
    assert noticed > 0


# -- a store that tears (L3) -------------------------------------------------------------------------------


def in_a_loop(work: Callable[[], Any]) -> None:
    with mock.patch("storage.logdriver.pause_seconds", return_value=0.0):
        asyncio.run(work())


async def reopened(store: MemoryStore) -> StorageNode:
    node = StorageNode(store, SimExecutor(9), name=b"b")
    await node.open()
    return node


@pytest.mark.parametrize("seed", range(4))
def test_l3_a_torn_object_is_never_acknowledged_and_closes_its_shard_alone(seed: int) -> None:
    """No store of ours tears; a broken disk may. After `store skip` all that was acknowledged is there."""
    inner, ledger = MemoryStore(), Ledger()

    async def first() -> None:
        store = FaultStore(inner, seed=seed)
        node = StorageNode(store, SimExecutor(seed), name=b"a")
        await node.open()
        await node.ensure("t0", ledger)
        await node.write("t0", 20, ledger)
        store.arm(Fault.TORN, match="logs/1/*")
        await node.write("t0", 20, ledger)
        assert isinstance(await asyncio.wait_for(node.shards[1].closed, 5), StorageError)
        assert not node.shards[2].driver.closed.done()
        torn = {key for part in ledger.unanswered if part.log_id == 1 for key in part.keys}
        assert torn
        assert store.fired[Fault.TORN] == 1

    async def second() -> None:
        node = StorageNode(inner, SimExecutor(seed), name=b"b")
        with pytest.raises(LogDamaged, match="log 1 object 3"):
            await node.open()
        await node.shards[2].prove()

    async def third() -> None:
        node = StorageNode(inner, SimExecutor(seed), name=b"c")
        with mock.patch("storage.shard.Shard.open", opens_without(3)):
            await node.open()
        check_rows(await read_all(node), ledger)
        await node.write("t0", 20, ledger)
        check_rows(await read_all(node), ledger)

    for life in (first, second, third):
        in_a_loop(life)


def opens_without(sequence: int) -> Any:
    opened = Shard.open

    async def open_it(self: Shard) -> None:
        await opened(self, frozenset({sequence}) if self.log_id == 1 else frozenset())

    return open_it


def test_l3_an_object_that_rots_between_others_costs_its_own_rows_only() -> None:
    """Offsets have a hole where the object was; what follows it is applied."""
    inner, ledger = MemoryStore(), Ledger()

    async def first() -> None:
        node = StorageNode(inner, SimExecutor(1), name=b"a")
        await node.open(logs=[1], partitions=1)
        await node.ensure("t0", ledger)
        for _ in range(3):
            await node.write("t0", 4, ledger)
        path = "logs/1/00000000000000000003"
        obj = decode_object(inner.get(path), path)
        assert obj.entries[0].base_offset == 4
        content = bytearray(inner.get(path))
        content[-20] ^= 1
        inner.objects[path] = bytes(content)

    async def second() -> None:
        node = StorageNode(inner, SimExecutor(1), name=b"b")
        with pytest.raises(LogDamaged, match="log 1 object 3"):
            await node.open(logs=[1])
        node = StorageNode(inner, SimExecutor(1), name=b"c")
        with mock.patch("storage.shard.Shard.open", opens_without(3)):
            await node.open(logs=[1])
        (table,) = node.catalog.current.tables("db")
        (part,) = node.shards[1].snapshot(table)
        numbers = [n for batch in part.tail for n in batch.rows.column("n").to_pylist()]
        assert numbers == [1, 2, 3, 4, 9, 10, 11, 12]
        assert [batch.first_offset for batch in part.tail] == [0, 8]

    in_a_loop(first)
    in_a_loop(second)


def test_l9_one_stale_listing_takes_nothing_over_wrongly() -> None:
    inner, ledger = MemoryStore(), Ledger()

    async def first() -> None:
        node = StorageNode(inner, SimExecutor(1), name=b"a")
        await node.open()
        await node.ensure("t0", ledger)
        for _ in range(4):
            await node.write("t0", 5, ledger)
        await node.shards[1].checkpoint()
        await node.write("t0", 5, ledger)

    async def second() -> None:
        store = FaultStore(inner, seed=3)
        for log_id in range(3):
            store.arm(Fault.STALE_LISTING, call="list", match=f"logs/{log_id}")
        node = StorageNode(store, SimExecutor(2), name=b"b")
        await node.open()
        assert store.fired[Fault.STALE_LISTING] == 3
        await check_node(node, ledger)

    in_a_loop(first)
    in_a_loop(second)


# -- memory and ids when something goes wrong on the way ----------------------------------------------------


def small_node(store: Any, seed: int = 1) -> StorageNode:
    return StorageNode(store, SimExecutor(seed), name=b"a")


def test_l23_a_group_that_failed_gives_its_memory_back_at_once() -> None:
    ledger = Ledger()

    async def work() -> None:
        store = FaultStore(MemoryStore())
        node = small_node(store)
        await node.open()
        await node.ensure("t0", ledger)
        store.arm(Fault.FULL, match="logs/[12]/*", times=50)
        for _ in range(25):
            await node.write("t0", 40, ledger)
            await asyncio.sleep(0)
        assert store.fired[Fault.FULL] >= 25
        assert len(ledger.failed) == 25 * 40
        assert node.budget.used == 0
        await node.close()

    in_a_loop(work)


def test_l7_a_cancelled_caller_leaks_nothing_and_its_retry_is_one_row() -> None:
    ledger = Ledger()

    async def work() -> None:
        node = small_node(MemoryStore())
        await node.open(logs=[1], partitions=1)
        await node.ensure("t0", ledger)
        (part,) = node.parts("t0", ledger.take(7), writer=1)
        ledger.unanswered.append(part)
        task = asyncio.ensure_future(node.shards[1].append([part.append]))
        await asyncio.sleep(0)
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        assert node.shards[1].state.position < 2, "the create is under way"
        both = await asyncio.gather(*(node.shards[1].append([part.append]) for _ in range(2)))
        assert both == [[0], [0]]
        await node.retry(part, ledger)
        check_rows(found := await read_all(node), ledger)
        assert len(found) == 7
        assert node.budget.used == node.shards[1].state.tail_bytes
        await node.close()
        assert node.budget.used == 0

    in_a_loop(work)


def test_l7_an_id_that_is_named_twice_in_one_call_is_written_once() -> None:
    ledger = Ledger()

    async def work() -> None:
        node = small_node(MemoryStore())
        await node.open(logs=[1], partitions=1)
        await node.ensure("t0", ledger)
        (part,) = node.parts("t0", ledger.take(3), writer=1)
        (anonymous,) = node.parts("t0", ledger.take(2), writer=1)
        anonymous.append = type(part.append)(anonymous.append.table, 1, anonymous.append.rows)
        answer = await node.shards[1].append([part.append, anonymous.append, part.append])
        assert answer == [0, 3, 0]
        assert await node.shards[1].append([part.append]) == [0]
        assert len(await read_all(node)) == 5

    in_a_loop(work)


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.UNAVAILABLE, Fault.LOST_ANSWER, Fault.CONFLICT])
@pytest.mark.parametrize("where", ["data/*", "parts/*", "logs/1/*"])
def test_l18_a_checkpoint_that_fails_midway_is_made_again(fault: Fault, where: str) -> None:
    ledger = Ledger()
    store = FaultStore(MemoryStore())

    async def work() -> None:
        node = small_node(store)
        await node.open(logs=[1], partitions=1)
        await node.ensure("t0", ledger)
        await node.write("t0", 5, ledger)
        store.arm(fault, match=where)
        shard = node.shards[1]
        with mock.patch("storage.shardstate.FILES_INLINE_MAX", 0):
            with contextlib.suppress(StoreFull, StoreUnavailable):
                await shard.checkpoint()
            await node.write("t0", 5, ledger)
            await shard.checkpoint()
        assert store.fired[fault] == 1
        assert shard.state.prepared is None
        assert shard.state.objects_above_k == 0
        assert node.budget.used == 0
        await check_node(node, ledger)
        assert await shard.sweep() <= 2  # what the failed one left behind
        await check_node(node, ledger)

    in_a_loop(work)
    in_a_loop(lambda: _look(store.inner, ledger))


async def _look(store: Any, ledger: Ledger) -> None:
    await check_node(await reopened(store), ledger)


def test_l18_a_cancelled_caller_does_not_split_a_checkpoint() -> None:
    """The next one waits for the outcome: its state must not be taken for the first one's."""
    ledger = Ledger()
    inner = MemoryStore()

    async def work() -> None:
        node = small_node(inner)
        await node.open(logs=[1], partitions=1)
        await node.ensure("t0", ledger)
        for rounds in range(1, 30):
            await node.write("t0", 2, ledger)
            task = asyncio.ensure_future(node.shards[1].checkpoint())
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await node.shards[1].checkpoint()
            await check_node(node, ledger)
        await node.close()
        assert node.budget.used == 0

    in_a_loop(work)
    in_a_loop(lambda: _look(inner, ledger))


def test_l28_a_cancelled_change_is_seen_by_the_next() -> None:
    ledger = Ledger()
    inner = MemoryStore()

    async def work() -> None:
        node = small_node(inner)
        await node.open(logs=[1], partitions=1)
        for rounds in range(8):
            task = asyncio.ensure_future(node.ensure(f"t{rounds}", Ledger()))
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await node.ensure(f"u{rounds}", ledger)
        revisions = node.catalog.current.revision
        assert len(node.catalog.current.tables_by_id) <= revisions
        await node.close()

    in_a_loop(work)
    in_a_loop(lambda: _look(inner, ledger))


def test_a_change_stands_even_if_the_checkpoint_after_it_fails() -> None:
    ledger = Ledger()
    store = FaultStore(MemoryStore())

    async def work() -> None:
        node = small_node(store)
        await node.open(logs=[1], partitions=1)
        with mock.patch("storage.catalog.CHECKPOINT_OBJECTS", 2):
            await node.ensure("a", ledger)
            store.arm(Fault.FULL, match="logs/0/*00000000000000000004")
            for name in "bcd":
                await node.ensure(name, ledger)
                for _ in range(30):
                    await asyncio.sleep(0)
        assert node.catalog.state.k > 0
        await node.close()

    in_a_loop(work)
    in_a_loop(lambda: _look(store.inner, ledger))


def steps_of(store: FaultStore, prefix: str) -> Iterator[str]:
    return (step for step in store.trail if step.startswith(prefix))


def test_l34_a_failed_fsync_during_a_checkpoint_ends_the_process() -> None:
    ledger = Ledger()

    async def work() -> None:
        store = FaultStore(MemoryStore())
        node = small_node(store)
        await node.open(logs=[1], partitions=1)
        await node.ensure("t0", ledger)
        await node.write("t0", 5, ledger)
        store.arm(Fault.FSYNC, match="data/*")
        with pytest.raises(StorageError):
            await node.shards[1].checkpoint()
        assert [getattr(error, "code", None) for error in node.fatal] == ["fsync_failed"]
        assert len(list(steps_of(store, "before create data/"))) == 1, "it was not tried again"

    in_a_loop(work)


def test_a_defect_in_the_checkpoint_is_not_silent() -> None:
    """Without checkpoints a shard would fill up unseen."""
    ledger = Ledger()

    async def work() -> None:
        node = small_node(MemoryStore())
        await node.open(logs=[1], partitions=1)
        await node.ensure("t0", ledger)
        await node.write("t0", 5, ledger)
        with mock.patch("storage.shard.write_datafile", side_effect=ZeroDivisionError):
            node.shards[1].request_checkpoint()
            for _ in range(50):
                await asyncio.sleep(0)
        assert [type(error) for error in node.fatal] == [ZeroDivisionError]
        await node.close()

    in_a_loop(work)


def test_the_checkpoint_loop_goes_on_after_a_failure() -> None:
    ledger = Ledger()

    async def work() -> None:
        store = FaultStore(MemoryStore())
        node = small_node(store)
        await node.open(logs=[1], partitions=1)
        await node.ensure("t0", ledger)
        await node.write("t0", 5, ledger)
        store.arm(Fault.FULL, match="data/*", times=3)
        with mock.patch("storage.shard.CHECKPOINT_PAUSE_SECONDS", 0.0):
            node.shards[1].request_checkpoint()
            for _ in range(200):
                await asyncio.sleep(0)
        assert store.fired[Fault.FULL] == 3
        assert node.shards[1].state.objects_above_k == 0
        assert node.fatal == []
        await node.close()

    in_a_loop(work)
