"""`runnel health`: is the server ready? For containers and scripts.

A container's engine runs this every few seconds for each node, so it must cost little: it imports the standard
library's HTTP client instead of the commands' own, and `quick` answers the usual command lines before the command
line's grammar is imported, which takes four times as long as the question.
"""

from __future__ import annotations

import http.client
import json
import sys
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from nodes.exitcodes import ExitCode
from nodes.settings import client_host

ANSWER_BYTES_MAX: Final = 64 * 1024
SECONDS_DEFAULT: Final = 5.0
SECONDS_MIN: Final = 0.1
PORTS: Final = {"http": 80, "https": 443}


class Answer(NamedTuple):
    """What ``GET /health`` or one of its kinds said; ``ready`` is its yes or no."""

    ready: bool
    status: int
    text: str


def health(host: str | None, timeout_seconds: float, *, is_json: bool, is_live_enough: bool = False) -> ExitCode:
    """0 if it is ready (or, if that is enough, live); 1 if it is not, or does not answer in time."""
    answer = _ask(host or client_host(), "/health/live" if is_live_enough else "/health", timeout_seconds)
    if is_json:
        sys.stdout.write(json.dumps(answer._asdict()) + "\n")
    else:
        stream = sys.stdout if answer.ready else sys.stderr
        stream.write((answer.text or f"status {answer.status}") + "\n")
    return ExitCode.OK if answer.ready else ExitCode.FAILURE


def quick(arguments: list[str]) -> ExitCode | None:
    """The answer to ``runnel health [--timeout SECONDS] [--host URL]``; None for any other form, and for help."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    try:
        seconds = float(options.pop("--timeout", SECONDS_DEFAULT))
    except ValueError:
        return None
    host = options.pop("--host", None)
    if options or len(arguments) % 2 or not SECONDS_MIN <= seconds < float("inf"):
        return None
    return health(host, seconds, is_json=False)


def _ask(host: str, path: str, seconds: float) -> Answer:
    url = host if "://" in host else f"http://{host}"
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError:
        name = port = None
    if not name or port is None:
        return Answer(False, 0, f"{host!r} is not a server; write http://HOST:PORT")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    link = kind(name, port, timeout=seconds)
    try:
        link.request("GET", parts.path.rstrip("/") + path)
        answer = link.getresponse()
        text = answer.read(ANSWER_BYTES_MAX).decode(errors="replace").strip()
        return Answer(answer.status == http.client.OK, answer.status, text)
    except TimeoutError:
        return Answer(False, 0, f"no answer within {seconds:g} s")
    except ConnectionRefusedError:
        return Answer(False, 0, f"no server answers at {url}; start one with `runnel start`, or name it with --host")
    except (OSError, http.client.HTTPException) as error:
        return Answer(False, 0, f"the connection to {url} broke: {str(error) or type(error).__name__}")
    finally:
        link.close()
