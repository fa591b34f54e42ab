#!/usr/bin/env bash
# Makes a virtual environment from a lock file and installs the project into it.
#   tools/venv.sh DIR LOCK PYTHON [--tools-only | --then LOCK2]
# --tools-only leaves the project out; --then installs LOCK2 afterwards without dependencies.
set -euo pipefail
dir=$1 lock=$2 python=$3 option=${4:-} second=${5:-}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  { echo "error: Python 3.11 or newer is needed; '$python' is $("$python" --version 2>&1 || true). Set PYTHON=/path/to/python3.11" >&2; exit 1; }
rm -f "$dir/.installed"
[ -x "$dir/bin/python" ] || "$python" -m venv "$dir" ||
  { echo "error: cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }

echo "setting up $dir from $lock ..." >&2
"$dir/bin/pip" install -qq --disable-pip-version-check --require-hashes --no-deps -r "$lock" || {
  echo "error: cannot install $lock" >&2
  ! grep -q '^torch==.*+cpu' "$lock" ||
    echo "hint: torch's CPU build is not on the package index; add PyTorch's CPU index to pip's configuration" >&2
  exit 1
}
if [ "$option" = --then ]; then
  "$dir/bin/pip" install -qq --disable-pip-version-check --require-hashes --no-deps -r "$second"
fi
if [ "$option" != --tools-only ]; then
  "$dir/bin/pip" install -qq --disable-pip-version-check --no-deps --no-build-isolation -e ./client -e .
fi
touch "$dir/.installed"
