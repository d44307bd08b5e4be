"""Fine-tuning steps of optod-worker beside PyTorch: MeZO's loop and AdamW on the same model, the same batch shape, the same threads, in one run.

  python tests/bench/finetune_bench.py --model DIR [--steps 5] [--batch 16] [--tokens 32] [--threads 2] [--torch-python PYTHON] [--prefix COMMAND]

--model: a Hugging Face folder (optod-worker convert makes one of a .gguf file).  PYTHON: an interpreter with torch and transformers (2.15 was measured).
Each figure is a process of its own.  --prefix: put in front of each of them ("taskset -c 3", or a program that keeps the machine quiet meanwhile), so
that one run consists of short measurements.  --rounds R: all figures R times in turn, ours and PyTorch's next to each other; the median counts.
Prints one JSON line: seconds and CPU seconds a step (medians) and peak resident memory of each, and the ratios, of wall-clock and of CPU time (on a busy
machine, with --threads 1, CPU time is about what an idle one would need).  Steps: plain forward (no gradient), zeroth order (two
perturbed forwards and the update), first order (forward, backward, AdamW)."""
import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(os.environ.get("OPTOD_BIN_DIR", ROOT / "build" / "bin")) / "optod-worker"

TORCH_LOOP = r'''
import json, resource, statistics, sys, time
import torch, transformers
model_dir, kind, steps, batch, tokens, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
torch.set_num_threads(threads)
model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
ids = torch.randint(5, 1000, (batch, tokens))
last = torch.full((batch,), tokens - 1)
def loss():
    h = model.model(ids).last_hidden_state[torch.arange(batch), last]           # the head on the asked row only, as optod-worker does
    logp = torch.log_softmax(model.lm_head(h), -1)[:, [100, 200]]
    return torch.nn.functional.cross_entropy(logp, torch.zeros(batch, dtype=torch.long))
params = [p for p in model.parameters()]
optimizer = torch.optim.AdamW(params, lr=1e-5) if kind == "adamw" else None
def perturb(seed, scale, eps=1e-3):
    torch.manual_seed(seed)
    for p in params:
        z = torch.normal(mean=0, std=1, size=p.size(), dtype=p.dtype)
        p.add_(scale * z * eps)
def step(i):
    if kind == "forward":
        with torch.no_grad(): return float(loss())
    if kind == "adamw":
        optimizer.zero_grad(); l = loss(); l.backward(); torch.nn.utils.clip_grad_norm_(params, 1.0); optimizer.step(); return float(l)
    with torch.no_grad():                                                        # MeZO, Alg. 1
        perturb(i, 1); a = float(loss()); perturb(i, -2); b = float(loss()); perturb(i, 1)
        g = (a - b) / 2e-3
        torch.manual_seed(i)
        for p in params:
            z = torch.normal(mean=0, std=1, size=p.size(), dtype=p.dtype)
            p.sub_(1e-7 * (g * z))
        return a
times, cpu = [], []
for i in range(steps + 1):
    t, c = time.perf_counter(), time.process_time(); step(i); times.append(time.perf_counter() - t); cpu.append(time.process_time() - c)
print(json.dumps({"seconds": statistics.median(times[1:]), "cpu_seconds": statistics.median(cpu[1:]), "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
'''


def measured(a, *command):
    """The JSON on the last line of what a command prints."""
    out = subprocess.run([*shlex.split(a.prefix), *map(str, command)], capture_output=True, text=True)
    if out.returncode != 0:
        raise SystemExit(f"{command[:3]}: exit {out.returncode}: {out.stderr[-2000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def torch_run(a, kind):
    return measured(a, a.torch_python, "-c", TORCH_LOOP, a.model, kind, a.steps, a.batch, a.tokens, a.threads)


def worker_run(a, optimizer):
    """optod-worker on made-up rows of exactly a.tokens tokens."""
    return measured(a, WORKER, "bench", "--model", a.model, "--optimizer", optimizer, "--steps", a.steps, "--batch", a.batch, "--tokens", a.tokens,
                    "--threads", a.threads)


FIGURES = {
    "forward": lambda a: worker_run(a, "none"), "torch_forward": lambda a: torch_run(a, "forward"),
    "zo": lambda a: worker_run(a, "zo-sgd"), "torch_mezo": lambda a: torch_run(a, "mezo"),
    "adamw": lambda a: worker_run(a, "adamw"), "torch_adamw": lambda a: torch_run(a, "adamw"),
}


def ratios(time, peak):
    """{name: ratio} of {figure: seconds} and {figure: MiB}."""
    return {"zo step / two forwards": time["zo"] / (2 * time["forward"]), "forward / torch's": time["forward"] / time["torch_forward"],
            "adamw step / torch's": time["adamw"] / time["torch_adamw"], "zo step / torch's MeZO": time["zo"] / time["torch_mezo"],
            "zo peak / forward peak": peak["zo"] / peak["forward"], "zo peak / torch's MeZO": peak["zo"] / peak["torch_mezo"],
            "adamw peak / torch's": peak["adamw"] / peak["torch_adamw"], "adamw peak / zo peak": peak["adamw"] / peak["zo"]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--torch-python", default=sys.executable)
    p.add_argument("--prefix", default="", help="put in front of every measured command")
    p.add_argument("--rounds", type=int, default=1)
    a = p.parse_args()
    result = {"batch": a.batch, "tokens": a.tokens, "threads": a.threads, "steps": a.steps, "rounds": a.rounds}
    found = {name: [] for name in FIGURES}
    for _ in range(a.rounds):
        for name, run in FIGURES.items():
            found[name].append(run(a))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    for name, runs in found.items():
        result[name] = {key: round(statistics.median(one[key] for one in runs), 4) for key in ("seconds", "cpu_seconds", "peak_mib")}
    peak = {name: result[name]["peak_mib"] for name in FIGURES}
    for kind in ("seconds", "cpu_seconds"):
        result["ratios of " + kind] = {name: round(value, 3) for name, value in ratios({name: result[name][kind] for name in FIGURES}, peak).items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
