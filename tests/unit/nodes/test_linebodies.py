"""Cutting line protocol into bodies: never inside a quoted string, never losing the place in the file."""

from __future__ import annotations

import gzip
import io
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import linebodies as lines
from nodes.linebodies import LINE, Body, bodies, halves

if TYPE_CHECKING:
    from pathlib import Path


def cut(folder: Path, data: bytes, lines_max: int = 2) -> list[Body]:
    path = folder / "points.lp"
    path.write_bytes(data)
    return list(bodies(str(path), lines_max))


def test_bodies_join_to_the_file(tmp_path: Path) -> None:
    data = b"".join(b"m,t=a v=%di %d\n" % (n, n) for n in range(11))
    parts = cut(tmp_path, data, 4)
    assert b"".join(part.data for part in parts) == data
    assert [(part.first_line, part.lines) for part in parts] == [(1, 4), (5, 4), (9, 3)]


def test_a_last_line_without_its_newline_gets_one(tmp_path: Path) -> None:
    (part,) = cut(tmp_path, b"m v=1\nm v=2")
    assert part.data == b"m v=1\nm v=2\n"


def test_an_empty_file_has_no_bodies(tmp_path: Path) -> None:
    assert cut(tmp_path, b"") == []


@pytest.mark.parametrize(
    "line",
    [
        b'm v="two\nlines" 1\n',
        b'm v="a \\" and\nmore",w="x\n\ny" 1\n',
        b'm,t=a\\ b,u=\\" v="\n" 1\n',
        b'# a comment with one "\n',
        b'  # v="\n',
        b'm,t=" v=1 1\n',
        b'm,t=a"b v=1\n',
        b"m v=1 1\r\n",
        b"\n",
        b"nonsense\n",
        b'm\\ n,t\\,u=a\\=b v="x=\\\\" 1\n',
    ],
)
def test_one_line_is_one_line(tmp_path: Path, line: bytes) -> None:
    following = b"m v=1\n"
    match = LINE.match(line + following)
    assert match is not None
    assert match[0] == line
    parts = cut(tmp_path, line + following, 1)
    assert [part.data for part in parts] == [line, following]
    assert parts[1].first_line == 1 + line.count(b"\n")


def test_an_unbalanced_quote_does_not_swallow_the_file(tmp_path: Path) -> None:
    parts = cut(tmp_path, b'm v="open 1\nm v=1\nm v=2\nm v=3\n', 2)
    assert [part.data for part in parts] == [b'm v="open 1\n', b"m v=1\nm v=2\n", b"m v=3\n"]
    assert [part.first_line for part in parts] == [1, 2, 4]


def test_bodies_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BODY_BYTES_MAX", 100)
    data = b"".join(b'm v="%s" 1\n' % (b"x" * n) for n in range(60))
    parts = cut(tmp_path, data, 1000)
    assert b"".join(part.data for part in parts) == data
    assert max(len(part.data) for part in parts) <= 100
    assert [part.first_line for part in parts[1:]] == [part.first_line + part.lines for part in parts[:-1]]


def test_a_line_longer_than_a_body_goes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BODY_BYTES_MAX", 50)
    monkeypatch.setattr(lines, "READ_BYTES", 10)
    long = b"m,t=%s v=1\n" % (b"x" * 200)
    parts = cut(tmp_path, b"m v=1\n" + long + b"m v=2\n", 1)
    assert b"".join(part.data for part in parts) == b"m v=1\n" + long + b"m v=2\n"


LINE_TEXT = st.from_regex(rb'm(,t=[ab\\"]x)? v=(1|"[ab\n=,#]*"|"\\"[ \n]\\\\")( 1)?', fullmatch=True) | st.sampled_from(
    [b"# c", b'# "', b""]
)


@given(st.lists(LINE_TEXT, max_size=30), st.integers(1, 7), st.integers(1, 40))
def test_cuts_are_between_lines(written: list[bytes], lines_max: int, read_bytes: int) -> None:
    data = b"".join(line + b"\n" for line in written)
    ends, end = {0}, 0
    for line in written:
        end += len(line) + 1
        ends.add(end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "READ_BYTES", read_bytes)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        parts = list(bodies("-", lines_max))
    at = 0
    for part in parts:
        assert part.first_line == 1 + data.count(b"\n", 0, at)
        at += len(part.data)
        assert at in ends
    assert b"".join(part.data for part in parts) == data


@pytest.mark.parametrize("members", [1, 3])
def test_gzip(tmp_path: Path, members: int) -> None:
    data = b"m v=1\nm v=2\nm v=3\n"
    parts = cut(tmp_path, gzip.compress(data) * members)
    assert b"".join(part.data for part in parts) == data * members


def test_broken_gzip_is_an_os_error_with_the_name(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"m v=%d\n" % n for n in range(1000)))
    with pytest.raises(OSError, match=r"points\.lp"):
        cut(tmp_path, whole[:-20])
    with pytest.raises(OSError, match=r"points\.lp"):
        cut(tmp_path, whole[:40] + b"\x00" * 40 + whole[80:])


def test_halves() -> None:
    body = Body("f", 10, 5, b'm v=1\nm v="a\nb"\nm v=3\nm v=4\n', 0)
    first, second = halves(body) or (None, None)
    assert first is not None
    assert second is not None
    assert first.data + second.data == body.data
    assert (first.first_line, first.lines, second.first_line, second.lines) == (10, 3, 13, 2)
    assert halves(Body("f", 1, 2, b'm v="a\nb"\n', 0)) is None


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"m v=1\nm v=2\n", 2),
        (b'# one "\n\n  \nm v="a\nb"\n\t# two\nm v=2\r\n\r\n', 2),
        (b'm v="open\nm v=1\n', 2),
        (b"m,t=a#b v=1\n", 1),
    ],
)
def test_points_are_lines_that_should_become_rows(data: bytes, count: int) -> None:
    assert Body("f", 1, data.count(b"\n"), data, 0).points == count
