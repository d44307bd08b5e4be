"""Names of nodes: ``base:index``, the index counted per base in order of creation from 0.

``GRAPH`` is the registry of this process.  It counts and holds weak references only: a node lives as long as the program (or a descendant) needs it.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
import weakref
from typing import Any, Dict, List, Optional

__all__ = ["GRAPH", "Graph", "NAME_SCOPES", "USED_NODES", "dialect", "set_dialect"]

NAME_SCOPES: List[str] = []
"""Stack of scopes; the last one prefixes the base of every node made while it is there: ``scope/base``."""

USED_NODES: contextvars.ContextVar = contextvars.ContextVar("USED_NODES", default=())
"""Sets of nodes whose ``data`` was read, one a running operator, innermost last.  Each thread and each asyncio task has its own."""

_TRACE: contextvars.ContextVar = contextvars.ContextVar("TRACE", default=None)

_DIALECTS = ("opentrace", "trace")
_dialect = "opentrace"


def dialect() -> str:
    """``"opentrace"`` (0.2: descriptions without their tag, copies named after their original) or ``"trace"`` (0.1: descriptions with it)."""
    return _dialect


def set_dialect(name: str) -> None:
    """Chooses what ``Node.description`` shows and how copies are named; everything else is equal.  ValueError for another name."""
    global _dialect
    if name not in _DIALECTS:
        raise ValueError(f"dialect: {name!r} is none of {', '.join(_DIALECTS)}")
    _dialect = name


class Graph:
    """Registry of names.  Thread-safe.

    TRACE: False makes operators compute without recording inputs (``stop_tracing`` does so for the current thread or task alone).
    ALLOW_NESTED_GRAPHS: accepted for compatibility; bodies of ``traceable_code`` operators can always be expanded.
    """

    LEGACY_GRAPH_BEHAVIOR = False
    ALLOW_NESTED_GRAPHS = True

    def __init__(self) -> None:
        self._counters: Dict[str, Any] = {}     # base -> itertools.count, whose next() is atomic
        self._nodes: Dict[str, List[Any]] = {}
        self._lock = threading.Lock()
        self._trace = True

    @property
    def TRACE(self) -> bool:
        scoped = _TRACE.get()
        return self._trace if scoped is None else scoped

    @TRACE.setter
    def TRACE(self, value: bool) -> None:
        self._trace = bool(value)

    def clear(self) -> None:
        """Starts counting from 0 again; nodes that exist keep their names."""
        with self._lock:
            self._counters = {}
            self._nodes = {}

    def register(self, node: Any) -> None:
        """Gives the node the next index of its base (and the scope, if one is set)."""
        if NAME_SCOPES:
            node._base = NAME_SCOPES[-1] + "/" + node._base
        base = node._base
        try:
            node._index = next(self._counters[base])
        except KeyError:
            node._index = next(self._counters.setdefault(base, itertools.count()))
        if self.LEGACY_GRAPH_BEHAVIOR:
            with self._lock:
                self._nodes.setdefault(base, []).append(weakref.ref(node))

    def count(self, base: str) -> int:
        """Nodes made with this base so far; KeyError when there is none."""
        return _next_of(self._counters[base])

    def get(self, name: str) -> Any:
        """The living node ``base:index``; needs LEGACY_GRAPH_BEHAVIOR, KeyError when there is none."""
        for node in self._living(name.split(":")[0]):
            if node.name == name:
                return node
        raise KeyError(f"no node {name} is alive" + ("" if self.LEGACY_GRAPH_BEHAVIOR else " (set GRAPH.LEGACY_GRAPH_BEHAVIOR to look nodes up)"))

    @property
    def roots(self) -> list:
        """Living nodes without parents; needs LEGACY_GRAPH_BEHAVIOR."""
        return [node for base in list(self._nodes) for node in self._living(base) if node.is_root]

    def _living(self, base: str) -> list:
        return [node for node in (reference() for reference in list(self._nodes.get(base, ()))) if node is not None]

    def py_name(self, base: str, index: int) -> str:
        """base and index without the colon, which two nodes may share (``x1:0``, ``x:10``): then the base that ends in a digit gets an underscore."""
        plain = f"{base}{index}"
        if base and base[-1].isdigit():
            for cut in range(len(base) - 1, 0, -1):
                if not base[cut].isdigit():
                    break
                number = plain[cut:]
                if number == str(int(number)) and base[:cut] in self._counters and int(number) < self.count(base[:cut]):
                    return f"{base}_{index}"
        return plain

    def __len__(self) -> int:
        return sum(_next_of(counter) for counter in list(self._counters.values()))

    def __str__(self) -> str:
        return str({base: _next_of(counter) for base, counter in list(self._counters.items())})


def _next_of(counter: Any) -> int:
    """What an itertools.count will give next: its repr says so without taking it."""
    return int(repr(counter)[len("count("):-1])


GRAPH = Graph()


class stop_tracing:
    """``with stop_tracing():`` operators compute without recording, in this thread or asyncio task."""

    def __enter__(self) -> None:
        self._token: Optional[contextvars.Token] = _TRACE.set(False)

    def __exit__(self, *_: Any) -> None:
        _TRACE.reset(self._token)  # type: ignore[arg-type]
