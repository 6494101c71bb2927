"""A node in a memory cgroup, flooded faster than its checkpoints go: 503 and Retry-After, never an OOM kill."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.node import RunningNode
from tests.harness.waiting import eventually
from tests.integration.whole.probing import MIB, ask, checkpoint, goes_on, post_lines, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
LIMIT_BYTES = 640 * MIB
CLIENTS = 8
ROWS = 2000
SECONDS = 3.0


class MemoryGroup:
    """A memory cgroup of its own, version 1 or 2."""

    def __init__(self, folder: Path, limit: str, peak: str, kills: str) -> None:
        self.folder, self._peak, self._kills = folder, peak, kills
        folder.mkdir()
        (folder / limit).write_text(str(LIMIT_BYTES))
        with contextlib.suppress(OSError):
            (folder / "memory.swap.max").write_text("0")

    @property
    def prefix(self) -> list[str]:
        """What starts a process inside."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"]

    def kills(self) -> int:
        """How often the kernel has killed in here."""
        text = (self.folder / self._kills).read_text()
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def peak_bytes(self) -> int:
        """The most that was ever in use in here, page cache included."""
        return int((self.folder / self._peak).read_text())

    def has_limit(self, process_id: int) -> bool:
        """The process is inside."""
        return str(process_id) in (self.folder / "cgroup.procs").read_text().split()


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    name = f"runnel-test-{uuid.uuid4().hex[:8]}"
    try:
        if (V1 / "memory.limit_in_bytes").exists():
            made = MemoryGroup(V1 / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
        else:
            made = MemoryGroup(V2 / name, "memory.max", "memory.peak", "memory.events")
    except OSError as error:
        with contextlib.suppress(OSError):
            (V2 / name).rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        yield made
    finally:
        eventually(lambda: not (made.folder / "cgroup.procs").read_text().split(), "the cgroup is empty")
        made.folder.rmdir()


class Flood(threading.Thread):
    """One client: bodies of `ROWS` rows with text that does not compress, until told to stop."""

    def __init__(self, node: RunningNode, number: int, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self.node, self.number, self.stopping = node, number, stopping
        self.acknowledged = 0
        self.statuses: set[int] = set()
        self.refusals: list[str] = []
        self.has_retry_after = True
        self.random = random.Random(number)

    def run(self) -> None:
        while not self.stopping.is_set():
            first = self.acknowledged
            text = "".join(
                f'm,c=c{self.number} v={i}i,s="{self.random.randbytes(60).hex()}" {i + 1}\n'
                for i in range(first, first + ROWS)
            )
            try:
                reply = post_lines(self.node, text, precision="ns")
            except (OSError, HTTPException) as error:
                self.refusals.append(repr(error))
                return
            self.statuses.add(reply.status)
            if reply.status == 204:
                self.acknowledged += ROWS
                continue
            self.refusals.append(reply.json["error"])
            self.has_retry_after &= int(reply.headers.get("retry-after", "0")) > 0
            time.sleep(0.05)


@pytest.mark.timeout(180)
def test_a_flood_beyond_the_memory_is_refused_and_nothing_is_killed(group: MemoryGroup, tmp_path: Path) -> None:
    environment = {
        "RUNNEL_LOG__SHARDS": "2", "SLOW_SECONDS": "7", "MALLOC_ARENA_MAX": "4",
    }  # fmt: skip
    node = RunningNode(
        tmp_path / "data", environment=environment, module="tests.integration.whole.slow_node", prefix=group.prefix
    )
    with node:
        assert node.process is not None
        assert group.has_limit(node.process.pid)
        assert status_of(node)["memory"]["budget_bytes"] == (LIMIT_BYTES - 256 * MIB) // 3, "auto knows the cgroup"
        goes_on(node)
        stopping = threading.Event()
        clients = [Flood(node, number, stopping) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline or not any(503 in client.statuses for client in clients):
            assert node.process.poll() is None, "the node was killed"
            assert time.monotonic() < deadline + 30, "the flood was never refused: it has shown nothing"
            memory = status_of(node)["memory"]
            assert memory["memtable_bytes"] <= memory["memtable_bytes_max"] * 1.2
            assert ask(node, "GET", "/health").status == 200
            time.sleep(0.1)
        stopping.set()
        for client in clients:
            client.join(60)
        assert group.kills() == 0
        for client in clients:
            assert client.statuses <= {204, 503}, client.refusals[-1:]
            assert client.has_retry_after
            assert client.acknowledged > 0
        refusals = [text for client in clients for text in client.refusals]
        assert refusals
        assert all("try again" in text for text in refusals), set(refusals)
        judge(node, clients)
        eventually(lambda: post_lines(node, "m,c=late v=1i 1").status == 204, "writes go on when the flood is over")
        checkpoint(node)
        judge(node, clients)
        assert node.alarms() == []
        node.kill()
        node.start()
        judge(node, clients)
        goes_on(node)
        assert node.stop() == 0
        assert node.alarms() == []
    assert group.kills() == 0
    assert group.peak_bytes() > LIMIT_BYTES // 3, "so little was used that this has shown nothing"


def judge(node: RunningNode, clients: list[Flood]) -> None:
    """Every acknowledged row is there, once; one body that got no 204 may be there too, whole."""
    rows = node.query("SELECT c, count(*) AS n, sum(v) AS s, max(v) AS v, min(v) AS a FROM m GROUP BY c")
    found = {row["c"]: row for row in rows}
    for client in clients:
        row = found[f"c{client.number}"]
        assert row["n"] == row["v"] + 1
        assert row["s"] == row["n"] * row["v"] // 2, "a row is missing and another stands twice"
        assert row["a"] == 0
        assert row["n"] in (client.acknowledged, client.acknowledged + ROWS), (row, client.acknowledged)
