"""`chiron batch submit`: hands in a file, and with --wait stays until it is done."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from chiron.cli.batch.bar import Telling, open_telling, say
from chiron.cli.batch.connect import connect
from chiron.cli.batch.durations import seconds_of
from chiron.cli.batch.lines import Item
from chiron.cli.batch.results import ResultsFile, write_results
from chiron.cli.batch.source import BatchFile
from chiron.cli.batch.telling import batch_json, exit_status, line_of
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.client import Batch, ChironError, Client, InvalidItemPolicy, InvalidRequest, LatePolicy, Violation

_ITEM = re.compile(r"items\[(\d+)\]\.(?:malformed|request\.)?")


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """What the command line asked for; see `chiron batch submit --help`."""

    routers: tuple[str, ...]
    file: str
    deadline: str
    wait: bool
    output: Path | None
    on_late: str
    on_invalid: str
    model: str
    priority: int | None
    batch_id: str
    metadata: tuple[str, ...]
    live: bool
    as_json: bool


async def run_submit(options: SubmitOptions) -> int:
    """Hands the file in; the exit status is that of the batch where it is waited for."""
    try:
        deadline_s = seconds_of(options.deadline)
    except ValueError as error:
        raise CliError(f"--deadline {error}", EXIT_BAD_START) from error
    metadata = _metadata(options.metadata)
    batch_id = options.batch_id or f"batch-{uuid.uuid4().hex[:20]}"
    source = BatchFile(options.file, options.model)
    with ExitStack() as held:
        held.callback(source.close)
        # Before anything is sent, so that a path that cannot be written costs nothing.
        file = (
            held.enter_context(ResultsFile(options.output, batch_id)) if options.output is not None else None
        )
        async with connect(options.routers) as client:
            with open_telling(live=options.live) as telling:
                # Before anything is sent, too.
                items = await asyncio.to_thread(_items, source)
                batch = await _hand_in(
                    client, options, source, items, batch_id, deadline_s, metadata, telling
                )
            if not options.as_json:
                print(batch.batch_id, flush=True)
            elif options.wait:
                say(f"accepted: {batch.batch_id}")
            if not options.wait:
                say(f"accepted: {batch.progress.items_received} items, due {_local(batch.deadline)}")
            else:
                batch = await wait_for(client, batch_id, file, live=options.live)
    if options.as_json:
        print(json.dumps(batch_json(batch)), flush=True)
    return exit_status(batch) if options.wait else 0


async def _hand_in(
    client: Client,
    options: SubmitOptions,
    source: BatchFile,
    items: Iterator[Item],
    batch_id: str,
    deadline_s: float,
    metadata: dict[str, str],
    telling: Telling,
) -> Batch:
    try:
        batch = await client.batch.submit(
            items,
            deadline_s=deadline_s,
            on_late=LatePolicy(options.on_late),
            on_invalid=InvalidItemPolicy(options.on_invalid),
            priority=options.priority,
            metadata=metadata,
            batch_id=batch_id,
            sent=telling.sent,
        )
    except InvalidRequest as error:
        raise CliError(_refusal(source, error), EXIT_BAD_START) from error
    except ChironError as error:
        error.add_note(_again(options, batch_id))
        raise CliError(f"{error}; {_again(options, batch_id)}") from error
    except asyncio.CancelledError:
        say(f"not accepted, and nothing of it runs; {_again(options, batch_id)}")
        raise
    telling.update(batch)
    return batch


async def wait_for(client: Client, batch_id: str, file: ResultsFile | None, *, live: bool) -> Batch:
    """Waits until a batch has ended, and writes its results meanwhile; leaving does it no harm."""
    try:
        with open_telling(live=live) as telling:
            writing = (
                asyncio.ensure_future(write_results(client, batch_id, file, follow=True))
                if file is not None
                else None
            )
            try:
                batch = await _watch(client, batch_id, telling, writing)
                if writing is not None:
                    await writing
            finally:
                if writing is not None:
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
    except asyncio.CancelledError:
        say(f"the batch goes on without you; come back with: chiron batch status {batch_id} --watch")
        more = f" --output {file.path}" if file is not None else ""
        say(f"its results: chiron batch results {batch_id} --follow{more}")
        raise
    say(line_of(batch, datetime.now(UTC)))
    return batch


async def _watch(
    client: Client, batch_id: str, telling: Telling, writing: asyncio.Task[None] | None
) -> Batch:
    last: Batch | None = None
    async with aclosing(client.batch.watch(batch_id)) as watched:
        async for last in watched:
            telling.update(last)
            if writing is not None and writing.done():
                # Results that cannot be written end the wait; all written ends with the batch.
                writing.result()
    assert last is not None, "a watch ends with the batch"
    return last


def _items(source: BatchFile) -> Iterator[Item]:
    """The file's items, the first of which is read already. Raises CliError when there is none."""
    items = iter(source)
    first = next(items, None)
    if first is None:
        raise CliError(f"{source.name}: holds no items", EXIT_BAD_START)
    return chain([first], items)


def _refusal(source: BatchFile, error: InvalidRequest) -> str:
    """What is wrong, by line."""
    lines = [text for violation in error.violations if (text := _by_line(source, violation))]
    if not lines:
        return error.message
    more = int(error.metadata.get("invalid_items", "0")) - len({text.partition(":")[0] for text in lines})
    if more > 0:
        lines.append(f"and {more} more")
    if error.metadata.get("all_looked_at") == "false":
        lines.append("what follows was not looked at")
    return f"{source.name}: nothing was accepted:\n  " + "\n  ".join(lines)


def _by_line(source: BatchFile, violation: Violation) -> str:
    match = _ITEM.match(violation.field)
    if match is None or int(match[1]) >= source.items:
        return ""
    field = violation.field[match.end() :]
    return f"line {source.line_of(int(match[1]))}: {field + ': ' if field else ''}{violation.description}"


def _again(options: SubmitOptions, batch_id: str) -> str:
    return f"hand in the same file with --batch-id {batch_id} to go on"


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise CliError(f"--metadata must be KEY=VALUE, not {pair!r}", EXIT_BAD_START)
        found[key] = value
    return found


def _local(instant: datetime) -> str:
    return instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")
