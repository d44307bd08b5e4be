"""A subgraph as the optimizers show it: code lines, documentation, and the values of variables, inputs, others and outputs."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Tuple

from optod.trace.nodes import MessageNode, Node, ParameterNode
from optod.trace.propagators import TraceGraph

__all__ = ["FunctionFeedback", "ProblemInstance", "node_to_function_feedback", "repr_function_call", "get_fun_name", "told_constraint", "value_line",
           "constraint_line"]

_TITLES = ("Instruction", "Code", "Documentation", "Variables", "Constraints", "Inputs", "Others", "Outputs", "Feedback")


def get_fun_name(node: MessageNode) -> str:
    """The name that a code line prints."""
    maker = getattr(node, "_maker", None)
    info = maker.info if maker is not None else node.info
    return info["fun_name"] if isinstance(info, dict) and "fun_name" in info else node._base


def repr_function_call(child: MessageNode) -> str:
    """``y0 = f(x=x0, k=k0)``."""
    inputs = ", ".join(f"{key}={value.py_name}" for key, value in child._inputs.items())
    return f"{child.py_name} = {get_fun_name(child)}({inputs})"


def told_constraint(node: Node) -> Optional[str]:
    """What the model is told of a value: its description and its constraint; None when there is neither."""
    parts = [part for part in (node.words if isinstance(node, ParameterNode) else "", node._constraint) if part]
    return "\n".join(parts) or None


@dataclasses.dataclass
class FunctionFeedback:
    """graph: [(level, code line)].  documentation: {function: words}.  others, roots, output: {py_name: (value, constraint)}.  variables and inputs: the
    roots that an optimizer may change, and the rest."""

    graph: List[Tuple[int, str]]
    documentation: Dict[str, str]
    others: Dict[str, Any]
    roots: Dict[str, Any]
    output: Dict[str, Any]
    user_feedback: Any
    variables: Dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Dict[str, Any] = dataclasses.field(default_factory=dict)


def node_to_function_feedback(node_feedback: TraceGraph) -> FunctionFeedback:
    """Sorts a subgraph: a node whose parents all lie in it is a step (an output at the highest level), every other one a root."""
    entries = node_feedback.graph
    depth = entries[-1][0] if entries else 0
    made = FunctionFeedback([], {}, {}, {}, {}, node_feedback.user_feedback)
    seen = set()
    for level, node in entries:
        seen.add(id(node))
        shown = (node._data, told_constraint(node))
        if node.is_root or any(id(p) not in seen for p in node.parents):
            made.roots[node.py_name] = shown
            continue
        made.documentation[get_fun_name(node)] = node.words
        made.graph.append((level, repr_function_call(node)))
        (made.output if level == depth else made.others)[node.py_name] = shown
    return made


def value_line(name: str, shown: Sequence[Any]) -> str:
    """``(type) name=value``; of code ``(code) name:value``."""
    return f"(code) {name}:{shown[0]}" if "__code" in name else f"({type(shown[0]).__name__}) {name}={shown[0]}"


def constraint_line(name: str, shown: Sequence[Any]) -> str:
    kind = "code" if "__code" in name else type(shown[0]).__name__
    return f"({kind}) {name}: {shown[1]}"


@dataclasses.dataclass
class ProblemInstance:
    """The sections of a prompt; str() prints them under their titles."""

    instruction: str = ""
    code: str = ""
    documentation: str = ""
    variables: str = ""
    inputs: str = ""
    others: str = ""
    outputs: str = ""
    feedback: str = ""
    constraints: str = ""

    def __repr__(self) -> str:
        return "\n" + "\n\n".join(f"#{title}\n{getattr(self, title.lower())}" for title in _TITLES) + "\n"

    __str__ = __repr__

    @classmethod
    def of(cls, summary: FunctionFeedback, objective: str, mask: Sequence[str] = ()) -> "ProblemInstance":
        """The sections of a summary; those whose title (``#Code``) is in ``mask`` stay empty."""
        texts = {
            "instruction": objective,
            "code": "\n".join(line for _, line in sorted(summary.graph)),
            "documentation": "\n".join(f"[{name}] {words}" for name, words in summary.documentation.items()),
            "variables": "\n".join(value_line(k, v) for k, v in summary.variables.items()),
            "constraints": "\n".join(constraint_line(k, v) for k, v in summary.variables.items() if v[1] is not None),
            "inputs": "\n".join(value_line(k, v) for k, v in summary.inputs.items()),
            "others": "\n".join(value_line(k, v) for k, v in summary.others.items()),
            "outputs": "\n".join(value_line(k, v) for k, v in summary.output.items()),
            "feedback": str(summary.user_feedback),
        }
        hidden = {title.lstrip("# ").lower() for title in mask}
        return cls(**{key: "" if key in hidden else text for key, text in texts.items()})
