"""Functions on a proposed value of a parameter, applied before the update."""

from optod.trace.projections.projections import Projection
from optod.trace.projections.code_projections import BlackCodeFormatter, DocstringProjection

__all__ = ["Projection", "BlackCodeFormatter", "DocstringProjection"]
