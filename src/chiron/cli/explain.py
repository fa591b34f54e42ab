"""`chiron explain`: why the controller did what it did, and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from chiron.cli.batch.durations import seconds_of, short
from chiron.cli.decision_text import (
    came_of,
    children,
    headline,
    in_short,
    is_advice,
    numbers,
    seen,
    why_not,
)
from chiron.cli.runner import EXIT_BAD_START, CliError
from chiron.cli.status import to_json
from chiron.cluster import ClusterAdmin
from chiron.v1 import cluster_pb2 as pb

_NARROW = 60
"""Below this width labels stand above their texts."""
_PAGE = 500
_MOST_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """What is asked for."""

    controller: str
    decision_id: str = ""
    last: int | None = None
    since: str = ""
    model: str = ""
    as_json: bool = False


async def show_explanations(options: ExplainOptions) -> int:
    """Prints them. Raises CliError and AdminError."""
    if options.decision_id and (options.last is not None or options.since or options.model):
        raise CliError("give an id, or --last, --since and --model", EXIT_BAD_START)
    since_s = _since_s(options.since)
    async with ClusterAdmin(options.controller) as admin:
        if options.decision_id:
            found = await admin.decision(options.decision_id)
            _print(options, found, [explanation(found.decision, found.causes, found.followed_by, _now_ms())])
            return 0
        if options.last == 1 and not options.since and not options.model:
            found = await admin.decision("")
            _print(options, found, [explanation(found.decision, found.causes, found.followed_by, _now_ms())])
            return 0
        if options.last is None and not options.since:
            decisions = await _newest_of_each(admin, options.model)
            await _refuse_unknown(admin, options, decisions)
            nothing = not decisions and bool(options.model)
            told: RenderableType = Text(_nothing(options)) if nothing else overview(decisions, _now_ms())
            _print(options, _listed(decisions), [told])
            return 0
        most = options.last if options.last is not None else _MOST_SHOWN
        decisions = await _pages(admin, most, options.model, since_s)
        await _refuse_unknown(admin, options, decisions)
    by_id = {one.decision_id: one for one in decisions}
    shown = [
        explanation(
            one, [by_id[one.cause]] if one.cause in by_id else [], children(one, decisions), _now_ms()
        )
        for one in reversed(decisions)
    ]
    _print(options, _listed(decisions), shown or [Text(_nothing(options))])
    return 0


def explanation(
    decision: pb.Decision,
    causes: Sequence[pb.Decision],
    followed_by: Sequence[pb.Decision],
    now_ms: float,
) -> RenderableType:
    """One decision as paragraphs under labels; narrow terminals have the labels above."""
    parts: list[tuple[str, list[str]]] = []
    if decision.HasField("inputs"):
        parts.append(("Seen", [" ".join(seen(decision.inputs))]))
    told = numbers(decision)
    parts.append((_why(decision), [_ended(decision.reason), *([f"({told})"] if told else [])]))
    if causes:
        parts.append(
            ("Because", [f"{headline(one)}: {_ended(one.reason)} [{one.decision_id}]" for one in causes])
        )
    elif decision.cause:
        parts.append(("Because", [f"It follows from decision {decision.cause}."]))
    if decision.alternatives:
        parts.append(("Not", why_not(decision)))
    parts.append(("Then", came_of(decision, followed_by)))
    if decision.trace_id:
        parts.append(("Trace", [decision.trace_id]))
    title = Text(f"{_whose(decision)}{headline(decision)}", style="bold")
    return Group(title, Text(_when(decision, now_ms), style="dim"), _Labelled(parts))


def overview(decisions: Iterable[pb.Decision], now_ms: float) -> RenderableType:
    """A few lines for each decision."""
    shown = []
    for one in decisions:
        title = Text(f"{_whose(one)}{headline(one)}", style="bold")
        parts = [(_why(one), [_ended(one.reason)])]
        if one.HasField("outcome"):
            parts.append(("Then", [_ended(in_short(one))]))
        shown.append(Group(title, Text(_when(one, now_ms), style="dim"), _Labelled(parts)))
    if not shown:
        return Text("no decision has been made yet")
    return Group(*_spaced(shown))


class _Labelled:
    """Labels with texts beside them, or below where there is little room."""

    def __init__(self, parts: Sequence[tuple[str, Sequence[str]]]) -> None:
        self._parts = parts

    def __rich_console__(self, console: Console, options: object) -> Iterable[RenderableType]:
        """Draws them; where nothing is cut to a width, without padding."""
        if not console.is_terminal:
            width = max(len(label) for label, _ in self._parts) + 2
            for label, texts in self._parts:
                for index, text in enumerate(texts):
                    yield Text(f"{'' if index else label:<{width}}{text}")
            return
        if console.width < _NARROW:
            for label, texts in self._parts:
                yield Text(label, style="cyan")
                for text in texts:
                    yield Padding(Text(text), (0, 0, 0, 2))
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for label, texts in self._parts:
            for index, text in enumerate(texts):
                table.add_row("" if index else label, Text(text))
        yield table


async def _newest_of_each(admin: ClusterAdmin, model: str) -> list[pb.Decision]:
    """The newest decision of each model, those of nodes as one more; by model.

    Behind it the advice that has been given since: what was not acted on hides nothing that was.
    """
    newest: dict[str, pb.Decision] = {}
    advice: dict[str, pb.Decision] = {}
    wanted = {one.spec.name for one in (await admin.snapshot()).models if not model or one.spec.name == model}
    if model and not wanted:
        wanted = {model}
    before = ""
    while page := await admin.decisions(limit=_PAGE, model=model, before=before):
        for one in page:
            if one.model in wanted or not one.model:
                if not is_advice(one):
                    newest.setdefault(one.model, one)
                elif one.model not in newest:
                    advice.setdefault(one.model, one)
        if len(page) < _PAGE or wanted <= newest.keys():
            break
        before = page[-1].decision_id
    names = sorted(newest.keys() | advice.keys(), key=lambda name: (not name, name))
    return [kind[name] for name in names for kind in (newest, advice) if name in kind]


async def _pages(admin: ClusterAdmin, most: int, model: str, since_s: float) -> list[pb.Decision]:
    """The newest first."""
    found: list[pb.Decision] = []
    while len(found) < most:
        limit = min(_PAGE, most - len(found))
        before = found[-1].decision_id if found else ""
        page = await admin.decisions(limit=limit, model=model, since_s=since_s, before=before)
        found += page
        if len(page) < limit:
            break
    return found


async def _refuse_unknown(admin: ClusterAdmin, options: ExplainOptions, found: Sequence[pb.Decision]) -> None:
    """Raises CliError for a model that neither is there nor has decisions: its name is a slip."""
    if found or not options.model:
        return
    if all(one.spec.name != options.model for one in (await admin.snapshot()).models):
        raise CliError(f"there is no model {options.model!r}; {_nothing(options)}")


def _print(
    options: ExplainOptions,
    message: pb.GetDecisionResponse | pb.ListDecisionsResponse,
    shown: Sequence[RenderableType],
) -> None:
    if options.as_json:
        print(to_json(message))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=1000)
    console.print(Group(*_spaced(shown)), soft_wrap=not console.is_terminal, highlight=False)


def _spaced(shown: Sequence[RenderableType]) -> list[RenderableType]:
    spaced: list[RenderableType] = []
    for index, one in enumerate(shown):
        spaced += [Text(""), one] if index else [one]
    return spaced


def _listed(decisions: Sequence[pb.Decision]) -> pb.ListDecisionsResponse:
    return pb.ListDecisionsResponse(decisions=decisions)


def _nothing(options: ExplainOptions) -> str:
    about = f" about {options.model}" if options.model else ""
    return f"no decision{about}" + (f" in the last {options.since}" if options.since else " is kept")


def _why(decision: pb.Decision) -> str:
    return "Advice" if is_advice(decision) else "Why"


def _whose(decision: pb.Decision) -> str:
    return f"{decision.model}: " if decision.model and decision.model not in headline(decision) else ""


def _when(decision: pb.Decision, now_ms: float) -> str:
    made_ms = decision.time.ToMilliseconds()
    made, now = time.localtime(made_ms / 1e3), time.localtime(now_ms / 1e3)
    at = time.strftime("%H:%M:%S" if made[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", made)
    return f"decision {decision.decision_id} · {at}, {short(max(0.0, now_ms - made_ms) / 1e3)} ago"


def _ended(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else text + "."


def _since_s(text: str) -> float:
    if not text:
        return 0.0
    try:
        return seconds_of(text)
    except ValueError as error:
        raise CliError(f"--since {error}", EXIT_BAD_START) from None


def _now_ms() -> float:
    return time.time_ns() / 1e6
