"""The loop that search algorithms share: update -> sample -> (test, save, log)."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from optod.optimizers.optimizer import Optimizer
from optod.trace.modules import Module
from optod.trainer.algorithms.algorithm import Trainer
from optod.trainer.evaluators import evaluate
from optod.trainer.loader import DataLoader
from optod.trainer.sampler import BatchRollout, Sampler
from optod.trainer.utils import safe_mean

__all__ = ["Samples", "SearchTemplate", "BatchRollout", "save_train_config", "check_optimizer_parameters"]


class Samples:
    """Runs, and the batch that they were made on."""

    def __init__(self, samples: List[BatchRollout], dataset: Dict[str, List[Any]]) -> None:
        if not isinstance(samples, list) or not all(isinstance(s, BatchRollout) for s in samples):
            raise AssertionError("samples: must be a list of BatchRollouts")
        if not isinstance(dataset, dict) or "inputs" not in dataset or "infos" not in dataset:
            raise AssertionError("dataset: must be a dict with 'inputs' and 'infos'")
        self.samples, self._dataset = samples, dataset

    def add_samples(self, samples: "Samples") -> None:
        self.samples.extend(samples.samples)

    def __iter__(self) -> Iterator[BatchRollout]:
        return iter(self.samples)

    def __len__(self) -> int:
        return sum(len(s) for s in self.samples)

    @property
    def n_batchrollouts(self) -> int:
        return len(self.samples)


def check_optimizer_parameters(optimizer: Optimizer, agent: Module) -> None:
    """AssertionError unless the optimizer has the agent's parameters."""
    if not isinstance(optimizer, Optimizer):
        raise AssertionError("optimizer: must be an Optimizer")
    if {id(p) for p in agent.parameters()} != {id(p) for p in optimizer.parameters}:
        raise AssertionError("Optimizer parameters do not match agent parameters.")


def save_train_config(function: Callable) -> Callable:
    """Remembers the arguments of ``train`` (data sets aside) for ``resume``."""

    def wrapper(self: Any, **kwargs: Any) -> Any:
        self._train_last_kwargs = {k: v for k, v in kwargs.items() if k not in ("train_dataset", "validate_dataset", "test_dataset")}
        return function(self, **kwargs)

    return wrapper


