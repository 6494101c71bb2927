"""A node that compacts at once and for little: ``python -m tests.chaos.eager_node start ...``.

So that merges, which otherwise wait for minutes, fall under the faults of short rounds. They are made in a thread: a
process of the lowest priority would hardly begin in a node's life of seconds under load. `tests.chaos.faulty_node` and
`tests.chaos.faulty_cluster_node` do the same.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

import nodes.compaction
import storage.bundleplan
import storage.compaction
from nodes.mergeprocess import MergeFailed
from nodes.mergeworker import Answer, carried_out
from storage.errors import StorageError
from storage.objects import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from storage.bundlemerge import BundleJob
    from storage.merge import MergeJob
    from storage.objects import S3Options

LOOK_SECONDS: Final = 0.2
LAYERS_MIN: Final = 2
MERGED: Final = "files merged"
"""What a node logs when a merge stands."""


class MergeHere:
    """`nodes.mergeprocess.MergeProcess` without a process. A merge that nobody waits for any more goes on."""

    def __init__(self, url: str, options: S3Options | None, scratch: Path, read_bytes: int) -> None:
        self._store = open_store(url, options)
        self._scratch, self._read_bytes = scratch, read_bytes

    async def merge(self, job: MergeJob | BundleJob, share: float) -> Answer:
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            files, runs = await asyncio.to_thread(
                carried_out, self._store, job, self._scratch, lambda: None, self._read_bytes
            )
        except StorageError as error:
            raise MergeFailed(str(error), passing=True) from error
        return Answer(0.0, files, runs=runs)

    async def rest(self) -> None:
        """Nothing runs."""

    async def aclose(self) -> None:
        """Nothing runs."""


def compact_eagerly() -> None:
    """In this process, from now on."""
    vars(nodes.compaction)["MergeProcess"] = MergeHere
    vars(nodes.compaction)["LOOK_SECONDS"] = LOOK_SECONDS
    vars(nodes.compaction)["RUN_LAYERS_MIN"] = LAYERS_MIN
    vars(storage.compaction)["RUN_LAYERS_MIN"] = LAYERS_MIN
    vars(storage.bundleplan)["RUN_LAYERS_MIN"] = LAYERS_MIN


def merges(lines: Iterable[Mapping[str, Any]]) -> int:
    """How many merges stood, as the log says."""
    return sum(int(line.get("merges", 0)) for line in lines if line.get("event") == MERGED)


def main() -> None:
    """Run the command line."""
    compact_eagerly()
    from nodes.__main__ import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
