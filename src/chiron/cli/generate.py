"""`chiron generate`: one request through the SDK, printed as it comes."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any

from chiron.cli.identity import client_tls
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.client import Client, Progress, RequestClass, Slo
from chiron.rpc.identity import present
from chiron.telemetry import setup_tracing


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What the command line asked for; see `chiron generate --help`."""

    routers: tuple[str, ...]
    model: str
    prompt: str
    chat: bool
    stream: bool
    max_tokens: int | None
    temperature: float | None
    seed: int | None
    request_class: str
    slo_ttft_ms: float | None
    slo_itl_ms: float | None
    slo_deadline_s: float | None
    refuse_if_late: bool | None
    timeout_s: float | None
    lookaside: bool
    as_json: bool


class Waiting:
    """Shows on stderr what the request waits for: in place on a terminal, else a line for each instance."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._said: str | None = None

    def show(self, progress: Progress) -> None:
        """Shows it, where that is news."""
        if self._on_terminal:
            print(f"\r\x1b[K{progress.text}", end="", file=sys.stderr, flush=True)
        elif progress.instance_id != self._said:
            print(progress.text, file=sys.stderr, flush=True)
        self._said = progress.instance_id

    def over(self) -> None:
        """The answer comes, or an error: the line is free again."""
        if self._on_terminal and self._said is not None:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._said = None


async def run_generate(options: GenerateOptions) -> int:
    """Prints the text to stdout; with --json one object at the end instead."""
    if options.request_class not in list(RequestClass):
        raise CliError(f"--class must be interactive or batch, not {options.request_class}", EXIT_BAD_START)
    # Nothing else runs on this loop yet, so reading stdin may block it.
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    waiting = Waiting()
    request: dict[str, Any] = {
        "model": options.model,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
        "request_class": options.request_class,
        "slo": Slo(options.slo_ttft_ms, options.slo_itl_ms, options.slo_deadline_s),
        "refuse_if_late": options.refuse_if_late,
        "timeout_s": options.timeout_s,
        "on_progress": waiting.show,
    }
    if options.chat:
        request["messages"] = [{"role": "user", "content": text}]
    else:
        request["prompt"] = text
    try:
        connected = Client(
            options.routers, lookaside=options.lookaside, tls=client_tls(), api_key=present().api_key
        )
    except ValueError as error:
        raise CliError(str(error), EXIT_BAD_START) from error
    setup_tracing("chiron-cli")
    try:
        async with connected as client:
            if options.stream and not options.as_json:
                async for chunk in client.generate(**request):
                    waiting.over()
                    print(chunk.text, end="", flush=True)
                print()
                return 0
            completion = await client.complete(**request)
    finally:
        waiting.over()
    if not options.as_json:
        print(completion.text)
        return 0
    choice = completion.choices[0]
    print(
        json.dumps(
            {
                "request_id": completion.request_id,
                "model": completion.model,
                "text": choice.text,
                "token_ids": choice.token_ids,
                "finish_reason": choice.finish_reason,
                "attempts": completion.attempts,
                "usage": dataclasses.asdict(completion.usage),
                "timing": dataclasses.asdict(completion.timing),
            }
        )
    )
    return 0
