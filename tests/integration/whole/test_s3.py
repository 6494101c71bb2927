"""The whole node on S3, over the real protocol: write, checkpoint, query, kill, restart, query; a second owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.node import RunningNode
from tests.harness.s3server import ACCESS_KEY, SECRET_KEY, S3Server, moto_server
from tests.integration.whole.probing import checkpoint, end_clean, goes_on, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


def node_on(s3: S3Server, folder: Path, store: str) -> RunningNode:
    environment = {
        "RUNNEL_STORE__URL": store,
        "RUNNEL_STORE__S3_ENDPOINT": str(s3.options.endpoint),
        "RUNNEL_STORE__S3_REGION": "us-east-1",
        "RUNNEL_STORE__S3_ACCESS_KEY": ACCESS_KEY,
        "RUNNEL_STORE__S3_SECRET_KEY": SECRET_KEY,
        "RUNNEL_LOG__SHARDS": "2",
    }
    folder.mkdir(exist_ok=True)
    return RunningNode(folder / "data", environment=environment)


def test_write_checkpoint_query_kill_and_restart(s3: S3Server, tmp_path: Path) -> None:
    store = s3.new_store()
    with node_on(s3, tmp_path / "one", store) as node:
        node.write("".join(f"m,k=k{i % 5} v={i}i {i + 1}\n" for i in range(2000)))
        checkpoint(node)
        node.write("".join(f"m,k=k{i % 5} v={i}i {i + 1}\n" for i in range(2000, 2500)))
        node.write("m,k=k0 v=-1i 1\nm,k=k0 w=7i 1")
        expected = [{"n": 2500, "s": sum(range(2500)) - 1, "w": 7}]
        question = "SELECT count(*) AS n, sum(v) AS s, max(w) AS w FROM m"
        assert node.query(question) == expected
        assert SECRET_KEY not in node.text()
        assert ACCESS_KEY not in node.text()
        assert node.alarms() == []
        node.kill()
        node.start()
        assert node.query(question) == expected
        checkpoint(node)
        assert node.query(question) == expected
        (files,) = node.query("SELECT count(*) AS n, sum(row_count) AS r FROM system.parquet_files")
        assert files["n"] == 2
        assert files["r"] == 2501
        goes_on(node)
        end_clean(node)
    assert not (tmp_path / "one" / "data" / "store").exists(), "nothing durable lies beside the bucket"
    with node_on(s3, tmp_path / "two", store) as node:
        assert node.query(question) == expected, "another folder, the same store"
        end_clean(node)


def test_a_second_owner_on_s3_fences_the_first(s3: S3Server, tmp_path: Path) -> None:
    store = s3.new_store()
    with node_on(s3, tmp_path / "one", store) as first:
        for i in range(20):
            first.write(f"m v={i}i {i + 1}")
        with node_on(s3, tmp_path / "two", store) as second:
            status, _ = first.request("POST", "/api/v3/write_lp?db=db", b"m v=99i 99")
            assert status == 503
            assert first.process is not None
            assert first.process.wait(30) == 75
            assert rows_of(second, "m") == 20
            goes_on(second)
            end_clean(second)
