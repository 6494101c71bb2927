"""Ray as the settings have it: where its head is, what it needs of this process, the token. For `engine.workers`."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.ownfolder import own_folder
from nodes import machine
from nodes.settings import SettingsError, set_environment
from nodes.settings_kinds import AUTO, parse_address
from nodes.settings_ray import LOCAL
from nodes.storeoptions import s3_options

if TYPE_CHECKING:
    from engine.worker import WorkerSetup
    from engine.workers import RayWorkers
    from nodes.settings_model import Settings

PROBE_SECONDS: Final = 1.0
TOKEN_FILE: Final = "ray-token"  # noqa: S105 - a file's name
TOKEN_BYTES: Final = 32
ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "token",
    # A call after Ray was let go would start it again, whatever is set here.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
}
ALONE: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Every socket on loopback; no other machine can join."""
JOINED: Final = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}
"""Ray ends a process whose head has been gone for a minute. `engine.workers` lets Ray go long before; this makes sure.
Not where Ray is started here: its own processes have it too then, and outlive a node that was killed by an hour."""


SESSION_PREFIX: Final = "runnel-ray-"
SYSTEM_FOLDER_CHARS_MAX: Final = 20
"""Ray's sockets lie deep below it, and their paths may have a hundred characters."""


def merges_on_ray(settings: Settings) -> bool:
    """Whether Ray workers are to merge files. On this machine the node's own process does it as well."""
    wanted, address = settings.compaction.on_ray, settings.ray.address
    return bool(address) and (wanted == "on" or (wanted == AUTO and address != LOCAL))


def new_workers(settings: Settings) -> RayWorkers | None:
    """The workers that the settings want; None without any. Raises SettingsError. Ray is not imported yet."""
    ray = settings.ray
    if not ray.address:
        return None
    if importlib.util.find_spec("ray") is None:
        raise SettingsError("ray.address is set, and Ray is not installed: pip install 'runnel[ray]'")
    from engine.workers import RayWorkers

    return RayWorkers(RayHead(settings), lambda: worker_setup(settings), ray.workers, ray.shuffle_bytes_max)


def worker_setup(settings: Settings) -> WorkerSetup:
    """What a worker is started with."""
    from engine.worker import WorkerSetup, this_build

    url = settings.store_url
    bucket = url.removeprefix("s3://").partition("/")[0] if url.startswith("s3://") else None
    ray = settings.ray
    return WorkerSetup(
        this_build(), ray.worker_memory, ray.shuffle_bytes_max, settings.query.spill_bytes_max,
        bucket=bucket, s3=s3_options(settings),
    )  # fmt: skip


class RayHead:
    """`engine.workers.Head`, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = settings.ray.address
        self._is_local = self._address == LOCAL
        self._session: Path | None = None

    @property
    def label(self) -> str:
        return "this machine" if self._is_local else self._address

    def is_reachable(self) -> bool:
        return self._is_local or self.answers(self._address)

    def answers(self, address: str) -> bool:
        target = parse_address(address)
        try:
            socket.create_connection((target.host, target.port), PROBE_SECONDS).close()
        except OSError:
            return False
        return True

    def prepare(self) -> dict[str, Any]:
        """The token is made if Ray is started here; a cluster's is somebody else's to make. Raises OSError."""
        token = self._token_file()
        if self._is_local and not token.exists():
            write_token(token)
        set_environment(ENVIRONMENT | {"RAY_AUTH_TOKEN_PATH": str(token)} | (ALONE if self._is_local else JOINED))
        if not self._is_local:
            return {"address": self._address}
        return {
            "address": LOCAL,
            "_temp_dir": str(self._session_folder()),
            "num_cpus": self._settings.ray.workers or machine.cpus_allowed(),
            "include_dashboard": False,
            "object_store_memory": self._settings.ray.object_memory,
        }

    def _session_folder(self) -> Path:
        """Where a Ray that is started here has its sockets, logs and spilled rows. Ray lets everybody write into its
        folders, put a socket of their own in the place of one for example: so they are in one that only this user may
        enter. Those of earlier sessions go."""
        if self._session is not None:
            shutil.rmtree(self._session, ignore_errors=True)
        system = tempfile.gettempdir()
        parent = Path(system if len(system) <= SYSTEM_FOLDER_CHARS_MAX else "/tmp")  # noqa: S108 - a new folder in it
        self._session = own_folder(parent, SESSION_PREFIX)
        return self._session / "r"  # of this one too it changes the permissions

    def _token_file(self) -> Path:
        given = self._settings.ray.token_file
        return Path(given) if given else self._settings.data_dir / TOKEN_FILE


def write_token(path: Path) -> None:
    """A new token in a file that only this user reads; whole or not there, for an empty one would stay in the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(TOKEN_BYTES))
    os.replace(name, path)
