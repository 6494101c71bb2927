"""A cluster's own certificate authority, and certificates for its nodes (EC P-256).

Every node certificate names `NODE_NAME`, so a caller checks that it speaks to *a* node of its cluster, wherever that
node runs today. Driven by the command that prepares a cluster, and by tests; nodes only read the files
(`cluster.tlsfiles`).
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.errors import ClusterMisconfigured
from cluster.tlsfiles import NODE_NAME, TlsFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CA_CERT: Final = "ca.crt"
CA_KEY: Final = "ca.key"
CA_DAYS: Final = 3650
NODE_DAYS: Final = 825
"""What clients of other makers accept at most from a certificate."""
RENEW_DAYS: Final = 30
"""With less than this left a certificate is made again."""
SKEW: Final = datetime.timedelta(days=1)
"""Clocks of nodes that are not set yet."""
ALWAYS: Final = (NODE_NAME, "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Authority:
    """The cluster's CA. Whoever has ``key`` can make nodes."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def make_certificates(folder: Path, hosts: Sequence[str] = (), name: str = "node") -> TlsFiles:
    """Make what is missing of the CA and of the certificate ``name`` in ``folder``; what fits already stays.

    ``hosts`` are names or addresses that clients from outside use; with others, or near its end, the certificate is
    made again under the same CA. ``name`` is the node's own: its files are ``name.crt`` and ``name.key``.
    """
    if name != os.path.basename(name) or name in ("", ".", "..", "ca"):
        raise ClusterMisconfigured(f"{name!r} cannot name a node's certificate")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = TlsFiles(ca=folder / CA_CERT, cert=folder / f"{name}.crt", key=folder / f"{name}.key")
    with _locked(folder):
        authority = _read_authority(folder) or _make_authority(folder)
        names = _names((name, *hosts, *ALWAYS))
        if not _fits(files, authority, names):
            _make_node(files, authority, name, names)
    return files


def _make_authority(folder: Path) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject("Runnel cluster CA")
    cert = (
        _builder(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(folder / CA_KEY, _key_pem(key))
    _write(folder / CA_CERT, cert.public_bytes(serialization.Encoding.PEM))
    return Authority(cert, key)


def _make_node(files: TlsFiles, authority: Authority, name: str, names: Sequence[x509.GeneralName]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    cert = (
        _builder(_subject(name), authority.cert.subject, key.public_key(), NODE_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    _write(files.key, _key_pem(key))
    _write(files.cert, cert.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _names(texts: Sequence[str]) -> list[x509.GeneralName]:
    """Addresses as addresses, everything else as DNS names; each once."""
    return [_general_name(text) for text in dict.fromkeys(texts)]


def _general_name(text: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text.strip("[]")))
    if not text or not text.isascii() or not text.isprintable() or any(mark in text for mark in " /:"):
        raise ClusterMisconfigured(f"{text!r} is neither a host name nor an address")
    return x509.DNSName(text)


def _read_authority(folder: Path) -> Authority | None:
    """The CA that is there. One that cannot be used is an error: a new one would lock out the other nodes."""
    cert_path, key_path = folder / CA_CERT, folder / CA_KEY
    if not cert_path.exists() and not key_path.exists():
        return None
    try:
        cert = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ClusterMisconfigured(
            f"{cert_path} and {key_path} cannot be used as the cluster's CA: both must be there, in PEM"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
        raise ClusterMisconfigured(f"{key_path} is not the key of {cert_path}")
    return Authority(cert, key)


def _fits(files: TlsFiles, authority: Authority, names: Sequence[x509.GeneralName]) -> bool:
    """The node's files are there, belong together, come from this CA, name all of ``names`` and last."""
    try:
        cert = x509.load_pem_x509_certificate(files.cert.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
        cert.verify_directly_issued_by(authority.cert)
        san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001 - whatever is wrong with it, a new one is made
        return False
    left = cert.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    own = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == cert.public_key()
    return own and set(names) <= set(san) and left > datetime.timedelta(days=RENEW_DAYS)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, mode 0600: a node that reloads never sees half a file."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One maker at a time: two CAs in one folder would fit neither's nodes."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
