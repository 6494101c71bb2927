"""A real node in a process of its own, on a free port: start, write, query, kill, stop, and read what it logged."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

READY_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 60.0
ROOT: Final = Path(__file__).resolve().parents[2]


class NodeDied(RuntimeError):
    """The process ended before it was ready; the message has its log."""


class RunningNode:
    """One ``runnel start``. ``module`` may name another entry point with the same flags (fault injection)."""

    def __init__(
        self,
        data: Path,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        module: str = "nodes",
        name: str = "node",
        prefix: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.log_path = data.parent / f"{name}.log"
        self.port = 0
        self._command = [
            *prefix, sys.executable, "-m", module, "start", "--data", str(data), "--http", "127.0.0.1:0", *flags,
        ]  # fmt: skip
        self._environment = {**os.environ, "RUNNEL_LOGS__FORMAT": "json", **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> Self:
        """Start the process and wait until it says that it is ready."""
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            for line in self.lines():
                if line.get("event") == "ready" and "http" in line:
                    self.port = int(str(line["http"]).rsplit(":", 1)[1])
                    return self
            if self.process.poll() is not None:
                raise NodeDied(f"exit {self.process.returncode}: {self.text()[-2000:]}")
            time.sleep(0.02)
        self.kill()
        raise NodeDied(f"not ready in {READY_SECONDS_MAX} s: {self.text()[-2000:]}")

    def text(self) -> str:
        """What this process wrote since it was started."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its log lines as JSON; other lines are left out."""
        for line in self.text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value

    def alarms(self) -> list[dict[str, Any]]:
        """Lines of level warning and above: an unexpected one is a failure."""
        return [line for line in self.lines() if line.get("level") in ("warning", "error", "critical")]

    def kill(self) -> None:
        """kill -9, and wait for the process to be gone."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS_MAX)

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS_MAX)

    @property
    def grpc_address(self) -> str:
        """Where it serves gRPC, from its own log."""
        return str(next(line["grpc"] for line in self.lines() if line.get("event") == "ready"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request on a connection of its own: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def write(self, lines: str | bytes, database: str = "db", **parameters: str) -> None:
        """Write line protocol; anything but 204 is an AssertionError."""
        query = urllib.parse.urlencode({"db": database, **parameters})
        body = lines.encode() if isinstance(lines, str) else lines
        status, answer = self.request("POST", f"/api/v3/write_lp?{query}", body)
        assert status == 204, (status, answer[:500])

    def query(self, statement: str, database: str = "db") -> list[dict[str, Any]]:
        """Rows of a statement; anything but 200 is an AssertionError."""
        query = urllib.parse.urlencode({"db": database, "q": statement, "format": "json"})
        status, answer = self.request("GET", f"/api/v3/query_sql?{query}")
        assert status == 200, (status, answer[:500])
        rows: list[dict[str, Any]] = json.loads(answer)
        return rows

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
