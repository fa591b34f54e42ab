"""What of each baseline is tuned, from where and in which steps: `llumnix-tuned` and its like.

A tuned baseline is what somebody who runs it would have after load tests with the workload at hand. Published
defaults are among the candidates, and the search of `chiron.sim.tuning` climbs from the best of them. Tuned
are the static batch size and what the autoscaler's thresholds are set to, not how fast it acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chiron.sim.policies import PolicyChoice
from chiron.sim.settings import SimModel
from chiron.sim.tuning import Aim, Ladders, Parameters, Search

LLUMNIX = "llumnix-priorities"
"""The policy that `llumnix-tuned` stands for: with all that was published switched on."""
BATCH_SIZES = (64, 128, 256, 512, 1024)
"""Static batch sizes that are tried, in requests, as far as the scenario's models allow them."""
_FREENESS = (-400, -100, -30, 0, 10, 30, 60, 90, 120, 160, 200, 260, 350, 500, 800)
"""In KV blocks per running request: negative where more waits than fits, for work that need not run soon."""


@dataclass(frozen=True, slots=True)
class Tunable:
    """What a search over one autoscaler goes by."""

    starts: Sequence[Parameters]
    """The published values first. With larger batches the KV cache fills, which thresholds presume."""
    values: Mapping[str, Sequence[float]]
    """By name, ascending; those of `batch_size` are added."""
    together: Sequence[tuple[str, ...]] = ()
    """See `Ladders.together`."""
    ascending: tuple[str, ...] = ()
    """Parameters each of which must be above the one before."""


TUNABLE: Mapping[str, Tunable] = {
    "llumnix": Tunable(
        (
            {"out_below": 10, "in_above": 60, "batch_size": 256},
            *(
                {"out_below": out_below, "in_above": in_above, "batch_size": batch_size}
                for batch_size, out_below, in_above in (
                    (256, 90, 160),
                    (256, 90, 260),
                    (256, 120, 350),
                    (1024, 10, 60),
                    (1024, 10, 120),
                    (1024, 10, 200),
                    (1024, 10, 350),
                    (1024, 60, 120),
                    (1024, 60, 260),
                    (1024, -100, 120),
                    (1024, -400, 260),
                )
            ),
        ),
        {"out_below": _FREENESS, "in_above": _FREENESS},
        (("out_below", "in_above"),),
        ("out_below", "in_above"),
    ),
    "utilization": Tunable(
        ({"target": 0.8, "batch_size": 256}, {"target": 0.8, "batch_size": 1024}),
        {"target": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)},
    ),
    "queue-length": Tunable(
        ({"threshold": 5, "batch_size": 256}, {"threshold": 5, "batch_size": 64}),
        {"threshold": (0.5, 1, 2, 5, 10, 20, 50, 100, 200)},
    ),
    "in-flight": Tunable(
        (
            {"target": 2, "batch_size": 256},
            {"target": 160, "batch_size": 256},
            {"target": 384, "batch_size": 1024},
        ),
        {"target": (2, 8, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 640, 768)},
    ),
    # What its planner knows besides, it has profiled.
    "dynamo-like": Tunable(
        (
            {"slo_share": 1.0, "batch_size": 256},
            {"slo_share": 0.8, "batch_size": 256},
            {"slo_share": 0.6, "batch_size": 256},
            {"slo_share": 0.4, "batch_size": 256},
            {"slo_share": 0.8, "batch_size": 1024},
        ),
        {"slo_share": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)},
    ),
}
"""By autoscaler."""


def tuned(
    policy: str,
    models: Sequence[SimModel],
    *,
    aim: Aim = Aim.ATTAINMENT,
    seeds: Sequence[int] = (1, 2, 3),
    rounds: int = 3,
    keep: float = 0.1,
) -> Search:
    """The search for a baseline's best parameters.

    Args:
        policy: its name, that of a variant included.
        models: those of the scenario: their `max_batch_size` bounds what is tried.
        aim: what the best is best at.
        seeds: see `Search.seeds`.
        rounds: see `Search.rounds`.
        keep: see `Search.keep`.

    Raises:
        ConfigError: no policy has this name.
        ValueError: nothing of its autoscaler is tuned here, or see `Search`.
    """
    autoscaler = PolicyChoice(policy).parts.autoscaler
    if autoscaler not in TUNABLE:
        raise ValueError(f"policy: nothing of {policy!r} is tuned; known are {', '.join(TUNABLE)}")
    tunable = TUNABLE[autoscaler]
    most = min(model.max_batch_size for model in models)
    sizes = [size for size in BATCH_SIZES if size <= most] or [most]
    starts = [{**start, "batch_size": min(start["batch_size"], sizes[-1])} for start in tunable.starts]

    def allowed(parameters: Parameters) -> bool:
        ordered = [parameters[name] for name in tunable.ascending]
        return all(lower < upper for lower, upper in pairwise(ordered))

    return Search(
        lambda parameters: PolicyChoice(policy, parameters=parameters),
        starts,
        seeds,
        aim,
        keep,
        Ladders({**tunable.values, "batch_size": sizes}, tunable.together, allowed) if rounds else None,
        rounds,
    )
