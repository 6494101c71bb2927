"""URL parameters and names, in serde's and InfluxDB's words."""

from __future__ import annotations

import pytest

from nodes.gateway.doors.influx import names
from nodes.gateway.doors.influx.durations import parse_human, parse_influxql
from nodes.gateway.doors.influx.params import WriteParameters, write_v1, write_v2, write_v3
from nodes.gateway.doors.influx.query import read_format
from nodes.gateway.faults import BadName, BadRequest, GatewayError, LegacyParameters
from nodes.gateway.http import PARAMETERS_MAX, parse_form
from wire.lineprotocol.model import Precision

KNOWN = "`auto`, `second`, `s`, `millisecond`, `ms`, `microsecond`, `us`, `u`, `nanosecond`, `ns`, `n`"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"db=foo", WriteParameters("foo", Precision.AUTO, accept_partial=True)),
        (b"db=foo/bar", WriteParameters("foo/bar", Precision.AUTO, accept_partial=True)),
        (b"db=f&precision=u", WriteParameters("f", Precision.MICROSECOND, accept_partial=True)),
        (b"precision=second&db=f&accept_partial=false", WriteParameters("f", Precision.SECOND, accept_partial=False)),
        (b"db=f&no_sync=true&unknown=1&unknown=2", WriteParameters("f", Precision.AUTO, accept_partial=True)),
        (b"db=%66oo&precision=n", WriteParameters("foo", Precision.NANOSECOND, accept_partial=True)),
    ],
)
def test_v3(query: bytes, expected: WriteParameters) -> None:
    assert write_v3(query) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (b"", "missing query parameter 'db'"),
        (b"precision=s", "serde error: missing field `db`"),
        (b"db=a&db=b", "serde error: duplicate field `db`"),
        (b"db=a&precision=h", f"serde error: unknown variant `h`, expected one of {KNOWN}"),
        (b"db=a&precision=", f"serde error: unknown variant ``, expected one of {KNOWN}"),
        (b"db=a&accept_partial=1", "serde error: provided string was not `true` or `false`"),
        (b"db=a&no_sync=yes", "serde error: provided string was not `true` or `false`"),
    ],
)
def test_v3_errors(query: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        write_v3(query)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("query", "database"),
    [
        (b"db=bananas", "bananas"),
        (b"db=bananas&rp=", "bananas"),
        (b"db=bananas&rp=''", "bananas"),
        (b"db=bananas&rp=AutoGen", "bananas"),
        (b"db=bananas&rp=default", "bananas"),
        (b"db=bananas&rp=Ageless", "bananas/ageless"),
        (b"db=BaNanas", "BaNanas"),
        (b"db=foo/bar&rp=autogen", "foo/bar"),
    ],
)
def test_v1_retention_policies_are_part_of_the_name(query: bytes, database: str) -> None:
    assert write_v1(query) == WriteParameters(database, Precision.NANOSECOND, accept_partial=False)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (b"", LegacyParameters, "no db destination provided"),
        (b"rp=x", LegacyParameters, "failed to deserialize db/rp/precision in request: missing field `db`"),
        (
            b"db=a&precision=m",
            LegacyParameters,
            f"failed to deserialize db/rp/precision in request: unknown variant `m`, expected one of {KNOWN}",
        ),
        (b"db=a&rp=b/c", BadName, names.BAD_RETENTION),
        (b"db=ban'anas", BadName, names.BAD_CHARACTER),
        (b"db=", BadName, names.EMPTY),
    ],
)
def test_v1_errors(query: bytes, error: type[GatewayError], message: str) -> None:
    with pytest.raises(error) as caught:
        write_v1(query)
    assert str(caught.value) == message


def test_v2() -> None:
    assert write_v2(b"org=default&bucket=b&precision=ms") == WriteParameters(
        "b", Precision.MILLISECOND, accept_partial=False
    )
    assert write_v2(b"bucket=b").precision is Precision.NANOSECOND


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (b"", "no org/bucket destination provided"),
        (b"org=x", "missing bucket value"),
        (b"bucket=", "missing bucket value"),
        (
            b"bucket=b&precision=x",
            f"failed to deserialize org/bucket/precision in request: unknown variant `x`, expected one of {KNOWN}",
        ),
    ],
)
def test_v2_errors(query: bytes, message: str) -> None:
    with pytest.raises(LegacyParameters) as caught:
        write_v2(query)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["f", "1", "foo-bar", "foo_bar", "foo/bar", "1/2", "1/-", "1/_", "1" * 511])
