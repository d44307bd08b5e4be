"""ZO-Bench (Zhang et al. 2024) at the size of this machine: optimizers x schemes x tasks on a small language model, as training jobs of a server.

Every run is a job (``optoctl job list`` shows it; one that was interrupted is taken up again).  The rate is the best of a short grid by dev loss at
the first seed (accuracy near chance would choose by luck); the step is the best by dev score; the tables show the score on a test set that neither
choice has seen.

    OPTOD_DATA               folder with sst2/, copa/, tinyshakespeare/ and stories260k/ (the default model)
    OPTOD_STUDY_MODEL        a Hugging Face folder or .gguf file instead
    OPTOD_STUDY_STEPS        zeroth-order steps of a run [200]; first-order runs take a tenth
    OPTOD_STUDY_TASKS, OPTOD_STUDY_OPTIMIZERS, OPTOD_STUDY_SCHEMES      comma-separated parts of the whole [sst2,copa; --all adds text]
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import statistics
from typing import Any, Callable, Dict, List, Mapping, Sequence

from optod.jobs import JobFailed, result_of, state_of
from optod.studies.runner import Best, Claim, Setting

__all__ = ["NAME", "TITLE", "METRIC", "needs", "settings", "run", "claims", "report", "figures", "panel"]

NAME, METRIC = "zo-bench", "dev loss"
TITLE = "ZO-Bench at a small size: zeroth- and first-order fine-tuning, by optimizer, scheme and task"

OPTIMIZERS = ("zo-sgd", "zo-sgd-mmt", "zo-sgd-cons", "zo-sgd-sign", "zo-adam", "sgd", "adamw")
SCHEMES = ("full", "lora", "prefix", "head")
TASKS = ("sst2", "copa")
SPLIT = 1_000_000       # characters of tinyshakespeare that train; the rest is dev and test

#: scheme: (eps, rate of zo-sgd, of zo-adam and zo-sgd-sign, of adamw), after the sweeps of ZO-Bench, larger as befits a small model
RATES = {"full": (1e-3, 1e-4, 1e-4, 1e-3), "lora": (1e-2, 1e-2, 1e-3, 5e-3), "prefix": (1e-1, 1e-2, 1e-3, 1e-2), "head": (1e-3, 1e-4, 1e-4, 1e-3)}


def _parts(name: str, default: Sequence[str]) -> List[str]:
    return [part for part in os.environ.get(name, "").split(",") if part] or list(default)


def _model() -> str:
    return os.environ.get("OPTOD_STUDY_MODEL") or os.path.join(os.environ["OPTOD_DATA"], "stories260k")


def needs() -> str:
    """"" or what is missing."""
    data = os.environ.get("OPTOD_DATA", "")
    if not data:
        return "needs the data sets sst2 and copa: set OPTOD_DATA to a folder that holds sst2/train.tsv and copa/train.tsv"
    for path in (os.path.join(data, "sst2", "train.tsv"), os.path.join(data, "copa", "train.tsv"), _model()):
        if not os.path.exists(path):
            return f"OPTOD_DATA is set, but {path} is not there"
    return ""


def is_zeroth(optimizer: str) -> bool:
    return optimizer.startswith("zo-")


def rate_of(optimizer: str, scheme: str) -> float:
    """The middle of the grid."""
    _, plain, normalised, first = RATES[scheme]
    if not is_zeroth(optimizer):
        return first * (10 if optimizer == "sgd" else 1)
    if optimizer in ("zo-adam", "zo-sgd-sign"):
        return normalised
    return plain / 10 if optimizer == "zo-sgd-mmt" else plain       # momentum 0.9 sums ten steps


def settings(args: Any) -> List[Setting]:
    factors = (1.0,) if args.quick else (1 / 3, 1.0, 3.0)
    steps = int(os.environ.get("OPTOD_STUDY_STEPS", "200"))
    if "text" in (tasks := _parts("OPTOD_STUDY_TASKS", TASKS + (("text",) if args.all else ()))):
        _split_text(pathlib.Path(args.out))
    return [Setting(f"{task}/{optimizer}/{scheme}",
                    {"task": task, "optimizer": optimizer, "scheme": scheme, "steps": steps, "model": _model(), "out": os.path.abspath(args.out)},
                    tuple(float(f"{rate_of(optimizer, scheme) * factor:.2g}") for factor in factors))
            for task in tasks for optimizer in _parts("OPTOD_STUDY_OPTIMIZERS", OPTIMIZERS) for scheme in _parts("OPTOD_STUDY_SCHEMES", SCHEMES)]


def _split_text(folder: pathlib.Path) -> None:
    """tinyshakespeare cut into a train, a dev and a test file, which the jobs read."""
    text = (pathlib.Path(os.environ["OPTOD_DATA"]) / "tinyshakespeare" / "input.txt").read_text()
    middle = SPLIT + (len(text) - SPLIT) // 2
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", text[:SPLIT]), ("dev", text[SPLIT:middle]), ("test", text[middle:])):
        (folder / f"text-{name}.txt").write_text(part)


def task_of(config: Mapping[str, Any]) -> Dict[str, Any]:
    """The job file's task; a quick run takes a tenth of the examples."""
    part, data = 10 if config["quick"] else 1, os.environ["OPTOD_DATA"]
    if config["task"] == "text":
        files = {name: os.path.join(config["out"], f"text-{name}.txt") for name in ("train", "dev", "test")}
        return {"name": "text", **files, "train_examples": 2000 // part, "dev_examples": 100 // part, "test_examples": 200 // part, "max_tokens": 64}
    if config["task"] == "copa":        # 400 / 100 rows; choices are made on the mirrored ones, so that the 100 stay unseen
        return {"name": "copa", "train": f"{data}/copa/train.tsv", "dev": f"{data}/copa/mirrored.tsv", "test": f"{data}/copa/dev.tsv",
                "train_examples": 400 // part, "dev_examples": 200 // part, "test_examples": 100 // part}
    return {"name": "sst2", **{name: f"{data}/sst2/{name}.tsv" for name in ("train", "dev", "test")}, "max_tokens": 64,
            "train_examples": 1000 // part, "dev_examples": 200 // part, "test_examples": 400 // part}


def spec_of(config: Mapping[str, Any]) -> Dict[str, Any]:
    """The job file of a run."""
    optimizer = {"name": config["optimizer"], "lr": config["lr"]}
    steps = config["steps"] // (10 if config["quick"] else 1)
    if is_zeroth(config["optimizer"]):
        optimizer["eps"] = RATES[config["scheme"]][0]
    else:
        steps = max(steps // 10, 5)
    return {"kind": "finetune", "model": config["model"], "task": task_of(config), "scheme": config["scheme"], "optimizer": optimizer, "steps": steps,
            "batch": 16, "eval_every": max(steps // 4, 1), "log_every": steps, "checkpoint_every": max(steps // 4, 1), "seed": config["seed"], "threads": 1}


def run(client: Any, config: Mapping[str, Any]) -> Dict[str, Any]:
    """One job.  metric: least dev loss.  test: score of the best step on the test set.  A job that fails is a run that did not learn."""
    spec = spec_of(config)
    key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    job = client.jobs.submit(spec, request_id=f"{NAME}/{key}")
    if state_of(job) in ("FAILED", "CANCELLED"):
        job = client.jobs.resume(job.name)
    try:
        result = result_of(client.jobs.wait(job.name))
    except JobFailed as failed:
        return {"metric": math.inf, "failure": failed.job.reason, "curve": []}
    curve = [[event.step, event.metrics["loss/dev"]] for event in client.jobs.events(job.name) if "loss/dev" in event.metrics]
    return {"metric": min(y for _, y in curve), "first": result["first_score"], "test": result["test_score"],
            "seconds_per_step": result["seconds_per_step"], "peak_mib": result["peak_rss_bytes"] / (1 << 20), "skipped": result["skipped"], "curve": curve}


def panel(label: str) -> str:
    """Curves are drawn one picture a task and scheme, a line an optimizer."""
    task, _, scheme = label.split("/")
    return f"{task}, {scheme}"


def figures(best: Best) -> Dict[str, Any]:
    """What the JSON document says of a setting beside its metric."""
    return {key: [run.get(key) for run in best.runs] for key in ("first", "test", "seconds_per_step", "peak_mib", "failure")}


def _score(best: Best) -> str:
    if any("failure" in run for run in best.runs):
        return "failed"
    values = [run["test"] for run in best.runs]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    if values[0] < 0:       # minus the loss a token
        return f"{-statistics.mean(values):.3f} ({spread:.3f})"
    return f"{100 * statistics.mean(values):.1f} ({100 * spread:.1f})"


def _figure(key: str, form: str, scale: float = 1.0) -> Callable[[Best], str]:
    return lambda best: "failed" if any("failure" in run for run in best.runs) else form.format(scale * best.median(key))


def report(study: Any, best: Mapping[str, Best]) -> str:
    """The paper's tables: scores with their spread, memory, time, a row an optimizer, a column a scheme."""
    labels = [label.split("/") for label in best]
    tasks, optimizers, schemes = ([*dict.fromkeys(parts)] for parts in zip(*labels))
    out = []
    for task in tasks:
        what = "test loss a token" if task == "text" else "test accuracy, %"
        firsts = [run["first"] for label, b in best.items() if label.startswith(task + "/") for run in b.runs if "first" in run]
        before = f"{-firsts[0]:.3f}" if task == "text" else f"{100 * statistics.mean(firsts):.1f}" if firsts else "none"
        for title, cell in ((f"{what}: mean (standard deviation) over seeds; dev before training: {before}", _score),
                            ("peak memory of the worker, MiB", _figure("peak_mib", "{:.0f}")),
                            ("milliseconds a step", _figure("seconds_per_step", "{:.1f}", 1000))):
            rows = [["", *schemes]] + [[o, *(cell(best[f"{task}/{o}/{s}"]) for s in schemes)] for o in optimizers]
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            out += [f"{task}: {title}"] + ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows] + [""]
    return "\n".join(out[:-1])


def claims(best: Mapping[str, Best], client: Any, args: Any, say: Any) -> List[Claim]:
    """What the paper says of larger models, as it is here: reported, and judged only where size does not matter."""
    done = {label: b for label, b in best.items() if not any("failure" in run for run in b.runs)}
    out = [Claim("every run ended", f"{len(done)} of {len(best)} settings", f"{len(best)}", len(done) == len(best))]
    for task in dict.fromkeys(label.split("/")[0] for label in done):
        mean = {label: statistics.mean(run["test"] for run in b.runs) for label, b in done.items() if label.startswith(task + "/")}
        zeroth, first = ({label: m for label, m in mean.items() if is_zeroth(label.split("/")[1]) is kind} for kind in (True, False))
        if zeroth and first:
            z, f = max(zeroth, key=zeroth.__getitem__), max(first, key=first.__getitem__)
            out.append(Claim(f"{task}: best zeroth order beside best first order", f"{z} {zeroth[z]:.3f}, {f} {first[f]:.3f}", "", None))
    spread: Dict[str, List[float]] = {}
    for label, b in done.items():
        if len(b.runs) > 1 and not label.startswith("text/"):
            spread.setdefault(label.split("/")[1], []).append(statistics.stdev(run["test"] for run in b.runs))
    if spread:
        text = ", ".join(f"{name} {100 * statistics.mean(values):.1f}" for name, values in spread.items())
        out.append(Claim("spread over seeds in points, mean over schemes and tasks (the paper: sign unstable, adam robust)", text, "", None))
    return out
