"""Statements that never end or want all memory: a clear answer in time, the others unharmed, everything given back."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.integration.whole.probing import MIB, Peak, ask_sql, becomes_idle, clean_node, cpu_seconds, goes_on, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import RunningNode

TIMEOUT_SECONDS = 1.0
LATE_SECONDS = 3.0
"""After the time limit, on a busy machine, the answer is there."""
SERIES = "generate_series(1, 1000000000000)"
ENDLESS = {
    "count": f"SELECT count(*) FROM {SERIES}",
    "filter": f"SELECT value FROM {SERIES} WHERE value < 0",
    "aggregate": f"SELECT value % 1000 AS k, sum(value) FROM {SERIES} GROUP BY k",
    "recursion": "WITH RECURSIVE a AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM a) SELECT count(*) FROM a",
    "window": f"SELECT max(s) FROM (SELECT sum(value) OVER (ORDER BY value ROWS 9 PRECEDING) AS s FROM {SERIES})",
    "table_cross": "SELECT sum(a.v * b.v) FROM big a CROSS JOIN big b CROSS JOIN big c",
}
GREEDY = {
    "sort": "SELECT value, repeat('x', 200) AS s FROM generate_series(1, 30000000) ORDER BY value % 997, value DESC",
    "distinct": "SELECT count(DISTINCT concat(value, repeat('y', 100))) FROM generate_series(1, 30000000)",
    "array": "SELECT array_agg(concat(value, repeat('z', 1000))) FROM generate_series(1, 10000000)",
    "group": "SELECT concat(value, repeat('g', 100)) AS k, count(*) FROM generate_series(1, 30000000) GROUP BY k",
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    settings = {
        "QUERY__TIMEOUT": f"{TIMEOUT_SECONDS}s", "QUERY__MEMORY": "64 MiB", "QUERY__SPILL_BYTES_MAX": "0",
        "LOG__COLLECT_GRACE": "1 min",
    }  # fmt: skip
    with clean_node(tmp_path_factory.mktemp("queries"), **settings) as node:
        for part in range(4):
            node.write("".join(f"big,k=k{i % 50} v={i}i {part * 5000 + i + 1}\n" for i in range(5000)))
        goes_on(node)
        yield node


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_statement_is_504_and_stops(node: RunningNode, name: str) -> None:
    begun = time.monotonic()
    reply = ask_sql(node, ENDLESS[name])
    elapsed = time.monotonic() - begun
    assert reply.status == 504, reply.text
    assert "time limit" in reply.text
    assert TIMEOUT_SECONDS - 0.1 <= elapsed < TIMEOUT_SECONDS + LATE_SECONDS
    assert becomes_idle(node), "the query goes on after its answer"
    goes_on(node)


def test_others_are_served_beside_endless_statements(node: RunningNode) -> None:
    """More endless statements than cores; small reads and writes go on meanwhile."""
    with ThreadPoolExecutor(6) as pool:
        endless = [pool.submit(ask_sql, node, ENDLESS["count"]) for _ in range(6)]
        slowest = 0.0
        while not all(answer.done() for answer in endless):
            begun = time.monotonic()
            assert rows_of(node, "big") == 20_000
            slowest = max(slowest, time.monotonic() - begun)
        assert [answer.result().status for answer in endless] == [504] * 6
    assert slowest < TIMEOUT_SECONDS
    assert becomes_idle(node)
    goes_on(node)


@pytest.mark.parametrize("name", GREEDY)
def test_a_statement_that_wants_all_memory(node: RunningNode, name: str) -> None:
    """It fails with a clear 5xx, or at the time limit; small queries at the same moment are all answered."""
    ending = threading.Event()

    def reader() -> int:
        answered = 0
        while not ending.is_set():
            (row,) = node.query("SELECT count(*) AS n, sum(v) AS s FROM big WHERE k = 'k7'")
            assert row == {"n": 400, "s": 4 * sum(range(7, 5000, 50))}
            answered += 1
        return answered

    with Peak(node) as peak, ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(reader) for _ in range(2)]
        try:
            reply = ask_sql(node, GREEDY[name])
        finally:
            ending.set()
        answered = [one.result() for one in readers]
    assert reply.status in (503, 504), (reply.status, reply.text[:300])
    if reply.status == 503:
        assert reply.text.startswith("the query needs more memory than queries may use here")
        assert int(reply.headers["retry-after"]) > 0
    assert min(answered) > 0
    assert peak.grown_bytes < 400 * MIB, f"{peak.grown_bytes >> 20} MiB"
    assert becomes_idle(node)
    goes_on(node)


def test_a_cross_join_without_rows_is_answered_in_time(node: RunningNode) -> None:
    """DataFusion's joins look up only when they have a row to hand on: the client is answered, others are
    served, and only the CPU of the join's own threads stays in use until it has gone through its input."""
    statement = (
        "SELECT count(*) FROM generate_series(1, 20000) a CROSS JOIN generate_series(1, 60000) b"
        " WHERE a.value + b.value < 0"
    )
    begun = time.monotonic()
    reply = ask_sql(node, statement)
    assert time.monotonic() - begun < TIMEOUT_SECONDS + LATE_SECONDS
    assert reply.status in (200, 504)
    before = cpu_seconds(node)
    goes_on(node)
    assert cpu_seconds(node) >= before
    assert becomes_idle(node, 30), "even this one ends"
