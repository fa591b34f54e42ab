"""Live beside simulated, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chiron.sim.recorded.beside import PHASE_NAMES, Act, Beside, Fleet, Service
from chiron.sim.results import Percentiles

NONE = "–"
_MOST_ACTS = 40


def beside_tables(found: Beside, title: str) -> RenderableType:
    """Figures, instances over time, and decisions."""
    parts: list[RenderableType] = [_figures(found, title)]
    if found.samples:
        parts.append(_instances(found))
    if found.acts:
        parts.append(_decisions(found.acts))
    if found.operators:
        told = ", ".join(f"{count} × {kind}" for kind, count in found.operators.items())
        parts.append(Text(f"Operators acted meanwhile, which is not simulated: {told}"))
    return Group(*parts)


def _figures(found: Beside, title: str) -> Table:
    table = Table(title=Text(title, style="table.title", justify="center"))
    for heading, justify in (("", "left"), ("live", "right"), ("simulated", "right"), ("", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    rows = zip(_service_rows(found.live), _service_rows(found.simulated), strict=True)
    table.add_row("requests", f"{found.requests:,}", f"{found.requests - found.left_out:,}", "")
    for (name, live, kind), (_, simulated, _) in rows:
        table.add_row(name, _told(live, kind), _told(simulated, kind), _compared(live, simulated, kind))
    live_rows = _fleet_rows(found.live_fleet) if found.live_fleet is not None else None
    for place, (name, simulated, kind) in enumerate(_fleet_rows(found.fleet)):
        live = live_rows[place][1] if live_rows is not None else None
        table.add_row(name, _told(live, kind), _told(simulated, kind), _compared(live, simulated, kind))
    return table


_Row = tuple[str, float | None, str]


def _service_rows(service: Service) -> list[_Row]:
    rows: list[_Row] = [
        ("SLO attainment, interactive", service.interactive, "share"),
        ("deadlines met, batch", service.batch, "share"),
    ]
    for name, figure in (("TTFT", service.ttft_ms), ("ITL", service.itl_ms)):
        rows += [(f"{name} {part}, ms", value, "ms") for part, value in _parts(figure)]
    return [*rows, ("preemptions", service.preemptions, "count")]


def _parts(figure: Percentiles) -> list[tuple[str, float | None]]:
    return [("p50", figure.p50), ("p90", figure.p90), ("p99", figure.p99)]


def _fleet_rows(fleet: Fleet) -> list[_Row]:
    rows: list[_Row] = [("GPU-seconds", fleet.total, "seconds")]
    rows += [(f"  {name}", fleet.gpu_seconds[name], "seconds") for name in PHASE_NAMES]
    rows.append(("GPUs at most", fleet.gpus_peak, "count"))
    return rows + [(kind, count, "count") for kind, count in fleet.acts.items()]


def _told(value: float | None, kind: str) -> str:
    if value is None:
        return NONE
    forms = {"share": "{:.2%}", "ms": "{:,.1f}", "seconds": "{:,.1f}", "count": "{:,.0f}"}
    return forms[kind].format(value)


def _compared(live: float | None, simulated: float | None, kind: str) -> str:
    if live is None or simulated is None or kind == "count":
        return ""
    if kind == "share":
        return f"{100 * (simulated - live):+.2f} points"
    return f"{simulated / live - 1:+.1%}" if live else ""


def _instances(found: Beside) -> Table:
    table = Table(title="instances: ready + loading")
    for heading in ("at", "live", "simulated"):
        table.add_column(heading, justify="right")
    for one in found.samples:
        table.add_row(
            f"{one.at_s:,.1f} s", f"{one.live_ready} + {one.live_loading}", f"{one.ready} + {one.loading}"
        )
    return table


def _decisions(acts: Sequence[Act]) -> Table:
    table = Table(title="decisions", caption=_rest(acts))
    for heading in ("at", "live", "simulated"):
        table.add_column(heading, justify="right" if heading == "at" else "left")
    for act in acts[:_MOST_ACTS]:
        told = Text(f"{act.kind} {act.model}: {act.reason}")
        table.add_row(f"{act.at_s:,.1f} s", *((told, "") if act.live else ("", told)))
    return table


def _rest(acts: Sequence[Act]) -> str | None:
    return f"{len(acts) - _MOST_ACTS} more: see --json" if len(acts) > _MOST_ACTS else None
