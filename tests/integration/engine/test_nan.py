"""NaN is greater than every number, wherever its rows are: Parquet's statistics leave it out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from storage import datafile, merge
from storage.merge import MergeJob, merge_files
from storage.objects import open_store
from storage.schema import TypeKind
from tests.harness.queries import World, make_table

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 12
AT = 9
"""The row that is NaN: not in the first row group."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for module in (datafile, merge):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 4)
    fields = {"f": TypeKind.FLOAT64, "g": TypeKind.FLOAT64}
    made = World(tmp_path, make_table(fields=fields), make_table("mem", fields=fields, id=2))
    rows = [{"time": t, "host": "a", "f": math.nan if t == AT else float(t), "g": float(t)} for t in range(ROWS)]
    made.add_tail(rows)
    return made


def merge_all(world: World) -> None:
    """All files into one, twice: what is merged is merged again."""
    part, store = world.part(), open_store(str(world.folder))
    for number in range(2):
        job = MergeJob(world.table, tuple(part.files), (f"data/merged{number}.parquet",))
        part.files = merge_files(store, job, world.folder)
        world.sequence += 1
    store.close()


@pytest.mark.parametrize("form", ["tail", "file", "slice", "merged", "merged slice"])
def test_nan_is_found_and_is_the_greatest(world: World, form: str) -> None:
    if "slice" in form:
        world.add_tail([{"time": 1, "f": 1.0}], world.tables[1])
        assert all(file.is_slice for file in world.bundle())
    elif form != "tail":
        world.checkpoint()
    if "merged" in form:
        world.add_file([{"time": 100, "host": "a", "f": 1.0, "g": 1.0}])
        world.add_file([{"time": 100, "host": "a", "f": 2.0, "g": 1.0}])
        merge_all(world)
    (found,) = world.ask("SELECT max(f) AS f, max(g) AS g FROM cpu")
    assert math.isnan(found["f"])
    assert found["g"] == ROWS - 1
    for condition in ("f > 1000", "isnan(f)", "NOT f <= 1000"):
        assert world.ask(f"SELECT time FROM cpu WHERE {condition}") == [{"time": AT}], condition


def test_only_the_column_with_nan_has_no_statistics(world: World) -> None:
    file = world.checkpoint()
    assert file is not None
    metadata = pq.read_metadata(world.folder / file.path)
    columns = [metadata.row_group(0).column(place) for place in range(metadata.num_columns)]
    names = {column.name: world.table.by_storage_name.get(column.name) for column in metadata.schema}
    without = {c.path_in_schema for c in columns if c.statistics is None}
    assert [column.name for name, column in names.items() if name in without and column is not None] == ["f"]
