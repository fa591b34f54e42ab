"""`chiron batch status|list|cancel|delete|usage`: tables, lines and JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from chiron.cli.batch.connect import connect
from chiron.cli.batch.durations import short
from chiron.cli.batch.submit import wait_for
from chiron.cli.batch.telling import batch_json, counts_of, exit_status, outlook_of
from chiron.cli.fitting import Column, FittingTable
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.client import Batch


async def show_status(routers: str, batch_id: str, *, watch: bool, live: bool, as_json: bool) -> int:
    """Shows one batch, or all that have not ended."""
    if not batch_id:
        if watch:
            raise CliError("--watch needs the id of a batch", EXIT_BAD_START)
        return await show_list(routers, open_only=True, limit=0, as_json=as_json)
    async with connect(routers) as client:
        if not watch:
            batch = await client.batch.get(batch_id)
            if as_json:
                print(json.dumps(batch_json(batch)))
            else:
                _console().print(_details(batch, datetime.now(UTC)))
            return 0
        batch = await wait_for(client, batch_id, None, live=live)
    if as_json:
        print(json.dumps(batch_json(batch)))
    return exit_status(batch)


async def show_list(routers: str, *, open_only: bool, limit: int, as_json: bool) -> int:
    """Lists batches."""
    async with connect(routers) as client:
        batches = [batch async for batch in client.batch.list(open_only=open_only, limit=limit)]
    if as_json:
        print(json.dumps({"batches": [batch_json(batch) for batch in batches]}))
        return 0
    console = _console()
    console.print(_table(batches, datetime.now(UTC)), soft_wrap=not console.is_terminal)
    return 0


async def cancel_batch(routers: str, batch_id: str) -> int:
    """Ends a batch early."""
    async with connect(routers) as client:
        batch = await client.batch.cancel(batch_id)
    print(f"{batch_id}: {batch.state.value}, {counts_of(batch)}")
    return 0


async def delete_batch(routers: str, batch_id: str) -> int:
    """Forgets a batch."""
    async with connect(routers) as client:
        await client.batch.delete(batch_id)
    print(f"{batch_id}: deleted")
    return 0


async def show_usage(routers: str, *, as_json: bool) -> int:
    """Shows what tenants have in the queue."""
    async with connect(routers) as client:
        tenants = await client.batch.usage()
    if as_json:
        print(json.dumps({"tenants": [dataclasses.asdict(tenant) for tenant in tenants]}))
        return 0
    table = Table("TENANT", "OPEN", "QUEUED", "RUNNING", "STORED", "SUCCEEDED", "FAILED", "TOKENS", box=None)
    for one in tenants:
        table.add_row(
            one.tenant or "-",
            str(one.open_batches),
            str(one.queued),
            str(one.running),
            f"{one.stored_bytes / 1e6:.1f} MB",
            str(one.succeeded),
            str(one.failed),
            str(one.completion_tokens),
        )
    _console().print(table)
    return 0


def _table(batches: Iterable[Batch], now: datetime) -> FittingTable:
    table = FittingTable(
        Column("batch"),
        Column("state"),
        Column("items"),
        Column("deadline", prose=True),
        Column("age", rank=1),
        Column("priority", rank=2),
    )
    for batch in batches:
        table.add_row(
            batch.batch_id,
            batch.state.value,
            counts_of(batch),
            outlook_of(batch, now),
            short((now - batch.created).total_seconds()),
            str(batch.priority),
        )
    return table


def _details(batch: Batch, now: datetime) -> Table:
    progress = batch.progress
    rows = {
        "batch": batch.batch_id,
        "tenant": batch.tenant,
        "state": batch.state.value,
        "items": counts_of(batch),
        "deadline": f"{_local(batch.deadline)} ({outlook_of(batch, now)}); late items {_late(batch)}",
        "created": _local(batch.created),
        "ended": _local(batch.ended) if batch.ended else "",
        "kept until": _local(batch.expires) if batch.expires else "",
        "priority": str(batch.priority) if batch.priority else "",
        "tokens": f"{progress.prompt_tokens} in, {progress.completion_tokens} out" if progress.ended else "",
        "metadata": ", ".join(f"{key}={value}" for key, value in sorted(batch.metadata.items())),
    }
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _late(batch: Batch) -> str:
    return {"finish": "are finished", "expire": "expire"}[batch.on_late.value]


def _local(instant: datetime) -> str:
    return instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _console() -> Console:
    console = Console()
    # A pipe has no width: nothing may be cut or wrapped.
    return console if console.is_terminal else Console(file=sys.stdout, width=1000)
