"""Which rows a range delete takes: plain columns and dictionaries, of any shape, say the same (LOG L26)."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from storage.deletes import TIME_MAX, TIME_MIN, RangeDelete, TagValues
from tests.harness.queries import make_table

TABLE = make_table(tags=("host",))
VALUES = (None, "", "a", "b", "ü", "xx")


@pytest.mark.parametrize("seed", range(50))
def test_l26_tags_of_any_encoding(seed: int) -> None:
    chooser = random.Random(seed)
    dictionary = pa.array(chooser.choices(VALUES, k=chooser.randrange(1, 9)), pa.string())
    chunks = []
    for _ in range(chooser.randrange(3)):
        places = pa.array(chooser.choices((None, *range(len(dictionary))), k=chooser.randrange(12)), pa.int32())
        chunks.append(pa.DictionaryArray.from_arrays(places, dictionary)[chooser.randrange(3) :])
    column = pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))
    wanted = tuple(chooser.sample(VALUES, chooser.randrange(1, 4)))
    delete = RangeDelete(TIME_MIN, TIME_MAX, (TagValues(1, wanted),))
    times = pa.array(range(len(column)), pa.timestamp("ns"))
    expected = [value in wanted for value in column.to_pylist()]
    for tags in (column, column.cast(pa.string())):
        rows = pa.table({"time": times, "c1": tags})
        assert delete.matches(TABLE, rows).tolist() == expected
