"""The command line's grammar: flags reach their commands, help is worth reading, errors are one line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nodes import __main__ as entry
from nodes.exitcodes import ExitCode
from nodes.settings import FIELDS
from storage.errors import StoreUnavailable

ROOT = Path(__file__).parents[3]
COMMANDS = (
    "start",
    "demo",
    "sql",
    "write",
    "import",
    "export",
    "status",
    "files",
    "queries",
    "health",
    "config",
    "gateway",
    "ingest",
    "query",
    "cluster",
)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNNEL_CONFIG", raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def runnel(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        entry.main(list(arguments))
    return int(caught.value.code or 0)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert runnel("--help") == 0
    out = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in out] == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("start",), ("--data", "--store", "--http", "--name", "--config", "--shards", "127.0.0.1:8181", "SIGTERM")),
        (("gateway",), ("--data", "--store", "--grpc", "--gossip", "--join", "--secret-file", "clients talk to")),
        (("ingest",), ("--voters", "--raft", "owns shards", "nothing that was acknowledged is lost")),
        (("query",), ("--zone", "any number may come and go")),
        (("demo",), ("flight", "--http", "--once", "live")),
        (("write",), ("--db", "--precision", "--batch-lines", "gzip", "standard input", "their numbers in the file")),
        (("import",), ("--db", "--table", "--tag", "--time", "--precision", ".parquet", ".csv.gz", "a new one")),
        (("export",), ("--table", "--query", "--format", "--force", "line protocol", "standard output")),
        (("sql",), ("--db", "--format", "prompt", "semicolon", "\\?")),
        (("status",), ("--json", "--host", "RUNNEL_HOST")),
        (("files",), ("--db", "Parquet")),
        (("queries",), ("kill", "--json", "--host", "the whole cluster", "Exit 0")),
        (("queries", "kill"), ("ID", "query_killed")),
        (("health",), ("Exit 0", "--timeout", "--ready", "--live", "Every kind of node")),
        (("cluster",), ("init", "up", "down", "ps", "logs", "restart", "status", "drain", "rebalance")),
        (("cluster", "init"), ("--hosts", "certificate authority", "What is there already stays")),
        (("cluster", "up"), ("--ingest", "--gateways", "--queries", "--base-port", "8181", "those that are down")),
        (("cluster", "down"), ("--dir", "one by one", "The data stays")),
        (("cluster", "ps"), ("--json", "ready or why not")),
        (("cluster", "logs"), ("NAME", "--follow", "-n")),
        (("cluster", "restart"), ("NAME", "Stop one node cleanly")),
        (("cluster", "status"), ("--host", "--json", "Exit 0 if there is a controller")),
        (("cluster", "drain"), ("NODE", "before it is stopped for good")),
        (("cluster", "rebalance"), ("evenly",)),
        (("config", "show"), ("Secrets stay hidden", "--json")),
        (("config", "check"), ("78",)),
    ],
)
def test_help_of_each_command(
    command: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert runnel(*command, "--help") == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert [word for word in words if word not in out] == []


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("write",), ("write", "f"), ("files", "t"), ("start", "--shards", "x"), ("sql", "--format", "xml")],
)
def test_a_wrong_command_line_is_exit_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert runnel(*arguments) == ExitCode.USAGE
    assert capsys.readouterr().out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert runnel("--version") == 0
    assert capsys.readouterr().out.startswith("runnel ")


def test_help_is_quick() -> None:
    """Only what the grammar needs is imported: nothing of the engine, the server or the clients."""
    code = (
        "import sys, nodes.cli.app, nodes.__main__;"
        "print([m for m in ('pyarrow','numpy','datafusion','aiohttp','numba','structlog','psutil','prompt_toolkit',"
        "'uvicorn','msgspec') if m in sys.modules])"
    )
    started = time.process_time()
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert out == "[]\n"
    assert time.process_time() - started < 5


class Recorder:
    """Stands where a command's function is and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *arguments: Any, **named: Any) -> ExitCode:
        self.calls.append((arguments, named))
        return ExitCode.OK


def test_start_passes_its_flags_as_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("nodes.cli.start.start", recorder)
    runnel(
        *("start", "--data", "/d", "--store", "s3://b", "--http", "127.0.0.1:1", "--name", "n", "--shards", "3"),
        *("--config", "f.toml", "--grpc", "127.0.0.1:2"),
    )
    (((config, flags), _),) = recorder.calls
    assert config == Path("f.toml")
    assert flags == {
        "data.dir": "/d",
        "store.url": "s3://b",
        "http.listen": "127.0.0.1:1",
        "grpc.listen": "127.0.0.1:2",
        "node.name": "n",
        "log.shards": 3,
    }
    assert set(flags) <= set(FIELDS)


def test_cluster_up_passes_only_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("nodes.cli.cluster.up", recorder)
    runnel("cluster", "up", "--dir", "d", "--ingest", "5", "--base-port", "20000")
    (((folder, given, seconds), _),) = recorder.calls
    assert (folder, seconds) == ("d", 120.0)
    assert {key: value for key, value in given.items() if value is not None} == {"ingest": 5, "base_port": 20000}
    runnel("cluster", "up")
    assert set(recorder.calls[1][0][1].values()) == {None}


