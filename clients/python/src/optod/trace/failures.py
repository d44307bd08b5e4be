"""Failures of operators, told twice: the Python traceback for the developer, the marked source for the optimizer."""

from __future__ import annotations

import inspect
import os
import textwrap
import traceback
from typing import Any, List, Optional, Tuple

__all__ = ["describe", "mark_line", "message_of"]

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_OPERATORS = os.path.join(_PACKAGE, "operators.py")       # its functions are what failed, the other files only called them


def _is_ours(frame: Any) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(_PACKAGE) and file != _OPERATORS


def message_of(error: BaseException) -> str:
    """``(ErrorType) detail.``; of a failed operator inside this one, its own message."""
    inner = getattr(error, "exception_node", None)
    if inner is not None:
        return str(inner._data)
    detail = error.args[0] if error.args else str(error)
    return f"({type(error).__name__}) {detail}."


def mark_line(source: str, line: int, words: str) -> str:
    """The source with ``words`` behind its line (from 1)."""
    lines = source.split("\n")
    if 1 <= line <= len(lines):
        lines[line - 1] += f" <--- {words}"
    return "\n".join(lines)


def describe(error: BaseException, code_file: Optional[str], code: Optional[str]) -> Tuple[str, str]:
    """(text for the optimizer, traceback for the developer).

    The text: the source of each frame of the failed call, outermost first, with the failing line marked, then the message again.
    code_file, code: file name under which the text of a code parameter was compiled.
    """
    message = message_of(error)
    frames = [(f, n) for f, n in traceback.walk_tb(error.__traceback__)]
    while frames and _is_ours(frames[0][0]):
        frames.pop(0)                                       # our own call of the function
    shown: List[Tuple[str, int]] = []
    for frame, line in frames:
        if _is_ours(frame):    # a failed operator inside: its own text follows
            break
        found = _source(frame, line, code_file, code)
        if found is None:
            break
        shown.append(found)
    inner = getattr(error, "exception_node", None)
    inner_text = (inner.info or {}).get("error_comment") if inner is not None else None
    parts = [mark_line(text, at, message if i == len(shown) - 1 and inner_text is None else "Error raised in function call. See below.")
             for i, (text, at) in enumerate(shown)]
    if inner_text is not None:
        return "\n\n".join(parts + [inner_text]), _developer(error)
    return "\n\n".join(parts) + f"\n{message}", _developer(error)


def _source(frame: Any, line: int, code_file: Optional[str], code: Optional[str]) -> Optional[Tuple[str, int]]:
    if code is not None and frame.f_code.co_filename == code_file:
        return code, line
    try:
        lines, first = inspect.getsourcelines(frame)
    except (OSError, TypeError):
        return None
    first = max(first, 1)
    below = _skip_decorators(lines)
    return textwrap.dedent("".join(lines[below:])).rstrip("\n"), line - first + 1 - below


def _skip_decorators(lines: List[str]) -> int:
    for i, text in enumerate(lines):
        if text.lstrip().startswith(("def ", "async def ", "class ")):
            return i
    return 0


def _developer(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))
