"""Trace sessions: record what the program did, say in words how it went, let a language model propose new values.

    k, text = session.record([node(5, base="k", kind="parameter", trainable=True), node("abc", base="text")])
    out, = session.record([node(result, base="repeat", kind="message", op="repeat", inputs={"text": text.id, "k": k.id})])
    session.backward(out.id, "too short", score=0.2)
    session.propose(candidates=2)
    session.values()                 # {"k": 7}

Definitions: Cheng et al., "Trace is the Next AutoDiff", 2024; trace.proto is the manual of every field.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Union

from optod import specs
from optod.operations import Progress
from optod.v1 import session_pb2, trace_pb2 as pb, workflow_pb2

__all__ = ["node", "Recording"]

_NODES_A_CALL = 10_000
_BYTES_A_CALL = 3 << 20     # well under what one message may hold


def node(value: Any, *, base: str = "", kind: str = "node", op: str = "", function: str = "", description: str = "",
         inputs: Union[Mapping[str, int], Iterable] = (), type: str = "", constraint: str = "", trainable: bool = False,
         level: Optional[int] = None, hidden_parameters: Sequence[int] = (), scope: str = "",
         enforce: Optional[specs.Parameter] = None) -> pb.Node:
    """One node to record.

    value: any object; its str() is the text, its JSON goes along when it has one.  kind: "node" (a constant or an input), "parameter", "message"
    (result of an operation), "exception".  inputs: {argument: id of a recorded node} or pairs; -1-i is the i-th node of the same ``record`` call.
    level: None = 0 for roots, one more than the highest parent otherwise.  enforce: constraints of a parameter that the server enforces.
    """
    pairs = inputs.items() if isinstance(inputs, Mapping) else inputs
    try:
        as_json = json.dumps(value)
    except (TypeError, ValueError):
        as_json = ""
    out = pb.Node(base=base, kind=pb.Node.Kind.Value(kind.upper()), op=op, function=function, description=description,
                  type=type or value.__class__.__name__, text=str(value), json=as_json, constraint=constraint, trainable=trainable, level=level,
                  hidden_parameters=hidden_parameters, scope=scope, inputs=[pb.NodeInput(argument=name, node=number) for name, number in pairs])
    if enforce is not None:
        out.enforce.CopyFrom(enforce.message(base))
        out.enforce.ClearField("initial")
    return out


class Recording:
    """The trace half of a Session."""

    transport: Any
    client: Any
    name: str

    def _trace(self, method: str, request: Any) -> Any:
        return self.transport.call(getattr(self.client.trace_stub, method), request)

    def record(self, nodes: Sequence[pb.Node], request_id: str = "") -> List[pb.RecordedNode]:
        """Appends nodes, in calls of at most 10,000; returns id, name and level of each, in order.

        All or none up to 10,000 nodes and 3 MiB; beyond, whole batches.  InvalidArgument names the node and the field.
        """
        out: List[pb.RecordedNode] = []
        batches = list(_batches(nodes))
        for number, batch in enumerate(batches):
            request = pb.RecordNodesRequest(session=self.name, request_id=f"{request_id}-{number}" if request_id and number else request_id)
            first = len(out)
            for item in batch:
                copied = request.nodes.add()
                copied.CopyFrom(item)
                if first:      # what lies in an earlier batch has an id by now
                    copied.hidden_parameters[:] = [_moved(n, first, out) for n in item.hidden_parameters]
                    for edge in copied.inputs:
                        edge.node = _moved(edge.node, first, out)
            out.extend(self._trace("RecordNodes", request).nodes)
        return out

    def nodes(self) -> Iterator[pb.Node]:
        """All recorded nodes in order; pages are fetched as needed."""
        request = pb.ListNodesRequest(session=self.name, page_size=1000)
        while True:
            page = self._trace("ListNodes", request)
            yield from page.nodes
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def backward(self, node: Union[int, pb.RecordedNode], feedback: str, score: Optional[float] = None,
                 request_id: str = "") -> pb.BackwardResponse:
        """Feedback on an output node (1 byte to 1 MiB); score: of the head version. Kept until the next applied proposal."""
        number = node if isinstance(node, int) else node.id
        return self._trace("Backward", pb.BackwardRequest(session=self.name, output_node=number, feedback=feedback, score=score,
                                                          request_id=request_id))

    def zero_feedback(self) -> int:
        """Drops the feedback that is pending; returns how much there was."""
        return self._trace("ZeroFeedback", pb.ZeroFeedbackRequest(session=self.name)).dropped

    def problem(self, parameters: Sequence[int] = (), mask: Sequence[str] = (), titles: Optional[Mapping[str, str]] = None) -> pb.Problem:
        """What the optimizer would show the model now: minimal subgraph as code, variables, feedback, and the two prompts.

        mask: section titles to leave empty.  titles: {default title: title to print}.
        """
        return self._trace("GetProblem", pb.GetProblemRequest(session=self.name, parameters=parameters, mask=mask, titles=titles or {}))

    def propose(self, candidates: int = 0, apply: bool = True, *, parameters: Sequence[int] = (), mask: Sequence[str] = (),
                titles: Optional[Mapping[str, str]] = None, client_model: bool = False, replies: Sequence[str] = (), timeout: float = 600.0,
                progress: Optional[Progress] = None, request_id: str = "") -> pb.ProposeResponse:
        """Asks the model for proposals (0 = the optimizer's number) and waits for them.

        apply: the chosen one becomes the head.  client_model: you ask a model of your own: ``calls`` of the response are what it must be asked; call again
        with the texts of all replies so far as ``replies`` until there are no more calls (``propose_with`` does that).  progress: called with the
        Operation about once a second.  Returns the outcome of every candidate and of every key.  FailedPrecondition: no feedback yet, or no such LLM
        endpoint.  ResourceExhausted: a budget is spent.
        """
        request = pb.ProposeRequest(session=self.name, candidates=candidates, apply=apply, parameters=parameters, mask=mask, titles=titles or {},
                                    client_model=client_model, replies=replies, request_id=request_id)
        response = self.client.operations.run(self._trace("Propose", request), pb.ProposeResponse(), timeout, progress)
        self.note_head(response.head_version)  # type: ignore[attr-defined]
        return response

    def propose_with(self, ask: Callable[[Sequence[pb.ClientCall]], Sequence[str]], candidates: int = 0, apply: bool = True,
                     **options: Any) -> pb.ProposeResponse:
        """Proposals of a model that is asked here: ``ask(calls)`` returns the reply to each call, in order.  Other arguments: as for ``propose``."""
        replies: List[str] = []
        while True:
            response = self.propose(candidates, apply, client_model=True, replies=replies, **options)
            if not response.calls:
                return response
            replies += ask(response.calls)

    def run_workflow(self, workflow: str, rows: Sequence[Any] = (), wall: float = 600.0, progress: Optional[Progress] = None,
                     request_id: str = "") -> workflow_pb2.ExecuteRunResponse:
        """Runs a declared workflow (YAML or JSON text; format: trace/workflow/workflow.h) on the server with the head's values, and waits for it.

        rows: the data set, any JSON values, in place of the text's ``data``; at most 10,000.  wall: seconds of the whole run.  What happened is recorded:
        ``output_node`` and ``feedback`` are what ``backward`` takes.  FailedPrecondition: the server's executor is not ``sandbox``, or a step needs a
        sandbox that the machine lacks.  InvalidArgument names the step and the field.
        """
        request = workflow_pb2.ExecuteRunRequest(session=self.name, text=workflow, rows=[json.dumps(row) for row in rows], wall_ms=int(wall * 1000),
                                                 request_id=request_id)
        started = self.transport.call(self.client.workflow_stub.ExecuteRun, request)
        return self.client.operations.run(started, workflow_pb2.ExecuteRunResponse(), wall + 60.0, progress)

    def values(self, version: Optional[int] = None) -> Dict[str, Any]:
        """Parameter values of a version (None = the head) as Python values."""
        number = self.refresh().head_version if version is None else version  # type: ignore[attr-defined]
        message = self.transport.call(self.client.session_stub.GetVersion, session_pb2.GetVersionRequest(name=f"{self.name}/versions/{number}"))
        return {key: specs.python_value(value) for key, value in message.values.items()}

    def set_values(self, values: Mapping[str, Any], note: str = "", keep_head: bool = False, request_id: str = "") -> session_pb2.Version:
        """Sets values by hand: a new version of kind "set" that becomes the head; keep_head: a candidate beside it."""
        request = pb.SetValuesRequest(session=self.name, note=note, keep_head=keep_head, request_id=request_id,
                                      values={key: specs.value_message(value) for key, value in values.items()})
        version = self._trace("SetValues", request)
        if not keep_head:
            self.note_head(version.number)  # type: ignore[attr-defined]
        return version

    def graph(self, subgraph: bool = False, simple: bool = False, reverse: bool = False, print_limit: int = 0) -> str:
        """Graphviz DOT of the recorded graph; subgraph: only what the current feedback reaches."""
        return self._trace("GetGraph", pb.GetGraphRequest(session=self.name, subgraph=subgraph, simple=simple, reverse=reverse,
                                                          print_limit=print_limit)).dot


def _batches(nodes: Sequence[pb.Node]) -> Iterator[List[pb.Node]]:
    batch: List[pb.Node] = []
    size = 0
    for item in nodes:
        n = item.ByteSize() + 8
        if batch and (len(batch) >= _NODES_A_CALL or size + n > _BYTES_A_CALL):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += n
    if batch or not nodes:
        yield batch


def _moved(number: int, first: int, known: Sequence[pb.RecordedNode]) -> int:
    """A reference -1-i to the whole list, as one that the batch beginning at ``first`` understands."""
    if number >= 0:
        return number
    index = -1 - number
    return known[index].id if index < first else -1 - (index - first)
