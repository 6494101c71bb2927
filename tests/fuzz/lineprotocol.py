"""Coverage-guided fuzzing of the line protocol parsers.

    python -m tests.fuzz.lineprotocol [reference|differential] [libFuzzer options] [corpus folder]

``reference`` looks for anything but an answer from the plain parser; ``differential`` for an answer of the
kernel that differs from it. The first byte of an input chooses the precision and which bodies are strict;
the byte 0x1e separates bodies.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import atheris

with atheris.instrument_imports(include=["wire.lineprotocol.grammar", "wire.lineprotocol.reference"]):
    from wire.lineprotocol import grammar, reference

from tests.unit.wire.lineprotocol.comparing import LIMITS, assert_same, parse, plain
from wire.lineprotocol import Precision
from wire.lineprotocol.parser import KernelParser

if TYPE_CHECKING:
    from collections.abc import Callable

SEPARATOR: Final = b"\x1e"
SEEDS: Final = (
    b'\0m,t=x f=1,g=2i,h=3u,k=true,s="a\\"b" 1763596800\n',
    b'\1# c\r\nm\\ x,a\\,b=c\\=d f\\ 1="two\nlines" 1\r\n' + SEPARATOR + b'm f=1e-5\nm f="s"\n',
    b'\x0fm s="open\nm a=1 1\n' + SEPARATOR + b"m,time=1 v=1\nm v=1 99999999999999999999\n",
)

_PRECISIONS: Final = list(Precision)
_KERNEL = KernelParser(LIMITS)


def _split(data: bytes) -> tuple[Precision, list[bytes], list[bool]]:
    choice = data[0] if data else 0
    bodies = data[1:].split(SEPARATOR)
    return _PRECISIONS[choice % 5], bodies, [bool(choice >> (index % 5) & 8) for index in range(len(bodies))]


def check_reference(data: bytes) -> None:
    """The plain parser answers, and what it answers is sound."""
    precision, bodies, strict = _split(data)
    found = plain(parse(reference.ReferenceParser(LIMITS), *bodies, precision=precision, strict=strict))
    for body, lines, rows in zip(bodies, found["lines"], found["rows"], strict=True):
        assert 0 <= rows <= lines <= body.count(b"\n") + 1
    for error in found["errors"]:
        line = bodies[error.body].split(b"\n")[error.line - 1]
        assert grammar.skip_blanks(line, 0) < len(line)


def check_differential(data: bytes) -> None:
    """The kernel gives the same answer."""
    precision, bodies, strict = _split(data)
    assert_same(bodies, precision=precision, strict=strict, kernel=_KERNEL)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "reference": check_reference,
    "differential": check_differential,
}


def main() -> None:
    """Fuzz until libFuzzer's options say stop."""
    arguments = sys.argv[:]
    target = arguments.pop(1) if len(arguments) > 1 and arguments[1] in TARGETS else "differential"
    for seed in SEEDS:
        TARGETS[target](seed)
    atheris.Setup(arguments, TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
