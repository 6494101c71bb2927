"""A workload on a store that stops the world at one I/O step, and the check of what it left behind.

`run(seed, ...)` is one life of a pretended process, its death, and the next one's look at what stands. The same
arguments give the same run. `python -m tests.harness.crashruns --help` is the long form of what CI does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

from storage.errors import StorageError
from tests.harness.merging import merge_all
from tests.harness.storagenode import Ledger, SimExecutor, StorageNode, check_node
from tests.harness.stores import Crash, Fault, FaultStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from storage.shard import Shard

TABLES = ("t0", "t1")
FAULTY: Mapping[Fault, float] = {
    Fault.LOST_ANSWER: 0.06, Fault.LOST_REQUEST: 0.04, Fault.LATE: 0.06, Fault.CONFLICT: 0.04,
    Fault.UNAVAILABLE: 0.05, Fault.FULL: 0.04,
}  # fmt: skip


@dataclass
class Outcome:
    """What one run saw."""

    steps: int
    acknowledged: int
    failed: int
    unknown: int
    fired: Counter[Fault] = field(default_factory=Counter)
    trail: list[str] = field(default_factory=list)


class CrashStore(FaultStore):
    """A `FaultStore` that says at once that the world has stopped."""

    def __init__(self, inner: Any, **options: Any) -> None:
        super().__init__(inner, sleep=lambda _: None, **options)
        self.crashed = asyncio.Event()

    def _step(self, name: str) -> None:
        try:
            super()._step(name)
        except Crash:
            self.crashed.set()
            raise


async def workload(node: StorageNode, ledger: Ledger, seed: int) -> None:
    """Catalog changes, appends of three clients, checkpoints, collection and sweeps, at once and in a drawn order."""
    draw = random.Random(seed)
    try:
        await node.open()
    except StorageError:
        return  # it could not start, and says so
    for table in TABLES:
        with contextlib.suppress(StorageError):
            await node.ensure(table, ledger)
    await asyncio.gather(
        client(node, ledger, draw, 1), client(node, ledger, draw, 2), client(node, ledger, draw, 3),
        keeper(node, ledger, draw),
    )  # fmt: skip


async def client(node: StorageNode, ledger: Ledger, draw: random.Random, writer: int) -> None:
    for _ in range(5):
        name = draw.choice(TABLES)
        if node.catalog.current.table("db", name) is not None:
            await node.write(name, draw.choice((1, 2, 3, 40)), ledger, writer)
        for _ in range(draw.randrange(6)):
            await asyncio.sleep(0)


async def keeper(node: StorageNode, ledger: Ledger, draw: random.Random) -> None:
    shards = list(node.shards.values())
    chores: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        *(shard.checkpoint for shard in shards), *(shard.sweep for shard in shards), node.catalog.checkpoint,
        *(shard.prove for shard in shards), shards[0].checkpoint,
        lambda: node.ensure("t0", ledger, ["n", "extra"]), lambda: node.ensure("t2", ledger),
    ]  # fmt: skip
    draw.shuffle(chores)
    for chore in chores:
        for _ in range(draw.randrange(12)):
            await asyncio.sleep(0)
        with contextlib.suppress(StorageError):
            await chore()


async def compacting(node: StorageNode, ledger: Ledger, seed: int) -> None:
    """Some files in each shard; then appends, checkpoints, compactions and sweeps at once (LOG L20, L21).

    With an odd seed each Checkpoint has rows of several tables, which share a bundle (FORMAT F18).
    """
    draw = random.Random(seed)
    names = ("t0", "t1", "t2") if seed % 2 else ("t0",)
    try:
        await node.open()
    except StorageError:
        return
    shards = list(node.shards.values())
    for _ in range(3):
        with contextlib.suppress(StorageError):
            for name in names:
                await node.ensure(name, ledger)
                await node.write(name, 20, ledger)
            await asyncio.gather(*(shard.checkpoint() for shard in shards))
    await asyncio.gather(client(node, ledger, draw, 1), *(compactor(node, shard, draw) for shard in shards))


async def compactor(node: StorageNode, shard: Shard, draw: random.Random) -> None:
    for _ in range(2):
        chores: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            partial(merge_all, node, shard), shard.checkpoint, shard.sweep,
        ]  # fmt: skip
        for chore in draw.sample(chores, 3):
            for _ in range(draw.randrange(6)):
                await asyncio.sleep(0)
            with contextlib.suppress(StorageError):
                await chore()


async def live(store: CrashStore, work: Coroutine[Any, Any, Any]) -> None:
    """Until the work is done or the world stops; raises what the work raises of its own."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(store.crashed.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if task.done() and not store.crashed.is_set():
        stopped.cancel()
        task.result()
        return
    for other in asyncio.all_tasks() - {asyncio.current_task()}:
        other.cancel()
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)


