"""Benchmarks: each prints what it measures and writes JSON; see bench/README.md."""

import os

# Before gRPC is imported: its fork handlers run in each child that a benchmark starts, and can crash it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
