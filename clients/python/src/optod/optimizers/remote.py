"""The half of an optimizer that lives on the server: a session that gets the graph in batches, the feedback, and gives proposals back.

    local nodes --record (new ones only)--> session --backward, propose--> versions --> local values

Names are the server's; it is asked for the names that the nodes have here, so that prompts, logs and the program agree.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from optod import specs
from optod.optimizers.summary import get_fun_name, told_constraint
from optod.private import default_client
from optod.trace.nodes import ExceptionNode, MessageNode, Node, ParameterNode
from optod.v1 import trace_pb2 as pb

__all__ = ["Remote", "text_of"]

_tokens = itertools.count(1)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAX_TEXT = 1 << 20


def text_of(value: Any) -> str:
    """What str() gives, without memory addresses, at most 1 MiB."""
    kind = type(value)
    if kind is str:
        return value[:_MAX_TEXT]
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return f"<{kind.__name__} object>"
    try:
        text = str(value)
    except Exception as error:      # a class whose str() fails
        text = f"<{kind.__name__} object: {type(error).__name__}>"
    if kind not in (int, float, bool):
        text = _ADDRESS.sub("", text)
    return text[:_MAX_TEXT]


def _json_of(value: Any) -> str:
    try:
        return json.dumps(value) if isinstance(value, (int, float, bool, list, tuple, dict)) else ""
    except (TypeError, ValueError, RecursionError):
        return ""


class Remote:
    """optimizer: the server's name of it.  hyperparameters: of the session.  llm: name of the server's endpoint, "" = its default.

    The session is made when it is first needed.  client: None = optod.private.default_client().
    """

    def __init__(self, optimizer: str, hyperparameters: Mapping[str, Any], llm: str = "", seed: int = 0, client: Any = None) -> None:
        self.optimizer, self.hyperparameters, self.llm, self.seed = optimizer, dict(hyperparameters), llm, seed
        self._client, self._session = client, None
        self.lock = threading.RLock()          # several steps of one optimizer may run side by side
        self._token = next(_tokens)
        self._names: Dict[int, str] = {}        # id on the server -> base:index there
        self._values: Dict[int, str] = {}       # id of a parameter -> its text there
        self._types: Dict[int, str] = {}
        self._feedback: list = []               # [(id of the output, words)] that the server holds

    def __getstate__(self) -> dict:
        return {"optimizer": self.optimizer, "hyperparameters": self.hyperparameters, "llm": self.llm, "seed": self.seed}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict) -> "Remote":
        """A copy starts a session of its own."""
        return Remote(self.optimizer, self.hyperparameters, self.llm, self.seed, self._client)

    @property
    def session(self) -> Any:
        """The session (optod.Session), made now if there is none."""
        if self._session is None:
            client = self._client or default_client()
            self._session = client.sessions.create(self.optimizer, hyperparameters=self.hyperparameters, llm=self.llm, seed=self.seed)
        return self._session

    def names_of(self, parameter: ParameterNode) -> set:
        """What replies may call it: its names here and on the server, with and without the colon."""
        names = {parameter.name, parameter.py_name}
        there = self._names.get(self.id_of(parameter))  # type: ignore[arg-type]
        return names | {there, there.replace(":", "")} if there else names

    def restart(self) -> None:
        """Forgets the session; the next call makes a new one and records anew."""
        self._session, self._token = None, next(_tokens)
        self._names, self._values, self._types, self._feedback = {}, {}, {}, []

    # ---- recording

    def id_of(self, node: Node) -> Optional[int]:
        """The node's id on the server; None when it is not there."""
        try:
            return node._recorded.get(self._token)
        except AttributeError:
            return None

    def record(self, outputs: Iterable[Node]) -> None:
        """Sends the outputs and all that they were made of, as far as the server does not have it."""
        found = self._missing(outputs)
        if not found:
            return
        index = {id(n): i for i, n in enumerate(found)}

        def reference(node: Node) -> int:
            known = self.id_of(node)
            return known if known is not None else -1 - index[id(node)]

        answers = self.session.record([self._message(n, reference) for n in found])
        for node, answer in zip(found, answers):
            try:
                node._recorded[self._token] = answer.id
            except AttributeError:
                node._recorded = {self._token: answer.id}
            if isinstance(node, ParameterNode):
                self._names[answer.id] = answer.name
                self._values[answer.id], self._types[answer.id] = text_of(node._data), type(node._data).__name__

    def _missing(self, outputs: Iterable[Node]) -> List[Node]:
        """Parents before children, without recursion."""
        seen: Dict[int, Node] = {}
        stack = [n for n in outputs if self.id_of(n) is None]
        while stack:
            at = stack.pop()
            if id(at) in seen:
                continue
            seen[id(at)] = at
            stack.extend(n for n in self._above(at) if id(n) not in seen and self.id_of(n) is None)
        return sorted(seen.values(), key=lambda n: (n._level, isinstance(n, MessageNode), n._base, n._index))

    @staticmethod
    def _above(node: Node) -> List[Node]:
        hidden = node.hidden_dependencies if isinstance(node, MessageNode) and node._inner() is not None else ()
        return [*node._inputs.values(), *hidden]

    @staticmethod
    def _message(node: Node, reference: Any) -> pb.Node:
        value = node._data
        scope, _, base = node._base.rpartition("/")
        made = pb.Node(base=base, scope=scope, index=node._index, type=type(value).__name__, text=text_of(value), json=_json_of(value),
                       level=node._level)
        if isinstance(node, ParameterNode):
            made.kind, made.trainable, made.constraint = pb.Node.PARAMETER, bool(node.trainable), told_constraint(node) or ""
        elif isinstance(node, MessageNode):
            made.kind = pb.Node.EXCEPTION if isinstance(node, ExceptionNode) else pb.Node.MESSAGE
            made.op, made.function, made.description = node.op_name, get_fun_name(node), node.words
            for argument, parent in node._inputs.items():
                made.inputs.add(argument=argument, node=reference(parent))
            if node._inner() is not None:
                made.hidden_parameters.extend(sorted(reference(p) for p in node.hidden_dependencies))
        else:
            made.kind, made.description = pb.Node.NODE, node.words
        return made

    # ---- values

    def sync(self, parameters: Sequence[ParameterNode]) -> None:
        """Makes the server's head hold the values that the parameters have here (the program may have changed them by hand)."""
        changed = {}
        for parameter in parameters:
            at = self.id_of(parameter)
            if at is None or self._values[at] == text_of(parameter._data):
                continue
            if type(parameter._data).__name__ != self._types[at]:
                self.restart()
                return
            changed[at] = parameter
        if not changed:
            return
        self._feedback = []
        self.session.set_values({self._names[at]: _wire_value(p._data) for at, p in changed.items()}, note="set by the program")
        for at, parameter in changed.items():
            self._values[at] = text_of(parameter._data)

    # ---- feedback and proposals

    def tell(self, outputs: Sequence[Tuple[Node, Any]], parameters: Sequence[ParameterNode]) -> List[int]:
        """Records, sets values and gives the feedback that is pending here; returns the ids of the parameters.

        outputs: [(output, feedback)] in order.  FailedPrecondition-like ValueError when there is none.
        """
        if not outputs:
            raise ValueError("feedback: none; call backward on an output before step")
        self.sync(parameters)
        self.record([*(n for n, _ in outputs), *parameters])
        feedback = [(self.id_of(node), str(words)) for node, words in outputs]
        if feedback != self._feedback:          # told already: nothing moved the head since
            self.session.zero_feedback()
            for at, words in feedback:
                self.session.backward(at, words)
            self._feedback = feedback
        return [self.id_of(p) for p in parameters]  # type: ignore[misc]

    def accept(self, version: int, update: Mapping[ParameterNode, Any]) -> None:
        """A proposed version becomes the head."""
        self.session.rollback(version)
        self._feedback = []                     # the server drops what was said about other values
        self.took(update)

    def took(self, update: Mapping[ParameterNode, Any]) -> None:
        """The head holds these values now."""
        for parameter, value in update.items():
            at = self.id_of(parameter)
            if at is not None:
                self._values[at] = text_of(value)

    def values_of(self, version: int, parameters: Sequence[ParameterNode]) -> Dict[ParameterNode, Any]:
        """What a version changes: {parameter: value of the parameter's Python type}."""
        held = self.session.versions[version].values
        out: Dict[ParameterNode, Any] = {}
        for parameter in parameters:
            message = held.get(self._names[self.id_of(parameter)])  # type: ignore[index]
            if message is None:
                continue
            value = _as_type(specs.python_value(message), parameter._data)
            if text_of(value) != text_of(parameter._data):
                out[parameter] = value
        return out


def _wire_value(value: Any) -> Any:
    """A value that specs.value_message takes: what has no JSON goes as its text."""
    return value if isinstance(value, (str, bool, int, float)) or _json_of(value) else text_of(value)


def _as_type(value: Any, like: Any) -> Any:
    """A value of the wire as the type that the parameter holds; None holds any."""
    if like is None or type(value) is type(like):
        return value
    try:
        return type(like)(value)
    except (TypeError, ValueError):
        return value
