"""A client of a chaos run that writes rows, writes some over, and deletes and updates them (LOG L26).

What was deleted must not be seen again, what was not must stay, whatever dies in between; a delete whose outcome is
not known may have been done in some shards and not in others.
"""

from __future__ import annotations

import json
from typing import Final

from tests.chaos import checkers
from tests.chaos.clients import TIME_STEP, Client, outcome_of
from tests.chaos.history import GONE, UNCERTAIN, Outcome, Row
from tests.harness.exchange import Reply, write_path

TABLE: Final = "d"
ROWS: Final = 10
VIEW: Final = "d_by_batch"
"""A materialized view of it, which must say at every moment what its SELECT says."""
VIEW_TEXT: Final = (
    f"SELECT date_bin(INTERVAL '{ROWS} nanoseconds', time) AS time, client, batch, half, count(*) AS rows, "
    f"sum(v) AS total FROM {TABLE} GROUP BY 1, client, batch, half"
)
OVER: Final = 100
"""Added to what is written over a row; a value from here on is the newer one."""
SQL_PATH: Final = "/api/v3/query_sql"
V2_PATH: Final = "/api/v2/delete?bucket="
JSON: Final = {"Content-Type": "application/json"}


class Deleter(Client):
    """Each step a batch of its own: rows, over some of them others, then one statement that changes them."""

    pause_seconds = 0.05

    def __init__(self, *common: object, start: int) -> None:
        super().__init__(*common)  # type: ignore[arg-type]
        self.next = start
        self.has_view = False

    def step(self) -> None:
        batch = self.next
        self.next += 1
        values = {self._row(batch, i): i for i in range(ROWS)}
        if not self._write(batch, values):
            return
        over = {row: value + OVER for row, value in values.items() if value % 3 == 0}
        if self.random.random() < 0.7:
            if not self._write(batch, over):
                return
            values |= over
        self._settle(values)
        if not self.has_view:
            made = self._sql(self.gateway(), f"CREATE MATERIALIZED VIEW IF NOT EXISTS {VIEW} AS {VIEW_TEXT}")
            self.has_view = made.status == 200
        self._change(batch, values)
        self.done += 1

    def _row(self, batch: int, i: int) -> Row:
        return Row(TABLE, self.number, batch * ROWS + i)

    def _settle(self, values: dict[Row, int]) -> None:
        with self.history.lock:
            self.history.deletes.update(values)

    def _write(self, batch: int, values: dict[Row, int]) -> bool:
        """Whether it was acknowledged; else nothing is known of these rows from now on."""
        self._settle(dict.fromkeys(values, UNCERTAIN))
        body = "".join(
            f"{TABLE},client=c{self.number},batch=b{batch},half=h{row.number % 2} n={row.number}i,v={value}i "
            f"{self.number * TIME_STEP + row.number}\n"
            for row, value in values.items()
        )
        reply = self.ask(self.gateway(), "POST", write_path(self.database), body.encode())
        self.count("write", reply)
        return outcome_of(reply) is Outcome.ACKNOWLEDGED

    def _change(self, batch: int, values: dict[Row, int]) -> None:
        """One statement, and what it leaves of the batch if it is acknowledged."""
        kind = self.random.choice(("tags", "field", "v2", "update"))
        where = f"client = 'c{self.number}' AND batch = 'b{batch}'"
        after = dict(values)
        gateway = self.gateway()
        if kind == "tags":
            reply = self._sql(gateway, f"DELETE FROM {TABLE} WHERE {where} AND half = 'h1'")
            after |= {row: GONE for row in values if row.number % 2}
        elif kind == "field":
            reply = self._sql(gateway, f"DELETE FROM {TABLE} WHERE {where} AND v >= {OVER}")
            after |= {row: GONE for row, value in values.items() if value >= OVER}
        elif kind == "v2":
            times = {"start": "1970-01-01T00:00:00Z", "stop": "2100-01-01T00:00:00Z"}
            asked = times | {"predicate": f'_measurement="{TABLE}" AND client="c{self.number}" AND batch="b{batch}"'}
            reply = self.ask(gateway, "POST", V2_PATH + self.database, json.dumps(asked).encode(), **JSON)
            after |= dict.fromkeys(values, GONE)
        else:
            reply = self._sql(gateway, f"UPDATE {TABLE} SET v = v + 1000 WHERE {where} AND v >= 5")
            after |= {row: value + 1000 for row, value in values.items() if value >= 5}
        self.count(f"delete {kind}" if kind != "update" else kind, reply)
        self._judge(reply, gateway, where, values, after)

    def _sql(self, gateway: str, statement: str) -> Reply:
        body = json.dumps({"db": self.database, "q": statement}).encode()
        return self.ask(gateway, "POST", SQL_PATH, body, **JSON)

    def _judge(self, reply: Reply, gateway: str, where: str, values: dict[Row, int], after: dict[Row, int]) -> None:
        outcome = outcome_of(reply)
        if outcome is Outcome.UNKNOWN:
            self._settle({row: UNCERTAIN for row in values if values[row] != after[row]})
        elif outcome is Outcome.REFUSED and not reply.is_unsent:
            self.history.violated([f"a good statement was refused by {gateway}: {reply.status} {reply.text[:300]}"])
        elif outcome is Outcome.ACKNOWLEDGED:
            with self.history.lock:
                self.history.changes += 1
            self._settle(after)
            rows, through = self._select(f"SELECT client, n, v FROM {TABLE} WHERE {where}", gateway)
            if rows is not None:
                found = [checkers.found_of(TABLE, row) for row in rows]
                self.history.violated([f"through {through}: {told}" for told in checkers.changes_hold(after, found)])
            self._judge_view(gateway, where, after)

    def _judge_view(self, gateway: str, where: str, after: dict[Row, int]) -> None:
        """Nobody else writes these rows: the view has to say exactly what is left of them."""
        summed, through = self._select(f"SELECT * FROM {VIEW} WHERE {where}", gateway) if self.has_view else (None, "")
        if summed is not None:
            self.history.views += 1
            self.history.violated([f"through {through}: {told}" for told in checkers.view_says(after, summed)])
