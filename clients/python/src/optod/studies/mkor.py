"""MKOR (Mozaffari et al. 2023) and MKOR-H against momentum SGD and KFAC on an autoencoder 64-48-16-48-64; what a factor update costs by width."""

from __future__ import annotations

import math
import pathlib
import statistics
import sys
from typing import Any, Dict, List, Mapping

import numpy as np

import optod
from optod.numpy import RemoteOptimizer
from optod.studies.models import Autoencoder
from optod.studies.runner import SEEDS, Best, Claim, Runner, Setting, Store, best_of

__all__ = ["NAME", "TITLE", "METRIC", "needs", "settings", "run", "claims"]

NAME, METRIC = "mkor", "loss"
FULL = True      # runs are short: the whole grid at every seed
TITLE = "MKOR: autoencoder 64-48-16-48-64, 500 steps of 128, mean loss of the last 20 steps"
_OWN = ("label", "seed", "quick", "optimizer", "lr")
BATCH, CLIP = 128, 100.0
RATES = (0.003, 0.01)

SETTINGS = [
    Setting("sgdm", {"optimizer": "sgd", "momentum": 0.9}, RATES),
    Setting("release", {"optimizer": "mkor", "rule": "release"}, RATES),
    Setting("exact", {"optimizer": "mkor", "rule": "exact"}, RATES),
    Setting("paper", {"optimizer": "mkor", "rule": "paper"}, RATES),
    Setting("mkor-h", {"optimizer": "mkor-h", "rule": "release"}, RATES),
    Setting("kfac", {"optimizer": "kfac", "momentum": 0.9, "method": "inverse", "damping": 0.03, "inv_every": 10, "kl_clip": 0.0}, RATES),
]


def needs() -> str:
    return ""


def settings(args: Any) -> List[Setting]:
    return SETTINGS


