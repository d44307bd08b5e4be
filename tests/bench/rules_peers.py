"""Step times of the first-order rules beside other implementations: same sizes, same run, step by step in turns, as many threads.

    PYTHON tests/bench/rules_peers.py [--elements 104857600] [--rounds 9] [--only adamw,muon] [--peers DIR]

PYTHON needs torch; bitsandbytes, torchao and transformers are used when they are there.  --peers: a folder with checkouts of the papers' own
code, named as their repositories (rules_peer_makers.py names them); what is missing or does not run on a CPU is said and left out.
A round is one step of ours with the NaN/Inf scan, one of ours without it (StepInput::grads_finite), a copy of the gradient's size, one step of
theirs and, where torch's fused and foreach steps are the peer, that with the cheapest guard there is in front (the sum of the gradient finite?).
Medians.  Peers get huge pages as ours do (torch's THP_MEM_ALLOC_ENABLE).  One line a pair, the whole as one JSON document at the end; ratios
above 1: ours is faster.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch is there

import torch  # noqa: E402

from rules_peer_makers import pairs  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Ours:
    """rules_bench --turns: a process that steps when told to."""

    def __init__(self, label, elements, dtype):
        command = [ROOT / "build/bin/rules_bench", "--turns", label, "--elements", str(elements), "--dtype", dtype]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        header = self.process.stdout.readline().split()
        if len(header) != 3:
            raise RuntimeError(f"rules_bench knows no rule {label}")
        self.moved = dict(zip(("copy", "step", "known"), map(float, header)))  # bytes of one turn

    def turn(self, what):
        """Milliseconds."""
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Theirs:
    """One parameter [elements / width, width] with a gradient, and their optimizer."""

    def __init__(self, make, elements, width, dtype):
        self.p = torch.nn.Parameter(torch.full((elements // width, width), 0.5, dtype=dtype))
        self.p.grad = torch.full_like(self.p, 0.01)
        self.step = make(self.p)

    def turn(self, guard=False):
        start = time.perf_counter()
        if not guard or bool(self.p.grad.sum().isfinite()):
            self.step()
        return (time.perf_counter() - start) * 1e3


def compare(pair, arguments):
    elements = min(arguments.elements, pair.most or arguments.elements)
    theirs = Theirs(pair.make, elements, pair.width, DTYPES[pair.dtype])
    ours = Ours(pair.rule, elements, pair.dtype)
    turns = [("ours", lambda: ours.turn("step")), ("theirs", theirs.turn), ("ours_known", lambda: ours.turn("known")),
             ("copy", lambda: ours.turn("copy"))]
    if pair.guarded:
        turns.append(("theirs_guarded", lambda: theirs.turn(guard=True)))
    times = {name: [] for name, _ in turns}
    for k in range(arguments.rounds + 1):
        for name, turn in turns:
            took = turn()
            if k > 0:  # the first steps touch the state
                times[name].append(took)
            time.sleep(0.01)  # the other process' threads stop waiting for work
    ours.close()
    out = {"rule": pair.rule, "dtype": pair.dtype, "elements": elements, "peer": pair.peer, **{f"{k}_ms": statistics.median(v) for k, v in times.items()}}
    copy = ours.moved["copy"] / out["copy_ms"]
    if ours.moved["step"] > 0:
        out |= {"gbs": ours.moved["step"] / out["ours_ms"] / 1e6, "of_copy": ours.moved["step"] / out["ours_ms"] / copy,
                "known_gbs": ours.moved["known"] / out["ours_known_ms"] / 1e6, "known_of_copy": ours.moved["known"] / out["ours_known_ms"] / copy}
    out |= {"ratio": out["theirs_ms"] / out["ours_ms"], "known_ratio": out["theirs_ms"] / out["ours_known_ms"]}
    if pair.guarded:
        out["guarded_ratio"] = out["theirs_guarded_ms"] / out["ours_ms"]
    return out


def line(row):
    text = f"{row['rule']:18s} {row['dtype']:5s} {row['elements'] / 1e6:6.1f} M  ours {row['ours_ms']:9.2f} ms"
    if "of_copy" in row:
        text += f" ({row['gbs']:5.1f} GB/s, {row['of_copy']:4.2f} of copy)  no scan {row['ours_known_ms']:9.2f} ms ({row['known_of_copy']:4.2f})"
    text += f"  {row['peer']:36s} {row['theirs_ms']:10.2f} ms  x{row['ratio']:5.2f}"
    if "of_copy" in row:
        text += f"  no scan x{row['known_ratio']:5.2f}"
    return text + (f"  both guarded x{row['guarded_ratio']:5.2f}" if "guarded_ratio" in row else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=104857600)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="rules by the names of rules_bench, comma-separated")
    parser.add_argument("--peer", default="", help="only peers whose name holds this text")
    parser.add_argument("--peers", default="", help="folder with the papers' own code")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}", flush=True)
    results = []
    for pair in pairs(pathlib.Path(arguments.peers) if arguments.peers else None):
        if (arguments.only and pair.rule not in arguments.only.split(",")) or arguments.peer not in pair.peer:
            continue
        try:
            results.append(compare(pair, arguments))
            print(line(results[-1]), flush=True)
        except Exception as error:  # a peer that is not here, or does not run on a CPU
            print(f"{pair.rule:18s} {pair.dtype:5s} {pair.peer}: left out, {type(error).__name__}: {str(error)[:150]}", flush=True)
            results.append({"rule": pair.rule, "dtype": pair.dtype, "peer": pair.peer, "left_out": str(error)})
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
