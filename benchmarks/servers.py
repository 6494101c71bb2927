"""The servers under measurement, one class each: start on a free loopback port in an empty folder, stop, account.

Driven by the loads as context managers. Every server gets its own folder for configuration, data and log; what
differs between them (paths, what "written to files" means, where the bytes lie) is here and nowhere else.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import quote, urlencode

from benchmarks import accounting, packages
from benchmarks.client import HOST, RequestFailed, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from benchmarks.accounting import Memory

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS_MAX = 120.0
READY_POLL_SECONDS = 0.005
STOP_SECONDS_MAX = 60.0
SETTLE_SECONDS_MAX = 30.0
QUIET_SECONDS = 2.0
"""A peer has settled when it has used less than `QUIET_CPU_SHARE` of a core for this long."""
QUIET_CPU_SHARE = 0.03
LOG_TAIL_CHARS = 800


class ServerFailed(RuntimeError):
    """A server did not start, died, or did not finish what it was asked to do in time."""


class Server:
    """A server process on loopback. ``folder`` must be its own; it is kept after `stop`."""

    name: ClassVar[str]
    ready_path: ClassVar[str]
    settings: ClassVar[Mapping[str, str]] = {}
    """Of its environment."""
    write_path: ClassVar[str]
    """Path and query of the line protocol write endpoint, nanosecond times, database ``{database}``."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.port = 0
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.explain(error)
        self.stop()

    def explain(self, error: BaseException) -> None:
        """Note on an error that this server had died, if it had: a refused connection alone says nothing."""
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            error.add_note(f"{self.name} had ended with {code}: {self.log_tail() or 'it said nothing'}")

    def command(self) -> Sequence[str]:
        """What to run; ``self.port`` is set and the folder exists."""
        raise NotImplementedError

    @classmethod
    def version(cls) -> str:
        raise NotImplementedError

    def prepare(self, database: str) -> None:
        """Make ``database`` ready for writes, where that is needed."""

    def settle(self) -> None:
        """Return when what was written is in the server's files at rest."""
        raise NotImplementedError

    def disk_bytes(self, database: str, table: str) -> int:
        """Bytes of the files at rest, after `settle`."""
        raise NotImplementedError

    def query_path(self, database: str, text: str) -> str:
        """Path and query that answer ``text``, in the server's own language, as JSON."""
        raise NotImplementedError

    def rows(self, database: str, table: str) -> int | None:
        """Rows of a table; None where that cannot be asked."""
        raise NotImplementedError

    def query(self, database: str, text: str) -> Any:
        """The decoded JSON answer to ``text``."""
        return json.loads(ask(self.port, "GET", self.query_path(database, text)).body)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerFailed(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> float:
        """Start and wait until ready; seconds from exec to the first successful answer on `ready_path`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        command = self.command()
        with (self.folder / "log").open("ab") as log:
            begun = time.perf_counter()
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.settings, **self._environment},
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return time.perf_counter() - begun

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            code = self._process.poll() if self._process is not None else 0
            if code is not None:
                said = self.log_tail() or "it said nothing"
                raise ServerFailed(f"{self.name} ended with {code} while starting: {said}")
            with suppress(RequestFailed, OSError):
                ask(self.port, "GET", self.ready_path)
                return
            time.sleep(READY_POLL_SECONDS)
        raise ServerFailed(f"{self.name} was not ready after {READY_SECONDS_MAX:.0f} s: {self.log_tail()}")

    def stop(self) -> None:
        """SIGTERM and wait; SIGKILL after ``STOP_SECONDS_MAX``. Does nothing when it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL and wait: a crash."""
        self._end(signal.SIGKILL)

    @contextmanager
    def crashing(self) -> Iterator[None]:
        """Start; SIGKILL at the end, whatever happens."""
        self.start()
        try:
            yield
        except BaseException as error:
            self.explain(error)
            raise
        finally:
            self.kill()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def cpu_seconds(self) -> float:
        return accounting.cpu_seconds(self.pid)

    def memory(self) -> Memory:
        return accounting.memory(self.pid)

    def log_tail(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace")[-LOG_TAIL_CHARS:].strip() if log.exists() else "(no log)"

    def wait_quiet(self, also: Callable[[], bool] = lambda: True) -> None:
        """Wait until the server rests and ``also`` holds, at most ``SETTLE_SECONDS_MAX``."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(QUIET_SECONDS)
            if self.cpu_seconds() - before < QUIET_SECONDS * QUIET_CPU_SHARE and also():
                return


class Runnel(Server):
    """``runnel start`` from this checkout. Settled means that every shard is checkpointed."""

    name = "runnel"
    ready_path = "/health"
    write_path = "/api/v3/write_lp?db={database}&precision=nanosecond"
    # A merge that happens to fall into a load would be counted with it.
    settings: ClassVar[Mapping[str, str]] = {"RUNNEL_COMPACTION__CPU_SHARE": "none"}

    def command(self) -> Sequence[str]:
        program = str(Path(sys.executable).parent / "runnel")
        return [program, "start", "--data", str(self.data), "--http", f"{HOST}:{self.port}"]

    @classmethod
    def version(cls) -> str:
        return git_commit()

    def settle(self) -> None:
        ask(self.port, "POST", "/api/runnel/checkpoint")

    def disk_bytes(self, database: str, table: str) -> int:
        text = f"SELECT sum(size_bytes) AS bytes FROM system.parquet_files WHERE table_name = '{table}'"
        return int(self.query(database, text)[0]["bytes"] or 0)

    def rows(self, database: str, table: str) -> int:
        return int(self.query(database, f"SELECT count(*) AS found FROM {table}")[0]["found"])

    def query_path(self, database: str, text: str) -> str:
        return "/api/v3/query_sql?" + urlencode({"db": database, "q": text, "format": "json"})


class InfluxDB(Server):
    """InfluxDB 1.6: tsi1 index, its WAL is fsynced. Settled means that the WAL is in TSM files."""

    name = "influxdb"
    ready_path = "/ping"
    write_path = "/write?db={database}&precision=ns"

    def command(self) -> Sequence[str]:
        configuration = self.folder / "influxdb.conf"
        configuration.write_text(self._configuration())
        return [str(packages.ensure(packages.INFLUXDB)), "-config", str(configuration)]

    def _configuration(self) -> str:
        return f"""reporting-disabled = true
bind-address = "{HOST}:0"
[meta]
  dir = "{self.data}/meta"
[data]
  dir = "{self.data}/data"
  wal-dir = "{self.data}/wal"
  index-version = "tsi1"
  cache-snapshot-write-cold-duration = "2s"
  compact-full-write-cold-duration = "4s"
[monitor]
  store-enabled = false
[http]
  bind-address = "{HOST}:{self.port}"
  log-enabled = false
  max-row-limit = 0
"""

    @classmethod
    def version(cls) -> str:
        return packages.version(packages.INFLUXDB)

    def prepare(self, database: str) -> None:
        ask(self.port, "POST", "/query?q=" + quote(f"CREATE DATABASE {database}"))

    def settle(self) -> None:
        self.wait_quiet(lambda: not any(path.stat().st_size for path in self.data.glob("wal/**/*.wal")))

    def disk_bytes(self, database: str, table: str) -> int:
        """TSM files after the full compaction; the series files are sparse and mostly air at this size."""
        shards = self.data / "data" / database
        self.wait_quiet(lambda: all(len(list(shard.glob("*.tsm"))) <= 1 for shard in shards.glob("*/*")))
        return sum(path.stat().st_size for path in shards.rglob("*.tsm"))

    def rows(self, database: str, table: str) -> int:
        """The largest count of a field: each line of the loads has a value for every field."""
        series = self.query(database, f"SELECT count(*) FROM {table}")["results"][0].get("series", [])
        return int(max(series[0]["values"][0][1:])) if series else 0

    def query_path(self, database: str, text: str) -> str:
        return "/query?" + urlencode({"db": database, "epoch": "ns", "q": text})


class VictoriaMetrics(Server):
    """VictoriaMetrics 1.79: acknowledges before anything is on disk. It has no databases."""

    name = "victoria-metrics"
    ready_path = "/health"
    write_path = "/write?precision=ns"

    def command(self) -> Sequence[str]:
        return [
            str(packages.ensure(packages.VICTORIA_METRICS)),
            f"-storageDataPath={self.data}",
            f"-httpListenAddr={HOST}:{self.port}",
            "-retentionPeriod=100y",
            "-search.latencyOffset=0s",
            "-search.disableCache=true",
        ]

    @classmethod
    def version(cls) -> str:
        return packages.version(packages.VICTORIA_METRICS)

    def settle(self) -> None:
        ask(self.port, "GET", "/internal/force_flush")
        self.wait_quiet()

    def disk_bytes(self, database: str, table: str) -> int:
        """Its parts after a forced merge, which is the smallest it gets."""
        ask(self.port, "GET", "/internal/force_merge")
        self.wait_quiet()
        return sum(path.stat().st_size for path in (self.data / "data").rglob("*") if path.is_file())

    def rows(self, database: str, table: str) -> int | None:
        """It has samples, not rows."""
        return None


SERVERS: dict[str, type[Server]] = {each.name: each for each in (Runnel, InfluxDB, VictoriaMetrics)}


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def git_commit() -> str:
    """The checkout's commit, ``-dirty`` when files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
