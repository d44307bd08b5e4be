"""A plain twin of a function: recursive calls inside it go to the twin, not to the operator that took over its name."""

from __future__ import annotations

import dis
import types
from typing import Callable

__all__ = ["plain_twin"]


def plain_twin(fun: Callable) -> Callable:
    """The same function, with its own name bound to itself.

    A name in an enclosing function gets a cell of its own; a global name is read under an alias, so that other globals stay shared.
    """
    if not isinstance(fun, types.FunctionType):
        return fun
    name, code = fun.__name__, fun.__code__
    if name in code.co_freevars:
        cells = list(fun.__closure__ or ())
        own = types.CellType()
        cells[code.co_freevars.index(name)] = own
        twin = types.FunctionType(code, fun.__globals__, name, fun.__defaults__, tuple(cells))
        own.cell_contents = twin
    elif name in code.co_names and not _is_attribute(code, name):
        alias = f"__optod_plain_{name}_{id(fun):x}"
        renamed = code.replace(co_names=tuple(alias if n == name else n for n in code.co_names))
        twin = types.FunctionType(renamed, fun.__globals__, name, fun.__defaults__, fun.__closure__)
        fun.__globals__[alias] = twin
    elif name in code.co_names:
        names = dict(fun.__globals__)
        twin = types.FunctionType(code, names, name, fun.__defaults__, fun.__closure__)
        names[name] = twin
    else:
        return fun
    twin.__kwdefaults__ = fun.__kwdefaults__
    twin.__qualname__, twin.__module__, twin.__doc__ = fun.__qualname__, fun.__module__, fun.__doc__
    return twin


def _is_attribute(code: types.CodeType, name: str) -> bool:
    return any(i.argval == name and i.opname in ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "STORE_GLOBAL", "IMPORT_NAME", "IMPORT_FROM")
               for i in dis.get_instructions(code))
