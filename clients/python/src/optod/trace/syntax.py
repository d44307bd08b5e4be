"""What Python's syntax does on nodes: ``a + b``, ``a[k]``, ``a.split(",")``, ... each records the operator of that name (optod.trace.operators).

``==`` and ``!=`` compare values and give a plain bool, ``hash`` is identity, ``bool`` and ``len`` are plain: Python needs them so.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator

__all__ = ["Syntax"]

_ops: Any = None         # optod.trace.operators, once it is loaded
_wrap: Callable = None   # type: ignore[assignment]  # any value -> Node
_is_node: Any = ()       # the class Node


def bind(operators: Any, wrap: Callable, node_class: type) -> None:
    """Called once by optod.trace.operators: the operators need nodes, and nodes the operators."""
    global _ops, _wrap, _is_node
    _ops, _wrap, _is_node = operators, wrap, node_class


def _unary(name: str) -> Callable:
    def method(self: Any) -> Any:
        return getattr(_ops, name).unary(self)
    return method


def _binary(name: str) -> Callable:
    def method(self: Any, other: Any) -> Any:
        return getattr(_ops, name).binary(self, other if isinstance(other, _is_node) else _wrap(other))
    return method


def _reflected(name: str) -> Callable:
    def method(self: Any, other: Any) -> Any:
        return getattr(_ops, name).binary(other if isinstance(other, _is_node) else _wrap(other), self)
    return method


def _text(name: str) -> Callable:
    def method(self: Any) -> Any:
        self._need(str, name)
        return getattr(_ops, name)(self)
    return method


class Syntax:
    __slots__ = ()

    def _need(self, kind: type, method: str) -> None:
        if not isinstance(self._data, kind):
            raise AttributeError(f"{type(self._data)} object has no attribute {method!r}.")

    # ---- arithmetic

    __pos__, __neg__, __abs__, __invert__ = _unary("pos"), _unary("neg"), _unary("abs"), _unary("invert")
    __floor__, __ceil__, __trunc__ = _unary("floor"), _unary("ceil"), _unary("trunc")

    def __round__(self, n: Any = None) -> Any:
        return _ops.round(self, n)

    def __add__(self, other: Any) -> Any:
        other = other if isinstance(other, _is_node) else _wrap(other)
        return (_ops.concat if type(self._data) is str else _ops.add).binary(self, other)

    def __radd__(self, other: Any) -> Any:
        return _wrap(other) + self

    def __rmul__(self, other: Any) -> Any:      # 3 * x is recorded as multiply(x, 3)
        return _ops.multiply.binary(self, _wrap(other))

    __sub__, __rsub__ = _binary("subtract"), _reflected("subtract")
    __mul__ = _binary("multiply")
    __floordiv__, __rfloordiv__ = _binary("floor_divide"), _reflected("floor_divide")
    __truediv__, __rtruediv__ = _binary("divide"), _reflected("divide")
    __div__, __rdiv__ = __truediv__, __rtruediv__
    __mod__, __rmod__ = _binary("mod"), _reflected("mod")
    __divmod__, __rdivmod__ = _binary("node_divmod"), _reflected("node_divmod")
    __pow__, __rpow__ = _binary("power"), _reflected("power")
    __lshift__, __rlshift__ = _binary("lshift"), _reflected("lshift")
    __rshift__, __rrshift__ = _binary("rshift"), _reflected("rshift")
    __and__, __rand__ = _binary("and_"), _reflected("and_")
    __or__, __ror__ = _binary("or_"), _reflected("or_")
    __xor__, __rxor__ = _binary("xor"), _reflected("xor")

    # ---- comparison

    __lt__, __le__, __gt__, __ge__ = _binary("lt"), _binary("le"), _binary("gt"), _binary("ge")
    eq, neq = _binary("eq"), _binary("neq")

    def __eq__(self, other: Any) -> Any:
        return self._data == (other.data if isinstance(other, _is_node) else other)

    def __ne__(self, other: Any) -> Any:
        return self._data != (other.data if isinstance(other, _is_node) else other)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return bool(self._data)

    # ---- containers

    def __len__(self) -> int:
        return len(self._data)

    def len(self) -> Any:
        """The length as a node."""
        return _ops.len_(self)

    def __getitem__(self, key: Any) -> Any:
        return _ops.getitem.binary(self, key if isinstance(key, _is_node) else _wrap(key))

    def __contains__(self, item: Any) -> Any:
        return _ops.in_(_wrap(item) if not isinstance(item, _is_node) else item, self)

    def __iter__(self) -> Iterator:
        from optod.trace.iterators import iterate
        return iterate(self)

    def items(self) -> Any:
        """Pairs (key, value) of nodes of a dict."""
        from optod.trace.iterators import DictIterable
        self._need(dict, "items")
        return DictIterable(self)

    def keys(self) -> Any:
        self._need(dict, "keys")
        return _ops.keys(self)

    def values(self) -> Any:
        return _ops.values(self)

    def pop(self, index: Any = -1) -> Any:
        return _ops.pop(self, index if isinstance(index, _is_node) else _wrap(index))

    def append(self, item: Any) -> Any:
        """The list with ``item`` at its end, as a new node; the node itself keeps its value (a trace does not change what was recorded)."""
        self._need(list, "append")
        return _ops.list_append(self, item)

    # ---- objects and functions

    def getattr(self, key: Any) -> Any:
        """An attribute of the value, as a node."""
        return _ops.node_getattr(self, key if isinstance(key, _is_node) else _wrap(key))

    def call(self, fun: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the value."""
        wrapped = [a if isinstance(a, _is_node) else _wrap(a) for a in args]
        return self.getattr(fun)(*wrapped, **{k: v if isinstance(v, _is_node) else _wrap(v) for k, v in kwargs.items()})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ops.call(self, *args, **kwargs)

    # ---- text

    capitalize, lower, upper, swapcase, title = _text("capitalize"), _text("lower"), _text("upper"), _text("swapcase"), _text("title")

    def format(self, *args: Any, **kwargs: Any) -> Any:
        self._need(str, "format")
        return _ops.format(self, *args, **kwargs)

    def split(self, sep: Any = None, maxsplit: Any = -1) -> Any:
        self._need(str, "split")
        return _ops.split(self, sep, maxsplit)

    def strip(self, chars: Any = None) -> Any:
        self._need(str, "strip")
        return _ops.strip(self, chars)

    def replace(self, old: Any, new: Any, count: Any = -1) -> Any:
        self._need(str, "replace")
        return _ops.replace(self, old, new, count)

    def join(self, seq: Any) -> Any:
        """Joins the texts (or nodes) of ``seq``."""
        self._need(str, "join")
        try:
            iter(seq)
        except TypeError:
            raise TypeError("Can only join an iterable.") from None
        return _ops.join(self, *seq)
