"""How well waits are estimated, over many independent runs that are anything but stationary.

    python -m bench.estimator                  # seeds 201 to 300; bench/results/estimator.json
    python -m bench.estimator --seeds 1 100    # the seeds on which constants are tuned
    python -m bench.estimator --calm           # the same without what nobody can know
    python -m bench.estimator --smoke          # a few small runs, to see that it works

Every seed draws another cluster, other lengths and another kind of trouble: a spike or a step of interactive
requests, or a batch backlog beside bursty ones that preempt it; the autoscaler `chiron` adds and removes
instances meanwhile, or a script does without warning, or nodes fail. How many requests are to wait is drawn
evenly on a logarithmic scale from 3,000 to 50,000; a file's requests arrive at 1,000 a second. From each run
at most three estimates count, of requests behind more than 2,000 others, drawn at random: R², the median
relative error and coverage are over those of all runs. Before them each run serves interactive requests and
two files for 15 minutes, so that there is something to learn from.

The baseline is position alone: requests ahead over the mean rate of all pairs, known in hindsight. Two
references share the estimate's work ahead. `told_fleet` knows in advance when instances come and go, and
nothing else: what the estimate gets wrong and it does not is what nobody could know. `known_capacity` divides
by the tokens per second that the queue's class really got until the request began: what it gets wrong is
lengths and order.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chiron.engine import get_profile
from chiron.policy.decisions import Action, FleetDecision, Retire, Start
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.fleet import GlobalAutoscaler
from chiron.policy.snapshots import FleetSnapshot
from chiron.policy.waiting import WaitEstimate
from chiron.policy.words import Phase, RequestClass, Role
from chiron.sim.arrivals import arrival_times
from chiron.sim.baselines.fixed import FixedFleet
from chiron.sim.demand import Demand, fit_to_context, merge
from chiron.sim.lengths import Lognormal
from chiron.sim.policies import PolicyChoice
from chiron.sim.queue_settings import QueueSettings
from chiron.sim.rates import Steps
from chiron.sim.results import SimResult
from chiron.sim.settings import FaultSettings, GpuType, SimModel, SimSettings
from chiron.sim.simulator import simulate
from chiron.sim.wait_figures import LONG_QUEUE, median_relative_error, r_squared
from chiron.sim.workload import Workload

RESULTS = Path(__file__).parent / "results"
NOMINAL = (0.5, 0.9, 0.95, 0.99)
PAIRS_PER_RUN = 3
WARM_UP_S = 900.0
SIZES = (3_000.0, 50_000.0)
"""Requests meant to wait: beyond what a fleet of the first size serves, or in files."""
SUBMITTED_PER_S = 1_000.0
"""Pace at which a file's requests arrive: who waits first is first, also after having been preempted."""
SMOKE_SIZES = (3_000.0, 6_000.0)
PROFILE = get_profile("llama3-8b@a100")
TOKENS_PER_GPU_S = 5_000.0
"""Rough throughput of an 8B model on an A100, to draw loads by."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One estimate and what came."""

    seed: int
    trouble: str
    ahead: int
    mean_s: float
    sd_s: float
    actual_s: float
    scores: tuple[float, ...]
    told_s: float | None
    """The estimate with the fleet as it came; None: it would never have come to this request."""
    known_capacity_s: float
    """Work ahead over the tokens per second that came."""


class Unannounced:
    """Starts instances at drawn times, and retires some while nothing waits, as an autoscaler would."""

    def __init__(self, rng: np.random.Generator, most: int) -> None:
        self._rng = rng
        self._most = most
        self._next_s = WARM_UP_S + float(rng.exponential(60.0))

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """One change at a time; at least one instance stays."""
        if snapshot.now_s < self._next_s:
            return FleetDecision((), ())
        self._next_s = snapshot.now_s + float(self._rng.exponential(240.0))
        model = snapshot.models[0]
        ready = [each for each in model.instances if each.phase is Phase.READY]
        held = sum(each.phase in (Phase.READY, Phase.LOADING) for each in model.instances)
        actions: list[Action] = []
        if self._rng.random() < 0.6 and held < self._most:
            count = int(self._rng.integers(1, 1 + min(3, self._most - held)))
            actions.append(Start(model.name, Role.MIXED, count, "drawn"))
        elif len(ready) > 1 and not model.backlog and not model.traffic.queued_interactive:
            unlucky = ready[int(self._rng.integers(len(ready)))]
            actions.append(Retire(model.name, unlucky.instance_id, "drawn"))
        return FleetDecision(tuple(actions), ())


