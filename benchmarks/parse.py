"""How fast line protocol becomes Arrow columns: `wire.lineprotocol` alone, no server.

    python -m benchmarks.parse [--reference] [--lines 200000] [--profile]

Prints lines a second and core for 10,000-line bodies of each kind, and microseconds for small calls. CPU
time counts, not wall time: the parser runs in one thread. ``--profile`` shows where Python's part goes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.lines import bodies
from wire.lineprotocol import FieldType, KnownTable, ParserLimits, Precision, create_parser
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wire.lineprotocol import LineParser, Parsed

BATCH = 10_000
ROUNDS = 5
GOALS = {"cpu": 1_500_000}
SMALL_CALLS = ((1, 150), (32, 400))
"""(one-line bodies in a call, microseconds it may take)."""


class Catalog:
    """Knows every table as its first call left it, as a server's does."""

    def __init__(self) -> None:
        self._tables: dict[str, KnownTable] = {}

    def known(self, name: str) -> KnownTable | None:
        """What was learnt of a table."""
        return self._tables.get(name)

    def learn(self, parsed: Parsed) -> None:
        """Take the new columns up."""
        for table in parsed.tables:
            old = self._tables.get(table.name, KnownTable(0, (), {}))
            if not table.new_tags and not table.new_fields and table.name in self._tables:
                continue
            fields: dict[str, FieldType] = dict(old.fields) | {
                field.name: field.type for field in table.fields if field.name in table.new_fields
            }
            self._tables[table.name] = KnownTable(len(self._tables) + 1, old.tags + table.new_tags, fields)


def run(parser: LineParser, catalog: Catalog, calls: Sequence[Sequence[bytes]]) -> float:
    """CPU seconds of all calls."""
    started = time.process_time()
    for call in calls:
        parser.parse(call, precision=Precision.NANOSECOND, now_ns=1, known=catalog.known)
    return time.process_time() - started


def measure(parser: LineParser, calls: Sequence[Sequence[bytes]]) -> float:
    """The median over the rounds, warm."""
    catalog = Catalog()
    for call in calls:
        catalog.learn(parser.parse(call, precision=Precision.NANOSECOND, now_ns=1, known=catalog.known))
    return statistics.median(run(parser, catalog, calls) for _ in range(ROUNDS))


def main() -> None:
    """Run all of it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--reference", action="store_true", help="measure the plain Python parser")
    options.add_argument("--lines", type=int, default=200_000)
    options.add_argument("--profile", action="store_true")
    chosen = options.parse_args()
    parser: LineParser = ReferenceParser(ParserLimits()) if chosen.reference else create_parser()
    for kind in ("cpu", "cpuf", "narrow", "messy"):
        drawn = bodies(kind, chosen.lines, BATCH)
        size = sum(map(len, drawn))
        seconds = measure(parser, [[body] for body in drawn])
        goal = f"   (goal {GOALS[kind] / 1e6:.1f} M)" if kind in GOALS else ""
        print(f"{kind:8} {chosen.lines / seconds / 1e6:7.2f} M lines/s   {size / seconds / 1e6:6.0f} MB/s{goal}")
    single = bodies("cpu", 4096, 1)
    for count, limit in SMALL_CALLS:
        calls = [single[at : at + count] for at in range(0, len(single) - count + 1, count)]
        micros = measure(parser, calls) / len(calls) * 1e6
        print(f"{count:3} one-line bodies a call {micros:7.0f} us   (goal {limit})")
    if chosen.profile:
        profile = cProfile.Profile()
        profile.runcall(measure, parser, [[body] for body in single[:2000]])
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
