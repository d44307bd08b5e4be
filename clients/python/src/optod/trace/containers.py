"""Classes that hold parameters: anything with ParameterNodes, trainable operators, or more containers as members."""

from __future__ import annotations

import copy
import functools
import inspect
from collections import UserDict, UserList
from typing import Any, Dict, List, Union

from optod.trace.nodes import ParameterNode

__all__ = ["NodeContainer", "ParameterContainer", "Seq", "Map", "trainable_method"]

_RESERVED = "__TRACE_RESERVED_"


class NodeContainer:
    """Marks classes whose members are looked into when nodes become values."""


def trainable_method(method: Any) -> bool:
    """Whether it is an operator with a code parameter."""
    from optod.trace.bundle import FunModule
    return isinstance(method, FunModule) and method.trainable


def _refuse_partial(attribute: functools.partial) -> None:
    inner = getattr(attribute.func, "__self__", attribute.func)
    if trainable_method(inner):
        raise ValueError("A trainable operator cannot be wrapped by functools.partial.")


class ParameterContainer(NodeContainer):
    """A class whose parameters an optimizer may be given: ``optimizer = OptoPrime(model.parameters())``."""

    def parameters(self) -> List[ParameterNode]:
        """All parameters, those of nested containers included, members in alphabetical order."""
        found: List[ParameterNode] = []
        for value in self.parameters_dict().values():
            found.extend([value] if isinstance(value, ParameterNode) else value.parameters())
        return found

    def parameters_dict(self) -> Dict[Any, Union[ParameterNode, "ParameterContainer"]]:
        """{member: parameter or container}.  ValueError when a trainable operator hides in a functools.partial."""
        from optod.trace.bundle import FunModule
        found: Dict[Any, Union[ParameterNode, ParameterContainer]] = {}
        for name, member in inspect.getmembers(self):
            if name.startswith(_RESERVED):
                continue
            if isinstance(member, functools.partial):
                _refuse_partial(member)
            elif isinstance(member, FunModule):
                if member.parameter is not None:
                    found[name] = member.parameter
            elif isinstance(member, (ParameterNode, ParameterContainer)):
                found[name] = member
        return found

    def copy(self) -> "ParameterContainer":
        """A deep copy that shares the parameters."""
        made = copy.deepcopy(self)
        for name, member in inspect.getmembers(self):
            if name.startswith(_RESERVED):
                continue
            if isinstance(member, functools.partial):
                _refuse_partial(member)
            elif trainable_method(member):
                getattr(made, name).parameter = member.parameter
            elif isinstance(member, ParameterNode):
                setattr(made, name, member)
            elif isinstance(member, ParameterContainer) and name in vars(self):
                setattr(made, name, member.copy())
        return made


class Seq(UserList, ParameterContainer):
    """A list that may hold parameters: ``Seq([a, b])`` or ``Seq(a, b)``."""

    def __init__(self, *args: Any) -> None:
        whole = len(args) == 1 and hasattr(args[0], "__len__") and hasattr(args[0], "__getitem__")
        super().__init__(args[0] if whole else args)

    def parameters_dict(self) -> Dict[Any, Any]:
        return {(m.name if isinstance(m, ParameterNode) else f"{i}"): m
                for i, m in enumerate(self.data) if isinstance(m, (ParameterNode, ParameterContainer))}


class Map(UserDict, ParameterContainer):
    """A dict that may hold parameters, as values or as keys."""

    def __init__(self, mapping: Any = ()) -> None:
        super().__init__(mapping)

    def parameters_dict(self) -> Dict[Any, Any]:
        found: Dict[Any, Any] = {}
        for key, value in self.data.items():
            if isinstance(key, ParameterContainer):
                raise TypeError("The key of a Map cannot be a container.")
            if isinstance(value, (ParameterNode, ParameterContainer)):
                found[key] = value
            if isinstance(key, ParameterNode):
                found[str(key)] = key
        return found
