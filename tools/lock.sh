#!/usr/bin/env bash
# Resolves requirements/*.in into lock files that hold versions and hashes and no download addresses.
set -euo pipefail
uv=.venv/bin/uv
[ -x "$uv" ] || .venv/bin/pip install --quiet uv
for name in dev proto; do
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-header --no-annotate "requirements/$name.in" -o "requirements/$name.txt" "$@"
done
