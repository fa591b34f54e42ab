"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Controller = Annotated[
    str,
    typer.Option(
        envvar="CHIRON_CONTROLLER", metavar="HOST:PORT[,…]", help="Controllers; the one that leads is found."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Router = Annotated[
    str, typer.Option(envvar="CHIRON_ROUTER", metavar="HOST:PORT[,…]", help="Routers, tried in turn.")
]
CONTROLLER = "127.0.0.1:50050"
ROUTER = "127.0.0.1:50051"
