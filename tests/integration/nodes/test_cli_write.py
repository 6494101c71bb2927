"""`runnel write` against a real HTTP server that misbehaves on demand."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from nodes.cli import write as module
from nodes.cli.client import ServerBusy
from nodes.cli.write import WriteOptions, write
from nodes.exitcodes import ExitCode, ServerDenied, ServerUnreachable
from tests.integration.nodes.processes import run
from tests.integration.nodes.scripted_server import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


def points(count: int, bad: tuple[int, ...] = ()) -> bytes:
    """Lines numbered from 1; those in ``bad`` are rejected by the server."""
    return b"".join(b"m,t=bad 1\n" if n in bad else b"m,t=a v=%di %d\n" % (n, n) for n in range(1, count + 1))


def options(**changes: Any) -> WriteOptions:
    return WriteOptions(**{"database": "d", "precision": "auto", "batch_lines": 10, "parallel": 3, **changes})


def file(folder: Path, data: bytes, name: str = "points.lp") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_every_line_arrives_once(server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = points(95)
    assert write([file(tmp_path, data)], options(), server.url) is ExitCode.OK
    assert sorted(server.written) == sorted(data.splitlines(keepends=True))
    assert len(server.requests) == 10
    assert {(r["db"], r["precision"], r["accept_partial"]) for r in server.requests} == {("d", "auto", "true")}
    assert 1 < server.at_once_max <= 3
    out = capsys.readouterr().out
    assert out.startswith("95 lines written in ")
    assert "lines/s" in out


def test_one_request_at_once_keeps_the_order(server: ScriptedServer, tmp_path: Path) -> None:
    data = points(55)
    write([file(tmp_path, data)], options(parallel=1), server.url)
    assert b"".join(server.written) == data
    assert server.at_once_max == 1


def test_gzip_and_several_files(server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [file(tmp_path, points(30), "a.lp"), file(tmp_path, gzip.compress(points(31)), "b.lp.gz")]
    assert write(names, options(is_json=True), server.url) is ExitCode.OK
    document = report(capsys)
    assert (document["files"], document["lines"], document["written"], document["rejected"]) == (names, 61, 61, 0)
    assert len(server.written) == 61


def test_rejected_lines_are_named_by_their_place_in_the_file(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = file(tmp_path, points(40, bad=(3, 17, 40)))
    assert write([name], options(), server.url) is ExitCode.FAILURE
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"{name}:{line}: No fields were provided in: m,t=bad 1" for line in (3, 17, 40)
    ]
    assert captured.out.startswith("37 lines written, 3 rejected in ")
    assert len(server.written) == 37


def test_line_numbers_survive_newlines_in_strings(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = file(tmp_path, b'm v="one\ntwo\nthree" 1\n' * 5 + b"m,t=bad 1\n")
    assert write([name], options(batch_lines=5, is_json=True), server.url) is ExitCode.FAILURE
    assert [error["line"] for error in report(capsys)["errors"]] == [16]


def test_a_busy_server_is_asked_again(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script.refusals = [(503, {"Retry-After": "0.05"}, '{"error": "memory is used up"}')] * 4
    assert write([file(tmp_path, points(50))], options(is_json=True), server.url) is ExitCode.OK
    assert report(capsys)["retries"] == 4
    assert len(server.written) == 50


def test_a_server_that_stays_busy_is_given_up(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS_MAX", 0.2)
    server.script.refusals = [(503, {"Retry-After": "0.05"}, "busy")] * 1000
    with pytest.raises(ServerBusy, match="busy") as caught:
        write([file(tmp_path, points(50))], options(), server.url)
    assert caught.value.exit_code == 75


def test_a_broken_connection_is_tried_again_once_it_had_worked(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BROKEN_PAUSE_SECONDS", 0.01)
    server.script.lost_answers = {2, 3}
    data = points(30)
    assert write([file(tmp_path, data)], options(parallel=1, is_json=True), server.url) is ExitCode.OK
    assert report(capsys)["retries"] == 2
    assert set(server.written) == set(data.splitlines(keepends=True))


def test_a_connection_that_never_worked_is_not_tried_again(server: ScriptedServer, tmp_path: Path) -> None:
    server.script.lost_answers = {1}
    with pytest.raises(ServerUnreachable, match="broke"):
        write([file(tmp_path, points(1))], options(), server.url)
    assert len(server.requests) == 1


def test_too_large_bodies_are_halved(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script.body_bytes_max = 60
    data = points(29, bad=(20,)) + b'm v="%s" 1\n' % (b"x" * 100)
    assert write([file(tmp_path, data)], options(batch_lines=30, is_json=True), server.url) is ExitCode.FAILURE
    errors = report(capsys)["errors"]
    assert [(error["line"], error["message"]) for error in errors] == [
        (20, "No fields were provided"),
        (30, "max request size exceeded"),
    ]
    assert len(server.written) == 28


def test_more_bad_lines_than_an_answer_names(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = file(tmp_path, points(5000, bad=tuple(range(1, 3001))))
    assert write([name], options(batch_lines=5000, is_json=True), server.url) is ExitCode.FAILURE
    document = report(capsys)
    assert (document["lines"], document["rejected"], document["written"]) == (5000, 3000, 2000)
    assert [error["line"] for error in document["errors"]] == list(range(1, 3001))


@pytest.mark.parametrize(("status", "body"), [(500, "oops"), (400, '{"error": "db name did not start"}'), (404, "no")])
def test_a_refused_body_is_reported_and_the_rest_goes_on(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, body: str
) -> None:
    server.script.refusals = [(status, {}, body)]
    name = file(tmp_path, points(30))
    assert write([name], options(parallel=1), server.url) is ExitCode.FAILURE
    captured = capsys.readouterr()
    message = "db name did not start" if status == 400 else body
    assert captured.err == f"{name}:1-10: {message}\n"
    assert captured.out.startswith("20 lines written, 10 rejected")


def test_denied_ends_it(server: ScriptedServer, tmp_path: Path) -> None:
    server.script.refusals = [(401, {}, '{"error": "the request was not authenticated"}')] * 100
    with pytest.raises(ServerDenied, match="not authenticated"):
        write([file(tmp_path, points(100))], options(), server.url)
    assert server.written == []


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable, match="runnel start"):
        write([file(tmp_path, points(1))], options(), "127.0.0.1:1")


def test_the_command_line(server: ScriptedServer, tmp_path: Path) -> None:
    name = file(tmp_path, points(20, bad=(5,)))
    arguments = ("write", name, "--db", "d", "--precision", "s", "--batch-lines", "7", "--host", server.url)
    code, out, err = run("nodes", *arguments)
    assert code == 1
    assert out.startswith("19 lines written, 1 rejected")
    assert err == f"{name}:5: No fields were provided in: m,t=bad 1\n"
    assert {request["precision"] for request in server.requests} == {"s"}


def test_the_command_line_says_one_line_when_it_cannot(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.lp")
    assert run("nodes", "write", missing, "--db", "d") == (74, "", f"runnel: {missing}: there is no such file\n")
    name = file(tmp_path, points(1))
    code, out, err = run("nodes", "write", name, "--db", "d", environment={"RUNNEL_HOST": "http://127.0.0.1:1"})
    assert (code, out) == (69, "")
    assert err.count("\n") == 1
    assert "no server answers at http://127.0.0.1:1" in err
