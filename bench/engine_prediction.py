"""Whether the engine model, calibrated on one run of real vLLM on the CPU, predicts another run.

    .venv-vllm/bin/python -m bench.engine_prediction            # four minutes; JSON on stdout
    .venv-vllm/bin/python -m bench.engine_prediction --smoke    # one, to see that it runs

Run A (calibration): decode steps at several batch sizes, prompts of several lengths alone, decode steps over
long contexts. Its figures become a `chiron.engine.Profile` and nothing else. Run B: requests that arrive at
random, with lengths, a batch size and a step-token budget that run A has not seen, and another seed. The
engine model is given the arrivals and lengths of B and the profile of A. B is measured twice, because by what
two runs of the same differ nothing can be predicted better. The policies see neither the profile nor its
form.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chiron.cluster.vllm_cpu import CPU_WORKER_ENV
from chiron.engine import EngineModel, EngineRequest, Profile
from chiron.testing.models import CACHE, random_llama
from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import Engine, EngineConfig
from services.worker.engines.base import EngineRequest as Order

CEILING = 16
BLOCK = 32
BUDGET_A, BUDGET_B, BATCH_B = 512, 96, 10
DECODE_BATCHES = (1, 2, 4, 8, 12, 16)
PROMPTS = (64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of run B."""

    at_s: float
    """Arrival, from the run's begin."""
    prompt: int
    """In tokens."""
    output: int


@dataclass(frozen=True, slots=True)
class Served:
    """What became of it."""

    first_s: float
    """First token, from the run's begin."""
    last_s: float
    ttft_s: float
    itl_s: float
    """Mean."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run's."""

    ttft_mean_ms: float
    itl_mean_ms: float
    tokens_per_s: float
    step_ms: float
    """Mean over the time in which it was busy."""


class Rig:
    """The real engine, and the requests that are made of it."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self._random = random.Random(seed)
        self._count = 0

    async def ask(self, prompt: int, output: int, began: float) -> Served:
        """One request of so many tokens, to its end."""
        self._count += 1
        ids = [self._random.randrange(10, self.engine.info.vocabulary_size) for _ in range(prompt)]
        sampling = pb.SamplingParams(max_tokens=output, ignore_eos=True, temperature=0.0)
        times: list[float] = []
        asked = time.monotonic()
        async for answer in self.engine.generate(Order(f"r{self._count}", ids, sampling)):
            times += [answer.time] * sum(len(delta.token_ids) for delta in answer.deltas)
        return Served(
            times[0] - began,
            times[-1] - began,
            times[0] - asked,
            (times[-1] - times[0]) / max(1, len(times) - 1),
        )

    async def decode_ms(self, batch: int, context: int, output: int) -> float:
        """Mean milliseconds of a step that decodes for a whole batch over such contexts."""
        began = time.monotonic()
        served = await asyncio.gather(*(self.ask(context, output, began) for _ in range(batch)))
        # From the last first token on all of them decode, and nothing else happens.
        late = max(served, key=lambda one: one.first_s)
        return 1e3 * late.itl_s

    async def prompt_ms(self, prompt: int) -> float:
        """Milliseconds of a step that computes one prompt whole."""
        return 1e3 * (await self.ask(prompt, 1, time.monotonic())).ttft_s


async def calibrate(rig: Rig, repeats: int, output: int) -> Profile:
    """Run A."""
    await rig.engine.set_limits(batch_size=CEILING, step_token_budget=BUDGET_A)
    await rig.decode_ms(CEILING, 8, output)
    decode = {
        batch: [await rig.decode_ms(batch, 8, output) for _ in range(repeats)] for batch in DECODE_BATCHES
    }
    prompts = {tokens: [await rig.prompt_ms(tokens) for _ in range(2 * repeats)] for tokens in PROMPTS}
    far = statistics.median([await rig.decode_ms(8, 900, output) for _ in range(repeats)])
    points = {tokens: statistics.median(found) for tokens, found in (*decode.items(), *prompts.items())}
    rising, most = [], 0.0
    for tokens, milliseconds in sorted(points.items()):
        most = max(most, milliseconds)
        rising.append((tokens, most))
    near = 8 * (8 + output / 2)
    read_s = max(1e-9, (far - points[8]) / 1e3 / (8 * (900 + output / 2) - near))
    return Profile(
        name="measured",
        gpus=1,
        step_time_ms=tuple(rising),
        kv_bytes_per_token=1,
        kv_read_bytes_per_s=1 / read_s,
        kv_capacity_tokens=rig.engine.info.kv_capacity_tokens,
        block_size=BLOCK,
        max_context_tokens=rig.engine.info.max_context_tokens,
        default_step_token_budget=BUDGET_A,
        load_s=0.0,
        wake_s=(0.0, 0.0),
    )


def workload(seed: int, count: int, per_s: float) -> list[Asked]:
    """Poisson arrivals; prompts and outputs lognormal."""
    source, now, asked = random.Random(seed), 0.0, []
    for _ in range(count):
        now += source.expovariate(per_s)
        prompt = max(4, min(400, round(source.lognormvariate(4.0, 0.8))))
        output = max(4, min(120, round(source.lognormvariate(3.2, 0.6))))
        asked.append(Asked(now, prompt, output))
    return asked


async def measure(rig: Rig, asked: Sequence[Asked]) -> tuple[list[Served], Figures]:
    """Run B on the real engine."""
    await rig.engine.set_limits(batch_size=BATCH_B, step_token_budget=BUDGET_B)
    steps, began = rig.engine.stats().steps, time.monotonic()

    async def one(request: Asked) -> Served:
        await asyncio.sleep(max(0.0, began + request.at_s - time.monotonic()))
        return await rig.ask(request.prompt, request.output, began)

    served = list(await asyncio.gather(*map(one, asked)))
    busy = busy_s([(ask.at_s, done.last_s) for ask, done in zip(asked, served, strict=True)])
    return served, figures(asked, served, rig.engine.stats().steps - steps, busy)


def predict(profile: Profile, asked: Sequence[Asked]) -> tuple[list[Served], Figures]:
    """Run B on the engine model."""
    engine = EngineModel(profile, batch_size=BATCH_B, step_token_budget=BUDGET_B)
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    now, steps, busy, coming = 0.0, 0, 0.0, 0
    while len(last) < len(asked):
        while coming < len(asked) and asked[coming].at_s <= now:
            engine.submit(EngineRequest(coming, asked[coming].prompt, asked[coming].output))
            coming += 1
        done = engine.step(now)
        if done is None:
            now = asked[coming].at_s
            continue
        now, steps, busy = now + done.duration_s, steps + done.steps, busy + done.duration_s
        first |= dict.fromkeys(done.first_tokens, now)
        last |= dict.fromkeys(done.finished, now)
    served = [
        Served(first[n], last[n], first[n] - ask.at_s, (last[n] - first[n]) / max(1, ask.output - 1))
        for n, ask in enumerate(asked)
    ]
    return served, figures(asked, served, steps, busy)


def busy_s(spans: Sequence[tuple[float, float]]) -> float:
    """Time in which at least one request was there."""
    total, until = 0.0, 0.0
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def figures(asked: Sequence[Asked], served: Sequence[Served], steps: int, busy: float) -> Figures:
    """A run's means."""
    return Figures(
        ttft_mean_ms=1e3 * statistics.fmean(one.ttft_s for one in served),
        itl_mean_ms=1e3 * statistics.fmean(one.itl_s for one in served),
        tokens_per_s=sum(one.output for one in asked) / max(one.last_s for one in served),
        step_ms=1e3 * busy / steps,
    )


