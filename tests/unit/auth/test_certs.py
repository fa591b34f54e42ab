"""The cluster's certificates: roles in them, keys for their owner alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from chiron.auth import certs


def names(file: Path) -> list[str]:
    cert = x509.load_pem_x509_certificate(file.read_bytes())
    found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return sorted(str(one.value) for one in found)


def test_each_role_gets_a_certificate_that_names_it(tmp_path: Path) -> None:
    made = certs.init(tmp_path, ["gpu-1", "10.0.0.7"], days=1, authority_days=2)
    assert {file.stem for file in made} == {"ca", *certs.ROLES}
    assert names(tmp_path / "agent.pem") == ["chiron://role/agent"]
    assert names(tmp_path / "worker.pem") == [
        "10.0.0.7",
        "chiron://role/worker",
        "gpu-1",
        "worker.chiron.internal",
    ]
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    for role in certs.ROLES:
        x509.load_pem_x509_certificate((tmp_path / f"{role}.pem").read_bytes()).verify_directly_issued_by(
            authority
        )


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    for file in certs.init(tmp_path, [], days=1, authority_days=1):
        mode = stat.S_IMODE(file.stat().st_mode)
        assert mode == (0o600 if file.suffix == ".key" else 0o644), file


def test_a_tenant_s_certificate_serves_nowhere(tmp_path: Path) -> None:
    certs.init(tmp_path, [], days=1, authority_days=1)
    certs.issue(tmp_path, "acme", roles=[], tenant="acme", hosts=[], days=1)
    assert names(tmp_path / "acme.pem") == ["chiron://tenant/acme"]
    cert = x509.load_pem_x509_certificate((tmp_path / "acme.pem").read_bytes())
    usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    certs.init(tmp_path, [], days=1, authority_days=1)
    before = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(certs.CertsError, match="has an authority already"):
        certs.init(tmp_path, [], days=1, authority_days=1)
    with pytest.raises(certs.CertsError, match="cannot make"):
        certs.issue(tmp_path, "agent", roles=["agent"], tenant="", hosts=[], days=1)
    assert (tmp_path / "ca.key").read_bytes() == before


def test_what_cannot_be_issued_is_named(tmp_path: Path) -> None:
    with pytest.raises(certs.CertsError, match="holds no authority"):
        certs.issue(tmp_path, "x", roles=["agent"], tenant="", hosts=[], days=1)
    with pytest.raises(certs.CertsError, match="a role is one of"):
        certs.issue(tmp_path, "x", roles=["king"], tenant="", hosts=[], days=1)
    with pytest.raises(certs.CertsError, match="--role or --tenant"):
        certs.issue(tmp_path, "x", roles=[], tenant="", hosts=[], days=1)
