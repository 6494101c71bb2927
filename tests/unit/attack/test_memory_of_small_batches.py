"""Memory that many small batches once took without being counted: of one row, a hundred times its values."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from storage.budget import MemoryBudget
from storage.errors import MemoryExhausted
from storage.log import Identity
from storage.shard import Append, Shard, ShardLimits
from storage.shardstate import COLUMN_BYTES, held_bytes
from tests.harness.stores import MemoryStore
from tests.harness.tables import make_rows, make_table

TABLE: Final = make_table()
BUDGET_BYTES: Final = 1024 * 1024
MEASURED_COLUMN_BYTES: Final = 700
"""Resident memory for each column of a one-row batch, at least (pyarrow 25, x86-64)."""


def test_batches_of_one_row_are_refused_before_they_hold_more_than_the_budget() -> None:
    async def main() -> int:
        taken = 0
        budget = MemoryBudget(BUDGET_BYTES)
        with ThreadPoolExecutor(4) as executor:
            identity = Identity(b"s" * 16, 1, b"n" * 16)
            shard = Shard(MemoryStore(), identity, lambda _: TABLE, budget, executor, ShardLimits(), _fail)
            await shard.open()
            with contextlib.suppress(MemoryExhausted):
                while taken < BUDGET_BYTES // MEASURED_COLUMN_BYTES:
                    await shard.append([Append(TABLE, 1, make_rows([taken], ["a"]))])
                    taken += 1
            assert budget.used <= BUDGET_BYTES
            await shard.close()
        return taken

    taken = asyncio.run(main())
    columns = make_rows([1], ["a"]).num_columns
    assert 0 < taken * columns * MEASURED_COLUMN_BYTES <= BUDGET_BYTES


def test_of_a_large_batch_the_values_are_what_counts() -> None:
    rows = make_rows(range(100_000), ["a"] * 100_000)
    assert held_bytes(rows) - rows.get_total_buffer_size() == COLUMN_BYTES * (rows.num_columns + 1)
    assert held_bytes(rows) < 1.01 * rows.get_total_buffer_size()


def _fail(error: BaseException) -> None:
    raise error
