"""What names a SQL statement uses, by a small lexer: no grammar, no guesses about meaning.

The engine takes from it which tables a statement can mean (a superset is enough) and rewrites unquoted names
that differ from a table's or column's name in case only.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.errors import AmbiguousName, InvalidStatement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from storage.schema import Table

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
_TIME: Final = "time"
_TIME_TEXT: Final = re.compile(r"'(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z?)?'")
_TIME_MAX: Final = 2**63 - 1
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NOT_PLAIN_WORDS: Final = "or xor not between case join union intersect except with lateral table values unnest"
_NOT_PLAIN: Final = frozenset(_NOT_PLAIN_WORDS.split())
"""Next to one of these a comparison in the WHERE clause may not hold for every row, or not of the table."""
CHANGES: Final = frozenset({"insert", "update", "delete", "truncate"})
_BEFORE_TARGET: Final = frozenset({"into", "from", "table"})
_UNSTEADY: Final = frozenset({"random", "uuid"})
_AFTER_WHERE: Final = frozenset({"group", "order", "limit", "having", "offset", "qualify", "window"})
DESCRIBING: Final = frozenset({"show", "describe", "desc"})
INFORMATION_SCHEMA: Final = "information_schema"
STATEMENT_CHARS_MAX: Final = 2**20
OPERATORS_MAX: Final = 2_000
"""DataFusion walks expressions by recursion and ends the process when a stack overflows (at about 10,000)."""


class Token(NamedTuple):
    """A piece of a statement: ``kind`` is word, quoted, string, param, number or symbol; spaces are dropped."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """An unquoted word in lower case; "" for any other token."""
        return self.text.lower() if self.kind == "word" else ""

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


def mentioned_tables(statement: str, tables: Sequence[Table]) -> list[Table]:
    """The tables whose rows a statement may read. Raises InvalidStatement for one too long or too deep."""
    if len(statement) > STATEMENT_CHARS_MAX:
        raise InvalidStatement(f"the statement is longer than {STATEMENT_CHARS_MAX} characters")
    if operators(statement) > OPERATORS_MAX:
        raise InvalidStatement(f"the statement has more than {OPERATORS_MAX} operators; use IN (...) for long lists")
    if first_word(statement) in DESCRIBING:
        return []
    # A quoted string may be a table's name too, but next to information_schema it is a value to compare with.
    in_strings = not describes(statement)
    found = set(mentioned(statement, [table.name for table in tables], in_strings))
    return [table for table in tables if table.name in found]


def describes(statement: str) -> bool:
    """Whether a statement is about the schema; the DESC of an ORDER BY is not."""
    return first_word(statement) in DESCRIBING or INFORMATION_SCHEMA in words(statement)


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
    """Whether word `i` can be a column or table: not reserved, and not a function's name.

    After the table of an INSERT a parenthesis begins its list of columns.
    """
    if all_tokens[i].text.lower() in RESERVED:
        return False
    is_called = i + 1 < len(all_tokens) and all_tokens[i + 1].text == "("
    return not is_called or (i > 0 and all_tokens[i - 1].text.lower() == "into")


def first_word(statement: str) -> str:
    """The word that a statement begins with, in lower case."""
    found = tokens(statement)
    return found[0].word if found else ""


def without_end(statement: str) -> list[Token]:
    """The tokens of a statement without the semicolons that end it."""
    found = list(tokens(statement))
    while found and found[-1].kind == "symbol" and found[-1].text == ";":
        found.pop()
    return found


def is_change(statement: str) -> bool:
    """Whether a statement begins as one that writes rows does."""
    return first_word(statement) in CHANGES


def change_target(statement: str) -> tuple[str, ...]:
    """The parts of the name of the table that is written, as they are spelt; none if it is not where it is expected."""
    found = tokens(statement)
    at = 1
    while at < len(found) and found[at].kind == "word" and found[at].text.lower() in _BEFORE_TARGET:
        at += 1
    parts: list[str] = []
    while at < len(found) and found[at].kind in ("word", "quoted"):
        parts.append(found[at].name)
        if at + 1 == len(found) or found[at + 1].text != ".":
            break
        at += 2
    return tuple(parts)


def is_unsteady(statement: str) -> bool:
    """Whether it may call a function that says something else for each row it is asked for."""
    called = {token.name.lower() for token in tokens(statement) if token.kind in ("word", "quoted")}
    return not _UNSTEADY.isdisjoint(called)


def is_backwards(statement: str) -> bool:
    """Whether an = or IN may have something else than a column before it."""
    found = [token for token in tokens(statement) if token.text.lower() != "not"]
    for before, token in itertools.pairwise(found):
        is_comparison = token.text == "=" if token.kind == "symbol" else token.text.lower() == "in"
        if is_comparison and (before.kind not in ("word", "quoted") or before.text.lower() == "end"):
            return True
    return False


def operators(statement: str) -> int:
    """How many operators a statement has that may nest: an upper bound of the depth of its plan."""
    return sum(
        token.text not in _FLAT if token.kind == "symbol" else token.text.lower() in _NESTING
        for token in tokens(statement)
        if token.kind in ("symbol", "word")
    )


def times(statement: str) -> tuple[int, int] | None:
    """The inclusive times in ns, of the one table it reads, outside of which a statement needs no row.

    Understands ``WHERE time >= '2025-11-20T00:00:00Z' AND ...`` of a plain SELECT from one table, and says None
    where it is in doubt: what it leaves out cannot be put back.
    """
    found = tokens(statement)
    lowered = [token.word for token in found]
    if any(lowered.count(word) != 1 for word in ("select", "from", "where")) or _NOT_PLAIN.intersection(lowered):
        return None
    table, where = lowered.index("from") + 1, lowered.index("where")
    if where - table not in (1, 3) or any(found[i].kind == "symbol" for i in range(table, where, 2)):
        return None
    if where - table == 3 and found[table + 1].text != ".":
        return None
    low, high = -_TIME_MAX - 1, _TIME_MAX
    for condition in _conjuncts(found[where + 1 :]):
        bounds = _bounds(condition)
        if bounds is not None:
            low, high = max(low, bounds[0]), min(high, bounds[1])
    return low, high


def _conjuncts(found: Sequence[Token]) -> list[list[Token]]:
    """The conditions of a WHERE clause without OR."""
    conditions: list[list[Token]] = [[]]
    depth = 0
    for token, after in itertools.zip_longest(found, found[1:]):
        depth += (token.text in "([{") - (token.text in ")]}") if token.kind == "symbol" else 0
        word = token.text.lower() if token.kind == "word" and depth == 0 else ""
        if word in _AFTER_WHERE or (token.text == ";" and token.kind == "symbol"):
            break
        if after is not None and (token.text, after.text) == ("|", ">"):
            break  # what a pipe does with the rows
        if word == "and":
            conditions.append([])
        else:
            conditions[-1].append(token)
    return conditions


def _bounds(condition: Sequence[Token]) -> tuple[int, int] | None:
    """The inclusive times that ``time <operator> 'constant'`` leaves; None if the condition is none such."""
    if len(condition) < 3 or condition[0].kind not in ("word", "quoted") or condition[0].name != _TIME:
        return None
    operator = "".join(token.text for token in condition[1:-1] if token.kind == "symbol")
    value = _nanoseconds(condition[-1])
    if value is None or len(operator) != len(condition) - 2:
        return None
    if operator in (">=", ">"):
        return value + (operator == ">"), _TIME_MAX
    if operator in ("<=", "<"):
        return -_TIME_MAX - 1, value - (operator == "<")
    return (value, value) if operator == "=" else None


def _nanoseconds(token: Token) -> int | None:
    """A time as ns since 1970; None for what is written otherwise, does not exist, or does not fit."""
    match = _TIME_TEXT.fullmatch(token.text) if token.kind == "string" else None
    if match is None:
        return None
    *parts, fraction = match.groups(default="0")
    try:
        moment = datetime.datetime(*map(int, parts), tzinfo=datetime.UTC)  # type: ignore[misc, arg-type]
    except ValueError:
        return None
    seconds = (moment - _EPOCH) // datetime.timedelta(seconds=1)
    value = seconds * 10**9 + int(fraction.ljust(9, "0"))
    return value if abs(value) < _TIME_MAX else None
