"""The kernel against the reference: equal answers on generated, mutated and arbitrary bodies."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.lines import bodies
from tests.unit.wire.lineprotocol.comparing import LIMITS, assert_same, nothing_known
from tests.unit.wire.lineprotocol.generating import body, mutated
from wire.lineprotocol import FieldType, KnownTable, ParserLimits, Precision
from wire.lineprotocol.parser import KernelParser

if TYPE_CHECKING:
    from collections.abc import Callable

WIDE = KnownTable(1, ("h", "region"), {"v": FieldType.FLOAT64, "x": FieldType.STRING, "usage": FieldType.INT64})
NARROW = KnownTable(2, (), {"v": FieldType.INT64})
CATALOGS: list[Callable[[str], KnownTable | None]] = [
    nothing_known,
    {"m": WIDE, "cpu": NARROW}.get,
    {"m": NARROW, "cpu": WIDE}.get,
]
TIGHT = [
    LIMITS,
    LIMITS,
    ParserLimits(errors_max=2),
    ParserLimits(columns_max=4),
    ParserLimits(string_bytes_max=3, name_bytes_max=4),
    ParserLimits(cells_max=9),
    ParserLimits(series_bytes_max=3000),
]
# Kept over all examples: what earlier calls taught a parser must never show in an answer.
KERNELS = [KernelParser(limits) for limits in TIGHT]


def check(rng: random.Random, mutate: bool) -> None:
    """One call with everything drawn from ``rng``."""
    drawn = [body(rng) for _ in range(rng.choice((1, 1, 2, 4)))]
    if mutate:
        drawn = [mutated(rng, one) for one in drawn]
    strict = rng.choice((None, [rng.random() < 0.5 for _ in drawn]))
    which = rng.randrange(len(TIGHT))
    assert_same(
        drawn,
        precision=rng.choice(list(Precision)),
        known=rng.choice(CATALOGS),
        strict=strict,
        limits=TIGHT[which],
        kernel=KERNELS[which],
    )


@pytest.mark.parametrize("mutate", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_generated_bodies(seed: int, mutate: bool) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        check(rng, mutate)


@given(st.integers(0, 1 << 62), st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_drawn_bodies(seed: int, mutate: bool) -> None:
    check(random.Random(seed), mutate)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
@example([b"\\"])
@example([b'm k="\\', b'"\n'])
@example([b"m " + b"=" * 40])
@example([b"nl\\\nin 1"])
def test_arbitrary_bytes(drawn: list[bytes]) -> None:
    assert_same(drawn, kernel=KERNELS[0])


@given(st.text(alphabet=' ,=\\"\n\r\t#01i.ue-tfTA\0é', max_size=80))
@settings(max_examples=600, deadline=None)
def test_arbitrary_text_of_the_grammars_own_characters(text: str) -> None:
    assert_same([text.encode()], kernel=KERNELS[0])
    assert_same([f"m f=1,{text}".encode(), b"m f=1"], kernel=KERNELS[0])


@given(st.sampled_from([b"m f=", b"m ", b"m,t=", b"m f=1 "]), st.text(alphabet='0123456789eE+-.iu "\\', max_size=30))
@settings(max_examples=600, deadline=None)
def test_arbitrary_values(lead: bytes, text: str) -> None:
    assert_same([lead + text.encode()], precision=Precision.SECOND, kernel=KERNELS[0])


@pytest.mark.parametrize("kind", ["cpu", "cpuf", "narrow", "messy"])
@pytest.mark.parametrize("batch", [2000, 37, 1])
def test_the_benchmarks_own_lines(kind: str, batch: int) -> None:
    found = assert_same(bodies(kind, 2000 if batch > 1 else 200, batch))
    assert found["errors"] == []
    assert sum(found["rows"]) == (2000 if batch > 1 else 200)


def test_every_cut_of_a_body() -> None:
    whole = 'm,a\\ b=c\\,d,é=x f="q\\"z\nw",g=-1.5e3,h=12i,j=7u,k=true 1763596800\r\n# c\n m2 f=1'.encode()
    for cut in range(len(whole) + 1):
        assert_same([whole[:cut], whole[cut:]], kernel=KERNELS[0])
