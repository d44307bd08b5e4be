"""AdaHessian (Yao et al. 2021): logistic regression whose features have scales over three decades; a small CNN; the estimator itself."""

from __future__ import annotations

import math
import pathlib
import statistics
import sys
import time
from typing import Any, Dict, List, Mapping

import numpy as np

import optod
from optod.numpy import RemoteOptimizer, hessian_z, rademacher
from optod.studies.models import DigitsCnn, Logistic
from optod.studies.runner import SEEDS, Best, Claim, Runner, Setting, Store, best_of

__all__ = ["NAME", "TITLE", "METRIC", "needs", "settings", "run", "claims"]

NAME, METRIC = "adahessian", "final loss"
FULL = True      # runs are short: the whole grid at every seed
TITLE = "AdaHessian: logistic regression, 50 features with scales over three decades, 300 steps of 128"
_OWN = ("label", "seed", "quick", "optimizer", "lr", "task")
D, N, BATCH = 50, 2000, 128

SETTINGS = [
    Setting("adahessian", {"optimizer": "adahessian"}, (0.15, 0.3, 0.5)),
    Setting("every 5th", {"optimizer": "adahessian", "update_each": 5}, (0.15, 0.3, 0.5)),
    Setting("adam", {"optimizer": "adam"}, (0.01, 0.03, 0.1, 0.3)),
    Setting("sgdm", {"optimizer": "sgd", "momentum": 0.9}, (1e-3, 3e-3, 1e-2)),
]


def needs() -> str:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return "needs scikit-learn for the digits: pip install scikit-learn"
    return ""


def settings(args: Any) -> List[Setting]:
    return SETTINGS


def data(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    scale = np.logspace(-1.5, 1.5, D)
    x = rng.standard_normal((N, D)) * scale
    w = rng.standard_normal(D) / scale
    return x, (rng.random(N) < 1 / (1 + np.exp(-0.7 * (x @ w)))).astype(float)


def run(client: optod.Client, config: Mapping[str, Any]) -> Dict[str, Any]:
    """Logistic regression once (or the CNN, config["task"] = "cnn"): loss on all data along the way, seconds a step in the median."""
    if config.get("task") == "cnn":
        return run_cnn(client, config)
    x, y = data(config["seed"])
    model = Logistic(D)
    params = model.start(np.random.default_rng(config["seed"]))
    hyper = {key: value for key, value in config.items() if key not in _OWN}
    each = int(hyper.get("update_each", 1))
    curve, seconds = [], []
    with RemoteOptimizer(params, config["optimizer"], client=client, durability=optod.Durability("on-checkpoint", snapshot_every=1_000_000),
                         lr=config["lr"], seed=config["seed"], labels={"study": NAME}, **hyper) as opt:
        for step in range(30 if config["quick"] else 300):
            rows = np.random.default_rng((config["seed"], step)).integers(0, N, BATCH)
            part = (x[rows], y[rows])
            begin = time.perf_counter()
            loss, gradients = model.gradients(params, part)
            extra = None
            if config["optimizer"] == "adahessian" and step % each == 0:
                z = rademacher(config["seed"], step + 1, 0, 0, (D,)).astype(float)
                extra = {"hessian_z/w": z * model.hessian_times(params, part, z)}
            params = opt.step(gradients, loss=loss, extra=extra)
            seconds.append(time.perf_counter() - begin)
            if step % 5 == 4:
                curve.append([step + 1, model.loss(params, (x, y))])
        opt.session.delete()
    return {"metric": model.loss(params, (x, y)), "curve": curve, "step_seconds": statistics.fmean(seconds[5:])}


def digits(seed: int) -> Any:
    from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order].reshape(-1, 8, 8) / 16.0, labels[order]
    return (images[:1347], labels[:1347]), (images[1347:], labels[1347:])


