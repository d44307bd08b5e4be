"""Nodes of the computation graph: ``Node`` (a value), ``ParameterNode`` (an optimizer may change it), ``MessageNode`` (what an operator made),
``ExceptionNode`` (what a failed one left).

Recording costs a few slots: what few programs ask for (feedback, info, dependencies) is made when it is read.  Parents are held by their
children, children by weak reference, so a graph goes away with its last result.  Definitions: Cheng et al., "Trace is the Next AutoDiff", 2024.
"""

from __future__ import annotations

import copy
import re
import threading
import types
import warnings
import weakref
from collections import defaultdict
from typing import Any, Dict, List, Optional, Tuple, Union

from optod.trace.naming import GRAPH, NAME_SCOPES, USED_NODES, Graph, dialect
from optod.trace.syntax import Syntax

__all__ = ["node", "Node", "ParameterNode", "MessageNode", "ExceptionNode", "GRAPH", "Graph", "NAME_SCOPES", "USED_NODES", "IDENTITY_OPERATORS",
           "get_op_name"]

IDENTITY_OPERATORS = ("identity", "clone")
_TAG = re.compile(r"^\[([^\[\]]+)\]")
_DEFAULT_WORDS = {"Node": "This is a node in a computational graph.", "ParameterNode": "This is a ParameterNode in a computational graph."}


def get_op_name(description: str) -> str:
    """The tag of a description: ``"[add] sum"`` gives ``"add"``.  ValueError without one."""
    match = _TAG.search(description)
    if match is None:
        raise ValueError(f"description {description!r} must start with the operator's name in square brackets")
    return match.group(1)


def node(data: Any, name: Optional[str] = None, trainable: bool = False, description: Optional[str] = None,
         constraint: Optional[str] = None) -> "Node":
    """A node on ``data``.

    data: any value; a Node is returned as it is (a name is then ignored, with a warning) unless ``trainable``, which makes a new parameter on
    the same value.  name: base name without ':', None = the type's.  description, constraint: told to the model.
    """
    if description is not None and not isinstance(description, str):
        raise AssertionError(f"description: {description!r} is no text")
    if trainable:
        if isinstance(data, Node):
            name = name or data._base
            data = data._data
        return ParameterNode(data, name=name, trainable=True, description=description, constraint=constraint)
    if isinstance(data, Node):
        if name is not None:
            warnings.warn(f"Name {name} is ignored because data is already a Node.")
        return data
    return Node(data, name=name, description=description, constraint=constraint)


_prune_lock = threading.Lock()


def _prune(children: list) -> None:
    """Drops references to children that are gone; appends by other threads meanwhile are kept."""
    with _prune_lock:
        n = len(children)
        children[:n] = [c for c in children[:n] if c() is not None]


def adopt(child: "Node", parents: Any) -> None:
    """Sets the child's level and tells the parents of it."""
    level = 0
    reference = weakref.ref(child)
    for parent in parents:
        if parent._level >= level:
            level = parent._level + 1
        children = parent._children
        children.append(reference)
        n = len(children)
        if n > 63 and not n & (n - 1):
            _prune(children)
    child._level = level


NO_INPUTS: Dict[str, "Node"] = {}
"""Inputs of every root; never changed."""

_LAZY = {
    "_children": lambda self: [],
    "_feedback": lambda self: defaultdict(list),
    "_inputs": lambda self: NO_INPUTS,
    "_level": lambda self: 0,
    "trainable": lambda self: False,
    "_backwarded": lambda self: False,
    "_constraint": lambda self: None,
    "_info": lambda self: self._make_info(),
    "_dependencies": lambda self: self._make_dependencies(),
    "projections": lambda self: [],
}


