"""What the demo prints to paste: queries with the shape of their results, and other clients.

Pure. The queries are run in the tests. Driven by `nodes.cli.demo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DATABASE: Final = "demo"


@dataclass(frozen=True, slots=True)
class Query:
    """One statement, what it asks, and the columns and rows to expect (None: depends on when it runs)."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: int | None


QUERIES: Final = (
    Query(
        "Which airlines are late?",
        "SELECT a.name, count(*) AS flights, round(avg(f.arr_delay), 1) AS minutes_late FROM flights f "
        "JOIN airlines a ON a.carrier = f.carrier GROUP BY a.name ORDER BY minutes_late DESC LIMIT 5",
        ("name", "flights", "minutes_late"),
        5,
    ),
    Query(
        "Delays by month",
        "SELECT date_bin(INTERVAL '1 month', time) AS month, count(*) AS flights, "
        "round(avg(dep_delay), 1) AS minutes_late FROM flights GROUP BY month ORDER BY month",
        ("month", "flights", "minutes_late"),
        13,
    ),
    Query(
        "Does bad sight make flights late?",
        "SELECT CASE WHEN w.visib < 2 THEN 'fog' WHEN w.visib < 8 THEN 'haze' ELSE 'clear' END AS sight, "
        "count(*) AS flights, round(avg(f.dep_delay), 1) AS minutes_late FROM flights f JOIN weather w "
        "ON w.origin = f.origin AND w.time = date_trunc('hour', f.time) GROUP BY sight ORDER BY minutes_late",
        ("sight", "flights", "minutes_late"),
        3,
    ),
    Query(
        "The planes that flew most",
        "SELECT f.tailnum, p.manufacturer, p.model, count(*) AS flights, sum(f.distance) AS miles FROM flights f "
        "JOIN planes p ON p.tailnum = f.tailnum GROUP BY f.tailnum, p.manufacturer, p.model "
        "ORDER BY miles DESC LIMIT 5",
        ("tailnum", "manufacturer", "model", "flights", "miles"),
        5,
    ),
)
LIVE_QUERY: Final = Query(
    "This machine, in the last minute",
    "SELECT date_bin(INTERVAL '10 seconds', time) AS t, cpu, round(avg(100 - idle), 1) AS busy_percent FROM cpu "
    "WHERE time > now() - INTERVAL '1 minute' GROUP BY t, cpu ORDER BY t DESC, cpu",
    ("t", "cpu", "busy_percent"),
    None,
)


def other_clients(url: str) -> str:
    """The same rows with curl and with InfluxDB's Python client (for writing)."""
    return f"""\
curl '{url}/api/v3/write_lp?db={DATABASE}' --data-binary 'notes,by=me text="hello"'
curl -G '{url}/api/v3/query_sql' --data-urlencode db={DATABASE} --data-urlencode 'q=SELECT * FROM notes'

from influxdb_client_3 import InfluxDBClient3   # pip install influxdb3-python
InfluxDBClient3(host="{url}", token="any", database="{DATABASE}").write("notes,by=python text=\\"hello\\"")
"""  # noqa: S608 - text to read
