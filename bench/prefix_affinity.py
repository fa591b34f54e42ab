"""What prefix affinity is worth, and what it costs.

    python -m bench.prefix_affinity            # simulated conversations; about two minutes
    python -m bench.prefix_affinity --smoke

The simulator runs the live dispatcher and the live index on conversations whose turns share all that was
said, and on requests that all share one long prompt, with affinity on and off; and hashing is timed as the
SDK and the router do it. Diagnostics go to stderr; stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from chiron.client.prefix import prefix_hashes
from chiron.engine import get_profile
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.prefixes import PrefixIndex
from chiron.policy.words import RequestClass, Role
from chiron.requests.prefixes import salted
from chiron.sim.baselines.fixed import FixedFleet
from chiron.sim.queue_settings import QueueSettings
from chiron.sim.settings import GpuType, SimModel, SimSettings
from chiron.sim.simulator import Simulation
from chiron.sim.workload import Workload
from chiron.v1 import inference_pb2 as pb

PROFILE = "llama3-8b@a100"
INSTANCES = 8
BATCH_SIZE = 64


@dataclass(frozen=True)
class Conversations:
    """Turns that arrive as people would send them."""

    count: int
    per_s: float
    """New conversations a second."""
    turns: int = 6
    system_tokens: int = 512
    """Shared by all."""
    user_tokens: int = 300
    output_tokens: int = 250
    pause_s: float = 20.0
    """Mean time from the end of an answer to the next turn, an answer taken to last 8 s."""

    def workload(self, seed: int, block: int) -> Workload:
        """The requests in the order of their arrival."""
        rng = np.random.default_rng(seed)
        rows: list[tuple[float, int, int, tuple[int, ...]]] = []
        system = [-1 - number for number in range(self.system_tokens // block)]
        for conversation, start in enumerate(np.cumsum(rng.exponential(1 / self.per_s, self.count))):
            at, said = float(start), self.system_tokens
            own = (conversation + 1) << 16
            for _ in range(self.turns):
                said += int(rng.integers(1, 2 * self.user_tokens))
                output = int(rng.integers(1, 2 * self.output_tokens))
                further = said // block - len(system)
                rows.append((at, said, output, (*system, *range(own, own + further))))
                said += output
                at += 8.0 + float(rng.exponential(self.pause_s))
        return made(rows)


def hot_prompt(count: int, per_s: float, tokens: int, seed: int, block: int) -> Workload:
    """Requests that share a long prompt but for its last tokens."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / per_s, count))
    shared = tuple(range(tokens // block))
    return made([(float(at), tokens + 64, int(rng.integers(1, 500)), shared) for at in arrivals])


def made(rows: list[tuple[float, int, int, tuple[int, ...]]]) -> Workload:
    """A workload of (arrival, prompt, output, blocks)."""
    rows.sort(key=lambda row: row[0])
    count = len(rows)
    return Workload(
        np.array([row[0] for row in rows]),
        np.array([row[1] for row in rows], dtype=np.int32),
        np.array([row[2] for row in rows], dtype=np.int32),
        np.full(count, RequestClass.INTERACTIVE, dtype=np.int8),
        np.zeros(count, dtype=np.int16),
        np.full(count, np.inf),
        tuple(row[3] for row in rows),
    )


def run(workload: Workload, affinity: bool) -> dict[str, float]:
    """One simulation of a fixed fleet at a fixed batch size."""
    profile = get_profile(PROFILE)
    model = SimModel(
        "m",
        profile,
        initial={Role.INTERACTIVE: INSTANCES},
        initial_batch_size=BATCH_SIZE,
        max_batch_size=BATCH_SIZE,
    )
    settings = SimSettings(
        (model,), (GpuType("a100", 1, INSTANCES),), queues=QueueSettings(prefix_affinity=affinity)
    )
    simulation = Simulation(settings, workload, FixedFleet(), LeastExpectedWait(), None, None)
    simulation.run()
    ledger = simulation.ledger
    ttft_ms = 1e3 * (np.array(ledger.first_token_s) - workload.arrival_s)
    cached = sum(one.engine.totals.cached_tokens for one in simulation.cluster.instances.values())
    finished = [one.engine.totals.finished for one in simulation.cluster.instances.values()]
    return {
        "hit_share": round(cached / float(workload.prompt_tokens.sum()), 3),
        "ttft_mean_ms": round(float(ttft_ms.mean()), 1),
        "ttft_p50_ms": round(float(np.percentile(ttft_ms, 50)), 1),
        "ttft_p95_ms": round(float(np.percentile(ttft_ms, 95)), 1),
        "ttft_p99_ms": round(float(np.percentile(ttft_ms, 99)), 1),
        "busiest_over_mean": round(max(finished) / (sum(finished) / len(finished)), 2),
    }


def costs() -> dict[str, dict[str, float]]:
    """Microseconds of one call, by the size of the prompt in bytes."""
    found = {}
    for size in (256, 4_096, 61_440, 4_000_000):
        request = pb.GenerateRequest(model="m", prompt="The cat sat on a mat. " * (size // 22 + 1))
        hashes = prefix_hashes(request)
        names = salted("tenant", hashes)
        index = PrefixIndex(65_536)
        found[str(size)] = {
            "hashes": len(hashes),
            "hash_us": timed(partial(prefix_hashes, request)),
            "salt_us": timed(partial(salted, "tenant", hashes)),
            "learn_us": timed(partial(index.add, "a", names)),
            "look_up_us": timed(partial(index.depths, names)),
        }
    return found


def timed(call: Callable[[], object]) -> float:
    """The best of several rounds: what the call itself takes."""
    best = float("inf")
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(50):
            call()
        best = min(best, (time.perf_counter() - began) / 50)
    return round(1e6 * best, 2)


def main() -> None:
    """Runs all and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smoke", action="store_true", help="seconds instead of minutes; the figures mean little"
    )
    smoke = parser.parse_args().smoke
    block = get_profile(PROFILE).block_size
    count = 60 if smoke else 4_000
    loads = {
        "conversations, moderate load": Conversations(count, 4.0).workload(1, block),
        "conversations, high load": Conversations(count, 8.0).workload(2, block),
        "one prompt of 6,000 tokens for all": hot_prompt(count, 20.0, 6_000, 3, block),
    }
    figures: dict[str, object] = {"profile": PROFILE, "instances": INSTANCES, "batch_size": BATCH_SIZE}
    for name, workload in loads.items():
        figures[name] = {}
        for label, affinity in (("affinity", True), ("without", False)):
            print(f"{name}, {label} …", file=sys.stderr, flush=True)
            figures[name][label] = run(workload, affinity)  # type: ignore[index]
    figures["microseconds by prompt bytes"] = costs()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
