"""Benchmarks: each prints what it measures and writes JSON; see bench/README.md."""
