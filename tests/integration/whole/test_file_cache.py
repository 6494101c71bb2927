"""Copies of an S3 store's files under a node's data folder: found after kill -9, none if switched off, or on a full
disk, and the answers are the same (LOG L16, L20)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.node import RunningNode
from tests.harness.s3server import ACCESS_KEY, SECRET_KEY, S3Server, moto_server
from tests.harness.smalldisk import MIB, SmallDisk, Unavailable
from tests.integration.whole.probing import checkpoint, end_clean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUM = "SELECT count(*) AS n, sum(v) AS s FROM m"
RIGHT = [{"n": 3000, "s": sum(range(3000))}]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with SmallDisk(tmp_path / "disk", 16 * MIB) as found:
            yield found
    except Unavailable as reason:
        pytest.skip(str(reason))


def node_on(s3: S3Server, folder: Path, store: str, **settings: str) -> RunningNode:
    environment = {
        "RUNNEL_STORE__URL": store,
        "RUNNEL_STORE__S3_ENDPOINT": str(s3.options.endpoint),
        "RUNNEL_STORE__S3_ACCESS_KEY": ACCESS_KEY,
        "RUNNEL_STORE__S3_SECRET_KEY": SECRET_KEY,
        "RUNNEL_LOG__SHARDS": "2",
        **{f"RUNNEL_{name}": value for name, value in settings.items()},
    }
    return RunningNode(folder, environment=environment, name=f"node-{folder.name}")


def fill(node: RunningNode) -> None:
    for first in range(0, 3000, 1000):
        node.write("".join(f"m,k=k{i % 5} v={i}i {i + 1}\n" for i in range(first, first + 1000)))
        checkpoint(node)


def figures(node: RunningNode) -> dict[str, float]:
    """The cache's metrics without their prefix."""
    _, text = node.request("GET", "/metrics")
    prefix = "runnel_file_cache_"
    lines = [line.removeprefix(prefix).split() for line in text.decode().splitlines() if line.startswith(prefix)]
    return {name.removesuffix("_total"): float(value) for name, value in lines if not name.endswith("_created")}


def status(node: RunningNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.request("GET", "/api/runnel/status")[1])["file_cache"]
    return found


def test_files_are_kept_and_found_after_a_kill(s3: S3Server, tmp_path: Path) -> None:
    store, folder = s3.new_store(), tmp_path / "data"
    with node_on(s3, folder, store) as node:
        fill(node)
        assert node.query(SUM) == RIGHT
        files = len(list((folder / "file-cache").iterdir()))
        assert files > 0
        assert node.query(SUM) == RIGHT
        found = figures(node)
        assert (found["files"], found["hits"], found["misses"]) == (files, files, files)
        assert status(node)["bytes"] == found["bytes"] > 0
        node.kill()
        (folder / "file-cache" / "new-0123").write_bytes(b"half a file, as the kill left it")
        node.start()
        assert figures(node)["files"] == files
        assert not (folder / "file-cache" / "new-0123").exists()
        assert node.query(SUM) == RIGHT
        assert figures(node)["fetched"] == 0
        end_clean(node)
    with node_on(s3, folder, store, QUERY__FILE_CACHE_BYTES_MAX="0") as node:
        assert node.query(SUM) == RIGHT
        assert not (folder / "file-cache").exists()
        end_clean(node)


def test_a_full_disk_is_passed_by(s3: S3Server, disk: SmallDisk) -> None:
    with node_on(s3, disk.folder / "data", s3.new_store()) as node:
        fill(node)
        disk.fill()
        assert node.query(SUM) == RIGHT
        assert (figures(node)["files"], figures(node)["refused"] > 0) == (0, True)
        disk.relieve()
        assert node.query(SUM) == RIGHT
        assert figures(node)["files"] > 0
        end_clean(node)
