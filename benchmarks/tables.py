"""``python -m benchmarks.tables``: what tables cost queries however they were written, program by program, on a page.

`make bench` runs it after the loads. Each program prints its figures beside its goals and is run by itself, so that
none leaves memory or threads to the next; a program that fails, or misses a goal, is told at the end, and the others
still run. Without Ray its part is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from benchmarks.report import RESULTS, host_kind, machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROGRAMS: Final[dict[str, tuple[str, ...]]] = {
    "compaction": ("benchmarks.compaction",),
    "merging": ("benchmarks.merging",),
    "scale": ("benchmarks.scale",),
    "views": ("benchmarks.views",),
    "rungs": ("benchmarks.rungs",),
}
NEEDS_RAY: Final = frozenset({"rungs"})
SECONDS_MAX: Final = 3_600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    known = ", ".join(PROGRAMS)
    parser.add_argument("programs", nargs="*", default=list(PROGRAMS), metavar="PROGRAM", help=f"of {known}")
    parser.add_argument("--no-store", dest="store", action="store_false", help="print only")
    options = parser.parse_args(arguments)
    pages, failed = [], []
    for name in options.programs:
        if name in NEEDS_RAY and importlib.util.find_spec("ray") is None:
            print(f"== {name}: left out, Ray is not installed here", flush=True)
            continue
        code, text = _run(name)
        failed += [name] if code else []
        pages.append(f"## {name}\n\n```\n{text.rstrip()}\n```\n")
    if options.store and set(options.programs) == set(PROGRAMS):
        print(f"stored in {_store(pages, failed)}")
    if failed:
        print(f"failed, or missed a goal: {', '.join(failed)}")
    return 1 if failed else 0


def _run(name: str) -> tuple[int, str]:
    """The program's exit code and what it printed, shown as it comes."""
    command = [sys.executable, "-m", *PROGRAMS[name]]
    lines = []
    print(f"== {name}", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
        return process.wait(SECONDS_MAX), "".join(lines)


def _store(pages: Sequence[str], failed: Sequence[str]) -> Path:
    about = machine()
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-{host_kind(about)}-tables.md"
    head = [f"# What tables cost, {time.strftime('%Y-%m-%d')}", ""]
    head += [f"- {name}: {value}" for name, value in about.items()]
    head += [f"- failed, or missed a goal: {', '.join(failed)}"] if failed else []
    RESULTS.mkdir(exist_ok=True)
    path.write_text("\n".join([*head, "", *pages]))
    return path


if __name__ == "__main__":
    sys.exit(main())
