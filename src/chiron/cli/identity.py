"""Who the command line is to routers and controllers: `--api-key`, `--ca`, `--cert`, `--key`."""

from __future__ import annotations

from pathlib import Path

from chiron.client import TlsConfig
from chiron.rpc.identity import Identity, IdentityError, Tls, assume, present


def assume_identity(api_key: str, ca: Path | None, cert: Path | None, key: Path | None) -> str:
    """Sets the identity of this process. Returns what is wrong with the options; empty: nothing."""
    given = [file for file in (ca, cert, key) if file is not None]
    if not given:
        assume(Identity(None, api_key))
        return ""
    if ca is None or (cert is None) != (key is None):
        return (
            "--cert and --key (CHIRON_CERT, CHIRON_KEY) belong together, and to --ca (CHIRON_CA), which can "
            "be alone"
        )
    try:
        tls = Tls.trusting(ca) if cert is None or key is None else Tls.read(ca, cert, key)
        assume(Identity(tls, api_key))
    except IdentityError as error:
        return str(error).replace("[tls] ", "--").replace(":", "", 1)
    return ""


def client_tls() -> TlsConfig | None:
    """The identity's certificate as the SDK takes it."""
    tls = present().tls
    return None if tls is None else TlsConfig(ca=tls.ca, cert=tls.cert or None, key=tls.key or None)
