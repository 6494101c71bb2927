"""The doors' tables know every error that can reach them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

import pytest

import cluster
import engine
import nodes.gateway
import storage
import wire
from cluster.errors import ClusterError
from engine.errors import EngineError
from nodes.errors import INFLUX, V2_WORDS, HttpAnswer, Shape, influx_answer
from nodes.gateway.faults import GatewayError
from storage.errors import MemoryExhausted, StorageError
from wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOTS: list[type[Exception]] = [StorageError, EngineError, ClusterError, WireError, GatewayError]


def import_all() -> None:
    """Errors may be declared anywhere: import every module that is not a program."""
    for package in (storage, wire, engine, cluster, nodes.gateway):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def classes(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for child in root.__subclasses__():
        yield from classes(child)


def ours(root: type[Exception]) -> list[type[Exception]]:
    return [kind for kind in classes(root) if not kind.__module__.startswith("tests.")]


@pytest.mark.parametrize("root", ROOTS)
def test_every_code_has_an_answer(root: type[Exception]) -> None:
    import_all()
    missing = {kind.code for kind in ours(root)} - INFLUX.keys()  # type: ignore[attr-defined]
    assert not missing


def test_no_answer_is_for_nothing() -> None:
    import_all()
    codes = {kind.code for root in ROOTS for kind in ours(root)}  # type: ignore[attr-defined]
    assert INFLUX.keys() <= codes


@pytest.mark.parametrize("root", ROOTS)
def test_what_can_be_retried_says_so(root: type[Exception]) -> None:
    import_all()
    for kind in ours(root):
        answer = influx_answer(kind.__new__(kind))
        assert answer is not None
        if kind.retriable:  # type: ignore[attr-defined]
            assert answer.status == 503, kind
            assert answer.retry_after_seconds, kind
        else:
            assert answer.retry_after_seconds is None, kind


def test_every_status_has_v2s_word() -> None:
    assert {answer.status for answer in INFLUX.values()} <= V2_WORDS.keys()


def test_looking_up() -> None:
    assert influx_answer(MemoryExhausted("full")) == HttpAnswer(503, Shape.JSON, 1)
    assert influx_answer(ValueError("a bug")) is None
    assert influx_answer(OSError(5, "io")) is None
