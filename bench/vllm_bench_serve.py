"""vLLM's own `vllm bench serve`, whose command line does not start where vLLM is installed as its CPU build.

    .venv-vllm/bin/python -m bench.vllm_bench_serve ARGUMENTS OF vllm bench serve
Prints what that prints, then its figures as one JSON line.
"""

from __future__ import annotations

import json

from vllm.benchmarks.serve import add_cli_args
from vllm.benchmarks.serve import main as bench_serve
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    """Runs it."""
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    figures = bench_serve(parser.parse_args())
    print(json.dumps({name: value for name, value in figures.items() if isinstance(value, int | float)}))


if __name__ == "__main__":
    main()
