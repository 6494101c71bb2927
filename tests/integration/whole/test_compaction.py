"""A whole node whose rows came in many small writes, scattered and rewritten: compaction changes no answer (L25)."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

from tests.harness.waiting import eventually
from tests.integration.nodes.processes import run
from tests.integration.whole.probing import ask, checkpoint, clean_node, compact, post_lines, process_of

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

    from tests.harness.node import RunningNode

DAYS = 30
DAY_NS = 86_400 * 10**9
FILES_PER_SHARD_MAX = 64
QUESTIONS = (
    "SELECT count(*) AS n, sum(a) AS a, sum(b) AS b, min(time) AS first, max(time) AS last FROM m",
    "SELECT host, count(a) AS n, sum(a) AS a, max(c) AS c FROM m GROUP BY host ORDER BY host",
    "SELECT * FROM m ORDER BY host, zone, time",
    "SELECT date_bin(INTERVAL '1 day', time) AS day, count(*) AS n FROM m GROUP BY day ORDER BY day",
    "SELECT count(*) AS n FROM m WHERE b > 50",
    "SELECT * FROM m WHERE time < to_timestamp_nanos(100000000000000) ORDER BY host, zone, time",
)


def body(chooser: random.Random, lines: int) -> str:
    """Points over thirty days, of which a good part was written before, each time other fields."""
    found = []
    for _ in range(lines):
        tags = chooser.choice(["", ",host=h1", ",host=h2", ",host=h2,zone=z", ",zone=ü"])
        fields = ",".join(f"{name}={chooser.randrange(100)}i" for name in chooser.sample("abc", chooser.randint(1, 3)))
        at = chooser.randrange(DAYS) * DAY_NS + chooser.randrange(40)
        found.append(f"m{tags} {fields} {at}")
    return "\n".join(found)


def answers(node: RunningNode) -> list[Any]:
    return [node.query(question) for question in QUESTIONS]


def files(node: RunningNode) -> list[dict[str, Any]]:
    return node.query("SELECT * FROM system.parquet_files")


def shards(found: list[dict[str, Any]]) -> dict[str, int]:
    """Files by the Log that they belong to."""
    counts: dict[str, int] = {}
    for file in found:
        log_id = file["path"].split("/")[1]
        counts[log_id] = counts.get(log_id, 0) + 1
    return counts


def test_tiny_scattered_writes_are_merged_and_every_answer_stays(tmp_path: Path) -> None:
    chooser = random.Random(5)
    settings = {"LOG__SHARDS": "2", "COMPACTION__CPU_SHARE": "none"}
    with clean_node(tmp_path, **settings) as node:
        for _ in range(90):
            assert post_lines(node, body(chooser, 6), precision="nanosecond").status in (200, 204)
            checkpoint(node)
        node.write(body(chooser, 5), precision="ns")  # in the memtable, above all files
        before, scattered = answers(node), files(node)
        assert len(scattered) >= 90
        assert compact(node) >= 2
        merged = files(node)
        assert max(shards(merged).values()) <= FILES_PER_SHARD_MAX
        assert len(merged) < len(scattered) / 4
        assert answers(node) == before
        assert compact(node) == 0, "nothing is left that is worth it"
        status = ask(node, "GET", "/api/runnel/status").json["compaction"]
        assert status["files_in"] - status["files_out"] == len(scattered) - len(merged)
        assert (status["failed"], status["void"], status["waiting"]) == (0, 0, 0)
        node.kill()
        node.start()
        assert answers(node) == before
        assert {f["path"] for f in files(node)} == {f["path"] for f in merged}
        for _ in range(8):
            node.write(body(chooser, 6), precision="ns")
            checkpoint(node)
        before = answers(node)
        code, out, err = run("nodes", "compact", "--host", node.url)
        assert (code, err) == (0, "")
        assert re.fullmatch(r"\d+ files \(.+\) became 1 \(.+\) in 1 merge\n?", out), out
        assert answers(node) == before
        assert "nothing is worth a merge" in run("nodes", "compact", "--host", node.url)[1]
        code, out, _ = run("nodes", "compact", "--json", "--host", node.url)
        assert set(json.loads(out).values()) == {0}
        code, out, _ = run("nodes", "status", "--host", node.url)
        assert re.search(r"^compaction: \d+ files became 1 in 1 merge, .* 0 waiting$", out, re.MULTILINE), out


def merging_process(node: RunningNode) -> psutil.Process:
    """The node's child that merges."""
    (child,) = process_of(node).children()
    return child


def has_ended(process: psutil.Process) -> None:
    eventually(lambda: not process.is_running(), "the process has ended")


def test_it_merges_by_itself_and_its_process_ends_with_the_node(tmp_path: Path) -> None:
    chooser = random.Random(6)
    with clean_node(tmp_path, LOG__SHARDS="1", COMPACTION__CPU_SHARE="0.9") as node:
        for end in ("killed", "stopped"):
            for _ in range(5):
                node.write(body(chooser, 6), precision="ns")
                checkpoint(node)
            before = answers(node)
            eventually(lambda: len(files(node)) < 5, "files are merged", seconds=60)
            assert answers(node) == before
            child = merging_process(node)
            assert child.nice() == 19
            if end == "killed":
                node.kill()
                has_ended(child)
                node.start()
                assert answers(node) == before
    has_ended(child)
