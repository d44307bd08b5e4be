#!/usr/bin/env python3
"""Nodes recorded a second from Python: optod.trace beside trace-opt (PyPI), the same programs in the same run, one after the other in turns.

    tests/bench/trace_record_bench.py [--repetitions 7] [--calls 5000] [--peer build/bench-venv/bin/python]

The peer's interpreter is a virtual environment of its own: python3 -m venv build/bench-venv && build/bench-venv/bin/pip install trace-opt.  Each measurement is a
fresh process that imports the package, runs the program once to warm up, then `repetitions` times; the figure is the median, by CPU time (the machine may be
busy) and by wall clock.  Nothing is sent to a server: this is the cost that tracing adds to a program.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = r'''
import importlib, json, sys, time
package, calls, repetitions = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
trace = importlib.import_module(package)
node, bundle, GRAPH = trace.node, trace.bundle, trace.GRAPH

@bundle()
def scaled(x, k):
    """k times x."""
    return x * k

def operators(n):                 # two nodes a call: the constant and the result
    x = node(1)
    for _ in range(n):
        x = x + 1
    return 2 * n

def bundles(n):
    x = node(1)
    for _ in range(n):
        x = scaled(x, 1)
    return 2 * n

def elements(n):                  # the index and the element
    xs = node(list(range(100)))
    for i in range(n):
        xs[i % 100]
    return 2 * n

def texts(n):                     # two arguments and the result
    template = node("{} of {}")
    for i in range(n):
        template.format(i, "b")
    return 3 * n

out = {}
for program in (operators, bundles, elements, texts):
    program(200)
    runs = []
    for _ in range(repetitions):
        GRAPH.clear()
        cpu, wall = time.process_time(), time.perf_counter()
        nodes = program(calls)
        runs.append((nodes / (time.process_time() - cpu), nodes / (time.perf_counter() - wall)))
    out[program.__name__] = runs
print(json.dumps(out))
'''


def measured(python, package, calls, repetitions, environment):
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:       # a file: operators read their source
        file.write(PROGRAM)
        file.flush()
        done = subprocess.run([python, "-W", "ignore", file.name, package, str(calls), str(repetitions)], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{python}: {done.stderr[-1500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7, help="of each program in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each package, in turns")
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--peer", default=str(ROOT / "build" / "bench-venv" / "bin" / "python"))
    options = parser.parse_args()
    if not os.path.exists(options.peer):
        sys.exit(f"{options.peer} is not there: python3 -m venv build/bench-venv && build/bench-venv/bin/pip install trace-opt")
    environment = dict(os.environ)
    version = subprocess.run([options.peer, "-c", "import importlib.metadata as m; print(m.version('trace-opt'))"], capture_output=True, text=True).stdout.strip()
    sides = {"ours": (sys.executable, "optod.trace"), f"trace-opt {version}": (options.peer, "opto.trace")}
    found = {side: {} for side in sides}
    load = os.getloadavg()[0]
    for _ in range(options.rounds):
        for side, (python, package) in sides.items():
            for program, runs in measured(python, package, options.calls, options.repetitions, environment).items():
                found[side].setdefault(program, []).extend(runs)
    ours, peer = found["ours"], found[f"trace-opt {version}"]
    runs = options.rounds * options.repetitions
    print(f"nodes/s recorded, median of {runs} runs of {options.calls} calls, {os.cpu_count()} threads, load {load:.1f}, Python {sys.version.split()[0]}")
    print(f"{'program':10} {'ours (CPU)':>12} {'trace-opt ' + version + ' (CPU)':>24} {'ratio':>7} {'ratio by wall clock':>20}")
    for program in ours:
        cpu = [statistics.median(r[0] for r in side[program]) for side in (ours, peer)]
        wall = [statistics.median(r[1] for r in side[program]) for side in (ours, peer)]
        print(f"{program:10} {cpu[0]:12,.0f} {cpu[1]:24,.0f} {cpu[0] / cpu[1]:7.1f} {wall[0] / wall[1]:20.1f}")


if __name__ == "__main__":
    main()
