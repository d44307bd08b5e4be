#!/usr/bin/env bash
# Sets up and runs every test: builds, C++ unit and fault tests, golden files, Python and end-to-end tests. Idempotent; prints what it does.
#   tests/run.sh [--quick]      --quick leaves out the fault rounds that take minutes
# The last line is `N passed, N failed` (and `, N skipped`); the exit status is 0 only when nothing failed.
# OPTOD_DATA names a folder of data sets; tests that need one are counted as skipped without it.
# OPTOD_TORCH_PYTHON names an interpreter that has PyTorch (5 GB, therefore not installed here); its packages are added for the Python tests, and
# those that need PyTorch are counted as skipped without it. Same minor version of Python as build/venv.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
quick=0
for arg in "$@"; do
  case "$arg" in
    --quick) quick=1 ;;
    -h|--help) sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    *) echo "run.sh: unknown option $arg (see --help)" >&2; exit 2 ;;
  esac
done
started=$(date +%s)
step() { printf '\n== [%4ds] %s\n' "$(( $(date +%s) - started ))" "$*"; }
give_up() { echo "run.sh: $*"; echo "0 passed, 1 failed"; exit 1; }
jobs=$(nproc)
results="$root/build/test-results"

step "dependencies"
deploy/install-deps.sh --all || give_up "dependencies could not be installed"

step "build (release, $jobs jobs)"
cmake --preset release >build/configure.log 2>&1 || { tail -n 30 build/configure.log; give_up "configure failed"; }
cmake --build --preset release -j "$jobs" >build/build.log 2>&1 || { grep -E 'error|FAILED' build/build.log | head -n 40; give_up "build failed"; }
tail -n 1 build/build.log

step "Python package"
build/venv/bin/pip install -q --disable-pip-version-check --no-build-isolation --force-reinstall --no-deps ./clients/python || give_up "the Python package does not install"

rm -rf "$results"; mkdir -p "$results"
export OPTOD_BIN_DIR="$root/build/bin"

step "C++ tests (ctest)"
ctest --preset release -j "$jobs" --output-junit "$results/ctest.xml" >build/ctest.log 2>&1 || true
tail -n 4 build/ctest.log | head -n 3

step "golden files"
for kind in optim zo trace; do
  build/bin/optod-golden "$kind" "tests/golden/$kind" >"$results/golden-$kind.txt" 2>&1 || true
  printf '%-6s %s\n' "$kind" "$(tail -n 1 "$results/golden-$kind.txt")"
done

if [ -n "${OPTOD_TORCH_PYTHON:-}" ]; then
  step "PyTorch"
  version='import sys; print(*sys.version_info[:2])'
  if [ "$("$OPTOD_TORCH_PYTHON" -c "$version")" != "$(build/venv/bin/python -c "$version")" ]; then
    echo "not used: $OPTOD_TORCH_PYTHON is another version of Python than build/venv"
  elif packages=$("$OPTOD_TORCH_PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)'); then
    export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
    echo "packages of $packages"
  else
    echo "not used: $OPTOD_TORCH_PYTHON cannot import torch"
  fi
fi
step "Python tests (unit)"
build/venv/bin/python -m pytest -q -p no:cacheprovider clients/python/tests --junit-xml="$results/python.xml" 2>&1 | tail -n 15
step "end-to-end tests (real server)"
build/venv/bin/python -m pytest -q -p no:cacheprovider tests/e2e --junit-xml="$results/e2e.xml" 2>&1 | tail -n 15

if [ $quick -eq 0 ]; then
  step "kill -9 rounds"
  build/venv/bin/python tests/fault/kill9.py --rounds 10 >"$results/kill9.txt" 2>&1
  echo $? >"$results/kill9.rc"
  tail -n 3 "$results/kill9.txt"
  build/venv/bin/python tests/fault/search_kill9.py >"$results/search_kill9.txt" 2>&1
  echo $? >"$results/search_kill9.rc"
  tail -n 3 "$results/search_kill9.txt"
fi

step "summary"
build/venv/bin/python tests/summary.py "$results"
