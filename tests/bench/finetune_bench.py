"""Fine-tuning steps of optod-worker beside PyTorch: MeZO's loop and AdamW on the same model, the same batch shape, the same threads, in one run.

  python tests/bench/finetune_bench.py --model DIR [--steps 5] [--batch 16] [--tokens 32] [--threads 2] [--torch-python PYTHON]

--model: a Hugging Face folder (optod-worker convert makes one of a .gguf file).  PYTHON: an interpreter with torch and transformers (2.15 was measured).
Prints one JSON line: seconds and CPU seconds a step (medians) and peak resident memory of each, and the ratios (of CPU time: on a busy machine, with
--threads 1, that is what an idle one would need).  Steps: plain forward (no gradient), zeroth order (two
perturbed forwards and the update), first order (forward, backward, AdamW)."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

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


def torch_run(a, kind):
    out = subprocess.run([a.torch_python, "-c", TORCH_LOOP, a.model, kind, str(a.steps), str(a.batch), str(a.tokens), str(a.threads)], capture_output=True, text=True)
    if out.returncode != 0:
        raise SystemExit(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])


def worker_run(a, optimizer):
    """optod-worker on made-up rows of exactly a.tokens tokens."""
    out = subprocess.run([str(WORKER), "bench", "--model", a.model, "--optimizer", optimizer, "--steps", str(a.steps), "--batch", str(a.batch), "--tokens", str(a.tokens),
                          "--threads", str(a.threads)], capture_output=True, text=True)
    if out.returncode != 0:
        raise SystemExit(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--torch-python", default=sys.executable)
    a = p.parse_args()
    result = {"batch": a.batch, "tokens": a.tokens, "threads": a.threads, "load": os.getloadavg()[0]}
    for name, run in (("forward", lambda: worker_run(a, "none")), ("zo", lambda: worker_run(a, "zo-sgd")), ("adamw", lambda: worker_run(a, "adamw")),
                      ("torch_forward", lambda: torch_run(a, "forward")), ("torch_mezo", lambda: torch_run(a, "mezo")), ("torch_adamw", lambda: torch_run(a, "adamw"))):
        result[name] = run()
        print(name, result[name], file=sys.stderr)
    s = {name: result[name]["cpu_seconds"] for name in result if isinstance(result[name], dict)}
    m = {name: result[name]["peak_mib"] for name in result if isinstance(result[name], dict)}
    result["ratios"] = {"zo step / two forwards": s["zo"] / (2 * s["forward"]), "zo peak / forward peak": m["zo"] / m["forward"],
                        "torch mezo / zo": s["torch_mezo"] / s["zo"], "torch adamw / adamw": s["torch_adamw"] / s["adamw"],
                        "torch mezo peak / zo peak": m["torch_mezo"] / m["zo"], "adamw peak / zo peak": m["adamw"] / m["zo"]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
