#!/usr/bin/env bash
# Fails when the checked-in stubs differ from what proto/ generates.
#   tools/check_proto.sh BIN
set -euo pipefail
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
tools/generate_proto.sh "$1" "$fresh"
stale=0
for dir in client/src/chiron/v1 src/chiron/internal/v1 src/chiron/internal/etcd/v1; do
  diff -rq --exclude=__pycache__ --exclude=py.typed --exclude=__init__.py "$fresh/$dir" "$dir" || stale=1
done
if [ "$stale" = 1 ]; then
  echo "error: the stubs are stale; run 'make proto' and commit the result" >&2
  exit 1
fi