def run(
    seed: int, *, smoke: bool = False, calm: bool = False, means: str | None = None
) -> tuple[str, Workload, SimResult]:
    """One run: its kind of trouble, the requests, and what came. calm: what nobody can know does not happen.

    means: what changes the fleet, if not as drawn.
    """
    rng = np.random.default_rng((0xE57, seed))
    instances = int(rng.integers(2, 3 if smoke else 6))
    gpus = 2 * instances + int(rng.integers(0, 5))
    sigma = float(rng.uniform(0.6, 1.1))
    ours = Lognormal(float(rng.uniform(80, 400)), float(rng.uniform(150, 500)), sigma)
    theirs = Lognormal(float(rng.uniform(80, 400)), float(rng.uniform(150, 500)), sigma)
    capacity = instances * TOKENS_PER_GPU_S
    base = capacity / ours.output_mean * float(rng.uniform(0.2, 0.5))
    trouble = ("spike", "step", "backlog", "backlog")[int(rng.integers(4))]
    cv = float(rng.choice([1.0, 2.0, 4.0, 8.0]))
    size = float(np.exp(rng.uniform(*np.log(SMOKE_SIZES if smoke else SIZES))))
    at_s = WARM_UP_S + float(rng.uniform(0, 60))
    overload = float(rng.uniform(1.5, 3.0)) / (1.5 if trouble == "step" else 1.0)
    height = max(overload, 1.2) * capacity / ours.output_mean
    length_s = size / (height - capacity / ours.output_mean)
    end_s = at_s + length_s + 300
    steps = [(0.0, base), (at_s, height), (at_s + length_s, base * (0.3 if trouble == "step" else 1.0))]
    # Batch work has come before: enough to have filled every instance for a while.
    files = [(20.0, 1_500 * instances), (500.0, 1_500 * instances)]
    if trouble == "backlog":
        end_s = at_s + 900.0 + 2.5 * size * theirs.output_mean / capacity
        steps, moment = [(0.0, base)], 60.0
        while moment < end_s:
            steps.append((moment, base * float(rng.uniform(0.6, 1.4))))
            moment += float(rng.exponential(90.0)) + 1.0
        shares = rng.dirichlet(np.ones(int(rng.integers(1, 2 if smoke else 5))))
        files += [(at_s + float(rng.uniform(0, 600)), max(1, int(size * share))) for share in shares]
    if calm:
        cv, steps = 1.0, steps if trouble != "backlog" else steps[:1]
    arrivals = arrival_times(Steps(tuple(steps)), rng, until_s=end_s, cv=cv)
    demands = [Demand(0, RequestClass.INTERACTIVE, arrivals, *_lengths(ours, rng, len(arrivals)))]
    due_s = float(rng.uniform(600, 3600))
    for arrives_s, count in files:
        times = arrives_s + np.arange(count) / SUBMITTED_PER_S
        demands.append(Demand(0, RequestClass.BATCH, times, *_lengths(theirs, rng, count), due_s))
    drawn = ("chiron", "unannounced", "failures")[int(rng.integers(3))]
    means = "fixed" if calm else means or drawn
    faults = FaultSettings()
    local = None
    autoscaler: GlobalAutoscaler = FixedFleet()
    if means == "chiron":
        policy = PolicyChoice("chiron").make()
        autoscaler, local = policy.autoscaler, policy.local
    elif means == "unannounced":
        autoscaler = Unannounced(rng, gpus)
    elif means == "failures":
        faults = FaultSettings(node_mtbf_s=gpus * float(rng.uniform(600, 2400)), node_repair_s=60.0)
    model = SimModel(
        "m",
        PROFILE,
        initial={Role.MIXED: instances},
        load_time_s=float(rng.uniform(15, 60)),
        load_time_spread=float(rng.uniform(0, 0.3)),
    )
    settings = SimSettings(
        models=(model,),
        gpu_types=(GpuType("a100", gpus, 1),),
        seed=seed,
        step_noise=0.02,
        faults=faults,
        queues=QueueSettings(estimate_every=20),
        horizon_s=end_s + 3600.0,
    )
    workload = merge(demands)
    result = simulate(settings, workload, autoscaler=autoscaler, dispatcher=LeastExpectedWait(), local=local)
    return f"{trouble}, {means}", workload, result


