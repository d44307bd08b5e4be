"""A first-in, first-out buffer."""

from __future__ import annotations

from typing import Any, Iterator

__all__ = ["FIFOBuffer"]


class FIFOBuffer:
    """Keeps the last ``size`` items; 0 keeps none."""

    def __init__(self, size: int) -> None:
        self.size, self.buffer = size, []  # type: ignore[var-annotated]

    def add(self, item: Any) -> None:
        if self.size > 0:
            self.buffer = [*self.buffer, item][-self.size:]

    def __iter__(self) -> Iterator:
        return iter(self.buffer)

    def __len__(self) -> int:
        return len(self.buffer)
