"""``train``: one call that puts model, optimizer, guide and algorithm together, each given by name, class or instance."""

from __future__ import annotations

import importlib
from typing import Any, Dict, List, Optional, Union

from optod.optimizers.optimizer import Optimizer
from optod.trace.modules import Module, model as as_model
from optod.trace.nodes import ParameterNode
from optod.trainer.guide import Guide
from optod.trainer.loggers import BaseLogger

__all__ = ["train", "resume", "dataset_check", "load_optimizer", "load_guide", "load_logger", "load_trainer_class"]


def dataset_check(dataset: Any) -> None:
    """AssertionError unless it is {"inputs": [...], "infos": [...]} of equal length."""
    if not isinstance(dataset, dict) or "inputs" not in dataset or "infos" not in dataset or len(dataset["inputs"]) != len(dataset["infos"]):
        raise AssertionError("dataset: must be a dict with 'inputs' and 'infos' of equal length")


def train(*, model: Union[Module, ParameterNode], train_dataset: Dict[str, list], algorithm: Any = "MinibatchAlgorithm", optimizer: Any = None,
          guide: Any = "LLMJudge", logger: Any = "ConsoleLogger", optimizer_kwargs: Union[None, dict, List[dict]] = None,
          guide_kwargs: Optional[dict] = None, logger_kwargs: Optional[dict] = None, **trainer_kwargs: Any) -> Any:
    """Trains ``model`` (a Module, or one trainable parameter that is its own answer); returns what the algorithm's ``train`` does.

    optimizer: None = OPROv2 for a parameter, OptoPrimeV2 for a module; a list of optimizer_kwargs makes several.
    """
    dataset_check(train_dataset)
    if optimizer is None:
        optimizer = "OPROv2" if isinstance(model, ParameterNode) else "OptoPrimeV2"
    if isinstance(model, ParameterNode):
        if not model.trainable:
            raise AssertionError("The parameter must be trainable.")
        model = _single(model)
    if not model.parameters():
        raise AssertionError("Model must have non-empty parameters.")
    if isinstance(optimizer_kwargs, list):
        made: Any = [load_optimizer(optimizer, model, **options) for options in optimizer_kwargs]
    else:
        made = load_optimizer(optimizer, model, **(optimizer_kwargs or {}))
    algo = load_trainer_class(algorithm)(model, made, logger=load_logger(logger, **(logger_kwargs or {})))
    return algo.train(guide=load_guide(guide, **(guide_kwargs or {})), train_dataset=train_dataset, **trainer_kwargs)


def resume(path: str, *, algorithm: Any, model: Module, train_dataset: Dict[str, list], **kwargs: Any) -> Any:
    """Goes on with a search that was saved to ``path``."""
    return load_trainer_class(algorithm).load(path).resume(model=model, train_dataset=train_dataset, **kwargs)


def _single(parameter: ParameterNode) -> Module:
    @as_model
    class SingleNodeModel:
        def __init__(self, param: ParameterNode) -> None:
            self.param = param

        def forward(self, x: Any) -> Any:
            return self.param

    return SingleNodeModel(parameter)  # type: ignore[call-arg, return-value]


def _loaded(given: Any, base: type, module: str, *args: Any, **kwargs: Any) -> Any:
    """An instance as it is; a class, or the name of one in ``module``, called with the arguments."""
    if isinstance(given, base):
        return given
    found = getattr(importlib.import_module(module), given) if isinstance(given, str) else given
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{given!r} is no {base.__name__}")
    return found(*args, **kwargs)


def load_optimizer(optimizer: Any, model: Module, **kwargs: Any) -> Optimizer:
    return _loaded(optimizer, Optimizer, "optod.optimizers", model.parameters(), **kwargs)


def load_guide(guide: Any, **kwargs: Any) -> Guide:
    return _loaded(guide, Guide, "optod.trainer.guide", **kwargs)


def load_logger(logger: Any, **kwargs: Any) -> BaseLogger:
    return _loaded(logger, BaseLogger, "optod.trainer.loggers", **kwargs)


def load_trainer_class(trainer: Any) -> type:
    """A Trainer class, given itself or by its name in optod.trainer.algorithms."""
    from optod.trainer.algorithms import Trainer
    found = getattr(importlib.import_module("optod.trainer.algorithms"), trainer) if isinstance(trainer, str) else trainer
    if not (isinstance(found, type) and issubclass(found, Trainer)):
        raise ValueError(f"{trainer!r} is no Trainer")
    return found
