"""Built-in operators.  Each is a bundle whose tag is its name; Python's syntax on nodes records them (optod.trace.syntax).

``add.unary`` / ``add.binary`` are the same operators on nodes alone, without the work that only bundles with other arguments need.
"""

from __future__ import annotations

import builtins
import copy
import math
import operator
from typing import Any, Callable, List

from optod.trace import naming, nodes, syntax
from optod.trace.bundle import NO_KWARGS, FunModule
from optod.trace.naming import GRAPH
from optod.trace.nodes import NO_INPUTS, MessageNode, Node, adopt, node, root

_PLAIN = frozenset({int, float, str, bool, bytes, complex, type(None)})
_INDEXED = frozenset({list, tuple, dict, str})
_scoped = naming._TRACE


class Operator(FunModule):
    """A bundle of the library: values that hold no nodes take a short way."""

    def __init__(self, fun: Callable, **options: Any) -> None:
        super().__init__(fun, **options)
        self._names = self._signature.positional

    def unary(self, x: Node) -> Node:
        """The operator on one node."""
        value = x._data
        if type(value) in _PLAIN:
            try:
                return self._short(self._fun(value), {self._names[0]: x}, (value,))
            except Exception:
                pass        # told in full by the long way
        return self.forward(x)

    def binary(self, x: Node, y: Node) -> Node:
        """The operator on two nodes."""
        a, b = x._data, y._data
        if type(a) in _PLAIN and type(b) in _PLAIN:
            try:
                first, second = self._names
                return self._short(self._fun(a, b), {first: x, second: y}, (a, b))
            except Exception:
                pass
        return self.forward(x, y)

    def _short(self, value: Any, inputs: dict, args: tuple) -> Node:
        made = MessageNode.__new__(MessageNode)
        made._data = value
        made._base = self._tag
        made._description = self.description
        made._maker = self
        made._call = (value, args, NO_KWARGS, ())
        made._children = []
        if GRAPH._trace if _scoped.get() is None else GRAPH.TRACE:
            made._inputs = inputs
            adopt(made, inputs.values())
        else:
            made._inputs, made._level = NO_INPUTS, 0
        GRAPH.register(made)
        return made


class GetItem(Operator):
    """Elements of lists, tuples, dicts and texts are read without looking for nodes inside; one that is a node takes the long way."""

    def binary(self, x: Node, y: Node) -> Node:
        a, b = x._data, y._data
        if type(a) in _INDEXED and type(b) in _PLAIN:
            try:
                value = a[b]
            except Exception:
                return self.forward(x, y)
            if not isinstance(value, Node):
                return self._short(value, {"x": x, "index": y}, (a, b))
        return self.forward(x, y)


def _op(fun: Callable = None, *, kind: type = Operator, **options: Any) -> Any:  # type: ignore[assignment]
    if fun is None:
        return lambda f: kind(f, **options)
    return kind(fun)


# ---- identity

@_op
def clone(x: Any):
    """A deep copy of x."""
    return copy.deepcopy(x)


def identity(x: Any) -> Node:
    """The same as ``x.clone()``."""
    return node(x).clone()


# ---- one argument

@_op
def pos(x: Any):
    """x with a plus sign."""
    return +x


@_op
def neg(x: Any):
    """x with the other sign."""
    return -x


@_op
def abs(x: Any):
    """The absolute value of x."""
    return builtins.abs(x)


@_op
def invert(x: Any):
    """x with every bit inverted."""
    return ~x


@_op
def round(x: Any, n: Any = None):
    """x rounded to n digits, to an integer when n is None."""
    return builtins.round(x) if n is None else builtins.round(x, n)


@_op
def floor(x: Any):
    """The largest integer that is not above x."""
    return math.floor(x)


@_op
def ceil(x: Any):
    """The smallest integer that is not below x."""
    return math.ceil(x)


@_op
def trunc(x: Any):
    """x without its fraction."""
    return math.trunc(x)


# ---- arithmetic

@_op
def add(x: Any, y: Any):
    """The sum of x and y."""
    return x + y


@_op
def subtract(x: Any, y: Any):
    """x minus y."""
    return x - y


@_op
def multiply(x: Any, y: Any):
    """The product of x and y."""
    return x * y


@_op
def floor_divide(x: Any, y: Any):
    """x divided by y, rounded down."""
    return x // y


@_op
def divide(x: Any, y: Any):
    """x divided by y."""
    return x / y


