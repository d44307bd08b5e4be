"""``Module`` (a ParameterContainer with ``forward``) and the class decorator ``model``."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import pickle
import sys
from typing import Any, Dict, List, Optional, Union

from optod.trace.broadcast import apply_op
from optod.trace.containers import NodeContainer, ParameterContainer, trainable_method
from optod.trace.exporting import source_of
from optod.trace.nodes import ParameterNode

__all__ = ["Module", "Model", "model", "apply_op", "NodeContainer", "ParameterContainer", "trainable_method"]

_RESERVED = "__TRACE_RESERVED_"


class Module(ParameterContainer):
    """Calling it calls ``forward``."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def save(self, file_name: str) -> None:
        """Writes the parameters (pickle); the folder is made when it is missing."""
        _write(file_name, self.parameters_dict())

    def load(self, file_name: str) -> None:
        """Reads parameters back.  AssertionError when the file lacks one that is here."""
        self._set(_read(file_name))

    def _set(self, new_parameters: Union[Dict[str, Any], ParameterContainer]) -> None:
        """Takes over values; what is not here yet becomes a member."""
        new = new_parameters.parameters_dict() if isinstance(new_parameters, ParameterContainer) else new_parameters
        here = self.parameters_dict()
        missing = [str(k) for k in here if k not in new]
        if missing:
            raise AssertionError(f"parameters: {', '.join(missing)} not among the new ones")
        for key, value in new.items():
            if not isinstance(value, (ParameterNode, ParameterContainer)):
                raise AssertionError(f"parameters[{key!r}]: {value!r} is no parameter")
            if key in here:
                here[key]._set(value)
            else:
                setattr(self, key, value)


class Model(Module):
    """What ``model`` mixes into a class."""

    def export(self, filename: str, projections: Optional[List[Any]] = None) -> None:
        """Writes the class as plain Python: parameters as their values, trained code as it stands, without nodes or decorators.

        projections: applied to the text in order; None = BlackCodeFormatter when ``black`` is installed.
        """
        if projections is None:
            from optod.trace.projections import BlackCodeFormatter
            projections = [BlackCodeFormatter()]
        text = functools.reduce(lambda body, projection: projection.project(body), projections, source_of(self))
        with open(filename, "w", encoding="utf-8") as file:
            file.write(text)

    def __deepcopy__(self, memo: dict) -> "Model":
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        for key, value in self.__dict__.items():
            made.__dict__[key] = copy.deepcopy(value, memo)
        return made

    def __getstate__(self) -> Dict[str, Any]:
        parameters = self.parameters_dict()
        others = {k: v for k, v in self.__dict__.items() if k not in parameters and not k.startswith(_RESERVED)}
        return {"parameters_dict": parameters, "non_parameters_dict": others}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state["non_parameters_dict"])
        self._set(state["parameters_dict"])

    def save(self, file_name: str) -> None:
        """Writes the parameters and those other members that can be pickled."""
        state = self.__getstate__()
        state["non_parameters_dict"] = {k: v for k, v in state["non_parameters_dict"].items() if _can_be_pickled(v)}
        _write(file_name, state)

    def load(self, file_name: str) -> None:
        """Reads back what ``save`` wrote, or parameters alone."""
        state = _read(file_name)
        if "parameters_dict" in state and "non_parameters_dict" in state:
            self.__setstate__(state)
        else:
            self._set(state)


def model(cls: type) -> type:
    """Class decorator: the class gets ``parameters``, ``save``, ``load``, ``copy``, ``export``, and ``forward`` on call.  It stays picklable."""
    made = type(f"{cls.__name__}Model", (cls, Model), {"reserved_cls": cls})
    made.__module__ = cls.__module__
    made.__qualname__ = made.__name__
    made.__doc__ = cls.__doc__
    module = sys.modules.get(cls.__module__)
    if module is not None:
        setattr(module, made.__name__, made)       # where pickle looks it up
    return made


def _write(file_name: str, value: Any) -> None:
    folder = os.path.dirname(file_name)
    if folder:
        os.makedirs(folder, exist_ok=True)
    whole = pickle.dumps(value)             # a value that cannot be pickled leaves the file as it was
    with open(file_name, "wb") as file:
        file.write(whole)


def _can_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


def _read(file_name: str) -> Any:
    with open(file_name, "rb") as file:
        return pickle.load(file)
