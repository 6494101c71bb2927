"""The peers' Debian packages: fetched with apt-get and unpacked, never installed.

Driven by `benchmarks.run`. Everything stays under ``build/peers`` (ignored by git), also apt's lists when
the machine's own are empty, so no root is needed and nothing on the machine changes.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PEERS_FOLDER = Path(__file__).resolve().parent.parent / "build/peers"
APT_SECONDS_MAX = 300


class PackageUnavailable(RuntimeError):
    """A peer's package cannot be fetched or unpacked here; the run goes on without that peer."""


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package and the one program of it that a benchmark starts."""

    name: str
    program: str

    def folder(self, root: Path) -> Path:
        """Where the package's tree is unpacked."""
        return root / self.name

    def executable(self, root: Path) -> Path:
        return self.folder(root) / self.program


INFLUXDB = Package("influxdb", "usr/bin/influxd")
VICTORIA_METRICS = Package("victoria-metrics", "usr/bin/victoria-metrics")


def ensure(package: Package, root: Path = PEERS_FOLDER) -> Path:
    """The program's path, after fetching and unpacking the package if that was not done before."""
    program = package.executable(root)
    if not program.exists():
        archive = _archive(package, root) or _download(package, root)
        _run(["dpkg", "-x", str(archive), str(package.folder(root))])
    if not program.exists():
        raise PackageUnavailable(f"{package.name}: the package has no {package.program}")
    return program.absolute()


def version(package: Package, root: Path = PEERS_FOLDER) -> str:
    """The Debian version of the fetched archive, such as ``1.6.7~rc0-1+b13``."""
    archive = _archive(package, root)
    return _run(["dpkg-deb", "-f", str(archive), "Version"]).strip() if archive else "unknown"


def _archive(package: Package, root: Path) -> Path | None:
    return max((root / "debs").glob(f"{package.name}_*.deb"), default=None)


def _download(package: Package, root: Path) -> Path:
    """Fetch with the machine's package lists; if they know nothing, with lists of our own."""
    folder = root / "debs"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _run(["apt-get", "-q", "download", package.name], folder)
    except PackageUnavailable:
        own = _own_lists(root)
        _run(["apt-get", "-q", *own, "update"])
        _run(["apt-get", "-q", *own, "download", package.name], folder)
    archive = _archive(package, root)
    if archive is None:
        raise PackageUnavailable(f"{package.name}: apt-get downloaded nothing")
    return archive


def _own_lists(root: Path) -> list[str]:
    state, cache = (root / "apt/lists").absolute(), (root / "apt/cache").absolute()
    (state / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives/partial").mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::Lists={state}", "-o", f"Dir::Cache={cache}"]


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise PackageUnavailable(
            f"{command[0]} is missing: the peers need a Debian or Ubuntu machine (or --peers none)"
        )
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=APT_SECONDS_MAX)
    except subprocess.TimeoutExpired as error:
        raise PackageUnavailable(f"{command[0]} did not finish in {APT_SECONDS_MAX} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise PackageUnavailable(f"{' '.join(command)}: {' '.join(last)}")
    return done.stdout
