"""Priority search: a heap of candidate values.  Each iteration runs the best of them, proposes from what came out, validates, and pushes the result back."""

from __future__ import annotations

import copy
import heapq
import itertools
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from optod.optimizers.optimizer import Optimizer
from optod.trace.modules import Module
from optod.trainer.objectives import (ObjectiveConfig, aggregate_score_dicts, apply_minimize, pareto_rank, to_score_dict, weighted_scalarize)
from optod.trainer.search_template import BatchRollout, Samples, SearchTemplate, save_train_config
from optod.trainer.utils import (async_run, batchify, create_module_from_update_dict, deepcopy_module, is_module_copy, remap_update_dict, safe_mean,
                                 set_module_parameters)

__all__ = ["ModuleCandidate", "HeapMemory", "ParetoHeapMemory", "PrioritySearch"]

_CANDIDATE_ID = "__TRACE_RESERVED_module_candidate_id"
_ROLLOUT_KEYS = ("module", "x", "info", "target", "score", "feedback")


class ModuleCandidate:
    """Values for a module: ``update_dict`` {parameter of base_module: value}, None = its current ones.  rollouts: runs with them, as dicts."""

    def __init__(self, base_module: Module, update_dict: Optional[Dict[Any, Any]] = None, optimizer: Optional[Optimizer] = None) -> None:
        if not isinstance(base_module, Module):
            raise AssertionError("base_module must be a Module.")
        if update_dict is not None and not isinstance(optimizer, Optimizer):
            raise AssertionError("optimizer must be an Optimizer when update_dict is provided.")
        self.base_module, self.optimizer = base_module, optimizer
        self.update_dict = remap_update_dict(base_module, update_dict if update_dict is not None else {p: p.data for p in base_module.parameters()})
        self.rollouts: List[Dict[str, Any]] = []
        self.created_time = time.time()

    def get_module(self) -> Module:
        """A copy of the module with the values, which knows its candidate."""
        made = create_module_from_update_dict(self.base_module, self.update_dict) if self.update_dict else deepcopy_module(self.base_module)
        setattr(made, _CANDIDATE_ID, id(self))
        return made

    def apply_update(self, base_module: Optional[Module] = None) -> None:
        set_module_parameters(base_module or self.base_module, self.update_dict)

    def __eq__(self, other: Any) -> bool:
        return (isinstance(other, ModuleCandidate) and self.optimizer is other.optimizer and self.update_dict == other.update_dict
                and is_module_copy(self.base_module, other.base_module))

    def __lt__(self, other: "ModuleCandidate") -> bool:
        return self.created_time > other.created_time

    def __hash__(self) -> int:
        return hash((frozenset((p, repr(v)) for p, v in self.update_dict.items()), id(self.optimizer), id(self.base_module)))

    def add_rollouts(self, rollouts: List[Dict[str, Any]]) -> None:
        if not isinstance(rollouts, list) or any(key not in r for r in rollouts for key in _ROLLOUT_KEYS):
            raise AssertionError(f"rollouts: must be dicts with the keys {', '.join(_ROLLOUT_KEYS)}")
        self.rollouts.extend(rollouts)

    @property
    def num_rollouts(self) -> int:
        return len(self.rollouts)

    def mean_score(self) -> Optional[float]:
        return safe_mean([r["score"] for r in self.rollouts]) if self.rollouts else None

    def mean_score_dict(self) -> Optional[Dict[str, float]]:
        """The mean of each objective; None when no run has them."""
        found = [r["score_dict"] for r in self.rollouts if isinstance(r.get("score_dict"), dict)]
        return aggregate_score_dicts(found) if found else None

    def compute_score_confidence(self, min_score: float, max_score: float, scaling_constant: float = 1.0,
                                 total_trials: int = 1) -> Tuple[float, Optional[float], float]:
        """(lower bound, mean, upper bound): mean -+ c sqrt(ln(trials + 1) / n) (max - min), clipped to the range of scores."""
        scores = [r["score"] for r in self.rollouts if r["score"] is not None]
        if not scores:
            return min_score, None, max_score
        mean = float(np.mean(scores))
        width = scaling_constant * float(np.sqrt(np.log(total_trials + 1) / len(scores))) * (max_score - min_score)
        return float(np.clip(mean - width, min_score, max_score)), mean, float(np.clip(mean + width, min_score, max_score))


