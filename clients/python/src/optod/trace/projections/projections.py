"""The base class."""

from __future__ import annotations

from typing import Any

__all__ = ["Projection"]


class Projection:
    """``projection(value)`` gives the value that is kept.  Applying it twice must change nothing more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, x: Any) -> Any:
        return self.project(x)

    def project(self, x: Any) -> Any:
        raise NotImplementedError("Projection.project")
