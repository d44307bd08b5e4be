"""Traced programs: write Python on nodes, say in words how the result was, let an optimizer change the parameters.

    from optod.trace import node, bundle
    from optod.optimizers import OptoPrime

    x = node(-1.0, trainable=True)

    @bundle()
    def double(v):
        "Doubles v."
        return 2 * v

    optimizer = OptoPrime([x])
    y = double(x) + 1
    optimizer.zero_feedback()
    optimizer.backward(y, "too small")
    optimizer.step()

Names and behaviour are those of the package ``opto.trace`` (see optod.compat).  Definitions: Cheng et al., "Trace is the Next AutoDiff", 2024.
"""

from optod.trace.naming import GRAPH, stop_tracing
from optod.trace.nodes import ExceptionNode, MessageNode, Node, ParameterNode, node
from optod.trace.containers import NodeContainer, ParameterContainer
from optod.trace.containers import Map, Seq
from optod.trace.broadcast import apply_op
from optod.trace.modules import Model, Module, model
from optod.trace.bundle import ExecutionError, TraceMissingInputsError, bundle
import optod.trace.operators as operators
import optod.trace.iterators as iterators
import optod.trace.propagators as propagators
import optod.trace.projections as projections
import optod.trace.utils as utils

__all__ = ["node", "stop_tracing", "GRAPH", "Node", "ParameterNode", "MessageNode", "ExceptionNode", "bundle", "ExecutionError",
           "TraceMissingInputsError", "Module", "Model", "model", "NodeContainer", "ParameterContainer", "Seq", "Map", "apply_op", "operators",
           "iterators", "propagators", "projections", "utils"]
