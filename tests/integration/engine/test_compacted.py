"""Queries over files that were merged, in any runs and cut at any times, answer as before (LOG L25, F11)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from storage.compaction import Layers
from storage.merge import MergeJob, merge_files
from storage.objects import open_store
from storage.schema import TypeKind
from tests.harness.queries import Row, World, make_table, sorted_rows

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = {"a": TypeKind.INT64, "b": TypeKind.INT64, "c": TypeKind.STRING}
TABLE = make_table("m", ("host", "zone"), FIELDS)
STATEMENTS = (
    "SELECT * FROM m",
    "SELECT host, count(*) AS n, sum(a) AS a, max(c) AS c FROM m GROUP BY host",
    "SELECT * FROM m WHERE time >= to_timestamp_nanos(30) AND time < to_timestamp_nanos(60)",
    "SELECT count(*) AS n FROM m WHERE b > 50",
)


def some_rows(chooser: random.Random, low: int, width: int) -> list[Row]:
    """Points in a window of time; each names some fields, many were written before."""
    rows = []
    for _ in range(chooser.randrange(1, 30)):
        row: Row = {"time": low + chooser.randrange(width), "host": chooser.choice("xyz")}
        if chooser.random() < 0.4:
            row["zone"] = chooser.choice(["1", "ü"])
        row |= {name: chooser.randrange(100) for name in chooser.sample("ab", chooser.randint(1, 2))}
        if chooser.random() < 0.3:
            row["c"] = chooser.choice(["", "text"])
        rows.append(row)
    return rows


def merge_some(world: World, chooser: random.Random, target_bytes: int) -> bool:
    """Merge a random run, if what was drawn is one."""
    part = world.part()
    layers = Layers.of(part.files)
    chosen = sorted(chooser.sample(range(len(part.files)), min(len(part.files), chooser.randint(2, 5))))
    if len(chosen) < 2 or not layers.is_run(chosen):
        return False
    run = tuple(layers.files[i] for i in chosen)
    names = tuple(f"data/1/1/{TABLE.id}/1-{chooser.getrandbits(128):032x}.parquet" for _ in range(99))
    store = open_store(str(world.folder))
    made = merge_files(store, MergeJob(TABLE, run, names), world.folder, target_bytes=target_bytes)
    store.close()
    part.files = [f for f in part.files if f not in run] + made
    world.sequence += 1
    return True


@pytest.mark.parametrize("seed", range(6))
def test_merges_change_no_answer(tmp_path: Path, seed: int) -> None:
    chooser = random.Random(seed)
    world = World(tmp_path, TABLE)
    merges = 0
    for _ in range(8):
        for _ in range(chooser.randint(1, 4)):
            wide = chooser.random() < 0.5
            world.add_file(some_rows(chooser, 0 if wide else chooser.randrange(80), 100 if wide else 10))
        merges += merge_some(world, chooser, chooser.choice([2**30, 3_000]))
        merges += merge_some(world, chooser, chooser.choice([2**30, 3_000]))
    world.add_tail(some_rows(chooser, 0, 100))
    assert merges > 2
    assert sorted_rows(world.ask(STATEMENTS[0])) == sorted_rows(world.expected())
    answers = [sorted_rows(world.ask(statement)) for statement in STATEMENTS]
    for _ in range(20):
        if merge_some(world, chooser, chooser.choice([2**30, 3_000])):
            assert [sorted_rows(world.ask(statement)) for statement in STATEMENTS] == answers
