"""UCB search: a buffer of candidates; the one of the highest upper confidence bound is expanded, the lowest leaves when the buffer is full."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from optod.trainer.algorithms.basic_algorithms import MinibatchAlgorithm
from optod.trainer.evaluators import evaluate
from optod.trainer.loader import DataLoader
from optod.trainer.utils import batch_run, batchify

__all__ = ["UCBSearchAlgorithm"]


@dataclasses.dataclass
class _Candidate:
    values: Dict[Any, Any]
    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


class UCBSearchAlgorithm(MinibatchAlgorithm):
    """max_buffer_size: candidates kept.  ucb_exploration_factor: c of mean + c sqrt(ln(all evaluations) / own evaluations)."""

    def __init__(self, agent: Any, optimizer: Any, max_buffer_size: int = 10, ucb_exploration_factor: float = 1.0, logger: Any = None,
                 num_threads: Optional[int] = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(agent, optimizer, num_threads, logger, **kwargs)
        self.max_buffer_size, self.ucb_exploration_factor = max_buffer_size, ucb_exploration_factor
        self.buffer: List[_Candidate] = []
        self._random = np.random.RandomState(seed)

    def ucb(self, candidate: _Candidate) -> float:
        """The upper confidence bound; of a candidate that was never evaluated, infinity."""
        if not candidate.count:
            return math.inf
        total = sum(c.count for c in self.buffer)
        return candidate.mean + self.ucb_exploration_factor * math.sqrt(math.log(max(total, 1) + 1) / candidate.count)

    def train(self, guide: Any, train_dataset: Dict[str, list], *, validation_dataset: Optional[Dict[str, list]] = None, num_search_iterations: int = 10,  # type: ignore[override]
              train_batch_size: int = 2, evaluation_batch_size: int = 5, min_score: Any = 0, num_threads: Optional[int] = None, verbose: Any = False,
              **kwargs: Any) -> Tuple[Dict[str, list], float]:
        """({"best_candidate_scores": [...], "new_candidate_scores": [...]}, mean score of the best); the agent holds the best at the end."""
        self.num_threads = num_threads or self.num_threads
        data = validation_dataset or train_dataset
        loader = DataLoader(train_dataset, batch_size=train_batch_size)
        self.buffer = [_Candidate({p: copy.deepcopy(p.data) for p in self.agent.parameters()})]
        self._evaluate(self.buffer[0], guide, data, evaluation_batch_size, min_score)
        metrics: Dict[str, list] = {"best_candidate_scores": [], "new_candidate_scores": []}
        for _ in range(num_search_iterations):
            parent = max(self.buffer, key=self.ucb)
            update = self._propose(parent, *loader.sample(), guide=guide, verbose=verbose, kwargs=kwargs)
            if update:
                made = _Candidate({**parent.values, **update})
                self._evaluate(made, guide, data, evaluation_batch_size, min_score)
                metrics["new_candidate_scores"].append(made.mean)
                self._keep(made)
            else:
                self._evaluate(parent, guide, data, evaluation_batch_size, min_score)
            best = max(self.buffer, key=lambda c: c.mean)
            metrics["best_candidate_scores"].append(best.mean)
            self.logger.log("Best candidate score", best.mean, self.n_iters, color="green")
            self.n_iters += 1
        best = max(self.buffer, key=lambda c: c.mean)
        self.optimizer.update(best.values)
        return metrics, best.mean

    def _propose(self, parent: _Candidate, xs: list, infos: list, guide: Any, verbose: Any, kwargs: dict) -> Dict[Any, Any]:
        self.optimizer.update(parent.values)
        forward = batch_run(max_workers=self.num_threads)(self.forward)
        targets, scores, feedbacks = zip(*forward([self.agent] * len(xs), xs, [guide] * len(xs), infos))
        parent.total += float(sum(scores))
        parent.count += len(scores)
        self.optimizer.zero_feedback()
        self.optimizer.backward(batchify(*targets), batchify(*feedbacks).data)
        return self.optimizer.step(bypassing=True, verbose=verbose, **kwargs)

    def _evaluate(self, candidate: _Candidate, guide: Any, data: Dict[str, list], size: int, min_score: Any) -> None:
        self.optimizer.update(candidate.values)
        n = len(data["inputs"])
        chosen = self._random.choice(n, size=min(size, n), replace=False)
        scores = evaluate(self.agent, guide, [data["inputs"][i] for i in chosen], [data["infos"][i] for i in chosen], min_score,
                          num_threads=self.num_threads)
        candidate.total += float(np.sum(scores))
        candidate.count += len(scores)

    def _keep(self, made: _Candidate) -> None:
        """Adds a candidate; when the buffer is full, the one of the lowest bound leaves."""
        self.buffer.append(made)
        if len(self.buffer) > self.max_buffer_size:
            lowest = min(self.buffer, key=self.ucb)
            self.buffer = [c for c in self.buffer if c is not lowest]