@_op
def mod(x: Any, y: Any):
    """The remainder of x divided by y."""
    return x % y


@_op
def node_divmod(x: Any, y: Any):
    """Quotient and remainder of x divided by y."""
    return divmod(x, y)


@_op
def power(x: Any, y: Any):
    """x to the power of y."""
    return x ** y


@_op
def lshift(x: Any, y: Any):
    """x shifted left by y bits."""
    return x << y


@_op
def rshift(x: Any, y: Any):
    """x shifted right by y bits."""
    return x >> y


@_op
def and_(x: Any, y: Any):
    """Bitwise and of x and y."""
    return x & y


@_op
def or_(x: Any, y: Any):
    """Bitwise or of x and y."""
    return x | y


@_op
def xor(x: Any, y: Any):
    """Bitwise exclusive or of x and y."""
    return x ^ y


# ---- comparison and logic

@_op
def lt(x: Any, y: Any):
    """Whether x is less than y."""
    return x < y


@_op
def le(x: Any, y: Any):
    """Whether x is at most y."""
    return x <= y


@_op
def eq(x: Any, y: Any):
    """Whether x equals y."""
    return x == y


@_op
def neq(x: Any, y: Any):
    """Whether x differs from y."""
    return x != y


@_op
def ne(x: Any, y: Any):
    """Whether x differs from y."""
    return x != y


@_op
def ge(x: Any, y: Any):
    """Whether x is at least y."""
    return x >= y


@_op
def gt(x: Any, y: Any):
    """Whether x is greater than y."""
    return x > y


@_op
def cond(condition: Any, x: Any, y: Any):
    """x when condition is true, else y."""
    return x if condition else y


@_op
def not_(x: Any):
    """Whether x is false."""
    return not x


@_op
def is_(x: Any, y: Any):
    """Whether x is the very object y."""
    return x is y


@_op
def is_not(x: Any, y: Any):
    """Whether x is another object than y."""
    return x is not y


@_op
def in_(x: Any, y: Any):
    """Whether x is in y."""
    return _holds(y, x)


@_op
def not_in(x: Any, y: Any):
    """Whether x is not in y."""
    return not _holds(y, x)


def _holds(container: Any, item: Any) -> bool:
    """``in`` that sees the values of nodes in a list or tuple without counting as reading them."""
    if isinstance(container, (list, tuple)):
        return any((e._data if isinstance(e, Node) else e) == item for e in container)
    return item in container


# ---- elements

@_op(kind=GetItem)
def getitem(x: Any, index: Any):
    """The element of x at index."""
    return x[index]


@_op
def get(x: Any, key: Any, default: Any = None):
    """The element of x at key, default when there is none."""
    if not hasattr(x, "get"):
        raise AttributeError(f"{type(x)} object has no attribute 'get'.")
    return x.get(key, default)


@_op
def pop(x: Any, index: Any):
    """Takes the element at index out of x."""
    return x.pop(index)


@_op
def len_(x: Any):
    """The length of x."""
    return len(x)


# ---- text

@_op
def ord_(x: Any):
    """The number of the character x."""
    return ord(x)


@_op
def chr_(x: Any):
    """The character of the number x."""
    return chr(x)


@_op
def concat(x: Any, y: Any):
    """x followed by y."""
    return x + y


@_op
def lower(x: Any):
    """x in lower case."""
    return x.lower()


@_op
def upper(x: Any):
    """x in upper case."""
    return x.upper()


@_op
def title(x: Any):
    """x with every word capitalized."""
    return x.title()


@_op
def swapcase(x: Any):
    """x with upper and lower case swapped."""
    return x.swapcase()


@_op
def capitalize(x: Any):
    """x with its first character in upper case."""
    return x.capitalize()


@_op
def split(x: Any, y: Any = None, maxsplit: Any = -1):
    """The parts of x between the separators y, at most maxsplit + 1."""
    return x.split(y, maxsplit)


@_op
def strip(x: Any, chars: Any = None):
    """x without the given characters (white space) at its ends."""
    return x.strip(chars)


@_op
def replace(x: Any, old: Any, new: Any, count: Any = -1):
    """x with old replaced by new, at most count times."""
    return x.replace(old, new, count)


@_op
def format(x: Any, *args, **kwargs):
    """The template x filled in as by str.format."""
    return x.format(*args, **kwargs)


@_op
def join(x: Any, *args):
    """The arguments joined with x between them."""
    return x.join(args)


# ---- objects