class Node(Syntax):
    """A value in the graph.

    value: any object (a Node gives its value).  name: base, default the type's name.  description: told to the model, may start with ``[tag]``.
    constraint: free text, told to the model.  info: what made it.
    """

    __slots__ = ("_data", "_base", "_index", "_level", "_inputs", "_children", "_description", "_maker", "_call", "_info", "trainable", "_feedback",
                 "_backwarded", "_constraint", "_dependencies", "projections", "_recorded", "__dict__", "__weakref__")

    __class_getitem__ = classmethod(types.GenericAlias)

    def __init__(self, value: Any, *, name: Optional[str] = None, trainable: bool = False, description: Optional[str] = None,
                 constraint: Optional[str] = None, info: Optional[Dict] = None) -> None:
        if isinstance(value, Node):
            base = value._base if name is None else name
            value = value._data
        else:
            base = type(value).__name__ if name is None else name
        self._data = value
        self._base = base
        self._level = 0
        self._inputs = NO_INPUTS
        self._children: list = []
        if not description:
            self._description = "[" + type(self).__name__ + "]"
        else:
            self._description = description if _TAG.match(description) else f"[{type(self).__name__}] {description.strip()}".rstrip()
        if trainable:
            self.trainable = True
        if constraint is not None:
            self._constraint = constraint
        if info is not None:
            self._info = info
        if ":" in base:
            raise ValueError(f"name: {base!r} holds a ':'")
        GRAPH.register(self)

    def __getattr__(self, name: str) -> Any:
        make = _LAZY.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = make(self)
        setattr(self, name, value)
        return value

    # ---- what it holds

    @property
    def data(self) -> Any:
        """The value.  Reading it inside an operator counts as using the node."""
        used = USED_NODES.get()
        if used and GRAPH.TRACE:
            used[-1].add(self)
        return self._data

    @property
    def type(self) -> type:
        return type(self._data)

    @property
    def name(self) -> str:
        """``base:index``."""
        return f"{self._base}:{self._index}"

    _name = name

    @property
    def py_name(self) -> str:
        """The name as code lines print it: without ':'."""
        return GRAPH.py_name(self._base, self._index)

    @property
    def id(self) -> str:
        return str(self._index)

    @property
    def op_name(self) -> str:
        return get_op_name(self._description)

    @property
    def description(self) -> Optional[str]:
        """Dialect "opentrace": the words without their tag, None when there are none; "trace": with the tag, and default words."""
        words = _TAG.sub("", self._description, count=1).strip()
        if dialect() == "trace":
            if not words and type(self).__name__ in _DEFAULT_WORDS:
                return f"{self._description} {_DEFAULT_WORDS[type(self).__name__]}"
            return self._description
        return words or None

    @property
    def words(self) -> str:
        """The user's own words, without a tag; "" when there are none."""
        return _TAG.sub("", self._description, count=1).strip()

    @property
    def constraint(self) -> Optional[str]:
        return self._constraint

    @property
    def info(self) -> Optional[Dict]:
        return self._info

    def _make_info(self) -> Optional[Dict]:
        return None

    # ---- where it stands

    @property
    def parents(self) -> List["Node"]:
        """Inputs in order, each once."""
        return list({id(n): n for n in self._inputs.values()}.values())

    _parents = parents

    @property
    def children(self) -> List["Node"]:
        """What was made of it, still exists, and has not been sent backward."""
        living = {id(c): c for c in (reference() for reference in list(self._children)) if c is not None and not c._backwarded}
        return list(living.values())

    @property
    def level(self) -> int:
        """0 for roots, 1 + the highest parent's otherwise."""
        return self._level

    @property
    def is_root(self) -> bool:
        return not self._inputs

    @property
    def is_leaf(self) -> bool:
        return not self.children

    @property
    def parameter_dependencies(self) -> set:
        """Parameters that it depends on, itself included."""
        return self._dependencies["parameter"]

    @property
    def expandable_dependencies(self) -> set:
        """Nodes above (or itself) whose bodies used parameters that this graph does not show."""
        return self._dependencies["expandable"]

    def _make_dependencies(self) -> Dict[str, set]:
        return {"parameter": set(), "expandable": set()}

    # ---- feedback

    @property
    def feedback(self) -> Dict["Node", list]:
        """child -> what it said, in order."""
        return self._feedback

    def zero_feedback(self) -> None:
        self._feedback = defaultdict(list)

    def _add_feedback(self, child: Any, feedback: Any) -> None:
        self._feedback[child].append(feedback)

    def backward(self, feedback: Any = "", propagator: Any = None, retain_graph: bool = False, visualize: bool = False,
                 simple_visualization: bool = True, reverse_plot: bool = False, print_limit: int = 100) -> Any:
        """Sends feedback on this result to the parameters that it depends on.

        propagator: None = GraphPropagator.  retain_graph: the same nodes may be sent backward again.  visualize: returns the graph as a
        ``Digraph`` (DOT in ``.source``), simple: without identity and clone.  AttributeError when a node was sent backward before.
        """
        from optod.trace.backward import run
        digraph = None
        if visualize:
            from optod.trace.visualize import of_ancestors
            digraph = of_ancestors(self, simple_visualization, reverse_plot, print_limit)
        run(self, feedback, propagator, retain_graph)
        return digraph

    # ---- copies

    def _set(self, value: Any) -> None:
        """Changes the value in place; not recorded."""
        self._data = value._data if isinstance(value, Node) else value

    def clone(self) -> "Node":
        """A recorded deep copy."""
        from optod.trace import operators
        return operators.clone(self)

    def detach(self) -> "Node":
        """An unrecorded deep copy: a root of the same level."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict) -> "Node":
        cls = type(self)
        made = cls.__new__(cls)
        memo[id(self)] = made
        made._base = self._base if dialect() == "trace" else f"{self.py_name}_copy"
        made._description = self._description
        made._level = self._level
        if self.trainable:
            made.trainable = True
        if self._constraint is not None:
            made._constraint = self._constraint
        if self.projections:
            made.projections = list(self.projections)
        made._data = copy.deepcopy(self._data, memo)
        for key, value in self.__dict__.items():        # what the program put there
            made.__dict__[key] = copy.deepcopy(value, memo)
        GRAPH.register(made)
        return made

    def __getstate__(self) -> dict:
        state = {**self.__dict__, "_data": self._data, "_base": self._base, "_index": self._index, "_level": self._level, "_description": self._description}
        if self.trainable:
            state["trainable"] = True
        if self._constraint is not None:
            state["_constraint"] = self._constraint
        if self.projections:
            state["projections"] = self.projections
        return state

    def __setstate__(self, state: dict) -> None:
        for key, value in state.items():
            setattr(self, key, value)

    def __str__(self) -> str:
        return f"{type(self).__name__}: ({self.name}, dtype={type(self._data)}, data={self._data})"

    def lt(self, other: "Node") -> bool:
        """Whether it comes before ``other`` in a backward pass."""
        return -self._level < -other._level

    def gt(self, other: "Node") -> bool:
        return -self._level > -other._level


class ParameterNode(Node):
    """A root that an optimizer may change when ``trainable``.

    projections: functions on a proposed value, applied in order before the update (see optod.trace.projections).
    """

    __slots__ = ()

    def __init__(self, value: Any, *, name: Optional[str] = None, trainable: bool = True, description: Optional[str] = None,
                 constraint: Optional[str] = None, projections: Optional[list] = None, info: Optional[Dict] = None) -> None:
        super().__init__(value, name=name, trainable=trainable, description=description or None, constraint=constraint, info=info)
        if projections is not None:
            if not isinstance(projections, list) or not all(callable(p) for p in projections):
                raise AssertionError("projections: must be a list of Projection objects")
            self.projections = projections

    def _make_dependencies(self) -> Dict[str, set]:
        return {"parameter": {self}, "expandable": set()}


class MessageNode(Node):
    """What an operator made of its inputs.

    inputs: {argument: Node}, or a list (then each is called by its name).  description: ``[operator] words``.
    """

    __slots__ = ()

    def __init__(self, value: Any, *, inputs: Union[List[Node], Dict[str, Node]], description: Optional[str] = None,
                 constraint: Optional[str] = None, name: Optional[str] = None, info: Optional[Dict] = None) -> None:
        if not isinstance(inputs, (list, dict)):
            raise AssertionError("inputs: must be a list or a dict")
        if isinstance(inputs, list):
            inputs = {n.name: n for n in inputs}
        for key, value_node in inputs.items():
            if not isinstance(value_node, Node):
                raise AssertionError(f"inputs[{key!r}]: {value_node!r} is no Node")
        super().__init__(value, name=name, description=description, constraint=constraint, info=info)
        self._inputs = inputs if GRAPH.TRACE else NO_INPUTS
        adopt(self, self._inputs.values())

    @property
    def inputs(self) -> Dict[str, Node]:
        """{argument: node}, in order."""
        return dict(self._inputs)

    def _make_info(self) -> Optional[Dict]:
        """What the operator knows of the call; made when asked for."""
        try:
            maker, (output, args, kwargs, external) = self._maker, self._call
        except AttributeError:
            return None
        return {**maker.info, "output": output, "inputs": {"args": list(args), "kwargs": dict(kwargs)}, "external_dependencies": list(external)}

    @property
    def hidden_dependencies(self) -> set:
        """Parameters that a traceable body used and that are not among the node's own dependencies (nor copies of its inputs)."""
        inner, given = self._inside()
        if inner is None:
            return set()
        hidden = inner.parameter_dependencies - self.parameter_dependencies - set(given)
        above = set().union(*(p.expandable_dependencies for p in self.parents))
        for n in inner.expandable_dependencies - above - {self}:
            hidden = hidden | n.hidden_dependencies
        return hidden

    def _inner(self) -> Optional[Node]:
        """The result inside a traceable body; None for other nodes."""
        return self._inside()[0]

    def _inside(self) -> Tuple[Optional[Node], tuple]:
        """(result inside a traceable body, the nodes that the body was given); (None, ()) for other nodes."""
        try:
            output, args, kwargs, _ = self._call
        except AttributeError:
            info = self._info
            if not isinstance(info, dict):
                return None, ()
            inputs = info.get("inputs") or {"args": [None], "kwargs": {}}
            output, args, kwargs = info.get("output"), inputs["args"], inputs["kwargs"]
        if not isinstance(output, Node):
            return None, ()
        given = (*args, *kwargs.values())
        return (output, given) if all(isinstance(a, Node) for a in given) else (None, ())

    def _make_dependencies(self) -> Dict[str, set]:
        """Of all ancestors that do not know theirs yet, oldest first: no recursion."""
        order: List[MessageNode] = []
        seen, stack = set(), [self]
        while stack:
            at = stack.pop()
            if id(at) in seen:
                continue
            seen.add(id(at))
            order.append(at)
            for parent in at._inputs.values():
                if isinstance(parent, MessageNode) and not _has(parent, "_dependencies"):
                    stack.append(parent)
        for at in sorted(order, key=lambda n: n._level):
            at._dependencies = at._union_of_parents()
            if at.hidden_dependencies:
                at._dependencies["expandable"].add(at)
        return self._dependencies

    def _union_of_parents(self) -> Dict[str, set]:
        parameter: set = set()
        expandable: set = set()
        for parent in self.parents:
            parameter |= parent._dependencies["parameter"]
            expandable |= parent._dependencies["expandable"]
        return {"parameter": parameter, "expandable": expandable}


