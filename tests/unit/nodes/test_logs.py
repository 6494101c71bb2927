"""Log lines: form, fields, and what never gets into them."""

from __future__ import annotations

import io
import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from nodes import logs
from nodes.settings_kinds import Secret
from nodes.settings_model import LogsSettings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is the process's: give it back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def configured(**settings: str) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(LogsSettings(**settings), "n1", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_nodes_kind_stands_in_each_line() -> None:
    stream = io.StringIO()
    logs.configure(LogsSettings(), "n1", stream, kind="ingest")
    logging.getLogger("uvicorn.error").warning("a library's line")
    structlog.get_logger("nodes.x").info("ours")
    assert [(line["node"], line["kind"]) for line in lines(stream)] == [("n1", "ingest")] * 2


def test_json_lines_have_time_level_node_and_request_id() -> None:
    stream = configured()
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("nodes.x").info("wrote", rows=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "wrote",
        "rows": 3,
        "level": "info",
        "logger": "nodes.x",
        "node": "n1",
        "request_id": "r-1",
    }


def test_text_on_a_terminal_json_elsewhere() -> None:
    assert logs.is_text("auto", Terminal())
    assert not logs.is_text("auto", io.StringIO())
    assert logs.is_text("text", io.StringIO())
    assert not logs.is_text("json", Terminal())


def test_a_terminal_gets_colours() -> None:
    terminal = Terminal()
    logs.configure(LogsSettings(), "n1", terminal)
    structlog.get_logger("nodes.x").warning("slow", seconds=2)
    text = terminal.getvalue()
    assert "slow" in text
    assert "\x1b[" in text


def test_text_without_a_terminal_has_no_colours() -> None:
    stream = configured(format="text")
    structlog.get_logger("nodes.x").warning("slow", seconds=2)
    assert "\x1b[" not in stream.getvalue()
    assert "seconds=2" in stream.getvalue()


def test_levels() -> None:
    stream = configured(level="warning")
    log = structlog.get_logger("nodes.x")
    log.info("no")
    logging.getLogger("other").info("no")
    log.warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


@pytest.mark.parametrize("name", ["uvicorn.error", "aiohttp.server", "asyncio", "anything"])
def test_other_libraries_come_the_same_way(name: str) -> None:
    stream = configured()
    logging.getLogger(name).warning("half of %s is %d", "ten", 5)
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["node"]) == ("half of ten is 5", name, "n1")


def test_chatty_libraries_are_quiet() -> None:
    stream = configured(level="debug")
    for name in logs.QUIET:
        logging.getLogger(name).info("chat")
    assert lines(stream) == []


def test_python_warnings_come_the_same_way() -> None:
    stream = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    (line,) = lines(stream)
    assert "UserWarning: old" in line["event"]


TOKEN = "apiv3_Q2FuIHlvdSByZWFkIHRoaXM-_x"


@pytest.mark.parametrize(
    "fields",
    [
        {"token": TOKEN},
        {"authorization": f"Bearer {TOKEN}"},
        {"header": f"Token {TOKEN}"},
        {"header": "Basic dXNlcjpwYXNzd29yZA=="},
        {"url": "/query?db=x&u=joe&p=dXNlcjpwYXNzd29yZA=="},
        {"anything": f"the client sent {TOKEN}"},
        {"s3_secret_key": "dXNlcjpwYXNzd29yZA=="},
        {"setting": Secret("dXNlcjpwYXNzd29yZA==")},
        {"headers": {"authorization": f"Bearer {TOKEN}"}},
        {"error": ValueError(f"bad header Bearer {TOKEN}")},
    ],
)
@pytest.mark.parametrize("format", ["json", "text"])
def test_credentials_are_taken_out(fields: dict[str, Any], format: str) -> None:
    stream = configured(format=format)
    structlog.get_logger("nodes.x").error("refused", **fields)
    logging.getLogger("other").error("refused %s", fields)
    text = stream.getvalue()
    assert "refused" in text
    assert not [secret for secret in (TOKEN, "Q2FuIHlv", "dXNlcjpwYX") if secret in text]


def test_ordinary_words_stay() -> None:
    stream = configured()
    structlog.get_logger("nodes.x").info("Token bucket is basic", rows=1, path="/write?db=a&precision=ns")
    (line,) = lines(stream)
    assert line["event"] == "Token bucket is basic"
    assert line["path"] == "/write?db=a&precision=ns"


@pytest.mark.parametrize("format", ["json", "text"])
def test_tracebacks_do_not_show_local_variables(format: str) -> None:
    stream = configured(format=format)
    row_value = "41.5 degrees"
    try:
        assert len(row_value) == 12
        raise ZeroDivisionError("oops")
    except ZeroDivisionError:
        structlog.get_logger("nodes.x").exception("failed")
    text = stream.getvalue()
    assert "ZeroDivisionError: oops" in text
    assert "test_tracebacks_do_not" in text
    assert row_value not in text


def test_a_traceback_with_a_token_in_its_message() -> None:
    stream = configured()
    try:
        raise ValueError(f"Bearer {TOKEN}")
    except ValueError:
        structlog.get_logger("nodes.x").exception("failed")
    assert TOKEN not in stream.getvalue()


def test_long_values_are_cut() -> None:
    stream = configured()
    structlog.get_logger("nodes.x").info("large", body="x" * 100_000)
    assert len(stream.getvalue()) < 3000
    assert "(100000 characters)" in lines(stream)[0]["body"]
