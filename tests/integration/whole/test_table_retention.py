"""Retention per table and by bytes, end to end: set in SQL or over HTTP, rows hidden at once, then their files go."""

from __future__ import annotations

import json
import random
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from tests.harness.node import RunningNode
from tests.harness.waiting import eventually
from tests.integration.whole.probing import ask, checkpoint, clean_node, configure, end_clean, status_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NS: Final = 1_000_000_000
HOUR: Final = 3600 * NS
ONE_SHARD: Final = {"RUNNEL_LOG__SHARDS": "1"}
BATCH_ROWS: Final = 400


def post(node: RunningNode, statement: str, database: str = "kept") -> tuple[int, Any]:
    """A statement by POST, which may change something."""
    body = json.dumps({"db": database, "q": statement, "format": "json"}).encode()
    reply = ask(node, "POST", "/api/v3/query_sql", body, {"Content-Type": "application/json"})
    return reply.status, reply.json if reply.status == 200 else reply.text


def alter(node: RunningNode, statement: str) -> dict[str, Any]:
    status, answer = post(node, statement)
    assert status == 200, answer
    (row,) = answer
    return dict(row)


def lines(*ages_ns: int, table: str = "m") -> str:
    now = time.time_ns()
    return "".join(f"{table},k=k{i % 3} v={i}i {now - age}\n" for i, age in enumerate(ages_ns))


def values(node: RunningNode, table: str = "m") -> list[int]:
    return [row["v"] for row in node.query(f"SELECT v FROM {table} ORDER BY v", "kept")]


def kept_by(node: RunningNode, table: str) -> dict[str, Any]:
    (row,) = node.query(f"SELECT * FROM system.retention WHERE table_name = '{table}'", "kept")
    return row


