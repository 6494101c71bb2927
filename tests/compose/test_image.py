"""The image by itself: who it runs as, what it may write, that the kernel is compiled, how it starts and ends."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.compose.docker import ROOT, docker
from tests.harness.exchange import ask, query_path, write_path
from tests.harness.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(300)

IMAGE = "runnel"
READY_SECONDS_MAX = 90.0


@contextlib.contextmanager
def single(volume: str) -> Iterator[tuple[str, int]]:
    """`runnel start` in a container, as docs/containers.md says: its id and its port."""
    port = free_port()
    container = docker(
        "run", "-d", "--init", "-p", f"127.0.0.1:{port}:8181", "-v", f"{volume}:/data",
        "-e", "RUNNEL_HTTP__LISTEN=0.0.0.0:8181", "-e", "RUNNEL_AUTH__MODE=off", IMAGE, "start",
    )  # fmt: skip
    try:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while ask("127.0.0.1", port, "GET", "/health/ready", seconds=5).status != 200:
            assert time.monotonic() < deadline, docker("logs", container)
            time.sleep(0.1)
        yield container, port
    finally:
        docker("rm", "-f", container)


def test_it_runs_as_a_user_of_its_own() -> None:
    assert docker("run", "--rm", "--entrypoint", "id", IMAGE, "-un") == "runnel"
    assert docker("run", "--rm", IMAGE, "--version").startswith("runnel ")


def test_the_kernel_is_compiled_already() -> None:
    script = (ROOT / "tests/compose/kernel_check.py").read_text()
    docker("run", "--rm", "--entrypoint", "python3", IMAGE, "-c", script)


def test_nothing_of_the_build_is_left() -> None:
    """No compiler, no sources of the build, no certificate authority of the machine that built it."""
    found = docker(
        "run", "--rm", "--entrypoint", "sh", IMAGE, "-c",
        "ls /usr/local/share/ca-certificates; command -v gcc; ls -d /build 2>/dev/null; true",
    )  # fmt: skip
    assert found == ""


def test_it_listens_beyond_its_loopback_only_when_told_that_this_is_meant() -> None:
    said = docker(
        "run", "--rm", "--entrypoint", "sh", "-e", "RUNNEL_HTTP__LISTEN=0.0.0.0:8181", IMAGE, "-c",
        "runnel config check 2>&1; echo exit $?",
    )  # fmt: skip
    assert "auth.mode" in said
    assert said.endswith("exit 78")


def test_one_process_serves_keeps_its_volume_and_ends_cleanly() -> None:
    volume = f"runnel-test-{uuid.uuid4().hex[:8]}"
    try:
        with single(volume) as (container, port):
            assert ask("127.0.0.1", port, "POST", write_path("db"), b"t,a=b x=1i 1").is_ok
            deadline = time.monotonic() + 60
            while json.loads(docker("inspect", container))[0]["State"]["Health"]["Status"] != "healthy":
                assert time.monotonic() < deadline, docker("inspect", container)
                time.sleep(0.5)
            docker("stop", "-t", "120", container, seconds=180)
            assert json.loads(docker("inspect", container))[0]["State"]["ExitCode"] == 0, docker("logs", container)
        with single(volume) as (_, port):
            rows = ask("127.0.0.1", port, "GET", query_path("SELECT x FROM t", "db")).ok().json
            assert rows == [{"x": 1}]
    finally:
        docker("volume", "rm", "-f", volume)
