"""Reads see every acknowledged row at once: four writers, four readers, counts that never go back."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.integration.whole.probing import clean_node, goes_on, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import RunningNode

WRITERS = 4
READERS = 4
SECONDS = 3.0
ROWS_MIN, READS_MIN = 20, 5  # of each writer, of each reader
SECONDS_MAX = 60.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """Checkpoints are frequent, so that rows move from memory to files under the readers."""
    settings = {"LOG__SHARDS": "2", "LOG__CHECKPOINT_OBJECTS": "20", "LOG__CHECKPOINT_AGE": "1s"}
    with clean_node(tmp_path_factory.mktemp("reads"), **settings) as node:
        goes_on(node)
        yield node


@dataclass
class Acknowledged:
    """How many rows each writer knows to stand."""

    rows: list[int] = field(default_factory=lambda: [0] * WRITERS)
    reads: list[int] = field(default_factory=lambda: [0] * READERS)
    stopping: threading.Event = field(default_factory=threading.Event)


def write(node: RunningNode, known: Acknowledged, number: int) -> int:
    """Write, and read own rows at once, through a condition on the tag."""
    at = 0
    while not known.stopping.is_set():
        size = 1 + at % 7
        lines = "".join(f"shared,w=w{number} v={i}i {i + 1}\n" for i in range(at, at + size))
        node.write(lines, precision="ns")
        at += size
        known.rows[number] = at
        (row,) = node.query(f"SELECT count(*) AS n, max(v) AS v FROM shared WHERE w = 'w{number}'")
        assert row == {"n": at, "v": at - 1}
    return at


def read(node: RunningNode, known: Acknowledged, number: int) -> None:
    """Each read shows at least what was acknowledged before it, and never less than the read before."""
    last = [0] * WRITERS
    while not known.stopping.is_set():
        before = list(known.rows)
        if sum(before) == 0:
            time.sleep(0.01)
            continue
        rows = node.query("SELECT w, count(*) AS n, count(DISTINCT v) AS d, max(v) AS v FROM shared GROUP BY w")
        shown = [0] * WRITERS
        for row in rows:
            assert row["n"] == row["d"] == row["v"] + 1, "no hole and nothing twice"
            shown[int(row["w"][1:])] = row["n"]
        assert all(now >= then for now, then in zip(shown, before, strict=True)), (shown, before)
        assert all(now >= then for now, then in zip(shown, last, strict=True)), (shown, last)
        last = shown
        known.reads[number] += 1


def is_enough(known: Acknowledged) -> bool:
    """Every writer and every reader has had its part."""
    return min(known.rows) > ROWS_MIN and min(known.reads) > READS_MIN


def test_reads_see_every_acknowledged_row(node: RunningNode) -> None:
    known = Acknowledged()
    with ThreadPoolExecutor(WRITERS + READERS) as pool:
        writers = [pool.submit(write, node, known, number) for number in range(WRITERS)]
        readers = [pool.submit(read, node, known, number) for number in range(READERS)]
        begun = time.monotonic()
        while not (is_enough(known) and time.monotonic() - begun > SECONDS):
            if (
                any(work.done() for work in writers)
                or any(work.done() for work in readers)
                or time.monotonic() - begun > SECONDS_MAX
            ):
                break
            time.sleep(0.05)
        known.stopping.set()
        written = [work.result() for work in writers]
        for work in readers:
            work.result()
    assert is_enough(known), (known.rows, known.reads)
    assert rows_of(node, "shared") == sum(written)
    (row,) = node.query("SELECT count(*) AS n FROM system.parquet_files")
    assert row["n"] > 1, "no checkpoint fell into the run: it has shown too little"


def test_a_new_column_and_a_new_table_are_seen_at_once(node: RunningNode) -> None:
    for number in range(30):
        node.write(f"fresh{number},t{number}=x f{number}={number}i,g{number}=1 1", "fresh")
        rows = node.query(f"SELECT t{number}, f{number} FROM fresh{number}", "fresh")
        assert rows == [{f"t{number}": "x", f"f{number}": number}]
        node.write(f"wide f{number}={number}i 1", "fresh")
        (row,) = node.query("SELECT * FROM wide", "fresh")
        assert len(row) == number + 2
    goes_on(node)
