"""Doubles are bit for bit what Python's ``float`` makes of the same text."""

from __future__ import annotations

import math
import random
import struct

import numpy as np
import pytest

from tests.unit.wire.lineprotocol.comparing import LIMITS, parse
from wire.lineprotocol import numbers
from wire.lineprotocol.parser import KernelParser

RANDOM_DOUBLES = 150_000


def read(texts: list[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The bits the parser makes of each text."""
    body = "\n".join(f"m v={text} 1" for text in texts).encode()
    parsed = parse(KernelParser(LIMITS), body)
    assert parsed.errors == []
    assert parsed.rows.tolist() == [len(texts)]
    return np.frombuffer(parsed.tables[0].fields[0].values.buffers()[1], np.int64, len(texts))


def assert_exact(texts: list[str]) -> None:
    expected = np.array([float(text) for text in texts]).view(np.int64)
    wrong = np.flatnonzero(read(texts) != expected)
    assert [texts[index] for index in wrong[:5]] == []


def test_random_doubles_in_their_shortest_form() -> None:
    rng = random.Random(3)
    drawn = (struct.unpack("<d", rng.randbytes(8))[0] for _ in range(RANDOM_DOUBLES))
    assert_exact([repr(value) for value in drawn if math.isfinite(value)])


def test_everyday_doubles() -> None:
    rng = random.Random(4)
    texts = [repr(rng.uniform(-100, 100)) for _ in range(30_000)]
    texts += [f"{rng.gauss(20, 5):.{rng.randint(0, 12)}f}" for _ in range(30_000)]
    texts += [f"{rng.randint(0, 999)}.{rng.randint(0, 9)}e{rng.randint(-9, 9)}" for _ in range(10_000)]
    assert_exact(texts)


def test_mantissas_of_every_length_with_every_exponent() -> None:
    rng = random.Random(5)
    texts = [
        f"{rng.choice(('', '-'))}{rng.randrange(10 ** rng.randint(1, 25))}.{rng.randrange(10 ** rng.randint(1, 25))}"
        f"{rng.choice('eE')}{rng.choice(('', '+', '-'))}{rng.randint(0, 330)}"
        for _ in range(40_000)
    ]
    assert_exact(texts)


def halfway(mantissa: int, exponent: int) -> str:
    """The exact decimal text of the number between a double and the next."""
    numerator, power = 2 * mantissa + 1, exponent - 1
    if power >= 0:
        return str(numerator << power)
    digits = str(numerator * 5**-power)
    return f"{digits}e{power}"


def test_numbers_between_two_doubles_and_their_neighbours() -> None:
    rng = random.Random(6)
    texts = []
    for _ in range(3000):
        text = halfway(rng.getrandbits(52) | 1 << 52, rng.randint(-120, 60))
        digits, _, power = text.partition("e")
        power = power or "0"
        texts += [f"{int(digits) + step}e{power}" for step in (-1, 0, 1)]
        texts += [f"{digits[:19]}e{int(power) + len(digits) - 19}" for _ in range(1) if len(digits) > 19]
    texts += [str((1 << 53) + step) for step in range(1, 200)]
    texts += [str((1 << 54) + step) for step in range(1, 200)]
    assert_exact(texts)


@pytest.mark.parametrize(
    "text",
    [
        "0", "-0", "0.0", "-0.0e5", "5e-324", "4.9e-324", "2.4703282292062327e-324", "2.4703282292062328e-324",
        "2.2250738585072011e-308", "2.2250738585072014e-308", "1.7976931348623157e308", "1.7976931348623158e308",
        "1.7976931348623159e308", "1e308", "1e309", "-1e309", "1e-400", "0e400", "1e100000000000000000000",
        "1e-100000000000000000000", "9007199254740993", "9007199254740993.0000000000000000000000001",
        "123456789012345678901234567890", "0." + "0" * 400 + "1", "1" + "0" * 400, "0" * 400 + "1.5", "1e22", "1e23",
        "8.5e22", "9.5e-23", "1" * 19, "1" * 20, "18446744073709551615", "18446744073709551616",
        "7.3177701707893310e+15",
    ],
)  # fmt: skip
def test_hard_texts(text: str) -> None:
    assert_exact([text])


def test_the_kernel_decides_all_that_everyday_data_holds() -> None:
    """The way through Python is for what is rare; were it common, it would be slow."""
    decided, bits = numbers.double_bits(np.uint64(1234567890123456789), -17)
    assert decided
    assert struct.unpack("<d", struct.pack("<q", bits))[0] == 12.34567890123456789
    assert not numbers.double_bits(np.uint64(5), -324)[0]
