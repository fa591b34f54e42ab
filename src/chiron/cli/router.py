"""`chiron router`: what one router knows and holds, also while no controller can be asked."""

from __future__ import annotations

import sys

import grpc
from rich.console import Console, Group, RenderableType
from rich.text import Text

from chiron.cli.fitting import Column, FittingTable
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.cli.status import to_json
from chiron.internal.v1 import router_pb2 as pb
from chiron.internal.v1 import router_pb2_grpc
from chiron.rpc.controllers import check_addresses
from chiron.rpc.servers import open_channel
from chiron.v1 import types_pb2

_PATIENCE_S = 5.0


async def show_router(router: str, *, as_json: bool) -> int:
    """Prints one router's state. Raises CliError when it does not answer or may not be asked from here."""
    try:
        check_addresses("router", (router,))
    except ValueError as error:
        raise CliError(str(error), EXIT_BAD_START) from error
    async with open_channel(router) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        try:
            state = await stub.GetRouterState(pb.GetRouterStateRequest(), timeout=_PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            raise CliError(f"router {router}: {error.details() or error.code().name}") from error
    if as_json:
        print(to_json(state), flush=True)
        return 0
    console = Console()
    # A pipe has no width: nothing may be cut or wrapped.
    wide = console if console.is_terminal else Console(file=sys.stdout, width=1000)
    wide.print(view(state), soft_wrap=not console.is_terminal)
    return 0


def view(state: pb.GetRouterStateResponse) -> RenderableType:
    """The state as text and a table."""
    counts, waiting = state.counts, state.counts.waiting
    held = (
        f"{counts.calls} calls, {counts.streams} of them streams; "
        f"{waiting.interactive}+{waiting.batch} wait; {counts.reservations} slots reserved; "
        f"{counts.lookaside} direct streams; {counts.retries} retries, {counts.retries_refused} not allowed; "
        f"{counts.turned_away} calls turned away"
    )
    batches = [_batch_line(state.batch_queue)] if state.HasField("batch_queue") else []
    prefixes = [_prefix_line(one) for one in state.prefixes]
    return Group(
        Text(f"router {state.router_id}"),
        _table_line(state.table),
        Text(held),
        *batches,
        *map(_queue_line, state.queues),
        *prefixes,
        _instances(state),
    )


def _prefix_line(one: pb.RouterPrefixes) -> Text:
    what = f"prompts of {one.model}: {one.remembered} of at most {one.limit} beginnings remembered"
    if not one.prompt_tokens:
        return Text(what)
    found, expected = (
        100 * tokens / one.prompt_tokens for tokens in (one.cached_tokens, one.expected_tokens)
    )
    return Text(
        f"{what}; {found:.0f} % of the tokens of {one.requests} prompts were cached where they went, "
        f"{expected:.0f} % expected"
    )


def _queue_line(queue: pb.RouterQueue) -> Text:
    waiting = queue.waiting
    told = f"{queue.model}: {waiting.interactive}+{waiting.batch} wait"
    for name, wait in (("interactive", queue.interactive), ("batch", queue.batch)):
        told += f"; a new {name} request waits "
        if wait.HasField("mean_ms"):
            told += (
                f"{wait.mean_ms / 1000:.1f} s, {wait.quantile_ms / 1000:.1f} s at {100 * wait.quantile:g} %, "
                f"behind {wait.ahead} at {wait.tokens_per_s:.0f} tokens/s"
            )
        else:
            told += "for an instance that serves it"
    return Text(told)


def _batch_line(queue: pb.RouterBatchQueue) -> Text:
    if not queue.HasField("read_age_ms"):
        return Text("batch queue: it could not be read yet", style="yellow")
    what = (
        f"batch queue: {queue.queued} items wait in {queue.units} units, {queue.running} run here; "
        f"read {queue.read_age_ms / 1000:.1f} s ago"
    )
    if not queue.session:
        return Text(f"{what}; no session: nothing is claimed", style="yellow")
    return Text(f"{what}; session {queue.session}")


def _table_line(table: pb.RouterTableState) -> Text:
    if not table.epoch:
        return Text("no routing table: no controller has sent one", style="bold red")
    what = (
        f"table of term {table.term}, epoch {table.epoch}: {table.models} models, {table.instances} instances"
    )
    if not table.age_ms:
        return Text(f"{what}; a controller keeps it current")
    source = f", read from {table.file}" if table.from_file else ""
    return Text(f"{what}; no controller: last known {table.age_ms / 1000:.0f} s ago{source}", style="yellow")


def _instances(state: pb.GetRouterStateResponse) -> FittingTable:
    table = FittingTable(
        Column("instance"),
        Column("model", rank=1),
        Column("role", rank=3),
        Column("state"),
        Column("address", rank=4),
        Column("reserved", rank=2),
        Column("batch credits", rank=5),
        Column("ejected because", prose=True),
    )
    for one in state.instances:
        heard = one.state != types_pb2.INSTANCE_STATE_UNSPECIFIED
        table.add_row(
            one.instance_id,
            one.model,
            types_pb2.Role.Name(one.role).removeprefix("ROLE_").lower(),
            types_pb2.InstanceState.Name(one.state).removeprefix("INSTANCE_STATE_") if heard else "not heard",
            one.address,
            str(one.reserved),
            str(one.batch_credits),
            Text(one.ejected.reason, style="red"),
        )
    return table
