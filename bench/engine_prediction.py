"""Whether the engine model, calibrated on one run of real vLLM on the CPU, predicts another run.

    .venv-vllm/bin/python -m bench.engine_prediction            # three minutes; JSON on stdout
    .venv-vllm/bin/python -m bench.engine_prediction --smoke    # one, to see that it runs

Run A (calibration): decode steps at several batch sizes, prompts of several lengths alone, decode steps over
long contexts. Its figures become a `chiron.engine.Profile` and nothing else. Run B: requests that arrive at
random, with lengths, a batch size and a step-token budget that run A has not seen, and another seed. The
engine model is given the arrivals and lengths of B and the profile of A. Both are repeated in turns, so that
they see the same machine, and B against B shows by what nothing can be predicted better. The policies see
neither the profile nor its form.

Time is the engine core's own: the CPU time of its process, which computes with one thread. It stands still
while other programs have the processor. Requests arrive by it too, and what the engine would idle in between
is skipped. `stretch` is the time by the wall for each second of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections import defaultdict
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
PROMPTS = (32, 64, 128, 256, 512)
FAR = 900
"""Context of the decode steps that tell what reading the KV cache costs."""
_LOOK_S = 0.0005


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
    """One run's, in the engine's time."""

    ttft_mean_ms: float
    itl_mean_ms: float
    tokens_per_busy_s: float
    step_ms: float
    """Mean over the time in which it was busy."""


class EngineClock:
    """CPU seconds of the engine core's process, and what it would have idled."""

    def __init__(self, pid: int) -> None:
        # As clock_getcpuclockid(3) makes it.
        self._clock = (~pid << 3) | 2
        self._skipped_s = 0.0

    def now(self) -> float:
        """Seconds; they pass while the engine computes."""
        return time.clock_gettime(self._clock) + self._skipped_s

    def skip_to(self, instant: float) -> None:
        """The engine idles until then."""
        self._skipped_s += max(0.0, instant - self.now())


class Rig:
    """The real engine, and the requests that are made of it."""

    def __init__(self, engine: Engine, clock: EngineClock, seed: int) -> None:
        self.engine = engine
        self.clock = clock
        self._random = random.Random(seed)
        self._count = 0

    async def ask(self, prompt: int, output: int, began: float) -> Served:
        """One request of so many tokens, to its end."""
        self._count += 1
        ids = [self._random.randrange(10, self.engine.info.vocabulary_size) for _ in range(prompt)]
        sampling = pb.SamplingParams(max_tokens=output, ignore_eos=True, temperature=0.0)
        times: list[float] = []
        asked = self.clock.now()
        async for answer in self.engine.generate(Order(f"r{self._count}", ids, sampling)):
            times += [self.clock.now()] * sum(len(delta.token_ids) for delta in answer.deltas)
        return Served(
            times[0] - began,
            times[-1] - began,
            times[0] - asked,
            (times[-1] - times[0]) / max(1, len(times) - 1),
        )

    async def decode_ms(self, batch: int, context: int, output: int) -> float:
        """Mean milliseconds of a step that decodes for a whole batch over such contexts."""
        began = self.clock.now()
        served = await asyncio.gather(*(self.ask(context, output, began) for _ in range(batch)))
        # From the last first token on all of them decode, and nothing else happens.
        late = max(served, key=lambda one: one.first_s)
        return 1e3 * late.itl_s

    async def prompt_ms(self, prompt: int) -> float:
        """Milliseconds of a step that computes one prompt whole."""
        return 1e3 * (await self.ask(prompt, 1, self.clock.now())).ttft_s


class Calibration:
    """Run A: what each of its repetitions measured."""

    def __init__(self, output: int) -> None:
        self._output = output
        self._taken: dict[int, list[float]] = defaultdict(list)
        self._far: list[float] = []

    async def repeat(self, rig: Rig) -> None:
        """Measures everything once more."""
        await rig.engine.set_limits(batch_size=CEILING, step_token_budget=BUDGET_A)
        for batch in DECODE_BATCHES:
            self._taken[batch].append(await rig.decode_ms(batch, 8, self._output))
        for tokens in PROMPTS:
            self._taken[tokens] += [await rig.prompt_ms(tokens) for _ in range(2)]
        self._far.append(await rig.decode_ms(8, FAR, self._output))

    def profile(self, engine: Engine) -> Profile:
        """All repetitions as a profile: medians, made to rise with the tokens of a step."""
        taken = sorted(self._taken.items())
        rising = isotonic([statistics.median(found) for _, found in taken])
        more_ms = statistics.median(self._far) - statistics.median(self._taken[8])
        read_s = max(1e-9, more_ms / 1e3 / (8 * (FAR - 8)))
        return Profile(
            name="measured",
            gpus=1,
            step_time_ms=tuple(zip((tokens for tokens, _ in taken), rising, strict=True)),
            kv_bytes_per_token=1,
            kv_read_bytes_per_s=1 / read_s,
            kv_capacity_tokens=engine.info.kv_capacity_tokens,
            block_size=BLOCK,
            max_context_tokens=engine.info.max_context_tokens,
            default_step_token_budget=BUDGET_A,
            load_s=0.0,
            wake_s=(0.0, 0.0),
        )


