"""What `runnel queries` prints: whatever a statement holds, and when a node is silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodes.cli.queries import STATEMENT_CHARACTERS_MAX, _print
from nodes.status import QueryStatus

if TYPE_CHECKING:
    import pytest


def query(**changes: object) -> QueryStatus:
    known = {
        "node": "q1", "id": "0123456789abcdef", "phase": "running", "database": "db", "query_text": "SELECT 1",
        "door": "http", "client": "[::1]:5", "total_seconds": 1.25, "rows": 12_345, "bytes": 2048,
    }  # fmt: skip
    return QueryStatus(**(known | changes))  # type: ignore[arg-type]


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *found: QueryStatus) -> str:
    monkeypatch.setenv("COLUMNS", "1000")
    _print(found, [])
    return capsys.readouterr().out


def test_the_longest_comes_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(capsys, monkeypatch, query(id="short"), query(id="long", total_seconds=99.0)).splitlines()
    assert [line.split()[0] for line in lines] == ["id", "long", "short"]
    assert lines[2].split() == [
        "short", "q1", "running", "1.2", "12,345", "2.0", "KiB", "http", "[::1]:5", "db", "SELECT", "1",
    ]  # fmt: skip


def test_its_rung_is_shown_and_how_many_workers_have_tasks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"full shuffle": 4, "partial/final": 0, "local stream": 0, None: 0}
    out = printed(capsys, monkeypatch, *(query(rung=rung, workers=count) for rung, count in places.items()))
    between = [line.partition("running")[2].partition("1.2")[0].strip() for line in out.splitlines()[1:]]
    assert between == ["full shuffle on 4", "partial/final", "local stream", ""]


def test_a_statement_is_one_line_and_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = printed(capsys, monkeypatch, query(query_text="SELECT '[red]',\n\t 2" + " " * 9 + "-- [/]"))
    assert out.splitlines()[1].endswith("SELECT '[red]', 2 -- [/]")
    out = printed(capsys, monkeypatch, query(query_text="x" * 2_000))
    assert out.count("x") == STATEMENT_CHARACTERS_MAX


def test_nothing_runs_and_somebody_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    _print([], ["q2"])
    assert capsys.readouterr().out == "no query waits or runs\nq2 did not say what runs there\n"
