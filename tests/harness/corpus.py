"""Statements for which every way of running them must give the same rows, and the tables that they read.

`PORTABLE` are understood by DuckDB too, and answered alike; `OWN` use what DataFusion alone has, or has otherwise. Beside
TPC-H's tables there are `cpu` (a time series in several files), `hosts` (what is known of its hosts) and `nothing`.
"""
# ruff: noqa: E501 - a statement is a line

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

HOSTS: Final = 40
STEPS: Final = 60
FILES: Final = 6
STEP_NS: Final = 60 * 10**9
START: Final = np.datetime64("2026-11-01T00:00:00", "ns")


def make(folder: Path, is_empty: bool = False) -> None:
    """Write ``folder/<table>/*.parquet``; all tables without rows if `is_empty`."""
    cpu, hosts = _cpu(), _hosts()
    pieces = [cpu.slice(at * len(cpu) // FILES, len(cpu) // FILES) for at in range(FILES)]
    _write(folder, "cpu", [cpu.slice(0, 0)] * 2 if is_empty else pieces)
    _write(folder, "hosts", [hosts.slice(0, 0) if is_empty else hosts])
    _write(folder, "nothing", [cpu.slice(0, 0)])


def _write(folder: Path, name: str, pieces: list[pa.Table]) -> None:
    (folder / name).mkdir(parents=True)
    for number, piece in enumerate(pieces):
        pq.write_table(piece, folder / name / f"{number}.parquet", row_group_size=200)


def _cpu() -> pa.Table:
    random = np.random.default_rng(7)
    count = HOSTS * STEPS
    host = np.tile(np.arange(HOSTS), STEPS)
    idle = [None if at % 11 == 0 else round(float(v), 2) for at, v in enumerate(random.uniform(0, 100, count))]
    return pa.table(
        {
            "time": pa.array(START + np.repeat(np.arange(STEPS), HOSTS) * np.timedelta64(STEP_NS, "ns")),
            "host": [f"host-with-a-long-name-{number:03d}" for number in host],
            "region": [None if number % 9 == 0 else f"region-{number % 4}" for number in host],
            "usage": np.round(random.normal(40, 15, count), 2),
            "idle": pa.array(idle, pa.float64()),
            "seq": np.arange(count),
        }
    )


def _hosts() -> pa.Table:
    numbers = np.arange(HOSTS + 5)
    return pa.table(
        {
            "host": [f"host-with-a-long-name-{number:03d}" for number in numbers],
            "team": [f"team-{number % 7}" for number in numbers],
            "rack": numbers // 6,
        }
    )


_PORTABLE: Final = """
SELECT 1 AS a
SELECT count(*) AS n FROM cpu
SELECT count(idle) AS n, sum(seq) AS s, min(usage) AS lo, max(usage) AS hi, avg(usage) AS a FROM cpu
SELECT * FROM hosts ORDER BY host LIMIT 5
SELECT host FROM hosts ORDER BY host LIMIT 5 OFFSET 7
SELECT DISTINCT region FROM cpu ORDER BY region
SELECT DISTINCT host, region FROM cpu
SELECT host, count(*) AS n FROM cpu GROUP BY host HAVING count(*) > 10 ORDER BY host LIMIT 7
SELECT region, count(*) AS n, count(idle) AS m FROM cpu GROUP BY region
SELECT region, count(DISTINCT host) AS a, count(DISTINCT seq % 7) AS b, count(*) AS n FROM cpu GROUP BY region
SELECT count(DISTINCT host) AS n FROM cpu
SELECT region, host, sum(seq) AS s FROM cpu WHERE seq < 500 GROUP BY GROUPING SETS ((region), (region, host), ())
SELECT region, sum(seq) AS s FROM cpu GROUP BY ROLLUP (region)
SELECT region, seq % 3 AS r, count(*) AS n FROM cpu GROUP BY CUBE (region, seq % 3)
SELECT region, var_pop(usage) AS v, stddev(usage) AS s, corr(usage, seq) AS c FROM cpu GROUP BY region
SELECT region, sum(usage) FILTER (WHERE idle > 50) AS s FROM cpu GROUP BY region
SELECT region, bool_and(usage > -100) AS a, bool_or(usage > 80) AS b FROM cpu GROUP BY region
SELECT region, max(host) AS h, min(host) AS l FROM cpu GROUP BY region
SELECT sum(usage) AS s FROM cpu WHERE host = 'nobody'
SELECT region, avg(usage) AS a FROM cpu WHERE host = 'nobody' GROUP BY region
SELECT count(*) AS n, max(usage) AS m FROM nothing
SELECT host, count(*) AS n FROM nothing GROUP BY host
SELECT c.host, n.seq FROM hosts c LEFT JOIN nothing n ON c.host = n.host WHERE c.rack = 1
SELECT c.seq FROM cpu c JOIN nothing n ON c.seq = n.seq
SELECT seq, usage FROM cpu WHERE usage > 75 ORDER BY usage DESC, seq LIMIT 10 OFFSET 3
SELECT seq FROM cpu WHERE usage > 70
SELECT seq, host FROM cpu ORDER BY usage, seq LIMIT 20
SELECT h.team, count(*) AS n, sum(c.seq) AS s FROM cpu c JOIN hosts h ON c.host = h.host GROUP BY h.team
SELECT h.team, count(c.seq) AS n FROM hosts h LEFT JOIN cpu c ON c.host = h.host AND c.usage > 70 GROUP BY h.team
SELECT h.host, count(c.seq) AS n FROM cpu c RIGHT JOIN hosts h ON c.host = h.host AND c.seq < 100 GROUP BY h.host
SELECT count(*) AS n, count(a.host) AS l, count(b.host) AS r FROM hosts a FULL JOIN cpu b ON a.host = b.host AND b.seq < 30
SELECT a.host AS x, b.host AS y FROM hosts a JOIN hosts b ON a.rack = b.rack AND a.host < b.host WHERE a.rack = 2
SELECT count(*) AS n FROM hosts a, hosts b WHERE a.rack < 3 AND b.rack < 3 AND a.host < b.host
SELECT count(*) AS n FROM hosts a CROSS JOIN (SELECT max(seq) AS m FROM cpu) b WHERE a.rack < b.m
SELECT count(*) AS n FROM cpu a JOIN cpu b ON a.seq = b.seq + 1 AND a.usage > b.usage
SELECT count(*) AS n FROM cpu a JOIN cpu b ON a.host = b.host AND a.time = b.time JOIN hosts h ON h.host = a.host
SELECT count(*) AS n FROM hosts WHERE host NOT IN (SELECT host FROM cpu WHERE usage > 80)
SELECT count(*) AS n FROM cpu WHERE region NOT IN (SELECT region FROM cpu WHERE seq = 1)
SELECT count(*) AS n FROM cpu WHERE region NOT IN (SELECT region FROM cpu WHERE seq < 10)
SELECT h.host FROM hosts h WHERE EXISTS (SELECT 1 FROM cpu c WHERE c.host = h.host AND c.usage > 80)
SELECT h.host FROM hosts h WHERE NOT EXISTS (SELECT 1 FROM cpu c WHERE c.host = h.host AND c.usage > 80)
SELECT c.seq FROM cpu c WHERE EXISTS (SELECT 1 FROM hosts h WHERE h.host = c.host AND h.rack = 2) AND c.usage > 60
SELECT c.seq FROM cpu c WHERE NOT EXISTS (SELECT 1 FROM hosts h WHERE h.host = c.host AND h.rack < 5) AND c.usage > 60
SELECT count(*) AS n FROM cpu WHERE usage > (SELECT avg(usage) FROM cpu)
SELECT h.team, (SELECT count(*) FROM cpu c WHERE c.host = h.host) AS n FROM hosts h WHERE h.rack = 0
SELECT host FROM hosts WHERE host IN (SELECT host FROM cpu WHERE seq < 10) OR rack = 3
SELECT host FROM hosts WHERE rack < 2 UNION SELECT host FROM hosts WHERE rack < 3
SELECT host FROM hosts WHERE rack < 2 UNION ALL SELECT host FROM cpu WHERE seq < 30
SELECT seq AS v FROM cpu WHERE usage > 80 UNION ALL SELECT rack AS other FROM hosts UNION ALL SELECT 7
SELECT region FROM cpu UNION SELECT team FROM hosts
SELECT k, count(*) AS n FROM (SELECT host AS k FROM cpu UNION ALL SELECT team FROM hosts) GROUP BY k
SELECT host FROM hosts WHERE rack < 5 INTERSECT SELECT host FROM cpu WHERE usage > 70
SELECT host FROM hosts WHERE rack < 5 EXCEPT SELECT host FROM cpu WHERE usage > 70
WITH a AS (SELECT host, max(usage) AS m FROM cpu GROUP BY host) SELECT avg(m) AS a, count(*) AS n FROM a
WITH a AS (SELECT region, avg(usage) AS m FROM cpu GROUP BY region) SELECT c.region, count(*) AS n FROM cpu c JOIN a ON a.region = c.region AND c.usage > a.m GROUP BY c.region
WITH a AS (SELECT host, max(seq) AS s FROM cpu GROUP BY host), b AS (SELECT host, min(seq) AS s FROM cpu GROUP BY host) SELECT a.host, a.s - b.s AS d FROM a JOIN b ON a.host = b.host
SELECT host, seq, row_number() OVER (PARTITION BY host ORDER BY seq DESC) AS r FROM cpu
SELECT host, seq FROM (SELECT host, seq, row_number() OVER (PARTITION BY host ORDER BY seq DESC) AS r FROM cpu) WHERE r <= 2
SELECT host, seq FROM cpu QUALIFY row_number() OVER (PARTITION BY host ORDER BY seq) = 3
SELECT seq, sum(seq) OVER (PARTITION BY host ORDER BY time ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS s FROM cpu
SELECT seq, sum(seq) OVER (ORDER BY seq ROWS 10 PRECEDING) AS s FROM cpu WHERE seq < 300
SELECT seq, lag(seq) OVER (PARTITION BY host ORDER BY time) AS p, lead(seq, 2) OVER (PARTITION BY host ORDER BY time) AS n FROM cpu
SELECT seq, rank() OVER (PARTITION BY region ORDER BY seq % 5) AS r, dense_rank() OVER (PARTITION BY region ORDER BY seq % 5) AS d FROM cpu WHERE seq < 400
SELECT seq, ntile(4) OVER (ORDER BY seq) AS q FROM cpu WHERE seq < 100
SELECT host, count(*) AS n, rank() OVER (ORDER BY count(*) DESC, host) AS r FROM cpu WHERE usage > 50 GROUP BY host
SELECT host, sum(seq) OVER (PARTITION BY host) AS s, sum(seq) OVER (PARTITION BY region) AS t FROM cpu WHERE seq % 40 < 5
SELECT seq, first_value(seq) OVER (PARTITION BY host ORDER BY seq) AS f, last_value(seq) OVER (PARTITION BY host ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS l FROM cpu WHERE seq < 200
SELECT CASE WHEN usage > 50 THEN 'hi' ELSE 'lo' END AS k, count(*) AS n FROM cpu GROUP BY k
SELECT upper(region) AS r, length(host) AS l, count(*) AS n FROM cpu WHERE host LIKE '%-00%' GROUP BY r, l
SELECT coalesce(region, 'none') AS r, count(*) AS n FROM cpu GROUP BY r
SELECT extract(minute FROM time) AS m, count(*) AS n FROM cpu GROUP BY m
SELECT date_trunc('minute', time) AS t, sum(seq) AS s FROM cpu GROUP BY t ORDER BY t LIMIT 9
SELECT a.region, a.n, b.n AS m FROM (SELECT region, count(*) AS n FROM cpu GROUP BY region) a JOIN (SELECT region, count(*) AS n FROM cpu WHERE usage > 40 GROUP BY region) b ON a.region = b.region
SELECT l_shipmode, count(*) AS n FROM lineitem WHERE l_orderkey IN (SELECT o_orderkey FROM orders WHERE o_totalprice > 300000) GROUP BY l_shipmode
SELECT count(*) AS n FROM customer c LEFT JOIN orders o ON c.c_custkey = o.o_custkey WHERE o.o_orderkey IS NULL
SELECT o_orderpriority, count(*) AS n, sum(o_totalprice) AS s FROM orders GROUP BY o_orderpriority
SELECT c_nationkey, count(*) AS n, rank() OVER (ORDER BY count(*) DESC, c_nationkey) AS r FROM customer GROUP BY c_nationkey
SELECT n_name, (SELECT count(*) FROM supplier WHERE s_nationkey = n_nationkey) AS n FROM nation
SELECT l_partkey, sum(l_quantity) AS q FROM lineitem GROUP BY l_partkey ORDER BY q DESC, l_partkey LIMIT 10
SELECT l_orderkey, l_linenumber FROM lineitem WHERE l_comment LIKE '%furious%' AND l_tax = 0.05
SELECT o_custkey, max(o_comment) AS c FROM orders GROUP BY o_custkey
"""

_OWN: Final = """
SELECT date_bin(INTERVAL '5 minutes', time) AS t, count(*) AS n, avg(usage) AS a FROM cpu GROUP BY t
SELECT date_bin(INTERVAL '10 minutes', time) AS t, region, max(idle) AS m FROM cpu WHERE time >= '2026-11-01T00:10:00Z' GROUP BY t, region
SELECT date_bin(INTERVAL '5 minutes', time, TIMESTAMP '2026-11-01T00:02:00') AS t, host, count(*) AS n FROM cpu GROUP BY t, host
SELECT host, last_value(usage ORDER BY time) AS u, max(time) AS t FROM cpu GROUP BY host
SELECT region, first_value(seq ORDER BY seq) AS f, last_value(seq ORDER BY seq) AS l FROM cpu GROUP BY region
SELECT region, last_value(idle ORDER BY time, host) FILTER (WHERE idle IS NOT NULL) AS l FROM cpu GROUP BY region
SELECT last_value(seq ORDER BY time, host) AS l FROM cpu
SELECT DISTINCT ON (region) region, time, host FROM cpu ORDER BY region, time DESC, host
SELECT region, median(seq) AS m FROM cpu GROUP BY region
SELECT region, percentile_cont(0.5) WITHIN GROUP (ORDER BY seq) AS p FROM cpu GROUP BY region
SELECT array_agg(host ORDER BY host) AS a FROM hosts WHERE rack = 3
SELECT rack, string_agg(host, ',' ORDER BY host) AS a FROM hosts GROUP BY rack
SELECT count(*) AS n FROM (SELECT * FROM cpu LIMIT 1000)
SELECT count(*) AS n FROM hosts h JOIN (SELECT host FROM cpu LIMIT 100) c ON h.rack >= 0
SELECT count(DISTINCT c.seq) AS n FROM cpu a JOIN (SELECT seq, rack FROM cpu JOIN hosts ON rack = seq % 3 LIMIT 5) c ON a.seq >= 0
SELECT l_shipmode, count(*) AS n FROM lineitem LEFT SEMI JOIN orders ON l_orderkey = o_orderkey AND o_totalprice > 300000 GROUP BY l_shipmode
SELECT l_shipmode, count(*) AS n FROM lineitem LEFT ANTI JOIN orders ON l_orderkey = o_orderkey AND o_totalprice > 100000 GROUP BY l_shipmode
SELECT count(*) AS n FROM hosts RIGHT SEMI JOIN cpu ON hosts.host = cpu.host AND rack = 1
SELECT count(*) AS n FROM hosts RIGHT ANTI JOIN cpu ON hosts.host = cpu.host AND rack = 1
SELECT host, unnest([1, 2]) AS x FROM hosts
SELECT unnest([1, 2, 3]) AS x
SELECT value, count(*) AS n FROM generate_series(1, 100) JOIN hosts ON rack = value % 7 GROUP BY value
WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 10) SELECT sum(n) AS s FROM t
SELECT t, u, u - lag(u) OVER (ORDER BY t) AS d FROM (SELECT date_bin(INTERVAL '10 minutes', time) AS t, sum(seq) AS u FROM cpu GROUP BY t)
SELECT region, host, grouping(host) AS g, count(*) AS n FROM cpu WHERE seq < 300 GROUP BY GROUPING SETS ((region), (region, host))
SELECT host, time, usage - lag(usage) OVER (PARTITION BY host ORDER BY time) AS d FROM cpu WHERE host = 'host-with-a-long-name-003'
SELECT host FROM hosts WHERE host ~ '-01[23]'
SELECT bit_and(seq) AS a, bit_or(seq) AS o, bit_xor(seq) AS x FROM cpu
"""

APPROXIMATE: Final = (
    "SELECT region, approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY usage) AS p FROM cpu GROUP BY region",
    "SELECT approx_distinct(host) AS n FROM cpu",
    "SELECT region, approx_median(usage) AS p FROM cpu GROUP BY region",
)
"""Their answers depend on how the rows were divided, by some percents."""

PORTABLE: Final = tuple(_PORTABLE.strip().splitlines())
OWN: Final = tuple(_OWN.strip().splitlines())