class SearchTemplate(Trainer):
    """Subclasses give ``update(samples, ...) -> (values to use, modules to run next, figures to log)``.

    optimizer: one, or a list that is taken in turn.
    """

    def __init__(self, agent: Module, optimizer: Union[Optimizer, List[Optimizer]], num_threads: Optional[int] = None, logger: Any = None, *args: Any,
                 **kwargs: Any) -> None:
        super().__init__(agent, num_threads, logger, *args, **kwargs)
        self._optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
        if not self._optimizers:
            raise AssertionError("Optimizers list is empty.")
        for one in self._optimizers:
            check_optimizer_parameters(one, agent)
        self.n_iters = self.n_epochs = self.n_samples = 0
        self._optimizer_index = -1
        self.train_sampler: Any = None
        self.validate_sampler: Any = None

    @property
    def optimizer(self) -> Optimizer:
        """The next of the optimizers."""
        self._optimizer_index += 1
        return self._optimizers[self._optimizer_index % len(self._optimizers)]

    @property
    def max_score(self) -> float:
        return self._score_range[1]

    @property
    def min_score(self) -> float:
        return self._score_range[0]

    def train(self, *, guide: Any, train_dataset: Dict[str, list], validate_dataset: Optional[Dict[str, list]] = None, validate_guide: Any = None,  # type: ignore[override]
              batch_size: int = 1, num_batches: int = 1, score_range: Optional[Tuple[float, float]] = None, num_epochs: Optional[int] = 1,
              num_steps: Optional[int] = None, num_threads: Optional[int] = None, verbose: Any = False, test_dataset: Optional[Dict[str, list]] = None,
              test_guide: Any = None, test_frequency: Optional[int] = 1, num_test_samples: int = 1, log_frequency: Optional[int] = None,
              save_frequency: Optional[int] = None, save_path: str = "search_checkpoints/", **kwargs: Any) -> None:
        """Runs until ``num_epochs`` epochs and ``num_steps`` iterations are over.

        num_batches: batches of ``batch_size`` an iteration, each with a copy of the module.  validate_dataset: None validates on the batch just run.
        score_range: (least, most).  test_frequency: iterations between tests, None = never, negative = as its size but not at the start.
        save_frequency: iterations between saves to the folder ``save_path``.
        """
        self.num_threads = num_threads or self.num_threads
        self.num_test_samples = num_test_samples
        self._score_range = tuple(score_range) if score_range is not None else (-np.inf, np.inf)
        if len(self._score_range) != 2 or self._score_range[1] < self._score_range[0]:
            raise AssertionError("score_range must be a tuple (min_score, max_score) with min_score <= max_score.")
        self._make_samplers(guide, train_dataset, validate_guide or guide, validate_dataset, batch_size, num_batches)
        log_frequency = log_frequency or abs(test_frequency or 1)
        if save_frequency:
            self.save(save_path)
        samples, scores, sizes = None, [], []
        while self.n_epochs < (num_epochs or 0) or self.n_iters < (num_steps or 0):
            update, proposals, figures = self.update(samples, verbose=verbose, **kwargs)
            self.optimizer.update(update)
            samples, sampled = self.sample(proposals, verbose=verbose, **kwargs)
            if test_frequency is not None and self.n_iters % test_frequency == 0 and not (self.n_iters == 0 and test_frequency < 0):
                self.log(self.test(test_dataset or train_dataset, test_guide or guide), prefix="Test/")
            if save_frequency and self.n_iters % save_frequency == 0:
                self.save(save_path)
            scores.append(sampled["mean_score"])
            sizes.append(sampled["num_samples"])
            self.n_samples += len(samples)
            if self.n_iters % log_frequency == 0:
                self._report(figures, sampled, scores, sizes)
            self.n_epochs = sampled["self.n_epochs"]
            self.n_iters += 1

    def _make_samplers(self, guide: Any, train_dataset: Any, validate_guide: Any, validate_dataset: Any, batch_size: int, num_batches: int) -> None:
        """Samplers of a first run; a resumed one keeps its own and gets the data sets back."""
        whole = batch_size * num_batches
        if self.train_sampler is None:
            self.train_sampler = Sampler(DataLoader(train_dataset, batch_size=whole), guide, self.num_threads, batch_size, score_range=self._score_range)
        else:
            self.train_sampler.loader.dataset = train_dataset
        self.use_prev_batch = validate_dataset is None
        if self.use_prev_batch:
            self.validate_sampler = self.train_sampler
        elif self.validate_sampler is None or self.validate_sampler is self.train_sampler:
            self.validate_sampler = Sampler(DataLoader(validate_dataset, batch_size=whole), validate_guide, self.num_threads, score_range=self._score_range)
        else:
            self.validate_sampler.loader.dataset = validate_dataset

    def sample(self, agents: Sequence[Module], verbose: Any = False, **kwargs: Any) -> Tuple[Samples, Dict[str, Any]]:
        """Runs the modules on the next batch."""
        samples = Samples(*self.train_sampler.sample(agents, description_prefix="Sampling training minibatch: "))
        scores = [s for run in samples.samples for s in run.get_scores() if s is not None]
        return samples, {"mean_score": safe_mean(scores, 0), "num_samples": len(scores), "self.n_epochs": self.train_sampler.n_epochs}

    def _report(self, figures: dict, sampled: dict, scores: list, sizes: list) -> None:
        self.logger.log("Algo/Average train score", float(np.dot(scores, sizes) / max(1, sum(sizes))), self.n_iters, color="blue")
        self.log(figures, prefix="Update/")
        self.log(sampled, prefix="Sample/")
        self.logger.log("Algo/Number of training samples", self.n_samples, self.n_iters, color="blue")
        for parameter in self.agent.parameters():
            self.logger.log(f"Parameter/{parameter.name}", parameter.data, self.n_iters, color="red")

    def log(self, info_log: Dict[str, Any], prefix: str = "") -> None:
        for key, value in info_log.items():
            if value is not None:
                self.logger.log(f"{prefix}{key}", value, self.n_iters)

    def test(self, test_dataset: Dict[str, list], guide: Any) -> Dict[str, Any]:
        return {"test_score": self.evaluate(self.agent, guide, test_dataset["inputs"], test_dataset["infos"], min_score=self.min_score,
                                            num_samples=self.num_test_samples)}

    def evaluate(self, agent: Any, guide: Any, xs: list, infos: list, min_score: Any = None, num_samples: int = 1, num_threads: Optional[int] = None,
                 description: Optional[str] = None) -> Optional[float]:
        return safe_mean(evaluate(agent, guide, xs, infos, min_score, num_samples, num_threads or self.num_threads, description))  # type: ignore[arg-type]

    # ---- files

    def save(self, save_path: str) -> None:
        """Writes the whole search to ``save_path/algo.pkl``, over the last one in one move."""
        os.makedirs(save_path, exist_ok=True)
        path = os.path.join(save_path, "algo.pkl")
        with open(path + ".part", "wb") as file:
            pickle.dump(copy.deepcopy(self), file)
        os.replace(path + ".part", path)

    @classmethod
    def load(cls, load_path: str) -> Any:
        """A saved search; ``resume`` goes on with it."""
        with open(os.path.join(load_path, "algo.pkl"), "rb") as file:
            found = pickle.load(file)
        if not isinstance(found, cls):
            raise AssertionError(f"{load_path} holds a {type(found).__name__}, not a {cls.__name__}")
        return found

    def resume(self, *, model: Module, train_dataset: dict, validate_dataset: Optional[dict] = None, test_dataset: Optional[dict] = None,
               **kwargs: Any) -> Any:
        """Goes on with the arguments of the last ``train``, changed by ``kwargs``; ``model`` takes over the saved values."""
        model.__setstate__(self.agent.__getstate__())  # type: ignore[attr-defined]
        self.agent = model
        for one in self._optimizers:
            one.parameters = model.parameters()
        if self.use_prev_batch and validate_dataset is not None:
            raise AssertionError("validate_dataset: the search that was saved validates on its training batches")
        arguments = {**getattr(self, "_train_last_kwargs", {}), **kwargs, "train_dataset": train_dataset, "validate_dataset": validate_dataset,
                     "test_dataset": test_dataset}
        return self.train(**arguments)

    def update(self, samples: Optional[Samples] = None, verbose: Any = False, **kwargs: Any) -> Tuple[Dict, List[Module], Dict]:
        raise NotImplementedError(f"{type(self).__name__}.update")
