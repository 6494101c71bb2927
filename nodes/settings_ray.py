"""The settings of the workers that large queries run on. Values only; `nodes.rayhead` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodes.settings_kinds import AUTO, COUNT, SIZE, TEXT, Kind, at_least, optional, parse_address, setting

LOCAL: Final = "local"
SIZE_MIN: Final = 2**20


def _place(value: object) -> str:
    text = str(value).strip()
    if text in ("", LOCAL):
        return text
    address = parse_address(text)
    if address.port == 0:
        raise ValueError("port 0 reaches nobody")
    return str(address)


PLACE: Final = Kind("Ray head", "empty, `local`, or HOST:PORT, such as 10.0.0.9:6379", _place)


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Workers for large queries, on Ray (`pip install 'runnel[ray]'`)."""

    address: str = setting(
        "",
        PLACE,
        "`local`: Ray is started in this machine when a query first wants it. HOST:PORT: the Ray head that this "
        "machine's Ray node belongs to. Empty: every query runs in its own process.",
    )
    workers: int | None = setting(
        AUTO, optional(at_least(COUNT, 1), AUTO), "Worker processes, about 170 MB each. auto: the CPUs that Ray has."
    )
    worker_memory: int = setting(
        "512 MiB",
        at_least(SIZE, SIZE_MIN),
        "Memory for the tasks of one worker; they spill, up to `query.spill_bytes_max`, into the system's folder for "
        "temporary files.",
    )
    object_memory: int = setting(
        "256 MiB", at_least(SIZE, 80 * SIZE_MIN), "Shared memory for what tasks hand on, where Ray is started here."
    )
    token_file: str = setting(
        "",
        TEXT,
        "File with the token that every process of the Ray cluster must have. Empty: `ray-token` in `data.dir`, made "
        "at need.",
    )
    query_bytes_min: int = setting("64 MiB", SIZE, "A query that reads files of this size runs on workers.")
    shuffle_bytes_min: int = setting(
        "256 MiB", SIZE, "From this size on workers also divide joins and groups among themselves."
    )
    task_bytes: int = setting("32 MiB", at_least(SIZE, 1024), "Bytes of files for one task.")
    shuffle_bytes_max: int = setting(
        "2 GiB", SIZE, "What the tasks of one query may hand on; over it the query runs in its own process."
    )
