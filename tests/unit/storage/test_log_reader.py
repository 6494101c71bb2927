"""A store read, answer by answer (LOG L3, L10, L15, L18). `tests.sim` searches all orders against owners."""

from __future__ import annotations

import pytest

import storage.logreader
from storage.errors import LogDamaged, SnapshotTooOld
from storage.logreader import LogReader, ReadPhase
from tests.unit.storage.logscripts import LOG_ID, STORE_ID, Ledger, Shelf, name_of, skip_entry


class Reading:
    """A reader at work on a shelf; each line of a script is an answer and what the reader asks for next."""

    def __init__(self, shelf: Shelf, refuses: set[str] | None = None) -> None:
        self.shelf = shelf
        self.states: list[Ledger] = []
        self._refuses = refuses or set()
        self.reader = LogReader(STORE_ID, LOG_ID, self._state)

    def _state(self) -> Ledger:
        self.states.append(Ledger())
        self.states[-1].refuses = self._refuses
        return self.states[-1]

    @property
    def lines(self) -> list[str]:
        return self.states[-1].lines

    def run(self, script: str) -> LogReader:
        for line in filter(None, map(str.strip, script.splitlines())):
            command, _, expected = line.partition("->")
            self._do(*command.split())
            wanted = [*filter(None, map(str.strip, expected.split(";")))]
            assert (command, [name_of(e) for e in self.reader.take()]) == (command, wanted)
        return self.reader

    def _do(self, verb: str = "", *words: str) -> None:
        if verb == "listed":
            self.reader.listed([*map(int, words)])
        elif verb == "read":
            self.reader.read(int(words[0]), None if "missing" in words else self.shelf.objects[int(words[0])])
        elif verb == "part":
            self.reader.part_read(words[0], None if "missing" in words else words[1].encode())
        else:
            assert verb == "start"


def log() -> Shelf:
    """Checkpoint 5 covers 2; 3 and 4 were appended while its files were written."""
    return Shelf().open(1).data(2, "a").data(3, "b").data(4, "c").checkpoint(5, "2:a:")


WHOLE = """
    start           -> list
    listed 1 3 4 5  -> read 5
    read 5          -> read 3
    read 3          -> read 4
    read 4          -> read 5
    read 5          -> list
"""


def test_l15_l18_a_whole_snapshot() -> None:
    reading = Reading(log())
    reader = reading.run(WHOLE + "listed 1 3 4 5 ->")
    assert reader.phase is ReadPhase.DONE
    assert reading.lines == ["a", "b", "c"]


def test_an_empty_log_has_nothing() -> None:
    reading = Reading(Shelf())
    assert reading.run("start -> list\n listed ->").phase is ReadPhase.DONE
    assert reading.lines == []


def test_l10_the_last_object_names_the_checkpoint() -> None:
    reading = Reading(log().open(6, checkpoint_seq=5))
    reading.run(
        """
    start           -> list
    listed 3 4 5 6  -> read 6
    read 6          -> read 5
    read 5          -> read 3
    """
    )


def test_l10_rows_that_came_meanwhile_do_not_matter() -> None:
    reading = Reading(log().data(6, "d", checkpoint_seq=5))
    reader = reading.run(WHOLE + "listed 1 3 4 5 6 -> read 6\n read 6 ->")
    assert reader.phase is ReadPhase.DONE
    assert reading.lines == ["a", "b", "c"]


@pytest.mark.parametrize("last", ["6", "7"], ids=["the Checkpoint", "an object that names it"])
def test_l10_a_checkpoint_above_the_base_means_start_over(last: str) -> None:
    """L10: what was read may have been the open of a sleeper where a collected object stood."""
    shelf = log().checkpoint(6, "5:a,b,c:").data(7, "d", checkpoint_seq=6)
    reading = Reading(shelf)
    reader = reading.run(WHOLE + f"listed 1 5 6 {last} -> read {last}\n read {last} -> list")
    assert reader.phase is ReadPhase.LISTING
    assert reading.lines == [], "a new, empty state"


@pytest.mark.parametrize(
    "script",
    [
        "listed 1 3 4 5 -> read 5\n read 5 missing -> list",
        "listed 1 3 4 5 -> read 5\n read 5 -> read 3\n read 3 missing -> list",
        "listed 1 3 5 -> read 5\n read 5 -> list",
        WHOLE.replace("start           -> list", "") + "listed 1 6 -> read 6\n read 6 missing -> list",
    ],
    ids=["last", "above k", "not listed", "newest"],
)
def test_l10_a_gap_means_list_again(script: str) -> None:
    reading = Reading(log())
    assert reading.run("start -> list\n" + script).phase is ReadPhase.LISTING