@pytest.mark.parametrize("kind", ["gateway", "ingest", "query"])
def test_a_kind_passes_its_flags_as_settings(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("nodes.cli.kinds.run", recorder)
    given = {
        "data": "/d", "store": "s3://b", "http": "127.0.0.1:1", "grpc": "127.0.0.1:2", "gossip": "127.0.0.1:3",
        "raft": "127.0.0.1:4", "voters": "n=127.0.0.1:4", "name": "n", "join": "h:3,i:3", "zone": "z",
        "secret-file": "s",
    }  # fmt: skip
    runnel(kind, *(word for name, value in given.items() for word in (f"--{name}", value)), "--shards", "3")
    (((told, config, flags), _),) = recorder.calls
    assert (told, config) == (kind, None)
    assert list(flags.values()) == [*given.values(), 3]
    assert list(flags) == [
        "data.dir", "store.url", "http.listen", "grpc.listen", "gossip.listen", "raft.listen", "raft.voters",
        "node.name", "cluster.join", "cluster.zone", "cluster.secret_file", "log.shards",
    ]  # fmt: skip
    assert set(flags) <= set(FIELDS)


def test_bad_settings_of_a_cluster_are_exit_78(capsys: pytest.CaptureFixture[str]) -> None:
    assert runnel("gateway", "--grpc", "10.0.0.1:1", "--name", "g") == ExitCode.CONFIG
    err = capsys.readouterr().err
    assert err.startswith("runnel: grpc.listen = 10.0.0.1:1 can be reached")
    assert "store.url is missing" in err


def test_write_passes_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("nodes.cli.write.write", recorder)
    runnel("write", "a", "-", "--db", "d", "--precision", "ms", "--batch-lines", "5", "--parallel", "2", "--host", "h")
    (((files, options, host), _),) = recorder.calls
    assert files == ["a", "-"]
    assert (options.database, options.precision, options.batch_lines, options.parallel) == ("d", "ms", 5, 2)
    assert host == "h"


def test_sql_passes_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("nodes.cli.sql.sql", recorder)
    runnel("sql", "SELECT 1", "--db", "d", "-f", "csv")
    runnel("sql", "--json")
    assert [arguments for arguments, _ in recorder.calls] == [
        ("SELECT 1", "d", "csv", None),
        (None, None, "json", None),
    ]


def test_config_show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_STORE__S3_ACCESS_KEY", "AKIA-hidden")
    monkeypatch.setenv("RUNNEL_STORE__S3_SECRET_KEY", "hunter2")
    assert runnel("config", "show", "--http", "127.0.0.1:9", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == set(FIELDS)
    assert document["http.listen"] == {"value": "127.0.0.1:9", "origin": "flag"}
    assert document["query.timeout"] == {"value": 300, "origin": "default"}
    assert document["store.s3_secret_key"] == {"value": "********", "origin": "env"}
    assert runnel("config", "show") == 0
    out = capsys.readouterr().out
    assert "hunter2" not in out
    assert "AKIA" not in out
    assert [name for name in FIELDS if name not in out] == []


def test_config_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert runnel("config", "check") == 0
    path = tmp_path / "r.toml"
    path.write_text('[http]\nlisten = "0.0.0.0:1"\nlissten = 2\n')
    capsys.readouterr()
    assert runnel("config", "check", "--config", str(path)) == ExitCode.CONFIG
    captured = capsys.readouterr()
    assert "did you mean http.listen?" in captured.err
    path.write_text('[http]\nlisten = "0.0.0.0:1"\n')
    assert runnel("config", "check", "--config", str(path), "--json") == ExitCode.CONFIG
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert 'auth.mode = "off"' in document["problems"][0]


def test_config_check_of_a_kind(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[node]\nname = "i1"\n[raft]\nvoters = "i1=127.0.0.1:7947"\n')
    assert runnel("config", "check", "--config", str(path)) == 0
    assert runnel("config", "check", "--config", str(path), "--kind", "ingest") == ExitCode.CONFIG
    assert "store.url is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (StoreUnavailable("the store is away"), 69, "runnel: the store is away\n"),
        (FileNotFoundError(2, "there is no such file", "x.lp"), 74, "runnel: x.lp: there is no such file\n"),
        (PermissionError(13, "Permission denied", "/root/x"), 77, "runnel: /root/x: Permission denied\n"),
    ],
)
def test_errors_are_one_line(
    error: Exception, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> ExitCode:
        raise error

    monkeypatch.setattr("nodes.cli.status.status", fail)
    assert runnel("status") == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", says)


def test_bad_settings_stop_a_start_with_78(capsys: pytest.CaptureFixture[str]) -> None:
    assert runnel("start", "--http", "0.0.0.0:1") == ExitCode.CONFIG
    err = capsys.readouterr().err
    assert err.startswith("runnel: http.listen = 0.0.0.0:1 can be reached")
    assert err.count("\n") == 1


def test_the_banner_says_what_to_paste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/nowhere/.venv/bin/runnel", "start"])
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir("/")
    from nodes.cli.start import banner
    from nodes.settings import load

    settings = load(flags={"data.dir": str(tmp_path)}, environment={}).settings
    text = banner(settings, "http://127.0.0.1:99")
    for word in (
        "http://127.0.0.1:99",
        str(tmp_path),
        "/api/v3/write_lp?db=home",
        "nowhere/.venv/bin/runnel sql --db home",
        "Ctrl-C",
    ):
        assert word in text
