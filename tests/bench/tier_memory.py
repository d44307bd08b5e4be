"""Does a model of eight times its memory budget train inside that budget, step after step, under a hard limit, however many blocks it has?

  PYTHON tests/bench/tier_memory.py --disk DIR [--layers 40] [--width 256] [--budget 16] [--steps 200] [--tokens 32] [--blocks 8,64] [--limit auto]

PYTHON: an interpreter with numpy.  Runs optod-worker three times: on a model of one layer, for what the process holds by itself (LibTorch, threads, OpenBLAS's
128 MiB of address space a thread); then on the large one under a hard limit of that + budget + --slack MiB (64); then without tiers under the same limit,
which must fail, so that the limit is known to bind; with --blocks, once more with each of these numbers of layers.  --limit: cgroup (memory.max, or
memory.limit_in_bytes of the first version; the page cache counts), data (RLIMIT_DATA), auto (the former where groups can be made).  The model is written piece by
piece: 2 GiB under 256 MiB are --layers 34 --width 1152 --budget 256.  A run is ended after --seconds.  Prints parameters, plan, and anonymous memory (RssAnon, read every 20 ms)
after a tenth of the steps and at most."""
import argparse
import json
import os
import pathlib
import re
import resource
import subprocess
import tempfile
import time
import types

from tier_peer import WORKER, write_model

MIB = 2**20
GROUPS = pathlib.Path("/sys/fs/cgroup")


class Group:
    """A control group with a memory limit; made when entered."""

    def __init__(self, limit):
        old = (GROUPS / "memory/memory.limit_in_bytes").exists()
        self.folder = (GROUPS / "memory" if old else GROUPS) / f"tier-memory-{os.getpid()}"
        self.folder.mkdir()
        (self.folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(int(limit)))
        if not old and (self.folder / "memory.swap.max").exists():
            (self.folder / "memory.swap.max").write_text("0")

    def join(self):
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self):
        for _ in range(100):
            try:
                return self.folder.rmdir()
            except OSError:
                time.sleep(0.1)


def can_make_groups():
    try:
        Group(64 * MIB).leave()
        return True
    except OSError:
        return False


