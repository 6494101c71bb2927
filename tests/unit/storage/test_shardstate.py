"""What a shard's Log adds up to: every replay gives the state that was live (LOG L7, L14, L18, L22, L24, L36).

`History` is a Log without a store: objects are real bytes, put together and applied as the owner does it, in
any order of appends, cut-offs, drops and the two halves of a checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.checkpoint import Part, Section, encode_part, section_entry
from storage.deletes import RangeDelete
from storage.entries import delete_entry, record_entry, rows_entry
from storage.errors import CorruptObject, StorageError, UnsupportedFormat
from storage.frames import (
    NO_WRITE_ID,
    Entry,
    EntryKind,
    Frame,
    FrameType,
    Header,
    LogObject,
    ObjectKind,
    WriteId,
    decode_object,
    encode_object,
)
from storage.schema import DataFile, Table
from storage.shardstate import WRITE_IDS_MAX, Frozen, Remembered, ShardState, encode_frozen
from tests.harness.tables import make_rows, make_table

if TYPE_CHECKING:
    from collections.abc import Sequence

STORE = b"s" * 16
LOG = 1
TABLES = {number: make_table(number, partitions=2) for number in (1, 2)}


def lookup(table_id: int) -> Table | None:
    return TABLES.get(table_id)


def new_state() -> ShardState:
    return ShardState(STORE, LOG, lookup)


def write_id(number: int) -> WriteId:
    return WriteId(1, b"w" * 16, 0, number, 1)


class History:
    """An owner's Log: its objects, its parts and the state that is live."""

    def __init__(self) -> None:
        self.state = new_state()
        self.objects: dict[int, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.checkpoint = 0
        self.frozen: Frozen | None = None
        self.frozen_loose: tuple[DataFile, ...] = ()
        self.files = 0
        self.rows = 0
        self.sequence = 1  # the open

    def header(self, kind: ObjectKind, written_ms: int = 0) -> Header:
        self.sequence += 1
        return Header(
            kind, STORE, LOG, self.sequence, 1, b"n" * 16, b"o" * 16, self.checkpoint, 1, written_ms or self.sequence
        )

    def commit(self, entries: Sequence[Entry], payloads: Sequence[object], written_ms: int = 0) -> int:
        """One group commit: placed, written, applied with its payloads."""
        placed = self.state.place(entries)
        header = self.header(ObjectKind.DATA, written_ms)
        self.objects[self.sequence] = b"".join(encode_object(header, placed))
        size = len(self.objects[self.sequence])
        self.state.apply(LogObject(header, placed, size), payloads)
        return self.sequence

    def append(self, parts: Sequence[tuple[int, int, int]], number: int = 0, written_ms: int = 0) -> int:
        """Rows for (table, partition, rows) each; ``number`` makes a write id."""
        batches = []
        for _, _, count in parts:
            batches.append(make_rows(range(self.rows, self.rows + count), ["a"] * count, self.rows))
            self.rows += count
        ids = [write_id(100 * number + i) if number else NO_WRITE_ID for i in range(len(parts))]
        entries = [
            rows_entry(TABLES[table], partition, rows, key)
            for (table, partition, _), rows, key in zip(parts, batches, ids, strict=True)
        ]
        return self.commit(entries, batches, written_ms)

    def cutoff(self, database: int, cutoff: int) -> None:
        record = {"database": database, "cutoff": cutoff, "recorded_ms": self.sequence}
        self.commit([record_entry(EntryKind.RETENTION, record)], [None])

    def table_cutoff(self, key: tuple[int, int], cutoff: int, limit: int, database: int = 0) -> None:
        record = {"database": database, "cutoff": cutoff, "recorded_ms": self.sequence, "limit": limit}
        self.commit([record_entry(EntryKind.RETENTION, record, table_id=key[0], partition=key[1])], [None])

    def drop(self, table: int, revision: int) -> None:
        self.commit([record_entry(EntryKind.DROP, {"revision": revision}, table_id=table)], [None])

    def delete(self, table: int, partition: int) -> None:
        self.commit([delete_entry(TABLES[table], partition, RangeDelete())], [None])

    def freeze(self, forget_before_ms: int = 0) -> None:
        self.state.advance_horizon(forget_before_ms)
        self.frozen = self.state.freeze()

    def stand(self, move_into_part: bool = False) -> int:
        """The Checkpoint of the frozen state becomes the next object."""
        frozen, self.frozen = self.frozen, None
        assert frozen is not None
        with_rows = {key: tail for key, tail in frozen.tails.items() if any(batch.delete is None for batch in tail)}
        files = [self.file(key, tail) for key, tail in with_rows.items()]
        part = self.part((*self.state.loose, *files)) if move_into_part else None
        sections = (*encode_frozen(frozen, files), *self.state.prepare(frozen, files, part))
        header = self.header(ObjectKind.CHECKPOINT)
        self.objects[self.sequence] = b"".join(encode_object(header, sections))
        self.checkpoint = self.sequence
        self.state.checkpointed(self.sequence, frozen.covered, sections)
        return self.sequence

    def file(self, key: tuple[int, int], tail: Sequence[Any]) -> DataFile:
        self.files += 1
        low, high = tail[0].first_offset, tail[-1].end - 1
        times = [t for b in tail if b.delete is None for t in b.rows.column("time").cast(pa.int64()).to_pylist()]
        path = f"data/1/1/{key[0]}/1-{self.files:032x}.parquet"
        return DataFile(path, *key, low, high, low, high, min(times), max(times), high - low + 1, 100 + self.files, 1)

    def part(self, files: tuple[DataFile, ...]) -> Part:
        path = f"parts/1/1-{len(self.parts):032x}"
        self.parts[path] = encode_part(STORE, LOG, files)
        return Part(path, files)

    def replay(self, backwards: bool = False) -> ShardState:
        """L10, L18: the newest Checkpoint, its parts in any order, and every data object above its k."""
        state = new_state()
        base = decode_object(self.objects[self.checkpoint], "checkpoint") if self.checkpoint else None
        paths = list(state.load(base))
        for path in reversed(paths) if backwards else paths:
            state.load_part(path, self.parts[path])
        for sequence in sorted(self.objects):
            obj = decode_object(self.objects[sequence], f"object {sequence}")
            if sequence > state.covered() and obj.header.kind is ObjectKind.DATA:
                state.apply(obj)
        return state


def view(state: ShardState) -> dict[str, Any]:
    """Everything that must be the same after a replay."""
    partitions = {
        key: (
            p.start, p.next_offset, p.changes_from, p.bytes, p.time_high, p.files,
            [(e.sequence, e.batch.first_offset, e.time_low, e.time_high, e.batch.rows.to_pydict()) for e in p.tail],
        )
        for key, p in state.partitions.items()
    }  # fmt: skip
    return {
        "k": state.k, "position": state.position, "revision": state.revision, "horizon": state.horizon,
        "partitions": partitions, "write_ids": list(state.write_ids.items()), "drops": state.drops,
        "cutoffs": state.cutoffs, "table cutoffs": state.table_cutoffs, "loose": state.loose, "parts": state.parts,
        "above k": state.objects_above_k,
        "bytes above k": state.log_bytes_above_k, "oldest": state.oldest_above_k_ms,
        "files": list(state.all_files()),
    }  # fmt: skip


def check_offsets(state: ShardState) -> None:
    """L22, L24: each offset stands once, in a file or in the tail, without a gap."""
    for partition in state.partitions.values():
        ranges = [(f.offset_low, f.offset_high) for f in partition.files]
        ranges += [(e.batch.first_offset, e.batch.first_offset + e.batch.rows.num_rows - 1) for e in partition.tail]
        following = 0
        for low, high in ranges:
            assert low == following
            following = high + 1
        assert following == partition.next_offset


PARTS = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=3)
ACTIONS = st.one_of(
    st.tuples(st.just("append"), PARTS, st.booleans()),
    st.tuples(st.just("cutoff"), st.integers(1, 2), st.integers(-5, 5)),
    st.tuples(st.just("table cutoff"), st.integers(1, 2), st.integers(0, 1), st.integers(-5, 5), st.integers(0, 3)),
    st.tuples(st.just("drop"), st.integers(1, 3), st.integers(1, 9)),
    st.tuples(st.just("freeze"), st.integers(0, 9)),
    st.tuples(st.just("stand"), st.booleans()),
)