def _lengths(
    lengths: Lognormal, rng: np.random.Generator, count: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    prompt, output, _ = fit_to_context(*lengths.sample(rng, count), PROFILE.max_context_tokens)
    return prompt, output


def pairs_of(seed: int, trouble: str, workload: Workload, result: SimResult) -> list[Pair]:
    """The estimates of one run that count."""
    assert result.estimator is not None
    kind = RequestClass.BATCH if "backlog" in trouble else RequestClass.INTERACTIVE
    long = [
        wait
        for wait in result.estimator.waits
        if wait.request_class is kind
        and wait.at_s >= WARM_UP_S
        and wait.ahead > LONG_QUEUE
        and wait.actual_s > 0
    ]
    chosen = np.random.default_rng((0xC4, seed)).permutation(len(long))[:PAIRS_PER_RUN]
    return [
        Pair(
            *(seed, trouble, wait.ahead, wait.mean_s, wait.sd_s, wait.actual_s, wait.scores),
            wait.told_s,
            wait.tokens / served_per_s(kind, wait.at_s, wait.actual_s, workload, result),
        )
        for wait in (long[at] for at in sorted(chosen))
    ]


def served_per_s(
    kind: RequestClass, at_s: float, for_s: float, workload: Workload, result: SimResult
) -> float:
    """Output tokens per second that a class got, each request's spread evenly from the first to the last."""
    begun_s, ended_s = result.outcomes.first_token_s, result.outcomes.finish_s
    served = (workload.request_class == kind) & (ended_s > at_s) & (begun_s < at_s + for_s)
    begun_s, ended_s = begun_s[served], ended_s[served]
    inside_s = np.minimum(ended_s, at_s + for_s) - np.maximum(begun_s, at_s)
    share = np.where(ended_s > begun_s, inside_s / np.maximum(ended_s - begun_s, 1e-9), 1.0)
    return float(np.sum(workload.output_tokens[served] * share)) / for_s


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """The figures over these pairs."""
    if not pairs:
        return {"pairs": 0}
    estimated = np.array([pair.mean_s for pair in pairs])
    actual = np.array([pair.actual_s for pair in pairs])
    ahead = np.array([pair.ahead for pair in pairs], dtype=np.float64)
    position = ahead * (actual.sum() / ahead.sum())
    known = np.array([pair.known_capacity_s for pair in pairs])
    telling = [pair for pair in pairs if pair.told_s is not None]
    told = np.array([pair.told_s for pair in telling], dtype=np.float64)
    told_actual = np.array([pair.actual_s for pair in telling])
    covered = {
        str(nominal): float(
            np.mean(
                [
                    pair.actual_s
                    <= WaitEstimate(pair.mean_s, pair.sd_s, inf, nominal, scores=pair.scores).at(nominal)
                    for pair in pairs
                ]
            )
        )
        for nominal in NOMINAL
    }
    return {
        "pairs": len(pairs),
        "runs": len({pair.seed for pair in pairs}),
        "r2": r_squared(estimated, actual),
        "median_relative_error": median_relative_error(estimated, actual),
        "coverage": covered,
        "told_fleet_pairs": len(telling),
        "told_fleet_r2": r_squared(told, told_actual),
        "told_fleet_median_relative_error": median_relative_error(told, told_actual),
        "known_capacity_r2": r_squared(known, actual),
        "known_capacity_median_relative_error": median_relative_error(known, actual),
        "position_alone_r2": r_squared(position, actual),
        "position_alone_median_relative_error": median_relative_error(position, actual),
        "wait_s": [float(value) for value in np.percentile(actual, (5, 50, 95))],
    }


def main() -> None:
    """Runs the benchmark and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="a few small runs, figures without meaning")
    parser.add_argument("--calm", action="store_true", help="even arrivals, a fleet that stays as it is")
    parser.add_argument("--seeds", type=int, nargs=2, default=(201, 300), metavar=("FIRST", "LAST"))
    parser.add_argument("--json", type=Path, default=RESULTS / "estimator.json")
    arguments = parser.parse_args()
    first, last = (1, 3) if arguments.smoke else arguments.seeds
    began_s = process_time()
    pairs: list[Pair] = []
    unknown = unanswered = 0
    for seed in range(first, last + 1):
        trouble, workload, result = run(seed, smoke=arguments.smoke, calm=arguments.calm)
        assert result.estimator is not None
        unknown += result.estimator.unknown
        unanswered += result.estimator.unanswered
        pairs += pairs_of(seed, trouble, workload, result)
    found = {
        "seeds": [first, last],
        "calm": arguments.calm,
        "estimates_unknown": unknown,
        "requests_that_never_began": unanswered,
        "all": summary(pairs),
        "without_autoscaler": summary([pair for pair in pairs if "chiron" not in pair.trouble]),
        "interactive": summary([pair for pair in pairs if "backlog" not in pair.trouble]),
        "batch": summary([pair for pair in pairs if "backlog" in pair.trouble]),
        "by_trouble": {
            trouble: summary([pair for pair in pairs if pair.trouble == trouble])
            for trouble in sorted({pair.trouble for pair in pairs})
        },
    }
    print(json.dumps(found, indent=1))
    print(f"{process_time() - began_s:.0f} s of CPU")
    found["pairs"] = [asdict(pair) for pair in pairs]
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
