"""A certificate authority for one test cluster: one CA, and a certificate for each node, as PEM files."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Paths of PEM files: the authority's certificate, the node's, and the node's key."""

    authority: Path
    certificate: Path
    key: Path

    def settings(self) -> dict[str, str]:
        """As a node's environment."""
        return {
            "RUNNEL_TLS__CA": str(self.authority),
            "RUNNEL_TLS__CERT": str(self.certificate),
            "RUNNEL_TLS__KEY": str(self.key),
        }


class Authority:
    """Makes its key at once; `certify` writes files into ``folder``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _name(name)
        self._path = folder / f"{name}.pem"
        found = self._builder(self._subject, self._key.public_key())
        found = found.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        found = found.add_extension(usage, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        found = found.add_extension(identifier, critical=False)
        self._path.write_bytes(found.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def certify(self, node: str, hosts: Sequence[str] = ("127.0.0.1",)) -> Certificate:
        """A certificate for server and client use, for the node's name, ``localhost`` and these addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(node), x509.DNSName("localhost")]
        names += [x509.IPAddress(ipaddress.ip_address(host)) for host in hosts]
        found = self._builder(_name(node), key.public_key())
        found = found.add_extension(x509.SubjectAlternativeName(names), critical=False)
        found = found.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        found = found.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        found = found.add_extension(authority_id, critical=False)
        paths = Certificate(self._path, self._folder / f"{node}.pem", self._folder / f"{node}.key")
        signed = found.sign(self._key, hashes.SHA256())
        paths.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        paths.key.touch(mode=0o600)
        paths.key.write_bytes(plain)
        return paths

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        found = x509.CertificateBuilder().subject_name(subject).issuer_name(self._subject).public_key(key)
        found = found.serial_number(x509.random_serial_number())
        return found.not_valid_before(now - DAY).not_valid_after(now + 30 * DAY)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
