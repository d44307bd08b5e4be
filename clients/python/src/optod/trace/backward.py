"""The backward pass: who hears of the feedback on an output.

    ancestors of the output that depend on a parameter, latest first  ->  propagator  ->  feedback of the parameters

With the plain GraphPropagator this is one walk over the graph, O(nodes + edges): a parameter gets a promise of its subgraph, which is worked out
when somebody reads it.  Other propagators are called node by node.
"""

from __future__ import annotations

import heapq
from typing import Any, Dict, List, Optional

from optod.trace.nodes import MessageNode, Node, ParameterNode

__all__ = ["run", "Pass"]


def run(output: Node, feedback: Any, propagator: Any, retain_graph: bool) -> None:
    """Sends ``feedback`` on ``output`` to the parameters that it depends on.  See Node.backward."""
    from optod.trace.propagators import GraphPropagator
    if propagator is None:
        propagator = GraphPropagator()
    _refuse_twice(output)
    if output.is_root or type(propagator) is not GraphPropagator or propagator.override:
        _one_by_one(output, feedback, propagator, retain_graph)
    else:
        Pass(output, feedback).deliver(retain_graph)


def _refuse_twice(node: Node) -> None:
    if node._backwarded:
        raise AttributeError(f"{node} has been backwarded.")


def _one_by_one(output: Node, feedback: Any, propagator: Any, retain_graph: bool) -> None:
    """Nodes by falling level, later ones first within a level; each is asked of the propagator when all that it fed has been."""
    output._add_feedback(Node("FEEDBACK_ORACLE"), propagator.init_feedback(output, feedback))
    if output.is_root:
        return
    heap, queued, order = [(-output._level, 0, output)], {id(output)}, 0
    while heap:
        _, _, node = heapq.heappop(heap)
        _refuse_twice(node)
        given = propagator(node)
        node.zero_feedback()
        for parent in node.parents:
            if not parent.parameter_dependencies and not parent.expandable_dependencies:
                continue
            if parent in given:
                parent._add_feedback(node, given[parent])
            if not parent.is_root and id(parent) not in queued:
                order += 1
                queued.add(id(parent))
                heapq.heappush(heap, (-parent._level, order, parent))
        node._backwarded = not retain_graph


class Pass:
    """One piece of feedback on one output, and the part of the graph that it concerns.

    output, feedback: as given.  order: the message nodes that lie between a parameter and the output, by falling level.
    """

    def __init__(self, output: Node, feedback: Any) -> None:
        self.output, self.feedback = output, feedback
        self._children: Optional[Dict[int, List[Node]]] = None
        self._parameters: Dict[int, Node] = {}
        self.order = self._relevant()

    def _relevant(self) -> List[Node]:
        seen, stack, found = {id(self.output)}, [self.output], []
        while stack:
            at = stack.pop()
            if not at._inputs:
                continue
            found.append(at)
            for parent in at._inputs.values():
                if id(parent) not in seen:
                    seen.add(id(parent))
                    stack.append(parent)
        found.sort(key=lambda n: n._level)
        reached = set()
        for at in found:
            if any(id(p) in reached or isinstance(p, ParameterNode) for p in at._inputs.values()) or _hides(at):
                reached.add(id(at))
        kept = [at for at in reversed(found) if id(at) in reached or at is self.output]
        for at in kept:
            _refuse_twice(at)
        return kept

    def deliver(self, retain_graph: bool) -> None:
        """Gives the parameters their feedback and marks the nodes as done (unless the graph is retained)."""
        from optod.trace.propagators import TraceGraph
        for at in self.order:
            at._backwarded = not retain_graph
            told = {id(p): p for p in at._inputs.values() if isinstance(p, ParameterNode)}
            if _hides(at):
                told.update({id(p): p for p in at.hidden_dependencies})  # type: ignore[attr-defined]
            for parameter in told.values():
                parameter._add_feedback(at, TraceGraph.promised(self, at))

    def subgraph(self, starts: Dict[int, Node]) -> List[Node]:
        """What lies on paths from the start nodes to the output, with the direct parents of each, by rising level."""
        children = self._children_of()
        inside, stack = dict(starts), list(starts.values())
        while stack:
            for child in children.get(id(stack.pop()), ()):
                if id(child) not in inside:
                    inside[id(child)] = child
                    stack.append(child)
        found = dict(inside)
        for at in inside.values():
            for parent in at._inputs.values():
                found.setdefault(id(parent), parent)
        return sorted(found.values(), key=lambda n: n._level)

    def _children_of(self) -> Dict[int, List[Node]]:
        if self._children is None:
            self._children = {}
            for at in self.order:
                for parent in at.parents:
                    self._children.setdefault(id(parent), []).append(at)
        return self._children


def _hides(at: Node) -> bool:
    """Whether its body used parameters that the graph does not show; cheap for the usual node, whose result came from plain values."""
    return isinstance(at, MessageNode) and at._inner() is not None and bool(at.hidden_dependencies)
