"""Graphs as Graphviz DOT: ``Digraph`` has the methods that programs use of the class of that name in the package graphviz, and needs no package.

Parameters are boxes, other nodes ellipses, failed ones red; an edge goes from an input to what was made of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from optod.trace.nodes import IDENTITY_OPERATORS, ExceptionNode, Node, ParameterNode

__all__ = ["Digraph", "of_ancestors", "of_nodes"]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "").replace("\n", "\\n") + '"'


class Digraph:
    """A directed graph as DOT.  source: the text.  render / view / _repr_svg_ need the program ``dot`` (RuntimeError says so)."""

    def __init__(self, name: str = "trace") -> None:
        self.name = name
        self._nodes: Dict[str, Dict[str, str]] = {}
        self._edges: Dict[Tuple[str, str], None] = {}

    def node(self, name: str, **attributes: str) -> None:
        self._nodes[name] = attributes

    def edge(self, tail: str, head: str) -> None:
        self._edges[(tail, head)] = None

    @property
    def source(self) -> str:
        lines = [f"digraph {_quoted(self.name)} {{"]
        for name, attributes in self._nodes.items():
            inside = ", ".join(f"{key}={_quoted(value)}" for key, value in attributes.items())
            lines.append(f"  {_quoted(name)} [{inside}];")
        lines += [f"  {_quoted(tail)} -> {_quoted(head)};" for tail, head in self._edges]
        return "\n".join(lines + ["}", ""])

    def __str__(self) -> str:
        return self.source

    def pipe(self, format: str = "svg") -> bytes:
        """The picture in a format of ``dot``."""
        program = shutil.which("dot")
        if program is None:
            raise RuntimeError("visualize: the program `dot` is not installed (package graphviz); the DOT text is in `.source`")
        return subprocess.run([program, f"-T{format}"], input=self.source.encode(), capture_output=True, check=True).stdout

    def save(self, filename: Optional[str] = None) -> str:
        """Writes the DOT text; returns the path."""
        path = filename or f"{self.name}.gv"
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.source)
        return path

    def render(self, filename: Optional[str] = None, format: str = "pdf", view: bool = False, **_: Any) -> str:
        """Writes the DOT text and the picture beside it; returns the picture's path."""
        path = f"{self.save(filename)}.{format}"
        with open(path, "wb") as file:
            file.write(self.pipe(format))
        if view:
            self._open(path)
        return path

    def view(self, filename: Optional[str] = None, **_: Any) -> str:
        """Renders into a temporary folder (or ``filename``) and opens the picture where there is a viewer."""
        return self.render(filename or os.path.join(tempfile.mkdtemp(prefix="optod-"), "trace.gv"), view=True)

    def _repr_svg_(self) -> Optional[str]:
        return self.pipe("svg").decode() if shutil.which("dot") else None

    @staticmethod
    def _open(path: str) -> None:
        viewer = shutil.which("xdg-open")
        if viewer and os.environ.get("DISPLAY"):
            subprocess.Popen([viewer, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def attributes(node: Node, print_limit: int = 100) -> Dict[str, str]:
    """Label (name, words, value, each at most ``print_limit`` characters) and looks of a node."""
    value = node._data
    shown = str(value["content"]) if isinstance(value, dict) and "content" in value else str(value)
    label = f"{node.py_name}\n{_cut(node._description, print_limit)}\n{_cut(shown, print_limit)}"
    if isinstance(node, ExceptionNode):
        fill, line = "firebrick1", "black"
    elif isinstance(node, ParameterNode):
        fill, line = "#FFE5E5", "#FF7E79"
    else:
        fill, line = "#DEEBF6", "#5C9BD5"
    return {"label": label, "shape": "box" if isinstance(node, ParameterNode) else "ellipse", "fillcolor": fill, "style": "filled,solid",
            "color": line, "penwidth": "1.2"}


def _seen_through(node: Node, simple: bool) -> Node:
    """In the simple form: what an identity or clone stands for."""
    while simple and node.op_name in IDENTITY_OPERATORS and len(node.parents) == 1:
        node = node.parents[0]
    return node


def of_ancestors(output: Node, simple: bool, reverse: bool, print_limit: int) -> Digraph:
    """The output and all that it was made of."""
    seen: Set[int] = {id(output)}
    stack, found = [output], []
    while stack:
        at = stack.pop()
        found.append(at)
        for parent in at.parents:
            if id(parent) not in seen:
                seen.add(id(parent))
                stack.append(parent)
    return of_nodes(found, simple, reverse, print_limit)


def of_nodes(nodes: Iterable[Node], simple: bool = True, reverse: bool = False, print_limit: int = 100) -> Digraph:
    """The nodes and the edges among them."""
    kept: List[Node] = sorted(nodes, key=lambda n: n._level)
    inside = {id(n) for n in kept}
    graph = Digraph()
    for node in kept:
        if _seen_through(node, simple) is not node:
            continue
        graph.node(node.py_name, **attributes(node, print_limit))
        for parent in node.parents:
            source = _seen_through(parent, simple)
            if id(parent) in inside and id(source) in inside:
                graph.edge(*((node.py_name, source.py_name) if reverse else (source.py_name, node.py_name)))
    return graph
