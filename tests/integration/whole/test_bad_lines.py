"""Lines, names, bodies and parameters that are wrong: each gets InfluxDB's answer and costs no good line."""

from __future__ import annotations

import json
import urllib.parse
from typing import TYPE_CHECKING

import pytest

from tests.integration.whole.probing import (
    MIB,
    ask,
    ask_sql,
    checkpoint,
    clean_node,
    configure,
    cpu_seconds,
    goes_on,
    post_lines,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import RunningNode

TYPE_CLASH = (
    "invalid column type for column 'v', expected iox::column_type::field::float, got iox::column_type::field::string"
)
BAD_LINES = [
    ("wrong_type", b'm,t=a v="text" 3', TYPE_CLASH),
    ("integer_for_float", b"m,t=a v=1i 3", "expected iox::column_type::field::float"),
    ("tag_as_field", b"m t=1 3", "invalid column type for column 't'"),
    ("no_fields", b"m,t=a", "Expected at least one space character, got end of input"),
    ("no_field_value", b"m,t=a v= 3", "No fields were provided"),
    ("bad_timestamp", b"m,t=a v=3 yesterday", "Could not parse entire line. Found trailing content"),
    ("timestamp_beyond_int64", b"m,t=a v=3 99999999999999999999", "Unable to parse timestamp value"),
    ("integer_out_of_range", b"m,t=a i=9223372036854775808i 3", "Unable to parse integer value"),
    ("unsigned_out_of_range", b"m,t=a u=18446744073709551616u 3", "Unable to parse unsigned integer value"),
    ("negative_unsigned", b"m,t=a u=-1u 3", ""),
    ("invalid_utf8_value", b'm,t=a s="\xff\xfe" 3', "invalid UTF-8"),
    ("invalid_utf8_tag", b"m,t=\xc3\x28 v=3 3", "invalid UTF-8"),
    ("invalid_utf8_name", b"\xed\xa0\x80 v=3 3", "invalid UTF-8"),
    ("unbalanced_quotes", b'm,t=a s="open 3', ""),
    ("duplicate_field", b"m,t=a v=1,v=2 3", "multiple instances of 'v' field found"),
    ("duplicate_tag", b"m,t=a,t=b v=1 3", "Must not contain duplicate tags, but 't' was repeated"),
    ("reserved_column", b"m,t=a _runnel_offset=1i 3", "is reserved"),
    ("time_as_tag", b"m,time=a v=1 3", ""),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with clean_node(tmp_path_factory.mktemp("lines")) as node:
        node.write("alive v=0i 0", "alive")
        yield node


@pytest.mark.parametrize(("name", "line", "words"), BAD_LINES, ids=[case[0] for case in BAD_LINES])
def test_a_bad_line_between_good_ones(node: RunningNode, name: str, line: bytes, words: str) -> None:
    """v3: the good lines are written, the bad one is named by its number. v1 and v2: nothing is written."""
    node.write("m,t=a v=1 1\n", name)
    body = b"m,t=b v=2 2\n" + line + b"\n"
    reply = post_lines(node, body, name)
    assert reply.status == 400, reply.text
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.json["error"] == "partial write of line protocol occurred"
    (bad,) = reply.json["data"]
    assert (bad["line_number"], sorted(bad)) == (2, ["error_message", "line_number", "original_line"])
    assert words in bad["error_message"]
    assert bad["original_line"] == line[:20].decode("utf-8", "replace")
    v2 = ask(node, "POST", f"/api/v2/write?bucket={name}", b"m,t=c v=3 3\n" + line)
    assert (v2.status, v2.json["code"]) == (400, "invalid")
    assert words in v2.json["message"]
    v1 = ask(node, "POST", f"/write?db={name}", b"m,t=c v=3 3\n" + line)
    assert (v1.status, v1.json["error"]) == (400, "line protocol parsing error")
    assert v1.json["data"]["line_number"] == 2
    assert node.query("SELECT t, v FROM m ORDER BY t", name) == [{"t": "a", "v": 1.0}, {"t": "b", "v": 2.0}]
    columns = node.query("SELECT column_name FROM information_schema.columns WHERE table_name = 'm'", name)
    assert sorted(row["column_name"] for row in columns) == ["t", "time", "v"], "a refused line makes no column"
    tables = node.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'iox'", name)
    assert tables == [{"table_name": "m"}], "a refused line makes no table"
    goes_on(node)


def test_bad_lines_alone_make_no_database(node: RunningNode) -> None:
    reply = post_lines(node, "m\nm v=\n", "never")
    assert (reply.status, [line["line_number"] for line in reply.json["data"]]) == (400, [1, 2])
    reply = ask_sql(node, "SELECT 1", "never")
    assert (reply.status, reply.json) == (404, {"error": "query error: database not found: never"})


@pytest.mark.parametrize("body", [b"", b"\n", b" \n\r\n "])
def test_an_empty_body(node: RunningNode, body: bytes) -> None:
    for path, shape in [("/api/v3/write_lp?db=e", "text"), ("/write?db=e", "error"), ("/api/v2/write?bucket=e", "v2")]:
        reply = ask(node, "POST", path, body)
        assert reply.status == 400
        if shape == "text":
            assert reply.text == "incoming write was empty"
        elif shape == "error":
            assert reply.json == {"error": "incoming write was empty"}
        else:
            assert reply.json == {"code": "invalid", "message": "incoming write was empty"}
    goes_on(node)


def test_comments_alone_are_accepted(node: RunningNode) -> None:
    """As in InfluxDB: the body is not empty, it only has no line."""
    reply = post_lines(node, "# nothing\n\n# here\n", "comments")
    assert reply.status in (204, 400)
    goes_on(node)


def test_an_unknown_database(node: RunningNode) -> None:
    reply = ask_sql(node, "SELECT * FROM m", "nowhere")
    assert (reply.status, reply.json) == (404, {"error": "query error: database not found: nowhere"})
    reply = configure(node, "POST", "table", db="nowhere", table="t", tags=[], fields=[])
    assert (reply.status, "nowhere" in reply.text) == (404, True)
    assert ask(node, "DELETE", "/api/v3/configure/database?db=nowhere").status == 404
    assert ask(node, "DELETE", "/api/v3/configure/table?db=nowhere&table=t").status == 404
    reply = ask_sql(node, "SELECT * FROM nothing", "alive")
    assert reply.status == 400
    assert "nothing" in reply.text
    goes_on(node)


def test_ten_thousand_columns_in_one_line(node: RunningNode) -> None:
    node.write("wide,t=a " + ",".join(f"f{i}={i}i" for i in range(10_000)) + " 1", "wide")
    node.write("wide,t=b f9999=7i,g=1 2", "wide")
    goes_on(node)  # what the first query of a node loads is no planning
    before = cpu_seconds(node)
    rows = node.query("SELECT t, f0, f9999, g FROM wide ORDER BY t", "wide")
    assert rows == [{"t": "a", "f0": 0, "f9999": 9999}, {"t": "b", "f9999": 7, "g": 1.0}]
    assert cpu_seconds(node) - before < 5, "planning may not grow with the square of the columns"
    checkpoint(node)
    some = range(0, 10_000, 97)
    items = ", ".join(f"f{i}" for i in some)
    rows = node.query(f"SELECT t, g, {items} FROM wide ORDER BY t", "wide")
    assert rows == [{"t": "a"} | {f"f{i}": i for i in some}, {"t": "b", "g": 1.0}]
    (row,) = node.query("SELECT count(*) AS n FROM information_schema.columns WHERE table_name = 'wide'", "wide")
    assert row == {"n": 10_003}
    goes_on(node)


def test_columns_that_come_one_by_one(node: RunningNode) -> None:
    """A table that grows with each line of a body, and with each body."""
    body = "".join(f"grow f{i}={i}i {i + 1}\n" for i in range(600))
    node.write(body, "grow")
    for i in range(600, 660):
        node.write(f"grow f{i}={i}i {i + 1}", "grow")
    (row,) = node.query("SELECT count(*) AS n, sum(f0) AS a, sum(f599) AS b, sum(f659) AS c FROM grow", "grow")
    assert row == {"n": 660, "a": 0, "b": 599, "c": 659}
    checkpoint(node)
    (row,) = node.query("SELECT count(f659) AS n, max(f659) AS c FROM grow", "grow")
    assert row == {"n": 1, "c": 659}
    goes_on(node)


def test_a_tag_value_of_a_megabyte(node: RunningNode) -> None:
    value = "x" * MIB
    node.write(f"big,t={value} v=1 1", "big")
    reply = post_lines(node, f"big,t=a v=2 2\nbig,t={value}x v=3 3\n", "big")
    assert reply.status == 400
    (bad,) = reply.json["data"]
    assert (bad["line_number"], bad["error_message"]) == (2, "String is greater than 1MB")
    assert len(reply.body) < 1000, "a bad line is not sent back whole"
    for _ in range(2):
        rows = node.query("SELECT char_length(t) AS n, v FROM big ORDER BY v", "big")
        assert rows == [{"n": MIB, "v": 1.0}, {"n": 1, "v": 2.0}]
        (row,) = node.query("SELECT t FROM big WHERE v = 1", "big")
        assert row["t"] == value
        checkpoint(node)
    goes_on(node)


QUOTE = "'"
NAMES = [
    "a/b",
    "..",
    "../../etc/passwd",
    "a b",
    'a"b',
    "a'b",
    "`a`",
    "a;DROP TABLE x",
    "é🌊",
    "%2e%2e",
    "a.b",
    "C:\\x",
]


def escaped(name: str) -> str:
    """As a line protocol measurement, tag or field key."""
    return name.replace("\\", "\\\\").replace(" ", "\\ ").replace(",", "\\,").replace("=", "\\=")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_of_tables_and_columns(node: RunningNode, name: str) -> None:
    """They are names like any other: written, read, in files, after a checkpoint, and nowhere as a path."""
    lines = f"{escaped(name)},t{escaped(name)}={escaped(name)} f{escaped(name)}=1i,plain=2i 1\n"
    node.write(lines, "odd")
    for _ in range(2):
        rows = node.query(f"SELECT * FROM {quoted(name)}", "odd")
        assert rows == [{f"t{name}": name, f"f{name}": 1, "plain": 2, "time": "1970-01-01T00:00:01"}]
        where = f"{quoted('t' + name)} = '{name.replace(QUOTE, QUOTE * 2)}'"
        rows = node.query(f"SELECT {quoted('f' + name)} AS f FROM {quoted(name)} WHERE {where}", "odd")
        assert rows == [{"f": 1}]
        checkpoint(node)
    files = node.query("SELECT table_name, path FROM system.parquet_files", "odd")
    paths = [row["path"] for row in files if row["table_name"] == name]
    assert len(paths) == 1
    assert all(set(path) <= set("abcdefghijklmnopqrstuvwxyz0123456789/.-") and ".." not in path for path in paths)
    assert (node.data / "store" / paths[0]).is_file()
    goes_on(node)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "a/b"] + ["", "_a", "-a", "a/b/c", "a/", "x" * 512])
