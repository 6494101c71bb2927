"""Deterministic line protocol for the loads: the same bytes on every machine and in every run.

Used by every benchmark. ``cpu`` is TSBS's "devops, cpu-only" table; the other kinds stress what it does not.

| kind | a line |
|---|---|
| cpu | 10 tags, 10 integer fields (``58i``), 100 hosts, a step of 10 s; about 345 bytes |
| cpuf | the same with doubles in their shortest form, 15 to 17 digits; about 486 bytes |
| narrow | 2 tags, 1 float with 2 decimals, 1,000 sensors, a step of 1 s; about 60 bytes |
| messy | escapes, quoted strings with newlines, every spelling of a bool, exponents, comments, CRLF, no timestamps |
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_SECONDS = 1_763_596_800
"""2025-11-20T00:00:00Z, the time of each kind's first line."""
START_NS = START_SECONDS * 1_000_000_000
HOSTS = 100
CPU_STEP_SECONDS = 10
SENSORS = 1000

FIELDS = (
    "usage_user", "usage_system", "usage_idle", "usage_nice", "usage_iowait",
    "usage_irq", "usage_softirq", "usage_steal", "usage_guest", "usage_guest_nice",
)  # fmt: skip
VALUES_PER_LINE = {"cpu": 10, "cpuf": 10, "narrow": 1}

_REGIONS = {
    "us-east-1": "abcde", "us-west-1": "ab", "us-west-2": "abc", "eu-west-1": "abc", "eu-central-1": "ab",
    "ap-southeast-1": "ab", "ap-southeast-2": "ab", "ap-northeast-1": "ac", "sa-east-1": "abc",
}  # fmt: skip
_SYSTEMS = ("Ubuntu16.10", "Ubuntu16.04LTS", "Ubuntu15.10")
_TEAMS = ("SF", "NYC", "LON", "CHI")
_ENVIRONMENTS = ("production", "staging", "test")
_BOOLS = ("true", "false", "T", "F", "t", "f", "TRUE", "FALSE")


def bodies(kind: str, lines: int, batch: int) -> list[bytes]:
    """``lines`` lines of ``kind`` in write bodies of ``batch`` lines; the last may be shorter.

    A line of ``messy`` counts as one though it may hold a newline in a string or bring a comment along.
    """
    source = islice(_KINDS[kind](), lines)
    found = []
    while chunk := list(islice(source, batch)):
        found.append("".join(chunk).encode())
    return found


def _pick(rng: np.random.Generator, values: str | tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def _host(rng: np.random.Generator, number: int) -> str:
    region = _pick(rng, tuple(_REGIONS))
    return (
        f"cpu,hostname=host_{number},region={region},datacenter={region}{_pick(rng, _REGIONS[region])},"
        f"rack={rng.integers(100)},os={_pick(rng, _SYSTEMS)},arch={_pick(rng, ('x64', 'x86'))},"
        f"team={_pick(rng, _TEAMS)},service={rng.integers(20)},service_version={rng.integers(2)},"
        f"service_environment={_pick(rng, _ENVIRONMENTS)}"
    )


def _cpu(value_format: str, whole: bool) -> Iterator[str]:
    """Each field is a clamped random walk, as in TSBS; all hosts report at each step."""
    rng = np.random.default_rng(123)
    hosts = [_host(rng, number) for number in range(HOSTS)]
    values = rng.uniform(0, 100, (HOSTS, len(FIELDS)))
    template = " " + ",".join(name + value_format for name in FIELDS) + " %d\n"
    now = START_NS
    while True:
        values = np.clip(values + rng.normal(0, 1, values.shape), 0, 100)
        rows = (values.astype(np.int64) if whole else values).tolist()
        for host, row in zip(hosts, rows, strict=True):
            yield host + template % (*row, now)
        now += CPU_STEP_SECONDS * 1_000_000_000


def _narrow() -> Iterator[str]:
    rng = np.random.default_rng(5)
    sensors = [f"temp,sensor=s{number},site=site{number % 20} value=" for number in range(SENSORS)]
    now = START_NS
    while True:
        for sensor, value in zip(sensors, rng.normal(20, 5, SENSORS).tolist(), strict=True):
            yield f"{sensor}{value:.2f} {now}\n"
        now += 1_000_000_000


def _messy() -> Iterator[str]:
    rng = np.random.default_rng(7)
    now = START_NS
    while True:
        for a, b, c, d in rng.integers(0, 1 << 30, (1000, 4)).tolist():
            yield _MESSY[d % len(_MESSY)](a, b, c, d, now)
            now += 1000


_MESSY: tuple[Callable[[int, int, int, int, int], str], ...] = (
    lambda a, b, c, d, t: f"cpu,host=h{a % 50},region=us\\ west load={b % 1000 / 10},up=t {t}\n",
    lambda a, b, c, d, t: (
        f'my\\ meas\\,x,tag\\=k=va\\,l\\ {a % 9},z=\u00fc{b % 3} f\\ 1="hello, \\"world\\" = {c % 100}",g={d}i {t}\n'
    ),
    lambda a, b, c, d, t: f'ev,app=a{a % 20} msg="line one\nline two {b % 7}",sev={c % 8}u,ok={_BOOLS[d % 8]}\n',
    lambda a, b, c, d, t: f"sci x={a}.5e-{b % 30},y=-{c % 100}.25E+{d % 20},z=-{a % 9}i {t}\n",
    lambda a, b, c, d, t: f"# comment {a}\nnet,if=eth{a % 4} rx={b}i,tx={c}i {t}\r\n",
    lambda a, b, c, d, t: f'  net,if=eth{a % 4} rx={b}i,tx={c}i,note="back\\\\slash"   {t}\n\n',
    lambda a, b, c, d, t: f'win,path=C:\\dir\\{a % 5} size={b},sha="{c:08x}" {t}\n',
)

_KINDS: dict[str, Callable[[], Iterator[str]]] = {
    "cpu": lambda: _cpu("=%di", whole=True),
    "cpuf": lambda: _cpu("=%r", whole=False),
    "narrow": _narrow,
    "messy": _messy,
}
