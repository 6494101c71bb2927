"""A Ray cluster of several nodes on loopback, in a process of its own: `python -m tests.harness.raycluster NODES`.

It prints the head's address and one line with each further node's raylet, and lives until its input ends. A process
that joins must not have imported Ray before its environment is set, hence a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, Self

from nodes.rayhead import ALONE, ENVIRONMENT
from tests.harness.node import ROOT

if TYPE_CHECKING:
    from pathlib import Path

OBJECT_BYTES: Final = 100 * 2**20
STOP_SECONDS: Final = 60.0


class RayCluster:
    """A head without CPUs, to which this process's Ray connects, and ``nodes`` others with one CPU each."""

    def __init__(self, token: Path, nodes: int) -> None:
        self._command = [sys.executable, "-m", "tests.harness.raycluster", str(nodes)]
        self._environment = {
            **os.environ, **ENVIRONMENT, **ALONE, "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.address = ""
        self.raylets: list[int] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "cluster":
                self.address, *pids = rest.split()
                self.raylets = [int(pid) for pid in pids]
                return self
        raise RuntimeError(f"no Ray cluster: {self._process.wait()}")

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()


def main(nodes: int) -> None:
    from ray.cluster_utils import Cluster

    shared = {"include_dashboard": False, "object_store_memory": OBJECT_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **shared})
    added = [cluster.add_node(num_cpus=1, object_store_memory=OBJECT_BYTES) for _ in range(nodes)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in added]
    print("cluster", cluster.address, *raylets, flush=True)
    sys.stdin.read()
    shutdown: Any = cluster.shutdown
    shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
