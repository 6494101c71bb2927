"""Answers about a shard: filters leave out only what cannot fit, and what does not fit a question is refused
(LOG L14, L15, L31, L36)."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from storage.cutoffs import Cutoff, Cutoffs
from storage.errors import CorruptObject
from storage.kepttail import KeptTails, whole_snapshot
from storage.schema import OP_COLUMN, OP_TYPE, Op, TailBatch
from storage.shardstate import PartitionState, ShardState, TailEntry
from storage.tailanswer import TailWanted, tail_answer
from storage.tailcodec import pack_rows, unpack_rows
from tests.harness.tables import make_rows, make_table

if TYPE_CHECKING:
    from storage.tailanswer import TailAnswer

TABLE = make_table(7, partitions=2)
HOSTS = ("a", "b", "c", None)


def state(seed: int = 1, entries: int = 12) -> ShardState:
    """Partition 1 has entries at sequences 11, 12 .. of random times and hosts; k is 10."""
    draw = random.Random(seed)
    found = ShardState(b"S" * 16, 3, {7: TABLE}.get)
    found.epoch, found.k, found.checkpoint_seq = 5, 10, 10
    part = PartitionState(changed_at=10 + entries)
    offset = 100
    for index in range(entries):
        times = [draw.randint(0, 99) for _ in range(draw.randint(1, 6))]
        rows = make_rows(times, [draw.choice(HOSTS) for _ in times], offset)
        part.tail.append(TailEntry(11 + index, TailBatch(offset, rows), min(times), max(times), 1))
        offset += len(times)
    found.partitions[7, 1] = part
    return found


def answer(found: ShardState, wanted: TailWanted, position: int = 30) -> TailAnswer:
    return tail_answer(found, [TABLE], wanted, 4, position)


def rows_of(found: TailAnswer) -> dict[int, dict[str, Any]]:
    """Rows by offset."""
    return {r.batch.first_offset + i: row for r in found.rows for i, row in enumerate(r.batch.rows.to_pylist())}


def test_f11_a_question_for_some_columns_is_answered_with_the_ops_of_rows() -> None:
    """Without its op a deleted row would come back as one that patches nothing."""
    found = state()
    rows = make_rows([5], ["a"], 999).append_column(OP_COLUMN, pa.array([Op.DELETE.code], OP_TYPE))
    entry = TailEntry(29, TailBatch(999, rows), 5, 5, 1)
    found.partitions[7, 1].tail.append(entry)
    assert rows_of(answer(found, TailWanted({7: ["f"]})))[999][OP_COLUMN] == Op.DELETE.code


@pytest.mark.parametrize("seed", range(30))
def test_filters_leave_out_only_rows_that_cannot_fit(seed: int) -> None:
    draw = random.Random(seed)
    found = state(seed)
    everything = rows_of(answer(found, TailWanted({7: None})))
    low, high = sorted((draw.randint(0, 99), draw.randint(0, 99)))
    host = draw.choice(("a", "b", "none", ""))
    low_bound, high_bound = draw.choice((low, None)), draw.choice((high, None))
    wanted = TailWanted(
        {7: draw.choice((None, ["f"]))}, 0, 0, low_bound, high_bound, {"host": host} if seed % 3 else {}
    )
    some = rows_of(answer(found, wanted))
    for offset, row in everything.items():
        at = row["time"].value if hasattr(row["time"], "value") else int(row["time"].timestamp() * 10**9)
        fits = (low_bound is None or at >= low_bound) and (high_bound is None or at <= high_bound)
        fits = fits and (not seed % 3 or host == "" or row["host"] == host)
        assert not fits or offset in some
        if offset in some:
            kept = {k: v for k, v in row.items() if k in some[offset]}
            assert some[offset] == kept
            assert {"time", "host", "f"} <= set(kept)
    assert len(some) <= len(everything)
    assert not wanted.whole or some == everything


def test_a_filter_by_something_that_is_no_tag_is_not_used() -> None:
    found = state()
    assert rows_of(answer(found, TailWanted({7: None}, tag_equals={"f": "1", "zzz": "1"}))) == rows_of(
        answer(found, TailWanted({7: None}))
    )


def test_a_tag_that_no_row_of_an_entry_has_fits_none() -> None:
    assert answer(state(), TailWanted({7: None}, tag_equals={"r_gion_3": "x"})).rows == ()


@pytest.mark.parametrize(
    ("epoch", "sequence", "floor", "count"),
    [(5, 14, 14, 8), (5, 10, 10, 12), (5, 22, 22, 0), (5, 9, 10, 12), (4, 14, 10, 12), (0, 0, 10, 12), (5, 31, 10, 12)],
)
def test_l14_only_what_is_newer_is_sent_to_who_kept_the_rest(epoch: int, sequence: int, floor: int, count: int) -> None:
    found = answer(state(), TailWanted({7: None}, epoch, sequence))
    assert (found.from_sequence, len(found.rows)) == (floor, count)
    assert all(rows.sequence > floor for rows in found.rows)
    assert (found.epoch, found.position, found.checkpoint_seq, found.covered, found.revision) == (5, 30, 10, 10, 4)


def test_l31_a_dropped_table_shows_nothing_and_is_named() -> None:
    found = state()
    found.drops = {7: 3, 8: 3}
    dropped = answer(found, TailWanted({7: None}))
    assert (dropped.partitions, dropped.rows, dropped.dropped) == ((), (), frozenset({7}))
    kept = KeptTails(2**20)
    snapshot = kept.merge(kept.ask(3, [7]), dropped)
    assert (snapshot.tables, snapshot.dropped) == ({7: ()}, frozenset({7}))


def test_l25_from_where_on_changes_can_be_seen_comes_with_the_files_and_is_kept_with_them() -> None:
    """A materialized view rests on it; the second answer leaves out what its asker has of the same Checkpoint."""
    kept, found = KeptTails(2**20), state()
    found.partitions[7, 1].changes_from = 55
    for files_known in (False, True):
        ask = kept.ask(3, [7])
        told = answer(found, ask.wanted)
        assert told.files_known is files_known
        assert [part.changes_from for part in kept.merge(ask, told).tables[7]] == [55]
    whole = whole_snapshot(answer(found, TailWanted({7: None})), [7])
    assert [part.changes_from for part in whole.tables[7]] == [55]


def test_l36_cutoffs_come_with_the_answer() -> None:
    found = state()
    found.cutoffs = {1: Cutoff(5_000, 9)}
    number = next(partition for table, partition in found.partitions if table == 7)
    own = {(7, 0): Cutoff(1, 2), (7, number): Cutoff(3, 4, 5)}
    found.table_cutoffs = {**own, (8, 0): Cutoff(6, 7)}
    snapshot = whole_snapshot(answer(found, TailWanted({7: None})), [7])
    assert snapshot.cutoffs == Cutoffs({1: Cutoff(5_000, 9)}, own), "of all databases, and of the table asked for"


def test_an_answer_to_another_question_is_refused() -> None:
    kept, found = KeptTails(2**20), state()
    first = kept.ask(3, [7])
    assert (first.wanted.from_epoch, first.wanted.from_sequence) == (0, 0)
    full = answer(found, first.wanted, 20)
    kept.merge(first, full)
    ask = kept.ask(3, [7])
    assert (ask.wanted.from_epoch, ask.wanted.from_sequence) == (5, 20)
    newer = answer(found, ask.wanted)
    for wrong in (
        replace(newer, log_id=4), replace(newer, epoch=6), replace(newer, from_sequence=19),
        replace(newer, from_sequence=21),
    ):  # fmt: skip
        with pytest.raises(CorruptObject):
            kept.merge(ask, wrong)
    with pytest.raises(CorruptObject, match="no snapshot by itself"):
        whole_snapshot(newer, [7])
    kept.merge(ask, newer)
    assert kept.ask(3, [7, 8]).wanted.from_sequence == 0, "of table 8 nothing is kept"
    kept.forget(3)
    assert (kept.bytes, kept.ask(3, [7]).kept) == (0, {})


def test_what_is_kept_is_bounded_and_the_oldest_goes() -> None:
    kept = KeptTails(60_000)
    for log_id in range(1, 9):
        found = state(log_id)
        found.log_id = log_id
        kept.merge(kept.ask(log_id, [7]), answer(found, TailWanted({7: None})))
        assert kept.bytes <= 60_000
    assert not kept.ask(1, [7]).kept
    assert kept.ask(8, [7]).kept or kept.bytes == 0


@pytest.mark.parametrize("count", [0, 1, 500])
def test_rows_travel_with_their_dictionaries(count: int) -> None:
    rows = make_rows(range(count), [f"h{i % 7}" if i % 5 else None for i in range(count)])
    assert unpack_rows(pack_rows(rows), "").equals(rows)
    part = rows.slice(count // 3, count // 2)
    packed = pack_rows(part)
    assert unpack_rows(memoryview(packed), "").equals(part)
    assert count < 500 or len(packed) < len(pack_rows(rows)) * 0.7, "of a slice only its rows"


@pytest.mark.parametrize("data", [b"", b"xxxx", pack_rows(make_rows([1], ["a"]))[:-200], pa.schema([]).serialize()])
def test_what_is_no_stream_of_rows_is_named(data: Any) -> None:
    with pytest.raises(CorruptObject, match="answer of shard 3"):
        unpack_rows(data if isinstance(data, bytes) else data.to_pybytes(), "answer of shard 3")
