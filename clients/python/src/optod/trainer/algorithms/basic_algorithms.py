"""Minibatches: run the agent on a batch, join results and feedback, take one optimizer step; keep it only when it helps."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from optod.trace.modules import Module
from optod.trainer.algorithms.algorithm import Trainer
from optod.trainer.evaluators import aggregate_vector_scores, evaluate, evaluate_vector
from optod.trainer.loader import DataLoader
from optod.trainer.objectives import ObjectiveConfig, apply_minimize, select_best, weighted_scalarize
from optod.trainer.sampler import standard_forward
from optod.trainer.utils import async_run, batch_run, batchify, safe_mean

__all__ = ["Minibatch", "MinibatchAlgorithm", "BasicSearchAlgorithm", "standard_optimization_step"]

standard_optimization_step = standard_forward


class Minibatch(Trainer):
    """Subclasses give ``forward`` (one example) and ``update`` (what a batch came to)."""

    def __init__(self, agent: Module, optimizer: Any, num_threads: Optional[int] = None, logger: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(agent, num_threads, logger, *args, **kwargs)
        self.optimizer, self.n_iters, self.num_test_samples = optimizer, 0, 1

    def train(self, guide: Any, train_dataset: Dict[str, list], *, ensure_improvement: bool = False, improvement_threshold: float = 0.0,
              num_epochs: int = 1, batch_size: int = 1, test_dataset: Optional[Dict[str, list]] = None, test_frequency: int = 1, num_test_samples: int = 1,
              log_frequency: Optional[int] = None, save_frequency: Optional[int] = None, save_path: str = "checkpoints/agent.pkl",
              min_score: Optional[float] = None, verbose: Union[bool, str] = False, num_threads: Optional[int] = None,
              **kwargs: Any) -> Tuple[List[float], Optional[float]]:
        """(training scores by step, last test score).

        ensure_improvement: an update stays only when the batch's score rises by more than ``improvement_threshold``; else the values from before come
        back.  test_frequency, log_frequency, save_frequency: in steps; 0 or None = never.  min_score: of a failed run.  kwargs: for the optimizer's step.
        """
        self.num_threads = num_threads or self.num_threads
        self.num_test_samples = num_test_samples
        test_dataset = test_dataset or train_dataset
        log_frequency = log_frequency or test_frequency
        train_scores: List[float] = []
        test_score = self._test(guide, test_dataset, min_score) if test_frequency else None
        if save_frequency:
            self.save_agent(save_path, self.n_iters)
        loader = DataLoader(train_dataset, batch_size=batch_size)
        for _ in range(num_epochs):
            for xs, infos in loader:
                score = self._batch(xs, infos, guide, min_score, ensure_improvement, improvement_threshold, verbose, kwargs)
                self.n_iters += 1
                if score is not None:
                    train_scores.append(score)
                if test_frequency and self.n_iters % test_frequency == 0:
                    test_score = self._test(guide, test_dataset, min_score)
                if save_frequency and self.n_iters % save_frequency == 0:
                    self.save_agent(save_path, self.n_iters)
                if log_frequency and self.n_iters % log_frequency == 0:
                    self._report(score, train_scores)
        return train_scores, test_score

    def _batch(self, xs: list, infos: list, guide: Any, min_score: Any, ensure: bool, threshold: float, verbose: Any, kwargs: dict) -> Optional[float]:
        before = {p: copy.deepcopy(p.data) for p in self.agent.parameters()}
        forward = batch_run(max_workers=self.num_threads, description=f"Forward pass (batch size: {len(xs)})")(self.forward)
        outputs = forward([self.agent] * len(xs), xs, [guide] * len(xs), infos)
        score = self.update(outputs, verbose=verbose, num_threads=self.num_threads, **kwargs)
        changed = any(before[p] != p.data for p in self.agent.parameters())
        if ensure and changed and not self.has_improvement(xs, guide, infos, score, outputs, before, threshold, min_score=min_score):
            self.optimizer.update(before)
        return score

    def _test(self, guide: Any, dataset: Dict[str, list], min_score: Any) -> Optional[float]:
        score = self.evaluate(self.agent, guide, dataset["inputs"], dataset["infos"], min_score=min_score, num_samples=self.num_test_samples)
        self.logger.log("Average test score", score, self.n_iters, color="green")
        return score

    def _report(self, score: Any, train_scores: List[float]) -> None:
        self.logger.log("Instantaneous train score", score, self.n_iters)
        self.logger.log("Average train score", safe_mean(train_scores), self.n_iters)
        for parameter in self.agent.parameters():
            self.logger.log(f"Parameter: {parameter.name}", parameter.data, self.n_iters, color="red")

    def evaluate(self, agent: Any, guide: Any, xs: list, infos: list, min_score: Any = None, num_samples: int = 1, num_threads: Optional[int] = None,
                 description: Optional[str] = None) -> Optional[float]:
        """The mean score; what failed without a ``min_score`` does not count."""
        return safe_mean(evaluate(agent, guide, xs, infos, min_score, num_samples, num_threads or self.num_threads, description))  # type: ignore[arg-type]

    def has_improvement(self, xs: list, guide: Any, infos: list, current_score: Optional[float], current_outputs: Any, backup_dict: Any,
                        threshold: float = 0.0, min_score: Any = None, **kwargs: Any) -> bool:
        """Whether the batch now scores more than before plus the threshold."""
        new = self.evaluate(self.agent, guide, xs, infos, min_score=min_score, num_samples=self.num_test_samples)
        better = new is not None and (current_score is None or new > current_score + threshold)
        self.logger.log("Update accepted" if better else "Update rejected", f"{current_score} -> {new}", self.n_iters)
        return better

    def forward(self, agent: Any, x: Any, guide: Any, info: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def update(self, outputs: list, verbose: Any = False, num_threads: Optional[int] = None, **kwargs: Any) -> Optional[float]:
        raise NotImplementedError(f"{type(self).__name__}.update")

    # ---- files

    def save(self, save_path: str) -> None:
        """Writes the agent, the optimizer, the validation guide and what else has come to ``save_path``, ``save_path_agent.module``, ..."""
        folder = os.path.dirname(save_path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        parts = {"agent": ("module", self.agent), "optimizer": ("optimizer", self.optimizer), "validate_guide": ("guide", getattr(self, "validate_guide", None))}
        for name, (extension, part) in parts.items():
            if part is not None:
                part.save(f"{save_path}_{name}.{extension}")
        rest = {k: v for k, v in self.__dict__.items() if k not in (*parts, "logger", "validate_dataset")}
        with open(save_path, "wb") as file:
            pickle.dump(rest, file)

    def load(self, load_path: str) -> None:  # type: ignore[override]
        """Reads back what ``save`` wrote."""
        with open(load_path, "rb") as file:
            self.__dict__.update(pickle.load(file))
        self.agent.load(f"{load_path}_agent.module")
        self.optimizer.load(f"{load_path}_optimizer.optimizer")


class MinibatchAlgorithm(Minibatch):
    """Joins the batch's results and feedback by number and takes one step."""

    def forward(self, agent: Any, x: Any, guide: Any, info: Any) -> Any:
        return standard_forward(agent, x, guide, info)

    def update(self, outputs: list, verbose: Any = False, num_threads: Optional[int] = None, **kwargs: Any) -> Optional[float]:
        targets, scores, feedbacks = zip(*outputs)
        target, feedback = batchify(*targets), batchify(*feedbacks).data
        self.optimizer.zero_feedback()
        self.optimizer.backward(target, feedback)
        self.optimizer_step(verbose=verbose, num_threads=num_threads, **kwargs)
        return None if any(s is None for s in scores) else float(np.mean(scores))

    def optimizer_step(self, bypassing: bool = False, verbose: Any = False, num_threads: Optional[int] = None, **kwargs: Any) -> Dict[Any, Any]:
        return self.optimizer.step(bypassing=bypassing, verbose=verbose, **kwargs)


