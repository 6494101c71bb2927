"""What DataFusion says becomes an error of ours; the family is complete."""

from __future__ import annotations

import inspect

import pytest

from engine import errors
from engine.session import planning_error, running_error
from storage.errors import SnapshotTooOld, StoreUnavailable

FAMILY = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.EngineError)]


def test_codes_are_unique_and_documented() -> None:
    assert len({c.code for c in FAMILY}) == len(FAMILY)
    assert all(c.__doc__ for c in FAMILY)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('SQL error: ParserError("Expected: end of statement")', errors.InvalidStatement),
        ("Schema error: No field named nope.", errors.InvalidStatement),
        ("Error during planning: table 'public.iox.nope' not found", errors.UnknownTable),
        ("Error during planning: DDL not supported: CreateMemoryTable", errors.NotReadOnly),
        ("Error during planning: DML not supported: Insert", errors.NotReadOnly),
        ("Error during planning: Statement not supported: SetVariable", errors.NotReadOnly),
        ("This feature is not implemented: Unsupported SQL statement: BEGIN", errors.NotSupported),
        ("DataFusion error: Resources exhausted: Failed to allocate", errors.QueryMemoryExhausted),
    ],
)
def test_planning_errors(text: str, kind: type[Exception]) -> None:
    error = planning_error(ValueError(text))
    assert type(error) is kind


def test_an_unknown_table_is_named_as_the_user_named_it() -> None:
    error = planning_error(ValueError("Error during planning: table 'public.iox.nope' not found"))
    assert str(error) == "Error during planning: table 'nope' not found"


SCAN = "DataFusion error: Parquet error: External: Compute error: Error evaluating filter predicate:"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("DataFusion error: Arrow error: Divide by zero error", errors.StatementFailed),
        (f'{SCAN} ArrowError(DivideByZero, Some(""))', errors.StatementFailed),
        (f"{SCAN} ArrowError(CastError(\"Cannot cast string 'x' to Int32\"), None)", errors.StatementFailed),
        (f'{SCAN} ArrowError(MemoryError("x"), None)', errors.QueryFailed),
        ("DataFusion error: Internal error: a bug", errors.QueryFailed),
        ("DataFusion error: Not enough memory to continue external sort", errors.QueryMemoryExhausted),
        ("Object Store error: Object at location /x/y.parquet not found: No such file", SnapshotTooOld),
        ("Object Store error: Generic S3 error: Error performing GET: timed out", StoreUnavailable),
    ],
)
def test_running_errors(text: str, kind: type[Exception]) -> None:
    error = running_error(Exception(text))
    assert type(error) is kind
    assert not str(error).startswith("DataFusion error")


def test_trying_again_helps_where_it_says_so() -> None:
    assert {c.code for c in FAMILY if c.retriable} == {
        "query_memory_exhausted",
        "query_cancelled",
        "too_many_queries",
    }
