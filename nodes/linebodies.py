"""Cuts a stream of line protocol into request bodies at line ends, and knows each body's place in the file.

A newline inside a quoted string is not a line end, so cuts are found by one regular expression over many lines
(no work per line in Python). Driven by `nodes.cli.write` and `nodes.copylines`; reads plain files, gzip, standard
input.
"""

from __future__ import annotations

import contextlib
import re
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

READ_BYTES: Final = 1 << 20
BODY_BYTES_MAX: Final = 4 << 20
"""A body is cut here even if it has fewer lines than asked; below the server's default of 10 MiB. A line that has
not ended by then (an unbalanced quote) is taken to end at its first newline."""
GZIP_MAGIC: Final = b"\x1f\x8b"

_STRING: Final = rb'"[^"\\]*+(?:\\[\s\S][^"\\]*+)*+"'
_COMMENT: Final = rb"[ \t]*+#[^\n]*+\n"
_KEY: Final = rb"[^\\ \n]*+(?:\\[^\n][^\\ \n]*+)*+"
_FIELDS: Final = rb"[^=\n]*+(?:=(?:" + _STRING + rb'|(?!"))[^=\n]*+)*+'
_LINE: Final = rb"(?:" + _COMMENT + rb"|" + _KEY + _FIELDS + rb"\n)"
LINE: Final = re.compile(rb"(?:" + _LINE + rb"|[^\n]*+\n)")
"""One line; one with an unbalanced quote ends at its first newline."""
_COUNTED: Final = re.compile(rb"(" + _COMMENT + rb"|[ \t\r]*+\n)|" + _LINE + rb"|[^\n]*+\n")
"""As LINE, with comments and blank lines in a group."""


@dataclass(frozen=True, slots=True)
class Body:
    """Whole lines of one file. ``first_line`` is the file's number of the first (from 1), ``lines`` how many numbers
    they take; ``position`` is how many bytes of the file, as it lies, had been read."""

    file: str
    first_line: int
    lines: int
    data: bytes
    position: int

    @property
    def points(self) -> int:
        """Lines that should become rows: without comments and blank lines, a string's newlines not counted."""
        if b'"' not in self.data and b"#" not in self.data and b"\n\n" not in self.data:
            return self.lines
        return _COUNTED.findall(self.data).count(b"")


@contextlib.contextmanager
def open_lines(path: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The stream of lines, inflated if it is gzip, and the raw stream under it. ``-`` is standard input."""
    with contextlib.ExitStack() as stack:
        raw: IO[bytes] = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
        head = raw.peek(2)[:2] if hasattr(raw, "peek") else b""
        if head != GZIP_MAGIC:
            yield raw, raw
            return
        from isal import igzip

        inflate: Any = igzip.open
        yield stack.enter_context(inflate(raw, "rb")), raw


def bodies(path: str, lines_max: int) -> Generator[Body, None, None]:
    """The file in bodies of at most ``lines_max`` lines. Raises OSError; a broken gzip is an OSError too."""
    with open_lines(path) as (stream, raw):
        yield from bodies_of(stream, raw, path, lines_max)


def bodies_of(stream: IO[bytes], raw: IO[bytes], name: str, lines_max: int) -> Generator[Body, None, None]:
    """The same of an open file that is called ``name``; ``raw`` is what lies under ``stream``."""
    cutter = re.compile(rb"%b{1,%d}+" % (_LINE, lines_max))
    first_line, buffer, is_end = 1, b"", False
    while True:
        while not is_end and len(buffer) < BODY_BYTES_MAX:
            piece = _read(stream, name)
            is_end = not piece
            buffer += piece
        if is_end and buffer and not buffer.endswith(b"\n"):
            buffer += b"\n"
        if not buffer:
            return
        cut = _cut(cutter, buffer)
        data, buffer = buffer[:cut], buffer[cut:]
        newlines = data.count(b"\n")
        yield Body(name, first_line, newlines, data, raw.tell() if raw.seekable() else 0)
        first_line += newlines


def halves(body: Body) -> tuple[Body, Body] | None:
    """The same lines in two bodies; None if there is only one line."""
    ends = [match.end() for match in LINE.finditer(body.data)]
    if len(ends) < 2:
        return None
    cut = ends[len(ends) // 2 - 1]
    first, second = body.data[:cut], body.data[cut:]
    newlines = first.count(b"\n")
    return (
        Body(body.file, body.first_line, newlines, first, body.position),
        Body(body.file, body.first_line + newlines, body.lines - newlines, second, body.position),
    )


def _read(stream: IO[bytes], path: str) -> bytes:
    """The next piece. Raises OSError with the file's name, for broken gzip too."""
    from isal import igzip_lib

    broken: Any = igzip_lib.IsalError  # its stub says that it is a value
    try:
        return stream.read(READ_BYTES)
    except (OSError, EOFError, broken) as error:
        raise OSError(f"{path}: cannot be read: {error}") from error


def _cut(cutter: re.Pattern[bytes], buffer: bytes) -> int:
    """Where the next body ends. The buffer is full or the file's last, so what does not end in it never will."""
    match = cutter.match(buffer, 0, BODY_BYTES_MAX)
    if match is not None:
        return match.end()
    newline = buffer.find(b"\n")
    return newline + 1 if newline >= 0 else len(buffer)
