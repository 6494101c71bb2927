"""One node whose large queries run on Ray, from its settings to the answer, beside a folder that is called as ours."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.harness.node import ROOT, RunningNode
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

GROUPED = "SELECT host, count(*) AS n, sum(v) AS s FROM t GROUP BY host ORDER BY host"
FLUSH_BYTES = "2 KiB"
WAIT_SECONDS = 150.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("ray")
    shell = folder / "shell"
    for name in "storage", "engine":
        (shell / name).mkdir(parents=True)
        (shell / name / "__init__.py").write_text("raise ImportError('a folder of the user')")
    environment = {
        "RUNNEL_RAY__ADDRESS": "local",
        "RUNNEL_RAY__WORKERS": "2",
        "RUNNEL_RAY__OBJECT_MEMORY": "100 MiB",
        "RUNNEL_RAY__QUERY_BYTES_MIN": "1",
        "RUNNEL_RAY__SHUFFLE_BYTES_MIN": "1",
        "RUNNEL_RAY__TASK_BYTES": "1 KiB",
        "RUNNEL_LOG__CHECKPOINT_BYTES": FLUSH_BYTES,
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",  # as the installed command: the folder it is called in is not on its path
    }
    started = RunningNode(folder / "data", environment=environment, prefix=("env", "-C", str(shell))).start()
    yield started
    started.kill()


def fill(node: RunningNode) -> None:
    for part in range(4):
        lines = [f"t,host=h{at % 5} v={part * 100 + at}i {part * 1_000 + at}" for at in range(100)]
        node.write("\n".join(lines), precision="s")


def plan(node: RunningNode, statement: str) -> dict[str, str]:
    return {row["plan_type"]: row["plan"] for row in node.query(statement)}


def wanted() -> list[dict[str, Any]]:
    return [
        {"host": f"h{h}", "n": 80, "s": sum(p * 100 + at for p in range(4) for at in range(h, 100, 5))}
        for h in range(5)
    ]


def alive(pids: Iterable[int]) -> list[str]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid).status())
    return [status for status in found if status != psutil.STATUS_ZOMBIE]


def test_a_query_is_answered_before_ray_is_there_and_by_ray_afterwards(node: RunningNode) -> None:
    fill(node)
    assert node.query(GROUPED) == wanted()

    def is_on_workers() -> bool:
        return "full shuffle" in plan(node, f"EXPLAIN {GROUPED}").get("rung", "")

    eventually(is_on_workers, "files are there, and workers", WAIT_SECONDS)
    assert node.query(GROUPED) == wanted()
    analyzed = plan(node, f"EXPLAIN ANALYZE {GROUPED}")
    assert [name for name in analyzed if name.startswith("stage 0 task ")]
    assert "ran here" not in analyzed


def test_the_node_lives_in_its_data_folder_and_keeps_the_token_there(node: RunningNode) -> None:
    assert node.process is not None
    assert os.readlink(f"/proc/{node.process.pid}/cwd") == str(node.data)
    assert (node.data / "ray-token").exists()


def test_no_process_of_ray_outlives_the_node(node: RunningNode) -> None:
    assert node.process is not None
    children = psutil.Process(node.process.pid).children(recursive=True)
    names = {child.pid: " ".join(child.cmdline()) for child in children}
    # Its agents try for a minute to tell the head, which is gone.
    rays = [pid for pid, name in names.items() if "ray" in name and "Agent" not in name]
    assert len(rays) > 3
    os.kill(node.process.pid, signal.SIGKILL)
    eventually(lambda: not alive(rays), "Ray is gone, as the node is", 60.0)
