"""Memory that kept views once held for ever: the tail of every table that was read, long after it was in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from storage.schema import TypeKind
from tests.harness.queries import World, make_table

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Engine

TABLES: Final = 12
ROWS: Final = 20_000
KEPT_BYTES: Final = 8 * 2**20


def test_tables_that_were_read_once_do_not_keep_their_tails(tmp_path: Path) -> None:
    tables = [make_table(f"t{n}", fields={"s": TypeKind.STRING}, id=n + 1) for n in range(TABLES)]
    world = World(tmp_path, *tables)

    async def read_all(engine: Engine) -> list[int]:
        held = []
        for table in tables:
            strings = pa.array([f"{n:0100d}" for n in range(ROWS)])
            times = pa.array(range(ROWS), pa.timestamp("ns"))
            hosts = pa.array(["a"] * ROWS).dictionary_encode()
            world.add_batch(pa.RecordBatch.from_pydict({"time": times, "c1": hosts, "c100": strings}), table)
            assert await world.rows(engine, f"SELECT count(s) AS n FROM {table.name}") == [{"n": ROWS}]
            world.checkpoint(table)
            world.part(table).history.clear()
            del strings, times, hosts
            held.append(pa.total_allocated_bytes())
        return held

    held = world.run(read_all, tails_bytes_max=KEPT_BYTES)
    one = held[0]
    assert one > ROWS * 100, "a tail's bytes are seen here"
    assert held[-1] <= 2 * KEPT_BYTES + one
    assert held[-1] < TABLES * one / 2
