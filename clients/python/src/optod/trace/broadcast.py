"""Functions that walk containers of nodes: tuple, list, dict, set, and classes marked as NodeContainer."""

from __future__ import annotations

import copy
from typing import Any, Callable

from optod.trace.containers import NodeContainer
from optod.trace.nodes import Node

__all__ = ["recursive_conversion", "apply_op", "to_data", "detach_inputs"]


def recursive_conversion(true_func: Callable, false_func: Callable) -> Callable:
    """A function that rebuilds a container with ``true_func`` on its nodes and ``false_func`` on everything else."""

    def convert(obj: Any) -> Any:
        if isinstance(obj, Node):
            return true_func(obj)
        if isinstance(obj, tuple):
            values = [convert(x) for x in obj]
            return type(obj)(*values) if hasattr(obj, "_fields") else tuple(values)
        if isinstance(obj, list):
            return [convert(x) for x in obj]
        if isinstance(obj, dict):
            return {k: convert(v) for k, v in obj.items()}
        if isinstance(obj, set):
            return {convert(x) for x in obj}
        if isinstance(obj, NodeContainer):
            output = copy.copy(obj)
            for k, v in obj.__dict__.items():
                setattr(output, k, convert(v))
            return output
        return false_func(obj)

    return convert


to_data = recursive_conversion(lambda n: n.data, lambda x: x)
detach_inputs = recursive_conversion(lambda n: n.detach(), lambda x: x)


def apply_op(op: Callable, output: Any, *args: Any, **kwargs: Any) -> Any:
    """Applies ``op`` at every place of equal-shaped containers.

    output: container that gets the results (changed in place; a tuple comes back as a new one).  args, kwargs: nodes, which stand for
    themselves at every place, or containers of output's shape.  AssertionError when types or lengths differ.
    """
    inputs = list(args) + list(kwargs.values())
    if all(isinstance(x, Node) for x in inputs):
        return op(*args, **kwargs)
    for x in inputs:
        if not isinstance(x, Node) and type(x) is not type(output):
            raise AssertionError(f"apply_op: an input of type {type(x).__name__} where the output is {type(output).__name__}")

    def at(place: Callable, old: Any) -> Any:
        pick = [x if isinstance(x, Node) else place(x) for x in args]
        named = {k: x if isinstance(x, Node) else place(x) for k, x in kwargs.items()}
        return apply_op(op, old, *pick, **named)

    if isinstance(output, (list, tuple)):
        if any(not isinstance(x, Node) and len(x) != len(output) for x in inputs):
            raise AssertionError(f"apply_op: inputs {inputs} and output {output} are of different lengths")
        values = [at(lambda x, k=k: x[k], old) for k, old in enumerate(output)]
        if isinstance(output, tuple):
            return tuple(values)
        output[:] = values
    elif isinstance(output, dict):
        for k in list(output):
            output[k] = at(lambda x, k=k: x[k], output[k])
    elif isinstance(output, NodeContainer):
        for k, old in list(output.__dict__.items()):
            setattr(output, k, at(lambda x, k=k: getattr(x, k), old))
    return output
