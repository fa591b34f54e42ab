"""The answer as tables for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from chiron.sim.compare import Spread
from chiron.sim.planning.mix import OneType
from chiron.sim.planning.need import FixedNeed, Need
from chiron.sim.planning.plan import Plan
from chiron.sim.planning.points import Point
from chiron.sim.planning.told import mix_text, sentences, slo_text
from chiron.sim.runs import parameters

NONE = "–"
_FIGURES = (
    *("interactive", "batch", "gpus_mean", "gpus_peak", "gpu_hours", "cost_per_hour", "at_limit"),
    *("ttft_p99_s", "itl_p99_s", "scaling_actions", "oracle_ratio"),
)


def plan_tables(plan: Plan) -> list[Table]:
    """The attainment curve, and what growth and other SLOs need."""
    curve = _table(
        f"{plan.source.scenario.name} · {plan.need.policy} · attainment by GPU budget",
        ("GPUs", "attains", "interactive", "batch", "held", "cost/h", "all held", "TTFT p99", "ITL p99"),
    )
    for point in plan.need.curve.in_order:
        curve.add_row(str(point.gpus), f"{point.attaining}/{len(point.attempts)}", *point_cells(point))
    tables = [curve]
    if plan.growth:
        table = _table(
            "growth", ("load", "GPUs", "held", "cost/h", "fixed", f"with {plan.need.gpus or NONE}")
        )
        for grown in plan.growth:
            cells = _answer(grown.need, grown.fixed)
            table.add_row(f"× {grown.factor:g}", *cells, _with(grown.need, plan.need.gpus))
        tables.append(table)
    if plan.slos:
        table = _table(
            "promises", ("SLO", "GPUs", "held", "cost/h", "fixed", f"with {plan.need.gpus or NONE}")
        )
        for promised in plan.slos:
            cells = _answer(promised.need, promised.fixed)
            table.add_row(slo_text(promised.slo), *cells, _with(promised.need, plan.need.gpus))
        tables.append(table)
    if plan.mixes:
        table = _table("mixes", ("profiles", "GPUs", "price/h", "held/h", "at least/h"))
        for mix in plan.mixes:
            counts = " + ".join(_of_type(each) for each in mix.types)
            table.add_row(
                mix_text(mix),
                counts,
                *(
                    NONE if price is None else f"{price:,.2f}"
                    for price in (mix.price_per_hour, mix.held_per_hour)
                ),
                f"{mix.least_price_per_hour:,.2f}",
            )
        tables.append(table)
    return tables


def plan_json(plan: Plan) -> dict[str, Any]:
    """Everything that was found; the same for the same seeds but for `wall_s`."""
    return {
        "scenario": plan.source.scenario.name,
        "policy": plan.need.policy,
        "goal": plan.question.terms.goal,
        "seeds": list(plan.question.terms.seeds),
        "answer": sentences(plan),
        **_need_json(plan.need),
        "fixed": _fixed_json(plan.fixed),
        "growth": [
            {"factor": each.factor, **_need_json(each.need), "fixed": _fixed_json(each.fixed)}
            for each in plan.growth
        ],
        "slos": [
            {
                "ttft_slo_s": each.slo.ttft_s,
                "itl_slo_s": each.slo.itl_s,
                **_need_json(each.need),
                "fixed": _fixed_json(each.fixed),
            }
            for each in plan.slos
        ],
        "mixes": [
            {
                "profiles": dict(mix.profiles),
                "price_per_hour": mix.price_per_hour,
                "held_per_hour": mix.held_per_hour,
                "least_price_per_hour": mix.least_price_per_hour,
                "searched": mix.searched,
                "types": [
                    {
                        "gpu_type": each.gpu_type,
                        "models": list(each.models),
                        "price_per_gpu_hour": each.price_per_gpu_hour,
                        **({} if each.need is None else _need_json(each.need)),
                    }
                    for each in mix.types
                ],
            }
            for mix in plan.mixes
        ],
        "runs": plan.runs,
        "parameters": parameters(plan.source.scenario, plan.policy),
    }


def _need_json(need: Need) -> dict[str, Any]:
    return {
        "gpus": need.gpus,
        "most_gpus": need.most_gpus,
        "monotone": not need.found.upsets,
        "steady_from": need.found.steady_from,
        "curve": [point_json(point) for point in need.curve.in_order],
    }


def _fixed_json(fixed: FixedNeed) -> dict[str, Any]:
    return {
        "gpus": fixed.gpus,
        "price_per_hour": fixed.price_per_hour,
        "instances": dict(fixed.instances),
        "models": {name: point_json(point) for name, point in fixed.points.items()},
    }


def point_json(point: Point) -> dict[str, Any]:
    """A point with its spread and its seeds."""
    return {
        "gpus": point.gpus,
        "attains": point.attains,
        **{figure: _spread_json(point.spread(figure)) for figure in _FIGURES},
        "misses": asdict(point.misses),
        "seeds": {str(attempt.seed): asdict(attempt) for attempt in point.attempts},
    }


def _spread_json(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)


def _table(title: str, headings: Iterable[str]) -> Table:
    table = Table(title=Text(title, style="table.title", justify="center"))
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def point_cells(point: Point) -> Sequence[str]:
    """What a row tells of a point: attained, held, cost, times."""
    return (
        _number(point, "interactive", ".2%"),
        _number(point, "batch", ".2%"),
        _number(point, "gpus_mean", ".1f"),
        _number(point, "cost_per_hour", ",.2f"),
        _number(point, "at_limit", ".0%"),
        _number(point, "ttft_p99_s", ".2f", " s"),
        _number(point, "itl_p99_s", ".1f", " ms", 1e3),
    )


def _number(point: Point, figure: str, form: str, unit: str = "", times: float = 1.0) -> str:
    spread = point.spread(figure)
    if spread is None:
        return NONE
    mean, low, high = (format(value * times, form) for value in (spread.mean, spread.low, spread.high))
    return f"{mean}{unit}" if low == high else f"{mean} [{low}–{high}]{unit}"


def _of_type(each: OneType) -> str:
    if each.need is None:
        return f"? {each.gpu_type}"
    return f"{each.need.gpus or f'> {each.need.most_gpus}'} {each.gpu_type}"


def _answer(need: Need, fixed: FixedNeed) -> Sequence[str]:
    point = need.point
    held = NONE if fixed.gpus is None else str(fixed.gpus)
    if point is None:
        return f"> {need.most_gpus}", NONE, NONE, held
    return str(point.gpus), _number(point, "gpus_mean", ".1f"), _number(point, "cost_per_hour", ",.2f"), held


def _with(need: Need, gpus: int | None) -> str:
    point = need.curve.points.get(gpus or 0)
    return NONE if point is None else _number(point, "interactive", ".2%")