def perform(history: History, number: int, action: tuple[Any, ...]) -> None:
    match action:
        case ("append", parts, named):
            history.append(parts, number if named else 0)
        case ("cutoff", database, cutoff):
            history.cutoff(database, cutoff)
        case ("table cutoff", table, partition, cutoff, limit):
            history.table_cutoff((table, partition), cutoff, limit)
        case ("drop", table, revision):
            history.drop(table, revision)
        case ("freeze", age):
            if history.frozen is None:
                history.freeze(history.sequence - age)
        case ("stand", move):
            if history.frozen is not None:
                history.stand(move)


@given(st.lists(ACTIONS, max_size=25), st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_replay_gives_the_state_that_was_live(actions: list[tuple[Any, ...]], backwards: bool) -> None:
    history = History()
    forgotten: set[WriteId] = set()
    written: dict[WriteId, int] = {}
    for number, action in enumerate(actions, 1):
        before = history.state.k
        known = set(history.state.write_ids)
        cutoffs, of_tables = dict(history.state.cutoffs), dict(history.state.table_cutoffs)
        perform(history, number, action)
        state = history.state
        assert state.k >= before  # L18
        check_offsets(state)
        forgotten |= known - set(state.write_ids)
        written.update({key: at.sequence for key, at in state.write_ids.items()})
        for database, cutoff in cutoffs.items():  # L36
            assert state.cutoffs[database].time_ns >= cutoff.time_ns
        for place, cutoff in of_tables.items():  # under one limit, and as long as the table is there
            now = state.table_cutoffs.get(place)
            assert now is None or now.time_ns >= cutoff.time_ns or now.limit > cutoff.limit
        for key in forgotten:  # L7: whoever sends it again was born below the object that has it
            assert written[key] - 1 < state.horizon
    if history.frozen is not None:
        history.stand()  # a frozen state has moved the horizon; see the test of one that never stood
    assert view(history.replay(backwards)) == view(history.state)
    check_offsets(history.replay())


@given(st.lists(ACTIONS, max_size=20))
@settings(deadline=None, max_examples=60)
def test_l14_equal_positions_of_a_partition_have_equal_content(actions: list[tuple[Any, ...]]) -> None:
    history = History()
    seen: dict[tuple[int, int, tuple[int, int, int]], Any] = {}
    for number, action in enumerate(actions, 1):
        perform(history, number, action)
        for table in TABLES.values():
            for part in history.state.snapshot(table):
                tail = [(b.first_offset, b.rows.num_rows) for b in part.tail]
                content = (part.files, tail)
                assert seen.setdefault((table.id, part.partition, part.position), content) == content


def test_l18_a_checkpoint_covers_what_was_there_when_it_was_frozen_and_replay_starts_above() -> None:
    history = History()
    history.append([(1, 1, 2)])
    history.freeze()
    between = history.append([(1, 1, 1), (2, 1, 1)])
    stood = history.stand()
    assert history.state.k == 2 < between < stood
    assert [e.sequence for e in history.state.partitions[1, 1].tail] == [between]
    assert view(history.replay()) == view(history.state)


def test_l18_k_of_an_empty_state_is_the_last_object() -> None:
    history = History()
    history.cutoff(1, 5)
    history.freeze()
    history.stand()
    assert (history.state.k, history.state.objects_above_k, history.state.oldest_above_k_ms) == (2, 0, None)


def test_l22_files_appear_when_the_rows_leave_the_memtable() -> None:
    history = History()
    history.append([(1, 1, 3)])
    history.freeze()
    (before,) = history.state.snapshot(TABLES[1])
    history.stand()
    (after,) = history.state.snapshot(TABLES[1])
    assert (len(before.files), len(before.tail)) == (0, 1)
    assert (len(after.files), len(after.tail)) == (1, 0)
    assert (before.tail[0].first_offset, before.tail[0].rows.num_rows) == (0, 3)
    assert (after.files[0].offset_low, after.files[0].offset_high) == (0, 2)


def test_l24_offsets_go_on_within_one_group_and_after_a_replay() -> None:
    history = History()
    history.append([(1, 1, 2), (1, 2, 1), (1, 1, 3)])
    history.freeze()
    history.stand()
    state = history.replay()
    entry = rows_entry(TABLES[1], 1, make_rows([1], ["a"]))
    assert [e.base_offset for e in state.place([entry, entry])] == [5, 6]
    assert state.place([record_entry(EntryKind.DROP, {"revision": 1})])[0].base_offset == 0


def rows_at(base: int, rows: int = 1, table: int = 1) -> Entry:
    entry = rows_entry(TABLES[table], 1, make_rows(range(rows), ["a"] * rows))
    return Entry(**{name: getattr(entry, name) for name in Entry.__slots__} | {"base_offset": base})


def data_object(sequence: int, *entries: Entry) -> LogObject:
    header = Header(ObjectKind.DATA, STORE, LOG, sequence, 1, b"n" * 16, b"o" * 16, 0, 1, 5)
    return decode_object(b"".join(encode_object(header, entries)), "here")


@pytest.mark.parametrize(("sequence", "base"), [(3, 0), (3, 1), (3, 3), (5, 1)])
def test_l24_a_gap_or_an_overlap_is_refused(sequence: int, base: int) -> None:
    state = new_state()
    state.apply(data_object(2, rows_at(0, 2)))
    with pytest.raises(CorruptObject, match=f"offset {base} where 2 must follow"):
        state.apply(data_object(sequence, rows_at(base)))
    with pytest.raises(CorruptObject):
        state.apply(data_object(sequence, rows_at(2), rows_at(base + 10)))


def test_l3_offsets_may_have_a_hole_where_an_object_was_given_up() -> None:
    state = new_state()
    state.apply(data_object(2, rows_at(0, 2)))
    state.apply(data_object(4, rows_at(7)))  # object 3 had offsets 2 to 6
    assert state.partitions[1, 1].next_offset == 8
    assert [e.batch.first_offset for e in state.partitions[1, 1].tail] == [0, 7]


@pytest.mark.parametrize("base", [2, 5])
def test_f6_a_log_is_read_whose_offsets_went_on_where_an_object_was_given_up(base: int) -> None:
    """Versions without materialized views gave no new range of offsets after it."""
    skip = record_entry(EntryKind.SKIP, {"sequence": 3, "skipped_at_ms": 1}, base_offset=3)
    state = new_state()
    state.apply(data_object(2, rows_at(0, 2)))
    state.apply(data_object(4, skip))
    state.apply(data_object(5, rows_at(base)))
    part = state.partitions[1, 1]
    assert (part.next_offset, part.changes_from) == (base + 1, base)
    state.apply(data_object(6, rows_at(base + 1)))
    with pytest.raises(CorruptObject):
        state.apply(data_object(7, rows_at(base)))


def test_l24_no_offset_that_an_object_given_up_may_have_had_is_given_again() -> None:
    skip = record_entry(EntryKind.SKIP, {"sequence": 3, "skipped_at_ms": 1}, base_offset=3)
    state = new_state()
    state.apply(data_object(2, rows_at(0, 2)))
    state.apply(data_object(4, skip))
    (placed,) = state.place([rows_at(0)])
    assert placed.base_offset == state.partitions[1, 1].changes_from == 2 + 2**40
    state.apply(data_object(5, rows_at(2 + 2**40)))
    with pytest.raises(CorruptObject):
        state.apply(data_object(6, rows_at(2)))


def bad_entries() -> dict[str, Entry]:
    rows = rows_at(1)
    return {
        "rows that cannot be read": Entry(
            EntryKind.ROWS, (Frame(FrameType.ROWS, b"nonsense"),), 1, 1, 1, 1, 1, 1, write_id=write_id(9)
        ),
        "rows of an unknown table": Entry(EntryKind.ROWS, rows.frames, 77, 1, 1, 0, 1, 1),
        "a record that cannot be read": Entry(EntryKind.RETENTION, (Frame(FrameType.RECORD, b"\xc1"),)),
        "a record of the Catalog": record_entry(EntryKind.RECORD, {"revision": 1, "effects": []}),
        "an offset that was given": rows_at(0),
    }


@pytest.mark.parametrize("case", bad_entries())
def test_l3_an_object_is_applied_whole_or_not_at_all(case: str) -> None:
    state = new_state()
    state.apply(data_object(2, rows_at(0)))
    before = view(state)
    good = record_entry(EntryKind.RETENTION, {"database": 1, "cutoff": 5, "recorded_ms": 1})
    with pytest.raises((CorruptObject, UnsupportedFormat)):
        state.apply(data_object(3, rows_at(1, table=1), good, bad_entries()[case]))
    assert view(state) == before


def test_f6_an_entry_that_may_be_skipped_is() -> None:
    state = new_state()
    state.apply(data_object(2, Entry(200, (Frame(FrameType.RECORD, b"x"),)), rows_at(0)))
    assert state.partitions[1, 1].next_offset == 1


# -- write ids (L7) ----------------------------------------------------------------------------------------


def test_l7_the_horizon_rises_with_the_age_of_what_is_forgotten() -> None:
    history = History()
    old = history.append([(1, 1, 1), (1, 1, 1)], 1, written_ms=1000)
    young = history.append([(1, 1, 1)], 2, written_ms=2000)
    state = history.state
    state.advance_horizon(1000)
    assert (state.horizon, len(state.write_ids)) == (0, 3)
    state.advance_horizon(1001)
    assert (state.horizon, list(state.write_ids)) == (old, [write_id(200)])
    assert state.write_ids[write_id(200)].sequence == young
    state.advance_horizon(10**9)
    assert (state.horizon, len(state.write_ids)) == (young, 0)
    state.advance_horizon(0)
    assert state.horizon == young  # never down


def test_l7_a_full_table_forgets_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.shardstate.WRITE_IDS_MAX", 3)
    history = History()
    sequences = [history.append([(1, 1, 1)], number) for number in range(1, 6)]
    history.state.advance_horizon(0)
    assert list(history.state.write_ids) == [write_id(100 * n) for n in (3, 4, 5)]
    assert history.state.horizon == sequences[1]


def test_l7_ids_come_back_with_their_first_offset_and_replay_only_adds() -> None:
    history = History()
    history.append([(1, 1, 4)], 1)
    history.freeze()
    history.append([(1, 1, 2), (1, 2, 1)], 2)
    history.stand()
    state = history.replay()
    assert {key: at.first_offset for key, at in state.write_ids.items()} == {
        write_id(100): 0, write_id(200): 4, write_id(201): 0,
    }  # fmt: skip


def test_l7_after_a_checkpoint_that_never_stood_replay_knows_more_than_the_owner_did() -> None:
    """The horizon moved in memory only: who takes over answers ids that the former owner refused."""
    history = History()
    history.append([(1, 1, 1)], 1)
    history.freeze(forget_before_ms=10**9)
    assert history.state.horizon == 2
    state = history.replay()
    assert (state.horizon, list(state.write_ids)) == (0, [write_id(100)])


def test_a_checkpoint_with_a_full_table_of_write_ids_is_written_column_by_column() -> None:
    """A hundred thousand ids took most of a second as rows."""
    state = new_state()
    for number in range(WRITE_IDS_MAX):
        state.write_ids[write_id(number)] = Remembered(number, 2 * number, 3 * number)
    frozen = state.freeze()
    entries = encode_frozen(frozen, [])
    by_section = {e.table_id: e for e in entries}
    assert by_section[Section.WRITE_IDS].row_count == WRITE_IDS_MAX
    again = new_state()
    header = Header(ObjectKind.CHECKPOINT, STORE, LOG, 9, 1, b"n" * 16, b"o" * 16, 0, 1, 5)
    again.load(decode_object(b"".join(encode_object(header, entries)), "here"))
    assert again.write_ids == state.write_ids


# -- cut-offs (L36), drops (L31) ---------------------------------------------------------------------------


def test_l36_a_cutoff_hides_a_row_or_is_not_worth_recording() -> None:
    history = History()
    history.commit([rows_entry(TABLES[1], 1, rows := make_rows([100, 200], ["a", "a"]))], [rows])
    state, mine = history.state, frozenset({1})

    def answers() -> list[bool]:
        return [
            state.hides_a_row(mine, 100),  # nothing is below 100
            state.hides_a_row(mine, 101),
            state.hides_a_row(mine, 150, 101),
            state.hides_a_row(mine, 300, 201),  # all of it is hidden already
            state.hides_a_row(frozenset({2}), 300),
        ]

    assert answers() == [False, True, True, False, False]
    history.freeze()
    history.stand()
    assert state.partitions[1, 1].tail == []
    assert answers() == [False, True, True, False, False]


def test_l36_a_table_has_cutoffs_of_its_own_that_come_back_and_go_with_it() -> None:
    history = History()
    history.append([(1, 1, 2)])
    history.cutoff(1, 5)
    history.table_cutoff((1, 0), 9, 0, database=1)
    history.table_cutoff((1, 1), 7, 100)
    history.table_cutoff((2, 1), 8, 100, database=1)
    expected = {(1, 0): (9, 0, 1), (1, 1): (7, 100, 0), (2, 1): (8, 100, 1)}

    def held(state: ShardState) -> dict[tuple[int, int], tuple[int, int, int]]:
        return {key: (one.time_ns, one.limit, one.database_id) for key, one in state.table_cutoffs.items()}

    assert held(history.state) == held(history.replay()) == expected
    assert history.state.cutoffs[1].time_ns == 5, "none of them is the database's"
    history.freeze()
    history.stand()
    assert held(history.replay()) == expected
    history.drop(1, 3)
    assert held(history.state) == held(history.replay()) == {(2, 1): (8, 100, 1)}


def test_l36_under_one_limit_a_cutoff_never_falls_and_under_a_greater_one_it_begins_anew() -> None:
    history = History()
    steps = [(7, 100, 0, 7), (3, 100, 0, 7), (3, 50, 0, 7), (8, 50, 0, 8), (2, 60, 0, 2), (1, 60, 4, 1), (0, 60, 4, 1)]
    for cutoff, limit, database, expected in steps:
        history.table_cutoff((1, 1), cutoff, limit, database)
        assert history.state.table_cutoffs[1, 1].time_ns == expected, (cutoff, limit, database)
    assert view(history.replay()) == view(history.state)


def test_l36_a_lower_cutoff_is_ignored() -> None:
    history = History()
    for cutoff, expected in ((-5, -5), (7, 7), (3, 7), (7, 7), (8, 8)):
        history.cutoff(1, cutoff)
        assert history.state.cutoffs[1].time_ns == expected
    assert view(history.replay()) == view(history.state)


def test_l31_a_dropped_table_is_gone_from_snapshots_and_stays_so() -> None:
    history = History()
    history.append([(1, 1, 1), (2, 1, 1)])
    history.drop(1, 5)
    history.drop(1, 4)
    assert history.state.drops == {1: 5}
    for state in (history.state, history.replay()):
        assert list(state.snapshot(TABLES[1])) == []
        assert len(list(state.snapshot(TABLES[2]))) == 1
    assert history.state.revision == 5


# -- parts (L23) and what a Checkpoint may not say ---------------------------------------------------------


def test_l23_files_move_into_a_part_that_later_checkpoints_name_again() -> None:
    history = History()
    for move in (False, True, False, True):
        history.append([(1, 1, 1)])
        history.freeze()
        history.stand(move)
    assert [len(part.files) for part in history.state.parts] == [2, 2]
    assert history.state.loose == ()
    assert [f.offset_low for f in history.state.partitions[1, 1].files] == [0, 1, 2, 3]
    for backwards in (False, True):
        assert view(history.replay(backwards)) == view(history.state)


def test_l23_a_part_is_due_when_the_list_is_long() -> None:
    state = new_state()
    assert not state.part_is_due(256)
    assert state.part_is_due(257)


def test_a_part_that_contradicts_its_checkpoint_is_corrupt() -> None:
    history = History()
    history.append([(1, 1, 1)])
    history.freeze()
    history.stand(move_into_part=True)
    state = new_state()
    (path,) = state.load(decode_object(history.objects[history.checkpoint], "here"))
    with pytest.raises(CorruptObject, match="0 files where the Checkpoint says 1"):
        state.load_part(path, encode_part(STORE, LOG, []))


@pytest.mark.parametrize("row", [{"section": 11, "owner_id": 0}, {"section": 2, "owner_id": 4}])
def test_f17_parts_of_anything_but_files_are_reserved(row: dict[str, int]) -> None:
    meta = section_entry(Section.META, [{"covered": 1, "horizon": 0, "revision": 0}])
    parts = section_entry(Section.PARTS, [{**row, "path": "parts/1/x", "rows": 1}])
    header = Header(ObjectKind.CHECKPOINT, STORE, LOG, 3, 1, b"n" * 16, b"o" * 16, 0, 1, 5)
    with pytest.raises(UnsupportedFormat):
        new_state().load(LogObject(header, (meta, parts)))


def test_a_checkpoint_without_meta_is_corrupt_and_not_a_crash() -> None:
    header = Header(ObjectKind.CHECKPOINT, STORE, LOG, 3, 1, b"n" * 16, b"o" * 16, 0, 1, 5)
    with pytest.raises(StorageError, match="checkpoint 3"):
        new_state().load(LogObject(header, ()))


# -- replay that fills the memory (L23) --------------------------------------------------------------------


def test_l23_a_replay_says_when_it_is_full() -> None:
    history = History()
    history.append([(1, 1, 3)])
    size = history.state.tail_bytes
    for bound, full in ((0, False), (size + 1, False), (size, True)):
        state = ShardState(STORE, LOG, lookup, bound)
        state.apply(LogObject(Header(ObjectKind.DATA, STORE, LOG, 2, 1, b"", b"", 0, 1, 1), ()))
        state.tail_bytes = size
        assert state.replay_is_full() is full


def test_l25_a_checkpoint_says_from_where_on_deletes_can_be_seen() -> None:
    """A delete whose rows were all in memory is carried out in them: no file and no list tells of it any more."""
    history = History()
    history.append([(1, 1, 3)])
    history.delete(1, 1)
    assert history.state.partitions[1, 1].changes_from == 0
    history.freeze()
    history.append([(1, 1, 2)])
    history.stand()
    assert history.state.partitions[1, 1].changes_from == 4
    assert history.replay().partitions[1, 1].changes_from == 4
    history.freeze()
    history.stand()  # now there is a file for the next delete to wait for, and its list tells of it
    history.delete(1, 1)
    history.freeze()
    history.stand()
    assert [one.order for one in history.state.partitions[1, 1].pending] == [6]
    assert history.state.partitions[1, 1].changes_from == 4
    (part,) = history.state.snapshot(TABLES[1])
    assert part.changes_from == 4
