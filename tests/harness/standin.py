"""A stand-in for the cluster's nodes: enough of their surface to try the harness and the chaos rounds by themselves.

``python -m tests.harness.standin ingest|gateway|query`` with a node's flags. All nodes share one SQLite file in the
store's folder, so it is linearizable by itself; ``STANDIN_BUG`` plants a violation, to show that the rounds find it:
``lose`` (acknowledges some writes without writing), ``double`` (some rows get a second copy), ``stale`` (a gateway
answers some reads from before), ``name`` (lists databases from before).
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import random
import re
import signal
import sqlite3
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any, Final

SHARDS: Final = 8
BUG_RATES: Final = {"lose": 0.02, "double": 0.02, "stale": 0.05, "name": 0.7}
LINE: Final = re.compile(r"(\w+)((?:,\w+=\w+)*) (\S+) (\d+)")
VALUE: Final = re.compile(r'(\w+)=("[^"]*"|-?\d+i)')


class Refused(Exception):
    """An HTTP status and what it says."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Store:
    """Databases as prefixes of SQLite tables, and who is there as files with process ids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = folder / "members"
        self.members.mkdir(parents=True, exist_ok=True)
        self.path = folder / "standin.sqlite"
        self.bug = os.environ.get("STANDIN_BUG", "")
        self.before: dict[str, Any] = {}
        with self.open() as base:
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("CREATE TABLE IF NOT EXISTS names (name TEXT PRIMARY KEY)")
            base.execute("CREATE TABLE IF NOT EXISTS revision (n INTEGER)")

    @contextlib.contextmanager
    def open(self) -> Any:
        base = sqlite3.connect(self.path, timeout=20, isolation_level=None)
        base.row_factory = sqlite3.Row
        try:
            yield base
        finally:
            base.close()

    def is_buggy(self, bug: str) -> bool:
        return self.bug == bug and random.random() < BUG_RATES[bug]

    def write(self, database: str, body: str) -> None:
        with self.open() as base:
            base.execute("BEGIN IMMEDIATE")
            base.execute("INSERT OR IGNORE INTO names VALUES (?)", [database])
            for line in body.splitlines():
                self._write_line(base, database, line)
            if self.is_buggy("lose"):
                base.execute("ROLLBACK")
            else:
                base.execute("COMMIT")

    def _write_line(self, base: sqlite3.Connection, database: str, line: str) -> None:
        found = LINE.fullmatch(line)
        if found is None:
            raise Refused(400, f"not a line: {line}")
        table, tags, fields, at = found.groups()
        values: dict[str, Any] = dict(tag.split("=") for tag in tags.split(",")[1:])
        name, key = f'"{database}.{table}"', ", ".join(["time", *values])
        base.execute(f"CREATE TABLE IF NOT EXISTS {name} (time INTEGER, {', '.join(values)}, PRIMARY KEY ({key}))")
        values |= {"time": int(at)}
        for field, value in VALUE.findall(fields):
            if value.startswith('"'):
                raise Refused(400, f"{field} is no integer")
            values[field] = int(value[:-1])
        there = {row["name"] for row in base.execute(f"PRAGMA table_info({name})")}
        for field in values.keys() - there:
            base.execute(f"ALTER TABLE {name} ADD COLUMN {field}")
        for _ in range(2 if self.is_buggy("double") else 1):
            self._upsert(base, name, key, values)
            values["time"] += 10**15

    def _upsert(self, base: sqlite3.Connection, name: str, key: str, values: dict[str, Any]) -> None:
        sets = ", ".join(f"{field} = excluded.{field}" for field in values)
        marks = ", ".join("?" * len(values))
        base.execute(
            f"INSERT INTO {name} ({', '.join(values)}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {sets}",
            list(values.values()),
        )

    def query(self, database: str, statement: str) -> list[dict[str, Any]]:
        if self.is_buggy("stale") and statement in self.before:
            found: list[dict[str, Any]] = self.before[statement]
            return found
        wanted = re.sub(r'FROM "?(\w+)"?', rf'FROM "{database}.\1"', statement)
        with self.open() as base:
            try:
                rows = [dict(row) for row in base.execute(wanted)]
            except sqlite3.OperationalError as error:
                raise Refused(400, f"table not found: {error}") from None
        self.before.setdefault(statement, rows)
        return rows

    def change(self, database: str, statement: str) -> list[dict[str, Any]]:
        """DELETE and UPDATE."""
        wanted = re.sub(r"(FROM|UPDATE) (\w+)", rf'\1 "{database}.\2"', statement, count=1)
        if not wanted.startswith(("DELETE", "UPDATE")):
            raise Refused(405, statement)
        with self.open() as base:
            return [{"count": base.execute(wanted).rowcount}]

    def delete(self, database: str, predicate: str) -> None:
        """By a predicate of InfluxDB 2."""
        pairs = re.findall(r'(\w+)="([^"]*)"', predicate)
        where = " AND ".join(f"{name} = '{value}'" for name, value in pairs if name != "_measurement")
        self.change(database, f"DELETE FROM {dict(pairs)['_measurement']} WHERE {where}")

    def alter(self, name: str, *, create: bool) -> None:
        with self.open() as base:
            changed = base.execute(
                "INSERT OR IGNORE INTO names VALUES (?)" if create else "DELETE FROM names WHERE name = ?", [name]
            ).rowcount
            base.execute("INSERT INTO revision VALUES (1)")
        if not changed:
            raise Refused(409 if create else 404, name)

    def names(self) -> list[dict[str, Any]]:
        if self.is_buggy("name") and "names" in self.before:
            old: list[dict[str, Any]] = self.before["names"]
            return old
        with self.open() as base:
            found = [{"iox::database": row["name"], "deleted": False} for row in base.execute("SELECT name FROM names")]
        self.before.setdefault("names", found)
        return found

    def revision(self) -> int:
        with self.open() as base:
            count: int = base.execute("SELECT count(*) FROM revision").fetchone()[0]
        return count

    def cluster(self) -> dict[str, Any]:
        members = [json.loads(path.read_text()) for path in sorted(self.members.iterdir())]
        alive = [each for each in members if _state(each["pid"]) in ("R", "S", "D")]
        ingest = [each["name"] for each in alive if each["kind"] == "ingest"]
        shards = [{"shard": n + 1, "owner": ingest[n % len(ingest)] if ingest else None} for n in range(SHARDS)]
        told = [{**each, "state": "alive" if each in alive else "dead"} for each in members]
        return {
            "controller": min(ingest, default=None), "placement_epoch": 1, "placement_number": len(ingest),
            "members": told, "shards": shards,
        }  # fmt: skip


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    store: Store
    kind: str

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(url.query))
        try:
            status, answer = self._answer(url.path, asked, body.decode())
        except Refused as error:
            status, answer = error.status, {"error": str(error)}
        content = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, path: str, asked: dict[str, str], body: str) -> tuple[int, Any]:
        if path == "/health/ready":
            return 200, {}
        if path == "/api/runnel/cluster":
            return 200, self.store.cluster()
        if path == "/api/runnel/status":
            return 200, {"ready": True, "catalog_revision": self.store.revision()}
        if not any(shard["owner"] for shard in self.store.cluster()["shards"]):
            raise Refused(503, "no owner")
        return self._gateway(path, asked, body)

    def _gateway(self, path: str, asked: dict[str, str], body: str) -> tuple[int, Any]:
        if path == "/api/v3/write_lp":
            self.store.write(asked["db"], body)
            return 204, None
        if path == "/api/v3/query_sql":
            if self.command == "POST":
                posted = json.loads(body)
                return 200, self.store.change(posted["db"], posted["q"])
            return 200, self.store.query(asked["db"], asked["q"])
        if path == "/api/v2/delete":
            self.store.delete(asked["bucket"], json.loads(body)["predicate"])
            return 204, None
        if path == "/api/v3/configure/database":
            if self.command == "GET":
                return 200, self.store.names()
            name = json.loads(body)["db"] if self.command == "POST" else asked["db"]
            self.store.alter(name, create=self.command == "POST")
            return 200, None
        raise Refused(404, path)

    do_GET = do_POST = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(http.server.ThreadingHTTPServer):
    """Clients that go away are part of the game."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet."""


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("ingest", "gateway", "query"))
    for flag in ("name", "data", "store", "http", "grpc", "gossip", "raft", "voters", "join", "secret-file", "shards"):
        parser.add_argument(f"--{flag}")
    options = parser.parse_args()
    store = Store(Path(options.store))
    host, port = options.http.rsplit(":", 1)
    handler = type("BoundHandler", (Handler,), {"store": store, "kind": options.kind})
    server = Server((host, int(port)), handler)
    member = {"name": options.name, "kind": options.kind, "pid": os.getpid()}
    part = store.folder / f"{options.name}.part"
    part.write_text(json.dumps(member))
    part.replace(store.members / options.name)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    addresses = {"http": options.http, "grpc": options.grpc, "gossip": options.gossip}
    print(json.dumps({"level": "info", "event": "ready", "at": time.time(), **addresses}), flush=True)
    server.serve_forever(0.05)
    sys.exit(0)


if __name__ == "__main__":
    main()
