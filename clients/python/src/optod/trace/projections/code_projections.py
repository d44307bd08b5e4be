"""Projections of source text."""

from __future__ import annotations

from typing import Any

from optod.trace.projections.projections import Projection

__all__ = ["BlackCodeFormatter", "DocstringProjection"]


class BlackCodeFormatter(Projection):
    """Formats Python source with ``black``; without that package, and for text that is no Python, the value stays."""

    def project(self, x: Any) -> Any:
        if not isinstance(x, str) or "def" not in x:
            return x
        try:
            import black
        except ImportError:
            return x
        try:
            return black.format_str(x, mode=black.FileMode())
        except black.InvalidInput:
            return x


class DocstringProjection(Projection):
    """Puts ``docstring`` back as the first triple-quoted text of the source."""

    def __init__(self, docstring: str) -> None:
        self.docstring = docstring

    def project(self, x: Any) -> Any:
        parts = x.split('"""', 2) if isinstance(x, str) else []
        if len(parts) < 2:
            return x
        return f'{parts[0]}"""{self.docstring}"""' + (parts[2] if len(parts) > 2 else "")