def isotonic(values: Sequence[float]) -> list[float]:
    """The values that never fall and are nearest to these by squares (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]


def workload(seed: int, count: int, per_s: float) -> list[Asked]:
    """Poisson arrivals; prompts and outputs lognormal."""
    source, now, asked = random.Random(seed), 0.0, []
    for _ in range(count):
        now += source.expovariate(per_s)
        prompt = max(4, min(400, round(source.lognormvariate(4.0, 0.8))))
        output = max(4, min(120, round(source.lognormvariate(3.2, 0.6))))
        asked.append(Asked(now, prompt, output))
    return asked


async def measure(rig: Rig, asked: Sequence[Asked]) -> tuple[list[Served], Figures, float]:
    """Run B on the real engine; with it, how many seconds passed for each that the engine computed."""
    await rig.engine.set_limits(batch_size=BATCH_B, step_token_budget=BUDGET_B)
    steps, began, asked_at = rig.engine.stats().steps, rig.clock.now(), time.monotonic()
    tasks: list[asyncio.Task[Served]] = []
    for request in asked:
        due = began + request.at_s
        while rig.clock.now() < due:
            if all(task.done() for task in tasks):
                rig.clock.skip_to(due)
            else:
                await asyncio.sleep(_LOOK_S)
        tasks.append(asyncio.create_task(rig.ask(request.prompt, request.output, began)))
    served = list(await asyncio.gather(*tasks))
    wall_s = time.monotonic() - asked_at
    busy = busy_s([(ask.at_s, done.last_s) for ask, done in zip(asked, served, strict=True)])
    return served, figures(asked, served, rig.engine.stats().steps - steps, busy), wall_s / busy


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
        tokens_per_busy_s=sum(one.output for one in asked) / busy,
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
        (core,) = multiprocessing.active_children()
        assert core.pid is not None
        clock = EngineClock(core.pid)
        loads = [os.getloadavg()[0]]
        print("engine ready", file=sys.stderr)
        asked = workload(args.seed + 1, 12 if args.smoke else args.requests, args.rate)
        calibration, runs = Calibration(20 if args.smoke else 40), []
        # What is computed first takes longer.
        await Rig(engine, clock, args.seed).decode_ms(CEILING, 8, 40)
        for turn in range(2 if args.smoke else args.turns):
            await calibration.repeat(Rig(engine, clock, args.seed + 100 * turn))
            runs.append(await measure(Rig(engine, clock, args.seed + 100 * turn + 2), asked))
            loads.append(os.getloadavg()[0])
            print(f"turn {turn}", file=sys.stderr)
        profile = calibration.profile(engine)
    finally:
        await engine.close()
    guess, predicted = predict(profile, asked)
    first, reference, _ = runs[0]
    return {
        "seed": args.seed,
        "requests": len(asked),
        "load_average": [round(load, 1) for load in loads],
        "stretch": [round(stretch, 2) for _, _, stretch in runs],
        "step_time_ms": [[tokens, round(ms, 2)] for tokens, ms in profile.step_time_ms],
        "kv_read_us_per_1000_tokens": round(1e9 * profile.kv_read_s_per_token, 1),
        "measured": [asdict(found) for _, found, _ in runs],
        "predicted": asdict(predicted),
        "error_of_means": [errors(predicted, found) for _, found, _ in runs],
        "error_of_each_request": [each_off(guess, served) for served, _, _ in runs],
        "other_runs_against_first": [errors(found, reference) for _, found, _ in runs[1:]],
        "other_runs_against_first_each": [each_off(served, first) for served, _, _ in runs[1:]],
    }


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second of the engine's time")
    parser.add_argument("--turns", type=int, default=3, help="how often both runs are made")
    print(json.dumps(asyncio.run(run(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
