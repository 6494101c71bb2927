"""Rounds of kill -9 at random moments under write load: nothing acknowledged is lost, nothing stands twice.

Four clients write rows that no other write repeats, and remember what was acknowledged and what got no answer. The
node is killed at a random moment, started again, and asked for everything. Checkpoints are forced to be
frequent. ``python -m tests.chaos.kill_rounds --rounds 50`` is ``make chaos-local``; a short form is a test.

What is checked after every round: every acknowledged row is there, once, with its values; no row is there that
nobody sent; offsets count exactly the rows that stand (a row that was logged twice would be folded by its key, but
not by its offset); the DataFiles that the node lists are there and readable by another engine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.chaos.eager_node import merges
from tests.harness.node import RunningNode

CLIENTS: Final = 4
ENVIRONMENT: Final = {
    "RUNNEL_LOG__CHECKPOINT_OBJECTS": "15",
    "RUNNEL_LOG__CHECKPOINT_AGE": "1s",
    "RUNNEL_LOG__SHARDS": "2",
}


@dataclass
class Ledger:
    """What the clients know: rows by (client, number) -> value."""

    acknowledged: dict[tuple[int, int], int] = field(default_factory=dict)
    unknown: dict[tuple[int, int], int] = field(default_factory=dict)
    refused: set[tuple[int, int]] = field(default_factory=set)
    answers: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client(threading.Thread):
    """Writes batches of its own rows until told to stop or until its node is gone."""

    def __init__(self, number: int, port: int, ledger: Ledger, start_at: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.ledger, self.next = number, port, ledger, start_at
        self.random = random.Random(seed)
        self.stopping = threading.Event()

    def run(self) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            self._write(connection)

    def _write(self, connection: http.client.HTTPConnection) -> None:
        while not self.stopping.is_set():
            rows = {
                (self.number, self.next + i): self.random.randrange(1 << 30) for i in range(self.random.randint(1, 60))
            }
            self.next += len(rows)
            body = "".join(
                f"t{n % 3},client=c{c} n={n}i,v={v}i {c * 10**12 + n}\n" for (c, n), v in rows.items()
            ).encode()
            with self.ledger.lock:
                self.ledger.unknown.update(rows)
            try:
                connection.request("POST", "/api/v3/write_lp?db=db&precision=ns", body)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                return
            self._account(rows, response.status)

    def _account(self, rows: dict[tuple[int, int], int], status: int) -> None:
        with self.ledger.lock:
            self.ledger.answers[status] += 1
            if status == 204:
                self.ledger.acknowledged.update(rows)
            if status == 204 or status == 429:
                for row in rows:
                    del self.ledger.unknown[row]


def read_all(node: RunningNode) -> dict[tuple[int, int], int]:
    """Every row that stands; raises when a row is there twice."""
    found: dict[tuple[int, int], int] = {}
    for table in ("t0", "t1", "t2"):
        try:
            rows = node.query(f'SELECT client, n, v FROM "{table}"')
        except AssertionError as error:
            if "not found" in str(error):
                continue
            raise
        for row in rows:
            key = (int(row["client"][1:]), row["n"])
            assert key not in found, f"row {key} is there twice"
            found[key] = row["v"]
    return found


def judge(node: RunningNode, ledger: Ledger) -> int:
    """All checks after a restart; returns how many rows stand."""
    found = read_all(node)
    lost = [key for key, value in ledger.acknowledged.items() if found.get(key) != value]
    assert not lost, f"{len(lost)} acknowledged rows are lost or changed, e.g. {lost[:3]}"
    sent = {**ledger.acknowledged, **ledger.unknown}
    strange = [key for key in found if sent.get(key) != found[key]]
    assert not strange, f"{len(strange)} rows stand that nobody sent so, e.g. {strange[:3]}"
    for key in [k for k in ledger.unknown if k in found]:
        ledger.acknowledged[key] = ledger.unknown[key]  # it stood once, so it must stand for ever
    for key in [k for k in ledger.unknown if k not in found]:
        ledger.refused.add(key)
    risen = ledger.refused & found.keys()
    assert not risen, f"rows {sorted(risen)[:3]} were absent after a restart and stand now"
    ledger.unknown.clear()
    return len(found)


def _rows_in(path: Path, file: dict[str, Any]) -> int:
    """Of a whole file, or of a slice of a bundle."""
    if not file["kind"].startswith("bundle"):
        return int(pq.ParquetFile(path).metadata.num_rows)
    rows = pq.read_table(path, columns=["_runnel_table", "_runnel_partition"])
    mine = (pc.field("_runnel_table") == file["table_id"]) & (pc.field("_runnel_partition") == file["partition"])
    return int(rows.filter(mine).num_rows)


def judge_files(node: RunningNode, rows: int) -> None:
    """After a checkpoint: files are readable, and offsets count exactly the rows that stand."""
    status, answer = node.request("POST", "/api/runnel/checkpoint")
    assert status == 204, (status, answer)
    files = node.query("SELECT * FROM system.parquet_files")
    offsets = Counter[str]()
    read = 0
    for file in files:
        read += _rows_in(node.data / "store" / file["path"], file)
        offsets[file["table_name"]] = max(offsets[file["table_name"]], file["offset_high"] + 1)
    assert read == rows, f"the DataFiles hold {read} rows, {rows} stand"
    assert sum(offsets.values()) == rows, f"offsets count {sum(offsets.values())} rows, {rows} stand: some stand twice"


def _wait_for_writes(ledger: Ledger, more: int) -> None:
    """A kill before the first write of a round would show nothing."""
    wanted = ledger.answers[204] + more
    deadline = time.monotonic() + 30
    while ledger.answers[204] < wanted and time.monotonic() < deadline:
        time.sleep(0.01)


def one_round(node: RunningNode, ledger: Ledger, chooser: random.Random, seed: int, at: list[int]) -> None:
    """Start, load, kill at a random moment."""
    node.start()
    clients = [Client(i, node.port, ledger, at[i], seed * 100 + i) for i in range(CLIENTS)]
    for client in clients:
        client.start()
    _wait_for_writes(ledger, CLIENTS)
    time.sleep(chooser.uniform(0.0, 1.5))
    node.kill()
    for client in clients:
        client.stopping.set()
        client.join(40)
        at[client.number] = client.next


def run(rounds: int, seed: int, folder: Path, *, faulty: bool) -> str:
    """Run the rounds; returns a line that says what happened. Raises AssertionError when a promise is broken."""
    chooser = random.Random(seed)
    ledger = Ledger()
    at = [0] * CLIENTS
    report = folder / "faults.json"
    environment = {**ENVIRONMENT, "FAULT_REPORT": str(report), "FAULT_SEED": str(seed)}
    module = "tests.chaos.faulty_node" if faulty else "tests.chaos.eager_node"
    fired = Counter[str]()
    rows = merged = 0
    for number in range(rounds):
        environment["FAULT_SEED"] = str(seed + number)
        node = RunningNode(folder / "data", environment=environment, module=module)
        one_round(node, ledger, chooser, seed + number, at)
        merged += merges(node.lines())
        if faulty and report.exists():
            fired.update(json.loads(report.read_text() or "{}"))
        with RunningNode(folder / "data", environment=environment) as check:
            rows = judge(check, ledger)
            judge_files(check, rows)
            assert check.stop() == 0, check.text()[-2000:]
        print(f"round {number + 1}: {rows} rows stand, answers {dict(ledger.answers)}", file=sys.stderr)
    assert ledger.answers[204] > rounds, "too few writes were acknowledged for the kills to mean anything"
    assert ledger.refused or rounds < 10, "no write was cut off: the kills did not fall into writes"
    assert merged > rounds // 4, f"{merged} merges: the kills did not fall among merges"
    if faulty:
        assert sum(fired.values()) > rounds, "no fault fired: the run has shown nothing"
    return (
        f"{rounds} rounds, {rows} rows, 0 lost, 0 doubled; answers {dict(ledger.answers)}; {merged} merges;"
        f" faults {dict(fired)}"
    )


def main() -> None:
    """The command line of ``make chaos-local``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    for faulty in (False, True):
        with tempfile.TemporaryDirectory(prefix="runnel-chaos-") as folder:
            print(run(arguments.rounds, arguments.seed, Path(folder), faulty=faulty))


if __name__ == "__main__":
    main()
