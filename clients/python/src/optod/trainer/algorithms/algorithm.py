"""The base class."""

from __future__ import annotations

import os
from typing import Any, Optional

from optod.trace.modules import Module
from optod.trainer.loggers import DefaultLogger

__all__ = ["AbstractAlgorithm", "Trainer", "AlgorithmBase"]


class AbstractAlgorithm:
    def __init__(self, agent: Any, *args: Any, **kwargs: Any) -> None:
        self.agent = agent

    def train(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.train")


class Trainer(AbstractAlgorithm):
    """agent: a Module.  num_threads: for running it on several examples at once.  logger: None = ConsoleLogger."""

    def __init__(self, agent: Module, num_threads: Optional[int] = None, logger: Any = None, *args: Any, **kwargs: Any) -> None:
        if not isinstance(agent, Module):
            raise AssertionError(f"agent: must be a Module, not {type(agent).__name__}")
        super().__init__(agent, *args, **kwargs)
        self.num_threads = num_threads
        self.logger = logger if logger is not None else DefaultLogger()

    def _use_asyncio(self, threads: Optional[int] = None) -> bool:
        threads = threads or self.num_threads
        return threads is not None and threads > 1

    def save_agent(self, save_path: str, iteration: Optional[int] = None) -> str:
        """Saves the agent; with an iteration into ``NAME_iterN.EXT`` (``_final`` for the current one).  Returns the path."""
        if iteration is not None:
            base, extension = os.path.splitext(save_path)
            final = "_final" if getattr(self, "n_iters", None) == iteration else ""
            save_path = f"{base}_iter{iteration}{final}{extension}"
        self.agent.save(save_path)
        if iteration is not None:
            self.logger.log("Saved agent", save_path, iteration, color="blue")
        return save_path

    def train(self, guide: Any, train_dataset: Any, num_threads: Optional[int] = None, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.train")

    def save(self, save_path: str) -> None:
        raise NotImplementedError(f"{type(self).__name__}.save")

    @classmethod
    def load(cls, load_path: str) -> Any:
        raise NotImplementedError(f"{cls.__name__}.load")

    def resume(self, *, model: Module, train_dataset: dict, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.resume")


AlgorithmBase = Trainer
