"""The source text of a bundled function: what stands below its ``@bundle(...)`` line."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any, List, Optional, Tuple

__all__ = ["of_function", "signature_text"]


def of_function(fun: Any, decorated_at: Optional[int] = None) -> Tuple[str, int]:
    """(source, number of its first line in the file).

    Decorators above and including the bundle decorator are left out, those below stay; the text is dedented.  decorated_at: line on which
    ``bundle(`` was called, for decorators that go by another name.  OSError when there is no source (a console).
    """
    lines, first = inspect.getsourcelines(fun)
    text = textwrap.dedent("".join(lines))
    kept = _lines_below_bundle(text, None if decorated_at is None else decorated_at - first + 1)
    return "\n".join(text.split("\n")[kept:]).strip(), first + kept


def _lines_below_bundle(text: str, decorated_at: Optional[int]) -> int:
    """How many lines to leave out: up to the end of the bundle decorator; 0 when there is none."""
    if not text.startswith("@"):
        return 0
    try:
        tree = ast.parse(text)
    except SyntaxError:         # a fragment of a larger expression
        return 0
    definition = tree.body[0]
    decorators: List[Any] = getattr(definition, "decorator_list", [])
    for decorator in decorators:
        if _is_bundle(decorator) or (decorated_at is not None and decorator.lineno <= decorated_at <= (decorator.end_lineno or 0)):
            return decorator.end_lineno or 0
    return 0


def _is_bundle(decorator: Any) -> bool:
    if not isinstance(decorator, ast.Call):
        return False
    called = decorator.func
    return (isinstance(called, ast.Name) and called.id == "bundle") or (isinstance(called, ast.Attribute) and called.attr == "bundle")


def signature_text(source: str) -> str:
    """From ``def`` to the end of the docstring; without one, the header up to its colon."""
    try:
        definition = next(n for n in ast.parse(textwrap.dedent(source)).body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    except (SyntaxError, StopIteration):
        return source.split("\n")[0]
    lines = textwrap.dedent(source).split("\n")
    if ast.get_docstring(definition, clean=False) is not None:
        end = definition.body[0].end_lineno or definition.lineno
        return "\n".join(lines[definition.lineno - 1:end])
    head = lines[definition.lineno - 1:definition.body[0].lineno]
    if len(head) > 1 and definition.body[0].lineno > definition.lineno:
        head = head[:-1]
    text = "\n".join(head).split("#")[0].rstrip()
    return text[:text.rindex(":") + 1] if ":" in text else text
