"""Public load generators for OpenAI servers, unmodified, against a local cluster's HTTP door.

    python -m bench.public_loads --engine sim  [--guidellm PATH] [--rate 6] [--seconds 30] [--seed 1]
    python -m bench.public_loads --engine vllm [...]        # SmolLM2-135M on the vLLM CPU engine

vLLM's `bench serve` runs from the vLLM environment (`make demo-vllm` makes it, and the model whose tokenizer
both tools count by). guidellm is no dependency of Chiron: `pip install guidellm==0.8.1` into its own
environment, and name its command; without it that half is left out, and the output says so. Each tool asks
`/v1/chat/completions` and `/v1/completions`: constant or Poisson arrivals of prompts of random words,
answers of a fixed length. Prints a table, and writes bench/results/public_loads_ENGINE.json. Tokens are
counted by the tool's tokenizer; the sim engine has another one, so that its prompts have more tokens than
the tool thinks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.data_path import RESULTS, machine
from chiron.cluster.local import LocalCluster
from chiron.cluster.vllm_cpu import CPU_WORKER_ENV, vllm_spec
from chiron.v1 import cluster_pb2

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
_COUNTS = ("requests", "failed")
_COLUMNS = (*_COUNTS, "requests/s", "output tokens/s", "TTFT p50", "TTFT p99", "ITL mean", "ITL p99")
_PATIENCE_S = 300.0
"""For a tool's start and the end of its last requests."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What both tools ask for."""

    url: str
    model: str
    tokenizer: Path
    rate: float
    """Requests a second."""
    seconds: float
    prompt_tokens: int
    output_tokens: int
    seed: int


