"""Scores of an agent over examples."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from optod.trace.errors import ExecutionError
from optod.trainer.guide import Guide
from optod.trainer.objectives import aggregate_score_dicts
from optod.trainer.utils import batch_run

__all__ = ["evaluate", "evaluate_vector", "aggregate_vector_scores"]


def evaluate(agent: Any, guide: Guide, inputs: Sequence[Any], infos: Sequence[Any], min_score: Optional[float] = None, num_samples: int = 1,
             num_threads: Optional[int] = None, description: Optional[str] = None) -> np.ndarray:
    """Scores [examples], or [examples, num_samples] when there are several; a failed run counts ``min_score``."""
    _same_length(inputs, infos)

    @batch_run(max_workers=num_threads, description=description or f"Evaluating {len(inputs)} examples")
    def one(agent: Any, guide: Guide, i: int) -> Any:
        try:
            return guide.metric(inputs[i], agent(inputs[i]).data, infos[i])
        except ExecutionError:
            return min_score

    scores = np.array(one(agent, guide, [i for i in range(len(inputs)) for _ in range(num_samples)]))
    return scores.reshape(len(inputs), num_samples) if num_samples > 1 else scores


def evaluate_vector(agent: Any, guide: Guide, inputs: Sequence[Any], infos: Sequence[Any], min_score: Union[None, float, Dict[str, float]] = None,
                    num_threads: Optional[int] = None, description: Optional[str] = None) -> List[Dict[str, float]]:
    """{objective: score} of each example; a failed run counts ``min_score`` (None = minus infinity)."""
    _same_length(inputs, infos)
    failed = min_score if isinstance(min_score, dict) else {"score": float("-inf") if min_score is None else float(min_score)}

    @batch_run(max_workers=num_threads, description=description or f"Evaluating {len(inputs)} examples")
    def one(agent: Any, guide: Guide, i: int) -> Dict[str, float]:
        try:
            return guide.get_score_dict(inputs[i], agent(inputs[i]).data, infos[i])
        except ExecutionError:
            return copy.copy(failed)

    return one(agent, guide, list(range(len(inputs))))


def _same_length(inputs: Sequence[Any], infos: Sequence[Any]) -> None:
    if len(inputs) != len(infos):
        raise AssertionError("inputs and infos must have the same length")


def aggregate_vector_scores(score_dicts: Sequence[Dict[str, float]]) -> Dict[str, float]:
    """The mean of each objective."""
    return aggregate_score_dicts(score_dicts)
