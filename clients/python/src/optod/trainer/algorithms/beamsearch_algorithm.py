"""Beam search: keep the ``beam_width`` best values, propose from each, validate, keep the best again."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from optod.trainer.algorithms.basic_algorithms import MinibatchAlgorithm
from optod.trainer.evaluators import aggregate_vector_scores, evaluate, evaluate_vector
from optod.trainer.loader import DataLoader
from optod.trainer.objectives import ObjectiveConfig, select_top_k
from optod.trainer.utils import async_run, batch_run, batchify

__all__ = ["BeamsearchAlgorithm"]


class BeamsearchAlgorithm(MinibatchAlgorithm):
    """Values are kept as {parameter: value}; the agent holds the best at the end."""

    def train(self, guide: Any, train_dataset: Dict[str, list], *, validate_dataset: Optional[Dict[str, list]] = None, validate_guide: Any = None,  # type: ignore[override]
              beam_width: int = 3, num_proposals: int = 4, max_depth: int = 2, batch_size: int = 1, validation_dataset_size: Optional[int] = None,
              min_score: Any = 0, num_threads: Optional[int] = None, objective_config: Optional[ObjectiveConfig] = None, verbose: Any = False,
              test_dataset: Optional[Dict[str, list]] = None, seed: int = 0, **kwargs: Any) -> Tuple[Dict[str, list], float]:
        """({"best_validation_scores": [by depth]}, score of the best on ``test_dataset`` or the validation set).

        max_depth: rounds.  validation_dataset_size: examples drawn for each validation, None = all.
        """
        self.num_threads = num_threads or self.num_threads
        self.objective_config, self.min_score = objective_config, min_score
        validate_dataset, validate_guide = validate_dataset or train_dataset, validate_guide or guide
        loader, random = DataLoader(train_dataset, batch_size=batch_size), np.random.RandomState(seed)
        beam = [self._values()]
        metrics: Dict[str, list] = {"best_validation_scores": []}
        for depth in range(max_depth):
            xs, infos = loader.sample()
            found = list(beam)
            for values in beam:
                found += self._expand(values, xs, infos, guide, num_proposals, verbose, kwargs)
            part = _drawn(validate_dataset, validation_dataset_size, random)
            scores = [self._score(values, validate_guide, part) for values in found]
            order = select_top_k(list(zip(scores, found)), objective_config, beam_width)
            beam, self._last_selected_score_dicts = [found[i] for i in order], [scores[i] for i in order if isinstance(scores[i], dict)]
            metrics["best_validation_scores"].append(scores[order[0]])
            self.n_iters += 1
            self.logger.log("Best validation score", scores[order[0]], depth, color="green")
        self.optimizer.update(beam[0])
        data = test_dataset or validate_dataset
        final = evaluate(self.agent, validate_guide, data["inputs"], data["infos"], min_score, num_threads=self.num_threads)
        return metrics, float(np.mean(final))

    def _values(self) -> Dict[Any, Any]:
        return {p: copy.deepcopy(p.data) for p in self.agent.parameters()}

    def _expand(self, values: Dict[Any, Any], xs: list, infos: list, guide: Any, num_proposals: int, verbose: Any, kwargs: dict) -> List[Dict[Any, Any]]:
        """New values proposed from the given ones, on one batch."""
        self.optimizer.update(values)
        forward = batch_run(max_workers=self.num_threads)(self.forward)
        targets, _, feedbacks = zip(*forward([self.agent] * len(xs), xs, [guide] * len(xs), infos))
        self.optimizer.zero_feedback()
        self.optimizer.backward(batchify(*targets), batchify(*feedbacks).data)
        options = {"bypassing": True, "verbose": verbose, **kwargs}
        proposals = async_run([self.optimizer.step] * num_proposals, kwargs_list=[options] * num_proposals, max_workers=self.num_threads)
        self.optimizer.zero_feedback()
        return [{**values, **update} for update in proposals if update]

    def _score(self, values: Dict[Any, Any], guide: Any, data: Dict[str, list]) -> Any:
        self.optimizer.update(values)
        if self.objective_config is not None and self.objective_config.mode != "scalar":
            return aggregate_vector_scores(evaluate_vector(self.agent, guide, data["inputs"], data["infos"], self.min_score, self.num_threads))
        return float(np.mean(evaluate(self.agent, guide, data["inputs"], data["infos"], self.min_score, num_threads=self.num_threads)))


def _drawn(data: Dict[str, list], size: Optional[int], random: Any) -> Dict[str, list]:
    n = len(data["inputs"])
    if size is None or size >= n:
        return data
    chosen = random.choice(n, size=size, replace=False)
    return {key: [data[key][i] for i in chosen] for key in ("inputs", "infos")}
