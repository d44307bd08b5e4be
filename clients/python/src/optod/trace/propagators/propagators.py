"""Base classes, and SumPropagator."""

from __future__ import annotations

from typing import Any, Callable, Dict

from optod.trace.nodes import MessageNode, Node

__all__ = ["AbstractPropagator", "AbstractFeedback", "Propagator", "SumPropagator"]


class AbstractPropagator:
    """``propagator(node)`` gives {parent: feedback} for every parent of the node."""

    def __call__(self, child: MessageNode) -> Dict[Node, Any]:
        given = self.propagate(child)
        if not isinstance(given, dict) or any(p not in given for p in child.parents):
            raise TypeError(f"{type(self).__name__}: propagate must give a dict with every parent of {child.name}")
        return given

    def propagate(self, child: MessageNode) -> Dict[Node, Any]:
        raise NotImplementedError


class AbstractFeedback:
    """Feedback that can be added up; ``sum`` works too."""

    def __add__(self, other: Any) -> Any:
        raise NotImplementedError

    def __radd__(self, other: Any) -> Any:
        return self if isinstance(other, int) and other == 0 else self + other


class Propagator(AbstractPropagator):
    """One rule for all operators, ``_propagate``; ``register`` replaces it for one of them."""

    def __init__(self) -> None:
        self.override: Dict[str, Callable] = {}

    def register(self, operator_name: str, propagate_function: Callable) -> None:
        """propagate_function(node) -> {parent: feedback}, for results of the operator of this tag."""
        self.override[operator_name] = propagate_function

    def propagate(self, child: MessageNode) -> Dict[Node, Any]:
        return self.override.get(child.op_name, self._propagate)(child)

    def init_feedback(self, node: Node, feedback: Any) -> Any:
        """The user's feedback on an output, in the form that is passed on."""
        raise NotImplementedError

    def _propagate(self, child: MessageNode) -> Dict[Node, Any]:
        raise NotImplementedError


class SumPropagator(Propagator):
    """Passes the user's feedback on without the graph: texts are joined, numbers added."""

    def init_feedback(self, node: Node, feedback: Any = None) -> Any:
        return feedback

    def _propagate(self, child: MessageNode) -> Dict[Node, Any]:
        entries = [given for child_entries in child.feedback.values() for given in child_entries]
        if not entries or any(type(e) is not type(entries[0]) for e in entries):
            raise TypeError(f"SumPropagator: feedback of {child.name} is missing or of several types")
        total = "".join(entries) if isinstance(entries[0], str) else sum(entries)
        return {parent: total for parent in child.parents}