def test_odd_names_of_databases_are_refused(node: RunningNode, name: str) -> None:
    encoded = urllib.parse.quote(name, safe="")
    for method, path, body in [
        ("POST", f"/api/v3/write_lp?db={encoded}", b"m v=1 1"),
        ("POST", f"/write?db={encoded}", b"m v=1 1"),
    ]:
        reply = ask(node, method, path, body)
        assert reply.status == 400, (name, reply.text)
        assert "name" in reply.json["error"]
    reply = ask(node, "POST", f"/api/v2/write?bucket={encoded}", b"m v=1 1")
    assert (reply.status, reply.json["code"]) == (400, "invalid")
    reply = configure(node, "POST", "database", db=name)
    assert (reply.status, "name" in reply.json["error"]) == (400, True)
    reply = ask(node, "GET", f"/api/v3/query_sql?db={encoded}&q=SELECT+1")
    assert (reply.status, reply.json) == (404, {"error": f"query error: database not found: {name}"})
    listed = ask(node, "GET", "/api/v3/configure/database?format=json").json
    assert name not in [row["iox::database"] for row in listed]
    goes_on(node)


@pytest.mark.parametrize("line", [b"a\x00b v=1 1", b"m,t\x00=a v=1 1", b"m f\x00=1 1", b"a\x00b,t\x00=a f\x00=1 1"])
def test_nul_in_a_name_is_refused(node: RunningNode, line: bytes) -> None:
    """A column with such a name would make its table unreadable: names cross C interfaces in the engine."""
    reply = post_lines(node, b"m,t=a v=1 1\n" + line, "nul")
    assert (reply.status, [bad["line_number"] for bad in reply.json["data"]]) == (400, [2])
    assert ask(node, "POST", "/write?db=nul", b"m,t=a v=2 2\n" + line).status == 400
    assert node.query("SELECT t, v FROM m", "nul") == [{"t": "a", "v": 1.0}]
    goes_on(node)