def _has(at: Node, slot: str) -> bool:
    """Whether a slot is filled, without filling it."""
    try:
        object.__getattribute__(at, slot)
    except AttributeError:
        return False
    return True


class ExceptionNode(MessageNode):
    """What a failed operator left: data is ``(ErrorType) message``."""

    __slots__ = ()

    def __init__(self, value: Exception, *, inputs: Union[List[Node], Dict[str, Node]], description: Optional[str] = None,
                 constraint: Optional[str] = None, name: Optional[str] = None, info: Optional[Dict] = None) -> None:
        inner = getattr(value, "exception_node", None)
        if isinstance(inner, ExceptionNode):      # a failed operator inside this one: its message is the message
            text = inner._data
        else:
            kind = type(value)
            text = f"({kind.__qualname__ if kind.__module__ == 'builtins' else kind.__module__ + '.' + kind.__qualname__}) {value}"
        super().__init__(text, inputs=inputs, description=description, constraint=constraint, name=name or type(value).__name__, info=info)

    def create_feedback(self, style: str = "simple") -> str:
        """Feedback for the optimizer.  "simple": the message; "full": the source with the failing line marked, then the message."""
        if style not in ("simple", "full"):
            raise AssertionError(f"style: {style!r} is neither simple nor full")
        if style == "full" and isinstance(self.info, dict) and self.info.get("error_comment"):
            return self.info["error_comment"]
        return self._data


def message(maker: Any, value: Any, inputs: Dict[str, Node], base: str, description: str, call: tuple) -> MessageNode:
    """A MessageNode without the checks of the constructor: what operators call for each result."""
    made = MessageNode.__new__(MessageNode)
    made._data = value._data if isinstance(value, Node) else value
    made._base = base
    made._description = description
    made._maker = maker
    made._call = call
    made._inputs = inputs
    made._children = []
    adopt(made, inputs.values())
    GRAPH.register(made)
    return made


def root(value: Any, base: Optional[str] = None) -> Node:
    """A Node on a value that is no node, without the checks of the constructor."""
    made = Node.__new__(Node)
    made._data = value
    made._base = type(value).__name__ if base is None else base
    made._description = "[Node]"
    made._level = 0
    made._inputs = NO_INPUTS
    made._children = []
    GRAPH.register(made)
    return made
