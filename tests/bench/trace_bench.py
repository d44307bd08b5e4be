"""trace_bench beside the peer in one run: nodes/s recorded, seconds of backward and problem instance, and their ratios.

    python tests/bench/trace_bench.py [--peer-python build/bench-venv/bin/python] [--largest 1000000] [--sizes 100,1000]

The peer is `trace-opt` from PyPI in an environment of its own (pip install trace-opt). Without it only our figures are printed, and that is said.
"""
import argparse
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def ours(largest):
    """{(shape, nodes): (nodes/s, seconds of backward + problem, bytes a node)} from the C++ bench."""
    text = subprocess.run([ROOT / "build/bin/trace_bench", str(largest)], check=True, capture_output=True, text=True).stdout
    print(text)
    out = {}
    for line in text.splitlines()[1:]:
        shape, nodes, rate, _, problem, _, per_node, _ = line.split()
        out[shape, int(nodes)] = (float(rate) * 1e6, float(problem) / 1e3, float(per_node))  # `problem` holds a backward pass of its own
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python", default=str(ROOT / "build/bench-venv/bin/python"))
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--sizes", default="100,1000")
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} threads")
    mine = ours(arguments.largest)
    try:
        peer = subprocess.run([arguments.peer_python, ROOT / "tests/bench/trace_peer.py", "--sizes", arguments.sizes], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no peer figures: {error}; {getattr(error, 'stderr', '') or ''}")
        return
    print(f"{'shape':8} {'nodes':>8} {'peer nodes/s':>13} {'ours':>11} {'ratio':>8} {'peer bw+problem s':>18} {'ours s':>9} {'ratio':>8}")
    for line in peer.stdout.splitlines():
        if not line.startswith("{"):
            continue  # the library prints too
        row = json.loads(line)
        if "left_out" in row:
            print(f"{row['shape']:8} {row['left_out']}: left out, too slow")
            continue
        rate, seconds, _ = mine[row["shape"], row["nodes"]]
        print(
            f"{row['shape']:8} {row['nodes']:8} {row['nodes_per_s']:13,} {rate:11,.0f} {rate / row['nodes_per_s']:8.0f}"
            f" {row['backward_and_problem_s']:18.4f} {seconds:9.5f} {row['backward_and_problem_s'] / seconds:8.0f}"
        )


if __name__ == "__main__":
    main()
