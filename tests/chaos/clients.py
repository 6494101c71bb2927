"""The clients of a chaos run: threads that write, rewrite, read, change schemas and watch, and remember what they saw.

Driven by `tests.chaos.cluster_rounds`. Each has its own random numbers, seeded, and its own connections; no client
ever sends a request twice, so an outcome that it does not know stays unknown. What can be judged at once (a write that
is read back) is judged at once.
"""

from __future__ import annotations

import math
import random
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from tests.chaos import checkers
from tests.chaos.history import Found, History, KeyHistory, KeyState, Outcome, Pulse, Row, Seen
from tests.chaos.wgl import Operation
from tests.harness.exchange import Connection, Reply, query_path, write_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.harness.cluster import Cluster

TABLES: Final = ("w0", "w1", "w2")
KEYS_TABLE: Final = "p"
KEYS_PER_CLIENT: Final = 4
ROWS_MAX: Final = 40
SPREAD: Final = 32
TIME_STEP: Final = 10**12
"""A client's rows have times from its number times this; so no two rows share their key."""
ANSWER_SECONDS: Final = 15.0
DATABASES_PATH: Final = "/api/v3/configure/database"
PULSE_TABLES: Final = 4
PULSE_KEYS: Final = 24


class Client(threading.Thread):
    """Does `step` again and again until stopped; any error in it is a violation, not a silent end."""

    pause_seconds = 0.02

    def __init__(self, number: int, cluster: Cluster, history: History, database: str, seed: int) -> None:
        super().__init__(daemon=True, name=f"{type(self).__name__}-{number}")
        self.number, self.cluster, self.history, self.database = number, cluster, history, database
        self.life = seed
        self.random = random.Random(seed * 1000 + number)
        self.stopping = threading.Event()
        self.done = 0
        self._links: dict[str, Connection] = {}

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.step()
                self.stopping.wait(self.pause_seconds * self.random.uniform(0.5, 1.5))
        except Exception as error:  # noqa: BLE001 - a client that dies must not make the run look good
            self.history.violated([f"client {self.name} died: {type(error).__name__}: {error}"])
        finally:
            for link in self._links.values():
                link.close()

    def step(self) -> None:
        raise NotImplementedError

    def ask(self, node: str, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """One exchange with a node over this client's own connection to it."""
        if node not in self._links:
            self._links[node] = Connection(*self.cluster.nodes[node].address, ANSWER_SECONDS)
        return self._links[node].ask(method, path, body, headers)

    def gateway(self, other_than: str = "") -> str:
        """Any gateway, up or not; another than this one if there are several."""
        names = self.cluster.names("gateway")
        return self.random.choice([name for name in names if name != other_than] or names)

    def count(self, what: str, reply: Reply) -> None:
        """For the summary."""
        with self.history.lock:
            self.history.answers[f"{what} {reply.status or 'no answer'}"] += 1

    def _select(self, statement: str, written_through: str) -> tuple[list[dict[str, Any]] | None, str]:
        """Rows through another gateway, or None if it did not answer."""
        gateway = self.gateway(written_through)
        reply = self.ask(gateway, "GET", query_path(statement, self.database))
        self.count("read back", reply)
        if 400 <= reply.status < 500 and reply.status not in (408, 429):
            told = f"{gateway} refused to read what was acknowledged: {reply.status} {reply.text[:300]}"
            self.history.violated([f"{statement}: {told}"])
        if reply.status != 200:
            return None, gateway
        with self.history.lock:
            self.history.read_backs += 1
        rows: list[dict[str, Any]] = reply.json
        return rows, gateway


def outcome_of(reply: Reply) -> Outcome:
    """What a client may conclude from an answer to a write."""
    if reply.is_ok:
        return Outcome.ACKNOWLEDGED
    if reply.is_unsent or (400 <= reply.status < 500 and reply.status != 408):
        return Outcome.REFUSED
    return Outcome.UNKNOWN


class Writer(Client):
    """Writes unique rows, rewrites keys of its own, sends what must be refused, makes columns and tables."""

    def __init__(self, number: int, cluster: Cluster, history: History, database: str, seed: int, start: int) -> None:
        super().__init__(number, cluster, history, database, seed)
        self.next = start
        self._generations = [0] * KEYS_PER_CLIENT
        self._rewrites = [0] * KEYS_PER_CLIENT

    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.65:
            self._write_rows([self.random.choice(TABLES) for _ in range(self.random.randint(1, ROWS_MAX))])
        elif chance < 0.67:
            self._write_rows([f"n{self.number}_{self.next}"])
        elif chance < 0.72:
            self._write_what_is_refused()
        else:
            self._rewrite(self.random.randrange(KEYS_PER_CLIENT))
        self.done += 1

    def _write_rows(self, tables: Sequence[str]) -> None:
        rows = {
            Row(table, self.number, self.next + i): self.random.randrange(1 << 30) for i, table in enumerate(tables)
        }
        self.next += len(rows)
        extra = f",x{self.random.randrange(30)}=1i" if self.random.random() < 0.05 else ""
        body = "".join(self._line(row, value, extra) for row, value in rows.items())
        gateway = self.gateway()
        reply = self._post(gateway, body)
        outcome = outcome_of(reply)
        if outcome is Outcome.REFUSED and not reply.is_unsent and reply.status != 429:
            self.history.violated([f"a good write was refused by {gateway}: {reply.status} {reply.text[:300]}"])
        self.history.sent(rows, outcome)
        if outcome is Outcome.ACKNOWLEDGED and self.random.random() < 0.3:
            table = self.random.choice(tables)
            self._read_back(table, {row: value for row, value in rows.items() if row.table == table}, gateway)

    def _line(self, row: Row, value: int, extra: str = "") -> str:
        spread = self.random.randrange(SPREAD)
        at = row.client * TIME_STEP + row.number
        return f"{row.table},client=c{row.client},spread=s{spread} n={row.number}i,v={value}i{extra} {at}\n"

    def _post(self, gateway: str, body: str) -> Reply:
        reply = self.ask(gateway, "POST", write_path(self.database), body.encode())
        self.count("write", reply)
        return reply

    def _write_what_is_refused(self) -> None:
        """A field of another type than its column: 400, and the row must never be seen."""
        row = Row("w0", self.number, self.next)
        self.next += 1
        at = row.client * TIME_STEP + row.number
        body = f'w0,client=c{row.client},spread=s0 n={row.number}i,v="no number" {at}\n'
        if not any(known.table == "w0" for known in list(self.history.rows)[:50]):
            return  # the table is not there yet: this line would make it so
        reply = self._post(self.gateway(), body)
        if reply.is_ok:
            self.history.violated([f"a string in an integer column was acknowledged: {body}"])
        self.history.sent({row: 0}, outcome_of(reply))

    def _read_back(self, table: str, wanted: dict[Row, int], written_through: str) -> None:
        numbers = [row.number for row in wanted]
        statement = (
            f"SELECT n, v FROM \"{table}\" WHERE client = 'c{self.number}' "
            f"AND n >= {min(numbers)} AND n <= {max(numbers)}"
        )
        rows, where = self._select(statement, written_through)
        if rows is not None:
            found = [Found(Row(table, self.number, row["n"]), row["v"]) for row in rows]
            self.history.violated(checkers.read_your_write(where, wanted, found))

    def _rewrite(self, place: int) -> None:
        n = self._rewrites[place]
        key = f"c{self.number}k{place}r{self.life}g{self._generations[place]}"
        fields = f"n={n}i,{'b' if n % 2 else 'a'}={n}i"
        gateway = self.gateway()
        reply = self._post(gateway, f"{KEYS_TABLE},client=c{self.number},key={key} {fields} 1\n")
        outcome = outcome_of(reply)
        self.history.key_sent(key, n, outcome)
        if outcome is Outcome.UNKNOWN:
            self._generations[place], self._rewrites[place] = self._generations[place] + 1, 0
        elif outcome is Outcome.ACKNOWLEDGED:
            self._rewrites[place] += 1
            if self.random.random() < 0.3:
                statement = f"SELECT * FROM {KEYS_TABLE} WHERE key = '{key}'"
                rows, _ = self._select(statement, gateway)
                if rows is not None:
                    self.history.violated(checkers.keys_newest({key: KeyHistory(n)}, map(key_state, rows)))


def key_state(row: Mapping[str, Any]) -> KeyState:
    """One answered row of the keys' table."""
    return KeyState(row["key"], row["n"], row.get("a"), row.get("b"))


class Reader(Client):
    """Reads everything again and again through any gateway: what it sees may only grow."""

    pause_seconds = 0.1

    def step(self) -> None:
        table = self.random.choice((*TABLES, KEYS_TABLE))
        if table == KEYS_TABLE:
            statement = f"SELECT * FROM {KEYS_TABLE}"
        else:
            numbers = "count(*) AS c, count(DISTINCT n) AS d, max(n) AS m"
            statement = f'SELECT client, {numbers} FROM "{table}" GROUP BY client'
        reply = self.ask(self.gateway(), "GET", query_path(statement, self.database))
        self.count("read", reply)
        if reply.status != 200:
            return
        self.done += 1
        for row in reply.json:
            self._saw(table, row)

    def _saw(self, table: str, row: Mapping[str, Any]) -> None:
        if table == KEYS_TABLE:
            state = key_state(row)
            self.history.saw(Seen(self.number, f"{self.database} {state.key}", (state.n,)))
            if (state.a, state.b) != checkers.patched(state.n):
                self.history.violated([f"a reader saw half a rewrite: {state}"])
            return
        if row["c"] != row["d"]:
            self.history.violated([f"a reader saw rows twice in {table}: {dict(row)}"])
        self.history.saw(Seen(self.number, f"{self.database} {table} {row['client']}", (row["c"], row["m"])))


class SchemaClient(Client):
    """Creates, drops and lists databases of a few names that it shares with its like, and that no other round uses."""

    pause_seconds = 0.3

    def step(self) -> None:
        name = f"names{self.life}_{self.random.randrange(3)}"
        call, ask = self.random.choice(
            [("create", self._create), ("drop", self._drop), ("list", self._list), ("list", self._list)]
        )
        begun = time.monotonic()
        result, is_known = ask(name)
        ended = time.monotonic() if is_known else math.inf
        if is_known and result is None:
            return  # it was certainly not done, or only looked and saw nothing
        self.history.called(name, Operation(self.number, begun, ended, call, result))
        self.done += 1

    def _create(self, name: str) -> tuple[str | None, bool]:
        body = f'{{"db": "{name}"}}'.encode()
        headers = {"Content-Type": "application/json"}
        reply = self.ask(self.gateway(), "POST", DATABASES_PATH, body, **headers)
        return self._result(reply, {200: "ok", 409: "exists"}, name)

    def _drop(self, name: str) -> tuple[str | None, bool]:
        path = f"{DATABASES_PATH}?{urllib.parse.urlencode({'db': name})}"
        return self._result(self.ask(self.gateway(), "DELETE", path), {200: "ok", 404: "missing"}, name)

    def _result(self, reply: Reply, results: Mapping[int, str], name: str) -> tuple[str | None, bool]:
        """(result, whether the outcome is known); (None, True): certainly nothing was done."""
        self.count("schema", reply)
        if reply.status in results:
            return results[reply.status], True
        if reply.is_unsent or reply.status == 429:
            return None, True
        if 400 <= reply.status < 500:
            self.history.violated([f"a good schema change of {name} was refused: {reply.status} {reply.text[:300]}"])
        return None, False

    def _list(self, name: str) -> tuple[str | None, bool]:
        reply = self.ask(self.gateway(), "GET", f"{DATABASES_PATH}?format=json")
        self.count("list", reply)
        if reply.status != 200:
            return None, True
        return "there" if name in {row["iox::database"] for row in reply.json} else "missing", True


class Watcher(Client):
    """Asks every node for its Catalog's Revision."""

    pause_seconds = 0.5

    def step(self) -> None:
        for name, node in self.cluster.nodes.items():
            if not node.is_expected_up or self.stopping.is_set():
                continue
            reply = self.ask(name, "GET", "/api/runnel/status")
            if reply.status == 200 and reply.json.get("ready"):
                with self.history.lock:
                    self.history.revisions.append((name, reply.json["catalog_revision"]))
                self.done += 1


class Pulser(Client):
    """Writes a body that touches every shard, through gateways that are up: shows when all shards serve again."""

    pause_seconds = 0.1

    def __init__(
        self,
        number: int,
        cluster: Cluster,
        history: History,
        database: str,
        seed: int,
        on_reply: Callable[[Reply], None] = lambda _: None,
    ) -> None:
        super().__init__(number, cluster, history, database, seed)
        self._on_reply = on_reply

    def step(self) -> None:
        names = self.cluster.names("gateway", up=True)
        if not names:
            return
        name = names[self.done % len(names)]
        begun = time.monotonic()
        reply = self.ask(name, "POST", write_path(self.database), pulse_body(self.done))
        with self.history.lock:
            self.history.pulses.append(Pulse(begun, time.monotonic(), outcome_of(reply)))
        self.count("pulse", reply)
        self._on_reply(reply)
        self.done += 1


def pulse_body(number: int) -> bytes:
    """Rewritten points of many keys in a few tables: every shard has some of them."""
    lines = [f"pulse{t},key=k{k} n={number}i 1\n" for t in range(PULSE_TABLES) for k in range(PULSE_KEYS)]
    return "".join(lines).encode()


def seconds_until_pulse(pulses: Sequence[Pulse], at: float) -> float | None:
    """From a moment to the end of the first acknowledged pulse that began after it; None if there is none yet."""
    ends = (pulse.ended for pulse in pulses if pulse.begun >= at and pulse.outcome is Outcome.ACKNOWLEDGED)
    end = min(ends, default=None)
    return None if end is None else end - at
