"""The methods that the Trace studies compare, and what one step of any of them is: feedback, a proposal, what it cost."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Dict, Mapping

from optod.recording import Recording
from optod.v1 import trace_pb2

__all__ = ["Method", "METHODS", "seed_of", "Outcomes", "usage_of"]

# What is left of the problem when the trace is masked: the variables, the outputs, the feedback.
_MASK = "Code, Documentation, Inputs, Others"


@dataclasses.dataclass(frozen=True)
class Method:
    """label: as the tables print it.  optimizer, hyper: of the session."""

    label: str
    optimizer: str
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)


METHODS = {method.label: method for method in (
    Method("optoprime", "optoprime"),
    Method("optoprime-masked", "optoprime", {"mask": _MASK}),
    Method("optoprime-brief", "optoprime", {"prompt": "brief"}),
    Method("opro", "opro"),
    Method("textgrad", "textgrad"),
)}


def seed_of(*parts: Any) -> int:
    """A seed of its own for every run: no two runs send an equal request, so a cassette gives each its own replies, whatever runs beside."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:3], "big")


@dataclasses.dataclass
class Outcomes:
    """What became of the proposals of a run: counts of APPLIED, UNCHANGED, UNPARSABLE, EMPTY, FAILED, STOP."""

    counts: Dict[str, int] = dataclasses.field(default_factory=dict)

    def step(self, session: Recording, output: int, feedback: str) -> None:
        """One step of the optimizer on an output node: afterwards the session's head is what it proposed, or what it was when the reply was unusable."""
        session.zero_feedback()
        session.backward(output, feedback)
        response = session.propose(1, timeout=7200.0)
        kind = trace_pb2.ReplyKind.Name(response.candidates[0].kind).removeprefix("REPLY_") if response.candidates else "EMPTY"
        self.counts[kind] = self.counts.get(kind, 0) + 1


def usage_of(session: Any) -> Dict[str, Any]:
    usage = session.refresh().info.usage
    return {"calls": usage.llm_calls, "prompt_tokens": usage.llm_prompt_tokens, "completion_tokens": usage.llm_completion_tokens, "usd": usage.llm_usd}
