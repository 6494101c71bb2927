"""The three files of mutual TLS between nodes, and their reload while a node runs.

`TlsSource` looks at the files' times every few seconds, when somebody asks it: the server at each handshake, the
channels at each use. Files that do not fit together are not taken; what was good stays in use.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cluster.errors import ClusterMisconfigured

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NODE_NAME: Final = "runnel-node"
"""In every node certificate; callers check it instead of the host, which changes."""
CHECK_SECONDS: Final = 3.0
FILE_BYTES_MAX: Final = 1 << 20

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the cluster's CA certificate, this node's certificate (with its chain) and private key."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What was in the files; it never prints."""

    ca: bytes = field(repr=False)
    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)


def load(files: TlsFiles) -> TlsMaterial:
    """Read the files and check that they fit together. ClusterMisconfigured."""
    material = TlsMaterial(_read(files.ca), _read(files.cert), _read(files.key))
    try:
        authorities = x509.load_pem_x509_certificates(material.ca)
        cert = x509.load_pem_x509_certificates(material.cert)[0]
    except ValueError as error:
        raise ClusterMisconfigured(f"{files.ca} or {files.cert} is not a certificate in PEM") from error
    try:
        key = serialization.load_pem_private_key(material.key, password=None)
    except (ValueError, TypeError) as error:
        raise ClusterMisconfigured(f"{files.key} is not a private key in PEM, or it has a password") from error
    if key.public_key() != cert.public_key():
        raise ClusterMisconfigured(f"{files.key} is not the key of {files.cert}")
    if not authorities:
        raise ClusterMisconfigured(f"{files.ca} has no certificate")
    return material


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ClusterMisconfigured(f"cannot read {path}: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ClusterMisconfigured(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    return data


class TlsSource:
    """The newest good content of the files; safe to ask from any thread.

    Raises ClusterMisconfigured when it is made from files that do not fit. ``on_refused`` hears once of each change
    that was not taken, and why; ``generation`` grows with each that was.
    """

    def __init__(
        self,
        files: TlsFiles,
        *,
        check_seconds: float = CHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        on_refused: Callable[[ClusterMisconfigured], None] | None = None,
    ) -> None:
        self.files = files
        self.generation = 0
        self._check_seconds = check_seconds
        self._clock = clock
        self._on_refused = on_refused
        self._lock = threading.Lock()
        self._checked_at = clock()
        self._stamp = self._refused = self._stat()
        self._material = load(files)

    def current(self) -> tuple[int, TlsMaterial]:
        """The generation and its material, after a look at the files if the last one was a while ago."""
        with self._lock:
            now = self._clock()
            if now - self._checked_at >= self._check_seconds:
                self._checked_at = now
                self._reload()
            return self.generation, self._material

    def server_credentials(self, *, require_client_certificate: bool = True) -> grpc.ServerCredentials:
        """For a server: each handshake uses the newest files."""
        generation, material = self.current()
        served = generation

        def newer() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            generation, material = self.current()
            if generation == served:
                return None
            served = generation
            return _configuration(material)

        initial = _configuration(material)
        # The stubs do not know that None means "as before".
        return grpc.dynamic_ssl_server_credentials(initial, newer, require_client_certificate)  # type: ignore[arg-type]

    def _reload(self) -> None:
        stamp = self._stat()
        if stamp in (self._stamp, self._refused):
            return
        try:
            material = load(self.files)
        except ClusterMisconfigured as error:  # perhaps only one of them is written yet
            self._refused = stamp
            if self._on_refused is not None:
                self._on_refused(error)
            return
        self._stamp, self._refused = stamp, stamp
        if material != self._material:
            self._material = material
            self.generation += 1

    def _stat(self) -> _Stamp | None:
        """Inode, size and time of each file; None if one is missing."""
        try:
            found = [path.stat() for path in (self.files.ca, self.files.cert, self.files.key)]
        except OSError:
            return None
        return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def channel_credentials(material: TlsMaterial) -> grpc.ChannelCredentials:
    """For a client: both sides show a certificate of the cluster's CA."""
    return grpc.ssl_channel_credentials(material.ca, material.key, material.cert)


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    pairs = [(material.key, material.cert)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=material.ca)
