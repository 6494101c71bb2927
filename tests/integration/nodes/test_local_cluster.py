"""`runnel cluster` with real processes: they outlive the command, are known again, are stopped in order.

The nodes are stand-ins (`standin_kind`): a real node's life, health and HTTP, over nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from nodes import __main__ as entry
from nodes.cli.localcluster import start_ticks
from tests.integration.nodes.processes import Process, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUNNEL = "tests.integration.nodes.standin_runnel"
PORTS = 40


class Local:
    """`runnel cluster` on one folder: what starts nodes in a process of its own, the rest in this one."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], http_port: int, base_port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{http_port}"
        self.ports = ("--http-port", str(http_port), "--base-port", str(base_port))
        self._capsys = capsys

    def start(self, *arguments: str) -> tuple[int, str, str]:
        """`up` or `restart`."""
        return run(RUNNEL, "cluster", *arguments, "--dir", str(self.folder))

    def up(self, ingest: int, gateways: int, queries: int = 0) -> tuple[int, str, str]:
        counts = ("--ingest", str(ingest), "--gateways", str(gateways), "--queries", str(queries))
        return self.start("up", *self.ports, *counts)

    def command(self, *arguments: str) -> tuple[int, str, str]:
        return self._here("cluster", *arguments, "--dir", str(self.folder))

    def ask(self, *arguments: str) -> tuple[int, str, str]:
        return self._here("cluster", *arguments, "--host", self.url)

    def _here(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            entry.main(list(arguments))
        out, err = self._capsys.readouterr()
        return int(caught.value.code or 0), out, err

    def ps(self) -> dict[str, dict[str, Any]]:
        code, out, err = self.command("ps", "--json")
        assert (code, err) == (0, "")
        return {row["name"]: row for row in json.loads(out)}

    def end(self) -> None:
        """Whatever a test left behind."""
        state = self.folder / "cluster.json"
        for node in json.loads(state.read_text()).get("nodes", []) if state.exists() else []:
            if node["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(node["pid"], signal.SIGKILL)


def spare_ports() -> int:
    """The first of a row of free ports below the ephemeral ones; by the process, so that parallel tests differ."""
    begin = 14_000 + (os.getpid() * PORTS) % 4_000  # below what tests.harness.ports gives
    for first in range(begin, begin + 2_000, PORTS):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + PORTS):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no row of free ports")


def gone(pid: int) -> None:
    """Wait until a killed process is not there any more, or waits only for its parent."""
    deadline = time.monotonic() + 10
    while start_ticks(pid) is not None:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


@pytest.fixture
def local(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    monkeypatch.setenv("COLUMNS", "120")
    first = spare_ports()
    cluster = Local(tmp_path / "c", capsys, first, first + 5)
    yield cluster
    cluster.end()


def test_up_ps_down(local: Local) -> None:
    code, out, err = local.up(1, 1, 1)
    assert (code, err) == (0, "")
    assert out.startswith("3 nodes are up in ")
    assert f"gateway-1  {local.url}" in out
    assert stat.S_IMODE((local.folder / "secret").stat().st_mode) == 0o600
    rows = local.ps()
    assert [(row["kind"], row["up"], row["ready"]) for row in rows.values()] == [
        ("ingest", True, True), ("gateway", True, True), ("query", True, True),
    ]  # fmt: skip
    assert "raft" in rows["ingest-1"]["addresses"]
    for row in rows.values():
        assert os.getsid(row["pid"]) == row["pid"], "a session of its own"
    assert [line.split()[0] for line in local.command("ps")[1].splitlines()] == ["name", *rows]
    code, out, err = local.command("up")
    assert (code, out) == (1, "")
    assert "all 3 nodes are up already" in err
    code, out, err = local.command("up", "--ingest", "3")
    assert code == 1
    assert "with another --ingest; stop them first" in err

    code, out, err = local.command("down")
    assert code == 0
    assert out.startswith("3 nodes are stopped after ")
    assert err.splitlines() == ["stopping query-1", "stopping gateway-1", "stopping ingest-1"]
    assert [row["up"] for row in local.ps().values()] == [False] * 3
    assert local.command("down")[1] == f"nothing runs in {local.folder}\n"
    secret = (local.folder / "secret").read_bytes()
    code, out, err = local.start("up")
    assert (code, err) == (0, "")
    assert out.startswith("3 nodes are up"), "as many as before"
    assert (local.folder / "secret").read_bytes() == secret


def test_the_dead_are_picked_up_and_one_is_restarted(local: Local) -> None:
    assert local.up(1, 1)[0] == 0
    before = local.ps()
    os.kill(before["ingest-1"]["pid"], signal.SIGKILL)
    gone(before["ingest-1"]["pid"])
    rows = local.ps()
    assert (rows["ingest-1"]["up"], rows["gateway-1"]["up"]) == (False, True)
    code, _out, err = local.start("up")
    assert (code, err) == (0, "1 node is up already; starting ingest-1\n")
    rows = local.ps()
    assert rows["ingest-1"]["ready"]
    assert rows["ingest-1"]["pid"] != before["ingest-1"]["pid"]
    assert rows["gateway-1"]["pid"] == before["gateway-1"]["pid"]
    code, out, err = local.start("restart", "gateway-1")
    assert (code, err) == (0, "")
    assert out.startswith("gateway-1 is up again")
    assert local.ps()["gateway-1"]["pid"] != before["gateway-1"]["pid"]
    code, out, err = local.command("restart", "gateway-9")
    assert (code, err) == (1, "runnel: no node is called 'gateway-9'; there are ingest-1, gateway-1\n")


def test_what_does_not_come_up_is_shown(local: Local) -> None:
    data = local.folder / "nodes" / "ingest-1"
    data.mkdir(parents=True)
    (data / "refuse").touch()
    code, out, err = local.up(1, 1)
    assert (code, out) == (1, "")
    assert "ingest-1 did not come up: it ended with exit code 78" in err
    assert "told not to start" in err
    assert "gateway-1 did not" not in err
    assert [(row["ready"], row["reason"]) for row in local.ps().values()] == [(False, "down"), (True, "")]
    (data / "refuse").unlink()
    (data / "slow").touch()
    code, out, err = local.start("up", "--timeout", "1")
    assert (code, out) == (1, "")
    assert "ingest-1 did not come up: not ready after " in err
    assert "told not to start" not in err, "only what this start wrote"


def test_one_that_does_not_stop_is_killed(local: Local) -> None:
    assert local.up(1, 0)[0] == 0
    os.kill(local.ps()["ingest-1"]["pid"], signal.SIGSTOP)
    row = local.ps()["ingest-1"]
    assert (row["up"], row["ready"], row["reason"]) == (True, False, "it does not answer")
    code, _out, err = local.command("down", "--timeout", "0.5")
    assert code == 0
    assert "warning: ingest-1 did not stop within 0.5 s and was killed" in err


def test_another_process_under_the_same_pid_is_not_ours(local: Local) -> None:
    assert local.up(1, 0)[0] == 0
    state = local.folder / "cluster.json"
    before = state.read_text()
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with stranger:
        state.write_text(before.replace(str(json.loads(before)["nodes"][0]["pid"]), str(stranger.pid)))
        assert local.command("down")[1].startswith("nothing runs")
        assert stranger.poll() is None
        stranger.kill()
    state.write_text(before)
    assert local.ps()["ingest-1"]["up"]


def test_logs(local: Local) -> None:
    assert local.up(1, 0)[0] == 0
    code, out, _err = local.command("logs", "ingest-1", "-n", "1")
    assert (code, out.count("\n")) == (0, 1)
    assert "kind=ingest node=ingest-1" in out
    with Process(RUNNEL, "cluster", "logs", "ingest-1", "-n", "1", "-f", "--dir", str(local.folder)) as follower:
        assert "ready" in follower.line("20")
        os.kill(local.ps()["ingest-1"]["pid"], signal.SIGTERM)
        assert "stopping" in follower.line("20")
        follower.signal(signal.SIGINT)
        assert follower.exit_code() == 0
    assert local.command("logs", "x")[0] == 1


def test_no_cluster_and_a_broken_state(local: Local) -> None:
    for words in (["ps"], ["down"], ["logs", "ingest-1"], ["restart", "ingest-1"]):
        code, _out, err = local.command(*words)
        assert (code, err.count("\n")) == (1, 1)
        assert "`runnel cluster up` starts one" in err
    (local.folder / "cluster.json").write_text("{}")
    code, _out, err = local.command("ps")
    assert code == 1
    assert "cannot be read" in err


def test_init_makes_what_is_not_there_once(local: Local) -> None:
    code, out, err = local.command("init", "--hosts", "a.example.org,10.0.0.7")
    assert (code, err) == (0, "")
    assert out.startswith("made   ")
    made = {path: path.read_bytes() for path in local.folder.rglob("*") if path.is_file()}
    keys = [path for path in made if path.suffix == ".key" or path.name == "secret"]
    assert len(keys) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert made[local.folder / "secret"].decode().strip() not in out
    code, out, err = local.command("init", "--hosts", "a.example.org")
    assert out.startswith("kept   ")
    assert {path: path.read_bytes() for path in made} == made
    assert local.up(1, 0)[0] == 0
    assert "ca = " in (local.folder / "nodes" / "ingest-1" / "runnel.toml").read_text()


def test_status_drain_rebalance(local: Local) -> None:
    assert local.up(1, 1)[0] == 0
    code, out, err = local.ask("status")
    assert (code, err) == (1, ""), "shard 2 has an owner that is dead"
    assert "controller ingest-1, placement 3.9, catalog revision 5" in out
    assert "without an owner that is there: shard 2" in out
    code, out, _err = local.ask("status", "--json")
    assert code == 1
    assert json.loads(out)["shards"] == [{"shard": 1, "owner": "ingest-1"}, {"shard": 2, "owner": "ingest-2"}]
    assert local.ask("drain", "ingest-2") == (0, "ingest-2 is drained: 1 shard moved to other nodes\n", "")
    assert local.ask("status")[0] == 0
    assert local.ask("rebalance") == (0, "1 shard moved\n", "")
    code, _out, err = local.ask("drain", "ingest-1")
    assert (code, err) == (75, "runnel: the server is busy: no other ingest node could take its shards\n")
    code, _out, err = local.ask("drain", "ingest-9")
    assert code == 1
    assert "no node of this cluster is called 'ingest-9'" in err
