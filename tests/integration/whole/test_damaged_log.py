"""A byte flipped in one shard's Log: that shard stays closed and says why, others serve, the operator decides (L3)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.harness.node import ROOT, NodeDied, RunningNode
from tests.integration.whole.probing import ask_sql, checkpoint, end_clean, post_lines, rows_of, sql, status_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLES = [f"t{i}" for i in range(6)]


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 0x40


def cut(data: bytearray) -> None:
    del data[-7:]


def log_of(node: RunningNode, log_id: int) -> list[Path]:
    """The objects of a Log, in order."""
    return sorted(p for p in (node.data / "store" / "logs" / str(log_id)).iterdir() if p.name.isdigit())


def skip(node: RunningNode, log_id: int, sequence: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "nodes", "store", "skip", "--data", str(node.data), "--log", str(log_id),
            "--object", str(sequence),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a node that was killed: t1 and t4 have their rows in Log 2, objects 2 to 7, one row each."""
    node = RunningNode(tmp_path_factory.mktemp("original") / "data", environment={"RUNNEL_LOG__SHARDS": "3"})
    with node:
        for table in TABLES:
            for v in range(3):
                node.write(f"{table} v={v}i {v + 1}")
        assert node.alarms() == []
    assert [path.name[-1] for path in log_of(node, 2)] == list("1234567")
    return node.data


@pytest.fixture
def filled(original: Path, tmp_path: Path) -> RunningNode:
    """A node on a copy of that folder, not started."""
    shutil.copytree(original, tmp_path / "data")
    return RunningNode(tmp_path / "data")


@pytest.mark.parametrize(("damage", "sequence"), [(flip, 3), (cut, 7)], ids=["flipped", "torn_at_the_end"])
def test_a_damaged_shard_stays_closed_and_can_be_opened_again(
    filled: RunningNode, damage: Callable[[bytearray], None], sequence: int
) -> None:
    path = log_of(filled, 2)[sequence - 1]
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with filled as node:
        (complaint,) = node.alarms()
        assert complaint["event"] == "a shard stays closed"
        assert complaint["shard"] == 2
        assert complaint["reason"].startswith(f"log 2 object {sequence}: ")
        assert "runnel store skip --log 2" in complaint["to_give_up_the_object"]
        for table in ("t0", "t2", "t3", "t5"):
            assert rows_of(node, table) == 3, "the other shards serve"
        node.write("t0 v=9i 9")
        checkpoint(node)
        for reply in (ask_sql(node, "SELECT * FROM t1"), post_lines(node, "t4 v=9i 9")):
            assert reply.status == 503
            assert f"log 2 object {sequence}: " in reply.json["error"], "the client hears which object it is"
        assert ask_sql(node, "SELECT count(*) AS n FROM t0 JOIN t1 USING (v)").status == 503
        states = {log["name"]: log["state"] for log in status_of(node)["logs"]}
        assert states["shard 1"] == states["shard 3"] == "owner"
        assert states["shard 2"] != "owner"
        running = skip(node, 2, sequence)
        assert (running.returncode, "process" in running.stderr) == (75, True), "not while the node runs"
        assert node.stop() == 0
    wrong = skip(filled, 2, sequence + 10)
    assert wrong.returncode != 0
    assert f"log 2 object {sequence}: " in wrong.stderr
    done = skip(filled, 2, sequence)
    assert done.returncode == 0, done.stderr
    assert f"Log 2 is open again without object {sequence}" in done.stdout
    with filled as node:
        assert node.alarms() == []
        counts = {table: rows_of(node, table) for table in TABLES}
        lost = "t1" if sequence == 3 else "t4"
        assert counts == {"t0": 4} | {t: 2 if t == lost else 3 for t in TABLES if t != "t0"}
        node.write("t1 v=7i 7\nt4 v=7i 7")
        assert (rows_of(node, "t1"), rows_of(node, "t4")) == (counts["t1"] + 1, counts["t4"] + 1)
        end_clean(node)
        node.start()
        assert (rows_of(node, "t1"), rows_of(node, "t4")) == (counts["t1"] + 1, counts["t4"] + 1)
        end_clean(node)


def test_an_object_that_is_gone_is_named(filled: RunningNode) -> None:
    """A gap in a Log is damage too."""
    path = log_of(filled, 2)[3]
    path.unlink()
    with filled as node:
        (complaint,) = node.alarms()
        assert complaint["shard"] == 2
        assert "object 4" in complaint["reason"]
        assert rows_of(node, "t0") == 3
        assert ask_sql(node, "SELECT * FROM t1").status == 503
        assert node.stop() == 0


def test_a_damaged_catalog_stops_the_node(filled: RunningNode) -> None:
    """Without the Catalog nothing can be served: exit 74, and the object's name."""
    path = log_of(filled, 0)[3]
    data = bytearray(path.read_bytes())
    flip(data)
    path.write_bytes(data)
    with pytest.raises(NodeDied, match="exit 74"):
        filled.start()
    (complaint,) = filled.alarms()
    assert complaint["error"].startswith("log 0 object 4: ")
    assert "Traceback" not in filled.text()


VIEW = "SELECT date_bin(INTERVAL '1 minute', time) AS time, count(*) AS n, sum(v) AS total FROM t GROUP BY 1"


@pytest.mark.parametrize("lost", ["rows", "folded"])
def test_a_view_is_right_after_an_object_was_given_up(tmp_path: Path, lost: str) -> None:
    """Rows that were folded are gone, and others must not come under their offsets; or what was folded is gone."""
    environment = {"RUNNEL_LOG__SHARDS": "2", "RUNNEL_VIEWS__REFRESH_EVERY": "0"}
    node = RunningNode(tmp_path / "data", environment=environment)
    with node:
        node.write("t v=1i 1", precision="s")
        assert sql(node, f"CREATE MATERIALIZED VIEW w AS {VIEW}")[0] == 200
        node.write("u v=1i 1", precision="s")
        node.write("x v=1i 1", precision="s")
        assert sql(node, "REFRESH MATERIALIZED VIEW w")[0] == 200
        folded = log_of(node, 2)[-1]
        node.write("t v=2i 120\nt v=3i 180\nu v=2i 2", precision="s")
        rows = log_of(node, 1)[-1]
        node.write("x v=2i 2", precision="s")  # the gap of u is two objects on
        node.write("u v=3i 3", precision="s")
        assert log_of(node, 1)[-3] == rows
        assert sql(node, "REFRESH MATERIALIZED VIEW w")[0] == 200
        node.kill()
    path = {"rows": rows, "folded": folded}[lost]
    data = bytearray(path.read_bytes())
    flip(data)
    path.write_bytes(data)
    assert skip(node, int(path.parent.name), int(path.name)).returncode == 0

    def agrees() -> None:
        wanted = node.query(f"{VIEW} ORDER BY 1")
        assert node.query("SELECT time, n, total FROM w ORDER BY 1") == wanted
        assert wanted

    with node:
        agrees()
        node.write("t v=5i 360\nt v=6i 420", precision="s")
        agrees()
        checkpoint(node)
        agrees()
        assert sql(node, "REFRESH MATERIALIZED VIEW w")[0] == 200
        agrees()
        assert sql(node, "REFRESH MATERIALIZED VIEW w")[1] == '[{"count":0}]'