def errors(of: Figures, against: Figures) -> dict[str, float]:
    """Relative error of each figure."""
    truth = asdict(against)
    return {name: round(value / truth[name] - 1, 3) for name, value in asdict(of).items()}


def each_off(of: Sequence[Served], against: Sequence[Served]) -> dict[str, float]:
    """Median over the requests of the relative error without its sign."""
    return {
        field: round(
            statistics.median(
                abs(getattr(a, field) / getattr(b, field) - 1) for a, b in zip(of, against, strict=True)
            ),
            3,
        )
        for field in ("ttft_s", "itl_s")
    }


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as one object."""
    os.environ.update({**CPU_WORKER_ENV, "VLLM_LOGGING_LEVEL": "ERROR"})
    from services.worker.engines.vllm import VllmEngine

    weights = random_llama(CACHE / "random-llama-8x512", hidden_size=512, layers=8)
    arguments = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": BLOCK,
        "max_num_batched_tokens": BUDGET_A,
        "enable_prefix_caching": False,
    }
    config = EngineConfig(
        "bench", "tiny", str(weights), "", 1, CEILING, CEILING, 0, "", engine_args=arguments
    )
    engine = await VllmEngine.start(config)
    try:
        load_before = os.getloadavg()[0]
        print("engine ready", file=sys.stderr)
        profile = await calibrate(Rig(engine, args.seed), 1 if args.smoke else 2, 20 if args.smoke else 40)
        print("calibrated", file=sys.stderr)
        asked = workload(args.seed + 1, 12 if args.smoke else args.requests, args.rate)
        rig = Rig(engine, args.seed + 2)
        first, one = await measure(rig, asked)
        second, two = await measure(rig, asked)
        load_after = os.getloadavg()[0]
    finally:
        await engine.close()
    guess, predicted = predict(profile, asked)
    return {
        "seed": args.seed,
        "requests": len(asked),
        "load_average": [round(load_before, 1), round(load_after, 1)],
        "step_time_ms": [[tokens, round(ms, 2)] for tokens, ms in profile.step_time_ms],
        "measured": [asdict(one), asdict(two)],
        "predicted": asdict(predicted),
        "error_of_means": [errors(predicted, one), errors(predicted, two)],
        "error_of_each_request": [each_off(guess, first), each_off(guess, second)],
        "second_run_against_first": errors(two, one),
        "second_run_against_first_each": each_off(second, first),
    }


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    print(json.dumps(asyncio.run(run(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
