"""Named special cases of priority search, and the Pareto variant."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Tuple

from optod.trainer.algorithms.priority_search import ModuleCandidate, PrioritySearch
from optod.trainer.utils import safe_mean

__all__ = ["SequentialUpdate", "SequentialSearch", "BeamSearch", "ParetobasedPS"]


class SequentialUpdate(PrioritySearch):
    """One candidate, one proposal: every update is taken."""

    def train(self, *, num_candidates: int = 1, num_proposals: int = 1, memory_size: Any = None, **kwargs: Any) -> None:  # type: ignore[override]
        super().train(num_candidates=1, num_proposals=1, memory_size=1, **kwargs)


class SequentialSearch(PrioritySearch):
    """One candidate, the best of ``num_proposals`` proposals."""

    def train(self, *, num_candidates: int = 1, memory_size: Any = None, **kwargs: Any) -> None:  # type: ignore[override]
        super().train(num_candidates=1, memory_size=1, **kwargs)


class BeamSearch(PrioritySearch):
    """``num_candidates`` candidates are kept."""

    def train(self, *, num_candidates: int = 10, memory_size: Any = None, **kwargs: Any) -> None:  # type: ignore[override]
        super().train(num_candidates=num_candidates, memory_size=num_candidates, **kwargs)


class ParetobasedPS(PrioritySearch):
    """Explores candidates that are best on some example and whose examples are not a subset of another's (as in GEPA)."""

    def compress_candidate_memory(self, candidate: ModuleCandidate) -> ModuleCandidate:
        made = copy.copy(candidate)
        made.rollouts = [{k: v if k in ("x", "score", "score_dict") else None for k, v in r.items()} for r in candidate.rollouts]
        return made

    def compute_score_for_task_x(self, candidate: ModuleCandidate, x: Any) -> float:
        """The candidate's mean score on an example; 0 when it was not run on it."""
        return safe_mean([r["score"] for r in candidate.rollouts if r.get("x") == x], missing_value=0) or 0.0

    def get_best_candidates_for_x(self, x: Any, candidates: List[ModuleCandidate]) -> List[ModuleCandidate]:
        scores = [self.compute_score_for_task_x(c, x) for c in candidates]
        return [c for c, s in zip(candidates, scores) if s == max(scores)]

    def explore(self, verbose: Any = False, **kwargs: Any) -> Tuple[List[ModuleCandidate], List[float], Dict[str, Any]]:
        candidates = [c for _, c in self.memory]
        if not candidates:
            return [], [], self._explored([], [])
        xs: List[Any] = []
        for x in self.train_sampler.dataset["inputs"]:
            if not any(x == known for known in xs):
                xs.append(x)
        best = [{id(c) for c in self.get_best_candidates_for_x(x, candidates)} for x in xs]
        won = {id(c): frozenset(i for i, ids in enumerate(best) if id(c) in ids) for c in candidates}
        front = [c for c in candidates if won[id(c)] and not any(won[id(c)] < won[id(other)] for other in candidates)]
        chosen = sorted(front, key=lambda c: c.mean_score() or 0.0, reverse=True)[:self.num_candidates]
        ids = {id(c) for c in chosen}
        priorities = [-negative for negative, c in self.memory if id(c) in ids]
        self.memory.memory = [entry for entry in self.memory if id(entry[1]) not in ids]
        self.logger.log("Update/num_pareto_candidates", len(front), self.n_iters, color="green")
        return chosen, priorities, self._explored(chosen, priorities)
