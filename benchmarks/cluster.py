"""``python -m benchmarks.cluster`` (``make bench-cluster``): a whole cluster on this machine, against its goals.

How long shards are away when an owner dies, stands still or is cut off, with default and fast probes; what clients see
of restarts; what ingest costs with 1, 2 and 3 owners; how long one row takes; what an idle node holds. A part that
fails is told and the others still run; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import clusterparts
from benchmarks.clustergoals import ClusterReport
from benchmarks.report import machine
from benchmarks.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PARTS = ("memory", "query", "ingest", "rolling", "kill", "pause", "pause-fast", "cut", "cut-fast")
ROUNDS = 5
LINES = 1_000_000
FOLDER = ROOT / "build"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for; 0, or 1 when something could not be measured."""
    options = parse(arguments)
    report = ClusterReport(machine(), options.only)
    FOLDER.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="bench-cluster-", dir=FOLDER))
    try:
        for name in options.only:
            _guarded(report, name, measures(report, place / name, options.rounds, options.lines)[name])
            shutil.rmtree(place / name, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n" + report.markdown())
    if options.store:
        print(f"stored in {report.store(partial=tuple(options.only) != PARTS)}")
    return 1 if report.failures else 0


def measures(report: ClusterReport, folder: Path, rounds: int, line_count: int) -> Mapping[str, Callable[[], None]]:
    """The parts by their names."""
    return {
        "memory": lambda: clusterparts.memory(report, folder),
        "query": lambda: clusterparts.query(report, folder),
        "ingest": lambda: clusterparts.ingest(report, folder, line_count),
        "rolling": lambda: clusterparts.rolling(report, folder),
        "kill": lambda: clusterparts.kill(report, folder, rounds),
        "pause": lambda: clusterparts.pause(report, folder, rounds, fast=False),
        "pause-fast": lambda: clusterparts.pause(report, folder, rounds, fast=True),
        "cut": lambda: clusterparts.cut(report, folder, rounds, fast=False),
        "cut-fast": lambda: clusterparts.cut(report, folder, rounds, fast=True),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="PARTS", help=f"of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="fail-overs of each kind")
    parser.add_argument("--lines", type=int, default=LINES, help="TSBS lines for each number of owners")
    parser.add_argument("--store", action="store_true", help="keep the result under benchmarks/results")
    return parser.parse_args(arguments)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not set(parts) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {','.join(PARTS)}")
    return parts


def _guarded(report: ClusterReport, name: str, part: Callable[[], None]) -> None:
    """Measure a part; what goes wrong is told and kept, and the next part runs."""
    print(f"== {name}", flush=True)
    try:
        part()
    except Exception as error:  # noqa: BLE001 - a broken part must not cost the figures of the others
        traceback.print_exc()
        report.failures.append(f"{name}: {type(error).__name__}: {str(error)[:500]}")


if __name__ == "__main__":
    sys.exit(main())
