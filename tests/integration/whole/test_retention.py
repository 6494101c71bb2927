"""Retention end to end: expired rows are hidden at once, the cut-off is recorded, and clearing the period is final."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.harness.node import RunningNode
from tests.integration.whole.probing import ask, checkpoint, configure, end_clean, goes_on, rows_of, status_of

if TYPE_CHECKING:
    from pathlib import Path

NS = 1_000_000_000
HOUR = 3600 * NS


def lines(*ages_ns: int, table: str = "m") -> str:
    now = time.time_ns()
    return "".join(f"{table},k=k{i % 3} v={i}i {now - age}\n" for i, age in enumerate(ages_ns))


def values(node: RunningNode, table: str = "m") -> list[int]:
    return [row["v"] for row in node.query(f"SELECT v FROM {table} ORDER BY v", "kept")]


def test_a_period_hides_what_is_older(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data") as node:
        assert configure(node, "POST", "database", db="kept", retention_period="1h").status == 200
        assert configure(node, "POST", "database", db="kept", retention_period="1h").status == 409
        node.write(lines(0, 2 * HOUR, HOUR // 2, 30 * HOUR), "kept", precision="ns")
        assert values(node) == [0, 2], "old rows are never shown, new ones at once"
        assert rows_of(node, "m", "kept") == 2
        checkpoint(node)
        assert values(node) == [0, 2], "in files as in the memtable"
        node.kill()
        node.start()
        assert values(node) == [0, 2], "the recorded cut-off came back"
        assert status_of(node)["databases"][0]["retention_ns"] == HOUR
        node.write(lines(0, 2 * HOUR), "kept", precision="ns")
        assert len(values(node)) == 3, "an old row that comes later is as old"
        goes_on(node)
        end_clean(node)


def test_the_period_can_be_set_changed_and_cleared(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data") as node:
        node.write(lines(0, 2 * HOUR, 50 * HOUR), "kept", precision="ns")
        assert values(node) == [0, 1, 2]
        path = "/api/v3/configure/database/retention_period?db=kept"
        assert ask(node, "POST", f"{path}&duration=10h").status == 204
        assert values(node) == [0, 1]
        node.kill()
        node.start()
        assert values(node) == [0, 1]
        assert ask(node, "DELETE", path).status == 204
        assert status_of(node)["databases"][0]["retention_ns"] is None
        node.write("m,k=z v=9i 1000000000", "kept", precision="ns")
        assert values(node) == [0, 1, 2, 9], "without a period every row that is stored is shown"
        node.kill()
        node.start()
        assert values(node) == [0, 1, 2, 9]
        assert configure(node, "PUT", "database", db="kept", retention_period="10h").status == 200
        assert values(node) == [0, 1]
        bad = ask(node, "POST", f"{path}&duration=soon")
        assert (bad.status, bad.text.startswith("Cannot parse the given human time")) == (400, True)
        assert ask(node, "POST", "/api/v3/configure/database/retention_period?db=none&duration=1h").status == 404
        assert values(node) == [0, 1]
        goes_on(node)
        end_clean(node)


def test_rows_expire_while_the_node_runs(tmp_path: Path) -> None:
    """A cut-off is recorded at most once a minute; a row that was old at the first query is hidden by it."""
    with RunningNode(tmp_path / "data") as node:
        assert configure(node, "POST", "database", db="kept", retention_period="5s").status == 200
        node.write(lines(0, 6 * NS), "kept", precision="ns")
        assert values(node) == [0]
        node.write(lines(0, table="other"), "kept", precision="ns")
        assert values(node, "other") == [0]
        assert node.query("SELECT count(*) AS n FROM m a JOIN other b ON a.k = b.k", "kept") == [{"n": 1}]
        end_clean(node)
