"""Findings as tables for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from chiron.sim.ceiling import Ceiling
from chiron.sim.compare import Entry, Spread
from chiron.sim.results import SimResult
from chiron.sim.runs import INTERACTIVE_GOAL, Run, attains, parameters
from chiron.sim.scenario import Scenario

NONE = "–"


def run_table(done: Run) -> Table:
    """One run's figures."""
    result = done.result
    shares = result.slo_attainment
    rows: list[tuple[str, str]] = [
        ("requests", f"{result.requests:,}"),
        ("refused", f"{result.refused:,}"),
        ("unfinished", f"{result.unfinished:,}"),
        ("SLO attainment, interactive", _share(shares.interactive)),
        ("SLO attainment, batch", _share(shares.batch)),
        (f"attains ({INTERACTIVE_GOAL:.0%} and all deadlines)", "yes" if attains(result) else "no"),
        ("GPU-hours", f"{result.gpu_hours:.3f}"),
        ("× lower bound (oracle-lb)", _number(done.oracle_ratio, ".3f")),
        ("GPUs at most", str(result.gpus_peak)),
        ("GPU cost", _number(done.gpu_cost, ".2f")),
        ("requests per second", f"{result.throughput.requests_per_s:.2f}"),
        ("output tokens per second", f"{result.throughput.tokens_per_s:,.0f}"),
        ("requests per GPU-hour", f"{result.throughput.requests_per_gpu_hour:,.0f}"),
    ]
    for name, figure in (
        ("TTFT", result.ttft_ms),
        ("ITL", result.itl_ms),
        ("ITL p99 of each", result.itl_p99_per_request_ms),
        ("longest gap", result.longest_gap_ms),
    ):
        spread = " · ".join(_number(value, ",.1f") for value in (figure.p50, figure.p90, figure.p99))
        rows.append((f"{name} p50 · p90 · p99, ms", spread))
    rows += [
        ("scaling actions", str(result.scaling_actions)),
        ("reversals", str(result.reversals)),
        ("preemptions", f"{result.preemptions:,}"),
        ("instances lost", str(result.failures)),
        *_hand_overs(result),
        ("simulated, s", f"{result.simulated_s:,.0f}"),
        ("events", f"{result.events:,}"),
        ("wall time, s", f"{result.wall_s:.2f}"),
    ]
    title = _title(f"{done.scenario.name} · {result.policy} · seed {result.seed}")
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _hand_overs(result: SimResult) -> list[tuple[str, str]]:
    found = result.hand_overs
    if found is None:
        return []
    gaps = " · ".join(
        _number(value, ",.1f") for value in (found.gap_ms.p50, found.gap_ms.p90, found.gap_ms.p99)
    )
    return [("handed over", f"{found.done:,}"), ("their gap p50 · p90 · p99, ms", gaps)]


_COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("interactive", ("slo_attainment", "interactive"), ".2%"),
    ("batch", ("slo_attainment", "batch"), ".2%"),
    ("GPU-h", ("gpu_hours",), ".2f"),
    ("× lb", ("oracle_lb", "ratio"), ".3f"),
    ("peak", ("gpus_peak",), ".0f"),
    ("req/GPU-h", ("throughput", "requests_per_gpu_hour"), ",.0f"),
    ("TTFT p99 ms", ("ttft_ms", "p99"), ",.0f"),
    ("ITL p99 ms", ("itl_ms", "p99"), ",.0f"),
    ("actions", ("scaling_actions",), ".0f"),
    ("reversals", ("reversals",), ".0f"),
)


def comparison_table(scenario: Scenario, entries: Sequence[Entry]) -> Table:
    """One row per policy: means over the seeds, with the least and the most where they differ."""
    table = Table(title=_title(scenario.name))
    for heading in ("policy", "attains"):
        table.add_column(heading, no_wrap=True)
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", overflow="fold")
    for policy, mine in by_policy(entries).items():
        fleets = sorted({entry.fleet for entry in mine if entry.fleet is not None})
        name = policy + (
            f" ({'–'.join(str(fleet) for fleet in {fleets[0]: 0, fleets[-1]: 0})})" if fleets else ""
        )
        cells = [
            _spread(Spread.of(_at(entry.figures, path) for entry in mine), form) for _, path, form in _COLUMNS
        ]
        table.add_row(Text(name), f"{sum(entry.attains for entry in mine)}/{len(mine)}", *cells)
    return table


def ceiling_table(ceilings: Mapping[str, Sequence[Ceiling]]) -> Table:
    """The physical ceiling of each model: the most that steady batches serve; "at" is batch size / budget."""
    table = Table(title="physical ceiling: steady requests per second and GPU")
    for heading in ("model", "ITL SLO", "static", "at", "best", "at", "gain", "lb"):
        table.add_column(heading, justify="right")
    for model, found in ceilings.items():
        for each in found:
            best = each.best
            table.add_row(
                Text(model),
                f"{each.itl_slo_s * 1e3:g} ms",
                f"{each.static.requests_per_gpu_s:.2f}",
                f"{each.static.batch_size} / {each.static.step_token_budget:,}",
                NONE if best is None else f"{best.requests_per_gpu_s:.2f}",
                "no pair keeps it" if best is None else f"{best.batch_size} / {best.step_token_budget:,}",
                NONE if each.gain is None else f"{each.gain - 1:+.1%}",
                f"{each.bound_requests_per_gpu_s:.2f}",
            )
    return table


def comparison_json(
    scenario: Scenario, entries: Sequence[Entry], ceilings: Mapping[str, Sequence[Ceiling]]
) -> dict[str, Any]:
    """Every run's figures, their spread per policy, and the ceiling."""
    return {
        "scenario": scenario.name,
        "policies": {
            policy: {
                "attains": sum(entry.attains for entry in mine),
                "runs": len(mine),
                "fleets": [entry.fleet for entry in mine],
                "spread": {
                    ".".join(path): _spread_json(Spread.of(_at(entry.figures, path) for entry in mine))
                    for _, path, _ in _COLUMNS
                },
                "seeds": {str(entry.seed): entry.figures for entry in mine},
            }
            for policy, mine in by_policy(entries).items()
        },
        "ceiling": {
            model: [
                {
                    "itl_slo_s": each.itl_slo_s,
                    "static_requests_per_gpu_s": each.static.requests_per_gpu_s,
                    "best_requests_per_gpu_s": each.best and each.best.requests_per_gpu_s,
                    "best_batch_size": each.best and each.best.batch_size,
                    "best_step_token_budget": each.best and each.best.step_token_budget,
                    "gain": each.gain,
                    "bound_requests_per_gpu_s": each.bound_requests_per_gpu_s,
                }
                for each in found
            ]
            for model, found in ceilings.items()
        },
        "parameters": {
            key: value for key, value in parameters(scenario, scenario.policy).items() if key != "policy"
        },
    }


def by_policy(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries by policy, both in their order."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.policy, []).append(entry)
    return found


def _title(text: str) -> Text:
    """As a table's title; names in it may have square brackets, which are markup in a plain string."""
    return Text(text, style="table.title", justify="center")


def _at(figures: Mapping[str, Any] | None, path: Sequence[str]) -> float | None:
    found: Any = figures
    for key in path:
        if found is None:
            return None
        found = found[key]
    return None if found is None else float(found)


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return NONE
    mean = format(spread.mean, form)
    low, high = format(spread.low, form), format(spread.high, form)
    return mean if low == high else f"{mean} [{low}–{high}]"


def _spread_json(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else {"mean": spread.mean, "low": spread.low, "high": spread.high}


def _share(value: float | None) -> str:
    return _number(value, ".2%")


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
