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
CONTROLLER = "127.0.0.1:50050"
