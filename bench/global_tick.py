"""Times one tick of the global autoscaler on a large cluster, and a long queue of request groups.

python -m bench.global_tick            # 1,000 nodes, 8,000 GPUs, 20 models; a million queued requests
python -m bench.global_tick --smoke    # the same code, small
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from time import perf_counter

import numpy as np

from chiron.policy.fleet import load_autoscaler
from chiron.policy.groups import GroupedRequest, RequestGroups
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


def cluster(now_s: float, nodes: int, models: int, rng: np.random.Generator) -> FleetSnapshot:
    """Eight one-GPU instances a node; demand wavers, and every model has a backlog of a hundred groups."""
    fleets = []
    loads = rng.integers(150, 260, size=nodes * 8)
    per_model = nodes * 8 // models
    for number in range(models):
        instances = tuple(
            FleetInstance(
                f"i{index}",
                f"n{index // 8}",
                Role.BATCH if index % 5 == 0 else Role.MIXED,
                Phase.READY,
                350,
                350,
                running_interactive=0 if index % 5 == 0 else int(loads[index]),
                running_batch=90,
                tokens_per_s=6_000.0,
                kv_usage=0.5,
                kv_capacity_tokens=430_000,
            )
            for index in range(number * per_model, (number + 1) * per_model)
        )
        backlog = tuple(BatchBacklog(600.0 + 30 * group, 500, 80_000) for group in range(100))
        traffic = Traffic(1.0, 4_000, 100, 0, 4_000, 400, 1_487_200, 700_000, 0.0, 1.4e9, 135_200)
        fleets.append(
            ModelFleet(f"m{number}", 1, 0, 0, 10.0, 0.2, 2.0, instances, traffic, backlog, load_time_s=20.0)
        )
    return FleetSnapshot(now_s, tuple(fleets), {f"n{node}": 0 for node in range(nodes)})


def time_ticks(name: str, nodes: int, models: int, ticks: int) -> dict[str, float]:
    """Median and worst tick in milliseconds, once a model's history is full."""
    autoscaler = load_autoscaler(name)
    rng = np.random.default_rng(1)
    taken = []
    for tick in range(ticks):
        snapshot = cluster(float(tick * 3), nodes, models, rng)
        began = perf_counter()
        autoscaler.decide(snapshot)
        taken.append((perf_counter() - began) * 1e3)
    return {"median_ms": median(taken), "worst_ms": max(taken)}


def time_groups(requests: int) -> dict[str, float]:
    """Microseconds to add a request and to take one, for a queue of this length, and to read its groups."""
    rng = np.random.default_rng(2)
    groups = RequestGroups()
    deadlines = rng.uniform(3_600.0, 90_000.0, size=requests)
    items = [GroupedRequest(i, float(deadline), float(i), 161) for i, deadline in enumerate(deadlines)]
    began = perf_counter()
    for item in items:
        groups.add(item)
    added = perf_counter()
    found = len(groups.groups())
    read = perf_counter()
    for _ in range(requests // 10):
        groups.pop()
    taken = perf_counter()
    return {
        "requests": requests,
        "groups": found,
        "add_us": (added - began) / requests * 1e6,
        "read_ms": (read - added) * 1e3,
        "take_us": (taken - read) / (requests // 10) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="run once, small")
    smoke = parser.parse_args().smoke
    nodes, models, ticks, requests = (20, 2, 5, 1_000) if smoke else (1_000, 20, 20, 1_000_000)
    result: dict[str, object] = {"nodes": nodes, "gpus": nodes * 8, "models": models}
    for name in ("chiron", "chiron-paper"):
        result[name] = time_ticks(name, nodes, models, ticks)
    result["groups"] = time_groups(requests)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
