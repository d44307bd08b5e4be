"""The task of the studies scale and sgd-sai: next-character prediction on tinyshakespeare (spec: 600 steps of 16 x 64 characters).

Width 64, 2 layers, 4 heads, inner width 172; warm-up over a tenth, cosine to a tenth, no decay, no clipping; the first 1,000,000 characters train,
20 fixed batches of the rest validate. Identical batches for every optimizer.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
from typing import Any, Dict, Mapping, Tuple

import numpy as np

import optod
from optod.numpy import RemoteOptimizer
from optod.studies.models import LanguageModel

__all__ = ["needs", "run", "LENGTH"]

LENGTH, SEQUENCES, TRAIN = 64, 16, 1_000_000
_OWN = ("label", "seed", "quick", "optimizer", "lr", "steps")


def _file() -> pathlib.Path:
    return pathlib.Path(os.environ.get("OPTOD_DATA", "")) / "tinyshakespeare" / "input.txt"


def needs() -> str:
    """"" or what is missing."""
    if not os.environ.get("OPTOD_DATA"):
        return "needs the data set tinyshakespeare: set OPTOD_DATA to a folder that holds tinyshakespeare/input.txt"
    return "" if _file().is_file() else f"OPTOD_DATA is set, but {_file()} is not there"


@functools.lru_cache(maxsize=1)
def text() -> Tuple[np.ndarray, int]:
    """The characters as numbers in order of code points, and the size of the vocabulary."""
    raw = _file().read_text(encoding="utf-8")
    letters = sorted(set(raw))
    number = {letter: i for i, letter in enumerate(letters)}
    return np.array([number[letter] for letter in raw], np.int64), len(letters)


def batch(part: np.ndarray, rng: np.random.Generator) -> Tuple[np.ndarray, np.ndarray]:
    starts = rng.integers(0, len(part) - LENGTH - 1, SEQUENCES)
    rows = part[starts[:, None] + np.arange(LENGTH + 1)]
    return rows[:, :-1], rows[:, 1:]


def run(client: optod.Client, config: Mapping[str, Any]) -> Dict[str, Any]:
    """Trains once: validation perplexity at the end, training perplexity along the way, bytes of optimizer state on the server."""
    data, vocabulary = text()
    model = LanguageModel(vocabulary, length=LENGTH)
    steps = config.get("steps", 60 if config["quick"] else 600)
    hyper = {key: value for key, value in config.items() if key not in _OWN}
    params = model.start(np.random.default_rng(config["seed"]))
    durability = optod.Durability("on-checkpoint", snapshot_every=1_000_000)       # a study may lose a run
    schedule = optod.Schedule("cosine", warmup_steps=max(steps // 10, 1), total_steps=steps, floor=0.1)
    curve, ratios, mean = [], [], None
    with RemoteOptimizer(params, config["optimizer"], client=client, durability=durability, schedule=schedule, seed=config["seed"],
                         lr=config["lr"], labels={"study": "language-model"}, **hyper) as opt:
        for step in range(steps):
            loss, gradients = model.gradients(params, batch(data[:TRAIN], np.random.default_rng((config["seed"], step))))
            mean = loss if mean is None else 0.95 * mean + 0.05 * loss
            if not math.isfinite(loss):
                break
            try:
                params = opt.step(gradients, loss=loss)
            except optod.errors.InvalidArgument:      # a gradient that overflowed: the run has diverged
                loss = math.inf
                break
            if step % 10 == 9:
                curve.append([step + 1, math.exp(min(mean, 50))])
            if step in (0, steps - 1) and config["optimizer"] == "sgd-sai":
                ratios.append({name: float(value) for name, value in opt.session.pull_state().items() if name.startswith("gsnr/")})
        state = opt.session.pull_state()
        state_bytes = sum(value.nbytes for name, value in state.items() if not name.startswith("t/"))
        opt.session.delete()
    if not math.isfinite(loss):
        return {"metric": math.inf, "curve": curve, "state_bytes": state_bytes, "ratios": ratios}
    rng = np.random.default_rng(1234)
    losses = [model.loss(params, batch(data[TRAIN:], rng)) for _ in range(20)]
    return {"metric": math.exp(float(np.mean(losses))), "curve": curve, "state_bytes": state_bytes, "ratios": ratios}
