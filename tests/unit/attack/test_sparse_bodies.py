"""Memory that one small request could once take: 110 KB of lines with a field of its own each took a gigabyte."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pytest

from storage.frames import OBJECT_BYTES_MAX
from wire.lineprotocol.model import ParserLimits, Precision
from wire.lineprotocol.reference import ReferenceParser

CELL_BYTES: Final = 8
BODY_BYTES_MAX: Final = 10 * 2**20
SHORTEST_LINE: Final = b"m f=1\n"


@pytest.mark.parametrize("columns", [4_500, 8_000])
def test_a_small_sparse_body_is_refused_before_it_is_blown_up(columns: int) -> None:
    body = b"\n".join(b"m f%d=1 %d" % (n, n) for n in range(columns))
    before = pa.total_allocated_bytes()
    parsed = ReferenceParser(ParserLimits()).parse(
        [body, b"good f=1 1"], precision=Precision.NANOSECOND, now_ns=1, known=lambda _: None
    )
    assert [table.name for table in parsed.tables if table.rows] == ["good"]
    (error,) = parsed.errors
    assert (error.body, error.line) == (0, 1)
    assert pa.total_allocated_bytes() - before < 2**20


def test_what_a_call_may_take_is_about_what_one_object_holds_and_more_than_any_dense_body() -> None:
    limit = ParserLimits().cells_max
    assert limit * CELL_BYTES <= 2 * OBJECT_BYTES_MAX
    assert limit >= 4 * BODY_BYTES_MAX // len(SHORTEST_LINE) * 2
