"""What compaction costs: `python -m benchmarks.merging [LINES]`, a million lines by default.

Files as Checkpoints write them are merged by the merging process of a node, within its share of a core: CPU seconds
for a million lines (not those of its start), and bytes for each field value, before and after. Exit 1 when a goal is
missed.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.lines import VALUES_PER_LINE, bodies
from nodes.gateway.batches import TableShapes
from nodes.mergeprocess import MergeProcess
from storage.datafile import write_datafile
from storage.merge import READ_BYTES_MAX, MergeJob, names_wanted
from storage.objects import open_store
from storage.schema import Column, DataFile, Role, Table, TailBatch, TypeKind
from storage.store import data_path
from wire.lineprotocol import ParserLimits, Precision, create_parser

if TYPE_CHECKING:
    from storage.objects import ObjectStore
    from wire.lineprotocol.model import ParsedTable

LINES: Final = 1_000_000
ROUNDS: Final = 5
SHARE: Final = 0.25
"""Of a core: as `compaction.cpu_share` is by default. Memory that is given back in the pauses has to be found again."""
CPU_SECONDS_MAX: Final = 0.6
VALUE_BYTES_MAX: Final = 0.40
TYPES: Final = {"cpu": TypeKind.INT64, "cpuf": TypeKind.FLOAT64, "narrow": TypeKind.FLOAT64}
SHAPES: Final = {"cpu": (8, 64), "cpuf": (8,), "narrow": (8,)}
"""Into how many files the lines of a kind are written."""


def parsed_lines(kind: str, lines: int, files: int) -> list[ParsedTable]:
    """The rows of each file, in the order of their lines."""
    parser = create_parser(ParserLimits())
    found = []
    for body in bodies(kind, lines, -(-lines // files)):
        (table,) = parser.parse([body], precision=Precision.NANOSECOND, now_ns=1, known=lambda name: None).tables
        found.append(table)
    return found


def table_of(kind: str, parsed: ParsedTable) -> Table:
    """The table that these lines make."""
    columns = [Column(1, "time", "time", Role.TIME, TypeKind.TIMESTAMP)]
    names = [(tag.name, Role.TAG, TypeKind.STRING) for tag in parsed.tags]
    names += [(field.name, Role.FIELD, TYPES[kind]) for field in parsed.fields]
    columns += [Column(2 + at, name, name, role, type_) for at, (name, role, type_) in enumerate(names)]
    return Table(1, "", 1, kind, 1, tuple(columns), ())


def write_files(store: ObjectStore, kind: str, lines: int, files: int) -> tuple[Table, list[DataFile]]:
    parts = parsed_lines(kind, lines, files)
    table, shapes = table_of(kind, parts[0]), TableShapes()
    made: list[DataFile] = []
    offset = 0
    for part in parts:
        file = write_datafile(store, table, 1, 1, 1, [TailBatch(offset, shapes.batch(table, part).rows)])
        assert file is not None
        made.append(file)
        offset += part.rows
    return table, made


async def merge(process: MergeProcess, store: ObjectStore, job: MergeJob) -> tuple[float, int]:
    """CPU seconds, and the bytes that come out."""
    answer = await process.merge(job, SHARE)
    if sum(file.rows for file in answer.files) != sum(file.rows for file in job.files):
        raise SystemExit("rows were lost: a merge of lines of different times must keep each")
    for file in answer.files:
        store.delete(file.path)
    return answer.cpu_seconds, sum(file.bytes for file in answer.files)


async def measure(folder: Path, kind: str, count: int, lines: int) -> bool:
    """One line of the table; whether `cpu` meets its goals."""
    store = open_store(str(folder / "store"))
    table, files = write_files(store, kind, lines, count)
    job = MergeJob(table, tuple(files), tuple(data_path(1, 1, 1, 1) for _ in range(names_wanted(files))))
    process = MergeProcess(str(folder / "store"), None, folder / "scratch", READ_BYTES_MAX)
    try:
        results = [await merge(process, store, job) for _ in range(ROUNDS)]
    finally:
        await process.aclose()
    seconds = [spent / lines * 1e6 for spent, _ in results]
    values = lines * VALUES_PER_LINE[kind]
    before, after = sum(file.bytes for file in files) / values, results[0][1] / values
    print(
        f"{kind:8}{count:4} files   CPU s/M lines: {min(seconds):5.2f} least {statistics.median(seconds):5.2f} median"
        f" {seconds[0]:5.2f} first   bytes/value: {before:5.3f} before {after:5.3f} after",
        flush=True,
    )
    return kind != "cpu" or (statistics.median(seconds) <= CPU_SECONDS_MAX and after <= VALUE_BYTES_MAX)


def main(lines: int) -> int:
    """The table; 1 if a goal is missed."""
    met = True
    for kind, counts in SHAPES.items():
        for count in counts:
            folder = Path(tempfile.mkdtemp())
            try:
                met &= asyncio.run(measure(folder, kind, count, lines))
            finally:
                shutil.rmtree(folder)
    print(
        f"goals of cpu: {CPU_SECONDS_MAX} CPU s for a million lines, {VALUE_BYTES_MAX:.2f} bytes for a value: "
        f"{'met' if met else 'NOT met'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else LINES))
