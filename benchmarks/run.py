"""``python -m benchmarks.run`` (``make bench``): all loads against Runnel and its peers, and one table at the end.

A part that fails is reported and the others still run; the exit code is 1 then. A missed goal is a finding, not a
failure, unless ``--strict`` is given.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import ingest, queries, startup
from benchmarks.packages import INFLUXDB, VICTORIA_METRICS, PackageUnavailable, ensure
from benchmarks.report import RESULTS, Report, ingest_table, machine, queries_table
from benchmarks.servers import ROOT, SERVERS, Runnel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.servers import Server

PARTS = ("ingest", "queries", "startup")
PEER_PACKAGES = {package.name: package for package in (INFLUXDB, VICTORIA_METRICS)}
FOLDER = ROOT / "build"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; 0, or 1 when something could not be measured (or ``--strict`` and missed)."""
    options = parse(arguments)
    report = Report(options.quick, machine(), {}, partial=not is_whole(options))
    servers = chosen_servers(options.peers, options.runnel, report)
    FOLDER.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=FOLDER))
    try:
        measure(options, servers, place, report)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n" + report.markdown())
    if options.store:
        print(f"stored in {report.store(options.results)}")
    missed = options.strict and any(verdict.met is False for verdict in report.verdicts())
    return 1 if report.failures or missed else 0


def _terminated(number: int, frame: object) -> None:
    """Leave as after Ctrl-C, so that no server and no folder stays behind."""
    sys.exit(128 + number)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="PARTS", help=f"of {','.join(PARTS)}")
    parser.add_argument(
        "--loads", type=_names, default=(), metavar="NAMES", help="ingest loads by name, e.g. cpu,narrow"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not how fast it is")
    parser.add_argument("--peers", choices=("all", "none", *PEER_PACKAGES), default="all")
    parser.add_argument("--no-runnel", dest="runnel", action="store_false", help="peers only")
    parser.add_argument("--rounds", type=int, help="measure each ingest load so often; medians count")
    parser.add_argument("--no-store", dest="store", action="store_false", help="print only")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to store")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a goal is missed")
    return parser.parse_args(arguments)


def is_whole(options: argparse.Namespace) -> bool:
    """Whether everything is measured against everyone, so that the result may stand for this commit."""
    return tuple(options.only) == PARTS and not options.loads and options.peers == "all" and options.runnel


def _parts(text: str) -> tuple[str, ...]:
    parts = _names(text)
    if not set(parts) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {','.join(PARTS)}")
    return parts


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def chosen_servers(peers: str, runnel: bool, report: Report) -> list[type[Server]]:
    """Runnel and the peers whose packages can be had here; the reason for a missing one goes into the report."""
    found: list[type[Server]] = [Runnel] if runnel else []
    names = list(PEER_PACKAGES) if peers == "all" else [name for name in PEER_PACKAGES if name == peers]
    for name in names:
        try:
            ensure(PEER_PACKAGES[name])
        except PackageUnavailable as error:
            report.failures.append(f"{name}: {error}")
            continue
        found.append(SERVERS[name])
    report.versions = {server.name: server.version() for server in found}
    return found


def measure(options: argparse.Namespace, servers: Sequence[type[Server]], place: Path, report: Report) -> None:
    """Run the chosen parts, each guarded, printing as figures come in."""
    if "startup" in options.only and Runnel in servers:
        guarded(report, "startup", partial(_startup, report, place, options.quick))
    if "queries" in options.only:
        guarded(report, "queries", partial(_queries, report, servers, place, options.quick))
    if "ingest" in options.only:
        for load in ingest.loads(options.quick):
            if options.loads and load.name not in options.loads:
                continue
            part = partial(_ingest, report, load, servers, place, options.rounds)
            guarded(report, f"ingest {load.name}", part)


def guarded(report: Report, name: str, part: Callable[[], None]) -> None:
    """Run a part; what goes wrong in it is told and kept, and the next part runs."""
    print(f"== {name}", flush=True)
    try:
        part()
    except Exception as error:  # noqa: BLE001 - a broken part must not cost the figures of the others
        traceback.print_exc()
        told = [f"{name}: {type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
        report.failures.append("; ".join(told))


def _startup(report: Report, place: Path, quick: bool) -> None:
    report.started = startup.start(place, quick)
    print(report.started, flush=True)
    report.recovered = startup.recover(place, report.started.ready_seconds, quick)
    print(*report.recovered, sep="\n", flush=True)


def _queries(report: Report, servers: Sequence[type[Server]], place: Path, quick: bool) -> None:
    for each in queries.run(servers, place, quick):
        report.asked.append(each)
    print(queries_table(report.asked), flush=True)


def _ingest(
    report: Report, load: ingest.Load, servers: Sequence[type[Server]], place: Path, rounds: int | None
) -> None:
    found = ingest.run(load, servers, place, rounds)
    report.ingested.extend(found)
    print(ingest_table(found), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
