"""A CA and node certificates that fit each other, made once."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cluster import certificates
from cluster.certificates import make_certificates
from cluster.errors import ClusterMisconfigured
from cluster.tlsfiles import load

if TYPE_CHECKING:
    from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_node_certificate_names_the_node_and_its_hosts(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "tls", ["db.example.org", "10.1.2.3", "[fd00::1]"], "ingest-1")
    cert, authority = certificate(files.cert), certificate(files.ca)
    cert.verify_directly_issued_by(authority)
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["ingest-1", "db.example.org", "runnel-node", "localhost"]
    addresses = [ipaddress.ip_address(a) for a in ("10.1.2.3", "fd00::1", "127.0.0.1", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    key = cert.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert cert.not_valid_after_utc - datetime.datetime.now(datetime.UTC) > datetime.timedelta(days=365)
    load(files)


def test_every_file_is_private(tmp_path: Path) -> None:
    make_certificates(tmp_path / "tls")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.crt": 0o600, "ca.key": 0o600, "node.crt": 0o600, "node.key": 0o600}
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700


def test_again_changes_nothing(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["a", "b"])
    before = contents(tmp_path)
    make_certificates(tmp_path, ["b"])
    assert contents(tmp_path) == before


def test_another_host_or_node_keeps_the_ca(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["a"])
    before = contents(tmp_path)
    make_certificates(tmp_path, ["a", "c"])
    make_certificates(tmp_path, ["a"], "other")
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"node.crt", "node.key"}
    assert after.keys() - before.keys() == {"other.crt", "other.key"}


def test_near_its_end_it_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "NODE_DAYS", 10)
    make_certificates(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(certificates, "NODE_DAYS", 100)
    make_certificates(tmp_path)
    after = contents(tmp_path)
    assert after["node.crt"] != before["node.crt"]
    assert after["ca.crt"] == before["ca.crt"]


@pytest.mark.parametrize("broken", ["node.crt", "node.key"])
def test_a_broken_node_certificate_is_made_again(tmp_path: Path, broken: str) -> None:
    files = make_certificates(tmp_path)
    (tmp_path / broken).write_bytes(b"not PEM")
    load(make_certificates(tmp_path))
    files.key.write_bytes(make_certificates(tmp_path / "elsewhere").key.read_bytes())
    load(make_certificates(tmp_path))


@pytest.mark.parametrize("lost", ["ca.key", "ca.crt"])
def test_half_a_ca_is_not_replaced(tmp_path: Path, lost: str) -> None:
    make_certificates(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(ClusterMisconfigured, match="both must be there"):
        make_certificates(tmp_path)


def test_a_ca_with_anothers_key_is_refused(tmp_path: Path) -> None:
    make_certificates(tmp_path / "a")
    make_certificates(tmp_path / "b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(ClusterMisconfigured, match="is not the key of"):
        make_certificates(tmp_path / "a")


def test_makers_at_once_agree_on_one_ca(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda i: make_certificates(tmp_path, [], f"n{i}"), range(4)))
    authority = certificate(made[0].ca)
    for files in made:
        certificate(files.cert).verify_directly_issued_by(authority)


@pytest.mark.parametrize("name", ["", ".", "..", "ca", "a/b", "../a"])
def test_a_name_is_not_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClusterMisconfigured):
        make_certificates(tmp_path, [], name)


@pytest.mark.parametrize("host", ["", "a b", "höst", "a:80", "http://a"])
def test_what_is_no_host(tmp_path: Path, host: str) -> None:
    with pytest.raises(ClusterMisconfigured, match="neither"):
        make_certificates(tmp_path, [host])
