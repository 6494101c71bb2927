"""A full disk (a small tmpfs): writes are refused clearly, nothing acknowledged is lost, it goes on by itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness.node import NodeDied, RunningNode
from tests.harness.waiting import eventually
from tests.integration.whole.probing import MIB, Reply, ask, goes_on, post_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DISK_BYTES = 24 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of `DISK_BYTES`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={DISK_BYTES}"
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {made.stderr.decode()}")
    try:
        yield folder
    finally:
        for _ in range(50):
            if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)


def node_on(disk: Path, tmp_path: Path, **settings: str) -> RunningNode:
    environment = {"RUNNEL_LOG__SHARDS": "2"} | {f"RUNNEL_{name}": value for name, value in settings.items()}
    return RunningNode(tmp_path / "own", "--store", str(disk / "store"), environment=environment)


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    """Somebody else's file takes what is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (room := free_bytes(disk) - leave_bytes) > 0:
            file.write(os.urandom(min(MIB, max(room, 1))))
    return ballast


def lines(start: int, count: int) -> str:
    """Values that do not compress; 64 characters each."""
    return "".join(
        f'm{i % 2},k=k{i % 3} v={i}i,s="{os.urandom(32).hex()}" {i + 1}\n' for i in range(start, start + count)
    )


def standing(node: RunningNode) -> set[int]:
    return {row["v"] for table in ("m0", "m1") for row in node.query(f"SELECT v FROM {table}")}


def is_clear(reply: Reply) -> bool:
    """What a client is told of a full disk."""
    return (
        reply.status == 503
        and reply.headers["content-type"] == "application/json"
        and int(reply.headers["retry-after"]) > 0
        and ("space" in reply.json["error"] or "full" in reply.json["error"] or "checkpoint" in reply.json["error"])
    )


def write_until_full(node: RunningNode, start: int) -> tuple[set[int], set[int], Reply]:
    """Bodies of 500 rows until one is refused and a checkpoint makes no room for it.

    What was acknowledged, what was refused, and the refusal.
    """
    acknowledged: set[int] = set()
    for at in range(start, start + 10_000_000, 500):
        rows = set(range(at, at + 500))
        reply = post_lines(node, lines(at, 500), precision="ns")
        if reply.status != 204:
            ask(node, "POST", "/api/runnel/checkpoint")  # one may be under way: then this ends after it
            reply = post_lines(node, lines(at, 500), precision="ns")
        if reply.status != 204:
            return acknowledged, rows, reply
        acknowledged |= rows
    raise AssertionError("the disk never became full")


def test_writes_fill_the_disk(disk: Path, tmp_path: Path) -> None:
    """The Log may not take what its own Checkpoint needs (L23): checkpoints make room until the files fill the disk."""
    with node_on(disk, tmp_path) as node:
        goes_on(node)
        ballast = fill(disk, leave_bytes=12 * MIB)
        acknowledged, refused, reply = write_until_full(node, 0)
        assert is_clear(reply), (reply.status, reply.text)
        (row,) = node.query("SELECT count(*) AS n FROM system.parquet_files")
        assert row["n"] > 2, "no checkpoint has made room"
        for _ in range(3):
            assert is_clear(post_lines(node, lines(10_000_000, 2000), precision="ns"))
        assert acknowledged <= standing(node) <= acknowledged | refused, "reads go on while the disk is full"
        assert ask(node, "GET", "/health").status == 200
        assert ask(node, "POST", "/api/runnel/checkpoint").status == 204, "room for a checkpoint is kept"
        ballast.unlink()
        eventually(lambda: post_lines(node, lines(20_000_000, 500), precision="ns").status == 204, "writes go on")
        acknowledged |= set(range(20_000_000, 20_000_500))
        assert acknowledged <= standing(node) <= acknowledged | refused
        goes_on(node)
        node.kill()
        node.start()
        assert acknowledged <= standing(node) <= acknowledged | refused
        assert node.stop() == 0
        assert node.alarms() == []


def test_the_disk_is_full_during_a_checkpoint(disk: Path, tmp_path: Path) -> None:
    """There is room for the Log, and none for the files. The checkpoint is tried again until it stands."""
    with node_on(disk, tmp_path) as node:
        for at in range(0, 40_000, 2000):
            node.write(lines(at, 2000), precision="ns")
        acknowledged = set(range(40_000))
        ballast = fill(disk, leave_bytes=64 * 1024)
        reply = ask(node, "POST", "/api/runnel/checkpoint")
        assert is_clear(reply), (reply.status, reply.text)
        assert standing(node) == acknowledged
        assert node.query("SELECT * FROM system.parquet_files") == []
        ballast.unlink()
        eventually(lambda: ask(node, "POST", "/api/runnel/checkpoint").status == 204, "the checkpoint stands")
        assert standing(node) == acknowledged
        (row,) = node.query("SELECT sum(row_count) AS n FROM system.parquet_files")
        assert row == {"n": 40_000}
        goes_on(node)
        node.kill()
        node.start()
        assert standing(node) == acknowledged
        assert node.stop() == 0


def test_killed_while_the_disk_is_full(disk: Path, tmp_path: Path) -> None:
    """A node cannot start on a full disk: it says so and exits 74. With room it has every acknowledged row."""
    with node_on(disk, tmp_path) as node:
        goes_on(node)
        ballast = fill(disk, leave_bytes=6 * MIB)
        acknowledged, refused, reply = write_until_full(node, 0)
        assert is_clear(reply), (reply.status, reply.text)
        node.kill()
        fill_rest = disk / "rest"
        with fill_rest.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(NodeDied, match="exit 74"):
            node.start()
        (complaint,) = node.alarms()
        assert "space" in complaint["error"] or "full" in complaint["error"]
        ballast.unlink()
        fill_rest.unlink()
        node.start()
        assert acknowledged <= standing(node) <= acknowledged | refused
        goes_on(node)
        assert node.stop() == 0
        assert node.alarms() == []
