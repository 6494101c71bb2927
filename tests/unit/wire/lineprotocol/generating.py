"""Bodies for the differential tests: lines that are mostly good, made of parts that collide, and mutations of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

_TABLES = ("m", "cpu", "a\\,b", "we\\ ir\\\\d", "_runnel_x", "ü", "a=b", '"q"', "t\\tab")
_KEYS = ("h", "host", "region", "time", "k\\=ey", "k\\ x", "a,b", "_runnel_tag", "é", "\\z", "nl\\\nin")
_TAG_VALUES = ("a", "b", "c=d", "x\\ y", "v\\,w", "C:\\dir", "日本", '"', "\\\\z", "e\\")
_FIELDS = ("v", "f", "g", "host", "h", "usage", "time", "f\\ 1", "a,b", "a\\,b", "_runnel_f", "end\\\\", "nl\\\nf", '"')
_NUMBERS = (
    "1", "-1", "0", "-0", "1.5", "-2.25e10", "1e-5", "1E+5", "1e400", "0.1", "123456789012345678901234567890", "1.",
    ".5", "+1", "1e", "1e+", "1.5i", "9007199254740993", "5e-324", "2.2250738585072011e-308", "00012.500",
    "0.000000000000000000000000000000012345", "1i", "-1i", "9223372036854775807i", "9223372036854775808i",
    "-9223372036854775808i", "-9223372036854775809i", "18446744073709551615u", "18446744073709551616u", "7u", "-7u",
    "99999999999999999999999i", "99999999999999999999999u", "000000000000000000000000000001i", "-", "nan", "0x10",
)  # fmt: skip
_BOOLS = ("t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE", "tru", "TrUE", "falsey", "tRUE", "no")
_STRINGS = (
    '""',
    '"x"', '"a b,c=d"', '"two\nlines"', '"q\\"q"', '"b\\\\"', '"b\\z"', '"é日"', '"open', '"odd"x', '"\\"', '"\r\n"',
)  # fmt: skip
_TIMES = (
    "", " 1", " -5", " 1763596800", " 1763596800123", " 1763596800123456", " 1763596800123456789", "  7  ", " 0",
    " 9223372036854775807", " 9223372036854775808", " -9223372036854775808", " -9223372036854775809", " x", " 1x",
    " 1 2", " 00000000000000000000000000000012", " 9223372036", " 9223372037", " 4999999999", " 5000000000", " ", " -",
)  # fmt: skip
_BETWEEN = (*["\n"] * 20, "\r\n", "\n\n", "\n \t\n", "\n# comment\n", '\n#x y="\n', "", "\\\n", "\r")
_LEADS = (*[""] * 8, " ", "\t", "  \t", "\r\n")


def value(rng: random.Random) -> str:
    """A field's value, mostly good."""
    return rng.choice(rng.choice((_NUMBERS, _NUMBERS, _BOOLS, _STRINGS)))


def _field_value(rng: random.Random, plain: bool) -> str:
    return value(rng) if rng.random() < (0.1 if plain else 0.3) else rng.choice(("1", "-2.5", "1"))


def line(rng: random.Random) -> str:
    """One line; how often it is good depends on what it is made of."""
    plain = rng.random() < 0.7
    table = rng.choice(_TABLES[:2] if plain else _TABLES)
    tags = "".join(
        f",{rng.choice(_KEYS[:3] if plain else _KEYS)}={rng.choice(_TAG_VALUES[:3] if plain else _TAG_VALUES)}"
        for _ in range(rng.choice((0, 1, 1, 2)))
    )
    fields = ",".join(
        f"{rng.choice(_FIELDS[:3] if plain else _FIELDS)}={_field_value(rng, plain)}"
        for _ in range(rng.choice((1, 1, 2, 3)))
    )
    time = rng.choice(("", " 1", " 1763596800", " 17", rng.choice(_TIMES)))
    return f"{rng.choice(_LEADS)}{table}{tags} {fields}{time}"


def body(rng: random.Random, lines_max: int = 8) -> bytes:
    """A body of lines with all that can stand between them."""
    return "".join(line(rng) + rng.choice(_BETWEEN) for _ in range(rng.randint(0, lines_max))).encode()


def mutated(rng: random.Random, good: bytes) -> bytes:
    """The body with a few bytes changed, most of them to those that mean something."""
    changed = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(changed))
        what = rng.randint(0, 3)
        byte = rng.choice(b' ,=\\"\n\r\t\0#i1ue.-tT\xc3\xff')
        if what == 0 and at < len(changed):
            changed[at] = byte
        elif what == 1 and at < len(changed):
            del changed[at]
        elif what == 2:
            changed.insert(at, byte)
        else:
            changed[at:at] = changed[at : at + rng.randint(0, 20)]
    return bytes(changed)
