"""``KILL QUERY 'id'``: the one statement that DataFusion never sees. The backends of `nodes` ask here first."""

from __future__ import annotations

import re
from typing import Final

from engine.errors import InvalidStatement
from engine.names import without_end

CHARACTERS_MAX: Final = 1_000
USAGE: Final = "write KILL QUERY 'id', with an id from system.queries"
_KILL: Final = re.compile(r"(?:\s|--[^\n]*\n|(?>/\*.*?\*/))*+kill\b", re.IGNORECASE | re.DOTALL)
"""Possessive: a statement that begins with many comments is looked at once."""


def killed_id(statement: str) -> str | None:
    """The id of the query that the statement kills; None if it is another statement. Raises InvalidStatement."""
    if _KILL.match(statement) is None:
        return None
    if len(statement) > CHARACTERS_MAX:
        raise InvalidStatement(f"{USAGE}; this one has {len(statement)} characters")
    kinds = [(token.kind, token.text) for token in without_end(statement)]
    match kinds:
        case [("word", _), ("word", word), ("string", quoted)] if word.lower() == "query" and quoted[0] == "'":
            return quoted[1:-1].replace("''", "'")
    raise InvalidStatement(USAGE)
