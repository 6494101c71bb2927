"""A node that once did not start, because of a file in a Log's folder that is no object of it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from storage.budget import MemoryBudget
from storage.log import Identity
from storage.shard import Append, Shard, ShardLimits
from storage.store import is_sequence, log_folder, object_name
from tests.harness.stores import MemoryStore
from tests.harness.tables import make_rows, make_table

TABLE: Final = make_table()


def _fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("stray", ["9", "99999", "0" * 19 + "9.bak", "000000000000000000009", "notes"])
def test_a_stray_file_hides_no_row_and_stops_no_owner(stray: str) -> None:
    store = MemoryStore()

    async def rows_after(writes: int) -> int:
        with ThreadPoolExecutor(4) as executor:
            identity = Identity(b"s" * 16, 1, b"n" * 16)
            shard = Shard(store, identity, lambda _: TABLE, MemoryBudget(2**30), executor, ShardLimits(), _fail)
            await shard.open()
            for n in range(writes):
                await shard.append([Append(TABLE, 1, make_rows([n], ["a"]))])
            await shard.prove()
            found: int = sum(batch.rows.num_rows for part in shard.snapshot(TABLE) for batch in part.tail)
            await shard.close()
        return found

    assert asyncio.run(rows_after(12)) == 12
    store.objects[f"{log_folder(1)}/{stray}"] = b""
    assert asyncio.run(rows_after(2)) == 14
    assert asyncio.run(rows_after(0)) == 14


def test_names_of_objects_and_no_others_are_sequences() -> None:
    assert is_sequence(object_name(1))
    assert is_sequence(object_name(2**63))
    assert not any(map(is_sequence, ["", "1", "²" * 20, "-" + "1" * 19, object_name(1) + "0", "0x" + "1" * 18]))
