"""Merges files in a process of their own: the node's side of `nodes.mergeworker`. Driven by `nodes.compaction`.

The process is started when it is first needed and again when it has died. One merge at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nodes.mergeworker import Answer, Order, Setup
from nodes.settings import environment_without
from storage.bundlemerge import BundleJob

if TYPE_CHECKING:
    from storage.merge import MergeJob
    from storage.objects import S3Options

ROOT: Final = Path(__file__).resolve().parents[1]
BOOT: Final = "import sys; sys.path.insert(0, sys.argv[1]); from nodes.mergeworker import main; main()"
"""Not `-m`: that looks into the folder that the node was started in first, and takes a `storage` there for ours."""
ANSWER_BYTES_MAX: Final = 32 * 2**20
"""Some 300 bytes for each slice of the bundles that were merged."""
ENVIRONMENT: Final = {"MIMALLOC_PURGE_DELAY": "-1"}
"""For Arrow's allocator: what is free is kept until the process ends. Given back after each step and cleared again by
the kernel for the next, pages cost a fifth of all CPU."""


class MergeFailed(Exception):
    """A merge came to nothing: its files stay as they are, and it may be tried again.

    ``passing``: the store was busy, full or silent, or a file has been replaced and swept; nothing to look into.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


class MergeProcess:
    """`merge`; `rest` while there is nothing more to do; `aclose` at the end, also in mid-merge."""

    def __init__(self, url: str, options: S3Options | None, scratch: Path, read_bytes: int) -> None:
        self._setup = Setup(url, options, str(scratch))
        self._scratch = scratch
        self._read_bytes = read_bytes
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    async def merge(self, job: MergeJob | BundleJob, share: float) -> Answer:
        """Merge within ``share`` of a core. Raises MergeFailed. When cancelled the process ends with its merge."""
        files, bundles = (None, job) if isinstance(job, BundleJob) else (job, None)
        order = Order(files, share, self._read_bytes, bundles)
        async with self._lock:
            try:
                answer = await self._ask(order)
            except BaseException:
                await self._end()
                raise
        if answer.error:
            raise MergeFailed(answer.error, passing=answer.passing)
        return answer

    async def rest(self) -> None:
        """Let the process go, unless it merges; a further `merge` starts another. Idempotent."""
        if not self._lock.locked():
            await self._end()

    async def aclose(self) -> None:
        """End the process, whatever it does; from now on every merge fails. Idempotent."""
        self._closed = True
        await self._end()

    async def _ask(self, order: Order) -> Answer:
        if self._closed:
            raise MergeFailed("this node is stopping")
        process = None
        try:
            process = self._process or await self._start()
            if self._closed:  # meanwhile: there was no process yet that could be ended
                raise MergeFailed("this node is stopping")
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
            return msgspec.json.decode(line, type=Answer)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            await self._end()
            ended = "could not be started" if process is None else f"ended ({process.returncode})"
            raise MergeFailed(f"the merging process {ended}: {error}") from error

    async def _start(self) -> asyncio.subprocess.Process:
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", BOOT, str(ROOT),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            limit=ANSWER_BYTES_MAX, env=environment_without(()) | ENVIRONMENT,
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self._setup) + b"\n")
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
