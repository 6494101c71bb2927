"""The kernel reads nothing that is not its own: shown with an unreadable page, and with bounds checks compiled in."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.lines import bodies
from tests.unit.wire.lineprotocol.comparing import LIMITS, assert_same, parse, plain
from tests.unit.wire.lineprotocol.generating import body, mutated
from wire.lineprotocol.machine import PADDING
from wire.lineprotocol.parser import KernelParser, Scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wire.lineprotocol.machine import Bytes

ROOT = Path(__file__).parents[4]
PAGES = 40
PROT_NONE = 0
COMPILE_SECONDS_MAX = 400


def corpus(seed: int, count: int) -> Iterator[list[bytes]]:
    """Calls of bodies: good, mutated, and cut off anywhere."""
    rng = random.Random(seed)
    for kind in ("cpu", "cpuf", "narrow", "messy"):
        whole = bodies(kind, 50, 50)[0]
        yield [whole]
        yield [whole[: rng.randrange(len(whole))]]
    for _ in range(count):
        drawn = [body(rng) for _ in range(rng.choice((1, 1, 3)))]
        yield drawn
        yield [mutated(rng, one) for one in drawn]
        yield [one[: rng.randint(0, len(one))] for one in drawn]


class GuardedPages:
    """Memory whose last byte is followed by a page that must not be touched."""

    def __init__(self) -> None:
        size = (PAGES + 1) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, size)
        self._bytes = np.frombuffer(self._map, np.uint8)
        guard = ctypes.c_void_p(self._bytes.ctypes.data + PAGES * mmap.PAGESIZE)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def last(self, size: int) -> Bytes:
        """The last ``size`` bytes before the guard."""
        end = PAGES * mmap.PAGESIZE
        return self._bytes[end - size : end]


class GuardedScratch(Scratch):
    """A buffer of exactly the bodies and their padding, up against the unreadable page."""

    def __init__(self, pages: GuardedPages) -> None:
        super().__init__()
        self._pages = pages

    def reserve(self, size: int) -> None:
        self.buffer = self._pages.last(size)


def test_the_guard_is_there() -> None:
    """In another process, for it must die."""
    script = (
        "from tests.unit.wire.lineprotocol.test_bounds import GuardedPages, ctypes\n"
        "last = GuardedPages().last(1)\n"
        "print(ctypes.string_at(last.ctypes.data, 1)[0], flush=True)\n"
        "ctypes.string_at(last.ctypes.data, 2)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert ended.stdout == b"0\n"
    assert ended.returncode < 0


def test_nothing_past_the_padding_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = KernelParser(LIMITS)
    monkeypatch.setattr(guarded, "_scratch", GuardedScratch(GuardedPages()))
    free = KernelParser(LIMITS)
    for drawn in corpus(11, 150):
        assert plain(parse(guarded, *drawn)) == plain(parse(free, *drawn))


ENDS = (
    b"m", b"m ", b"m f", b"m f=", b"m f=1", b"m f=t", b"m f=fals", b"m f=TRU", b"m f=1e", b'm f="', b'm f="\\', b"m\\",
    b"m,t", b"m,t=", b"m,t=\\", b"m f=1 ", b"m f=1 -", b"m f=1\r", b"m f=1 1\r", b"#", b" ", b"\r", b"\xf0",
    b"m,t=\xe2\x82", b"m f=-", b"m f=1.",
)  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_bodies_that_end_in_the_middle_of_something(end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = KernelParser(LIMITS)
    monkeypatch.setattr(guarded, "_scratch", GuardedScratch(GuardedPages()))
    for lead in range(9):
        drawn = [b"m f=1 1", b"x" * lead + end]
        assert_same(drawn, kernel=guarded)


def test_the_padding_is_what_the_kernel_counts_on() -> None:
    scratch = Scratch()
    found = scratch.load([b"ab", b"", (b"c",)], 3)
    assert scratch.buffer[: 5 + PADDING].tobytes() == b"ab\n\nc" + b"\n" * PADDING
    assert (found.start.tolist(), found.end.tolist()) == ([0, 3, 4], [2, 3, 5])


def run_corpus() -> int:
    """What the checked process runs: the corpus against the reference."""
    kernel = KernelParser(LIMITS)
    for drawn in corpus(12, 60):
        assert_same(drawn, kernel=kernel)
    return 0


@pytest.mark.timeout(COMPILE_SECONDS_MAX + 30)
def test_no_index_is_out_of_bounds(tmp_path: Path) -> None:
    """Numba compiles a check into each index where NUMBA_BOUNDSCHECK is set; a cache of its own keeps that apart."""
    script = (
        "import numpy as np\n"
        "from wire.lineprotocol.planner import string_bytes, compact\n"
        "from tests.unit.wire.lineprotocol.test_bounds import run_corpus\n"
        "small = np.zeros(1, np.int32)\n"
        "try:\n"
        "    compact(np.full(1, 5, np.int32), small, np.zeros(1, np.int64), 1, small)\n"
        "except IndexError:\n"
        "    print('checked')\n"
        "raise SystemExit(run_corpus())\n"
    )
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        timeout=COMPILE_SECONDS_MAX,
        text=True,
    )
    assert (ended.stdout, ended.returncode) == ("checked\n", 0), ended.stderr[-3000:]