def test_l10_a_gap_that_stays_is_no_damage_that_a_reader_could_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.logreader, "READ_TRIES_MAX", 3)
    reading = Reading(log())
    again = "listed 1 3 5 -> read 5\n read 5 -> list\n"
    reader = reading.run("start -> list\n" + again * 2 + "listed 1 3 5 -> read 5\n read 5 ->")
    assert reader.phase is ReadPhase.FAILED
    assert isinstance(reader.error, SnapshotTooOld)
    assert reader.error.retriable


def with_parts() -> Shelf:
    return Shelf().open(1).data(2, "a").checkpoint(3, "2:a:p,q")


PARTS = "start -> list\n listed 1 2 3 -> read 3\n read 3 -> part p; part q\n"


def test_l16_parts_of_the_checkpoint() -> None:
    whole = Reading(with_parts()).run(PARTS + "part q x ->\n part q x ->\n part p x -> read 3\n read 3 -> list")
    assert whole.phase is ReadPhase.RELISTING
    gone = Reading(with_parts()).run(PARTS + "part p missing -> list\n part q x ->")
    assert gone.phase is ReadPhase.LISTING


@pytest.mark.parametrize(
    ("script", "shelf", "refuses"),
    [
        ("listed 1 2 3 -> read 3\n read 3 -> list\n listed 1 2 3 ->", with_parts().torn(3), set()),
        ("listed 1 2 3 -> read 3\n read 3 -> list\n listed 1 2 3 ->", with_parts(), {"load"}),
        (PARTS[15:] + "part p bad -> list\n listed 1 2 3 ->", with_parts(), set()),
        (
            "listed 1 2 -> read 2\n read 2 -> read 1\n read 1 -> read 2\n read 2 -> list\n listed 1 2 ->",
            Shelf().open(1).data(2, "a"),
            {"a"},
        ),
        (
            (
                "listed 1 2 3 -> read 3\n read 3 -> read 1\n read 1 -> read 2\n read 2 -> read 3\n read 3 -> list\n"
                "listed 1 2 3 ->"
            ),
            Shelf().open(1).data(2, "a").torn(2).data(3, "b"),
            set(),
        ),
    ],
    ids=["torn checkpoint", "sections", "part", "does not fit", "torn"],
)
def test_l3_what_cannot_be_read_is_damage_only_if_nothing_newer_stands(
    script: str, shelf: Shelf, refuses: set[str]
) -> None:
    """L3, L10: one more listing comes first; a newer end means start over, the same end means damage."""
    reader = Reading(shelf, refuses).run("start -> list\n" + script)
    assert reader.phase is ReadPhase.FAILED
    assert isinstance(reader.error, LogDamaged)
    head, _, _ = script.rpartition("listed")
    newer = shelf.data(9, "z")
    reader = Reading(newer, refuses).run("start -> list\n" + head + "listed 1 9 -> read 9\n read 9 -> list")
    assert reader.phase is ReadPhase.LISTING


def test_l3_a_recorded_skip_is_honoured() -> None:
    """L3: the skip stands in the Log, so whoever reads the store knows of it as the owner does."""
    shelf = Shelf().open(1).data(2, "a").torn(2).open(3).data(4, entries=[skip_entry(2)]).data(5, "b")
    reading = Reading(shelf)
    reader = reading.run(
        """
    start           -> list
    listed 1 2 3 4 5 -> read 5
    read 5          -> read 1
    read 1          -> read 2
    read 2          -> read 3
    read 3          -> read 4
    read 4          -> read 5
    read 5          -> list
    listed 1 2 3 4 5 ->
    """
    )
    assert reader.phase is ReadPhase.DONE
    assert reading.lines == ["b"]


def test_a_base_that_is_no_checkpoint_means_list_again() -> None:
    """The name of a collected Checkpoint may be taken by a zombie's late create."""
    reading = Reading(Shelf().open(1).data(2, "a").data(3, "b", checkpoint_seq=2))
    reader = reading.run("start -> list\n listed 1 2 3 -> read 3\n read 3 -> read 2\n read 2 -> list")
    assert reader.phase is ReadPhase.LISTING