def test_a_table_has_a_period_of_its_own(tmp_path: Path) -> None:
    with clean_node(tmp_path) as node:
        for table in ("m", "short", "ever"):
            node.write(lines(0, HOUR // 2, 2 * HOUR, 30 * HOUR, table=table), "kept", precision="ns")
        assert alter(node, "ALTER TABLE short SET (retention = '10 min')") == {
            "database_name": "kept", "table_name": "short", "retention": "10 min",
        }  # fmt: skip
        assert alter(node, "alter table EVER set (retention = 'none');")["table_name"] == "ever"
        assert alter(node, "ALTER DATABASE kept SET (retention = '1h')")["retention"] == "1h"
        expected = {"m": [0, 1], "short": [0], "ever": [0, 1, 2, 3]}
        assert {table: values(node, table) for table in expected} == expected, "in memory"
        checkpoint(node)
        assert {table: values(node, table) for table in expected} == expected, "in files"
        node.write(lines(0, HOUR // 2, table="short"), "kept", precision="ns")
        assert values(node, "short") == [0, 0], "a late row is hidden at once"
        node.kill()
        node.start()
        assert values(node, "m") == [0, 1]
        assert values(node, "short") == [0, 0]
        assert values(node, "ever") == [0, 1, 2, 3]
        assert kept_by(node, "short")["hidden_before"] is not None
        assert [kept_by(node, t)["keeps_ns"] if t != "ever" else None for t in ("m", "short", "ever")] == [
            HOUR, HOUR // 6, None,
        ]  # fmt: skip
        alter(node, "ALTER TABLE short RESET (retention)")
        assert values(node, "short") == [0, 0, 1, 1], "as its database again, and its rows are not gone yet"
        tables = {one["name"]: one for one in status_of(node)["databases"][0]["tables"]}
        assert [tables[t].get("retention_ns") for t in ("m", "short", "ever")] == [None, None, 0]


def test_whole_files_of_an_expired_table_go(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data", module="tests.integration.whole.tidy_node", environment=ONE_SHARD) as node:
        for ages in ((30 * HOUR, 29 * HOUR), (0,)):
            for table in ("m", "other"):
                node.write(lines(*ages, table=table), "kept", precision="ns")
            checkpoint(node)
        alter(node, "ALTER TABLE m SET (retention = '1h')")
        eventually(lambda: kept_by(node, "m")["files"] == 1, "the files of hidden rows go")
        assert kept_by(node, "other")["files"] == 2, "another table's stay"
        assert (values(node), values(node, "other")) == ([0], [0, 0, 1])
        alter(node, "ALTER TABLE m RESET (retention)")
        assert values(node) == [0], "what was let go does not come back"
        end_clean(node)


class Writer:
    """Batches of rows whose values compress badly, each newer than the one before and in a file of its own."""

    def __init__(self, node: RunningNode, table: str = "m") -> None:
        self._node = node
        self._table = table
        self._random = random.Random(7)
        self.batches = 0

    def batch(self) -> None:
        number, self.batches = self.batches, self.batches + 1
        words = (self._random.randbytes(24).hex() for _ in range(BATCH_ROWS))
        body = "".join(f'{self._table} b={number}i,w="{w}" {number * 1000 + i}\n' for i, w in enumerate(words))
        self._node.write(body, "kept", precision="second")
        checkpoint(self._node)

    def seen(self) -> Sequence[int]:
        """The batches of which rows are shown; of each all or none."""
        rows = self._node.query(f"SELECT b, count(*) AS n FROM {self._table} GROUP BY b ORDER BY b", "kept")
        assert {row["n"] for row in rows} <= {BATCH_ROWS}
        return [row["b"] for row in rows]


def test_by_bytes_the_oldest_files_go_and_the_newest_stay(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data", module="tests.integration.whole.tidy_node", environment=ONE_SHARD) as node:
        writer = Writer(node)
        writer.batch()
        size = kept_by(node, "m")["file_bytes"]
        limit = int(4.5 * size)
        assert alter(node, f"ALTER TABLE m SET (retention_bytes = '{limit}')")["retention_bytes"] == limit
        for count in range(2, 13):
            writer.batch()
            newest = list(range(max(0, count - 4), count))
            assert writer.seen() == newest, "rows are hidden at the first query after the Checkpoint"
        eventually(lambda: kept_by(node, "m")["file_bytes"] <= limit, "the oldest files go")
        before = kept_by(node, "m")
        node.kill()
        node.start()
        assert writer.seen() == [8, 9, 10, 11], "and after kill -9"
        assert kept_by(node, "m")["hidden_before"] == before["hidden_before"]
        node.write('m b=0i,w="late" 1', "kept", precision="second")
        assert writer.seen() == [8, 9, 10, 11], "a late row below what was cut is hidden at once"
        checkpoint(node)
        assert writer.seen() == [8, 9, 10, 11]
        eventually(lambda: kept_by(node, "m")["file_bytes"] <= limit, "the oldest files go")
        node.kill()
        node.start()
        assert writer.seen() == [8, 9, 10, 11]
        alter(node, "ALTER TABLE m SET (retention_bytes = '1 TB')")
        node.write(f'm,k=old b=1i,w="late" {8 * 1000 - 1}', "kept", precision="second")
        rows = node.query("SELECT b FROM m WHERE k = 'old'", "kept")
        assert rows == [{"b": 1}], "under a greater limit what is written is shown"
        end_clean(node)


def test_a_databases_bytes_are_those_of_its_tables_together(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data", module="tests.integration.whole.tidy_node", environment=ONE_SHARD) as node:
        old, new, own = Writer(node, "old"), Writer(node, "new"), Writer(node, "own")
        new.batches = 100
        for writer in (old, old, old, new, new, own, own, own):
            writer.batch()
        size = kept_by(node, "new")["file_bytes"] // 2
        alter(node, "ALTER TABLE own SET (retention_bytes = 'none')")
        alter(node, f"ALTER DATABASE kept SET (retention_bytes = {int(3.5 * size)})")
        assert (old.seen(), new.seen(), own.seen()) == ([2], [100, 101], [0, 1, 2]), "a table is never emptied"
        eventually(lambda: kept_by(node, "old")["files"] == 1, "the files of hidden rows go")
        alter(node, "ALTER TABLE own RESET (retention_bytes)")
        assert (old.seen(), new.seen(), own.seen()) == ([2], [101], [2]), "it counts again"
        end_clean(node)


def test_what_cannot_be_is_refused_and_says_why(tmp_path: Path) -> None:
    with clean_node(tmp_path) as node:
        node.write(lines(0) + lines(0, table="Aa") + lines(0, table="aA"), "kept", precision="ns")
        for statement, status, words in (
            ("ALTER TABLE m SET (retention = 'soon')", 400, "retention = 'soon'"),
            ("ALTER TABLE m SET (retention = '0s')", 400, "longer than nothing"),
            ("ALTER TABLE m SET (retention_bytes = '-1')", 400, "retention_bytes = '-1'"),
            ("ALTER TABLE m SET (retention_bytes = '0')", 400, "greater than nothing"),
            ("ALTER TABLE m SET (retention_bytes = '99999999999 TB')", 400, "limit"),
            ("ALTER TABLE m SET (color = 'red')", 400, "write ALTER TABLE name SET"),
            ("ALTER TABLE nobody SET (retention = '1h')", 404, "nobody"),
            ("ALTER DATABASE nobody SET (retention = '1h')", 400, "no database 'nobody'"),
            ("ALTER TABLE aa SET (retention = '1h')", 400, "ambiguous"),
        ):
            found, answer = post(node, statement)
            assert (found, words in answer) == (status, True), (statement, answer)
        statement = urllib.parse.quote("ALTER TABLE m SET (retention = '1h')")
        reply = ask(node, "GET", f"/api/v3/query_sql?db=kept&q={statement}")
        assert (reply.status, "POST" in reply.text) == (400, True), reply.text
        assert all("retention" not in kept_by(node, table) for table in ("m", "Aa", "aA"))


def test_over_http_as_influxdb_has_it(tmp_path: Path) -> None:
    with clean_node(tmp_path) as node:
        assert (
            configure(node, "POST", "database", db="kept", retention_period="1h", retention_bytes="1 GB").status == 200
        )
        fields = [{"name": "v", "type": "int64"}]
        table = {"db": "kept", "table": "m", "tags": ["k"], "fields": fields, "retention_period": "30d"}
        assert configure(node, "POST", "table", **table).status == 200
        node.write(lines(0, 2 * HOUR, 800 * HOUR) + lines(0, 2 * HOUR, table="n"), "kept", precision="ns")
        assert (values(node), values(node, "n")) == ([0, 1], [0])
        assert configure(node, "PUT", "table", db="kept", table="m", retention_period=None).status == 200
        assert values(node) == [0]
        assert configure(node, "PUT", "table", db="kept", table="m", retention_period="none").status == 200
        assert values(node) == [0, 1, 2]
        assert configure(node, "PUT", "table", db="kept", table="m", retention_bytes="10 MB").status == 200
        row = kept_by(node, "m")
        assert (row["retention"], row["retention_bytes"], row["keeps_bytes"]) == ("none", 10**7, 10**7)
        assert kept_by(node, "n")["keeps_bytes"] == 10**9
        assert configure(node, "PUT", "database", db="kept", retention_period="2d", retention_bytes=None).status == 200
        assert status_of(node)["databases"][0]["retention_bytes"] is None
        assert configure(node, "PUT", "table", db="kept", table="none", retention_period="1h").status == 404
        bad = configure(node, "PUT", "table", db="kept", table="m", retention_bytes="much")
        assert (bad.status, "expected a size" in bad.text) == (400, True)