def data(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z, w = rng.standard_normal((4096, 10)), rng.standard_normal((10, 64))
    return (1 / (1 + np.exp(-(z @ w + 1.5)))).astype(np.float32)


def statistics_of(rows: Mapping[str, np.ndarray], kind: str) -> Dict[str, np.ndarray]:
    """What a tell carries: KFAC's rows, or MKOR's clipped means."""
    if kind == "kfac":
        return dict(rows)
    out = {}
    for name, value in rows.items():
        scale = len(value) if name.startswith("pgrad/") else 1
        out[name] = np.clip(scale * value, -CLIP, CLIP).mean(axis=0).astype(np.float32)
    return out


def run(client: optod.Client, config: Mapping[str, Any]) -> Dict[str, Any]:
    """Trains once: mean loss of the last 20 steps, the server's seconds a step, the step at which MKOR-H switched."""
    x = data(config["seed"])
    model = Autoencoder()
    params = model.start(np.random.default_rng(config["seed"]))
    optimizer = config["optimizer"]
    hyper = {key: value for key, value in config.items() if key not in _OWN}
    losses, curve, micros, switched = [], [], [], []
    sent = 0
    with RemoteOptimizer(params, optimizer, client=client, durability=optod.Durability("on-checkpoint", snapshot_every=1_000_000),
                         lr=config["lr"], seed=config["seed"], extra_bytes=1 << 20, labels={"study": NAME}, **hyper) as opt:
        for step in range(50 if config["quick"] else 500):
            rows = np.random.default_rng((config["seed"], step)).integers(0, len(x), BATCH)
            loss, gradients, layers = model.gradients_and_rows(params, x[rows])
            losses.append(loss)
            if not math.isfinite(loss) or loss > 1e6:
                return {"metric": math.inf, "curve": curve, "micros": 0.0, "switched": []}
            due = optimizer != "sgd" and step % 10 == 0
            extra = statistics_of(layers, optimizer) if due else None
            if due and step == 0:
                sent = sum(value.size for value in extra.values())
            params = opt.step(gradients, loss=loss, extra=extra)
            micros.append(opt.result.compute_us)
            if optimizer == "mkor-h":
                switched.append(opt.result.figures.get("switched_at", 0.0))
            if step % 5 == 4:
                curve.append([step + 1, statistics.fmean(losses[-20:])])
        opt.session.delete()
    at = sorted({int(value) for value in switched if value})
    after = [m for m, s in zip(micros, switched) if s] or micros
    return {"metric": statistics.fmean(losses[-20:]), "curve": curve, "micros": statistics.fmean(micros), "switched": at, "sent": sent,
            "micros_after": statistics.fmean(after)}


def factor_seconds(client: optod.Client, optimizer: str, width: int, repetitions: int) -> float:
    """Median server time of a step that updates the factors of one width x width layer, less that of a step that does not."""
    rng = np.random.default_rng(width)
    params = {"layer.weight": rng.standard_normal((width, width)).astype(np.float32) / np.float32(math.sqrt(width))}
    gradient = {"layer.weight": rng.standard_normal((width, width)).astype(np.float32)}
    hyper = {"inv_freq": 2} if optimizer == "mkor" else {"method": "inverse", "factor_every": 2, "inv_every": 2, "damping": 0.03}
    shape = (width,) if optimizer == "mkor" else (64, width)
    extra = {name: rng.standard_normal(shape).astype(np.float32) for name in ("act/layer", "pgrad/layer")}
    found: Dict[bool, List[float]] = {True: [], False: []}
    with RemoteOptimizer(params, optimizer, client=client, durability=optod.Durability("on-checkpoint", snapshot_every=1_000_000), lr=1e-4,
                         extra_bytes=1 << 22, **hyper) as opt:
        for step in range(2 * repetitions + 2):
            due = step % 2 == 0
            opt.step(gradient, extra=extra if due else None)
            if step >= 2:
                found[due].append(opt.result.compute_us / 1e6)
        opt.session.delete()
    return max(statistics.median(found[True]) - statistics.median(found[False]), 1e-9)


def joined_equals_halves(client: optod.Client) -> float:
    """Largest difference after 20 steps between one worker on 128 rows and two on 64 each, whose gradients and mean vectors are averaged."""
    x, model = data(0), Autoencoder()
    start = model.start(np.random.default_rng(0))
    ends = []
    for parts in (1, 2):
        params = start
        with RemoteOptimizer(start, "mkor", client=client, lr=0.003, extra_bytes=1 << 20) as opt:
            for step in range(20):
                rows = np.random.default_rng((0, step)).integers(0, len(x), BATCH)
                shares = [model.gradients_and_rows(params, x[share]) for share in np.split(rows, parts)]
                gradients = {name: sum(share[1][name] for share in shares) / np.float32(parts) for name in start}
                means = [statistics_of(share[2], "mkor") for share in shares]
                extra = {name: sum(m[name] for m in means) / np.float32(parts) for name in means[0]} if step % 10 == 0 else None
                params = opt.step(gradients, extra=extra)
            opt.session.delete()
        ends.append(params)
    return max(float(np.max(np.abs(ends[0][name] - ends[1][name]))) for name in start)


def claims(best: Mapping[str, Best], client: Any, args: Any, say: Any) -> List[Claim]:
    at = RATES[0]
    seeds = SEEDS[:args.seeds]
    say(f"  every setting at rate {at}, all seeds")
    runner = Runner(sys.modules[__name__], Store(pathlib.Path(args.out)), max(1, args.jobs), say)
    fixed = best_of(runner, [Setting(s.label, s.config, (at,)) for s in SETTINGS], {"quick": args.quick}, seeds, False)
    median = {label: b.metric for label, b in fixed.items()}
    say("  factor updates by width (server time)")
    widths = (128, 256) if args.quick else (256, 512, 1024, 2048)
    wide = min(widths[-1], 1024)
    # MKOR's update is a small part of a step: more repetitions than KFAC's, which is nearly all of one.
    times = {"mkor": 3 if args.quick else 40, "kfac": 3 if args.quick else 5}
    cost = {(name, d): factor_seconds(client, name, d, times[name]) for name in ("mkor", "kfac") for d in widths}
    growth = {name: cost[name, widths[-1]] / cost[name, widths[-2]] for name in ("mkor", "kfac")}
    text = "; ".join(f"{d}: {1e3 * cost['mkor', d]:.2f} and {1e3 * cost['kfac', d]:.2f} ms" for d in widths)
    gain = cost["kfac", wide] / cost["mkor", wide]
    sent = best["release"].runs[0]["sent"]
    widths_of = Autoencoder().widths
    wanted = sum(n + m for n, m in zip(widths_of, widths_of[1:]))
    switches = [run["switched"] for run in fixed["mkor-h"].runs]
    once = all(len(s) == 1 for s in switches)
    hybrid, tuned = median["mkor-h"] / median["release"], best["mkor-h"].metric / best["release"].metric
    faster = fixed["mkor-h"].median("micros") / fixed["release"].median("micros")
    apart = joined_equals_halves(client)
    return [
        Claim(f"release at rate {at}", f"{median['release'] / median['sgdm']:.3f} of momentum SGD's loss", "<= 1.0",
              median["release"] <= median["sgdm"]),
        Claim(f"exact at rate {at}", f"{median['exact'] / median['sgdm']:.3f}", "<= 1.0", median["exact"] <= median["sgdm"]),
        Claim(f"the printed rule at rate {at}, expected worse", f"{median['paper'] / median['sgdm']:.3f}", "", None),
        Claim(f"KFAC (inverse) at rate {at}", f"{median['kfac'] / median['sgdm']:.3f}", "", None),
        Claim("a factor update by width, MKOR and KFAC", text, "", None),
        Claim(f"MKOR's grows with the square, about 4x from {widths[-2]} to {widths[-1]}", f"{growth['mkor']:.1f}x", "<= 5x", growth["mkor"] <= 5),
        Claim("KFAC's with the cube, about 8x", f"{growth['kfac']:.1f}x", "> 5x", growth["kfac"] > 5),
        Claim(f"MKOR is cheaper at {wide}", f"{gain:.1f}x", ">= 10x", gain >= 10),
        Claim("a layer's statistics are in + out numbers (the 1 of the bias is the server's)", f"{sent} for the model", f"{wanted}", sent == wanted),
        Claim(f"MKOR-H at rate {at} switches once", f"at steps {', '.join(str(s) for s in switches)}", "once a run", once),
        Claim("and ends near MKOR at this rate", f"{hybrid:.3f} of its loss", "<= 1.05", hybrid <= 1.05),
        Claim("each at its best rate", f"{tuned:.3f}", "", None),
        Claim("at a lower mean step time", f"{faster:.2f} of MKOR's (server time)", "< 1", faster < 1),
        Claim("two workers equal one on the joined batch", f"{apart:.1e} apart after 20 steps", "<= 1e-5", apart <= 1e-5),
    ]
