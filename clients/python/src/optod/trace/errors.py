"""What a traced program can raise."""

from __future__ import annotations

from typing import Any

__all__ = ["ExecutionError", "TraceMissingInputsError"]


class ExecutionError(Exception):
    """An operator failed.  ``exception_node`` stands for the result in the graph: call ``backward`` on it to tell the optimizer.

    str(): the Python traceback, for the developer; ``exception_node.data`` is the message, for the optimizer.
    """

    def __init__(self, exception_node: Any) -> None:
        self.exception_node = exception_node
        super().__init__(exception_node._data)   # not .data: raising must not count as reading a node

    def __str__(self) -> str:
        info = self.exception_node.info or {}
        return "\n\n" + str(info.get("traceback") or self.exception_node._data)


class TraceMissingInputsError(Exception):
    """An operator read a node that is not among its inputs; pass it as an argument, or allow_external_dependencies=True."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        return self.message
