"""GraphPropagator: a parameter hears the user's feedback together with the part of the graph that lies between it and the output."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from optod.trace.nodes import MessageNode, Node
from optod.trace.propagators.propagators import AbstractFeedback, Propagator

__all__ = ["TraceGraph", "GraphPropagator"]


class TraceGraph(AbstractFeedback):
    """A subgraph and what the user said about its output.

    graph: [(level, node)] by rising level.  user_feedback: None while there is none; several different texts are joined by a new line, in order.
    outputs: [(output node, feedback)] that the feedback was given on, in order.
    """

    def __init__(self, graph: Optional[List[Tuple[int, Node]]] = None, user_feedback: Any = None, outputs: Any = None) -> None:
        self._graph: Optional[List[Tuple[int, Node]]] = list(graph or [])
        self.user_feedback = user_feedback
        self._promises: Dict[int, Tuple[Any, Dict[int, Node]]] = {}     # pass -> where the subgraph starts
        self.outputs: List[Tuple[Node, Any]] = list(outputs or [])

    @classmethod
    def promised(cls, backward_pass: Any, start: Node) -> "TraceGraph":
        """The subgraph between a node and the output of a pass, worked out when it is read."""
        made = cls(user_feedback=backward_pass.feedback, outputs=[(backward_pass.output, backward_pass.feedback)])
        made._graph = None
        made._promises = {id(backward_pass): (backward_pass, {id(start): start})}
        return made

    @property
    def graph(self) -> List[Tuple[int, Node]]:
        if self._graph is None:
            found: Dict[int, Node] = {}
            for backward_pass, starts in self._promises.values():
                for node in backward_pass.subgraph(starts):
                    found[id(node)] = node
            self._graph = sorted(((n._level, n) for n in found.values()), key=lambda entry: entry[0])
        return self._graph

    @graph.setter
    def graph(self, value: List[Tuple[int, Node]]) -> None:
        self._graph, self._promises = value, {}

    def empty(self) -> bool:
        return self.user_feedback is None and not self.graph

    def __add__(self, other: "TraceGraph") -> "TraceGraph":
        made = TraceGraph(user_feedback=_joined(self.user_feedback, other.user_feedback), outputs=_merged(self.outputs, other.outputs))
        if self._graph is None and other._graph is None:
            made._graph = None
            for source in (self, other):
                for key, (backward_pass, starts) in source._promises.items():
                    known = made._promises.get(key)
                    made._promises[key] = (backward_pass, {**known[1], **starts} if known else starts)
            return made
        there = {id(n) for _, n in other.graph}
        made._graph = sorted([e for e in self.graph if id(e[1]) not in there] + list(other.graph), key=lambda entry: entry[0])
        return made

    @classmethod
    def expand(cls, node: MessageNode) -> "TraceGraph":
        """The graph inside the body of a traceable operator; empty for other nodes."""
        if not isinstance(node, MessageNode):
            raise AssertionError(f"{node} is no result of an operator")
        output = (node.info or {}).get("output")
        if not isinstance(output, MessageNode):
            return cls()
        given = node.info["inputs"]
        roots = [*output.parameter_dependencies, *output.expandable_dependencies, *given["args"], *given["kwargs"].values()]
        starts: Dict[int, Node] = {}
        wanted = {id(r) for r in roots}
        from optod.trace.backward import Pass
        inner = Pass.__new__(Pass)
        inner.output, inner.feedback, inner._children, inner._parameters = output, "", None, {}
        inner.order = _all_messages(output)
        for at in inner.order:
            if id(at) in wanted or any(id(p) in wanted for p in at.parents):
                starts[id(at)] = at
        made = cls(user_feedback="")
        made._graph = [(n._level, n) for n in inner.subgraph(starts)]
        return made

    def __len__(self) -> int:
        return len(self.graph)

    def __iter__(self) -> Any:
        return iter(self.graph)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, TraceGraph) and self.user_feedback == other.user_feedback and [id(n) for _, n in self.graph] == [
            id(n) for _, n in other.graph]

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"TraceGraph(graph={[n.name for _, n in self.graph]}, user_feedback={self.user_feedback!r})"

    def visualize(self, simple_visualization: bool = True, reverse_plot: bool = False, print_limit: int = 100) -> Any:
        """The subgraph as a Digraph."""
        from optod.trace.visualize import of_nodes
        return of_nodes([n for _, n in self.graph], simple_visualization, reverse_plot, print_limit)


def _joined(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    if first is second or first == second:
        return first
    known = str(first).split("\n")
    return first if str(second) in known else f"{first}\n{second}"


def _merged(first: list, second: list) -> list:
    there = {(id(node), str(words)) for node, words in first}
    return first + [(node, words) for node, words in second if (id(node), str(words)) not in there]


def _all_messages(output: Node) -> List[Node]:
    seen, stack, found = {id(output)}, [output], []
    while stack:
        at = stack.pop()
        if at._inputs:
            found.append(at)
        for parent in at._inputs.values():
            if id(parent) not in seen:
                seen.add(id(parent))
                stack.append(parent)
    return sorted(found, key=lambda n: -n._level)


class GraphPropagator(Propagator):
    """Collects the nodes on the way.  Hidden parameters of a traceable body hear of it too."""

    def init_feedback(self, node: Node, feedback: Any) -> TraceGraph:
        return TraceGraph([(node.level, node)], feedback, [(node, feedback)])

    def _propagate(self, child: MessageNode) -> Dict[Node, TraceGraph]:
        total = self.aggregate(child.feedback) + TraceGraph([(p.level, p) for p in child.parents])
        for parameter in child.hidden_dependencies:
            parameter._add_feedback(child, total)
        return {parent: total for parent in child.parents}

    def aggregate(self, feedback: Dict[Node, List[TraceGraph]]) -> TraceGraph:
        """What all children said, added up; an empty TraceGraph when none did."""
        return sum((given for entries in feedback.values() for given in entries), TraceGraph())


