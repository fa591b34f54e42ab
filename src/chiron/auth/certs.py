"""A certificate authority for one cluster, and certificates for its roles."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chiron.auth.credentials import ROLE_URI, TENANT_URI
from chiron.rpc.identity import SERVER_NAME

ROLES = ("controller", "router", "agent", "worker", "admin")
_SERVERS = ("controller", "router", "worker")
_BACKDATED = datetime.timedelta(minutes=5)
"""Hosts whose clocks differ a little must accept a new certificate at once."""


class CertsError(Exception):
    """Certificates that cannot be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str, days: int) -> Authority:
        """A new authority. Whoever has its key can be anybody in the cluster."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name)
        builder = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The authority of a folder. Raises CertsError."""
        try:
            cert = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError) as error:
            raise CertsError(f"{folder} holds no authority (ca.pem, ca.key): {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertsError(f"{folder / 'ca.key'} is no elliptic-curve key")
        return cls(cert, key)

    def issue(
        self, name: str, *, roles: Sequence[str] = (), tenant: str = "", hosts: Sequence[str] = (), days: int
    ) -> tuple[bytes, bytes]:
        """A certificate and its key, as PEM.

        Args:
            name: common name, for people.
            roles: what its holder is; servers among them also get the DNS name that callers ask for.
            tenant: whom its holder stands for at routers.
            hosts: DNS names and addresses under which it serves.
            days: how long it is valid.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(ROLE_URI + role) for role in roles]
        if tenant:
            names.append(x509.UniformResourceIdentifier(TENANT_URI + tenant))
        names += [x509.DNSName(SERVER_NAME.format(role)) for role in roles if role in _SERVERS]
        names += map(_host, hosts)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = (
            _builder(_subject(name), self.cert.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages if hosts or roles else usages[:1]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        return _pem(builder.sign(self.key, hashes.SHA256())), _key_pem(key)


def init(folder: Path, hosts: Sequence[str], *, days: int, authority_days: int) -> list[Path]:
    """Makes an authority and a certificate for each role; keys get mode 0600.

    Returns the files made. Raises CertsError when the folder has an authority already, or cannot be written.
    """
    if (folder / "ca.key").exists():
        raise CertsError(f"{folder} has an authority already; `chiron certs issue` adds certificates to it")
    authority = Authority.make("Chiron cluster authority", authority_days)
    made = [
        _write(folder / "ca.pem", _pem(authority.cert)),
        _write(folder / "ca.key", _key_pem(authority.key)),
    ]
    for role in ROLES:
        served = hosts if role in _SERVERS else ()
        made += _write_pair(folder, role, authority.issue(role, roles=[role], hosts=served, days=days))
    return made


def issue(
    folder: Path, name: str, *, roles: Sequence[str], tenant: str, hosts: Sequence[str], days: int
) -> list[Path]:
    """Makes one more certificate of the folder's authority. Returns the files made. Raises CertsError."""
    unknown = sorted(set(roles) - set(ROLES))
    if unknown or not (roles or tenant):
        raise CertsError(f"a role is one of {', '.join(ROLES)}; give --role or --tenant, not {unknown}")
    pair = Authority.load(folder).issue(name, roles=roles, tenant=tenant, hosts=hosts, days=days)
    return _write_pair(folder, name, pair)


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
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_pair(folder: Path, name: str, pair: tuple[bytes, bytes]) -> list[Path]:
    return [_write(folder / f"{name}.pem", pair[0]), _write(folder / f"{name}.key", pair[1])]


def _write(file: Path, data: bytes) -> Path:
    mode = 0o600 if file.suffix == ".key" else 0o644
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise CertsError(f"cannot make {file}: {error.strerror}") from error
    with open(descriptor, "wb") as opened:
        opened.write(data)
    return file
