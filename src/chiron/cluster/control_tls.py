"""Whether a local cluster's own calls will be let in by its controllers' TLS: told before anything starts."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from chiron.cluster.process import StartError
from chiron.config.loader import override_variable
from chiron.rpc.identity import Tls

_FILES = ("ca", "cert", "key")
_REMEDY = (
    "give --ca, --cert and --key before the command (or CHIRON_CA, CHIRON_CERT, CHIRON_KEY), such as the "
    "ca.pem, admin.pem and admin.key that `chiron certs init` makes"
)


def check_control_tls(
    own: Tls | None, config: Path | None, settings: Mapping[str, str], environ: Mapping[str, str]
) -> None:
    """Raises StartError that names what this process lacks to call controllers that are so set.

    What is wrong with the settings themselves is left to the controllers, which say so when they start.

    Args:
        own: what this process shows and trusts.
        config: TOML file of the services.
        settings: overrides of the controllers.
        environ: variables that the controllers will see beside this process's own.
    """
    named = _tls_files(config, settings, {**os.environ, **environ})
    if not named:
        if own is None:
            return
        raise _bad(
            "this command has a certificate authority (--ca, CHIRON_CA), and the controllers have no [tls]"
        )
    if own is None or not own.cert:
        shown = "no certificate" if own is None else "--ca, but no certificate"
        raise _bad(
            "the controllers have [tls], and take calls from holders of a certificate alone; this command "
            f"has {shown}: {_REMEDY}"
        )
    if len(named) < len(_FILES):
        return
    theirs = {name: _read(named[name]) for name in _FILES}
    if _is_foreign(own.cert, theirs["ca"]):
        raise _bad(f"--cert is not of the controllers' authority, [tls] ca = {named['ca']}; {_REMEDY}")
    if _is_foreign(theirs["cert"], own.ca):
        raise _bad(
            f"the controllers' certificate, [tls] cert = {named['cert']}, is not of the authority in --ca"
        )


def _bad(text: str) -> StartError:
    return StartError(text, bad_start=True)


def _tls_files(
    config: Path | None, settings: Mapping[str, str], environ: Mapping[str, str]
) -> dict[str, Path]:
    """The controllers' `[tls]` files, as far as they are set."""
    document: dict[str, Any] = {}
    if config is not None:
        try:
            document = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            return {}
    found: dict[str, Path] = {}
    for name in _FILES:
        said = (
            settings.get(f"tls.{name}"),
            environ.get(override_variable("controller", f"tls.{name}")),
            environ.get(override_variable("tls", name)),
            _entry(document.get("controller"), name),
            _entry(document, name),
        )
        value = next((one for one in said if one is not None), "")
        if isinstance(value, str) and value:
            found[name] = Path(value).expanduser()
    return found


def _entry(table: object, name: str) -> object:
    tls = table.get("tls") if isinstance(table, dict) else None
    return tls.get(name) if isinstance(tls, dict) else None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _is_foreign(cert: bytes, authority: bytes) -> bool:
    """Whether none of the authorities has issued the certificate; False where a chain leaves that open."""
    try:
        [leaf] = x509.load_pem_x509_certificates(cert)
        issuers = x509.load_pem_x509_certificates(authority)
    except ValueError:
        return False
    return not any(_issued(issuer, leaf) for issuer in issuers)


def _issued(issuer: x509.Certificate, leaf: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
