"""Iteration over nodes: each element is a recorded ``getitem``."""

from __future__ import annotations

from typing import Any, Iterator, Tuple

import numpy as np

from optod.trace import operators as ops
from optod.trace.errors import ExecutionError
from optod.trace.nodes import ExceptionNode, Node, node

__all__ = ["iterate", "SeqIterable", "DictIterable"]


def iterate(x: Any) -> Iterator[Node]:
    """Elements of a list, tuple, text or array; of a set (made a list first); keys of a dict.  ExecutionError for other values."""
    x = node(x)
    if isinstance(x._data, (list, tuple, str, np.ndarray)):
        return SeqIterable(x)
    if isinstance(x._data, (set, frozenset)):
        return SeqIterable(ops.to_list(x))
    if isinstance(x._data, dict):
        return SeqIterable(x.keys())
    words = f"Cannot unpack non-iterable {type(x._data)} object"
    raise ExecutionError(ExceptionNode(TypeError(words), inputs=[x], info={"traceback": "TypeError: " + words}))


class SeqIterable:
    """wrapped_list: a node whose value has a length and takes an index."""

    def __init__(self, wrapped_list: Node) -> None:
        self.wrapped_list, self._index = wrapped_list, 0

    def __iter__(self) -> "SeqIterable":
        self._index = 0
        return self

    def __next__(self) -> Node:
        if self._index >= len(self.wrapped_list._data):
            raise StopIteration
        self._index += 1
        return self.wrapped_list[self._index - 1]


class DictIterable:
    """Pairs (key, value): the keys once, then a getitem on them and one on the dict each."""

    def __init__(self, wrapped_dict: Node) -> None:
        self.wrapped_dict, self._index = wrapped_dict, 0
        self.keys = ops.keys(wrapped_dict)

    def __iter__(self) -> "DictIterable":
        self._index = 0
        return self

    def __next__(self) -> Tuple[Node, Node]:
        if self._index >= len(self.keys._data):
            raise StopIteration
        key = self.keys[self._index]
        self._index += 1
        return key, self.wrapped_dict[key]