@_op
def node_getattr(obj: Any, attr: str):
    """The attribute attr of obj."""
    return getattr(obj, attr)


@_op(_process_inputs=False, allow_external_dependencies=True)
def call(fun: Node, *args, **kwargs):
    """Calls fun with the other arguments."""
    function = fun._data
    if not callable(function):
        raise TypeError(f"{type(function).__name__} object is not callable")
    return function(*args, **kwargs)


# ---- making containers

@_op
def to_list(x: Any):
    """x as a list."""
    return list(x)


@_op
def make_list(*args):
    """A list of the arguments."""
    return list(args)


@_op
def to_dict(x: Any):
    """x as a dictionary."""
    return dict(x)


@_op
def make_dict(**kwargs):
    """A dictionary of the keyword arguments."""
    return kwargs


@_op
def to_set(x: Any):
    """x as a set."""
    return set(x)


@_op
def make_set(*args):
    """A set of the arguments."""
    return set(args)


@_op
def to_tuple(x: Any):
    """x as a tuple."""
    return tuple(x)


@_op
def make_tuple(*args):
    """A tuple of the arguments."""
    return tuple(args)


@_op
def keys(x: dict):
    """The keys of x as a list."""
    if not isinstance(x, dict):
        raise AttributeError(f"{type(x)} object has no attribute 'keys'.")
    return list(x)


@_op
def values(x: dict):
    """The values of x as a list."""
    if not isinstance(x, dict):
        raise AttributeError(f"{type(x)} object has no attribute 'values'.")
    return list(x.values())


# ---- changed copies of containers

def _changed(kind: str, method: str, names: str, words: str) -> Operator:
    """The operator ``kind_method``: a copy of x on which the method was called."""
    space: dict = {"copy": copy}
    code = f"def {kind}_{method}(x, {names}):\n    x = copy.copy(x)\n    x.{method}({', '.join(_given(n) for n in names.split(', ') if n)})\n    return x\n"
    exec(code.replace("(x, )", "(x)"), space)
    fun = space[f"{kind}_{method}"]
    fun.__doc__ = words
    return Operator(fun)


def _given(argument: str) -> str:
    name = argument.split("=")[0]
    return f"{name}={name}" if "=" in argument else name


dict_update = _changed("dict", "update", "y", "x with the entries of y.")
dict_pop = _changed("dict", "pop", "key", "x without the entry of key.")
dict_popitem = _changed("dict", "popitem", "", "x without its last entry.")
list_append = _changed("list", "append", "y", "x with y at its end.")
list_clear = _changed("list", "clear", "", "x without its elements.")
list_extend = _changed("list", "extend", "y", "x followed by the elements of y.")
list_insert = _changed("list", "insert", "index, y", "x with y inserted at index.")
list_pop = _changed("list", "pop", "index", "x without the element at index.")
list_remove = _changed("list", "remove", "y", "x without the first y.")
list_reverse = _changed("list", "reverse", "", "x in reverse order.")
list_sort = _changed("list", "sort", "key=None, reverse=False", "x in order.")
set_add = _changed("set", "add", "y", "x with y.")
set_clear = _changed("set", "clear", "", "x without its elements.")
set_discard = _changed("set", "discard", "y", "x without y.")
set_intersection_update = _changed("set", "intersection_update", "y", "What is in x and in y.")
set_pop = _changed("set", "pop", "", "x without one of its elements.")
set_remove = _changed("set", "remove", "y", "x without y, which must be there.")
set_symmetric_difference_update = _changed("set", "symmetric_difference_update", "y", "What is in x or in y but not in both.")
set_update = _changed("set", "update", "y", "What is in x or in y.")


# ---- language model

@_op(catch_execution_error=False)
def call_llm(llm: Any, system_prompt: Any = None, *user_prompts, **kwargs):
    """The language model's reply to the system prompt and the user prompts.

    llm: a callable ``llm(messages=...)``; when it is a text, it is the system prompt and the default model is asked.
    """
    from optod.llm import LLM, reply_text
    prompts: List[Any] = list(user_prompts)
    if not callable(llm):
        prompts = ([] if system_prompt is None else [system_prompt]) + prompts
        llm, system_prompt = LLM(), llm
    messages = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    messages += [{"role": "user", "content": p} for p in prompts]
    return reply_text(llm(messages=messages, **kwargs))


import sys as _sys

syntax.bind(_sys.modules[__name__], root, nodes.Node)
