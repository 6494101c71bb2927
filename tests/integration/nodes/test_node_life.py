"""A node's life in a real process: lock, port, health while replaying, drain, signals, exit codes."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.integration.nodes.processes import Process

if TYPE_CHECKING:
    from pathlib import Path

NODE = "tests.integration.nodes.placeholder_node"


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def post(url: str, document: object) -> int:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ready_url(process: Process) -> str:
    return process.line("ready ").split()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_drains_checkpoints_and_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    with Process(NODE, str(tmp_path)) as node:
        url = ready_url(node)
        assert get(f"{url}/health") == (200, "OK")
        node.signal(number)
        assert node.exit_code() == 0
        assert node.rest() == ["checkpoint", "closed"]
        events = [json.loads(line)["event"] for line in node.errors.splitlines()]
        assert events == ["ready", "stopping", "draining", "stopped"]


def test_health_is_answered_during_replay_and_doors_are_not(tmp_path: Path) -> None:
    port = free_port()
    with Process(NODE, str(tmp_path), f"listen=127.0.0.1:{port}", "replay=3") as node:
        deadline = time.monotonic() + 20
        while True:
            try:
                status, text = get(f"http://127.0.0.1:{port}/health")
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert status == 503
        assert "replaying" in text
        assert get(f"http://127.0.0.1:{port}/health/live")[0] == 200
        assert get(f"http://127.0.0.1:{port}/health/startup")[0] == 503
        assert get(f"http://127.0.0.1:{port}/api/v3/query_sql?db=x&q=SELECT+1")[0] == 503
        url = ready_url(node)
        assert get(f"{url}/health")[0] == 200
        assert get(f"{url}/health/startup")[0] == 200


def test_status_comes_from_the_node(tmp_path: Path) -> None:
    with Process(NODE, str(tmp_path)) as node:
        status, text = get(ready_url(node) + "/api/runnel/status")
        assert status == 200
        document = json.loads(text)
        assert document["pid"] == node.pid
        assert document["phase"] == "ready"
        assert document["ready"] is True
        assert document["data_dir"] == str(tmp_path)
        assert document["memory"]["resident_bytes"] > 2**20
        assert document["listen"]["http"].startswith("127.0.0.1:")


def test_a_stop_during_replay_is_obeyed_at_once(tmp_path: Path) -> None:
    with Process(NODE, str(tmp_path), "replay=60") as node:
        deadline = time.monotonic() + 20
        while not (tmp_path / "runnel.lock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)
        node.signal(signal.SIGTERM)
        assert node.exit_code(10) == 0
        assert node.rest() == []


def test_a_request_under_way_is_answered_before_the_end(tmp_path: Path) -> None:
    with Process(NODE, str(tmp_path), "alter=1.5") as node:
        url = ready_url(node)
        statuses: list[int] = []
        client = threading.Thread(target=lambda: statuses.append(post(f"{url}/api/v3/configure/database", {"db": "d"})))
        client.start()
        node.line("altering")
        node.signal(signal.SIGTERM)
        assert node.exit_code() == 0
        client.join(10)
        assert statuses == [200]


def test_a_request_that_outlasts_the_drain_is_cut_off(tmp_path: Path) -> None:
    with Process(NODE, str(tmp_path), "alter=60", "drain=0.5") as node:
        url = ready_url(node)
        client = threading.Thread(target=_post_quietly, args=(f"{url}/api/v3/configure/database",))
        client.start()
        node.line("altering")
        started = time.monotonic()
        node.signal(signal.SIGTERM)
        assert node.exit_code() == 0
        assert time.monotonic() - started < 8
        client.join(10)
        assert node.rest() == ["checkpoint", "closed"]


def _post_quietly(url: str) -> None:
    try:
        post(url, {"db": "d"})
    except OSError:
        return


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with Process(NODE, str(tmp_path), "checkpoint=60") as node:
        ready_url(node)
        node.signal(signal.SIGTERM)
        node.error_line("draining")
        node.signal(signal.SIGINT)
        assert node.exit_code(5) == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("error", "code"), [("Fenced", 75), ("FsyncFailed", 74), ("StoreUnavailable", 69), ("LogDamaged", 74)]
)
def test_a_failure_while_serving_ends_the_node_with_its_code(tmp_path: Path, error: str, code: int) -> None:
    with Process(NODE, str(tmp_path), f"fail={error}", "after=0.2") as node:
        ready_url(node)
        assert node.exit_code() == code
        assert node.rest() == ["closed"], "no checkpoint after a failure"
        last = json.loads(node.errors.splitlines()[-1])
        assert (last["event"], last["exit"], last["error"]) == ("the node ends", code, "placeholder failure")
        assert "exception" not in last


def test_an_unsuitable_store_is_exit_74(tmp_path: Path) -> None:
    with Process(NODE, str(tmp_path), "open_error=StoreUnsuitable") as node:
        assert node.exit_code() == 74
        assert "store_unsuitable" in node.errors


def test_an_error_beside_the_node_ends_it(tmp_path: Path) -> None:
    with Process(NODE, str(tmp_path), "beside_error=1") as node:
        assert node.exit_code() == 74
        assert "store_full" in node.errors


def test_a_taken_port_is_exit_69_before_the_store_is_touched(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Process(NODE, str(tmp_path), f"listen=127.0.0.1:{port}") as node:
            assert node.exit_code() == 69
            assert f"127.0.0.1:{port}" in node.errors
            assert node.rest() == []


def test_a_second_process_on_the_folder_is_refused_with_the_pid(tmp_path: Path) -> None:
    with Process(NODE, str(tmp_path)) as first:
        url = ready_url(first)
        with Process(NODE, str(tmp_path)) as second:
            started = time.monotonic()
            assert second.exit_code() == 75
            assert time.monotonic() - started < 15
            assert f"process {first.pid}" in second.errors
        assert get(f"{url}/health")[0] == 200
        first.signal(signal.SIGKILL)
        first.exit_code()
    with Process(NODE, str(tmp_path)) as third:
        ready_url(third)
