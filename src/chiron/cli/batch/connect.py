"""A client for the batch commands, with this process's identity."""

from __future__ import annotations

from chiron.cli.identity import client_tls
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.client import Client
from chiron.rpc.identity import present

_PATIENCE_S = 120.0
"""How long a router may be away before a command gives up."""


def connect(routers: str | tuple[str, ...]) -> Client:
    """A client of these routers. Raises CliError."""
    addresses = tuple(routers.split(",")) if isinstance(routers, str) else routers
    try:
        return Client(addresses, tls=client_tls(), api_key=present().api_key, batch_patience_s=_PATIENCE_S)
    except ValueError as error:
        raise CliError(str(error), EXIT_BAD_START) from error
