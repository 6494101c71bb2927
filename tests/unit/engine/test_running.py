"""The registry of running queries: its state machine, its sums, and that a query ends and is killed once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from engine.errors import NoSuchQuery, QueryKilled
from engine.ladder import Rung
from engine.running import CUT, DONE, NEXT, TEXT_CHARACTERS_MAX, Origin, Phase, RunningQueries

if TYPE_CHECKING:
    from engine.running import QueryView, RunningQuery

WAYS = {
    Phase.WAITING: [],
    Phase.PLANNING: [Phase.PLANNING],
    Phase.RUNNING: [Phase.PLANNING, Phase.RUNNING],
    Phase.SENDING: [Phase.PLANNING, Phase.RUNNING, Phase.SENDING],
}


class Clock:
    """Time as the test says it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def in_phase(phase: Phase, registry: RunningQueries | None = None) -> RunningQuery:
    query = (registry or RunningQueries()).add("db", "SELECT 1")
    for step in WAYS[phase]:
        query.enter(step)
    return query


def test_a_new_query_waits_and_is_listed() -> None:
    registry = RunningQueries()
    query = registry.add("db", "SELECT 1", Origin("http", "10.0.0.1:5", "r1"))
    (view,) = registry.views()
    assert (view.id, view.database, view.text, view.phase) == (query.id, "db", "SELECT 1", Phase.WAITING)
    assert view.origin == Origin("http", "10.0.0.1:5", "r1")
    assert view.started_ns > 0
    assert registry.add("db", "SELECT 1").id != query.id
    assert len(registry.views()) == 2


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Phase, Phase)))
def test_only_what_the_table_names_may_follow(before: Phase, after: Phase) -> None:
    query = in_phase(before)
    assert query.phase is before
    if after in NEXT[before]:
        query.enter(after)
        assert query.phase is after
    else:
        with pytest.raises(AssertionError):
            query.enter(after)


def test_seconds_are_summed_by_phase_and_the_present_one_goes_on() -> None:
    clock = Clock()
    registry = RunningQueries(clock=clock)
    query = registry.add("db", "SELECT 1")
    steps = [(1.0, Phase.PLANNING), (2.0, Phase.RUNNING), (4.0, Phase.SENDING), (8.0, Phase.RUNNING)]
    for seconds, phase in steps:
        clock.now += seconds
        query.enter(phase)
    clock.now += 16.0
    view = query.view()
    assert view.seconds == {Phase.WAITING: 1.0, Phase.PLANNING: 2.0, Phase.RUNNING: 20.0, Phase.SENDING: 8.0}
    assert view.total_seconds == 31.0
    assert query.view() == view


def test_rows_bytes_and_files_are_summed() -> None:
    query = in_phase(Phase.PLANNING)
    query.reads(3, 700)
    query.enter(Phase.RUNNING)
    query.hands_out(10, 80)
    query.enter(Phase.RUNNING)
    query.hands_out(5, 40)
    view = query.view()
    assert (view.rows, view.bytes, view.files, view.file_bytes, view.phase) == (15, 120, 3, 700, Phase.SENDING)


def test_the_rung_is_the_last_that_was_said() -> None:
    query = in_phase(Phase.PLANNING)
    assert (query.view().rung, query.view().workers) == (None, 0)
    query.runs_on(Rung.FULL_SHUFFLE, 4)
    assert (query.view().rung, query.view().workers) == (Rung.FULL_SHUFFLE, 4)
    query.runs_on(Rung.LOCAL, 0)
    assert (query.view().rung, query.view().workers) == (Rung.LOCAL, 0)


def test_what_waits_is_counted_apart() -> None:
    registry = RunningQueries()
    assert registry.counts() == (0, 0)
    for phase in Phase:
        in_phase(phase, registry)
    assert registry.counts() == (3, 1)


def test_a_long_statement_is_cut() -> None:
    registry = RunningQueries()
    text = "x" * TEXT_CHARACTERS_MAX
    assert registry.add("db", text).text == text
    cut = registry.add("db", text + "y").text
    assert len(cut) == TEXT_CHARACTERS_MAX
    assert cut.endswith("x" + CUT)


def test_the_end_is_told_once_and_takes_the_query_off_the_list() -> None:
    ends: list[tuple[QueryView, str]] = []
    registry = RunningQueries(lambda view, outcome: ends.append((view, outcome)))
    query = in_phase(Phase.SENDING, registry)
    query.end(DONE)
    query.end("query_failed")
    assert [(view.id, view.phase, outcome) for view, outcome in ends] == [(query.id, Phase.SENDING, DONE)]
    assert list(registry.views()) == []
    with pytest.raises(NoSuchQuery, match=query.id):
        registry.kill(query.id)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_kill_stops_it_once_by_what_stops_it_now(phase: Phase) -> None:
    registry = RunningQueries()
    query, stopped = in_phase(phase, registry), list[str]()
    query.stop_by(lambda: stopped.append("early"))
    query.stop_by(lambda: stopped.append("now"))
    assert registry.kill(query.id).phase is phase
    registry.kill(query.id)
    assert stopped == ["now"]
    assert query.is_killed


def test_its_error_names_the_query_and_is_not_to_be_retried() -> None:
    query = in_phase(Phase.RUNNING)
    assert query.id in str(query.killed())
    assert (QueryKilled.code, QueryKilled.retriable) == ("query_killed", False)
    assert (NoSuchQuery.code, NoSuchQuery.retriable) == ("no_such_query", False)


def test_an_unknown_id_is_named_in_part() -> None:
    with pytest.raises(NoSuchQuery) as caught:
        RunningQueries().kill("x" * 5000)
    assert "xxx" in str(caught.value)
    assert len(str(caught.value)) < 300
