"""Scores with several objectives: one number by weights, or ranks by Pareto dominance."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple, Union

import numpy as np

__all__ = ["ObjectiveConfig", "to_score_dict", "normalize_score", "score_dict_to_scalar", "to_scalar_score", "apply_minimize", "weighted_scalarize",
           "dominates", "pareto_rank", "select_best", "select_top_k", "aggregate_score_dicts"]

ScoreLike = Union[int, float, bool, Dict[str, float]]
_MODES, _TIES, _REDUCTIONS = ("scalar", "weighted", "pareto"), ("weighted", "lexicographic", "random_seeded"), ("score", "mean", "weighted")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """How scores are compared.

    mode: "scalar", "weighted" or "pareto".  weights: {objective: weight >= 0}, empty = 1 each.  minimize: objectives where less is better.
    missing_value: of an objective that a score lacks.  pareto_metrics: objectives that count for dominance, None = all.  tie_break: within a front.
    scalarize_dict: how "scalar" reduces a score with several objectives: the one called score_key, the mean, or by weights.
    """

    mode: str = "scalar"
    weights: Dict[str, float] = dataclasses.field(default_factory=dict)
    minimize: FrozenSet[str] = dataclasses.field(default_factory=frozenset)
    missing_value: float = float("-inf")
    pareto_metrics: Optional[Tuple[str, ...]] = None
    tie_break: str = "weighted"
    seed: int = 0
    scalarize_dict: str = "score"
    score_key: str = "score"

    def __post_init__(self) -> None:
        object.__setattr__(self, "minimize", frozenset(self.minimize))
        for field, value, allowed in (("mode", self.mode, _MODES), ("tie_break", self.tie_break, _TIES),
                                      ("scalarize_dict", self.scalarize_dict, _REDUCTIONS)):
            if value not in allowed:
                raise ValueError(f"{field} must be {', '.join(repr(a) for a in allowed[:-1])}, or {allowed[-1]!r}, got {value!r}")
        if not isinstance(self.score_key, str) or not self.score_key:
            raise ValueError("score_key must be a non-empty string")
        for key, weight in self.weights.items():
            if weight < 0:
                raise ValueError(f"Weight for {key!r} must be non-negative, got {weight}")
        if self.pareto_metrics is not None and not self.pareto_metrics:
            raise ValueError("pareto_metrics must be None (auto) or non-empty tuple")


def to_score_dict(score: ScoreLike) -> Dict[str, float]:
    """A score as {objective: finite number}; one number is called "score".  ValueError, TypeError otherwise."""
    if isinstance(score, (bool, int, float)):
        if not math.isfinite(score):
            raise ValueError(f"Score must be finite, got {score}")
        return {"score": float(score)}
    if not isinstance(score, dict):
        raise TypeError(f"Score must be int, float, bool, or Dict[str, float], got {type(score).__name__}")
    if not score:
        raise ValueError("Score dict must not be empty")
    for key, value in score.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"Score dict value for {key!r} must be finite float, got {value}")
    return {k: float(v) for k, v in score.items()}


normalize_score = to_score_dict


def apply_minimize(score_dict: Dict[str, float], minimize: FrozenSet[str]) -> Dict[str, float]:
    """The same with objectives to minimize negated: more is better everywhere."""
    return {k: -v if k in minimize else v for k, v in score_dict.items()}


def weighted_scalarize(score_dict: Dict[str, float], weights: Dict[str, float], missing_value: float = float("-inf")) -> float:
    """Sum of weight times value over the weights (over all objectives, 1 each, when there are none)."""
    return float(sum(w * score_dict.get(k, missing_value) for k, w in (weights or dict.fromkeys(score_dict, 1.0)).items()))


def score_dict_to_scalar(score_dict: Dict[str, float], config: ObjectiveConfig) -> float:
    """One number, by ``config.scalarize_dict``.  ValueError when the objective ``score_key`` is missing."""
    values = apply_minimize(to_score_dict(score_dict), config.minimize)
    if config.scalarize_dict == "mean":
        return float(np.mean(list(values.values())))
    if config.scalarize_dict == "weighted":
        return weighted_scalarize(values, config.weights, config.missing_value)
    if config.score_key not in values:
        raise ValueError(f"Dict score missing key {config.score_key!r}; include it, or set scalarize_dict to 'mean' or 'weighted'")
    return values[config.score_key]


def to_scalar_score(score: ScoreLike, config: Optional[ObjectiveConfig]) -> float:
    if not isinstance(score, dict):
        return float(score)
    if config is None:
        raise ValueError("Dict score encountered but ObjectiveConfig is None; pass one that says how it becomes a number")
    return score_dict_to_scalar(score, config)


def dominates(a: Dict[str, float], b: Dict[str, float], metrics: Optional[Sequence[str]] = None) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better."""
    keys = metrics if metrics is not None else set(a) | set(b)
    low = float("-inf")
    pairs = [(a.get(k, low), b.get(k, low)) for k in keys]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def pareto_rank(candidates: Sequence[Dict[str, float]], metrics: Optional[Sequence[str]] = None) -> List[int]:
    """0 for what nothing dominates, 1 for what only those dominate, and so on."""
    ranks, left, rank = [0] * len(candidates), set(range(len(candidates))), 0
    while left:
        front = {i for i in left if not any(j != i and dominates(candidates[j], candidates[i], metrics) for j in left)}
        for i in front:
            ranks[i] = rank
        left -= front
        rank += 1
    return ranks


def _ordered_front(indices: List[int], scores: Sequence[Dict[str, float]], config: ObjectiveConfig, rank: int) -> List[int]:
    """A front, best first, by the tie break."""
    if config.tie_break == "weighted":
        return sorted(indices, key=lambda i: weighted_scalarize(scores[i], config.weights, config.missing_value), reverse=True)
    if config.tie_break == "lexicographic":
        metrics = sorted(scores[indices[0]]) if indices else []
        return sorted(indices, key=lambda i: tuple(scores[i].get(m, config.missing_value) for m in metrics), reverse=True)
    shuffled = list(indices)
    np.random.RandomState(config.seed + rank).shuffle(shuffled)
    return shuffled


def select_top_k(candidates: Sequence[Tuple[ScoreLike, Any]], config: Optional[ObjectiveConfig] = None, k: int = 1) -> List[int]:
    """Indices of the k best of [(score, anything)], best first."""
    if config is None or config.mode == "scalar":
        return [int(i) for i in np.argsort([-to_scalar_score(s, config) for s, _ in candidates], kind="stable")[:k]]
    scores = [apply_minimize(to_score_dict(s), config.minimize) for s, _ in candidates]
    if config.mode == "weighted":
        return [int(i) for i in np.argsort([-weighted_scalarize(s, config.weights, config.missing_value) for s in scores], kind="stable")[:k]]
    ranks = pareto_rank(scores, config.pareto_metrics)
    out: List[int] = []
    for rank in range(max(ranks, default=-1) + 1):
        out += _ordered_front([i for i, r in enumerate(ranks) if r == rank], scores, config, rank)
    return out[:k]


def select_best(candidates: Sequence[Tuple[ScoreLike, Any]], config: Optional[ObjectiveConfig] = None) -> int:
    """Index of the best."""
    return select_top_k(candidates, config, 1)[0]


def aggregate_score_dicts(score_dicts: Sequence[Dict[str, float]]) -> Dict[str, float]:
    """The mean of each objective over the scores that have it."""
    out: Dict[str, float] = {}
    for key in sorted({k for s in score_dicts for k in s}):
        values = [s[key] for s in score_dicts if s.get(key) is not None]
        if values:
            out[key] = float(np.mean(values))
    return out
