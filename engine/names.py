"""What names a SQL statement uses, by a small lexer: no grammar, no guesses about meaning.

The engine takes from it which tables a statement can mean (a superset is enough) and rewrites unquoted names
that differ from a table's or column's name in case only.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.errors import AmbiguousName

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STATEMENTS_KEPT: Final = 256
_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+ | --[^\n]*)
    | (?P<string>[eEnNbBxX]?'(?:[^']|'')*')
    | (?P<dollar>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | (?P<param>\$\w+)
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<word>[^\W\d][\w$]*)
    | (?P<number>\d[\w.]*)
    | (?P<symbol>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_RESERVED_WORDS: Final = """
all analyze and any as asc between by case cast cross current_date current_time current_timestamp desc describe
distinct else end except exists explain extract false fetch filter first following for from full group having ignore
ilike in inner intersect interval into is join last lateral left like limit natural not null nulls offset on or order
outer over partition preceding qualify range recursive respect right row rows select set show similar some table then
to trim true unbounded union unnest using values verbose when where window with within
"""
RESERVED: Final = frozenset(_RESERVED_WORDS.split())
"""Words that cannot stand for a column or table without quotes."""
_NESTING_WORDS: Final = "and between except in intersect is join like ilike not or over select similar union"
_NESTING: Final = frozenset(_NESTING_WORDS.split())
_FLAT: Final = frozenset(",().;")


class Token(NamedTuple):
    """A piece of a statement: ``kind`` is word, quoted, string, param, number or symbol; spaces are dropped."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The identifier that a word or quoted token means."""
        return self.text[1:-1].replace('""', '"') if self.kind == "quoted" else self.text


@functools.lru_cache(maxsize=STATEMENTS_KEPT)
def tokens(statement: str) -> tuple[Token, ...]:
    """The tokens of a statement without spaces and comments. Any text has tokens; nothing is raised."""
    found = []
    at = 0
    while at < len(statement):
        if statement.startswith("/*", at):
            at = _comment_end(statement, at)
            continue
        match = _TOKEN.match(statement, at)
        assert match is not None  # the last alternative takes any character
        kind = match.lastgroup if match.lastgroup != "tag" else "dollar"
        if kind != "space":
            found.append(Token(str(kind), match.group(), at, match.end()))
        at = match.end()
    return tuple(found)


def words(statement: str) -> frozenset[str]:
    """The unquoted words of a statement in lower case."""
    return frozenset(token.text.lower() for token in tokens(statement) if token.kind == "word")


def mentioned(statement: str, names: Iterable[str], in_strings: bool = True) -> list[str]:
    """Those of `names` that the statement may mean: a superset, exact or, when unquoted, in another case.

    `FROM 'cpu'` is a table too; `in_strings` false leaves strings out.
    """
    exact = {token.name for token in tokens(statement) if token.kind in ("word", "quoted")}
    if in_strings:
        exact |= {token.text[1:-1].replace("''", "'") for token in tokens(statement) if token.kind == "string"}
    folded = words(statement)
    return [name for name in names if name in exact or name.lower() in folded]


def rewrite(statement: str, names: Iterable[str]) -> str:
    """Quote unquoted names that match one of `names`, or an alias of the statement, in another case only.

    Raises AmbiguousName when a word matches several names and none exactly.
    """
    known = set(names)
    spellings: dict[str, set[str]] = defaultdict(set)
    for name in known:
        spellings[name.lower()].add(name)
    all_tokens = tokens(statement)
    for alias in _aliases(all_tokens):
        if alias.lower() not in spellings:
            spellings[alias.lower()].add(alias)
            known.add(alias)
    pieces, at = [], 0
    for i, token in enumerate(all_tokens):
        if token.kind != "word" or token.text in known or not _may_be_name(all_tokens, i):
            continue
        candidates = spellings.get(token.text.lower(), set())
        if len(candidates) > 1:
            listed = ", ".join(f'"{name}"' for name in sorted(candidates))
            raise AmbiguousName(f"{token.text} is ambiguous: write one of {listed}")
        for name in candidates:
            pieces += [statement[at : token.start], '"' + name.replace('"', '""') + '"']
            at = token.end
    return "".join([*pieces, statement[at:]])


def _comment_end(statement: str, at: int) -> int:
    """The end of a block comment, which may hold others."""
    depth = 0
    for mark in re.finditer(r"/\*|\*/", statement[at:]):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return at + mark.end()
    return len(statement)


def _aliases(all_tokens: Sequence[Token]) -> list[str]:
    """Names that the statement itself gives: what follows AS, and the names of WITH."""
    found = []
    for before, after in itertools.pairwise(all_tokens):
        if before.text.lower() == "as" and before.kind == "word" and after.kind in ("word", "quoted"):
            found.append(after.name)
        elif after.text.lower() == "as" and after.kind == "word" and before.kind in ("word", "quoted"):
            found.append(before.name)
    return [name for name in found if name.lower() not in RESERVED]


def _may_be_name(all_tokens: Sequence[Token], i: int) -> bool:
    """Whether word `i` can be a column or table: not reserved, and not a function's name."""
    if all_tokens[i].text.lower() in RESERVED:
        return False
    return i + 1 == len(all_tokens) or all_tokens[i + 1].text != "("


def first_word(statement: str) -> str:
    """The word that a statement begins with, in lower case."""
    found = tokens(statement)
    return found[0].text.lower() if found and found[0].kind == "word" else ""


def operators(statement: str) -> int:
    """How many operators a statement has that may nest: an upper bound of the depth of its plan."""
    return sum(
        token.text not in _FLAT if token.kind == "symbol" else token.text.lower() in _NESTING
        for token in tokens(statement)
        if token.kind in ("symbol", "word")
    )
