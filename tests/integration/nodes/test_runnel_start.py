"""`runnel start` and `runnel demo` as people run them: real processes, real store, the public endpoints."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from nodes.demo import paste
from tests.integration.nodes.processes import Process, run

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {"airlines": 16, "airports": 1458, "planes": 3322, "weather": 26115, "flights": 336776}


def ready_url(node: Process) -> str:
    """Where it listens, from its log's line ``ready``."""
    node.error_line('"event": "ready"', seconds=60)
    line = next(json.loads(line) for line in node.errors.splitlines() if '"event": "ready"' in line)
    return f"http://{line['http']}"


def start(data: Path) -> Process:
    return Process("nodes", "start", "--data", str(data), "--http", "127.0.0.1:0", "--shards", "2", "--name", "n1")


def client(*arguments: str) -> str:
    code, out, err = run("nodes", *arguments)
    assert (code, err) == (0, "")
    return out


def test_write_read_stop_start_read(tmp_path: Path) -> None:
    lines = tmp_path / "rooms.lp"
    lines.write_text("".join(f"room,name=r{n % 7} celsius={n / 10} {n}\n" for n in range(1, 1001)))
    data = tmp_path / "data"
    with start(data) as node:
        url = ready_url(node)
        assert client("write", str(lines), "--db", "home", "--precision", "s", "--host", url).startswith("1,000 lines")
        assert client("sql", "SELECT count(*) AS n FROM room", "-f", "csv", "--host", url) == "n\n1000"
        status = json.loads(client("status", "--json", "--host", url))
        assert (status["name"], status["ready"], status["databases"][0]["tables"][0]["rows"]) == ("n1", True, 1000)
        assert client("health", "--host", url) == "OK"
        node.signal(signal.SIGTERM)
        assert node.exit_code() == 0
    with start(data) as node:
        url = ready_url(node)
        assert client("sql", "SELECT count(*) AS n FROM room", "-f", "csv", "--host", url) == "n\n1000"
        files = json.loads(client("files", "room", "--db", "home", "--json", "--host", url))
        assert sum(file["row_count"] for file in files) == 1000
        node.signal(signal.SIGKILL)
        assert node.exit_code() == -signal.SIGKILL
    with start(data) as node:
        url = ready_url(node)
        assert client("sql", "SELECT count(*) AS n FROM room", "-f", "csv", "--host", url) == "n\n1000"


def test_bad_lines_are_named_by_the_real_server(tmp_path: Path) -> None:
    lines = tmp_path / "mixed.lp"
    lines.write_text('t v=1 1\n# note\nt v="text" 2\nt s="two\nlines" 3\nt\nt v=2 4\n')
    with start(tmp_path / "data") as node:
        url = ready_url(node)
        code, out, err = run("nodes", "write", str(lines), "--db", "d", "--precision", "s", "--json", "--host", url)
        assert (code, err) == (1, "")
        document = json.loads(out)
        assert [error["line"] for error in document["errors"]] == [3, 6]
        assert (document["lines"], document["written"], document["rejected"]) == (5, 3, 2)


def test_a_second_start_on_the_folder(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        ready_url(first)
        with start(tmp_path) as second:
            assert second.exit_code() == 75
            assert f"process {first.pid}" in second.errors


@pytest.mark.slow
def test_the_demo_loads_every_row(tmp_path: Path) -> None:
    data = str(tmp_path / "demo")
    with Process("nodes", "demo", "--data", data, "--http", "127.0.0.1:0") as demo:
        url = demo.line("Runnel listens on ", seconds=100).split()[3].rstrip(".")
        for table, rows in ROWS.items():
            out = client("sql", f"SELECT count(*) AS n FROM {table}", "--db", "demo", "-f", "csv", "--host", url)
            assert out == f"n\n{rows}", table
        for query in paste.QUERIES:
            out = client("sql", query.text, "--db", "demo", "-f", "csv", "--host", url)
            lines = out.splitlines()
            assert (tuple(lines[0].split(",")), len(lines) - 1) == (query.columns, query.rows), query.title
        live = paste.LIVE_QUERY
        demo.line("This machine's metrics")
        for _ in range(30):
            code, out, _err = run("nodes", "sql", live.text, "--db", "demo", "-f", "csv", "--host", url)
            if code == 0 and out.count("\n") > 1:
                break
        assert tuple(out.splitlines()[0].split(",")) == live.columns
        assert len(out.splitlines()) > 1, "live rows keep coming"
        demo.signal(signal.SIGINT)
        assert demo.exit_code() == 0
    code, out, err = run("nodes", "demo", "--data", data, "--http", "127.0.0.1:0", "--once")
    assert (code, err) == (0, "")
    assert "336,776 rows" in out
