"""What a materialized view costs and saves: `python -m benchmarks.views [ROWS]`.

Through a node: rows of 100 hosts, one a second, and their averages by minute and host. Times are in seconds, of CPU
where they say so; every answer of the view is compared with that of its SELECT.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil

from tests.harness.node import RunningNode

ROWS: Final = 5_000_000
STEP_ROWS: Final = 1_000_000
HOSTS: Final = 100
LATE_ROWS: Final = 10_000
LATE_MINUTES: Final = 8
DEFINITION: Final = (
    "SELECT date_bin(INTERVAL '1 minute', time) AS time, host, avg(v) AS mean, count(*) AS n FROM t GROUP BY 1, host"
)
TOTAL: Final = "SELECT count(*) AS rows, sum(n) AS n, max(mean) AS mean FROM {}"


def insert(node: RunningNode, first: int, count: int, step: int) -> None:
    """Rows from second ``first`` on, one for a host each ``step`` ns."""
    _ask(
        node,
        f"INSERT INTO t (time, host, v) SELECT arrow_cast({first} * 1000000000 + value / {HOSTS} * {step}, "
        f"'Timestamp(Nanosecond, None)'), 'h' || (value % {HOSTS}), value % 1000 * 0.5 "
        f"FROM generate_series(0, {count - 1})",
    )


def main(rows: int) -> None:
    """Print the figures. Raises RuntimeError for an answer that is wrong."""
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningNode(Path(folder) / "data", environment={"RUNNEL_VIEWS__REFRESH_EVERY": "0"}) as node,
    ):
        node.write("t,host=h0 v=0 1")
        for first in range(0, rows, STEP_ROWS):
            insert(node, first // HOSTS, min(STEP_ROWS, rows - first), 10**9)
        node.request("POST", "/api/runnel/checkpoint")
        node.request("POST", "/api/runnel/compact")
        _timed(node, "its SELECT", TOTAL.format(f"({DEFINITION}) AS computed"))
        _timed(node, "CREATE MATERIALIZED VIEW", f"CREATE MATERIALIZED VIEW v AS {DEFINITION}")
        _timed(node, "the view, not folded", TOTAL.format("v"))
        _timed(node, "the first REFRESH", "REFRESH MATERIALIZED VIEW v")
        _both(node, "the view, folded")
        _timed(node, "a REFRESH with nothing to do", "REFRESH MATERIALIZED VIEW v")
        insert(node, 3_000, LATE_ROWS, LATE_MINUTES * 60 * 10**9 * HOSTS // LATE_ROWS)
        _both(node, f"the view, {LATE_ROWS} late rows in {LATE_MINUTES} minutes")
        _timed(node, "a REFRESH of them", "REFRESH MATERIALIZED VIEW v")
        _both(node, "the view, folded again")
        node.request("POST", "/api/runnel/checkpoint")
        _both(node, "the view, after a checkpoint")


def _both(node: RunningNode, what: str) -> None:
    found = _timed(node, what, TOTAL.format("v"))
    wanted = _ask(node, TOTAL.format(f"({DEFINITION}) AS computed"))
    if found != wanted:
        raise RuntimeError(f"{what}: {found} where {wanted} must be")


def _timed(node: RunningNode, what: str, statement: str) -> Any:
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    cpu, begun = sum(process.cpu_times()[:2]), time.perf_counter()
    found = _ask(node, statement)
    seconds, spent = time.perf_counter() - begun, sum(process.cpu_times()[:2]) - cpu
    print(f"{what:48} {seconds:8.3f} s {spent:8.3f} CPU s  {found[0]}", flush=True)
    return found


def _ask(node: RunningNode, statement: str) -> Any:
    body = json.dumps({"db": "db", "q": statement}).encode()
    status, answer = node.request("POST", "/api/v3/query_sql", body, {"Content-Type": "application/json"})
    if status != 200:
        raise RuntimeError(f"{statement[:80]}: {status} {answer.decode()[:300]}")
    return json.loads(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