async def after(node: StorageNode, ledger: Ledger, draw: random.Random, late: Callable[[], object]) -> None:
    """The next process: opens, looks, lets the late creates land, takes retries, works on, looks again."""
    if draw.random() < 0.5:
        late()
    await node.open()
    await check_node(node, ledger)
    late()
    await check_node(node, ledger)
    for part in [p for p in ledger.unanswered if draw.random() < 0.6]:
        await node.retry(part, ledger)
    await check_node(node, ledger)
    for shard in node.shards.values():
        await shard.checkpoint()
        await merge_all(node, shard)
        await shard.sweep()
    await node.ensure("t0", ledger, ["n", "last"])
    await node.write("t0", 5, ledger, 9)
    await check_node(node, ledger)


def in_a_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """`asyncio.run`, quiet about the dead."""

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await work()

    asyncio.run(main())


def run(
    seed: int,
    crash_at: int | None = None,
    rates: Mapping[Fault, float] | None = None,
    work: Callable[[StorageNode, Ledger, int], Coroutine[Any, Any, None]] = workload,
) -> Outcome:
    """One life, its end, and what the next one finds. Raises AssertionError when a promise was broken."""
    inner, ledger, draw = MemoryStore(), Ledger(), random.Random(seed)
    seen = Outcome(0, 0, 0, 0)
    late: list[FaultStore] = []

    async def first() -> None:
        store = CrashStore(inner, seed=seed, rates=rates, crash_at=crash_at)
        late.append(store)
        node = StorageNode(store, SimExecutor(seed), name=b"a")
        await live(store, work(node, ledger, seed))
        seen.steps, seen.fired, seen.trail = store.steps, store.fired, store.trail
        assert node.fatal == [] or store.crashed.is_set(), node.fatal

    async def second() -> None:
        node = StorageNode(inner, SimExecutor(seed + 1), name=b"b")
        await after(node, ledger, draw, late[0].land_late)
        await node.close()
        held = node.budget.used
        assert held == 0, f"{held} bytes of the budget were never given back"

    with mock.patch("storage.logdriver.pause_seconds", return_value=0.0):
        in_a_loop(first)
        in_a_loop(second)
    seen.acknowledged, seen.failed, seen.unknown = len(ledger.acknowledged), len(ledger.failed), len(ledger.unknown())
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description="Crash at every I/O step of seeded workloads, and check what stands.")
    parser.add_argument("--seeds", type=int, default=5, help="workloads to crash at every step")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--step", type=int, help="only this step: to look at one failure again")
    parser.add_argument("--faults", action="store_true", help="lose answers, delay creates and refuse on the way")
    options = parser.parse_args()
    rates = FAULTY if options.faults else None
    fired: Counter[Fault] = Counter()
    for seed in range(options.first, options.first + options.seeds):
        begun = time.monotonic()
        whole = run(seed, rates=rates)
        steps = [options.step] if options.step else range(1, whole.steps + 1)
        for step in steps:
            try:
                fired += run(seed, step, rates).fired
            except BaseException:
                print(f"seed {seed}, step {step}{', faults' if rates else ''}: FAILED", file=sys.stderr)
                raise
        print(f"seed {seed}: {len(steps)} crashes held, {time.monotonic() - begun:.1f} s, {whole.acknowledged} rows")
    print("fired:", dict(fired))
    return 0


if __name__ == "__main__":
    sys.exit(main())
