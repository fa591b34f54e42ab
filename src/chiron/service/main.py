"""Entry point of a service: arguments, logging, uvloop, signals, and one clear line for a bad start."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import uvloop

from chiron.auth.settings import AuthSettings, TlsSettings, identity_of
from chiron.config import ConfigError, load_config
from chiron.rpc.identity import assume
from chiron.rpc.servers import BindError
from chiron.telemetry import setup_tracing

T = TypeVar("T")
EXIT_BAD_START = 2


def run_service(
    section: str,
    kind: type[T],
    serve: Callable[[T, asyncio.Event], Awaitable[None]],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs one service until SIGTERM or SIGINT and returns its exit status.

    Args:
        section: name of the service and of its table in the config file.
        kind: its config dataclass.
        serve: the service; it returns soon after the event (stop was asked for) is set. A second signal
            cancels it.
        argv: arguments; None: the process's.
    """
    parser = argparse.ArgumentParser(prog=f"chiron-{section}", description=f"Chiron {section}")
    parser.add_argument("--config", type=Path, help="TOML file; keys are documented in docs/configuration.md")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; may be repeated"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=os.environ.get("CHIRON_LOG_LEVEL", "INFO").upper(),
        format=f"%(asctime)s {section} %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        overrides = dict(_split(item) for item in arguments.set)
        config = load_config(kind, section, file=arguments.config, overrides=overrides)
        tls, auth = getattr(config, "tls", TlsSettings()), getattr(config, "auth", AuthSettings())
        assume(identity_of(tls, auth))
        setup_tracing(f"chiron-{section}")
        uvloop.run(_until_signalled(serve, config))
    except (ConfigError, BindError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_START
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 128 + signal.SIGINT
    return 0


def announce(service: str, **facts: str | int) -> None:
    """Tells whoever started the process that it serves: one JSON line on stdout."""
    print(json.dumps({"service": service, "pid": os.getpid(), **facts}), flush=True)


def _split(item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {item}: expected KEY=VALUE")
    return key, value


async def _until_signalled(serve: Callable[[T, asyncio.Event], Awaitable[None]], config: T) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(serve(config, stop))

    def on_signal() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await task