def test_names_that_influxdb_takes(name: str) -> None:
    assert names.check_database_name(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", names.EMPTY),
        ("1" * 512, names.TOO_LONG),
        ("_foo", names.BAD_START),
        ("-foo", names.BAD_START),
        ("/", names.BAD_START),
        ("..", names.BAD_START),
        ("../../etc", names.BAD_START),
        ("ünder", names.BAD_START),
        ("foo?bar", names.BAD_CHARACTER),
        ("foo#bar", names.BAD_CHARACTER),
        ("foo@bar/baz", names.BAD_CHARACTER),
        ("foo bar", names.BAD_CHARACTER),
        ("foo\0", names.BAD_CHARACTER),
        ('foo"bar', names.BAD_CHARACTER),
        ("foo'bar", names.BAD_CHARACTER),
        ("a..b", names.BAD_CHARACTER),
        ("föö", names.BAD_CHARACTER),
        ("a\n", names.BAD_CHARACTER),
        ("foo/bar/baz", names.BAD_RETENTION),
        ("foo/", names.BAD_RETENTION),
        ("foo///", names.BAD_RETENTION),
    ],
)
def test_names_that_influxdb_refuses(name: str, message: str) -> None:
    with pytest.raises(BadName) as caught:
        names.check_database_name(name)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 2_592_000),
        ("1h 30m", 5400),
        ("1h30m", 5400),
        ("2weeks", 1_209_600),
        ("1 day", 86400),
        ("1M", 2_630_016),
        ("1y", 31_557_600),
        ("500ms", 0.5),
    ],
)
def test_human_durations(text: str, seconds: float) -> None:
    assert parse_human(text) == int(seconds * 1_000_000_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "value was empty"),
        ("  ", "value was empty"),
        ("d", "expected number at 0"),
        ("30", "time unit needed, for example 30sec or 30ms"),
        (
            "1x",
            (
                'unknown time unit "x", supported units: ns, us, ms, sec, min, hours, days, weeks, months, '
                "years (and few variations)"
            ),
        ),
        ("1h !", "invalid character at 3"),
        ("-1h", "expected number at 0"),
        ("99999999y", "number is too large"),
    ],
)
def test_human_durations_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_human(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "ns"), [("INF", None), ("0s", None), ("1w", 604_800 * 10**9), ("1h30m", 5400 * 10**9), ("10u", 10_000)]
)
def test_influxql_durations(text: str, ns: int | None) -> None:
    assert parse_influxql(text) == ns


@pytest.mark.parametrize("text", ["", "1", "h", "1y", "1h-", "99999999999w"])
def test_influxql_durations_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_influxql(text)


@pytest.mark.parametrize(
    ("given", "accept", "expected"),
    [
        (None, None, "json"),
        (None, b"*/*", "json"),
        (None, b"application/json", "json"),
        (None, b"text/csv", "csv"),
        (None, b"text/plain", "pretty"),
        (None, b"application/vnd.apache.parquet", "parquet"),
        (None, b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
        ("jsonl", None, "jsonl"),
        ("json_lines", b"nonsense", "jsonl"),
        ("pretty", b"text/csv", "pretty"),
    ],
)
def test_formats(given: str | None, accept: bytes | None, expected: str) -> None:
    assert read_format(given, accept) == expected


def test_formats_that_are_none() -> None:
    with pytest.raises(BadRequest, match=r"^invalid mime type \(application/jsonl\)$"):
        read_format(None, b"application/jsonl")
    with pytest.raises(BadRequest, match=r"^serde error: unknown variant `xml`, expected one of `parquet`"):
        read_format("xml", None)


def test_forms_are_bounded_and_never_fail_on_bytes() -> None:
    assert parse_form(b"a=1&b=%ff&c=%C3%A4&d=x+y&e&f=") == [
        ("a", "1"),
        ("b", "\ufffd"),
        ("c", "ä"),
        ("d", "x y"),
        ("e", ""),
        ("f", ""),
    ]
    assert parse_form("q=ä".encode()) == [("q", "ä")]
    with pytest.raises(BadRequest, match="too many parameters"):
        parse_form(b"&".join([b"a=1"] * (PARAMETERS_MAX + 1)))
