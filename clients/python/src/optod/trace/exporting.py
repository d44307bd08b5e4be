"""A model class as plain Python text: what remains when training is over."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from optod.trace.nodes import Node

__all__ = ["source_of"]


def source_of(instance: Any) -> str:
    """``class Name:`` with the methods of the decorated class.

    A trained method has its current code; ``self.x = node(...)`` becomes ``self.x = <current value>``.
    """
    cls = type(instance).reserved_cls
    parts = [text for name, member in inspect.getmembers(instance) if name in vars(cls) for text in [_member_source(cls, name, member)] if text]
    body = "\n\n".join(textwrap.indent(textwrap.dedent(part), "    ") for part in parts) or "    pass"
    return _with_values(f"class {cls.__name__}:\n{body}\n", instance)


def _member_source(cls: type, name: str, member: Any) -> str:
    from optod.trace.bundle import FunModule
    if isinstance(member, FunModule):
        return member.info["source"] if member.parameter is None else member.parameter._data
    if name.startswith("__") and not callable(member) or isinstance(member, type):
        return ""
    try:
        return inspect.getsource(vars(cls)[name])
    except (TypeError, OSError):
        return "" if callable(member) or name.startswith("__") else f"{name} = {member!r}"


class _Values(ast.NodeTransformer):
    """``self.x = ...`` with the value that self.x holds now, when it is a node."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def visit_Assign(self, statement: ast.Assign) -> ast.AST:
        for target in statement.targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                held = vars(self._instance).get(target.attr)
                if isinstance(held, Node):
                    statement.value = ast.parse(repr(held._data), mode="eval").body
                    return statement
        self.generic_visit(statement)
        return statement


def _with_values(text: str, instance: Any) -> str:
    tree = _Values(instance).visit(ast.parse(text))
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"
