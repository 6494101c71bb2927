"""Lines find their partitions by the parser's series numbers exactly as by their canonical keys (LOG L27)."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nodes.gateway.batches import TableShapes, ensure
from nodes.gateway.refusals import refuse_rows
from storage.catalogplan import plan
from storage.catalogstate import CatalogLimits, CatalogSnapshot, apply_effects
from storage.changes import DropTable, FinishDrop
from storage.errors import LimitExceeded
from storage.keys import route
from wire.lineprotocol.model import ParserLimits, Precision
from wire.lineprotocol.parser import KernelParser
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from wire.lineprotocol.model import KnownTable, ParsedTable

LIMITS = CatalogLimits(partitions_default=4)
LOGS = apply_effects(CatalogSnapshot(), [{"do": "logs", "ids": [1, 2, 3]}], 1)


class Door:
    """A parser, shapes, and a Catalog that grows as the lines want it."""

    def __init__(self, parser: KernelParser | ReferenceParser) -> None:
        self.parser = parser
        self.shapes = TableShapes()
        self.catalog = LOGS
        self.by_number = 0

    def write(self, database: str, lines: str) -> None:
        def known(name: str) -> KnownTable | None:
            table = self.catalog.table(database, name)
            return None if table is None else self.shapes.known(table)

        parsed = self.parser.parse([lines.encode()], precision=Precision.NANOSECOND, now_ns=0, known=known)
        assert parsed.errors == []
        for part in parsed.tables:
            change = ensure(database, part)
            if change is not None:
                effects = plan(self.catalog, [change], LIMITS, "")
                self.catalog = apply_effects(self.catalog, effects, self.catalog.revision + 1)
            self.check(database, part)

    def drop(self, database: str, name: str) -> None:
        """The next lines make another table of that name."""
        table = self.catalog.table(database, name)
        if table is not None:
            for change in (DropTable(database, name), FinishDrop(table.id)):
                effects = plan(self.catalog, [change], LIMITS, "STAMP")
                self.catalog = apply_effects(self.catalog, effects, self.catalog.revision + 1)

    def check(self, database: str, part: ParsedTable) -> None:
        table = self.catalog.table(database, part.name)
        assert table is not None
        batch = self.shapes.batch(table, part)
        self.by_number += batch.series is not None
        found = [(p.id, rows.to_pydict()) for p, rows in route(table, batch.rows, batch.series)]
        assert found == [(p.id, rows.to_pydict()) for p, rows in route(table, batch.rows)]


def some_lines(draw: random.Random, tags: int) -> str:
    """Lines of few series, written in several ways: other orders of tags, escapes, tags left out."""
    lines = []
    for _ in range(draw.randint(1, 30)):
        chosen = draw.sample(range(tags), draw.randint(0, tags))
        written = "".join(
            f",t{t}={draw.choice(('a', 'b', 'c', 'é', 'a b'.replace(' ', chr(92) + ' ')))}" for t in chosen
        )
        lines.append(f"{draw.choice(('m', 'n'))}{written} f={draw.random()} {draw.randint(0, 99)}")
    return "\n".join(lines)


@pytest.mark.parametrize("kept_bytes", [64 << 20, 6_000], ids=["kept", "forgotten all the time"])
def test_l27_series_numbers_lead_where_the_keys_do(kept_bytes: int) -> None:
    draw = random.Random(kept_bytes)
    door = Door(KernelParser(ParserLimits(series_bytes_max=kept_bytes)))
    for round_ in range(120):
        database = draw.choice(("one", "two"))
        door.write(database, some_lines(draw, 1 + round_ // 20))
        if round_ % 40 == 39:
            door.drop(database, "m")
    assert door.by_number > 150


def test_the_reference_parser_knows_no_series_and_routes_the_same() -> None:
    draw = random.Random(1)
    door = Door(ReferenceParser(ParserLimits()))
    for _ in range(10):
        door.write("one", some_lines(draw, 3))
    assert door.by_number == 0


def test_a_table_with_one_partition_needs_no_series() -> None:
    door = Door(KernelParser(ParserLimits()))
    door.write("one", "m,a=b f=1 1")
    table = door.catalog.table("one", "m")
    assert table is not None
    parsed = door.parser.parse([b"m,a=b f=1 1"], precision=Precision.NANOSECOND, now_ns=0, known=lambda _: None)
    assert door.shapes.batch(replace(table, partitions=table.partitions[:1]), parsed.tables[0]).series is None


def test_rows_that_stay_after_a_refusal_keep_their_series() -> None:
    door = Door(KernelParser(ParserLimits()))
    door.write("one", "m,a=x f=1 1\nm,a=y f=1 1")
    table = door.catalog.table("one", "m")
    assert table is not None
    body = b"m,a=x f=1 2\nm,a=y,new=z f=1 2\nm,a=y f=1 3\nm,a=w f=1 4"
    parsed = door.parser.parse(
        [body], precision=Precision.NANOSECOND, now_ns=0, known=lambda _: door.shapes.known(table)
    )
    refuse_rows(parsed, {"m": LimitExceeded("no more columns")}, [body], False)
    (part,) = parsed.tables
    assert part.rows == 3
    assert part.series is not None
    assert len(part.series) == 3
    door.check("one", part)
