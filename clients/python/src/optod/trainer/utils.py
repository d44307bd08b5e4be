"""Running things side by side, and copies of modules."""

from __future__ import annotations

import concurrent.futures
import contextvars
import copy
import functools
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from optod.trace.bundle import bundle
from optod.trace.modules import Module
from optod.trainer.guide import Guide

__all__ = ["async_run", "batch_run", "batchify", "safe_mean", "get_original_name", "is_node_copy", "is_module_copy", "remap_update_dict",
           "set_module_parameters", "create_module_from_update_dict", "deepcopy_module"]


def safe_mean(x: Sequence[Optional[float]], missing_value: Optional[float] = None) -> Optional[float]:
    """The mean of what is not None; missing_value when nothing is."""
    values = [v for v in np.array(x, dtype=object).ravel() if v is not None]
    return float(np.mean(values)) if values else missing_value


def async_run(runs: Sequence[Callable], args_list: Optional[Sequence[Sequence]] = None, kwargs_list: Optional[Sequence[Dict]] = None,
              max_workers: Optional[int] = None, description: Optional[str] = None, allow_sequential_run: bool = True) -> List[Any]:
    """Results of the functions, in order, computed in threads; each sees the caller's context variables as they are now.

    max_workers: threads, None = Python's default; 1 runs them here, one after the other.  The first exception is raised.
    """
    args_list = args_list if args_list is not None else [()] * len(runs)
    kwargs_list = kwargs_list if kwargs_list is not None else [{}] * len(runs)
    calls = [functools.partial(run, *args, **kwargs) for run, args, kwargs in zip(runs, args_list, kwargs_list)]
    if max_workers == 1 and allow_sequential_run:
        return [call() for call in calls]
    with concurrent.futures.ThreadPoolExecutor(max_workers=max_workers) as pool:
        return [future.result() for future in [pool.submit(contextvars.copy_context().run, call) for call in calls]]


def batch_run(max_workers: Optional[int] = None, description: Optional[str] = None) -> Callable:
    """Decorator: the function takes lists and gives the list of results.

    What has no length is repeated; everything else must have one length (ValueError).  Modules and guides are copied for each call, so that calls do not
    see each other's state; parameters are shared.
    """

    def decorator(fun: Callable) -> Callable:
        @functools.wraps(fun)
        def run(*args: Any, **kwargs: Any) -> List[Any]:
            named = {**dict(enumerate(args)), **kwargs}
            lengths = {len(v) for v in named.values() if hasattr(v, "__len__")}
            if len(lengths) != 1:
                raise ValueError("All arguments and keyword arguments must have the same length.")
            n = lengths.pop()
            lists = {k: [_own(a) for a in (v if hasattr(v, "__len__") else [v] * n)] for k, v in named.items()}
            return async_run([fun] * n, [tuple(lists[i][k] for i in range(len(args))) for k in range(n)],
                             [{key: lists[key][k] for key in kwargs} for k in range(n)], max_workers, description)
        return run

    return decorator


def _own(value: Any) -> Any:
    return value.copy() if isinstance(value, (Module, Guide)) else value


@bundle()
def batchify(*items):
    """Joins results by their number."""
    return "".join(f"ID {[i]}: {item}\n" for i, item in enumerate(items))


# ---- copies of modules and their parameters

def get_original_name(node: Any) -> str:
    """The name of what a node is a copy of."""
    return node.py_name.split("_copy", 1)[0]


def is_node_copy(a: Any, b: Any) -> bool:
    """Whether both are copies of one node."""
    return get_original_name(a) == get_original_name(b)


def is_module_copy(a: Module, b: Module) -> bool:
    """Whether their parameters can be matched one to one."""
    first, second = [get_original_name(p) for p in a.parameters()], [get_original_name(p) for p in b.parameters()]
    return sorted(first) == sorted(second) and len(set(first)) == len(first)


def remap_update_dict(base_module: Module, update_dict: Dict[Any, Any]) -> Dict[Any, Any]:
    """An update of a copy's parameters as one of ``base_module``'s."""
    own = {get_original_name(p): p for p in base_module.parameters()}
    return {own[get_original_name(p)]: value for p, value in update_dict.items() if get_original_name(p) in own}


def set_module_parameters(agent: Module, update_dict: Dict[Any, Any]) -> None:
    """Sets the values of an update, whichever copy it was made for."""
    for parameter, value in remap_update_dict(agent, update_dict).items():
        parameter._data = value


def deepcopy_module(agent: Module) -> Module:
    """A copy with parameters of its own, which keep the names of the originals."""
    made = copy.deepcopy(agent)
    names = {get_original_name(p): p for p in agent.parameters()}
    for parameter in made.parameters():
        original = names.get(get_original_name(parameter))
        if original is not None:
            parameter._base, parameter._index = original._base, original._index
    return made


def create_module_from_update_dict(agent: Module, update_dict: Dict[Any, Any]) -> Module:
    """A copy of the module with the values of the update."""
    made = deepcopy_module(agent)
    set_module_parameters(made, update_dict)
    return made
