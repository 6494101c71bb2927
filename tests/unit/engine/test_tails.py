"""Folded tails are extended, not made again, and always equal to a fold from the start."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.tails
from engine.tails import TailCache, extend
from storage.fold import fold, fold_rows
from storage.schema import Column, PartitionSnapshot, Role, Table, TailBatch, TypeKind

TABLE = Table(
    1, "u", 1, "m", 1,
    (
        Column(0, "time", "time", Role.TIME, TypeKind.TIMESTAMP),
        Column(1, "host", "host", Role.TAG, TypeKind.STRING),
        Column(2, "a", "a", Role.FIELD, TypeKind.INT64),
        Column(3, "b", "b", Role.FIELD, TypeKind.INT64),
    ),
    (),
)  # fmt: skip


def batch(first: int, rows: list[tuple[int, str | None, int | None, int | None]]) -> TailBatch:
    times, hosts, a, b = zip(*rows, strict=True)
    columns = {
        "time": pa.array(times, pa.timestamp("ns")),
        "host": pa.array(hosts, pa.string()).dictionary_encode(),
        "a": pa.array(a, pa.int64()),
        "b": pa.array(b, pa.int64()),
    }
    return TailBatch(first, pa.RecordBatch.from_pydict(columns))


def tail_of(groups: list[list[tuple[int, str | None, int | None, int | None]]]) -> list[TailBatch]:
    tail, offset = [], 0
    for rows in groups:
        tail.append(batch(offset, rows))
        offset += len(rows)
    return tail


def merged(layers: tuple[pa.RecordBatch, ...]) -> pa.RecordBatch:
    tables = [pa.Table.from_batches([layer]) for layer in layers]
    return fold_rows(TABLE, pa.concat_tables(tables, promote_options="default"))


def part(tail: list[TailBatch], sequence: int = 1) -> PartitionSnapshot:
    return PartitionSnapshot(0, (1, 1, sequence), (), tuple(tail))


VALUE = st.none() | st.integers(0, 9)
GROUP = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, "x", "y"]), VALUE, VALUE), min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(GROUP, min_size=1, max_size=8))
def test_growing_tails_fold_like_whole_ones(groups: list[list[tuple[int, str | None, int | None, int | None]]]) -> None:
    tail = tail_of(groups)
    kept = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.tails, "NEWER_ROWS_MIN", 2)
        for count in range(1, len(tail) + 1):
            kept = extend(TABLE, kept, tail[:count])
            assert len(kept.layers) <= 2
            assert merged(kept.layers).equals(fold(TABLE, tail[:count]))


ROWS: list[tuple[int, str | None, int | None, int | None]] = [(1, "x", 1, None), (2, "y", 2, 2)]


def test_an_unchanged_tail_is_not_folded_again() -> None:
    cache = TailCache(2**20)
    snapshot = part(tail_of([ROWS]))
    first = cache.layers(TABLE, snapshot)
    again = cache.layers(TABLE, part(list(snapshot.tail), 2))
    assert [layer is same for layer, same in zip(first, again, strict=True)] == [True]


def test_only_new_rows_are_folded() -> None:
    tail = tail_of([ROWS, ROWS])
    older = extend(TABLE, None, tail[:1])
    grown = extend(TABLE, older, tail)
    assert grown.layers[0] is older.layers[0]
    assert grown.layers[1].num_rows == 2


def test_a_tail_that_begins_later_or_ends_earlier_or_has_another_schema_is_folded_anew() -> None:
    tail = tail_of([ROWS, ROWS])
    kept = extend(TABLE, None, tail)
    assert extend(TABLE, kept, tail[1:]).first == 2
    assert extend(TABLE, kept, tail[:1]).end == 2
    assert extend(dataclasses.replace(TABLE, version=2), kept, tail).version == 2


def test_the_cache_lets_go_over_its_limit_and_still_answers() -> None:
    cache = TailCache(0)
    snapshot = part(tail_of([ROWS]))
    first = cache.layers(TABLE, snapshot)
    assert first[0].num_rows == 2
    assert cache.layers(TABLE, snapshot)[0] is not first[0]


def test_no_tail_has_no_layers() -> None:
    assert TailCache(2**20).layers(TABLE, part([])) == ()
