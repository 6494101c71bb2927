"""Each checker of the chaos runs passes a good history and fails on every planted violation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from storage.frames import Entry as LogFrameEntry
from storage.frames import EntryKind, Header, ObjectKind, WriteId, encode_object
from tests.chaos import checkers
from tests.chaos.history import GONE, UNCERTAIN, Found, KeyHistory, KeyState, Outcome, Row, Seen, Sent
from tests.chaos.logobjects import LogArchive, LogEntry, ObjectFacts
from tests.chaos.wgl import Model, Operation, TooManySteps, is_linearizable

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.monkeypatch import MonkeyPatch

ACKNOWLEDGED, REFUSED, UNKNOWN = Outcome.ACKNOWLEDGED, Outcome.REFUSED, Outcome.UNKNOWN


def row(number: int) -> Row:
    return Row("w0", 1, number)


SENT = {
    row(0): Sent(10, ACKNOWLEDGED),
    row(1): Sent(11, ACKNOWLEDGED),
    row(2): Sent(12, UNKNOWN),
    row(3): Sent(13, UNKNOWN),
    row(4): Sent(14, REFUSED),
}
FOUND = [Found(row(0), 10), Found(row(1), 11), Found(row(2), 12)]


def says(violations: list[str], text: str) -> bool:
    return len(violations) == 1 and text in violations[0]


def test_rows() -> None:
    check = checkers.rows_exactly_once
    assert check(SENT, FOUND) == []
    assert says(check(SENT, FOUND[1:]), "1 acknowledged rows are lost")
    assert says(check(SENT, [*FOUND, FOUND[0]]), "twice")
    assert says(check(SENT, [*FOUND, FOUND[2]]), "twice"), "an unknown row may be there once, not twice"
    assert says(check(SENT, [*FOUND, Found(row(4), 14)]), "refused")
    assert says(check(SENT, [*FOUND, Found(row(9), 1)]), "nobody sent")
    assert says(check(SENT, [*FOUND[1:], Found(row(0), 77)]), "another value")
    assert len(check(SENT, [])) == 1
    assert "e.g." in check({row(n): Sent(n, ACKNOWLEDGED) for n in range(100)}, [])[0]


def test_keys() -> None:
    def check(history: KeyHistory, *states: KeyState) -> list[str]:
        return checkers.keys_newest({"k": history}, states)

    assert check(KeyHistory(3), KeyState("k", 3, 2, 3)) == []
    assert check(KeyHistory(3, 4), KeyState("k", 4, 4, 3)) == []
    assert check(KeyHistory(3, 4), KeyState("k", 3, 2, 3)) == []
    assert check(KeyHistory(0), KeyState("k", 0, 0, None)) == []
    assert check(KeyHistory(-1, 0)) == []
    assert says(check(KeyHistory(3), KeyState("k", 2, 2, 1)), "keys have not their newest value")
    assert says(check(KeyHistory(3, 4), KeyState("k", 5, 4, 5)), "keys have not their newest value")
    assert says(check(KeyHistory(3), KeyState("k", 3, 0, 3)), "fields have not their newest value")
    assert says(check(KeyHistory(3), KeyState("k", 3, None, 3)), "fields have not their newest value")
    assert says(check(KeyHistory(3)), "acknowledged keys are lost")
    assert says(check(KeyHistory(3), *[KeyState("k", 3, 2, 3)] * 2), "twice")
    assert says(check(KeyHistory(-1), KeyState("j", 0, 0, None)), "nobody sent")


def test_read_your_write() -> None:
    wanted = {row(0): 10, row(1): 11}
    check = checkers.read_your_write
    assert check("g2", wanted, FOUND) == []
    assert says(check("g2", wanted, FOUND[:1]), "not seen through g2")
    assert says(check("g2", wanted, [*FOUND, FOUND[0]]), "seen twice through g2")
    assert says(check("g2", wanted, [Found(row(0), 99), FOUND[1]]), "not seen through g2")


def test_never_back() -> None:
    good = [Seen(1, "w0 c1", (3, 5)), Seen(2, "w0 c1", (1, 1)), Seen(1, "w0 c1", (3, 6)), Seen(1, "w0 c2", (0, 0))]
    assert checkers.never_back(good) == []
    assert says(checkers.never_back([*good, Seen(1, "w0 c1", (2, 7))]), "went back")
    assert says(checkers.never_back([*good, Seen(1, "w0 c1", (3, 5))]), "went back")
    assert checkers.revisions_never_back([("g1", 4), ("g2", 3), ("g1", 4), ("g1", 5)]) == []
    assert says(checkers.revisions_never_back([("g1", 4), ("g1", 3)]), "went back")


def test_stands_for_ever() -> None:
    assert checkers.stands_for_ever({row(1)}, {row(1), row(2)}) == []
    assert says(checkers.stands_for_ever({row(1), row(2)}, {row(1)}), "gone")


def operation(start: float, end: float, call: str, result: str | None) -> Operation:
    return Operation(1, start, end, call, result)


@pytest.mark.parametrize(
    "history",
    [
        [operation(0, 1, "create", "ok"), operation(2, 3, "list", "there"), operation(4, 5, "drop", "ok")],
        [operation(0, 1, "create", "ok"), operation(0, 1, "create", "exists"), operation(2, 3, "drop", "ok")],
        [operation(0, math.inf, "create", None), operation(1, 2, "list", "missing"), operation(3, 4, "list", "there")],
        [operation(0, math.inf, "create", None), operation(1, 2, "list", "missing"), operation(3, 4, "create", "ok")],
        [operation(0, 5, "create", "ok"), operation(1, 2, "list", "there"), operation(1, 2, "list", "missing")],
        [operation(0, 1, "drop", "missing"), operation(2, 3, "create", "ok"), operation(4, 5, "create", "exists")],
    ],
)
def test_schema_that_has_an_order(history: list[Operation]) -> None:
    assert checkers.schema_linearizable({"d": history}) == []


@pytest.mark.parametrize(
    "history",
    [
        [operation(0, 1, "create", "ok"), operation(2, 3, "list", "missing")],
        [operation(0, 1, "create", "ok"), operation(2, 3, "create", "ok")],
        [operation(0, 1, "create", "ok"), operation(2, 3, "drop", "ok"), operation(4, 5, "drop", "ok")],
        [operation(0, 1, "drop", "ok")],
        [operation(0, 1, "create", "exists")],
        [operation(0, 9, "create", "ok"), operation(1, 2, "list", "there"), operation(3, 4, "list", "missing")],
        [
            operation(0, 1, "create", "ok"),
            operation(2, 3, "drop", "ok"),
            operation(4, 5, "create", "ok"),
            operation(6, 7, "list", "missing"),
        ],
    ],
)
def test_schema_that_has_none(history: list[Operation]) -> None:
    assert says(checkers.schema_linearizable({"d": history}), "database name d has no order")


def test_the_search_gives_up_loudly(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.wgl.STEPS_MAX", 3)
    history = [operation(0, 1, "create", "ok"), *[operation(2, 3, "list", "there")] * 8]
    with pytest.raises(TooManySteps):
        is_linearizable(history, checkers.NAME_MODEL)
    assert says(checkers.schema_linearizable({"d": history}), "undecided")


def test_a_register_with_many_values() -> None:
    """The search is not about names only: a stale read between two writes has no order."""

    def step(state: str, call: Operation) -> str | None:
        return call.call if call.result == "written" else (state if call.result == state else None)

    model = Model("", step)
    good = [operation(0, 1, "a", "written"), operation(0.5, 3, "b", "written"), operation(2, 2.5, "", "a")]
    assert is_linearizable(good, model)
    assert not is_linearizable([*good, operation(3.2, 3.5, "", "b"), operation(4, 5, "", "a")], model)


def fact(sequence: int, kind: ObjectKind, epoch: int, log_id: int = 1) -> ObjectFacts:
    return ObjectFacts(log_id, sequence, kind, epoch)


def test_epochs() -> None:
    opened, data = ObjectKind.OPEN, ObjectKind.DATA
    good = [fact(0, opened, 0), fact(1, data, 0), fact(2, opened, 2), fact(4, data, 2), fact(0, opened, 0, 2)]
    assert checkers.epochs_never_interleave(good) == []
    assert says(checkers.epochs_never_interleave([*good, fact(5, data, 0)]), "another epoch")
    assert says(checkers.epochs_never_interleave([*good, fact(6, ObjectKind.CHECKPOINT, 1)]), "another epoch")
    assert says(checkers.epochs_never_interleave([fact(3, data, 0)]), "another epoch")


def entry(sequence: int, base: int, count: int, index: int = 0, partition: int = 0, identity: int = 0) -> LogEntry:
    write_id = WriteId(1, b"w", 1, identity, 1) if identity else WriteId()
    return LogEntry(1, sequence, index, EntryKind.ROWS, 7, partition, base, count, write_id)


def test_offsets() -> None:
    good = [entry(1, 0, 5), entry(1, 0, 2, 1, 1), entry(2, 5, 1), LogEntry(1, 3, -1, 0), entry(4, 6, 1)]
    assert checkers.offsets_without_gap(good) == []
    assert says(checkers.offsets_without_gap([*good, entry(5, 8, 1)]), "left out")
    assert says(checkers.offsets_without_gap([*good, entry(5, 6, 1)]), "given twice")
    assert checkers.offsets_without_gap([*good, entry(9, 80, 1)]) == [], "objects 5 to 8 have been collected"


def test_write_ids() -> None:
    good = [entry(1, 0, 5, identity=1), entry(2, 5, 1, identity=2), entry(2, 0, 1, 1, 1, identity=2), entry(3, 6, 1)]
    assert checkers.write_ids_once(good) == []
    assert says(checkers.write_ids_once([*good, entry(9, 8, 1, identity=1)]), "twice")


def test_a_run_must_have_done_something() -> None:
    assert checkers.faults_fired({"kill": 2}, ["kill"]) == []
    assert says(checkers.faults_fired({"kill": 2}, ["kill", "cut"]), "never fired: cut")
    assert says(checkers.faults_fired({}, []), "no fault fired")
    assert says(checkers.faults_fired({"kill": 0}, ["kill"]), "no fault fired")
    assert checkers.enough_was_done(100, 3, 3, 3, 3) == []
    assert says(checkers.enough_was_done(10, 3, 3, 3, 3), "10 rows")
    assert says(checkers.enough_was_done(100, 2, 3, 3, 3), "read back")
    assert says(checkers.enough_was_done(100, 3, 2, 3, 3), "2 deletes and updates")
    assert says(checkers.enough_was_done(100, 3, 3, 2, 3), "2 answers of a materialized view")


def test_deleted_rows_stay_away_and_the_others_stay() -> None:
    rows = [Row("d", 1, n) for n in range(5)]
    wanted = {rows[0]: 7, rows[1]: GONE, rows[2]: UNCERTAIN, rows[3]: UNCERTAIN}
    held = [Found(rows[0], 7), Found(rows[2], 99)]
    assert checkers.changes_hold(wanted, held) == []
    assert says(checkers.changes_hold(wanted, [*held, Found(rows[1], 1)]), "deleted rows are there")
    assert says(checkers.changes_hold(wanted, [Found(rows[0], 8)]), "another value")
    assert says(checkers.changes_hold(wanted, []), "not deleted are lost")
    assert says(checkers.changes_hold(wanted, [*held, Found(rows[0], 7)]), "twice")
    assert says(checkers.changes_hold(wanted, [*held, Found(rows[4], 7)]), "nobody sent")
    assert checkers.found_of("d", {"client": "c1", "n": 0, "v": 7}) == Found(rows[0], 7)


def test_a_view_says_what_is_left_of_its_rows() -> None:
    wanted = {Row("d", 1, 0): 7, Row("d", 1, 1): 9, Row("d", 1, 2): 1, Row("d", 1, 3): GONE}
    right = [{"half": "h0", "rows": 2, "total": 8}, {"half": "h1", "rows": 1, "total": 9}]
    assert checkers.view_says(wanted, right) == []
    assert checkers.view_says({Row("d", 1, 0): GONE}, []) == []
    for wrong in (
        right[:1],
        [*right, right[0]],
        [right[0] | {"total": 9}, right[1]],
        [right[0] | {"rows": 3}, right[1]],
    ):
        assert says(checkers.view_says(wanted, wrong), "a view says")


def test_the_archive_reads_headers_and_entries(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "3"
    folder.mkdir(parents=True)

    def put(sequence: int, kind: ObjectKind, epoch: int, *entries: LogFrameEntry) -> None:
        header = Header(kind, bytes(16), 3, sequence, epoch, bytes(16), bytes(16), 0, 0, 0)
        (folder / f"{sequence:020d}").write_bytes(b"".join(bytes(part) for part in encode_object(header, entries)))

    put(0, ObjectKind.OPEN, 0)
    put(1, ObjectKind.DATA, 0, LogFrameEntry(EntryKind.ROWS, table_id=5, base_offset=9, offset_count=2))
    archive = LogArchive(tmp_path)
    assert archive.gather() == 2
    (folder / f"{1:020d}").unlink()
    put(2, ObjectKind.OPEN, 2)
    assert archive.gather() == 3, "what was collected stays known"
    assert checkers.epochs_never_interleave(archive.facts.values()) == []
    assert LogEntry(3, 1, 0, EntryKind.ROWS, 5, 0, 9, 2) in archive.all_entries()
