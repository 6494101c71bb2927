"""What a line may do to its table: new columns, conflicts, all-or-nothing bodies, limits. On both parsers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from storage import schema
from tests.unit.wire.lineprotocol.comparing import LIMITS, nothing_known, parse, rows
from wire.lineprotocol import BodyTooLarge, FieldType, KnownTable, LineError, ParserLimits, create_parser, model
from wire.lineprotocol.parser import KernelParser
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from collections.abc import Callable

    from wire.lineprotocol import LineParser

Create = type[ReferenceParser] | type[KernelParser]

KNOWN = KnownTable(
    (7, 1),
    ("host", "region"),
    {"u": FieldType.UINT64, "f": FieldType.FLOAT64, "s": FieldType.STRING, "b": FieldType.BOOL, "i": FieldType.INT64},
)


@pytest.fixture(params=[ReferenceParser, KernelParser])
def create(request: pytest.FixtureRequest) -> Create:
    found: Create = request.param
    return found


@pytest.fixture
def parser(create: Create) -> LineParser:
    return create(LIMITS)


def messages(
    parser: LineParser, *bodies: bytes, known: Callable[[str], KnownTable | None] = nothing_known
) -> list[str]:
    return [error.message for error in parse(parser, *bodies, known=known).errors]


def conflict(name: str, expected: str, got: str) -> str:
    return (
        f"invalid column type for column '{name}', expected iox::column_type::{expected}, got iox::column_type::{got}"
    )


def test_columns_come_in_the_catalogs_order_then_in_the_order_of_the_lines(parser: LineParser) -> None:
    body = b"m,zone=1,host=a new2=1,f=2,new1=3i 1\nm,region=r,new_tag=x u=4u,new0=t 2"
    (table,) = parse(parser, body, known={"m": KNOWN}.get).tables
    assert [tag.name for tag in table.tags] == ["host", "region", "zone", "new_tag"]
    assert [field.name for field in table.fields] == ["u", "f", "new2", "new1", "new0"]
    assert table.new_tags == ("zone", "new_tag")
    assert table.new_fields == ("new2", "new1", "new0")
    assert [tag.nullable for tag in table.tags] == [True] * 4
    assert rows(table) == [
        {"time": 1, "zone": "1", "host": "a", "new2": 1.0, "f": 2.0, "new1": 3},
        {"time": 2, "region": "r", "new_tag": "x", "u": 4, "new0": True},
    ]


def test_only_columns_with_a_value_come_and_known_ones_are_not_new(parser: LineParser) -> None:
    (table,) = parse(parser, b"m,host=a f=1 1\nm,host=b f=2 2", known={"m": KNOWN}.get).tables
    assert [(tag.name, tag.nullable) for tag in table.tags] == [("host", False)]
    assert [field.name for field in table.fields] == ["f"]
    assert (table.new_tags, table.new_fields) == ((), ())


def test_tables_and_rows_keep_the_order_of_the_lines(parser: LineParser) -> None:
    tables = parse(parser, b"b v=1 3\na v=2 2\nb v=3 1\nc bad\na v=4 2\n").tables
    assert [(table.name, table.time.tolist(), table.line.tolist()) for table in tables] == [
        ("b", [3, 1], [1, 3]),
        ("a", [2, 2], [2, 5]),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("u", "field::uinteger"),
        ("f", "field::float"),
        ("s", "field::string"),
        ("b", "field::boolean"),
        ("i", "field::integer"),
        ("host", "tag"),
    ],
)
@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("1u", "field::uinteger"),
        ("1", "field::float"),
        ('""', "field::string"),
        ("t", "field::boolean"),
        ("1i", "field::integer"),
    ],
)
def test_a_field_must_have_the_type_the_catalog_says(
    parser: LineParser, name: str, expected: str, value: str, got: str
) -> None:
    body = f"m {name}={value} 1\nm f=1 2".encode()
    parsed = parse(parser, body, known={"m": KNOWN}.get)
    wrong = [] if expected == got else [LineError(0, 1, conflict(name, expected, got), f"m {name}={value} 1")]
    assert parsed.errors == wrong
    assert parsed.rows.tolist() == [2 - len(wrong)]


def test_a_tag_must_not_be_a_field(parser: LineParser) -> None:
    assert messages(parser, b"m,s=x v=1", known={"m": KNOWN}.get) == [conflict("s", "field::string", "tag")]
    assert messages(parser, b"m v=1\nm,v=x w=1") == [conflict("v", "field::float", "tag")]
    assert messages(parser, b"m,v=x w=1\nm v=1") == [conflict("v", "tag", "field::float")]


def test_the_first_accepted_line_gives_a_new_column_its_type(parser: LineParser) -> None:
    body = b'm v="s",bad=\nm v=1i,f="no" 1\nm v=2i,x=1 2\nm v=3 3\nm w=1,x="s" 4\nm,w=tag x=1 5\nm w=2 6'
    parsed = parse(parser, body, known={"m": KNOWN}.get)
    (table,) = parsed.tables
    assert [error.line for error in parsed.errors] == [1, 2, 4, 5, 7]
    assert table.new_fields == ("v", "x")
    assert table.new_tags == ("w",)
    assert rows(table) == [{"time": 2, "v": 2, "x": 1.0}, {"time": 5, "w": "tag", "x": 1.0}]
    assert parsed.errors[1].message == conflict("f", "field::float", "field::string")
    assert parsed.errors[3].message == conflict("x", "field::float", "field::string")
    assert parsed.errors[4].message == conflict("w", "tag", "field::float")


def test_a_call_leaves_nothing_behind_for_the_next(parser: LineParser) -> None:
    for value, kind in ((b"1", "double"), (b"1i", "int64"), (b'"1"', "string"), (b"t", "bool")):
        (table,) = parse(parser, b"m,a=x v=" + value).tables
        assert str(table.fields[0].values.type) == kind
        assert (table.new_tags, table.new_fields) == (("a",), ("v",))
        (table,) = parse(parser, b"m,v=x a=" + value).tables
        assert (table.new_tags, table.new_fields) == (("v",), ("a",))


def test_what_the_catalog_says_may_change_from_call_to_call(parser: LineParser) -> None:
    body = b"m,a=x v=1 1"
    for key, tags, fields, wrong in [
        (1, ("a",), {"v": FieldType.FLOAT64}, []),
        (2, ("a",), {"v": FieldType.INT64}, [conflict("v", "field::integer", "field::float")]),
        (3, ("v",), {}, [conflict("v", "tag", "field::float")]),
        (4, (), {"a": FieldType.BOOL}, [conflict("a", "field::boolean", "tag")]),
        (5, (), {}, []),
    ]:
        told = KnownTable(key, tags, fields)
        assert messages(parser, body, known=lambda _name, told=told: told) == wrong  # type: ignore[misc]
    assert messages(parser, body) == []


def test_the_catalog_is_asked_once_for_each_table_with_a_line(parser: LineParser) -> None:
    asked: list[str] = []

    def known(name: str) -> KnownTable | None:
        asked.append(name)
        return None

    parse(parser, b"a v=1\nb v=1\na,x=1 v=1\nc v=\n,d v=1\n#e v=1", b"a v=1", known=known)
    assert sorted(asked) == ["a", "b"]


def test_several_bodies_are_parsed_as_one_and_kept_apart(parser: LineParser) -> None:
    parsed = parse(parser, b"m v=1 1\nbad\nm v=2 2", b"", b"#\nm v=x\nm v=3 3\n", b"m v=4i 4")
    (table,) = parsed.tables
    assert table.time.tolist() == [1, 2, 3]
    assert (table.body.tolist(), table.line.tolist()) == ([0, 0, 2], [1, 3, 3])
    assert [(error.body, error.line) for error in parsed.errors] == [(0, 2), (2, 2), (3, 1)]
    assert parsed.errors[2].message == conflict("v", "field::float", "field::integer")
    assert (parsed.lines.tolist(), parsed.rows.tolist()) == ([3, 0, 2, 1], [2, 0, 1, 0])
    assert parsed.bytes == 19 + 0 + 16 + 8


def test_a_strict_body_gives_all_or_nothing(parser: LineParser) -> None:
    good, bad = b"m,a=x v=1i 1\nm,a=y w=2 2", b"m v=2 3\nm,b=z q=1 4\nm v=\nm ="
    parsed = parse(parser, bad, good, bad, strict=[True, True, True])
    (table,) = parsed.tables
    assert parsed.rows.tolist() == [0, 2, 0]
    assert parsed.lines.tolist() == [4, 2, 4]
    assert [(error.body, error.line, error.message) for error in parsed.errors] == [
        (0, 3, "No fields were provided"),
        # In the third body the schema's fault comes before the grammar's.
        (2, 1, conflict("v", "field::integer", "field::float")),
    ]
    assert (table.new_tags, table.new_fields) == (("a",), ("v", "w"))


def test_other_bodies_are_judged_as_if_a_refused_one_had_not_been_there(parser: LineParser) -> None:
    first = b"m,t=1 v=1 1\nn v=1 1"
    refused = b"m v=2,x=1i 2\nm,k=1 y=1 2\nn,v=clash a=1\no a=1"
    after = b'm,x=tag k="s",y=t 3\no,a=1 b=1 3'
    with_it = parse(parser, first, refused, after, strict=[False, True, True])
    without = parse(parser, first, after)
    assert with_it.rows.tolist() == [2, 0, 2]
    assert [rows(table) for table in with_it.tables] == [rows(table) for table in without.tables]
    assert [table.new_fields for table in with_it.tables] == [table.new_fields for table in without.tables]
    assert [table.new_tags for table in with_it.tables] == [("t", "x"), (), ("a",)]
    assert len(with_it.errors) == 1


def test_errors_stop_at_their_limit_and_rows_do_not(create: Create) -> None:
    parser = create(ParserLimits(errors_max=3))
    body = b"m v=1 1\n" + b"bad\n" * 5 + b"m v=2 2\n" + b"m v=x\n" * 5 + b"m v=3 3\n"
    parsed = parse(parser, body, b'm v="s"\n' * 9)
    assert [(error.body, error.line) for error in parsed.errors] == [(0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (1, 3)]
    assert (parsed.lines.tolist(), parsed.rows.tolist()) == ([13, 9], [3, 0])


def test_a_table_has_a_limit_of_columns(create: Create) -> None:
    parser = create(ParserLimits(columns_max=4))
    told = KnownTable(1, ("a",), {"v": FieldType.FLOAT64})
    body = b"m,a=1 v=1,x=1 1\nm y=1 2\nm,b=1 v=1 3\nm x=2 4"
    parsed = parse(parser, body, known=lambda _name: told)
    full = "Update to schema would exceed number of columns per table limit of 4 columns"
    assert [(error.line, error.message) for error in parsed.errors] == [(2, full), (3, full)]
    assert parsed.rows.tolist() == [2]


def test_a_sparse_body_is_refused_and_its_neighbours_are_not(create: Create) -> None:
    parser = create(ParserLimits(cells_max=100))
    sparse = b"".join(b"m f%d=1 1\n" % number for number in range(20))
    parsed = parse(parser, b"m v=1 1\n" * 20, sparse, b"bad\nm,v=2 w=2 2\n")
    assert parsed.rows.tolist() == [20, 0, 0]
    assert [(error.body, error.line) for error in parsed.errors] == [(1, 1), (2, 1), (2, 2)]
    assert parsed.errors[0].message.startswith("the request needs 840 cells (rows times columns of each table)")
    assert parsed.tables[0].new_fields == ("v",)


def test_too_many_bytes_for_one_call(parser: LineParser, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("parser", "reference"):
        monkeypatch.setattr(f"wire.lineprotocol.{module}.CALL_BYTES_MAX", 20)
    assert parse(parser, b"m v=1 1", b"m v=2 2").rows.tolist() == [1, 1]
    with pytest.raises(BodyTooLarge, match="21 bytes of line protocol in one call, at most 20 fit"):
        parse(parser, b"m v=1 1", b"m v=2 2", b"m v=3 3")


def test_a_catalog_that_fails_costs_the_call_alone(parser: LineParser) -> None:
    def broken(_name: str) -> KnownTable | None:
        msg = "no catalog"
        raise LookupError(msg)

    expected = [rows(table) for table in parse(parser, b"m,a=x v=1 1").tables]
    with pytest.raises(LookupError):
        parse(parser, b"m,a=x v=1 1\nn,b=y w=1i 1", known=broken)
    assert [rows(table) for table in parse(parser, b"m,a=x v=1 1").tables] == expected


def test_nulls_hide_zeros(parser: LineParser) -> None:
    body = b"".join(b'm f%d=%d,s%d="x" 1\n' % (number % 3, number + 1, number % 3) for number in range(9))
    (table,) = parse(parser, body).tables
    for field in table.fields:
        values = field.values
        assert values.null_count == 6
        if field.type is FieldType.FLOAT64:
            plain = pa.Array.from_buffers(pa.float64(), len(values), [None, values.buffers()[1]], offset=values.offset)
            assert sorted(plain.to_pylist())[:6] == [0.0] * 6


def test_create_parser_gives_the_kernels_and_the_plain_one_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(create_parser(), KernelParser)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert isinstance(create_parser(), ReferenceParser)


def test_the_reserved_names_are_those_of_the_store() -> None:
    """The codec may not import the store, so it has names of its own for the same things."""
    assert (model.TIME_COLUMN, model.RESERVED_PREFIX) == (schema.TIME_COLUMN, schema.RESERVED_PREFIX)
    assert {kind.name for kind in FieldType} <= {kind.name for kind in schema.TypeKind}
