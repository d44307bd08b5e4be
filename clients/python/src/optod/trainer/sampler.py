"""Runs agents on batches and keeps what came out."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from optod.trace.errors import ExecutionError
from optod.trace.modules import Module
from optod.trainer.guide import Guide
from optod.trainer.loader import DataLoader
from optod.trainer.utils import batch_run, deepcopy_module

__all__ = ["Rollout", "BatchRollout", "RolloutConfig", "Sampler", "sample_rollouts", "standard_forward"]


@dataclasses.dataclass
class Rollout:
    """One run: the module, the example (x, info), the result as a node, its score and feedback."""

    module: Any
    x: Any
    info: Any
    target: Any
    score: Any
    feedback: Any

    def to_dict(self) -> Dict[str, Any]:
        return {"module": self.module, "x": self.x, "info": self.info, "target": self.target.data, "score": self.score, "feedback": self.feedback}


class BatchRollout:
    """Runs of one module."""

    def __init__(self, rollouts: List[Rollout]) -> None:
        if any(r.module is not rollouts[0].module for r in rollouts):
            raise ValueError("All rollouts must have the same module.")
        self.module, self.rollouts = rollouts[0].module, rollouts

    def get_scores(self) -> List[Any]:
        return [r.score for r in self.rollouts]

    def __len__(self) -> int:
        return len(self.rollouts)

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self.rollouts)

    def extend(self, other: "BatchRollout") -> None:
        if self.module is not other.module:
            raise ValueError("Cannot extend with rollouts of another module.")
        self.rollouts.extend(other.rollouts)

    def to_list(self) -> List[Dict[str, Any]]:
        return [r.to_dict() for r in self.rollouts]

    def get_batch(self) -> Dict[str, List[Any]]:
        return {"inputs": [r.x for r in self.rollouts], "infos": [r.info for r in self.rollouts]}


@dataclasses.dataclass
class RolloutConfig:
    """What to run: a module on examples, judged by a guide."""

    module: Any
    xs: List[Any]
    infos: List[Any]
    guide: Any

    def __post_init__(self) -> None:
        for name, value, kind in (("module", self.module, Module), ("xs", self.xs, list), ("infos", self.infos, list), ("guide", self.guide, Guide)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}.")
        if len(self.xs) != len(self.infos):
            raise ValueError("Length of xs must match length of infos.")


def standard_forward(agent: Any, x: Any, guide: Guide, info: Any, min_score: Any = 0) -> Tuple[Any, Any, Any]:
    """(result, score, feedback); of a failed run the exception node, ``min_score`` and its full text."""
    try:
        target = agent(x)
        score, feedback = guide(x, target.data, info)
    except ExecutionError as error:
        target = error.exception_node
        score, feedback = min_score, target.create_feedback("full")
    return target, score, feedback


def sample_rollouts(configs: Sequence[RolloutConfig], num_threads: Optional[int] = 1, forward: Optional[Callable] = None, min_score: Any = None,
                    description: str = "Sampling rollouts.") -> List[BatchRollout]:
    """Runs all configs side by side; one BatchRollout each."""
    flat = [(c, x, info) for c in configs for x, info in zip(c.xs, c.infos)]
    outputs = batch_run(max_workers=num_threads, description=description)(forward or standard_forward)(
        agent=[c.module for c, _, _ in flat], x=[x for _, x, _ in flat], info=[i for _, _, i in flat], guide=[c.guide for c, _, _ in flat],
        min_score=min_score)
    made = [Rollout(c.module, x, info, *out) for (c, x, info), out in zip(flat, outputs)]
    results, at = [], 0
    for config in configs:
        results.append(BatchRollout(made[at:at + len(config.xs)]))
        at += len(config.xs)
    return results


class Sampler:
    """Draws a batch of the loader and runs agents on it, in parts of ``subbatch_size`` that each have a copy of the agent."""

    def __init__(self, loader: DataLoader, guide: Guide, num_threads: Optional[int] = 1, subbatch_size: Optional[int] = None,
                 forward: Optional[Callable] = None, score_range: Tuple[float, float] = (-np.inf, np.inf)) -> None:
        if subbatch_size is not None and subbatch_size > loader.batch_size:
            raise AssertionError("subbatch_size must be less than or equal to the loader's batch size.")
        self.loader, self.guide, self.num_threads = loader, guide, num_threads
        self.subbatch_size = subbatch_size or loader.batch_size
        self.forward = forward or standard_forward
        self.score_range = score_range
        self._prev_batch: Optional[Dict[str, List[Any]]] = None

    @property
    def dataset(self) -> Dict[str, list]:
        return self.loader.dataset

    @dataset.setter
    def dataset(self, value: Dict[str, list]) -> None:
        if not isinstance(value, dict) or "inputs" not in value or "infos" not in value or len(value["inputs"]) != len(value["infos"]):
            raise AssertionError("dataset: must be a dict with 'inputs' and 'infos' of equal length")
        self.loader.dataset = value

    @property
    def batch_size(self) -> int:
        return self.loader.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.loader.batch_size = value

    @property
    def n_epochs(self) -> int:
        return self.loader.n_epochs

    def sample(self, agents: Sequence[Module], use_prev_batch: bool = False, description_prefix: str = "") -> Tuple[List[BatchRollout], Dict[str, list]]:
        """(runs, batch).  use_prev_batch: the batch drawn last, again."""
        if not all(isinstance(a, Module) for a in agents):
            raise AssertionError("All agents must be Modules.")
        if not (use_prev_batch and self._prev_batch is not None):
            xs, infos = self.loader.sample()
            self._prev_batch = {"inputs": xs, "infos": infos}
        batch = self._prev_batch
        assert batch is not None
        configs = []
        for agent in agents:
            for start in range(0, len(batch["inputs"]), self.subbatch_size):
                part = slice(start, start + self.subbatch_size)
                module = agent if start == 0 else _numbered_copy(agent)
                configs.append(RolloutConfig(module, batch["inputs"][part], batch["infos"][part], self.guide))
        samples = sample_rollouts(configs, self.num_threads, self.forward, self.score_range[0],
                                  f"{description_prefix}Sampling {len(agents)} agents on {len(batch['inputs'])} inputs")
        return samples, batch


def _numbered_copy(agent: Module) -> Module:
    """A copy that search algorithms still recognize as the candidate it came from."""
    made = deepcopy_module(agent)
    key = "__TRACE_RESERVED_module_candidate_id"
    if hasattr(agent, key):
        setattr(made, key, getattr(agent, key))
    return made
