"""The grammar, rule by rule, on both parsers. The cases follow the tests of InfluxDB 3's own parser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.wire.lineprotocol.comparing import LIMITS, NOW_NS, parse, rows
from wire.errors import WireError
from wire.lineprotocol import FieldType, InvalidPrecision, LineError, ParserLimits, Precision
from wire.lineprotocol.parser import KernelParser
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from wire.lineprotocol import LineParser


@pytest.fixture(params=[ReferenceParser, KernelParser])
def parser(request: pytest.FixtureRequest) -> LineParser:
    found: LineParser = request.param(LIMITS)
    return found


def only_row(parser: LineParser, body: bytes, precision: Precision = Precision.NANOSECOND) -> dict[str, Any]:
    """The one row of a body of one good line, with its table."""
    parsed = parse(parser, body, precision=precision)
    assert parsed.errors == []
    (table,) = parsed.tables
    (row,) = rows(table)
    return {"table": table.name} | row


def only_error(parser: LineParser, body: bytes, precision: Precision = Precision.NANOSECOND) -> str:
    """The message about a body of one bad line."""
    parsed = parse(parser, body, precision=precision)
    assert parsed.tables == []
    (error,) = parsed.errors
    return error.message


GOOD_VALUES = [
    (b"1", 1.0),
    (b"-1", -1.0),
    (b"44", 44.0),
    (b"3.74", 3.74),
    (b"-1.234456e+06", -1.234456e06),
    (b"1.234456E-16", 1.234456e-16),
    (b"-1.234456e06", -1.234456e06),
    (b"1e-0", 1.0),
    (b"-1e-0", -1.0),
    (b"1e400", float("inf")),
    (b"0" * 400 + b"1", 1.0),
    (b"9" * 200 + b"." + b"9" * 200, 1e200),
    (b"23i", 23),
    (b"-1i", -1),
    (b"9223372036854775807i", (1 << 63) - 1),
    (b"-9223372036854775808i", -(1 << 63)),
    (b"000000000000000000000000000000007i", 7),
    (b"5u", 5),
    (b"18446744073709551615u", (1 << 64) - 1),
    *[(word, True) for word in (b"t", b"T", b"true", b"True", b"TRUE")],
    *[(word, False) for word in (b"f", b"F", b"false", b"False", b"FALSE")],
    (b'""', ""),
    (b'"the string value"', "the string value"),
    (b'"The \\"string\\" val"', 'The "string" val'),
    (b'"a,b=c d"', "a,b=c d"),
    (b'"two\nlines"', "two\nlines"),
    (b'"too hot\\cold"', "too hot\\cold"),
    (b'"too hot\\\\cold"', "too hot\\cold"),
    (b'"too hot\\\\\\cold"', "too hot\\\\cold"),
    (b'"too hot\\\\\\\\cold"', "too hot\\\\cold"),
    (b'"v\0"', "v\0"),
    ('"日本 é"'.encode(), "日本 é"),
]


@pytest.mark.parametrize(("text", "value"), GOOD_VALUES)
def test_a_good_value_is_read_exactly(parser: LineParser, text: bytes, value: object) -> None:
    found = only_row(parser, b"foo asdf=" + text + b" 1234")
    assert found == {"table": "foo", "time": 1234, "asdf": value}
    assert type(found["asdf"]) is type(value)


def test_each_type_has_its_arrow_column(parser: LineParser) -> None:
    (table,) = parse(parser, b'foo,t=x a=23.1,b=-5i,c=9u,d="s",e=false 1').tables
    found = [(field.name, field.type, str(field.values.type)) for field in table.fields]
    assert found == [
        ("a", FieldType.FLOAT64, "double"),
        ("b", FieldType.INT64, "int64"),
        ("c", FieldType.UINT64, "uint64"),
        ("d", FieldType.STRING, "string"),
        ("e", FieldType.BOOL, "bool"),
    ]
    assert str(table.tags[0].values.type) == "dictionary<values=string, indices=int32, ordered=0>"
    assert table.time.dtype == "int64"
    assert table.body.dtype == table.line.dtype == "int32"


NAMES = [
    (b"wea\\,ther f=1", {"table": "wea,ther"}),
    (b"wea\\ ther f=1", {"table": "wea ther"}),
    (b"\\\\wea\\\\ther f=1", {"table": "\\wea\\ther"}),
    (b"\\wea\\ther f=1", {"table": "\\wea\\ther"}),
    (b"wea\\=ther f=1", {"table": "wea\\=ther"}),
    (b"weat\\\nher f=1", {"table": "weat\\\nher"}),
    (b"tag1=1,tag2=2 f=1", {"table": "tag1=1", "tag2": "2"}),
    (b"m,wea\\,ther=1 f=1", {"wea,ther": "1"}),
    (b"m,wea\\=ther=1 f=1", {"wea=ther": "1"}),
    (b"m,wea\\ ther=1 f=1", {"wea ther": "1"}),
    (b"m,a,b=1 f=1", {"a,b": "1"}),
    (b"m,a=b=c f=1", {"a": "b=c"}),
    (b"m,a=\\wea\\\\th\\,er f=1", {"a": "\\wea\\th,er"}),
    (b"m,a=x\\\ny f=1", {"a": "x\\\ny"}),
    (b"m,tag\x001=o\0ne f=1", {"tag\x001": "o\0ne"}),
    (b"m foo,bar=1,f=1", {"foo,bar": 1.0}),
    (b"m foo\\,bar=1,f=1", {"foo,bar": 1.0}),
    (b"m wea\\=ther=1,f=1", {"wea=ther": 1.0}),
    (b"m wea\\\nther=1,f=1", {"wea\\\nther": 1.0}),
    (b'm "=1,f=1', {'"': 1.0}),
    (b"m ,a=1,f=1", {",a": 1.0}),
    ("mü,é=日 ñ=1,f=1".encode(), {"table": "mü", "é": "日", "ñ": 1.0}),
]


@pytest.mark.parametrize(("line", "columns"), NAMES)
def test_names_and_escapes(parser: LineParser, line: bytes, columns: dict[str, object]) -> None:
    assert only_row(parser, line + b" 7") == {"table": "m", "time": 7, "f": 1.0} | columns


@pytest.mark.parametrize(
    "body",
    [
        b"m f=1 7",
        b"m f=1 7\n",
        b"m f=1 7\r\n",
        b"  m   f=1   7   \n",
        b"\tm f=1 7",
        b"\n\n\r\n \t\nm f=1 7\n\n",
        b"# comment\nm f=1 7\n#m f=2 8",
        b'# a "comment=" x="\nm f=1 7',
        b"  # comment \\\nm f=1 7",
        b"m f=1 007",
    ],
)
def test_what_may_stand_around_a_line(parser: LineParser, body: bytes) -> None:
    assert only_row(parser, body) == {"table": "m", "time": 7, "f": 1.0}


@pytest.mark.parametrize("body", [b"", b"\n\n\n", b"# comment", b"   ", b"\r\n", b"#"])
def test_a_body_without_lines_gives_nothing(parser: LineParser, body: bytes) -> None:
    parsed = parse(parser, body)
    assert (parsed.tables, parsed.errors, parsed.lines.tolist(), parsed.bytes) == ([], [], [0], len(body))


def test_no_bodies_give_nothing(parser: LineParser) -> None:
    parsed = parse(parser)
    assert (parsed.tables, parsed.errors, parsed.lines.tolist(), parsed.rows.tolist()) == ([], [], [], [])


B = "b" * 200
BAD_LINES = [
    ("measurement", "Expected at least one space character, got end of input"),
    ("cpu\tv=1", "Expected at least one space character, got `\tv=1`"),
    (",", "Invalid measurement was provided"),
    (",tag1=1,tag2=2 value=1 123", "Invalid measurement was provided"),
    ("\0 field=1 1234", "Invalid measurement was provided"),
    ("J,#", "Tag set malformed: could not find equals sign in `#`"),
    ("J," + "a" * 200, "Tag set malformed: could not find equals sign in `aaaaaaaaaa...`"),
    ("J,", "Expected tag key, got end of input"),
    ("testmeasure, bar=1i", "Expected tag key, got ` bar=1i`"),
    (f"testmeasure, {B}=1i", "Expected tag key, got ` bbbbbbbbb...`"),
    ("0,,=", "Expected tag value, got end of input"),
    ("testmeasure,foo\\=\\,baz= bar=1i", "Expected tag value, got ` bar=1i`"),
    ("testmeasure,foo=,baz= bar=1i", "Expected tag value, got `,baz= bar=...`"),
    ("metrics,bananas=,platanos=great value=1.0 17", "Expected tag value, got `,platanos=...`"),
    ("testmeasure,foo=f bar=1i,baz=", "Could not parse entire line. Found trailing content: `baz=`"),
    ("testmeasure,foo=f a=1,b=2,baz=", "Could not parse entire line. Found trailing content: `,baz=`"),
    (f"testmeasure,foo=f bar=1i,ba{B}=", "Could not parse entire line. Found trailing content: `babbbbbbbb...`"),
    ("\x1b# /", "No fields were provided"),
    ("field=1 1234", "No fields were provided"),
    ("foo ", "No fields were provided"),
    ("cpu,host=a val= 123", "No fields were provided"),
    ("m f=.5", "No fields were provided"),
    ("m f=+5", "No fields were provided"),
    ("m f=nan", "No fields were provided"),
    ('m f="open', "No fields were provided"),
    ("m f=\0 123", "No fields were provided"),
    (":\x14\\", "Measurements, tag keys and values, and field keys may not end with a backslash"),
    ("m,a\\\\=1 f=1", "Measurements, tag keys and values, and field keys may not end with a backslash"),
    ("m,a=C:\\\\ f=1", "Measurements, tag keys and values, and field keys may not end with a backslash"),
    ("m f\\\\=1", "Measurements, tag keys and values, and field keys may not end with a backslash"),
    ("m f=-1u 99", "Could not parse entire line. Found trailing content: `u 99`"),
    ("m f=1.e5", "Could not parse entire line. Found trailing content: `.e5`"),
    ("m f=1.5i", "Could not parse entire line. Found trailing content: `i`"),
    ("m f=-1.25e 16", "Could not parse entire line. Found trailing content: `e 16`"),
    ("m f=-1.25E+ 16", "Could not parse entire line. Found trailing content: `E+ 16`"),
    ("m f=tru 1", "Could not parse entire line. Found trailing content: `ru 1`"),
    ("m f=1 12x", "Could not parse entire line. Found trailing content: `x`"),
    ("m f=1 1 2", "Could not parse entire line. Found trailing content: ` 2`"),
    ("m f=1 x", "Could not parse entire line. Found trailing content: ` x`"),
    ("foo,tag0=v asdf=23.1.22,jkl=4", "Could not parse entire line. Found trailing content: `.22,jkl=4`"),
    ("m f=1 99999999999999999999", "Unable to parse timestamp value `99999999999999999999`"),
    ("m f=1 9223372036854775808", "Unable to parse timestamp value `9223372036854775808`"),
    ("m f=66666666666666666668i", "Unable to parse integer value `66666666666666666668`"),
    ("m f=-9223372036854775809i", "Unable to parse integer value `-9223372036854775809`"),
    ("m f=18446744073709551616u", "Unable to parse unsigned integer value `18446744073709551616`"),
    ("cpu,x=1,x=2 u=1", "Must not contain duplicate tags, but 'x' was repeated"),
    ("cpu usage=1,usage=2", "invalid line protocol - multiple instances of 'usage' field found"),
    ("cpu a,b=1,a\\,b=2", "invalid line protocol - multiple instances of 'a,b' field found"),
    (
        "cpu,x=1 x=1",
        "invalid column type for column 'x', expected iox::column_type::tag, got iox::column_type::field::float",
    ),
    (
        "cpu,time=1 x=1",
        "invalid column type for column 'time', expected iox::column_type::timestamp, got iox::column_type::tag",
    ),
    (
        "cpu t=1,t=1i",
        "invalid line protocol - multiple instances of 't' field found",
    ),
    (
        "cpu _runnel_offset=1",
        "the name '_runnel_offset' is reserved: names that begin with '_runnel_' belong to the store",
    ),
    ("cpu,_runnel_x=1 f=1", "the name '_runnel_x' is reserved: names that begin with '_runnel_' belong to the store"),
    ("_runnel_x f=1", "the name '_runnel_x' is reserved: names that begin with '_runnel_' belong to the store"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_in_influxdbs_words(parser: LineParser, line: str, message: str) -> None:
    assert only_error(parser, line.encode()) == message


@pytest.mark.parametrize(("line", "message"), [case for case in BAD_LINES if '"open' not in case[0]])
def test_a_bad_line_spoils_none_of_its_neighbours(parser: LineParser, line: str, message: str) -> None:
    if line.endswith("\\"):
        line += "x"  # a backslash at the end would escape the newline
        message = "Expected at least one space character, got end of input"
    parsed = parse(parser, f"ok f=1 1\n{line}\nok f=2 2\n".encode())
    assert [(error.line, error.message) for error in parsed.errors] == [
        (2, message.replace("end of input", "end of input"))
    ]
    assert [rows(table) for table in parsed.tables] == [[{"time": 1, "f": 1.0}, {"time": 2, "f": 2.0}]]
    assert parsed.lines.tolist() == [3]
    assert parsed.rows.tolist() == [2]


AUTO, S, MS, US, NS = list(Precision)
TIMES = [
    (NS, b" 17", 17),
    (NS, b" -9223372036854775808", -(1 << 63)),
    (US, b" 17", 17_000),
    (MS, b" -17", -17_000_000),
    (S, b" 1763596800", 1_763_596_800_000_000_000),
    (S, b" 9223372036", 9_223_372_036_000_000_000),
    (AUTO, b" 4999999999", 4_999_999_999_000_000_000),
    (AUTO, b" 5000000000", 5_000_000_000_000_000),
    (AUTO, b" -4999999999999", -4_999_999_999_999_000_000),
    (AUTO, b" 4999999999999999", 4_999_999_999_999_999_000),
    (AUTO, b" 5000000000000000", 5_000_000_000_000_000),
    (AUTO, b" -9223372036854775808", -(1 << 63)),
    (NS, b"", NOW_NS),
    (AUTO, b" ", NOW_NS),
    (US, b"", 1_763_596_800_123_456_000),
    (MS, b"", 1_763_596_800_123_000_000),
    (S, b"", 1_763_596_800_000_000_000),
]


@pytest.mark.parametrize(("precision", "text", "time"), TIMES)
def test_timestamps_in_every_unit(parser: LineParser, precision: Precision, text: bytes, time: int) -> None:
    assert only_row(parser, b"m f=1" + text, precision)["time"] == time


def test_a_field_cannot_be_called_time(parser: LineParser) -> None:
    kinds = "expected iox::column_type::timestamp, got iox::column_type::field::integer"
    assert only_error(parser, b"cpu time=1i") == f"invalid column type for column 'time', {kinds}"


@pytest.mark.parametrize(
    ("precision", "timestamp"),
    [(S, 9223372037), (S, -9223372037), (MS, 9223372036855), (US, 9223372036854776), (S, -(1 << 63))],
)
def test_a_timestamp_out_of_range_after_multiplying(parser: LineParser, precision: Precision, timestamp: int) -> None:
    found = only_error(parser, b"m f=1 %d" % timestamp, precision)
    assert found == f"timestamp, {timestamp}, out of range for precision: {precision.name.capitalize()}"


def test_line_numbers_are_those_of_a_text_editor(parser: LineParser) -> None:
    body = b'#c\n\nm s="a\nb\nc" 1\nbad\nm,t=x\\\ny f=1 2\r\nm k\\\ny=1 3\nm k\\\ny=1,s=2 4\nbad'
    parsed = parse(parser, body)
    assert [(error.line, error.original) for error in parsed.errors] == [
        (6, "bad"),
        (11, "m k\\\ny=1,s=2 4"),
        (13, "bad"),
    ]
    assert [table.line.tolist() for table in parsed.tables] == [[3, 7, 9]]
    assert parsed.lines.tolist() == [6]


def test_an_error_repeats_the_first_20_bytes_of_its_line(parser: LineParser) -> None:
    parsed = parse(parser, "ééééééééééééé\nxééééééééééééé\nshort\n12345678901234567890".encode())
    assert [error.original for error in parsed.errors] == ["é" * 10, "x" + "é" * 9, "short", "12345678901234567890"]


def test_text_in_a_later_string_of_a_bad_line_is_no_line(parser: LineParser) -> None:
    parsed = parse(parser, b'm bad=xx,s="l1\nm v=1 5\n" 7\nm v=2 6\n')
    assert [rows(table) for table in parsed.tables] == [[{"time": 6, "v": 2.0}]]
    assert [error.line for error in parsed.errors] == [1]


def test_after_an_open_quote_the_next_lines_still_count(parser: LineParser) -> None:
    parsed = parse(parser, b'm s="abc 3\nok a=1 4\nok a=2 5\n')
    assert [rows(table) for table in parsed.tables] == [[{"time": 4, "a": 1.0}, {"time": 5, "a": 2.0}]]
    assert parsed.errors == [LineError(0, 1, "No fields were provided", 'm s="abc 3')]


def test_a_body_that_ends_inside_a_quote_or_an_escape_spoils_no_other_body(parser: LineParser) -> None:
    for end in (b'm s="open', b"m\\", b"m,t=\\", b"m k\\", b'm s="\\', b"m s=1e", b"m s=t", b"m s=1 -"):
        parsed = parse(parser, end, b"ok f=1 1", end, b'ok f=2 2,"')
        assert [table.body.tolist() for table in parsed.tables if table.name == "ok"] == [[1]]
        assert {(error.body, error.line) for error in parsed.errors} >= {(3, 1)}


@pytest.mark.parametrize(
    "bad",
    [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf5", b"\x80", b"\xe2\x82", b"\xf0\x8f\x80\x80"],
)
@pytest.mark.parametrize("place", [b"m%s f=1", b"m,t=%s f=1", b"m,t%s=1 f=1", b"m f%s=1", b'm f="%s"', b"m f=%s"])
def test_invalid_utf8_refuses_its_line_alone(parser: LineParser, bad: bytes, place: bytes) -> None:
    parsed = parse(parser, b"ok f=1 1\n" + place % bad + b"\n# \xff\nok f=2 2", "ok f=é3".encode(), b"ok f=4 4")
    assert [(error.body, error.line) for error in parsed.errors] == [(0, 2), (1, 1)]
    assert parsed.errors[0].message == "invalid UTF-8 in the line"
    assert [table.time.tolist() for table in parsed.tables] == [[1, 2, 4]]


def test_names_and_strings_have_bounds(parser: LineParser) -> None:
    limits = ParserLimits(name_bytes_max=8 << 10, string_bytes_max=1 << 20)
    bounded = type(parser)(limits)  # type: ignore[call-arg]
    name, string = b"n" * (8 << 10), b"s" * (1 << 20)
    good = [b"%s f=1", b"m,%s=1 f=1", b"k %s=1"]
    assert parse(bounded, *(line % name for line in good)).errors == []
    assert parse(bounded, b"m,t=%s f=1" % string, b'm s="%s"' % string, b'm s="%s"' % (b'\\"' * (1 << 20))).errors == []
    errors = parse(bounded, *(line % (name + b"n") for line in good)).errors
    assert [error.message for error in errors] == ["String is greater than 8KB"] * 3
    errors = parse(bounded, b"m,t=%ss f=1" % string, b'm s="%ss"' % string).errors
    assert [error.message for error in errors] == ["String is greater than 1MB"] * 2


@pytest.mark.parametrize(
    ("spellings", "precision"),
    [
        (("auto",), Precision.AUTO),
        (("s", "second"), Precision.SECOND),
        (("ms", "millisecond"), Precision.MILLISECOND),
        (("us", "u", "microsecond"), Precision.MICROSECOND),
        (("ns", "n", "nanosecond"), Precision.NANOSECOND),
    ],
)
def test_precision_has_influxdbs_spellings(spellings: tuple[str, ...], precision: Precision) -> None:
    assert {Precision.parse(spelling) for spelling in spellings} == {precision}


@pytest.mark.parametrize("text", ["", "h", "m", "S", "seconds", "µs"])
def test_other_units_are_refused(text: str) -> None:
    with pytest.raises(InvalidPrecision, match="unrecognized precision unit") as caught:
        Precision.parse(text)
    assert (caught.value.code, caught.value.retriable) == ("invalid_precision", False)
    assert isinstance(caught.value, WireError)
