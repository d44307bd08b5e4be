#!/usr/bin/env bash
# From a fresh Debian 12 machine to two finished jobs: installs, builds, starts optod and a small local language model, tunes a program by
# what it prints (job A) and trains two models through the server (job B), prints what improved, and stops what it started.
#   deploy/quickstart.sh [--keep] [--seed N]
#   --keep   leave optod and the language model running (prints how to stop them)
#   --seed N seed of both jobs (default 1)
# OPTOD_LLM_URL (and _MODEL, _KEY), when set, is used instead of the local model. Idempotent.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
keep=0; seed=1
while [ $# -gt 0 ]; do
  case "$1" in
    --keep) keep=1; shift ;;
    --seed) [ $# -ge 2 ] || { echo "quickstart: --seed needs a number" >&2; exit 2; }; seed=$2; shift 2 ;;
    -h|--help) sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    *) echo "quickstart: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done
started=$(date +%s)
step() { printf '\n== [%4ds] %s\n' "$(( $(date +%s) - started ))" "$*"; }
run=build/quickstart
mkdir -p "$run"
own_llm=0
server=""

stop_all() {
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then kill -TERM "$server"; wait "$server" 2>/dev/null || true; fi
  if [ $own_llm -eq 1 ]; then deploy/local-llm.sh stop >/dev/null 2>&1 || true; fi
}
on_exit() {
  code=$?
  if [ $keep -eq 0 ] || [ $code -ne 0 ]; then stop_all; fi
  exit $code
}
trap on_exit EXIT
trap 'exit 130' INT TERM

step "1/6 dependencies (Debian packages, PyPI)"
deploy/install-deps.sh --all

step "2/6 build"
cmake --preset release >"$run/configure.log" 2>&1 || { tail -n 20 "$run/configure.log"; exit 1; }
show=(cat); [ -t 1 ] || show=(tail -n 1)
cmake --build --preset release -j "$(nproc)" --target optod optoctl 2>&1 | tee "$run/build.log" | "${show[@]}"
build/venv/bin/pip install -q --disable-pip-version-check --no-build-isolation --force-reinstall --no-deps ./clients/python

step "3/6 language model"
if [ -z "${OPTOD_LLM_URL:-}" ]; then
  exports=$(deploy/local-llm.sh start)
  eval "$exports"
  own_llm=1
else
  echo "using $OPTOD_LLM_URL"
fi

step "4/6 optod"
build/bin/optod --data-dir "$run/data" --listen 127.0.0.1:0 --http 127.0.0.1:0 >"$run/ready" 2>"$run/optod.log" &
server=$!
for _ in $(seq 100); do grep -q '^optod ready' "$run/ready" && break; kill -0 "$server" 2>/dev/null || { tail -n 5 "$run/optod.log"; exit 1; }; sleep 0.1; done
OPTOD_ADDRESS=$(sed -n 's/^optod ready grpc=\([^ ]*\).*/\1/p' "$run/ready")
web=$(sed -n 's/.* http=\([^ ]*\).*/\1/p' "$run/ready")
export OPTOD_ADDRESS
[ -n "$OPTOD_ADDRESS" ] || { echo "quickstart: optod did not become ready:"; tail -n 5 "$run/optod.log"; exit 1; }
echo "serving on $OPTOD_ADDRESS, status page http://$web/"

step "5/6 job A: a language model tunes a program by what it prints (optoctl optimize)"
echo "how wide must the columns of a table be? deploy/quickstart/concordance: 3 parameters, judged by eval.py on 66 rows"
sed "s/seed: 1/seed: $seed/" deploy/quickstart/concordance/optimize.yaml >deploy/quickstart/concordance/.optimize.run.yaml
gate=0
build/bin/optoctl optimize deploy/quickstart/concordance/.optimize.run.yaml --summary "$run/job-a.md" --junit "$run/job-a.xml" || gate=$?
rm -f deploy/quickstart/concordance/.optimize.run.yaml
[ $gate -le 1 ] || { echo "quickstart: job A did not run (exit $gate)"; exit $gate; }

step "6/6 job B: two models learn handwritten digits through the server (gradients; losses only)"
build/venv/bin/python clients/python/examples/digits.py --seed "$seed"

step "done"
echo "look next:"
echo "  build/bin/optoctl session list                what the server holds (sessions of both jobs)"
echo "  $run/job-a.md                    what job A tried, with scores"
echo "  build/bin/optoctl optimizers                  what it can optimize with"
echo "  README.md                                     the same with your own program and your own model"
if [ $keep -eq 1 ]; then
  echo "still running: optod (pid $server; export OPTOD_ADDRESS=$OPTOD_ADDRESS; stop: kill $server)"
  [ $own_llm -eq 0 ] || echo "               language model (export OPTOD_LLM_URL=$OPTOD_LLM_URL; stop: deploy/local-llm.sh stop)"
fi