def test_nul_in_a_value_is_a_character(node: RunningNode) -> None:
    node.write(b'm,t=b\x00 s="\x00inside\x00" 2', "nuls")
    for _ in range(2):
        assert node.query("SELECT t, s FROM m WHERE t = 'b\x00'", "nuls") == [{"t": "b\x00", "s": "\x00inside\x00"}]
        checkpoint(node)
    goes_on(node)


def test_a_retention_policy_in_the_name_is_a_database(node: RunningNode) -> None:
    node.write("m v=1 1", "a/b")
    assert rows_of(node, "m", "a/b") == 1
    assert ask(node, "POST", "/write?db=a&rp=B", b"m v=2 2000000000").status == 204
    assert rows_of(node, "m", "a/b") == 2


def test_unknown_and_wrong_parameters(node: RunningNode) -> None:
    assert ask(node, "POST", "/api/v3/write_lp?db=p&nonsense=1", b"m v=1 1").status == 204
    assert ask(node, "GET", "/api/v3/query_sql?db=p&q=SELECT+1&nonsense=1").status == 200
    for path, words in [
        ("/api/v3/write_lp", "missing query parameter 'db'"),
        ("/api/v3/write_lp?nonsense=1", "serde error: missing field `db`"),
        ("/api/v3/write_lp?db=p&db=q", "serde error: duplicate field `db`"),
        ("/api/v3/write_lp?db=p&precision=h", "serde error: unknown variant `h`"),
        ("/api/v3/write_lp?db=p&accept_partial=maybe", "serde error: provided string was not `true` or `false`"),
    ]:
        reply = ask(node, "POST", path, b"m v=1 1")
        assert reply.status == 400
        assert reply.text.startswith(words)
    for query, words in [
        ("", "missing query parameters 'db' and 'q'"),
        ("?db=p", "serde error: missing field `q`"),
        ("?q=SELECT+1", "serde error: missing field `db`"),
        ("?db=p&q=SELECT+1&format=xml", "serde error: unknown variant `xml`"),
        ("?db=p&q=SELECT+$x&params=%7B", "serde json error: "),
    ]:
        reply = ask(node, "GET", f"/api/v3/query_sql{query}")
        assert reply.status == 400
        assert reply.text.startswith(words)
    for body in (b"", b"{", b"[]", b'{"db": 1, "q": "x"}', b'{"db": "p"}', b"\xff"):
        reply = ask(node, "POST", "/api/v3/query_sql", body, {"Content-Type": "application/json"})
        assert (reply.status, reply.text.startswith("serde json error: ")) == (400, True)
    assert rows_of(node, "m", "p") == 1
    goes_on(node)


