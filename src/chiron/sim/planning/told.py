"""The answer in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.sim.planning.mix import Mix
from chiron.sim.planning.need import FixedNeed, Need
from chiron.sim.planning.plan import Grown, Plan, Promised
from chiron.sim.planning.points import Point
from chiron.sim.planning.source import Slo
from chiron.sim.settings import LARGEST, SimSettings

_MINOR = 0.1
"""Of all misses of a class: a cause with a smaller part is not told."""
_SCARCE = 0.01
"""Of the time: as long as fewer than all GPUs were held for the rest, their number was not what lacked."""

_MOSTLY = 0.5
"""Of the misses: from there on it is told that they were early."""
_EQUAL = 0.0005
"""Relative differences below it are none."""


def sentences(plan: Plan) -> list[str]:
    """What was found, the most important first."""
    settings = plan.source.scenario.settings
    told = [_need(plan.need, plan.question.terms.goal, settings)]
    if plan.need.gpus is not None:
        told += _below(plan.need, settings)
        told += _upsets(plan.need)
    told.append(_fixed(plan.fixed, plan.need))
    told += mix_sentences(plan.mixes)
    for grown in plan.growth[1:]:
        told.append(f"At {grown.factor:g} times the load: {_short(grown, plan.need.gpus, settings)}")
    for promised in plan.slos[1:]:
        changed = plan.source.promising(promised.slo).scenario.settings
        told.append(f"With {slo_text(promised.slo)}: {_short(promised, plan.need.gpus, changed)}")
    return told


def slo_text(slo: Slo) -> str:
    """The promises that it changes."""
    parts = [
        f"{name} {1e3 * value:g} ms" for name, value in (("TTFT", slo.ttft_s), ("ITL", slo.itl_s)) if value
    ]
    return " and ".join(parts) or "the scenario's SLOs"


def served(point: Point) -> str:
    """What part of the requests attained, in the mean of the seeds and for the worst of them."""
    parts = []
    for name, figure in (("interactive requests", "interactive"), ("batch deadlines", "batch")):
        spread = point.spread(figure)
        if spread is None:
            continue
        share = f"{percent(spread.mean)} of the {name}"
        if len(point.attempts) > 1 and percent(spread.low) != percent(spread.mean):
            share += f" (worst of {len(point.attempts)} seeds: {percent(spread.low)})"
        parts.append(share)
    return " and ".join(parts)


def why(point: Point, settings: SimSettings) -> str:
    """Why requests missed with so many GPUs."""
    misses = point.misses
    ttft = {model.ttft_slo_s for model in settings.models}
    itl = {model.itl_slo_s for model in settings.models}
    slow = f"took more than {_limit(itl, 'ms')} a token{_p99(point, 'itl_p99_s', 'ms')}"
    if min(itl) >= LARGEST:
        slow = "had not finished at the end"
    causes = [
        (misses.refused, "were refused"),
        (
            misses.late_first_token,
            f"had no first token within {_limit(ttft, 's')}{_p99(point, 'ttft_p99_s', 's')}",
        ),
        (misses.slow_tokens, slow),
    ]
    total = sum(share for share, _ in causes)
    told = [
        f"{percent(share)} of the interactive requests {cause}"
        for share, cause in sorted(causes, reverse=True)
        if share > _MINOR * total
    ]
    if misses.late_batch:
        told.append(f"{percent(misses.late_batch)} of the batch requests missed their deadline")
    early = ""
    if total and misses.early > _MOSTLY:
        early = (
            f" ({percent(misses.early)} of those that missed came at the very beginning: begin with more "
            "instances, or count from later on with --warmup)"
        )
    return " and ".join(told) + early


def percent(share: float) -> str:
    """Of 1, so that nothing less than all reads as all."""
    if share == 1.0:
        return "100 %"
    digits = 1 if share < 0.98 else 2
    text = f"{100 * share:.{digits}f} %"
    return text if not text.startswith("100.") else "99.99 %"


def count(gpus: int) -> str:
    """So many GPUs."""
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"


def _need(need: Need, goal: float, settings: SimSettings) -> str:
    point = need.point
    if point is None:
        return _impossible(need, goal, settings)
    text = f"At least {count(point.gpus)}: {served(point)} attained"
    text += f", with {point.mean('gpus_mean'):.1f} held on average"
    return text + _price(point) + "."


def _impossible(need: Need, goal: float, settings: SimSettings) -> str:
    every = f"{percent(goal)} of the interactive requests and all deadlines"
    return f"No number of GPUs up to {need.most_gpus} attains {every} on every seed; {_best(need, settings)}"


def _best(need: Need, settings: SimSettings) -> str:
    """The best that there is, and what misses with the most GPUs that were tried: no number of them helps."""
    best, most = need.curve.best, need.curve.in_order[-1]
    text = f"the best is {count(best.gpus)} with {served(best)}. With {most.gpus}, {why(most, settings)}"
    peak = max(attempt.gpus_peak for attempt in most.attempts)
    if peak < most.gpus:
        text += f"; it never held more than {peak}, so that further ones would not help"
    return f"{text}."


def _below(need: Need, settings: SimSettings) -> list[str]:
    assert need.gpus is not None
    tried = [size for size in need.found.tried if size < need.gpus]
    if not tried:
        return ["Fewer have no room for the models' instances."]
    point = need.curve.points[max(tried)]
    text = f"With {point.gpus}: {served(point)}, because {why(point, settings)}"
    at_limit = point.mean("at_limit")
    if at_limit >= _SCARCE:
        text += f"; all {point.gpus} were held for {percent(at_limit)} of the time"
    return [text + "."]


def _upsets(need: Need) -> list[str]:
    upsets = need.found.upsets
    if not upsets:
        return []
    missed = ", ".join(f"{size} ({served(need.curve.points[size])})" for size in upsets)
    text = f"More is not always better here: {need.gpus} attain, but not {missed}."
    steady = need.found.steady_from
    if steady is None:
        return [f"{text} The most that were tried do not attain."]
    return [f"{text} From {steady} on all that were tried attain."]


def _fixed(fixed: FixedNeed, need: Need) -> str:
    if fixed.gpus is None:
        short = [name for name, instances in fixed.instances.items() if instances is None]
        if not short:
            return "Fixed fleets for all models do not fit together."
        best = "; ".join(
            f"{name}: {served(fixed.points[name])} with {fixed.points[name].gpus}" for name in short
        )
        return f"No fixed fleet attains (the best, {best})."
    price = "" if fixed.price_per_hour is None else f", {fixed.price_per_hour:,.2f} an hour"
    text = f"The smallest fixed fleet that attains holds {count(fixed.gpus)}{price}"
    point = need.point
    if point is None:
        return f"{text}."
    saved = 1 - point.mean("gpus_mean") / fixed.gpus
    than = f"{percent(abs(saved))} {'fewer' if saved > 0 else 'more'}"
    than = "as many" if abs(saved) < _EQUAL else than
    return f"{text}; {need.policy} holds {than} on average."


def mix_sentences(mixes: Sequence[Mix]) -> list[str]:
    """Which mix is the cheapest, and by how much; none when no mix was asked for."""
    if not mixes:
        return []
    priced = [mix for mix in mixes if mix.price_per_hour is not None]
    if not priced:
        return ["No mix of GPU types attains with the GPUs that there are."]
    best = priced[0]
    told = [f"The cheapest: {mix_text(best)}: {_bill(best)}."]
    if len(priced) > 1:
        told.append(f"Next: {mix_text(priced[1])}: {_bill(priced[1])}.")
    thrifty = min(priced, key=lambda mix: mix.held_per_hour or 0.0)
    if thrifty is not best:
        told.append(f"Rented by the hour held, the cheapest is {mix_text(thrifty)}: {_bill(thrifty)}.")
    for mix in mixes:
        if mix.searched and mix.price_per_hour is None:
            short = [each for each in mix.types if each.need is not None and each.need.gpus is None]
            types = ", ".join(f"{each.need.most_gpus} {each.gpu_type}" for each in short if each.need)
            told.append(f"{mix_text(mix)}: {types} do not attain.")
    left = sum(not mix.searched for mix in mixes)
    if left:
        told.append(
            f"{left} further cost more by the lower bound of their work alone, and were not simulated."
        )
    return told


def mix_text(mix: Mix) -> str:
    """Which model is on which GPUs."""
    return ", ".join(f"{model} as {profile}" for model, profile in mix.profiles.items())


def _bill(mix: Mix) -> str:
    counts = " and ".join(f"{each.need.gpus} {each.gpu_type}" for each in mix.types if each.need is not None)
    return f"{counts}, {mix.price_per_hour:,.2f} an hour, of which {mix.held_per_hour:,.2f} held"


def _short(asked: Grown | Promised, before: int | None, settings: SimSettings) -> str:
    need, fleet = asked.need, asked.fixed.gpus
    fixed = (
        " No fixed fleet does." if fleet is None else f" The smallest fixed fleet that attains holds {fleet}."
    )
    point = need.point
    if point is None:
        return f"no number up to {need.most_gpus} attains; {_best(need, settings)}{fixed}"
    text = f"at least {count(point.gpus)}, {point.mean('gpus_mean'):.1f} held on average{_price(point)}"
    known = need.curve.points.get(before or 0)
    if known is not None and not known.attains:
        text += f"; {known.gpus} would serve {served(known)}"
    return f"{text}.{fixed}"


def _price(point: Point) -> str:
    spread = point.spread("cost_per_hour")
    return "" if spread is None else f", {spread.mean:,.2f} an hour"


def _limit(values: set[float], unit: str) -> str:
    return _time(values.copy().pop(), unit) if len(values) == 1 else "their SLO"


def _p99(point: Point, figure: str, unit: str) -> str:
    spread = point.spread(figure)
    return "" if spread is None else f" (p99 {_time(spread.high, unit)})"


def _time(seconds: float, unit: str) -> str:
    return f"{1e3 * seconds:.4g} ms" if unit == "ms" or seconds < 1 else f"{seconds:.4g} s"
