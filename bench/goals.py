"""The goals: GPU-hours over the lower bound, beside Llumnix as it is published and as tuned to each row.

    python -m bench.goals --traces DIR           # every row, seeds 101-105: an hour on two cores
    python -m bench.goals --rows 200,cv8 --policies chiron
    python -m bench.goals --smoke                # one short run, to see that it works

Chiron runs with one configuration on all rows. Llumnix at its published thresholds rarely attains on these
GPUs, whose KV cache is never full at a batch size of 256. So each row also has `llumnix-tuned`: with
migration and priorities, at the static batch size and thresholds that attain with the fewest GPU-hours on
seeds 1 to 3, found by the search of `chiron.sim.tuned`. Rows without a backlog are cut to
`--tuning-duration` for it. A run attains when 99 % of the interactive requests keep their SLOs and all batch
deadlines are met. Without `--traces` the row that replays a trace, which is not carried here, is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chiron.sim.compare import model_ceilings
from chiron.sim.policies import PolicyChoice
from chiron.sim.processes import worker_pool
from chiron.sim.runs import attains, run, smallest_fleet
from chiron.sim.scenario import Scenario, read_scenario
from chiron.sim.tuned import LLUMNIX, tuned
from chiron.sim.tuning import tune

RESULTS = Path(__file__).parent / "results"
SCENARIOS = Path(__file__).parents[1] / "examples" / "scenarios"
SEEDS = (101, 102, 103, 104, 105)
TUNING_SEED = 1
TUNED = "llumnix-tuned"
POLICIES = ("chiron", "llumnix", TUNED, "fixed-model")


@dataclass(frozen=True, slots=True)
class Row:
    """One workload and its goal."""

    scenario: str
    goal: float
    """GPU-hours over the lower bound."""


ROWS = {
    "1m": Row("w_b-8b-1m", 1.03),
    "200k": Row("w_b-8b-200k", 1.03),
    "20k": Row("w_b-8b-20k", 1.08),
    "700": Row("w_a-8b-700", 1.06),
    "200": Row("w_a-8b-200", 1.08),
    "30": Row("w_a-8b-30", 1.27),
    "cv8": Row("w_a-8b-200-cv8", 1.12),
    "azure": Row("azure-conv-8b-50", 1.30),
    "70b-78": Row("w_a-70b-78", 1.18),
    "70b-22k": Row("w_b-70b-22k", 1.15),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    row: str
    policy: str
    seed: int
    attains: bool
    ratio: float | None
    gpu_hours: float
    interactive: float | None
    batch: float | None
    scaling_actions: int
    reversals: int
    wall_s: float
    parameters: Mapping[str, float] | None = None
    """Of a tuned policy."""
    fleet: int | None = None
    """Instances of the smallest fixed fleet that attains, found with the reported requests at hand."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does."""

    row: str
    policy: str
    seed: int
    parameters: Mapping[str, float] | None = None
    """Of a tuned policy."""
    duration_s: float | None = None
    traces: Path | None = None
    """Folder of the recorded traces."""

    def __call__(self) -> Outcome | None:
        """Runs it; None when no fixed fleet attains."""
        scenario = scenario_of(self.row, self.seed, self.duration_s, self.traces)
        fleet = None
        choice = PolicyChoice(
            LLUMNIX if self.policy == TUNED else self.policy, parameters=self.parameters or {}
        )
        reading = scenario.reading()
        if self.policy == "fixed-model":
            smallest = smallest_fleet(scenario, choice, reading)
            if smallest is None:
                return None
            scenario = smallest
            fleet = sum(sum(model.initial.values()) for model in scenario.settings.models)
        done = run(scenario, choice, reading=reading)
        result = done.result
        return Outcome(
            self.row,
            self.policy,
            self.seed,
            attains(result),
            done.oracle_ratio,
            result.gpu_hours,
            result.slo_attainment.interactive,
            result.slo_attainment.batch,
            result.scaling_actions,
            result.reversals,
            result.wall_s,
            self.parameters,
            fleet,
        )


def scenario_of(row: str, seed: int, duration_s: float | None = None, traces: Path | None = None) -> Scenario:
    """The row's scenario at a seed, cut short if so wished."""
    scenario = read_scenario(SCENARIOS / f"{ROWS[row].scenario}.toml").with_seed(seed)
    if traces is not None:
        # Files of a scenario are looked for beside it.
        scenario = dataclasses.replace(scenario, file=traces / scenario.file.name)
    return scenario if duration_s is None else dataclasses.replace(scenario, duration_s=duration_s)


