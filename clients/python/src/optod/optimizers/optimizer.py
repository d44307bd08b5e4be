"""The base class: parameters, a propagator, and the cycle zero_feedback -> backward -> step (propose, project, update)."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any, Dict, List, Optional

from optod.trace.nodes import Node, ParameterNode
from optod.trace.propagators import GraphPropagator
from optod.trace.propagators.propagators import Propagator
from optod.trace.utils import sum_feedback

__all__ = ["AbstractOptimizer", "Optimizer"]


class AbstractOptimizer:
    """parameters: a list of ParameterNodes (AssertionError otherwise); one that stands twice counts once."""

    def __init__(self, parameters: List[ParameterNode], *args: Any, **kwargs: Any) -> None:
        if not isinstance(parameters, list) or not all(isinstance(p, ParameterNode) for p in parameters):
            raise AssertionError("parameters: must be a list of ParameterNodes")
        if not parameters:
            raise AssertionError("Parameters list is empty.")
        self.parameters = list({id(p): p for p in parameters}.values())

    def step(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def zero_feedback(self) -> None:
        raise NotImplementedError

    @property
    def propagator(self) -> Propagator:
        raise NotImplementedError


class Optimizer(AbstractOptimizer):
    """Subclasses give ``_step(...) -> {parameter: new value}``.

    propagator: how feedback goes through the graph; None = ``default_propagator()``.
    """

    def __init__(self, parameters: List[ParameterNode], *args: Any, propagator: Optional[Propagator] = None, **kwargs: Any) -> None:
        super().__init__(parameters)
        propagator = propagator if propagator is not None else self.default_propagator()
        if not isinstance(propagator, Propagator):
            raise AssertionError("propagator: must be a Propagator")
        self._propagator = propagator

    @property
    def propagator(self) -> Propagator:
        return self._propagator

    @property
    def trace_graph(self) -> Any:
        """The feedback of all parameters, added up."""
        return sum_feedback(self.parameters)

    def default_propagator(self) -> Propagator:
        return GraphPropagator()

    def zero_feedback(self) -> None:
        """Forgets the feedback on the parameters."""
        for parameter in self.parameters:
            parameter.zero_feedback()

    def backward(self, node: Node, *args: Any, **kwargs: Any) -> Any:
        """``node.backward(feedback, ...)`` with the optimizer's propagator."""
        return node.backward(*args, propagator=self.propagator, **kwargs)

    def step(self, *args: Any, bypassing: bool = False, **kwargs: Any) -> Dict[ParameterNode, Any]:
        """Proposes, projects and (unless ``bypassing``) takes over new values; returns them."""
        update_dict = self.propose(*args, **kwargs)
        self.project(update_dict)
        if not bypassing:
            self.update(update_dict)
        return update_dict

    def propose(self, *args: Any, **kwargs: Any) -> Dict[ParameterNode, Any]:
        """New values that the feedback suggests; changes nothing."""
        return self._step(*args, **kwargs)

    def project(self, update_dict: Dict[ParameterNode, Any]) -> None:
        """Applies the projections of trainable parameters, in place."""
        for parameter, value in list(update_dict.items()):
            if parameter.trainable:
                for projection in parameter.projections:
                    value = projection(value)
            update_dict[parameter] = value

    def update(self, update_dict: Dict[ParameterNode, Any]) -> None:
        """Sets the values of trainable parameters."""
        for parameter, value in update_dict.items():
            if parameter.trainable:
                parameter._data = value

    def _step(self, *args: Any, **kwargs: Any) -> Dict[ParameterNode, Any]:
        raise NotImplementedError

    # ---- copies and files: everything but the parameters, which belong to the program

    def save(self, path: str) -> None:
        """Writes the optimizer's state (pickle), without parameters."""
        folder = os.path.dirname(path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(path, "wb") as file:
            pickle.dump(self.__getstate__(), file)

    def load(self, path: str) -> None:
        """Takes over a saved state; the parameters stay."""
        with open(path, "rb") as file:
            self.__setstate__(pickle.load(file))

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        state.pop("parameters", None)
        return state

    def __setstate__(self, state: dict) -> None:
        here = self.__dict__.get("parameters")
        self.__dict__.update(state)
        self.parameters = here if here is not None else state.get("parameters")  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict) -> "Optimizer":
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        for key, value in self.__dict__.items():
            made.__dict__[key] = value if key == "parameters" else copy.deepcopy(value, memo)
        return made