@pytest.mark.parametrize(
    "statement",
    [
        "", ";", "SELEC 1", "SELECT * FROM", "SELECT 1; SELECT 2", "DROP TABLE alive", "TRUNCATE TABLE alive",
        "INSERT INTO alive VALUES (1)", "CREATE TABLE x AS SELECT 1", "SET a = 1", "SELECT $missing",
        "SELECT nope FROM alive",
        "COPY alive TO '/tmp/runnel-must-not-be.csv'", "CREATE EXTERNAL TABLE e STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * FROM '/etc/passwd'", "SELECT \x00",
        "(" * 5000 + "1" + ")" * 5000,
    ],
)  # fmt: skip
def test_statements_that_are_none_or_not_allowed(node: RunningNode, statement: str) -> None:
    reply = ask(
        node, "POST", "/api/v3/query_sql", json.dumps({"db": "alive", "q": statement}).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    assert 400 <= reply.status <= 405, reply.text
    assert reply.text
    assert "Traceback" not in reply.text
    goes_on(node)


@pytest.mark.parametrize("statement", ["SELECT 1/0", "SELECT v / (v - v) FROM alive", "SELECT CAST('x' AS BIGINT)"])
def test_what_cannot_be_computed_is_an_error_but_no_alarm(node: RunningNode, statement: str) -> None:
    reply = ask_sql(node, statement, "alive")
    assert (reply.status, "Traceback" in reply.text) in [(500, False), (400, False)]
    assert "rror" in reply.text
    assert node.alarms() == []
    goes_on(node)
