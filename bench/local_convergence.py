"""How the local autoscalers converge, against the best static pair of limits that a sweep finds.

    python -m bench.local_convergence            # a few minutes; bench/results/local_convergence.json
    python -m bench.local_convergence --smoke    # a few seconds, to see that it runs

One saturated engine (8B on an A100, ShareGPT-like lengths, step times varied by up to 2 %), a decision each
second. A pair keeps the SLO when at least 99 % of the requests that finish have a mean ITL within it.
`settled` is, for both autoscalers alike, the last decision after which the batch size stays within 10 % of
the final one and the budget stays the same; the decisions of probes count. It says nothing of how good the
final pair is: that is `of_best_static`, the throughput after the warm-up over that of the best pair of the
sweep with the same seed. `static_of_best` is the same for the final pair when held from the start, so that it
leaves out how the limits moved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.saturated_engine import SaturatedEngine, Tally
from chiron.engine import get_profile
from chiron.policy.local import load_local

RESULTS = Path(__file__).parent / "results"
SLOS_S = (0.02, 0.05, 0.2, 2.0)
POLICIES = ("reactive", "model")
KEEPS = 0.99
NEAR = 0.10


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    profile: str = "llama3-8b@a100"
    seeds: tuple[int, ...] = (201, 202, 203, 204, 205)
    warm_up_s: int = 100
    measured_s: int = 200
    start_batch_sizes: tuple[int, ...] = (32, 256)
    start_budget: int = 2048
    batch_sizes: tuple[int, ...] = (64, *range(84, 132, 4), 160, 192, 256, *range(304, 408, 8), 512, 640)
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


SMOKE = Size(seeds=(201,), warm_up_s=5, measured_s=10, batch_sizes=(96, 384), budgets=(128, 512))


def static(size: Size, batch_size: int, budget: int, seed: int) -> Tally:
    """What limits that stay as they are yield after the warm-up."""
    engine = SaturatedEngine(
        get_profile(size.profile), batch_size=batch_size, step_token_budget=budget, seed=seed
    )
    engine.run(size.warm_up_s)
    return engine.run(size.measured_s)


def sweep(size: Size, seed: int) -> dict[float, dict[str, Any]]:
    """The best pair under each SLO."""
    best: dict[float, dict[str, Any]] = {}
    for batch_size in size.batch_sizes:
        for budget in size.budgets:
            if budget < batch_size:
                continue
            tally = static(size, batch_size, budget, seed)
            for slo_s in SLOS_S:
                keeps = tally.attained(slo_s) >= KEEPS
                if keeps and tally.tokens_per_s > best.get(slo_s, {}).get("tokens_per_s", 0.0):
                    best[slo_s] = {
                        "batch_size": batch_size,
                        "step_token_budget": budget,
                        "tokens_per_s": tally.tokens_per_s,
                    }
    return best


def converge(size: Size, policy: str, slo_s: float, batch_size: int, seed: int) -> dict[str, Any]:
    """One policy in closed loop."""
    engine = SaturatedEngine(
        get_profile(size.profile), batch_size=batch_size, step_token_budget=size.start_budget, seed=seed
    )
    autoscaler = load_local(policy)
    measured, limits, spent_s = Tally(), [], 0.0
    for second in range(size.warm_up_s + size.measured_s):
        interval = engine.run(1.0)
        if second >= size.warm_up_s:
            measured.add(interval)
        sample = engine.sample(interval, slo_s)
        begun_s = time.process_time()
        decision = autoscaler.decide(sample)
        spent_s += time.process_time() - begun_s
        engine.apply(decision)
        limits.append((decision.batch_size, decision.step_token_budget))
    last_batch_size, last_budget = limits[-1]
    settled = 0
    for step, (now, budget) in enumerate(limits, start=1):
        if abs(now - last_batch_size) > NEAR * last_batch_size or budget != last_budget:
            settled = step
    return {
        "policy": policy,
        "itl_slo_ms": slo_s * 1e3,
        "start_batch_size": batch_size,
        "seed": seed,
        "settled_after_decisions": settled,
        "batch_size": last_batch_size,
        "step_token_budget": last_budget,
        "tokens_per_s": measured.tokens_per_s,
        "itl_mean_ms": measured.itl_mean_s * 1e3,
        "itl_attainment": measured.attained(slo_s),
        "preemptions": measured.preemptions,
        "decision_us": spent_s / len(limits) * 1e6,
    }


def run(size: Size) -> dict[str, Any]:
    """All of it."""
    runs = []
    for seed in size.seeds:
        best = sweep(size, seed)
        for slo_s in SLOS_S:
            for batch_size in size.start_batch_sizes:
                for policy in POLICIES:
                    found = converge(size, policy, slo_s, batch_size, seed)
                    found["best_static"] = best.get(slo_s)
                    if slo_s in best:
                        best_tokens_per_s = best[slo_s]["tokens_per_s"]
                        held = static(size, found["batch_size"], found["step_token_budget"], seed)
                        found["of_best_static"] = found["tokens_per_s"] / best_tokens_per_s
                        found["static_of_best"] = held.tokens_per_s / best_tokens_per_s
                    runs.append(found)
    return {"parameters": asdict(size), "summary": summary(runs), "runs": runs}


def spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Least, median and most; None of nothing."""
    return (min(values), statistics.median(values), max(values)) if values else None


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and extremes over seeds and starts, for each policy and SLO."""
    lines = []
    for slo_s in SLOS_S:
        for policy in POLICIES:
            mine = [r for r in runs if r["policy"] == policy and r["itl_slo_ms"] == slo_s * 1e3]
            shares = [r["of_best_static"] for r in mine if "of_best_static" in r]
            held = [r["static_of_best"] for r in mine if "static_of_best" in r]
            lines.append(
                {
                    "policy": policy,
                    "itl_slo_ms": slo_s * 1e3,
                    "settled": spread([r["settled_after_decisions"] for r in mine]),
                    "settled_by_start": {
                        start: spread(
                            [r["settled_after_decisions"] for r in mine if r["start_batch_size"] == start]
                        )
                        for start in sorted({r["start_batch_size"] for r in mine})
                    },
                    "of_best_static": spread(shares),
                    "static_of_best": spread(held),
                    "itl_attainment_least": min(r["itl_attainment"] for r in mine),
                    "preemptions": sum(r["preemptions"] for r in mine),
                    "decision_us": spread([r["decision_us"] for r in mine]),
                }
            )
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
