"""Columns as lines: the parser reads back what was in the columns, and what has no line is refused, never bent."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.exitcodes import CommandFailed
from nodes.rowlines import joined, to_lines
from wire.lineprotocol.model import ParserLimits, Precision
from wire.lineprotocol.reference import ReferenceParser

NAMES = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda name: not name.endswith("\\") and not name.startswith(("_", "#")) and name != "time"
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), TEXTS),
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        st.one_of(st.none(), st.integers(0, 2**64 - 1)),
        st.one_of(st.none(), st.floats()),
        st.one_of(st.none(), st.booleans()),
        st.one_of(st.none(), TEXTS),
        st.integers(-(2**63) + 2, 2**63 - 1),
    ),
    min_size=1,
    max_size=5,
)
TYPES = (pa.string(), pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.string(), pa.timestamp("ns"))


def parsed(lines: bytes, table: str) -> list[dict[str, Any]]:
    """What the parser makes of lines, without NULLs."""
    found = ReferenceParser(ParserLimits()).parse(
        [lines], precision=Precision.NANOSECOND, now_ns=0, known=lambda name: None
    )
    assert found.errors == []
    (only,) = found.tables
    assert only.name == table
    columns = {"time": only.time.tolist()}
    columns |= {tag.name: tag.values.to_pylist() for tag in only.tags}
    columns |= {field.name: field.values.to_pylist() for field in only.fields}
    return [
        {name: values[row] for name, values in columns.items() if values[row] is not None} for row in range(only.rows)
    ]


def is_finite(value: object) -> bool:
    return not isinstance(value, float) or value - value == 0


@given(NAMES, st.lists(NAMES, min_size=6, max_size=6, unique=True), ROWS)
@settings(deadline=None, max_examples=150)
def test_the_parser_reads_back_what_was_written(table: str, names: list[str], rows: list[tuple[Any, ...]]) -> None:
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), TYPES, strict=True)]
    lines = to_lines(table, pa.RecordBatch.from_arrays(columns, names=[*names, "time"]), [names[0]], "time")
    expected = []
    for row, line in zip(rows, lines.to_pylist(), strict=True):
        tag, *fields, time = row
        kept = {name: v for name, v in zip(names[1:], fields, strict=True) if v is not None and is_finite(v)}
        is_bad_tag = tag is not None and ("\t" in tag or "\n" in tag or tag.endswith("\\"))
        assert (line is None) == (is_bad_tag or not kept)
        if line is not None:
            expected.append({"time": time, **({names[0]: tag} if tag else {}), **kept})
    good = lines.drop_null()
    if len(good):
        assert parsed(joined(good), table) == expected


def test_dictionaries_are_tags_and_times_have_units() -> None:
    tag = pa.array(["a", None, "b"]).dictionary_encode()
    rows = pa.RecordBatch.from_pydict({"t": pa.array([1, 2, 3], pa.timestamp("s")), "k": tag, "v": [1, 2, 3]})
    assert (
        joined(to_lines("m", rows, ["k"], "t")) == b"m,k=a v=1i 1000000000\nm v=2i 2000000000\nm,k=b v=3i 3000000000\n"
    )


def test_no_row_is_no_line() -> None:
    rows = pa.RecordBatch.from_pydict({"time": pa.array([], pa.int64()), "v": pa.array([], pa.int64())})
    assert joined(to_lines("m", rows, [], "time")) == b""


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"time": [1], "d": pa.array([1], pa.duration("s"))}, "'d' has type duration"),
        ({"time": [1], "d": [[1]]}, "'d' has type list"),
        ({"time": ["x"], "v": [1]}, "a time is a timestamp or an integer"),
        ({"time": [1], "a\nb": [1]}, "cannot be a field"),
        ({"time": [1]}, "no column beside"),
    ],
)
def test_what_cannot_be_written_is_said(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandFailed, match=message):
        to_lines("m", pa.RecordBatch.from_pydict(columns), [], "time")


def test_refused_rows_are_never_dropped_silently() -> None:
    rows = pa.RecordBatch.from_pydict({"time": [1, 2], "k": ["a", "b\n"], "v": [1, 2]})
    with pytest.raises(CommandFailed, match="1 rows have no line"):
        joined(to_lines("m", rows, ["k"], "time"))
