"""Step times of the first-order rules beside other implementations, each pair measured in turns in one run on the same tensors' sizes.

    PYTHON tests/bench/rules_peers.py [--elements 104857600] [--rounds 3] [--only adamw,muon] [--peers DIR]

PYTHON needs torch; bitsandbytes and torchao are used when they are there.  --peers: a folder with checkouts of the papers' own code, named
SGD_SaI, ada-hessian, Minimalist_LLM_Pretraining and mkor; what is missing is said and left out.  Prints one line a pair: our milliseconds,
theirs, the ratio theirs / ours (above 1: ours is faster), and the whole as one JSON document at the end.
"""
import argparse
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def ours(label, elements, dtype="f32"):
    """Milliseconds of a step by rules_bench, in a process of its own."""
    command = [ROOT / "build/bin/rules_bench", "--elements", str(elements), "--rules", label, "--repeats", "5", "--json", "1", "--dtype", dtype]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in out.splitlines():
        row = json.loads(line)
        if row["rule"] == label:
            return row
    raise RuntimeError(f"rules_bench printed nothing for {label}")


def theirs(make, elements, width, dtype, repeats=5, layer=None):
    """Median milliseconds of optimizer.step() on one parameter [elements / width, width]."""
    p = torch.nn.Parameter(torch.full((elements // width, width), 0.5, dtype=dtype))
    p.grad = torch.full_like(p, 0.01)
    step = make(p)
    times = []
    for k in range(repeats + 2):
        start = time.perf_counter()
        step()
        if k >= 2:
            times.append((time.perf_counter() - start) * 1e3)
    del p
    return statistics.median(times)


def torch_step(cls, **options):
    def make(p):
        optimizer = cls([p], **options)
        return optimizer.step
    return make


def bitsandbytes_step(p):
    import bitsandbytes as bnb
    return bnb.optim.AdamW8bit([p], lr=1e-3).step


def torchao_step(p):
    from torchao.optim import AdamW8bit
    return AdamW8bit([p], lr=1e-3).step


def from_checkout(folder, module, name, **options):
    """An optimizer class of a paper's code; `folder` holds it."""
    def make(p):
        sys.path.insert(0, str(folder))
        try:
            cls = getattr(importlib.import_module(module), name)
        finally:
            sys.path.pop(0)
        return cls([p], **options).step
    return make


def adahessian_step(folder):
    """Only the update: the Hessian estimate of every step is given, as it is to ours."""
    def make(p):
        sys.path.insert(0, str(folder))
        try:
            cls = importlib.import_module("ada_hessian").AdaHessian
        finally:
            sys.path.pop(0)
        optimizer = cls([p], lr=0.1)
        optimizer.zero_hessian = lambda: None
        optimizer.set_hessian = lambda: None
        p.hess = torch.full_like(p, 0.02)
        return optimizer.step
    return make


def scale_step(folder):
    """One matrix with momentum, as its last layer."""
    def make(p):
        sys.path.insert(0, str(folder))
        try:
            cls = importlib.import_module("scale_optimizer").SCALE
        finally:
            sys.path.pop(0)
        return cls(lr=1e-3, main_params=[], secondary_params=[p], id_to_name={id(p): "lm_head.weight"}).step
    return make


def subjects(peers):
    """(label of ours, dtype, name of theirs, step maker, width, largest number of elements)."""
    o = torch.optim
    small = 1 << 24
    rows = [
        ("sgd", "f32", "torch SGD fused", torch_step(o.SGD, lr=1e-3, fused=True), 4096, None),
        ("sgd momentum", "f32", "torch SGD momentum fused", torch_step(o.SGD, lr=1e-3, momentum=0.9, fused=True), 4096, None),
        ("sgd momentum", "f32", "torch SGD momentum foreach", torch_step(o.SGD, lr=1e-3, momentum=0.9, foreach=True), 4096, None),
        ("adam", "f32", "torch Adam fused", torch_step(o.Adam, lr=1e-3, fused=True), 4096, None),
        ("adamw", "f32", "torch AdamW fused", torch_step(o.AdamW, lr=1e-3, fused=True), 4096, None),
        ("adamw", "f32", "torch AdamW foreach", torch_step(o.AdamW, lr=1e-3, foreach=True), 4096, None),
        ("adamw", "bf16", "torch AdamW fused bf16 (bf16 state)", torch_step(o.AdamW, lr=1e-3, fused=True), 4096, None),
        ("adafactor", "f32", "torch Adafactor foreach", torch_step(o.Adafactor, lr=1e-2, foreach=True), 4096, None),
        ("adafactor", "f32", "torch Adafactor", torch_step(o.Adafactor, lr=1e-2, foreach=False), 4096, None),
        ("muon", "f32", "torch Muon", torch_step(o.Muon, lr=1e-3), 2048, small),
        ("adamw-8bit", "f32", "bitsandbytes AdamW8bit", bitsandbytes_step, 4096, None),
        ("adamw-8bit", "f32", "torchao AdamW8bit", torchao_step, 4096, None),
    ]
    if peers:
        peers = pathlib.Path(peers)
        rows += [
            ("sgd-sai", "f32", "SGD_SaI's own", from_checkout(peers / "SGD_SaI", "sgd_sai.sgd_sai", "SGD_sai", lr=1e-3), 4096, None),
            ("adahessian", "f32", "ada-hessian's own (update alone)", adahessian_step(peers / "ada-hessian"), 4096, None),
            ("scale last layer", "f32", "SCALE's own", scale_step(peers / "Minimalist_LLM_Pretraining/mem_eff_pt/pt_scale"), 4096, None),
        ]
    return rows


def compare(label, dtype, name, make, width, most, arguments):
    elements = min(arguments.elements, most or arguments.elements)
    mine, other, rate = [], [], []
    for _ in range(arguments.rounds):
        row = ours(label, elements, dtype)
        mine.append(row["ms"])
        rate.append(row["ratio"])
        other.append(theirs(make, elements, width, {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]))
    a, b = statistics.median(mine), statistics.median(other)
    print(f"{label:18s} {dtype:5s} {elements / 1e6:8.1f} M  ours {a:10.2f} ms ({statistics.median(rate):4.2f} of copy)   {name:38s} {b:10.2f} ms   x{b / a:6.2f}",
          flush=True)
    return {"rule": label, "dtype": dtype, "elements": elements, "ours_ms": a, "of_copy": statistics.median(rate), "peer": name, "peer_ms": b,
            "ratio": b / a}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--elements", type=int, default=104857600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}", flush=True)
    results = []
    for label, dtype, name, make, width, most in subjects(arguments.peers):
        if arguments.only and label not in arguments.only.split(","):
            continue
        try:
            results.append(compare(label, dtype, name, make, width, most, arguments))
        except Exception as error:  # a peer that is not here, or does not run on a CPU
            print(f"{label:18s} {dtype:5s} {name}: left out, {type(error).__name__}: {str(error)[:150]}", flush=True)
            results.append({"rule": label, "dtype": dtype, "peer": name, "left_out": str(error)})
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
