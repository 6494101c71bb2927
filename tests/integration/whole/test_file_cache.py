"""Copies of an S3 store's files under a node's data folder: found after kill -9, none if switched off, or on a full
disk, and the answers are the same (LOG L16, L20)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.cluster import Cluster
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


def reach(s3: S3Server) -> dict[str, str]:
    """The settings by which nodes reach the server."""
    return {
        "RUNNEL_STORE__S3_ENDPOINT": str(s3.options.endpoint),
        "RUNNEL_STORE__S3_ACCESS_KEY": ACCESS_KEY,
        "RUNNEL_STORE__S3_SECRET_KEY": SECRET_KEY,
        "RUNNEL_LOG__SHARDS": "2",
    }


def node_on(s3: S3Server, folder: Path, store: str, **settings: str) -> RunningNode:
    changes = {f"RUNNEL_{name}": value for name, value in settings.items()}
    environment = {**reach(s3), "RUNNEL_STORE__URL": store, **changes}
    return RunningNode(folder, environment=environment, name=f"node-{folder.name}")


def fill(node: RunningNode) -> None:
    for first in range(0, 3000, 1000):
        node.write("".join(f"m,k=k{i % 5} v={i}i {i + 1}\n" for i in range(first, first + 1000)))
        checkpoint(node)


def figures(node: RunningNode) -> dict[str, float]:
    """The cache's metrics without their prefix."""
    return read_figures(node.request("GET", "/metrics")[1])


def read_figures(text: bytes) -> dict[str, float]:
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


@pytest.mark.slow
def test_query_nodes_of_a_cluster_keep_files(s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    settings = {**reach(s3), "RUNNEL_QUERY__COPY_DIR": str(tmp_path / "copy")}
    with Cluster(tmp_path, 1, 1, 1, store=s3.new_store(), environment=settings, shards=2) as cluster:
        for first in range(0, 3000, 1000):
            body = "".join(f"m,k=k{i % 5} v={i}i {i + 1}\n" for i in range(first, first + 1000))
            assert cluster.write("g1", body).status == 204
            assert cluster.nodes["i1"].ask("POST", "/api/runnel/checkpoint").status == 204
        query_node = cluster.nodes["q1"]
        assert [cluster.query("g1", SUM) for _ in range(3)] == [RIGHT] * 3
        found = read_figures(query_node.ask("GET", "/metrics").body)
        assert found["files"] == found["fetched"] == found["misses"] > 0
        assert found["hits"] == 2 * found["misses"]
        query_node.kill()
        query_node.start()
        cluster.wait_settled()
        assert cluster.query("g1", SUM) == RIGHT
        again = read_figures(query_node.ask("GET", "/metrics").body)
        assert (again["files"], again["fetched"]) == (found["files"], 0)
        asked = json.dumps({"db": "db", "q": "COPY m TO 'm.csv'", "format": "json"}).encode()
        answer = cluster.nodes["g1"].ask("POST", "/api/v3/query_sql", asked, {"content-type": "application/json"})
        assert answer.json == [{"bytes": (tmp_path / "copy" / "m.csv").stat().st_size}]
        assert (tmp_path / "copy" / "m.csv").read_text().count("\n") == 3001
        assert cluster.alarms() == []
