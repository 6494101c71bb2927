"""`runnel health`: is the server ready? For containers and scripts."""

from __future__ import annotations

import asyncio
import json
import sys

from nodes.cli.client import Client, HealthAnswer, run
from nodes.exitcodes import ExitCode, ServerUnreachable


def health(host: str | None, timeout_seconds: float, *, is_json: bool, is_live_enough: bool = False) -> ExitCode:
    """0 if it is ready (or, if that is enough, live); 1 if it is not, or does not answer in time."""
    path = "/health/live" if is_live_enough else "/health"
    answer: HealthAnswer = run(_ask(host, timeout_seconds, path))
    if is_json:
        sys.stdout.write(json.dumps({"ready": answer.ready, "status": answer.status, "text": answer.text}) + "\n")
    else:
        stream = sys.stdout if answer.ready else sys.stderr
        stream.write((answer.text or f"status {answer.status}") + "\n")
    return ExitCode.OK if answer.ready else ExitCode.FAILURE


async def _ask(host: str | None, timeout_seconds: float, path: str) -> HealthAnswer:
    try:
        async with asyncio.timeout(timeout_seconds), Client(host) as client:
            return await client.health(path)
    except TimeoutError:
        return HealthAnswer(ready=False, status=0, text=f"no answer within {timeout_seconds:g} s")
    except ServerUnreachable as error:
        return HealthAnswer(ready=False, status=0, text=str(error))
