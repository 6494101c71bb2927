"""The process that merges files for `nodes.mergeprocess`: at the lowest priority, within its share of a core.

It is told what to do by lines of JSON on standard input and answers each with a line on standard output. It owns
nothing: what it has created and nobody commits is swept (LOG L20). It ends when its input does, also in mid-merge.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec
import pyarrow as pa

from nodes.lean import keep_pandas_out
from nodes.pace import Pace
from nodes.pages import keep_pages
from storage.bundlemerge import BundleJob, merge_bundles
from storage.errors import ObjectMissing, StorageError
from storage.merge import MergeJob, merge_files
from storage.objects import S3Options, open_store
from storage.schema import DataFile  # noqa: TC001  msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.objects import ObjectStore

NICENESS: Final = 19
OOM_SCORE: Final = "1000"
"""When memory runs out, this process goes first: nothing is lost with it."""
MESSAGE_CHARS_MAX: Final = 1000


class Setup(msgspec.Struct, frozen=True):
    """The first line: the store, and a folder for files that are being put together."""

    url: str
    options: S3Options | None
    scratch: str


class Order(msgspec.Struct, frozen=True):
    """A further line: merge this, with at most ``share`` of a core and ``read_bytes`` of rows in memory.

    Either files of a partition, or ``bundles``, in memory as a whole.
    """

    job: MergeJob | None
    share: float
    read_bytes: int
    bundles: BundleJob | None = None


class Answer(msgspec.Struct, frozen=True):
    """What came of it: ``files``, or an ``error``, which may be ``passing``. ``cpu_seconds`` is what it took.

    ``on_ray``: a Ray worker did it, not the node's own process. Of bundles, ``runs`` says for each file which run it is
    of.
    """

    cpu_seconds: float
    files: list[DataFile] = []
    error: str = ""
    passing: bool = False
    runs: list[int] = []
    on_ray: bool = False


def main() -> None:
    """Serve until standard input ends."""
    _stand_back()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, lines), daemon=True).start()
    setup = msgspec.json.decode(lines.get(), type=Setup)
    _prepare()
    store, pace = open_store(setup.url, setup.options), Pace()
    while True:
        order = msgspec.json.decode(lines.get(), type=Order)
        answer = answer_order(store, Path(setup.scratch), order, pace)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


def _stand_back() -> None:
    """Signals for the node's whole group are the node's to answer: it ends this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def _prepare() -> None:
    keep_pages()
    keep_pandas_out()
    pa.set_cpu_count(1)


def _read(source: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        lines.put(line)
    os._exit(0)


def answer_order(store: ObjectStore, scratch: Path, order: Order, pace: Pace) -> Answer:
    """Merge, and never raise. Blocking."""
    pace.share = order.share
    begun = time.process_time()
    files: list[DataFile] = []
    runs: list[int] = []
    error, passing = "", False
    try:
        job = order.job or order.bundles
        assert job is not None, "an order is for one of them"
        files, runs = carried_out(store, job, scratch, pace, order.read_bytes)
    except Exception as failure:  # noqa: BLE001  whatever it is, the node logs it and goes on without this merge
        error = f"{type(failure).__name__}: {failure}"[:MESSAGE_CHARS_MAX]
        passing = isinstance(failure, StorageError) and (failure.retriable or isinstance(failure, ObjectMissing))
    return Answer(time.process_time() - begun, files, error, passing, runs)


def carried_out(
    store: ObjectStore, job: MergeJob | BundleJob, scratch: Path, pause: Callable[[], None], read_bytes: int
) -> tuple[list[DataFile], list[int]]:
    """The new files of a merge, and of bundles which run each is of. Raises as the merges themselves do."""
    if isinstance(job, MergeJob):
        return merge_files(store, job, scratch, pause, read_bytes=read_bytes), []
    made = merge_bundles(store, job, pause)
    return [file for _, file in made], [run for run, _ in made]


if __name__ == "__main__":
    main()
