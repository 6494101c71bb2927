"""The memory settings of a node's process, looked at from inside one: they must not leak into this one."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
from nodes.pages import keep_pages
keep_pages()
keep_pages()
block = bytearray(16 << 20)
maps = open("/proc/self/maps").read().splitlines()
heap = next(line.split()[0] for line in maps if line.endswith("[heap]"))
low, high = (int(part, 16) for part in heap.split("-"))
inside = low <= ctypes.addressof(ctypes.c_char.from_buffer(block)) < high
print(ctypes.CDLL(None).prctl(42, 0, 0, 0, 0), inside)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc on Linux only")
def test_large_blocks_come_from_the_heap_and_no_huge_pages() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["1", "True"]
