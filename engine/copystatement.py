"""``COPY ... TO 'file'`` and ``COPY table FROM 'file'``: DataFusion never sees them, whatever they name.

The backends of `nodes` ask here first; `nodes.copying` carries them out, where an operator allows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.errors import InvalidStatement
from engine.names import Token, first_word, without_end

USAGE: Final = "write COPY (SELECT ...) TO 'file', COPY table TO 'file', or COPY table FROM 'file'"


@dataclass(frozen=True, slots=True)
class Copy:
    """What is copied: the rows of ``query`` to ``file``, or, if that is None, those of ``file`` to ``table``."""

    file: str
    query: str | None
    table: str


def is_copy(statement: str) -> bool:
    """Whether it begins as a COPY does."""
    return first_word(statement) == "copy"


def copy_of(statement: str) -> Copy:
    """What a COPY asks for. Raises InvalidStatement."""
    found = without_end(statement)
    if len(found) < 4 or found[-1].kind != "string" or found[-1].text[0] != "'" or found[-2].kind != "word":
        raise InvalidStatement(USAGE)
    direction, file = found[-2].text.lower(), found[-1].text[1:-1].replace("''", "'")
    source = found[1:-2]
    name = source[0].name if len(source) == 1 and source[0].kind in ("word", "quoted") else ""
    if direction == "to" and name:
        spelt = statement[source[0].start : source[0].end]
        return Copy(file, f"SELECT * FROM {spelt}", name)  # noqa: S608 - it is a name, as the lexer says
    if direction == "to" and _is_enclosed(source):
        return Copy(file, statement[source[0].end : source[-1].start], "")
    if direction == "from" and name:
        return Copy(file, None, name)
    raise InvalidStatement(USAGE)


def _is_enclosed(source: list[Token]) -> bool:
    """Whether the first parenthesis is closed by the last token, and not before."""
    depth = 0
    for place, token in enumerate(source):
        depth += (token.text == "(") - (token.text == ")") if token.kind == "symbol" else 0
        if depth <= 0:
            return place == len(source) - 1 and place > 1
    return False
