"""How feedback goes from a result to what it was made of."""

from optod.trace.propagators.propagators import AbstractFeedback, AbstractPropagator, Propagator, SumPropagator
from optod.trace.propagators.graph_propagator import GraphPropagator, TraceGraph

__all__ = ["AbstractPropagator", "AbstractFeedback", "Propagator", "SumPropagator", "GraphPropagator", "TraceGraph"]
