"""Whether rows were written since a snapshot (LOG L26): more may be said than is true, never less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.deletes import RangeDelete
from storage.entries import delete_entry, rows_entry
from storage.schema import NO_ROWS, TailBatch
from storage.shardstate import PartitionState, TailEntry
from storage.unchanged import changed_since, share_key
from tests.harness.tables import make_rows, make_table

if TYPE_CHECKING:
    import pyarrow as pa

    from storage.frames import Entry

TABLE = make_table()
Keys = list[tuple[int, str | None]]


def rows(*keys: tuple[int, str | None]) -> pa.RecordBatch:
    return make_rows([t for t, _ in keys], [h for _, h in keys])


def entry(sequence: int, *keys: tuple[int, str | None]) -> TailEntry:
    times = [t for t, _ in keys]
    return TailEntry(sequence, TailBatch(sequence, rows(*keys)), min(times), max(times), 1)


KEYS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([None, "a", "b"])), min_size=1, max_size=4)


@given(st.lists(KEYS, max_size=3), st.lists(KEYS, max_size=3))
@settings(deadline=None, max_examples=100)
def test_a_key_is_shared_if_it_stands_in_both(some: list[Keys], others: list[Keys]) -> None:
    ours, theirs = {k for keys in some for k in keys}, {k for keys in others for k in keys}
    found = share_key(TABLE, [rows(*keys) for keys in some], [rows(*keys) for keys in others])
    assert found == bool(ours & theirs)


@pytest.mark.parametrize(
    ("since", "keys", "changed"),
    [
        (6, [(1, "a")], True),
        (7, [(1, "a")], False),
        (6, [(1, "b"), (2, "a"), (1, None)], False),
        (6, [(2, "b"), (1, "a")], True),
        (0, [(9, "x")], True),
        (3, [(9, "x")], False),
    ],
)
def test_l26_what_was_written_above_the_snapshot_counts(since: int, keys: Keys, changed: bool) -> None:
    state = PartitionState(filed_at=3, tail=[entry(5, (1, "b"), (2, None)), entry(7, (1, "a"))])
    assert changed_since(TABLE, rows(*keys), since, state, []) == changed


def test_l26_what_is_under_way_goes_first() -> None:
    for state in (None, PartitionState()):
        assert changed_since(TABLE, rows((1, "a")), 9, state, [sent((2, "b"), (1, "a"))])
        assert not changed_since(TABLE, rows((1, "a")), 9, state, [sent((2, "a"), (1, "b"))])
        assert not changed_since(TABLE, rows((1, "a")), 9, state, [])


def sent(*keys: tuple[int, str | None]) -> tuple[Entry, pa.RecordBatch]:
    return rows_entry(TABLE, 1, rows(*keys)), rows(*keys)


def test_l26_a_range_delete_over_the_same_times_counts_as_a_change() -> None:
    delete = RangeDelete(5, 9)
    state = PartitionState(tail=[TailEntry(7, TailBatch(7, NO_ROWS, delete), 5, 9, 1)])
    assert changed_since(TABLE, rows((5, "a")), 6, state, [])
    assert not changed_since(TABLE, rows((5, "a")), 7, state, [])
    assert not changed_since(TABLE, rows((4, "a")), 6, state, [])
    assert changed_since(TABLE, rows((9, "a")), 7, None, [(delete_entry(TABLE, 1, delete), NO_ROWS)])
