#!/usr/bin/env bash
# Generates the Python stubs of proto/ below OUT (the repository, or a folder to compare with).
#   tools/generate_proto.sh BIN OUT
# chiron.v1 goes to the client distribution, what is below chiron.internal to the server's.
set -euo pipefail
bin=$1 out=$2
export PATH="$(cd "$bin" && pwd):$PATH"

generate() {
  local target=$1
  shift
  mkdir -p "$target"
  python -m grpc_tools.protoc -Iproto --python_out="$target" --grpc_python_out="$target" \
    --mypy_out=quiet:"$target" --mypy_grpc_out=quiet,only_async:"$target" "$@"
}
generate "$out/client/src" proto/chiron/v1/*.proto
generate "$out/src" proto/chiron/internal/v1/*.proto
generate "$out/src" proto/chiron/internal/etcd/v1/*.proto
