"""The client commands that read, against a real HTTP server with scripted answers."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from nodes.cli.client import Client, base_url, error_text, retry_after_seconds
from nodes.cli.client import run as run_async
from nodes.cli.files import files
from nodes.cli.health import health, quick
from nodes.cli.prompt import COLUMNS, TABLES, Names, Session, command, run_statement
from nodes.cli.sql import sql
from nodes.cli.status import status
from nodes.exitcodes import CommandFailed, ExitCode, NodeError, ServerRefused, ServerUnreachable
from nodes.status import STATUS_PATH, DatabaseStatus, FileCacheStatus, LogStatus, MemoryStatus, NodeStatus, TableStatus
from tests.integration.nodes.processes import run
from tests.integration.nodes.scripted_server import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

PRETTY = "+---+\n| v |\n+---+\n| 1 |\n| 2 |\n+---+"
DATABASES = "/api/v3/configure/database"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


ROOM = TableStatus(name="room", columns=4, partitions=1, files=2, file_bytes=2048, rows=12345)


def node_status(*, ready: bool = True) -> NodeStatus:
    return NodeStatus(
        name="n1",
        version="0.1.0",
        pid=7,
        store_id="abc",
        store_url="/data/store",
        data_dir="/data",
        phase="ready" if ready else "replaying",
        ready=ready,
        uptime_seconds=61,
        reasons={} if ready else {"node": "3 of 8 shards"},
        listen={"http": "127.0.0.1:8181"},
        databases=[
            DatabaseStatus(name="home", tables=[ROOM]),
            DatabaseStatus(name="empty", retention_ns=7200 * 10**9),
        ],
        memory=MemoryStatus(resident_bytes=2**28, budget_bytes=2**30),
        logs=[
            LogStatus(
                id=1, name="shard 1", state="owner", epoch=3, sequence=9, covered=8, checkpoint_sequence=9,
                bytes_above_checkpoint=0, objects_above_checkpoint=0,
            )
        ],
    )  # fmt: skip


def test_one_statement(server: ScriptedServer, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    server.script.answers["SELECT v FROM t"] = (200, PRETTY)
    assert sql("SELECT v FROM t;", "d", "pretty", server.url) is ExitCode.OK
    assert capsysbinary.readouterr().out.decode() == PRETTY + "\n"
    assert server.requests == [{"db": "d", "q": "SELECT v FROM t", "format": "pretty"}]


def test_several_statements(server: ScriptedServer, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    server.script.answers |= {"SELECT ';'": (200, "a\n"), "SELECT 2": (200, "b\n")}
    sql("SELECT ';'; SELECT 2", "d", "csv", server.url)
    assert capsysbinary.readouterr().out == b"a\nb\n"


def test_the_only_database_is_taken(server: ScriptedServer) -> None:
    rows = [{"iox::database": "_internal", "deleted": False}, {"iox::database": "home", "deleted": False}]
    server.script.answers |= {DATABASES: (200, json.dumps(rows)), "SELECT 1": (200, "1\n")}
    sql("SELECT 1", None, "csv", server.url)
    assert server.requests[-1]["db"] == "home"


@pytest.mark.parametrize(("names", "says"), [([], "no database"), (["b", "a"], "--db: a, b")])
def test_otherwise_it_must_be_named(server: ScriptedServer, names: list[str], says: str) -> None:
    server.script.answers[DATABASES] = (200, json.dumps([{"iox::database": name, "deleted": False} for name in names]))
    with pytest.raises(CommandFailed, match=says):
        sql("SELECT 1", None, "csv", server.url)


def test_a_query_error_is_one_line_and_exit_1(server: ScriptedServer) -> None:
    server.script.answers["SELEC 1"] = (400, "SQL error: expected a statement, found: SELEC at line 1, column 1")
    code, out, err = run("nodes", "sql", "SELEC 1", "--db", "d", "--host", server.url)
    assert (code, out) == (1, "")
    assert err == "runnel: SQL error: expected a statement, found: SELEC at line 1, column 1\n"


def test_sql_from_standard_input_may_be_empty(server: ScriptedServer) -> None:
    code, _, err = run("nodes", "sql", "-", "--db", "d", "--host", server.url)
    assert code == 1
    assert err == "runnel: there is no statement to run\n"


def test_health(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.answers["/health"] = (200, "OK")
    assert health(server.url, 5, is_json=False) is ExitCode.OK
    assert capsys.readouterr().out == "OK\n"
    server.script.answers["/health"] = (503, "replaying: node: 3 of 8 shards")
    assert health(server.url, 5, is_json=True) is ExitCode.FAILURE
    assert json.loads(capsys.readouterr().out) == {
        "ready": False,
        "status": 503,
        "text": "replaying: node: 3 of 8 shards",
    }


def test_a_node_that_is_not_ready_may_be_live(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.answers["/health"] = (503, "replaying")
    server.script.answers["/health/live"] = (200, "OK")
    assert health(server.url, 5, is_json=False, is_live_enough=True) is ExitCode.OK
    assert health(server.url, 5, is_json=False) is ExitCode.FAILURE
    assert capsys.readouterr() == ("OK\n", "replaying\n")


def test_health_of_a_container_needs_no_grammar(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.answers["/health"] = (200, "OK")
    assert quick(["--timeout", "8", "--host", server.url]) is ExitCode.OK
    assert capsys.readouterr().out == "OK\n"


def test_health_without_a_server_is_quick_and_clear() -> None:
    started = time.monotonic()
    code, out, err = run("nodes", "health", "--host", "127.0.0.1:1", "--timeout", "2")
    assert (code, out) == (1, "")
    assert err.startswith("no server answers at http://127.0.0.1:1")
    assert time.monotonic() - started < 10


def test_status(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.answers[STATUS_PATH] = (200, msgspec.json.encode(node_status()).decode())
    assert status(server.url, is_json=False) is ExitCode.OK
    out = capsys.readouterr().out
    for word in ("n1", "ready", "0.1.0", "127.0.0.1:8181", "256.0 MiB", "home", "room", "12,345", "2.0 KiB", "shard 1"):
        assert word in out, word
    assert "keeps 2h" in out
    assert "cache" not in out, "a node that keeps no files"


def test_status_of_a_node_that_keeps_files(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    cache = FileCacheStatus(files=1200, bytes=3 * 2**30, hits=3, misses=1)
    node = msgspec.structs.replace(node_status(), file_cache=cache)
    server.script.answers[STATUS_PATH] = (200, msgspec.json.encode(node).decode())
    status(server.url, is_json=False)
    assert "1,200 files, 3.0 GiB, 75% of what statements read found there" in capsys.readouterr().out


def test_status_of_a_node_that_is_not_ready(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.answers[STATUS_PATH] = (503, msgspec.json.encode(node_status(ready=False)).decode())
    assert status(server.url, is_json=True) is ExitCode.FAILURE
    assert msgspec.json.decode(capsys.readouterr().out, type=NodeStatus) == node_status(ready=False)
    status(server.url, is_json=False)
    assert "3 of 8 shards" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "body"), [(200, "<html>"), (404, "Not found"), (200, "{}")])
def test_status_of_another_kind_of_server(server: ScriptedServer, code: int, body: str) -> None:
    server.script.answers[STATUS_PATH] = (code, body)
    with pytest.raises(ServerRefused):
        status(server.url, is_json=False)


FILES = "SELECT * FROM system.parquet_files WHERE table_name = '{}' ORDER BY min_time, path"


def test_files(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"path": "t/1.parquet", "size_bytes": 2048, "row_count": 1000, "min_time": "2013-01-01T00:00:00"}
    server.script.answers[FILES.format("it''s")] = (200, json.dumps([row]))
    assert files("it's", "d", server.url, is_json=False) is ExitCode.OK
    out = capsys.readouterr().out
    assert "t/1.parquet" in out
    assert "1 files, 1,000 rows, 2.0 KiB" in out
    assert files("it's", "d", server.url, is_json=True) is ExitCode.OK
    assert json.loads(capsys.readouterr().out) == [row]


def test_no_files_yet(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.answers[FILES.format("t")] = (200, "[]")
    files("t", "d", server.url, is_json=False)
    assert "until the next checkpoint" in capsys.readouterr().out


def at_prompt(server: ScriptedServer, *texts: str, format: str = "pretty") -> Session:
    async def type_all() -> Session:
        async with Client(server.url) as client:
            session = Session(client, "d", format, names=Names(read_at=time.monotonic()))
            for text in texts:
                if text.startswith("\\"):
                    assert await command(session, text)
                else:
                    await run_statement(session, text)
            return session

    session: Session = run_async(type_all())
    return session


def test_prompt_statements_count_rows_and_time(
    server: ScriptedServer, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    server.script.answers["SELECT v"] = (200, PRETTY)
    at_prompt(server, "SELECT v", "\\timing", "SELECT v")
    first, _, second = capsysbinary.readouterr().out.decode().partition("timing is off\n")
    assert first.startswith(PRETTY)
    assert "\n2 rows, " in first
    assert first.endswith("ms\n")
    assert second == PRETTY + "\n2 rows\n"


def test_prompt_commands(server: ScriptedServer, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    server.script.answers |= {
        TABLES: (200, "tables"),
        COLUMNS.format("'a b'"): (200, "columns of a b"),
        DATABASES: (200, '[{"iox::database":"home"}]'),
    }
    session = at_prompt(server, "\\dt", "\\d", '\\d "a b"', "\\l", "\\?", "\\f csv", "\\c other")
    out = capsysbinary.readouterr().out.decode()
    assert out.count("tables") >= 2
    assert "columns of a b" in out
    assert "home\n" in out
    assert "\\timing" in out
    assert (session.format, session.database) == ("csv", "other")


def test_prompt_quit_and_unknown_commands(server: ScriptedServer) -> None:
    async def ask(text: str) -> bool:
        async with Client(server.url) as client:
            return await command(Session(client, "d", "pretty"), text)

    assert run_async(ask("\\q")) is False
    for text in ("\\nonsense", "\\f xml", "\\c"):
        with pytest.raises(CommandFailed, match="unknown command"):
            run_async(ask(text))


def test_error_texts() -> None:
    assert error_text('{"error": "no"}') == "no"
    assert error_text('{"code":"invalid","message":"bad"}') == "bad"
    assert error_text("[1]") == "[1]"
    assert error_text(" plain \n") == "plain"
    assert len(error_text("x" * 10_000)) == 2000


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 1), ("2", 2), ("0", 0.05), ("9999", 30), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)]
)
def test_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after_seconds(header) == seconds


def test_hosts() -> None:
    assert base_url("localhost:1") == "http://localhost:1"
    assert base_url("https://h/p/") == "https://h/p"
    with pytest.raises(ServerUnreachable):
        base_url("http://")


def test_no_server_is_unreachable_for_every_command() -> None:
    with pytest.raises(NodeError, match="no server answers"):
        sql("SELECT 1", "d", "csv", "127.0.0.1:1")
    with pytest.raises(NodeError, match="no server answers"):
        status("127.0.0.1:1", is_json=False)
    with pytest.raises(NodeError, match="no server answers"):
        files("t", "d", "127.0.0.1:1", is_json=False)