def run_cnn(client: optod.Client, config: Mapping[str, Any]) -> Dict[str, Any]:
    """10 epochs of batches of 64; z * Hz by differences of gradients. metric: errors on the test part."""
    (x, y), test = digits(config["seed"])
    model = DigitsCnn()
    params = model.start(np.random.default_rng(config["seed"]))
    curve, step = [], 0
    with RemoteOptimizer(params, config["optimizer"], client=client, durability=optod.Durability("on-checkpoint", snapshot_every=1_000_000),
                         lr=config["lr"], seed=config["seed"], labels={"study": NAME}) as opt:
        for epoch in range(1 if config["quick"] else 10):
            order = np.random.default_rng((config["seed"], epoch)).permutation(len(x))
            for at in range(0, len(order) - 63, 64):
                rows = order[at:at + 64]
                step += 1
                part = (x[rows], y[rows])
                loss, gradients = model.gradients(params, part)
                extra = None
                if config["optimizer"] == "adahessian":
                    extra = hessian_z(lambda p, part=part: model.gradients(p, part)[1], params, config["seed"], step)
                params = opt.step(gradients, loss=loss, extra=extra)
            curve.append([step, 1 - model.accuracy(params, test)])
        opt.session.delete()
    return {"metric": 1 - model.accuracy(params, test), "curve": curve}


def estimator_error() -> float:
    """Largest relative error of the mean of 4096 draws of z * (A z) against diag(A), A = 0.5 p'Ap's Hessian with a strong diagonal."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((20, 20)) * 0.3
    a = root @ root.T + np.diag(rng.uniform(1, 3, 20))
    mean = np.zeros(20)
    for draw in range(4096):
        z = rademacher(1, 1, 0, draw, (20,)).astype(float)
        mean += z * (a @ z) / 4096
    return float(np.max(np.abs(mean / np.diag(a) - 1)))


def claims(best: Mapping[str, Best], client: Any, args: Any, say: Any) -> List[Claim]:
    say("  the CNN on 8x8 digits, 10 epochs")
    cnn = best_of(Runner(sys.modules[__name__], Store(pathlib.Path(args.out)), max(1, args.jobs), say),
                  [Setting("cnn adahessian", {"optimizer": "adahessian", "task": "cnn"}, (0.05, 0.15)),
                   Setting("cnn adam", {"optimizer": "adam", "task": "cnn"}, (3e-3, 1e-2))], {"quick": args.quick}, SEEDS[:args.seeds], False)
    ours, theirs = (100 * (1 - cnn[f"cnn {name}"].metric) for name in ("adahessian", "adam"))
    error = estimator_error()

    def ratio(a: str, b: str) -> float:
        return best[a].metric / best[b].metric
    cost = best["every 5th"].median("step_seconds") / best["adam"].median("step_seconds")
    full = best["adahessian"].median("step_seconds") / best["adam"].median("step_seconds")
    near = math.fabs(ratio("every 5th", "adahessian") - 1)
    return [
        Claim("AdaHessian beats Adam", f"{ratio('adahessian', 'adam'):.3f} of its loss", "<= 0.97", ratio("adahessian", "adam") <= 0.97),
        Claim("and momentum SGD", f"{ratio('adahessian', 'sgdm'):.3f} of its loss", "<= 0.75", ratio("adahessian", "sgdm") <= 0.75),
        Claim("an estimate every 5th step is as good", f"{100 * near:.1f} % apart", "<= 5 %", near <= 0.05),
        Claim("and costs little", f"{cost:.2f} of Adam's step time, round trip included ({full:.2f} at every step)", "<= 1.4", cost <= 1.4),
        Claim("CNN accuracy after 10 epochs", f"{ours:.2f} % against Adam's {theirs:.2f} %", ">= Adam's - 0.5", ours >= theirs - 0.5),
        Claim("the mean of 4096 draws of z * Hz is the diagonal", f"{100 * error:.1f} % at most", "<= 5 %", error <= 0.05),
    ]