class HeapMemory:
    """The candidates of the highest scores, at most ``size`` (None: all), as (-score, candidate).  processing_fun: applied to what is pushed."""

    def __init__(self, size: Optional[int] = None, processing_fun: Optional[Callable] = None) -> None:
        self.memory: List[Tuple[float, Any]] = []
        self._size, self.processing_fun = size, processing_fun

    @property
    def size(self) -> float:
        return self._size if self._size is not None else float("inf")

    def push(self, score: Optional[float], data: Any) -> None:
        data = self.processing_fun(data) if self.processing_fun is not None else data
        heapq.heappush(self.memory, (-(score if score is not None else float("-inf")), data))
        if len(self.memory) > self.size:
            self.memory = heapq.nsmallest(int(self.size), self.memory)

    def pop(self) -> Tuple[float, Any]:
        """The one of the highest score.  IndexError when there is none."""
        if not self.memory:
            raise IndexError("pop from an empty heap memory")
        return heapq.heappop(self.memory)

    def append(self, memory: "HeapMemory") -> None:
        for negative, data in memory:
            self.push(-negative, data)

    def reset(self) -> None:
        self.memory = []

    def best(self, criterion: Optional[Callable] = None) -> Tuple[float, Any]:
        """The entry of the highest score, or of the highest ``criterion(candidate)`` (None counts as 0)."""
        if not self.memory:
            raise IndexError("best from an empty heap memory")
        return self.memory[0] if criterion is None else max(self.memory, key=lambda entry: criterion(entry[1]) or 0)

    def __len__(self) -> int:
        return len(self.memory)

    def __bool__(self) -> bool:
        return bool(self.memory)

    def __iter__(self) -> Iterator[Tuple[float, Any]]:
        return iter(self.memory)


class ParetoHeapMemory(HeapMemory):
    """``pop`` takes, among the ``pareto_k`` best, one that nothing dominates; of several the one of the highest weighted (or mean) score."""

    def __init__(self, size: Optional[int] = None, processing_fun: Optional[Callable] = None, *, pareto_k: int = 20,
                 score_dict_fn: Optional[Callable] = None, objective_config: Optional[ObjectiveConfig] = None) -> None:
        super().__init__(size, processing_fun)
        self.pareto_k, self.score_dict_fn, self.objective_config = pareto_k, score_dict_fn, objective_config

    def pop(self) -> Tuple[float, Any]:
        config = self.objective_config
        if not self.memory or config is None or config.mode != "pareto" or self.score_dict_fn is None:
            return super().pop()
        top = heapq.nsmallest(self.pareto_k, self.memory)
        found = [self.score_dict_fn(candidate) for _, candidate in top]
        if any(s is None for s in found):
            return super().pop()
        scores = [apply_minimize(to_score_dict(s), config.minimize) for s in found]
        front = [i for i, rank in enumerate(pareto_rank(scores, config.pareto_metrics)) if rank == 0]
        chosen = top[max(front, key=lambda i: _reduced(scores[i], config))]
        self.memory = [entry for entry in self.memory if entry is not chosen]
        heapq.heapify(self.memory)
        return chosen


def _reduced(score: Dict[str, float], config: ObjectiveConfig) -> float:
    """One number of objectives that are all to be maximized: by weights, or the mean."""
    return weighted_scalarize(score, config.weights, config.missing_value) if config.weights else float(np.mean(list(score.values())))


