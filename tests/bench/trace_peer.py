"""The peer of trace_bench: microsoft/Trace (PyPI `trace-opt`), same shapes, same machine, same run. Prints one JSON object a line:
{"shape", "nodes", "nodes_per_s", "backward_and_problem_s"}. A size whose backward would pass the limit is left out and said.

    python tests/bench/trace_peer.py [--sizes 100,1000] [--limit 120]
"""
import argparse
import json
import time


def parents_of(shape, i, nodes):
    """As ParentsOf in trace_bench.cc: message i from 1, node 0 is the parameter."""
    if shape == "chain":
        return [nodes[i - 1]]
    if shape == "tree":
        return [nodes[(i - 1) // 2]]
    if shape == "diamond":
        if i % 3 == 1:
            return [nodes[0]] if i == 1 else [nodes[i - 2], nodes[i - 1]]
        return [nodes[i - (1 if i % 3 == 2 else 2)]]
    if i <= 16:
        return [nodes[0]]
    row, column = divmod(i - 1, 16)
    return [nodes[(row - 1) * 16 + 1 + (column + k * 5) % 16] for k in range(4)]


def run(shape, size):
    from opto.optimizers import OptoPrime
    from opto.trace import bundle, node
    from opto.trace.nodes import GRAPH

    GRAPH.clear()

    @bundle(description="[step] one step")
    def step(*args):
        return 12345

    @bundle(description="[join] joins")
    def join(*args):
        return 1

    parameter = node(1, name="p", trainable=True)
    nodes = [parameter]
    begin = time.perf_counter()
    for i in range(1, size):
        nodes.append(step(*parents_of(shape, i, nodes)))
    record = time.perf_counter() - begin
    first = size // 2 if shape == "tree" else size - (min(16, size - 1) if shape == "layered" else 1)
    output = join(*nodes[first:])
    optimizer = OptoPrime([parameter], llm=lambda *a, **k: None)
    begin = time.perf_counter()
    optimizer.zero_feedback()
    optimizer.backward(output, "too low")
    summary = optimizer.summarize()
    optimizer.problem_instance(summary)
    return {"shape": shape, "nodes": size, "nodes_per_s": round((size - 1) / record), "backward_and_problem_s": round(time.perf_counter() - begin, 4)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="100,1000")
    parser.add_argument("--limit", type=float, default=120, help="seconds; a size ten times larger is tried only when this one took less than a hundredth")
    arguments = parser.parse_args()
    run("chain", 50)  # imports and first calls are not measured
    for shape in ("chain", "tree", "layered", "diamond"):
        for size in map(int, arguments.sizes.split(",")):
            result = run(shape, size)
            print(json.dumps(result), flush=True)
            if result["backward_and_problem_s"] * 100 > arguments.limit:
                print(json.dumps({"shape": shape, "left_out": f"sizes over {size}"}), flush=True)
                break


if __name__ == "__main__":
    main()
