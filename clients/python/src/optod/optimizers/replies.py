"""Reading replies here, for programs that do so themselves (the server reads those of the optimizers)."""

from __future__ import annotations

import ast
import json
import re
from typing import Any, Dict, List, Mapping, Optional

__all__ = ["balanced_objects", "find_key", "cast_like"]

_INDEX = re.compile(r":(?=\d+$)")
_DECODER = json.JSONDecoder(strict=False)


def balanced_objects(text: str) -> List[Dict[str, Any]]:
    """All JSON objects of a text, outermost ones, in order; whatever stands around them does not matter."""
    try:                                    # the usual case
        value = json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        return [{k.strip(): v for k, v in value.items()}] if isinstance(value, dict) else []
    found: List[Dict[str, Any]] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            at = text.find("{", at + 1)
            continue
        if isinstance(value, dict):
            found.append({k.strip(): v for k, v in value.items()})
        at = text.find("{", end)
    return found


def find_key(py_name: str, suggestion: Mapping[str, Any]) -> Optional[str]:
    """The key that means this parameter: ``x0``, or ``x:0``; None when there is none."""
    if py_name in suggestion:
        return py_name
    return next((k for k in suggestion if _INDEX.sub("", k) == py_name), None)


def cast_like(value: Any, like: Any) -> Any:
    """``value`` as the type of ``like`` (None: as it is).  ValueError or TypeError when it is no value of that type.

    A text is read as a Python literal first; "False" is false; text never becomes a list of its characters.
    """
    if like is None or type(value) is type(like):
        return value
    kind = type(like)
    if isinstance(value, str) and kind is not str:
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            if value.strip().lower() in ("true", "false") and kind is bool:
                return value.strip().lower() == "true"
        if type(value) is kind:
            return value
    if value is None:
        raise ValueError(f"None is no {kind.__name__}")
    if isinstance(value, str) and issubclass(kind, (list, tuple, set, dict)):
        raise ValueError(f"a text is no {kind.__name__}")
    if kind is bool:
        if value in (0, 1):
            return bool(value)
        raise ValueError(f"{value!r} is no bool")
    if kind is str and not isinstance(value, str):
        return value if isinstance(value, str) else str(value)
    return kind(value)
