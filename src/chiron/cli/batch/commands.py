"""The commands `chiron batch …` and their options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chiron.cli.options import ROUTER, Json, Router

app = typer.Typer(
    help="Hand in work that may take until a deadline, watch it, fetch its results.", no_args_is_help=True
)

BatchId = Annotated[str, typer.Argument(metavar="ID")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write results there, a JSON line each. A file that holds some of them already is gone on with.",
    ),
]
Live = Annotated[bool, typer.Option("--live/--no-live", help="A bar on a terminal, or plain lines.")]


class OnLate(StrEnum):
    """`--on-late`."""

    FINISH = "finish"
    EXPIRE = "expire"


class OnInvalid(StrEnum):
    """`--on-invalid`."""

    REFUSE = "refuse"
    FAIL = "fail"


@app.command("submit")
def submit(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE.jsonl", help="A JSON object in each line; `-` is stdin; may be gzip."),
    ],
    deadline: Annotated[
        str, typer.Option(metavar="TIME", help="Until every result is to be there: 90s, 30m, 2h, 1d.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until the batch has ended; Ctrl-C leaves it running.")
    ] = False,
    output: Output = None,
    on_late: Annotated[
        OnLate, typer.Option(help="What becomes of items without a result at the deadline.")
    ] = OnLate.FINISH,
    on_invalid: Annotated[
        OnInvalid, typer.Option(help="What becomes of the batch when a line cannot be worked on.")
    ] = OnInvalid.REFUSE,
    model: Annotated[str, typer.Option(help="Of lines that name none.")] = "",
    priority: Annotated[
        int | None,
        typer.Option(
            help="Lower goes first, among batches of similar deadlines.", show_default="the key's, else 0"
        ),
    ] = None,
    batch_id: Annotated[
        str, typer.Option(help="Handing in the same file again under the same id changes nothing.")
    ] = "",
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="KEY=VALUE", help="A note; may be repeated.")
    ] = None,
    live: Live = True,
    as_json: Json = False,
    router: Router = ROUTER,
) -> None:
    """Hand in a file of requests and print the batch's id.

    With --wait the exit status tells how it went: 0 all succeeded in time, 3 some items have no answer, 4
    some answers came after the deadline.
    """
    from chiron.cli.batch.submit import SubmitOptions, run_submit
    from chiron.cli.runner import execute

    execute(
        run_submit(
            SubmitOptions(
                routers=tuple(router.split(",")),
                file=file,
                deadline=deadline,
                wait=wait or output is not None,
                output=output,
                on_late=on_late.value,
                on_invalid=on_invalid.value,
                model=model,
                priority=priority,
                batch_id=batch_id,
                metadata=tuple(metadata or ()),
                live=live,
                as_json=as_json,
            )
        )
    )


@app.command("status")
def status(
    batch_id: Annotated[str, typer.Argument(metavar="[ID]", help="None: all that have not ended.")] = "",
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show its progress until it has ended; exit as submit --wait."),
    ] = False,
    live: Live = True,
    as_json: Json = False,
    router: Router = ROUTER,
) -> None:
    """Show how a batch stands, and whether its deadline will hold."""
    from chiron.cli.batch.show import show_status
    from chiron.cli.runner import execute

    execute(show_status(router, batch_id, watch=watch, live=live, as_json=as_json))


@app.command("list")
def list_batches(
    open_only: Annotated[bool, typer.Option("--open", help="Only those that have not ended.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="0: all.")] = 50,
    as_json: Json = False,
    router: Router = ROUTER,
) -> None:
    """List the batches, the newest first."""
    from chiron.cli.batch.show import show_list
    from chiron.cli.runner import execute

    execute(show_list(router, open_only=open_only, limit=limit, as_json=as_json))


@app.command("results")
def results(
    batch_id: BatchId,
    output: Output = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for those still to come.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Pass over results up to this number.")] = 0,
    custom_id: Annotated[str, typer.Option(help="The result of this item alone.")] = "",
    router: Router = ROUTER,
) -> None:
    """Fetch results, a JSON line each, in the order in which they were recorded."""
    from chiron.cli.batch.results import fetch_results
    from chiron.cli.runner import execute

    execute(fetch_results(router, batch_id, output, follow=follow, after=after, custom_id=custom_id))


@app.command("cancel")
def cancel(batch_id: BatchId, router: Router = ROUTER) -> None:
    """End a batch early: what has no result yet gets none; the results there are stay."""
    from chiron.cli.batch.show import cancel_batch
    from chiron.cli.runner import execute

    execute(cancel_batch(router, batch_id))


@app.command("delete")
def delete(batch_id: BatchId, router: Router = ROUTER) -> None:
    """Forget a batch that has ended, with its results, or one that was never handed in completely."""
    from chiron.cli.batch.show import delete_batch
    from chiron.cli.runner import execute

    execute(delete_batch(router, batch_id))


@app.command("usage")
def usage(as_json: Json = False, router: Router = ROUTER) -> None:
    """Show what the tenant has in the queue; to administrators, what every tenant has."""
    from chiron.cli.batch.show import show_usage
    from chiron.cli.runner import execute

    execute(show_usage(router, as_json=as_json))
