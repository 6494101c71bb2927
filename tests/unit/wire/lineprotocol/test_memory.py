"""What the kernel's parser keeps: bounded, and never shared with what was handed out.

And hostile bodies cost no more than their size.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.unit.wire.lineprotocol.comparing import LIMITS, assert_same, columns_of, parse, plain, rows
from wire.lineprotocol import KnownTable, ParserLimits
from wire.lineprotocol.columns import DICTIONARY_VALUES_MIN, DICTIONARY_VALUES_PER_ROW
from wire.lineprotocol.parser import KernelParser

if TYPE_CHECKING:
    from collections.abc import Callable


def series_body(first: int, count: int) -> bytes:
    """Lines of ``count`` different series."""
    return b"".join(b"m,host=h%d,dc=d%d v=%d 1\n" % (n, n % 7, n) for n in range(first, first + count))


def test_memory_stays_below_its_limit_and_one_call() -> None:
    parser = KernelParser(ParserLimits(series_bytes_max=1 << 20))
    highest = 0
    evictions = 0
    for call in range(60):
        before = parser.memory_bytes
        parsed = parse(parser, series_body(1000 * call, 1000))
        evictions += parser.memory_bytes < before
        highest = max(highest, parser.memory_bytes)
        (table,) = parsed.tables
        assert table.tags[0].values.to_pylist() == [f"h{n}" for n in range(1000 * call, 1000 * call + 1000)]
    assert evictions >= 5
    assert highest < (1 << 20) + 600_000


@pytest.mark.parametrize(
    "line",
    [
        b"m,t=%d v=1\n",
        b"m%d v=1\n",
        b"m f%d=1\n",
        b"m,k%d=1 v=1\n",
        b"bad,=%d v=1\n",
        b"m bad%d\\\\=1\n",
    ],
)
def test_everything_that_is_kept_is_counted(line: bytes) -> None:
    parser = KernelParser(LIMITS)
    parse(parser, b"m v=1")
    before = parser.memory_bytes
    parse(parser, b"".join(line % number for number in range(1000)))
    assert parser.memory_bytes - before > 1000 * (len(line) - 4 + 60)


def test_arrays_handed_out_outlive_later_calls_and_evictions() -> None:
    parser = KernelParser(ParserLimits(series_bytes_max=200_000))
    kept = []
    for call in range(30):
        body = series_body(50 * call, 300) + b'm,host=x s="a\\"b",k=t 5\n'
        parsed = parse(parser, body)
        kept.append((parsed, plain(parsed)))
    for parsed, before in kept:
        assert plain(parsed) == before


def test_what_one_table_has_seen_shows_in_no_other_call() -> None:
    parser = KernelParser(LIMITS)
    parse(parser, series_body(0, 500) + b"m,host=x,extra=1 a=1,b=2i 1")
    (table,) = parse(parser, b"m,host=x v=1 1").tables
    assert [column.name for column in columns_of(table)] == ["host", "v"]
    assert (table.new_tags, table.new_fields) == (("host",), ("v",))


def test_small_batches_carry_small_dictionaries() -> None:
    parser = KernelParser(LIMITS)
    parse(parser, series_body(0, 20_000))
    parsed = parse(parser, b"m,host=h19999,dc=d1 v=1 1\nm,host=h3 v=1 2\nm,host=h19999 v=2 3\nm,dc=d6 v=1 4\n")
    host, dc = parsed.tables[0].tags
    assert host.values.to_pylist() == ["h19999", "h3", "h19999", None]
    assert host.values.dictionary.to_pylist() == ["h19999", "h3"]
    assert dc.values.to_pylist() == ["d1", None, None, "d6"]
    assert len(dc.values.dictionary) <= DICTIONARY_VALUES_MIN
    for count in (1, 100, 5000, 19_000):
        (table,) = parse(parser, series_body(100, count)).tables
        allowed = max(DICTIONARY_VALUES_MIN, DICTIONARY_VALUES_PER_ROW * count)
        assert len(table.tags[0].values.dictionary) <= allowed
        assert table.tags[0].values.to_pylist() == [f"h{n}" for n in range(100, 100 + count)]


def test_a_schema_that_grows_is_told_to_the_columns_already_seen() -> None:
    parser = KernelParser(LIMITS)
    fields = b",".join(b"f%d=%di" % (n, n) for n in range(300))
    for version in range(3):
        told = KnownTable(version, (), {})
        parsed = parse(parser, b"m " + fields, known=lambda _name, told=told: told)  # type: ignore[misc]
        assert parsed.tables[0].new_fields == tuple(f"f{n}" for n in range(300))


BIG: dict[str, Callable[[int], bytes]] = {
    "10,000 columns in a line": lambda n: b"m " + b",".join(b"f%d=%di" % (i, i) for i in range(n)),
    "10,000 tags in a line": lambda n: b"m" + b"".join(b",t%d=%d" % (i, i) for i in range(n)) + b" v=1",
    "a line for each column": lambda n: b"".join(b"m f%d=1i\n" % i for i in range(n // 20)),
    "a long tag": lambda n: b"m,t=" + b"x" * 100 * n + b" v=1",
    "a long string": lambda n: b'm s="' + b"x" * 100 * n + b'"',
    "a long string of escapes": lambda n: b'm s="' + b'\\"' * 100 * n + b'"',
}


@pytest.mark.parametrize("name", BIG)
def test_big_things_are_read_like_small_ones(name: str) -> None:
    body = BIG[name](10_000)
    parsed = parse(KernelParser(LIMITS), body)
    assert parsed.errors == []
    assert parsed.rows.tolist() == [body.count(b"\n") or 1]
    if "columns in a line" in name:
        assert rows(parsed.tables[0])[0]["f9999"] == 9999
    assert_same([BIG[name](100)])


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "bad lines": lambda n: b"a\n" * (n // 2),
    "quotes that open late": lambda n: b'm " a="\n' * (n // 8),
    "open quotes": lambda n: b'm s="x\n' * (n // 7),
    "escaped quotes": lambda n: b'm s="\\"\n' * (n // 8),
    "quotes in quotes": lambda n: b'm a="b"c"\n' * (n // 10),
    "spaces": lambda n: b" " * n,
    "backslashes": lambda n: b"\\" * n,
    "a key of backslashes": lambda n: b"m," + b"\\=" * (n // 2) + b"=1 v=1",
    "a string of backslashes": lambda n: b'm v="' + b"\\" * n,
    "equals signs": lambda n: b"m " + b"=" * n,
    "commas": lambda n: b"m" + b"," * n,
    "digits": lambda n: b"m a=" + b"9" * n,
    "an integer": lambda n: b"m a=" + b"9" * n + b"i",
    "a timestamp": lambda n: b"m a=1 " + b"9" * n,
    "long doubles": lambda n: b"m a=0.12345678901234567890123\n" * (n // 30),
    "invalid UTF-8": lambda n: b"m a=1,\xff=2\n" * (n // 11),
    "comments": lambda n: b'#"=\n' * (n // 4),
    "repeated fields": lambda n: b"m " + b"a=1," * (n // 4) + b"a=1",
    "new fields": lambda n: b"m " + b",".join(b"%d=1" % i for i in range(n // 9)),
    "new tables": lambda n: b"".join(b"m%d a=1\n" % i for i in range(n // 100)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_twice_the_bytes_cost_about_twice_the_time(name: str) -> None:
    def seconds(size: int) -> float:
        body = HOSTILE[name](size)
        best = 9.0
        for _ in range(2 if size < 1_000_000 else 1):
            parser = KernelParser(LIMITS)
            started = time.process_time()
            parse(parser, body)
            best = min(best, time.process_time() - started)
        return best

    seconds(1000)
    small, large = seconds(75_000), seconds(1_200_000)
    # Quadratic would be 256 times; linear is 16.
    assert large < 64 * small + 0.2


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_get_the_references_answer(name: str) -> None:
    assert_same([HOSTILE[name](2000), b"ok v=1 1"])


def test_the_scratch_grows_with_what_it_must_hold() -> None:
    parser = KernelParser(LIMITS)
    for size in (10, 3000, 100, 70_000, 5):
        body = b"".join(b"m a=%di,b=%di %d\n" % (n, 2 * n, n) for n in range(size))
        (table,) = parse(parser, body).tables
        assert table.time.tolist() == list(range(size))
        assert table.fields[1].values.to_pylist() == [2 * n for n in range(size)]
    wide = b"m " + b",".join(b"f%d=%di" % (n, n) for n in range(30_000))
    assert parse(parser, b"m a=1i", wide, b"bad").rows.tolist() == [1, 1, 0]