class BasicSearchAlgorithm(MinibatchAlgorithm):
    """Several proposals a batch; the one that validates best is taken, the current values included."""

    def train(self, guide: Any, train_dataset: Dict[str, list], *, validate_dataset: Optional[Dict[str, list]] = None, validate_guide: Any = None,
              num_proposals: int = 4, objective_config: Optional[ObjectiveConfig] = None, min_score: Any = None, **kwargs: Any) -> Any:
        """num_proposals: a batch.  validate_dataset, validate_guide: None = those of training.  objective_config: for scores with several objectives."""
        self.num_proposals, self.min_score, self.objective_config = num_proposals, min_score, objective_config
        self.validate_dataset, self.validate_guide = validate_dataset or train_dataset, validate_guide or guide
        self.current_score: Any = None
        return super().train(guide, train_dataset, min_score=min_score, **kwargs)

    def _validate(self) -> Any:
        """A number, or {objective: number} when several count."""
        data = self.validate_dataset
        if self.objective_config is not None and self.objective_config.mode != "scalar":
            return aggregate_vector_scores(evaluate_vector(self.agent, self.validate_guide, data["inputs"], data["infos"], self.min_score, self.num_threads))
        scores = evaluate(self.agent, self.validate_guide, data["inputs"], data["infos"], self.min_score, num_threads=self.num_threads)
        return float("-inf") if any(s is None for s in scores) else float(np.mean(scores))

    def optimizer_step(self, bypassing: bool = False, verbose: Any = False, num_threads: Optional[int] = None, **kwargs: Any) -> Dict[Any, Any]:
        before = {p: copy.deepcopy(p.data) for p in self.agent.parameters()}
        options = {"bypassing": True, "verbose": "output" if verbose else False, **kwargs}
        proposals = async_run([super().optimizer_step] * self.num_proposals, kwargs_list=[options] * self.num_proposals,
                              max_workers=num_threads or self.num_threads)
        if self.current_score is None:
            self.current_score = self._validate()
        candidates = [(self.current_score, before)]
        for update in (u for u in proposals if u):
            self.optimizer.update(update)
            candidates.append((self._validate(), update))
            self.optimizer.update(before)
        best = select_best(candidates, self.objective_config)
        self.current_score, chosen = candidates[best]
        self.optimizer.update(chosen)
        self.logger.log("Validation score", self._shown(self.current_score), self.n_iters, color="green")
        return chosen

    def _shown(self, score: Any) -> Any:
        if not isinstance(score, dict) or self.objective_config is None:
            return score
        config = self.objective_config
        return weighted_scalarize(apply_minimize(score, config.minimize), config.weights, config.missing_value)
