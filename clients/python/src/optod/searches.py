"""Searches over the versions of a trace session: the server decides what to evaluate and what to improve (search.proto is the manual of every field).

    search = session.search("beam", workflow=open("classify.yaml").read(), rows=train + held_out, validation_tasks=len(held_out), target=0.9)
    done = search.wait(progress=print)             # the server evaluates the workflow itself (started with --executor sandbox)
    done.best_version, done.best_score             # and the session's head is that version

    search = session.search("ucb", tasks=20)       # without a workflow this program evaluates
    for work in search.evaluations():
        search.tell(work, score(work.task, optod.searches.values_of(work)), "what happened, in words")
"""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from optod import errors, specs
from optod.v1 import search_pb2 as pb

__all__ = ["Search", "Searches", "values_of"]

_OPEN = (pb.Search.EVALUATING, pb.Search.PROPOSING)


def values_of(evaluation: pb.SearchEvaluation) -> Dict[str, Any]:
    """The parameters to evaluate as Python values."""
    return {key: specs.python_value(value) for key, value in evaluation.values.items()}


class Search:
    """One search.  info: the server's last word on it (state, reason, step, best_version, best_score, usage, spec)."""

    def __init__(self, client: Any, info: pb.Search) -> None:
        self._client, self.info = client, info

    @property
    def name(self) -> str:
        """users/U/sessions/S/searches/N"""
        return self.info.name

    def refresh(self) -> pb.Search:
        """With all candidates: versions, parents, scores by task."""
        self.info = self._call("GetSearch", pb.GetSearchRequest(name=self.name))
        return self.info

    def stop(self) -> pb.Search:
        """Ends it; its best version stays."""
        self.info = self._call("StopSearch", pb.StopSearchRequest(name=self.name))
        return self.info

    def resume(self) -> pb.Search:
        """Lets a paused search go on."""
        return self._ask(1, 0.0, "", 1e-9).search

    def wait(self, timeout: float = 3600.0, progress: Optional[Callable[[pb.Search], Any]] = None, poll: float = 0.3) -> pb.Search:
        """Waits until it has ended; ``progress`` gets every state that differs from the last one.

        FailedPrecondition: it pauses (the message is the reason; ``resume`` lets it go on).  DeadlineExceeded after ``timeout`` seconds; it goes on.
        """
        end, last = time.monotonic() + timeout, b""
        while True:
            now = self.refresh()
            seen = (now.state, now.step, now.evaluations, now.best_score)
            if progress is not None and repr(seen).encode() != last:
                progress(now)
            last = repr(seen).encode()
            if now.state == pb.Search.PAUSED:
                raise errors.FailedPrecondition(f"search {self.name} pauses: {now.reason}")
            if now.state not in _OPEN:
                return now
            if time.monotonic() > end:
                raise errors.DeadlineExceeded(f"search {self.name} has not ended after {timeout:g} s")
            time.sleep(poll)

    # ---- searches that this program evaluates

    def evaluations(self, count: int = 1, worker: str = "", lease: float = 60.0, wait: float = 20.0) -> Iterator[pb.SearchEvaluation]:
        """What to evaluate, until the search has ended; tell each back.  lease: seconds for which an evaluation is this worker's alone."""
        while True:
            answer = self._ask(count, wait, worker, lease)
            if answer.search.state == pb.Search.PAUSED:
                raise errors.FailedPrecondition(f"search {self.name} pauses: {answer.search.reason}")
            if answer.search.state not in _OPEN:
                return
            yield from answer.evaluations

    def tell(self, evaluation: pb.SearchEvaluation, score: float, feedback: str = "", output_node: Optional[int] = None) -> bool:
        """What came of it; output_node: the recorded node that the feedback judges.  False: it was told before."""
        request = pb.TellSearchRequest(name=self.name, evaluation_id=evaluation.evaluation_id, score=score, feedback=feedback, output_node=output_node)
        answer = self._call("TellSearch", request)
        self.info = answer.search
        return answer.counted

    def _ask(self, count: int, wait: float, worker: str, lease: float) -> pb.AskSearchResponse:
        request = pb.AskSearchRequest(name=self.name, count=count, worker=worker, lease=specs.seconds(lease), wait=specs.seconds(wait))
        answer = self._client.transport.call(self._client.search_stub.AskSearch, request, timeout=wait + 30.0)
        self.info = answer.search
        return answer

    def _call(self, method: str, request: Any) -> Any:
        return self._client.transport.call(getattr(self._client.search_stub, method), request)


class Searches:
    """The search half of a Session."""

    client: Any
    name: str

    def search(self, algorithm: str, *, workflow: str = "", rows: Sequence[Any] = (), wall: float = 0.0, parallel: int = 0, priority: str = "",
               request_id: str = "", **spec: Any) -> Search:
        """Starts a search: "minibatch", "beam", "ucb", "priority" or "pareto".

        workflow: YAML or JSON of a declared workflow with a guide, which the server evaluates; rows: its tasks, any JSON values, training tasks first;
        wall: seconds of one evaluation (0 = 600); parallel: evaluations at once (0 = 4).  spec: the fields of SearchSpec: tasks, validation_tasks, batch,
        candidates, proposals, memory, ensure_improvement, exploration, min_score, max_score, seed, data_set, max_steps, max_evaluations, target, keep_head.
        """
        message = pb.SearchSpec(algorithm=specs.enum_number(pb.SearchSpec.Algorithm, algorithm, "algorithm"), **spec)
        if priority:
            message.priority = specs.enum_number(pb.SearchSpec.Priority, priority, "priority")
        if workflow:
            message.workflow.CopyFrom(pb.SearchWorkflow(text=workflow, rows=[json.dumps(row) for row in rows], wall_ms=int(wall * 1000), parallel=parallel))
        elif len(rows):
            raise ValueError("rows: only together with workflow")
        request = pb.CreateSearchRequest(session=self.name, spec=message, request_id=request_id)
        return Search(self.client, self.client.transport.call(self.client.search_stub.CreateSearch, request))

    def searches(self) -> List[Search]:
        """All searches of the session, oldest first."""
        answer = self.client.transport.call(self.client.search_stub.ListSearches, pb.ListSearchesRequest(session=self.name))
        return [Search(self.client, info) for info in answer.searches]