class PrioritySearch(SearchTemplate):
    """An iteration: take ``num_candidates`` candidates, run each on ``num_batches`` batches, make ``num_proposals`` proposals of each run, validate, push."""

    @save_train_config
    def train(self, *, guide: Any, train_dataset: Dict[str, list], objective_config: Optional[ObjectiveConfig] = None, num_candidates: int = 10,  # type: ignore[override]
              num_proposals: int = 1, validate_exploration_candidates: bool = True, use_best_candidate_to_explore: bool = True,
              long_term_memory_size: Optional[int] = None, short_term_memory_size: Optional[int] = None, memory_update_frequency: Optional[int] = 0,
              score_function: str = "mean", ucb_exploration_constant: float = 1.0, decouple_optimizers: bool = True,
              score_range: Optional[Tuple[float, float]] = None, memory_size: Optional[int] = None, default_score: float = float("inf"),
              validate_proposals: bool = True, **kwargs: Any) -> None:
        """num_candidates: run an iteration, the best one included when ``use_best_candidate_to_explore``.  validate_exploration_candidates: run them on
        the validation set too.  memory_update_frequency: 0 = long-term memory only, None = short-term only, n = merged every n iterations.
        score_function: priority by "mean", "ucb" (needs a finite score_range) or "time".  decouple_optimizers: each proposal by a copy of the optimizer.
        memory_size: another name of long_term_memory_size.  Other arguments: SearchTemplate.train.
        """
        self._initialize_search_parameters(
            num_candidates=num_candidates, num_proposals=num_proposals, validate_exploration_candidates=validate_exploration_candidates,
            use_best_candidate_to_explore=use_best_candidate_to_explore, score_function=score_function, score_range=score_range,
            ucb_exploration_constant=ucb_exploration_constant,
            long_term_memory_size=memory_size if memory_size is not None else long_term_memory_size, short_term_memory_size=short_term_memory_size,
            memory_update_frequency=memory_update_frequency, decouple_optimizers=decouple_optimizers, objective_config=objective_config)
        super().train(guide=guide, train_dataset=train_dataset, score_range=score_range, **kwargs)

    def _initialize_search_parameters(self, *, num_candidates: int, num_proposals: int, validate_exploration_candidates: bool,
                                      use_best_candidate_to_explore: bool, score_function: str, score_range: Optional[Tuple[float, float]],
                                      ucb_exploration_constant: float, long_term_memory_size: Optional[int], short_term_memory_size: Optional[int],
                                      memory_update_frequency: Optional[int], decouple_optimizers: bool,
                                      objective_config: Optional[ObjectiveConfig] = None) -> None:
        if score_function == "ucb" and (score_range is None or not np.isfinite(score_range[1] - score_range[0])):
            raise AssertionError("score_range: the score function 'ucb' needs a finite one")
        self.num_candidates = max(num_candidates, len(self._optimizers))
        self.num_proposals, self.score_function, self.decouple_optimizers = num_proposals, score_function, decouple_optimizers
        self.validate_exploration_candidates = validate_exploration_candidates
        self.use_best_candidate_to_explore = use_best_candidate_to_explore
        self.ucb_exploration_constant, self.objective_config = ucb_exploration_constant, objective_config
        self._enforce_using_data_collecting_candidates = True
        self._exploration_candidates: Any = None
        self._exploration_candidates_priority: Any = None
        self._best_candidate: Any = None
        self._best_candidate_priority: Any = None
        self.memory_update_frequency = memory_update_frequency
        if objective_config is not None and objective_config.mode == "pareto":
            options = {"pareto_k": 20, "score_dict_fn": ModuleCandidate.mean_score_dict, "objective_config": objective_config}
            self.long_term_memory: HeapMemory = ParetoHeapMemory(long_term_memory_size, self.compress_candidate_memory, **options)  # type: ignore[arg-type]
            self.short_term_memory: HeapMemory = ParetoHeapMemory(short_term_memory_size, **options)  # type: ignore[arg-type]
        else:
            self.long_term_memory = HeapMemory(long_term_memory_size, self.compress_candidate_memory)
            self.short_term_memory = HeapMemory(short_term_memory_size)

    @property
    def memory(self) -> HeapMemory:
        """The memory of this iteration; merges the short-term one into the long-term one when it is time."""
        if self.memory_update_frequency is None:
            return self.short_term_memory
        if self.memory_update_frequency == 0 or self.short_term_memory.size == 0:
            return self.long_term_memory
        if self.n_iters % self.memory_update_frequency != 0:
            return self.short_term_memory
        if self.short_term_memory:
            self.long_term_memory.append(self.short_term_memory)
            self.short_term_memory.reset()
        return self.long_term_memory

    def update(self, samples: Optional[Samples] = None, verbose: Any = False, **kwargs: Any) -> Tuple[Dict, List[Module], Dict]:
        if samples is not None:
            self.add_exploration_rollouts_to_candidates(self._exploration_candidates, samples)
            candidates = self.filter_candidates(self.propose(samples, verbose=verbose, **kwargs))
            self.update_memory(self.validate(candidates, samples, verbose=verbose, **kwargs), verbose=verbose, **kwargs)
        elif not self.memory:
            for _ in range(int(min(self.memory.size, self.num_candidates))):
                self.memory.push(self.max_score, ModuleCandidate(self.agent, optimizer=self.optimizer))
        figures = {"n_iters": self.n_iters, "short_term_memory_size": len(self.short_term_memory), "long_term_memory_size": len(self.long_term_memory),
                   "total_samples": sum(c.num_rollouts for _, c in itertools.chain(self.short_term_memory, self.long_term_memory))}
        self._best_candidate, self._best_candidate_priority, exploited = self.exploit(verbose=verbose, **kwargs)
        self._exploration_candidates, self._exploration_candidates_priority, explored = self.explore(verbose=verbose, **kwargs)
        return self._best_candidate.update_dict, [c.get_module() for c in self._exploration_candidates], {**figures, **exploited, **explored}

    # ---- proposing

    def propose(self, samples: Samples, verbose: Any = False, **kwargs: Any) -> List[ModuleCandidate]:
        """``num_proposals`` new candidates of each run; a proposal that changes nothing gives none."""
        matched = self.match_candidates_and_samples(self._exploration_candidates, samples.samples)
        runs = [(candidate, run) for candidate, own in matched.items() for run in own]
        told = async_run([self._told] * len(runs), runs, max_workers=self.num_threads)
        optimizers = [self._copied(o) for _ in range(self.num_proposals) for o in told]
        updates = async_run([self._proposed] * len(optimizers), [(o, verbose, kwargs) for o in optimizers], max_workers=self.num_threads)
        for optimizer in optimizers:
            optimizer.zero_feedback()
            optimizer.parameters = []
        return [ModuleCandidate(self.agent, update, optimizer) for update, optimizer in zip(updates, optimizers) if update is not None]

    def _copied(self, optimizer: Optimizer) -> Optimizer:
        return copy.deepcopy(optimizer) if self.decouple_optimizers else optimizer

    def _told(self, candidate: ModuleCandidate, run: BatchRollout) -> Optimizer:
        """An optimizer that heard the feedback of a run."""
        optimizer = self._copied(candidate.optimizer or self.optimizer)
        optimizer.parameters = run.module.parameters()
        optimizer.zero_feedback()
        optimizer.backward(batchify(*[r.target for r in run]), batchify(*[r.feedback for r in run]).data)
        return optimizer

    def _proposed(self, optimizer: Optimizer, verbose: Any, kwargs: dict) -> Optional[Dict[Any, Any]]:
        update = optimizer.step(verbose=verbose, bypassing=True, **kwargs)
        if not update:
            return None
        return remap_update_dict(self.agent, {**{p: p.data for p in optimizer.parameters}, **update})

    def filter_candidates(self, candidates: List[ModuleCandidate]) -> List[ModuleCandidate]:
        """For subclasses: which proposals are worth validating."""
        return candidates

    # ---- validating

    def validate(self, candidates: List[ModuleCandidate], samples: Samples, verbose: Any = False, **kwargs: Any) -> Dict[ModuleCandidate, List[dict]]:
        """{candidate: runs on the validation batch}; candidates that were explored are there too, with what else was run of them."""
        known = list(candidates)
        found = Samples([], {"inputs": [], "infos": []})
        if candidates:
            found.add_samples(Samples(*self.validate_sampler.sample([c.get_module() for c in candidates], use_prev_batch=self.use_prev_batch)))
        if self.validate_exploration_candidates and not self.use_prev_batch:
            found.add_samples(Samples(*self.validate_sampler.sample([c.get_module() for c in self._exploration_candidates], use_prev_batch=bool(candidates))))
            known = list(self._exploration_candidates) + known
        results = {c: [r for run in runs for r in run.to_list()] for c, runs in self.match_candidates_and_samples(known, found.samples).items()}
        for candidate in self._exploration_candidates:
            results.setdefault(candidate, [])
        if self.objective_config is not None:
            self._add_score_dicts(results)
        return results

    def _add_score_dicts(self, results: Dict[ModuleCandidate, List[dict]]) -> None:
        for rollout in (r for runs in results.values() for r in runs):
            rollout["score_dict"] = self.validate_sampler.guide.get_score_dict(rollout["x"], rollout["target"], rollout["info"])

    def match_candidates_and_samples(self, candidates: Sequence[ModuleCandidate], samples: Sequence[BatchRollout]) -> Dict[ModuleCandidate, List[BatchRollout]]:
        """{candidate: its runs}.  ValueError for a run of an unknown one; AssertionError for a candidate without runs."""
        results: Dict[ModuleCandidate, List[BatchRollout]] = {c: [] for c in candidates}
        ids = {id(c): c for c in candidates}
        for run in samples:
            key = getattr(run.module, _CANDIDATE_ID)
            if key not in ids:
                raise ValueError("a run belongs to none of the candidates")
            results[ids[key]].append(run)
        if self._enforce_using_data_collecting_candidates and any(not runs for runs in results.values()):
            raise AssertionError("a candidate has no runs")
        return results

    def add_exploration_rollouts_to_candidates(self, exploration_candidates: Sequence[ModuleCandidate], samples: Samples) -> None:
        for candidate, runs in self.match_candidates_and_samples(exploration_candidates, samples.samples).items():
            candidate.add_rollouts([r for run in runs for r in run.to_list()])

    def update_memory(self, validate_results: Dict[ModuleCandidate, List[dict]], verbose: Any = False, **kwargs: Any) -> None:
        for candidate, rollouts in validate_results.items():
            candidate.add_rollouts(rollouts)
            self.memory.push(self.compute_exploration_priority(candidate), candidate)

    def compress_candidate_memory(self, candidate: ModuleCandidate) -> ModuleCandidate:
        """What the long-term memory keeps: of the runs the scores only."""
        made = copy.copy(candidate)
        made.rollouts = [{k: v if k in ("score", "score_dict") else None for k, v in r.items()} for r in candidate.rollouts]
        return made

    # ---- choosing

    def explore(self, verbose: Any = False, **kwargs: Any) -> Tuple[List[ModuleCandidate], List[float], Dict[str, Any]]:
        """(candidates to run, their priorities, figures); they leave the memory."""
        chosen = [self._best_candidate] if self.use_best_candidate_to_explore else []
        priorities = [self._best_candidate_priority] if self.use_best_candidate_to_explore else []
        while len(chosen) < self.num_candidates and self.memory:
            negative, candidate = self.memory.pop()
            if self.use_best_candidate_to_explore and candidate is self._best_candidate:
                continue
            chosen.append(candidate)
            priorities.append(-negative)
        return chosen, priorities, self._explored(chosen, priorities)

    @staticmethod
    def _explored(chosen: List[ModuleCandidate], priorities: List[float]) -> Dict[str, Any]:
        return {"num_exploration_candidates": len(chosen), "exploration_candidates_mean_priority": safe_mean(priorities),
                "exploration_candidates_mean_score": safe_mean([c.mean_score() for c in chosen]),
                "exploration_candidates_average_num_rollouts": safe_mean([c.num_rollouts for c in chosen])}

    def exploit(self, verbose: Any = False, **kwargs: Any) -> Tuple[ModuleCandidate, float, Dict[str, Any]]:
        """(the best candidate, its priority, figures).  ValueError when the memory is empty."""
        if not self.memory:
            raise ValueError("The priority queue is empty. Cannot exploit.")
        negative, best = self.memory.best(self.compute_exploitation_priority)
        return best, -negative, {"best_candidate_priority": -negative, "best_candidate_mean_score": best.mean_score(),
                                 "best_candidate_num_rollouts": best.num_rollouts}

    def compute_exploitation_priority(self, candidate: ModuleCandidate) -> Optional[float]:
        if not isinstance(candidate, ModuleCandidate):
            raise TypeError("candidate must be a ModuleCandidate.")
        return candidate.mean_score()

    def compute_exploration_priority(self, candidate: ModuleCandidate) -> Optional[float]:
        if not isinstance(candidate, ModuleCandidate):
            raise TypeError("candidate must be a ModuleCandidate.")
        scores = candidate.mean_score_dict() if self.objective_config is not None else None
        if scores is not None:
            return _reduced(apply_minimize(to_score_dict(scores), self.objective_config.minimize), self.objective_config)  # type: ignore[union-attr, arg-type]
        if self.score_function == "mean":
            return candidate.mean_score()
        if self.score_function == "time":
            return -candidate.created_time
        if self.score_function == "ucb":
            return candidate.compute_score_confidence(self.min_score, self.max_score, self.ucb_exploration_constant, self.n_iters + 1)[2]
        raise ValueError(f"score_function: {self.score_function!r} is none of mean, ucb, time")
