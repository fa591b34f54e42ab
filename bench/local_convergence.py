"""How the local autoscalers converge, against the best static pair of limits that a sweep finds.

    python -m bench.local_convergence            # ten minutes of CPU; bench/results/local_convergence.json
    python -m bench.local_convergence --smoke    # a few seconds, to see that it runs

One saturated engine (8B on an A100, ShareGPT-like lengths, step times varied by up to 2 %), a decision each
second. A pair keeps the SLO when at least 99 % of the requests that finish have a mean ITL within it.

How soon, in decisions, in two ways; those of probes count. `settled` is the last decision after which the
batch size stays within 10 % of the final one and the budget stays the same, however bad the final pair is.
`arrived` is the last one not followed by 20 seconds that come within 10 % of the best static pair: at least
90 % of its throughput at a mean ITL of at most 110 % of the SLO; null when the run does not end there. Twenty
seconds, since the best static pair itself comes down to 93 % in the worst 20 and to 89 % in the worst ten.

How well, against two references: the best pair with the same seed, which is known in hindsight only, and the
pair that keeps the SLO with every seed and yields the most in all, which an operator could have set. Both are
compared over the time after the warm-up. `static_of_best` is the share for the final pair when held from the
start, so that it leaves out how the limits moved.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chiron.sim.convergence import (
    Loop,
    Pair,
    Yield,
    arrived_after,
    best_pair,
    converge,
    settled_after,
    static,
    swept,
)

RESULTS = Path(__file__).parent / "results"
SLOS_S = (0.02, 0.05, 0.2, 2.0)
POLICIES = ("reactive", "model")
HOW_SOON = ("settled", "arrived")
HOW_WELL = ("of_best_static", "static_of_best", "of_operators_static")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    loop: Loop = field(default_factory=Loop)
    seeds: tuple[int, ...] = (201, 202, 203, 204, 205)
    start_batch_sizes: tuple[int, ...] = (32, 256)
    start_budget: int = 2048
    batch_sizes: tuple[int, ...] = (64, *range(84, 132, 4), 160, 192, 256, *range(288, 408, 8), 512, 640)
    budgets: tuple[int, ...] = (
        112,
        128,
        144,
        160,
        176,
        192,
        256,
        384,
        448,
        496,
        512,
        544,
        576,
        768,
        1024,
        2048,
    )


SMOKE = Size(
    loop=Loop(warm_up_s=10, measured_s=20),
    seeds=(201,),
    batch_sizes=(96, 384),
    budgets=(128, 512),
)


def sweep(size: Size, seed: int) -> dict[Pair, Yield]:
    """Every pair with one seed."""
    return swept(size.loop, size.batch_sizes, size.budgets, SLOS_S, seed)


def run(size: Size) -> dict[str, Any]:
    """All of it."""
    sweeps = {seed: sweep(size, seed) for seed in size.seeds}
    operators = {slo_s: best_pair(list(sweeps.values()), slo_s) for slo_s in SLOS_S}
    runs = [
        judged(size, sweeps[seed], operators[slo_s], policy, slo_s, batch_size, seed)
        for seed in size.seeds
        for slo_s in SLOS_S
        for batch_size in size.start_batch_sizes
        for policy in POLICIES
    ]
    return {"parameters": asdict(size), "summary": summary(runs), "runs": runs}


def judged(
    size: Size,
    swept: dict[Pair, Yield],
    operators: Pair | None,
    policy: str,
    slo_s: float,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """One run beside the static pairs."""
    start = (batch_size, size.start_budget)
    found = converge(size.loop, policy, slo_s, start, seed)
    measured, last = found.measured, found.limits[-1]
    line: dict[str, Any] = {
        "policy": policy,
        "itl_slo_ms": slo_s * 1e3,
        "start_batch_size": batch_size,
        "seed": seed,
        "settled": settled_after(found.limits),
        "limits": last,
        "tokens_per_s": measured.tokens_per_s,
        "itl_mean_ms": measured.itl_mean_s * 1e3,
        "itl_attainment": measured.attained(slo_s),
        "preemptions": measured.preemptions,
        "decision_us": found.decision_us,
    }
    best = best_pair([swept], slo_s)
    if best is not None:
        best_tokens_per_s = swept[best].tokens_per_s
        line |= {
            "arrived": arrived_after(found.intervals, best_tokens_per_s, slo_s),
            "best_static": best,
            "of_best_static": measured.tokens_per_s / best_tokens_per_s,
            "static_of_best": static(size.loop, last, seed).tokens_per_s / best_tokens_per_s,
        }
    if operators is not None:
        line |= {
            "operators_static": operators,
            "of_operators_static": measured.tokens_per_s / swept[operators].tokens_per_s,
        }
    return line


def spread(runs: Sequence[dict[str, Any]], key: str) -> tuple[Any, Any, Any] | None:
    """Least, median and most of a figure; a null is more than any number; None where no run has it."""
    values = [math.inf if line[key] is None else line[key] for line in runs if key in line]
    if not values:
        return None
    least, median, most = (
        None if math.isinf(value) else value
        for value in (min(values), statistics.median(values), max(values))
    )
    return least, median, most


def half_as_many(runs: Sequence[dict[str, Any]], key: str) -> int:
    """Runs of `model` that take at most half the decisions of `reactive` with the same seed and start."""
    of = {policy: {place(line): line for line in runs if line["policy"] == policy} for policy in POLICIES}
    halves = 0
    for at, line in of["model"].items():
        mine, others = line.get(key), of["reactive"][at].get(key)
        halves += mine is not None and (others is None or mine <= others / 2)
    return halves


def place(line: dict[str, Any]) -> tuple[int, int]:
    """What two runs compared have in common besides the SLO."""
    return line["seed"], line["start_batch_size"]


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and extremes over seeds and starts, for each policy and SLO."""
    lines = []
    for slo_s in SLOS_S:
        under = [line for line in runs if line["itl_slo_ms"] == slo_s * 1e3]
        for policy in POLICIES:
            mine = [line for line in under if line["policy"] == policy]
            by_start = {
                start: [line for line in mine if line["start_batch_size"] == start]
                for start in sorted({line["start_batch_size"] for line in mine})
            }
            lines.append(
                {
                    "policy": policy,
                    "itl_slo_ms": slo_s * 1e3,
                    "operators_static": mine[0].get("operators_static"),
                    "itl_attainment_least": min(line["itl_attainment"] for line in mine),
                    "preemptions": sum(line["preemptions"] for line in mine),
                }
                | {key: spread(mine, key) for key in (*HOW_SOON, *HOW_WELL, "decision_us")}
                | {
                    f"{key}_by_start": {start: spread(those, key) for start, those in by_start.items()}
                    for key in HOW_SOON
                }
            )
        lines[-1] |= {f"{key}_in_half": half_as_many(under, key) for key in HOW_SOON}
        lines[-1]["runs"] = len(under) // len(POLICIES)
    return lines


def main() -> None:
    """Runs the benchmark and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="a few seconds, figures without meaning")
    parser.add_argument("--json", type=Path, default=RESULTS / "local_convergence.json")
    arguments = parser.parse_args()
    found = run(SMOKE if arguments.smoke else Size())
    print(json.dumps(found["summary"], indent=1))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
