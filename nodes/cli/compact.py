"""`runnel compact`: have a server merge what is worth it now, and show how far it is."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import msgspec

from nodes.cli.client import Client, raise_for_status, run
from nodes.exitcodes import ExitCode
from nodes.status import COMPACT_PATH, STATUS_PATH, Compacted, CompactionStatus, NodeStatus
from nodes.units import show_size_rounded

ANSWER_SECONDS_MAX: Final = 6 * 3600.0
"""How long a compaction may take before this command gives up waiting; the server goes on."""
LOOK_SECONDS: Final = 1.0


def compact(host: str | None, *, is_json: bool) -> ExitCode:
    """Wait until nothing is worth a merge any more."""
    before, after, merges = run(_compact(host, shows_progress=sys.stderr.isatty() and not is_json))
    files = after.files_in - before.files_in, after.files_out - before.files_out
    sizes = after.bytes_in - before.bytes_in, after.bytes_out - before.bytes_out
    failed = after.failed - before.failed
    if is_json:
        numbers = {"merges": merges, "failed": failed, "files_in": files[0], "files_out": files[1]}
        document = {**numbers, "bytes_in": sizes[0], "bytes_out": sizes[1]}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    elif merges:
        old, new = (show_size_rounded(size) for size in sizes)
        sys.stdout.write(f"{files[0]:,} files ({old}) became {files[1]:,} ({new}) in {counted(merges, 'merge')}\n")
    else:
        sys.stdout.write("nothing is worth a merge\n")
    if after.put_off:
        sys.stderr.write(f"put off: {after.put_off}\n")
    if failed:
        sys.stderr.write(f"{counted(failed, 'merge')} failed, to be tried again: see the server's log\n")
    return ExitCode.FAILURE if failed or after.put_off else ExitCode.OK


def counted(count: int, what: str) -> str:
    """A number of things in words."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


async def _compact(host: str | None, *, shows_progress: bool) -> tuple[CompactionStatus, CompactionStatus, int]:
    async with Client(host, ANSWER_SECONDS_MAX) as client:
        before = await _status(client)
        asked = asyncio.ensure_future(_ask(client))
        try:
            while shows_progress and not (await asyncio.wait({asked}, timeout=LOOK_SECONDS))[0]:
                now = await _status(client)
                done = f"{now.files_in - before.files_in:,} files merged, {now.waiting:,} merges to go"
                sys.stderr.write(f"\r{done:<60}")
                sys.stderr.flush()
            merges = (await asked).merges
        finally:
            asked.cancel()
            if shows_progress:
                sys.stderr.write("\r" + 60 * " " + "\r")
        return before, await _status(client), merges


async def _ask(client: Client) -> Compacted:
    async with client.request("POST", COMPACT_PATH) as answer:
        await raise_for_status(answer)
        return msgspec.json.decode(await answer.read(), type=Compacted)


async def _status(client: Client) -> CompactionStatus:
    return msgspec.json.decode(await client.get_bytes(STATUS_PATH), type=NodeStatus).compaction