def tuned_parameters(
    row: str, jobs: int, duration_s: float | None, traces: Path | None
) -> Mapping[str, float]:
    """What the row's search finds; of each run, and of what it found, a line goes to stderr."""
    scenario = scenario_of(row, TUNING_SEED, None, traces)
    if duration_s is not None and duration_s < scenario.duration_s and not scenario.backlogs:
        scenario = dataclasses.replace(scenario, duration_s=duration_s)
    search = tuned(LLUMNIX, scenario.settings.models)
    best, _ = tune(
        search,
        scenario,
        jobs=jobs,
        progress=lambda trial, figures: print(
            f"# {row}: {trial}: {figures['gpu_hours']:.3f} GPU-hours", file=sys.stderr, flush=True
        ),
    )
    attaining = "attains on all seeds" if best.attains else "none attains on all seeds"
    print(f"# {row}: {dict(best.parameters)} of {best.runs} runs, {attaining}", file=sys.stderr, flush=True)
    return best.parameters


def table(outcomes: Sequence[Outcome], ceilings: dict[str, float]) -> list[str]:
    """A line of Markdown for each row and policy: the median and the spread over the seeds."""
    lines = [
        "| workload | policy | seeds that attain | × oracle-lb, median (least–most) | goal | 1.1 × goal "
        "| saturated engine | interactive, least | actions | reversals |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, policy in dict.fromkeys((each.row, each.policy) for each in outcomes):
        mine = [each for each in outcomes if (each.row, each.policy) == (row, policy)]
        ratios = [each.ratio for each in mine if each.ratio is not None]
        shares = [each.interactive for each in mine if each.interactive is not None]
        spread = (
            "–" if not ratios else f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
        )
        named = policy if mine[0].parameters is None else f"{policy} {dict(mine[0].parameters)}"
        fleets = sorted({each.fleet for each in mine if each.fleet is not None})
        named = f"{named} of {fleets[0]}–{fleets[-1]}" if fleets else named
        lines.append(
            f"| {ROWS[row].scenario} | {named} | {sum(each.attains for each in mine)} of {len(mine)} "
            f"| {spread} "
            f"| {ROWS[row].goal:.2f} | {1.1 * ROWS[row].goal:.3f} | {ceilings.get(row, float('nan')):.3f} "
            f"| {min(shares, default=float('nan')):.4f} "
            f"| {statistics.median(each.scaling_actions for each in mine):g} "
            f"| {max(each.reversals for each in mine)} |"
        )
    return lines


def ceiling_ratio(row: str, traces: Path | None) -> float:
    """× oracle-lb of an engine that never idles, at the best limits under the interactive ITL SLO."""
    (found,) = model_ceilings(scenario_of(row, TUNING_SEED, 900.0, traces)).values()
    tightest = found[0]
    if tightest.best is None:
        return float("inf")
    return tightest.bound_requests_per_gpu_s / tightest.best.requests_per_gpu_s


def measure(
    rows: Sequence[str],
    policies: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    duration_s: float | None = None,
    traces: Path | None = None,
    tuning_s: float | None = None,
) -> list[Outcome]:
    """Run everything; each outcome is printed as it comes."""
    outcomes: list[Outcome] = []
    found = {row: tuned_parameters(row, jobs, tuning_s, traces) for row in rows if TUNED in policies}
    with worker_pool(jobs) as pool:
        futures = [
            pool.submit(Task(row, policy, seed, found[row] if policy == TUNED else None, duration_s, traces))
            for row in rows
            for policy in policies
            for seed in seeds
        ]
        for future in futures:
            outcomes += _printed(future.result())
    return outcomes


def _printed(outcome: Outcome | None) -> list[Outcome]:
    if outcome is None:
        return []
    print(json.dumps(asdict(outcome)), flush=True)
    return [outcome]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--seeds", default=",".join(str(seed) for seed in SEEDS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--duration", type=float, help="cut scenarios to so many seconds")
    parser.add_argument(
        "--tuning-duration", type=float, default=2400.0, help="cut them to so many seconds for tuning"
    )
    parser.add_argument("--traces", type=Path, help="folder of recorded traces")
    parser.add_argument("--smoke", action="store_true", help="one short run of a small row")
    given = parser.parse_args()
    if given.smoke:
        print(json.dumps(asdict(outcome)) if (outcome := Task("30", "chiron", 1, None, 700.0)()) else "none")
        return
    rows, policies = given.rows.split(","), given.policies.split(",")
    if given.traces is None and given.rows == parser.get_default("rows"):
        rows.remove("azure")
    for kind, names, known in (("row", rows, ROWS), ("policy", policies, POLICIES)):
        for name in names:
            if name not in known:
                parser.error(f"unknown {kind} {name!r}; known are {', '.join(known)}")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    outcomes = measure(rows, policies, seeds, given.jobs, given.duration, given.traces, given.tuning_duration)
    ceilings = {row: ceiling_ratio(row, given.traces) for row in rows}
    order = {row: number for number, row in enumerate(ROWS)}
    outcomes.sort(key=lambda each: (order[each.row], POLICIES.index(each.policy), each.seed))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "goals.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
    print("\n".join(table(outcomes, ceilings)))


if __name__ == "__main__":
    main()
