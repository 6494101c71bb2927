"""Writers and readers that once waited for ever, because what drives the Log had ended unseen."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import pytest

from storage.budget import MemoryBudget
from storage.errors import FsyncFailed, OutcomeUnknown, ShardClosed, StorageError
from storage.log import Identity
from storage.shard import Append, Shard, ShardLimits
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.harness.tables import make_rows, make_table

if TYPE_CHECKING:
    from storage.objects import Buffers, CreateOutcome, Listing

ANSWER_SECONDS_MAX: Final = 5.0
TABLE: Final = make_table()
IDENTITY: Final = Identity(b"s" * 16, 1, b"n" * 16)


class DefectiveStore(MemoryStore):
    """Raises what no store is meant to raise: a thread that cannot be started, a defect."""

    is_broken = False

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        if self.is_broken:
            raise RuntimeError("can't start new thread")
        return super().create(path, data)

    def list(self, folder: str, start: str = "") -> Listing:
        if self.is_broken:
            raise RuntimeError("can't start new thread")
        return super().list(folder, start)


async def _write_and_read_over(store: FaultStore, break_it: Fault | None) -> list[BaseException]:
    """Open a shard, break its store, write twice and read; what ended the process."""
    fatal: list[BaseException] = []
    with ThreadPoolExecutor(4) as executor:
        shard = Shard(
            store, IDENTITY, lambda _: TABLE, MemoryBudget(2**30), executor, ShardLimits(), fatal.append
        )  # fmt: skip
        await shard.open()
        await shard.append([Append(TABLE, 1, make_rows([1], ["a"]))])
        if break_it is None:
            assert isinstance(store.inner, DefectiveStore)
            store.inner.is_broken = True
        else:
            store.arm(break_it)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            sent = asyncio.ensure_future(shard.append([Append(TABLE, 1, make_rows([2], ["a"]))]))
            await asyncio.sleep(0)
            queued = asyncio.ensure_future(shard.append([Append(TABLE, 1, make_rows([3], ["a"]))]))
            read = asyncio.ensure_future(shard.prove())
            with pytest.raises(OutcomeUnknown):
                await sent
            with pytest.raises(StorageError):
                await queued
            with pytest.raises(StorageError):
                await read
            with pytest.raises(ShardClosed):
                await shard.append([Append(TABLE, 1, make_rows([4], ["a"]))])
        await shard.close()
    return fatal


def test_a_write_hears_unknown_when_its_create_fails_in_a_way_that_nobody_foresaw() -> None:
    (error,) = asyncio.run(_write_and_read_over(FaultStore(DefectiveStore()), None))
    assert isinstance(error, RuntimeError)


def test_a_write_hears_unknown_when_fsync_fails() -> None:
    (error,) = asyncio.run(_write_and_read_over(FaultStore(MemoryStore()), Fault.FSYNC))
    assert isinstance(error, FsyncFailed)


def test_an_opening_that_fails_in_a_way_that_nobody_foresaw_ends() -> None:
    async def main() -> list[BaseException]:
        fatal: list[BaseException] = []
        store = DefectiveStore()
        store.is_broken = True
        with ThreadPoolExecutor(4) as executor:
            shard = Shard(
                store, IDENTITY, lambda _: TABLE, MemoryBudget(2**30), executor, ShardLimits(), fatal.append
            )  # fmt: skip
            with pytest.raises(RuntimeError, match="new thread"):
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    await shard.open()
            await shard.close()
        return fatal

    (error,) = asyncio.run(main())
    assert isinstance(error, RuntimeError)
