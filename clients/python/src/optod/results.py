"""What a tell answers, as a plain value."""

from __future__ import annotations

import dataclasses
from typing import Dict, Optional

import numpy as np

from optod import tensors
from optod.v1 import session_pb2

__all__ = ["TellResult", "tell_result"]


@dataclasses.dataclass(frozen=True)
class TellResult:
    """head_version: the head after it.  seq: updates applied so far.  durable_version: highest version that survives a crash.  updated: a new
    version was made.  skipped: the observation held NaN or Inf, parameters unchanged.  pending: zeroth order, probes of the step still without
    a result.  values: the new parameters, writable, when asked for.  figures: what the rule reports ("grad_norm", ...).
    queue_us, compute_us, commit_us: where the time went, microseconds."""

    head_version: int
    seq: int
    durable_version: int
    updated: bool
    skipped: bool
    pending: int
    projected_gradient: float
    lr: float
    figures: Dict[str, float]
    queue_us: int
    compute_us: int
    commit_us: int
    values: Optional[Dict[str, np.ndarray]] = None


def tell_result(message: session_pb2.TellResponse, values: Optional[Dict[str, np.ndarray]] = None) -> TellResult:
    if values is None and message.values:
        values = {value.spec.name: tensors.array(value) for value in message.values}
    return TellResult(message.head_version, message.seq, message.durable_version, message.updated, message.skipped, message.pending,
                      message.projected_gradient, message.lr, dict(message.figures), message.timings.queue_us, message.timings.compute_us,
                      message.timings.commit_us, values)