async def _run(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> str:
    """Output of a tool that ends well."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise SystemExit(f"error: {command[0]} has not ended in {_PATIENCE_S:g} s") from None
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {process.returncode}:\n{out.decode()}")
    return out.decode()


async def vllm_bench_serve(asked: Asked, endpoint: str, python: Path, folder: Path) -> dict[str, float]:
    """vLLM's tool: Poisson arrivals."""
    chat = endpoint == ENDPOINTS[0]
    command = (
        *(str(python), "-m", "bench.vllm_bench_serve"),
        *("--backend", "openai-chat" if chat else "openai", "--base-url", asked.url, "--endpoint", endpoint),
        *("--model", asked.model, "--tokenizer", str(asked.tokenizer)),
        *("--dataset-name", "random", "--random-input-len", str(asked.prompt_tokens)),
        *("--random-output-len", str(asked.output_tokens), "--ignore-eos"),
        *("--num-prompts", str(round(asked.rate * asked.seconds)), "--request-rate", str(asked.rate)),
        *("--seed", str(asked.seed), "--percentile-metrics", "ttft,tpot,itl,e2el"),
    )
    out = await _run(command, folder, {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    told = json.loads(next(line for line in reversed(out.splitlines()) if line.startswith('{"')))
    return {
        "requests": told["completed"],
        "failed": told["failed"],
        "requests/s": told["request_throughput"],
        "output tokens/s": told["output_throughput"],
        "TTFT p50": told["median_ttft_ms"],
        "TTFT p99": told["p99_ttft_ms"],
        "ITL mean": told["mean_itl_ms"],
        "ITL p99": told["p99_itl_ms"],
    }


async def guidellm(asked: Asked, endpoint: str, tool: Path, folder: Path) -> dict[str, float]:
    """guidellm: arrivals at a constant rate."""
    report = folder / f"guidellm{endpoint.replace('/', '-')}.json"
    backend = f"kind=openai_http,target={asked.url},model={asked.model},request_format={endpoint}"
    command = (
        *(str(tool), "run", "--backend", backend),
        *("--profile", f"kind=constant,rate={asked.rate:g}"),
        *("--constraint", f"kind=max_requests,count={round(asked.rate * asked.seconds)}"),
        *("--tokenizer", f"kind=huggingface_auto,model={asked.tokenizer}"),
        "--data",
        f"kind=synthetic_text,prompt_tokens={asked.prompt_tokens},output_tokens={asked.output_tokens}",
        *("--seed", f"kind=static,value={asked.seed}"),
        *("--output", f"kind=json,path={report}", "--disable-console"),
    )
    await _run(command, folder, {})
    (told,) = json.loads(await asyncio.to_thread(report.read_text))["benchmarks"]
    metrics = told["metrics"]
    ttft = metrics["time_to_first_token_ms"]["successful"]
    itl = metrics["inter_token_latency_ms"]["successful"]
    return {
        "requests": metrics["request_totals"]["successful"],
        "failed": metrics["request_totals"]["errored"],
        "requests/s": metrics["requests_per_second"]["successful"]["mean"],
        "output tokens/s": metrics["output_tokens_per_second"]["successful"]["mean"],
        "TTFT p50": ttft["median"],
        "TTFT p99": ttft["percentiles"]["p99"],
        "ITL mean": itl["mean"],
        "ITL p99": itl["percentiles"]["p99"],
    }


def _spec(engine: str, weights: Path) -> cluster_pb2.ModelSpec:
    if engine == "vllm":
        return vllm_spec(str(weights), name="smollm2")
    spec = cluster_pb2.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=2)
    spec.engine_args["profile"] = "toy"
    return spec


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each tool at each endpoint, one after the other."""
    vllm = arguments.engine == "vllm"
    spec = _spec(arguments.engine, arguments.weights)
    runs: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster = LocalCluster(
            nodes=1,
            gpus=1 if vllm else 2,
            http_port=0,
            directory=folder,
            worker_python=str(arguments.vllm_python) if vllm else "",
            worker_env=dict(CPU_WORKER_ENV) if vllm else {},
        )
        async with cluster:
            await cluster.apply([spec])
            await cluster.wait_ready()
            asked = Asked(
                cluster.http_urls[0],
                spec.name,
                arguments.weights.resolve(),
                arguments.rate,
                arguments.seconds,
                arguments.prompt_tokens,
                arguments.output_tokens,
                arguments.seed,
            )
            for endpoint in ENDPOINTS:
                label = f"vllm bench serve, {endpoint}"
                runs[label] = await vllm_bench_serve(asked, endpoint, arguments.vllm_python, folder)
                if arguments.guidellm is not None:
                    runs[f"guidellm, {endpoint}"] = await guidellm(
                        asked, endpoint, arguments.guidellm, folder
                    )
    return {
        "machine": machine(),
        "engine": arguments.engine,
        "asked": {
            name: getattr(arguments, name)
            for name in ("rate", "seconds", "prompt_tokens", "output_tokens", "seed")
        },
        "runs": runs,
    }


def table(results: Mapping[str, Any]) -> str:
    """Markdown: times in milliseconds."""
    lines = ["| tool, endpoint | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for label, figures in results["runs"].items():
        cells = [f"{figures[name]:.0f}" if name in _COUNTS else f"{figures[name]:.1f}" for name in _COLUMNS]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the tools and prints what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("sim", "vllm"), default="sim")
    parser.add_argument("--guidellm", type=Path, help="its command, e.g. ~/guidellm/bin/guidellm")
    parser.add_argument("--vllm-python", type=Path, default=Path(".venv-vllm/bin/python"))
    parser.add_argument("--weights", type=Path, default=Path(".models/smollm2-135m-instruct"))
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--output-tokens", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for what in (arguments.vllm_python, arguments.weights):
        if not what.exists():
            raise SystemExit(f"error: {what} is not there: `make demo-vllm` makes it")
    arguments.vllm_python = Path(os.path.abspath(arguments.vllm_python))
    if arguments.guidellm is None:
        print("guidellm is left out: no --guidellm", file=sys.stderr)
    else:
        arguments.guidellm = Path(os.path.abspath(arguments.guidellm))
        subprocess.run([arguments.guidellm, "--version"], check=True, stdout=sys.stderr)
    results = uvloop.run(measure(arguments))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"public_loads_{arguments.engine}.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
