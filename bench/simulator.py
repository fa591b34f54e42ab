"""How fast the simulator is: requests a second, memory and a profile, for 50 A100s serving an 8B model.

python -m bench.simulator              # a million requests, and linearity
python -m bench.simulator --smoke      # a few thousand
"""

from __future__ import annotations

import argparse
import cProfile
import json
import resource
from math import log
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from chiron.engine import get_profile
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass, Role
from chiron.sim.baselines.fixed import FixedFleet
from chiron.sim.settings import GpuType, SimModel, SimSettings
from chiron.sim.simulator import simulate
from chiron.sim.workload import Workload

INSTANCES = 50
RATE_PER_S = 700.0
# Means of ShareGPT with OPT's tokenizer: Kwon et al., "Efficient Memory Management for Large Language Model
# Serving with PagedAttention", SOSP 2023. The spread is this bench's assumption.
PROMPT_MEAN, OUTPUT_MEAN, SIGMA = 161.0, 338.0, 1.0


def call_ns() -> float:
    """Time of one Python function call on this machine now, to compare runs by; in nanoseconds."""

    def nothing(value: int) -> int:
        return value

    began_s = perf_counter()
    for value in range(2_000_000):
        nothing(value)
    return (perf_counter() - began_s) / 2_000_000 * 1e9


def workload(requests: int, seed: int) -> Workload:
    """Poisson arrivals, lognormal lengths."""
    rng = np.random.default_rng(seed)

    def lengths(mean: float) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        drawn = rng.lognormal(log(mean) - SIGMA**2 / 2, SIGMA, requests)
        return np.clip(np.rint(drawn), 1, 4000).astype(np.int32)

    return Workload(
        arrival_s=np.cumsum(rng.exponential(1 / RATE_PER_S, requests)),
        prompt_tokens=lengths(PROMPT_MEAN),
        output_tokens=lengths(OUTPUT_MEAN),
        request_class=np.full(requests, RequestClass.INTERACTIVE, dtype=np.int8),
        model=np.zeros(requests, dtype=np.int16),
        deadline_s=np.full(requests, np.inf),
    )


def settings() -> SimSettings:
    """50 instances that are there from the beginning."""
    model = SimModel(
        "llama3-8b", get_profile("llama3-8b@a100"), initial={Role.MIXED: INSTANCES}, initial_batch_size=256
    )
    return SimSettings(models=(model,), gpu_types=(GpuType("a100", 7, 8),), step_noise=0.02)


def measure(requests: int) -> dict[str, float | None]:
    """Simulate and tell the speed; CPU time is what a busy machine leaves comparable."""
    work = workload(requests, 1)
    began_s = process_time()
    result = simulate(settings(), work, autoscaler=FixedFleet(), dispatcher=LeastExpectedWait())
    cpu_s = process_time() - began_s
    return {
        "requests": requests,
        "wall_s": round(result.wall_s, 3),
        "requests_per_s": round(requests / result.wall_s),
        "microseconds_per_request": round(result.wall_s / requests * 1e6, 2),
        "cpu_microseconds_per_request": round(cpu_s / requests * 1e6, 2),
        "python_call_ns": round(call_ns(), 1),
        "events": result.events,
        "slo_attainment": result.slo_attainment.all,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a small run that only shows that it works")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--lines", type=int, default=25, help="lines of the profile")
    arguments = parser.parse_args()
    most = 2_000 if arguments.smoke else arguments.requests
    sizes = [most] if arguments.smoke else [most // 100, most // 10, most]
    per_request = []
    for size in sizes:
        figures = measure(size)
        per_request.append(figures["cpu_microseconds_per_request"] or 0.0)
        print(json.dumps(figures), flush=True)
    if len(sizes) > 1:
        growth = per_request[-1] / per_request[0]
        print(
            json.dumps({"requests": f"{sizes[0]} to {sizes[-1]}", "cost_per_request_times": round(growth, 2)})
        )
    profiler = cProfile.Profile()
    profiler.runcall(
        simulate,
        settings(),
        workload(min(most, 50_000), 1),
        autoscaler=FixedFleet(),
        dispatcher=LeastExpectedWait(),
    )
    print_shares(profiler, arguments.lines)


def print_shares(profiler: cProfile.Profile, lines: int) -> None:
    """Print the functions with the most time of their own, in shares of all; the profiler's cost included."""
    entries = [(entry.code, entry) for entry in profiler.getstats()]
    total_s = sum(entry.inlinetime for _, entry in entries)
    functions = [(code, entry) for code, entry in entries if not isinstance(code, str)]
    functions.sort(key=lambda function: -function[1].inlinetime)
    print(f"{'own':>6}  {'with calls':>10}  {'calls':>8}  function")
    for code, entry in functions[:lines]:
        own, whole = entry.inlinetime / total_s, entry.totaltime / total_s
        place = f"{Path(code.co_filename).stem}.{code.co_qualname}"
        print(f"{own:>6.1%}  {whole:>10.1%}  {entry.callcount:>8}  {place}")


if __name__ == "__main__":
    main()