def status(pid):
    """{field: bytes} of a process that still has memory; None else."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(VmData|RssAnon):\s+(\d+) kB", text, re.M)} or None


def train(a, folder, steps, limit=None, tiers=True):
    """Exit status, plan, most VmData, and RssAnon at most until a tenth of the steps and afterwards."""
    spec = {"kind": "finetune", "model": str(folder), "steps": steps, "batch": 1, "threads": a.threads, "seed": 1, "log_every": 1, "evaluate_before": False,
            "scheme": "full", "optimizer": {"name": "zo-sgd", "lr": 1e-6, "eps": 1e-3}, "checkpoint_every": max(1, steps // 4),
            "task": {"name": "text", "train": str(folder / "text"), "dev": str(folder / "text"), "train_examples": 32, "dev_examples": 1, "max_tokens": a.tokens},
            **({"tier": {"device_budget": f"{a.budget}MiB", "host_budget": 0, "disk": a.disk, "write_every": a.write_every}} if tiers else {})}
    (folder / "job.json").write_text(json.dumps(spec))
    seen = types.SimpleNamespace(code=None, plan=0, data=0, early=0, late=0, step=0, error="", seconds=0)
    group = Group(limit) if limit and a.limit == "cgroup" else None
    with tempfile.TemporaryDirectory() as out, open(f"{out}/log", "w+") as log, open(f"{out}/errors", "w+") as errors:
        def bound():
            resource.setrlimit(resource.RLIMIT_STACK, (MIB, MIB))  # of each thread: stacks count as data, and runs differ in threads
            if group:
                group.join()
            elif limit:
                resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
        worker = subprocess.Popen([WORKER, "train", "--spec", folder / "job.json", "--folder", out], stdout=log, stderr=errors, preexec_fn=bound)
        ends = time.monotonic() + a.seconds
        while worker.poll() is None:
            if time.monotonic() > ends:
                worker.kill()  # OpenBLAS asks for its buffer again and again when there is no room
            now = status(worker.pid)
            lines = pathlib.Path(log.name).read_text().splitlines()
            seen.step = sum('"loss":' in line for line in lines)
            if now:
                seen.data = max(seen.data, now["VmData"])
                which = "early" if seen.step <= steps // 10 else "late"
                setattr(seen, which, max(getattr(seen, which), now["RssAnon"]))
            time.sleep(0.02)
        seen.code = worker.returncode
        for line in pathlib.Path(log.name).read_text().splitlines():
            event = json.loads(line)
            seen.plan = event.get("tier/plan_bytes", seen.plan)
            seen.seconds = event.get("seconds_per_step", seen.seconds)
        seen.error = (pathlib.Path(errors.name).read_text().splitlines() or ["killed for memory" if seen.code == -9 else ""])[-1]
    if group:
        group.leave()
    return seen


def model_of(a, root, layers):
    folder = pathlib.Path(root) / f"model{layers}"
    folder.mkdir()
    shape = types.SimpleNamespace(layers=layers, width=a.width, heads=4, vocab=256, positions=64)
    return folder, write_model(folder, shape) * 4


def blocks_alike(a, root, limit, own_rss):
    """Runs of as many steps with other numbers of layers under the same limit: whether their memory is the same to 8 MiB."""
    most = []
    for layers in a.blocks:
        folder, model_bytes = model_of(a, root, layers)
        run = train(a, folder, max(10, a.steps // 10), limit)
        most.append(max(run.early, run.late) - own_rss if run.code == 0 else float("nan"))
        print(f"{layers} layers, {model_bytes / MIB:.1f} MiB: exit {run.code}, {most[-1] / MIB:.1f} MiB at most beyond the process alone {run.error if run.code else ''}")
        (folder / "model.safetensors").unlink()
    return max(most, default=0) - min(most, default=0) <= 8 * MIB


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 40), ("width", 256), ("budget", 16), ("steps", 200), ("tokens", 32), ("threads", 2), ("seconds", 900), ("slack", 64), ("write_every", 1)):
        p.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    p.add_argument("--blocks", type=lambda text: [int(n) for n in text.split(",") if n], default=[])
    p.add_argument("--limit", choices=("auto", "cgroup", "data"), default="auto")
    p.add_argument("--disk", required=True)
    a = p.parse_args()
    if a.limit == "auto":
        a.limit = "cgroup" if can_make_groups() else "data"
    with tempfile.TemporaryDirectory(dir=a.disk) as root:
        small, _ = model_of(a, root, 1)
        large, model_bytes = model_of(a, root, a.layers)
        alone = train(a, small, max(20, a.steps // 4))
        own_data, own_rss = alone.data - alone.plan, max(alone.early, alone.late) - alone.plan
        limit = (own_data if a.limit == "data" else own_rss) + (a.budget + a.slack) * MIB
        run = train(a, large, a.steps, limit)
        refused = train(a, large, 3, limit, tiers=False)
        most = max(run.early, run.late) - own_rss
        print(f"parameters {model_bytes / MIB:.1f} MiB, budget {a.budget} MiB ({model_bytes / MIB / a.budget:.1f} times), plan {run.plan / MIB:.1f} MiB; the process alone: "
              f"{own_rss / MIB:.0f} MiB anonymous, {own_data / MIB:.0f} MiB data")
        print(f"under a limit ({a.limit}) of {limit / MIB:.0f} MiB: exit {run.code} after {run.step} of {a.steps} steps, {run.seconds:.2f} s each {run.error if run.code else ''}")
        print(f"anonymous memory beyond the process alone: {most / MIB:.1f} MiB at most ({(most - run.plan) / MIB:+.1f} MiB to the plan); first tenth of the steps "
              f"{(run.early - own_rss) / MIB:.1f}, the rest {(run.late - own_rss) / MIB:.1f} MiB")
        print(f"without tiers under the same limit: exit {refused.code} ({refused.error[:100]})")
        (large / "model.safetensors").unlink()
        alike = blocks_alike(a, root, limit, own_rss)
    return 0 if run.code == 0 and refused.code != 0 and most <= run.plan + a.slack * MIB and run.late <= run.early + 8 * MIB and alike else 1


if __name__ == "__main__":
    raise SystemExit(main())
