"""Steps with the parameters on disk beside the published code of ZO2 and beside its algorithm in plain PyTorch, one run, in turns.

  OPTOD_ZO2=CHECKOUT PYTHON tests/bench/tier_peer.py --disk DIR [--layers 12] [--width 768] [--vocab 16384] [--tokens 128] [--batch 1] [--steps 3] [--rounds 2]

PYTHON: an interpreter with torch and numpy.  OPTOD_ZO2: a checkout of github.com/liangyuwang/zo2; unset, its row is left out.  What the peers are:
tier_peer_loops.py.  The model is a GPT-2 with random weights and a head of its own; every system runs its own process, float32, the same threads, the
same tokens, cross-entropy over all of them.  Prints a row a system: median seconds of a step, their ratio to optod on disk, peak resident memory, and the
same without what the process holds before it makes a model (interpreter, LibTorch)."""
import argparse
import itertools
import json
import math
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(os.environ.get("OPTOD_BIN_DIR", ROOT / "build" / "bin")) / "optod-worker"
LOOPS = pathlib.Path(__file__).with_name("tier_peer_loops.py")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECE = 1 << 22  # values that are made at once


def write_model(folder, a):
    """A GPT-2 under Hugging Face's names, 0.02 z, and a tokenizer of letters; written piece by piece, so that it may be larger than the memory. Parameters."""
    random, h, tensors = numpy.random.default_rng(1), a.width, {}
    for i in range(a.layers):
        at = f"transformer.h.{i}."
        for name in ("ln_1", "ln_2"):
            tensors |= {f"{at}{name}.weight": (h,), f"{at}{name}.bias": (h,)}
        for name, rows, columns in (("attn.c_attn", h, 3 * h), ("attn.c_proj", h, h), ("mlp.c_fc", h, 4 * h), ("mlp.c_proj", 4 * h, h)):
            tensors |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (columns,)}
    tensors |= {"transformer.wte.weight": (a.vocab, h), "transformer.wpe.weight": (a.positions, h), "lm_head.weight": (a.vocab, h),
                "transformer.ln_f.weight": (h,), "transformer.ln_f.bias": (h,)}
    header, sizes = {"__metadata__": {"format": "pt"}}, [math.prod(shape) for shape in tensors.values()]
    for (name, shape), end in zip(tensors.items(), itertools.accumulate(sizes)):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [4 * (end - math.prod(shape)), 4 * end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for (name, shape), size in zip(tensors.items(), sizes):
            for first in range(0, size, PIECE):
                n = min(PIECE, size - first)
                values = 0.02 * random.standard_normal(n, numpy.float32) if len(shape) == 2 else numpy.full(n, name.endswith("weight"), numpy.float32)
                file.write(values.astype("<f4").tobytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": a.vocab, "n_embd": h, "n_layer": a.layers, "n_head": a.heads,
                                                    "n_positions": a.positions, "tie_word_embeddings": False}))
    (folder / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(LETTERS)}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}))
    (folder / "text").write_text("".join(random.choice(list(LETTERS), 20000)))
    return sum(sizes)


def optod(a, folder, tiered):
    spec = {"kind": "finetune", "model": str(folder), "steps": a.steps + 1, "batch": a.batch, "threads": a.threads, "seed": 1, "log_every": 1,
            "evaluate_before": False, "scheme": "full", "optimizer": {"name": "zo-sgd", "lr": 1e-6, "eps": 1e-3},
            "task": {"name": "text", "train": str(folder / "text"), "dev": str(folder / "text"), "train_examples": 32, "dev_examples": 1,
                     "max_tokens": a.tokens}}
    if tiered:
        spec["tier"] = {"device_budget": f"{a.budget}MiB", "host_budget": 0, "disk": a.disk}
    (folder / "job.json").write_text(json.dumps(spec))
    with tempfile.TemporaryDirectory() as out:
        text = subprocess.run([WORKER, "train", "--spec", folder / "job.json", "--folder", out], capture_output=True, text=True)
    if text.returncode != 0:
        raise SystemExit(f"optod-worker: {text.stderr[-2000:]}")
    lines = [json.loads(line) for line in text.stdout.splitlines()]
    totals = [0.0] + [line["step"] * line["seconds_per_step"] for line in lines if "loss" in line]
    steps = [after - before for before, after in zip(totals, totals[1:])]
    return {"seconds": statistics.median(steps[1:]), "peak_mib": lines[-1]["peak_rss_bytes"] / 2**20}


def empty_worker(folder, a):
    """What optod-worker holds before it makes a model: a plan of one step of the same job."""
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)")
    return float(subprocess.run([sys.executable, "-c", code, str(WORKER), "plan", "--spec", str(folder / "job.json")], capture_output=True, text=True).stdout)


def peer(a, kind):
    with tempfile.TemporaryDirectory(dir=a.disk) as blocks:
        request = {name: getattr(a, name) for name in ("layers", "width", "heads", "vocab", "positions", "batch", "tokens", "steps", "threads")} | {"disk": blocks}
        out = subprocess.run([sys.executable, LOOPS, kind, json.dumps(request)], capture_output=True, text=True)
    if out.returncode != 0:
        raise SystemExit(f"{kind}: {out.stderr[-2000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("width", 768), ("heads", 12), ("vocab", 16384), ("positions", 1024), ("batch", 1), ("tokens", 128), ("steps", 3),
                          ("rounds", 2), ("budget", 128)):
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--disk", required=True)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        parameters = write_model(folder, a)
        print(f"GPT-2, {parameters / 1e6:.1f} M parameters ({parameters * 4 / 2**20:.0f} MiB), {a.batch * a.tokens} tokens a step, {a.threads} threads, "
              f"{a.rounds} x {a.steps} steps, device_budget {a.budget} MiB, host_budget 0; load {os.getloadavg()[0]:.1f}", flush=True)
        runs = {"optod, on disk": lambda: optod(a, folder, True), "optod, in memory": lambda: optod(a, folder, False),
                "PyTorch loop, blocks on disk": lambda: peer(a, "disk")}
        if os.environ.get("OPTOD_ZO2"):
            runs["ZO2's code, in memory"] = lambda: peer(a, "zo2")
        found = {name: [] for name in runs}
        for _ in range(a.rounds):
            for name, run in runs.items():
                found[name].append(run())
                print(f"  {name}: {found[name][-1]['seconds']:.3f} s", file=sys.stderr, flush=True)
        base = empty_worker(folder, a)
    middle = {name: {key: statistics.median(one.get(key, base) for one in all) for key in ("seconds", "peak_mib", "base_mib")} for name, all in found.items()}
    ours = middle["optod, on disk"]["seconds"]
    print(f"{'SYSTEM':32} {'S/STEP':>8} {'RATIO':>7} {'PEAK MiB':>9} {'OWN MiB':>8}")
    for name, m in middle.items():
        print(f"{name:32} {m['seconds']:8.2f} {m['seconds'] / ours:7.2f} {m['peak_mib']:9.0f} {m['peak_mib'] - m['base_mib']:8.0f}")


if __name__ == "__main__":
    main()
