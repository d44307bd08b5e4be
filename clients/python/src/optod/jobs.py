"""Training jobs: fine-tuning that runs beside the server in a worker process of its own."""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Dict, Iterator, Mapping, Optional

from optod import errors
from optod.transport import translated
from optod.v1 import job_pb2, job_pb2_grpc

__all__ = ["Jobs", "JobFailed", "state_of", "result_of"]

ENDED = (job_pb2.Job.SUCCEEDED, job_pb2.Job.FAILED, job_pb2.Job.CANCELLED, job_pb2.Job.LOST)


class JobFailed(errors.OptodError):
    """The job ended otherwise than SUCCEEDED; the text is its reason. ``job``: its last state."""

    code = "ABORTED"

    def __init__(self, job: job_pb2.Job) -> None:
        super().__init__(f"{job.name} is {state_of(job)}: {job.reason}")
        self.job = job


def state_of(job: job_pb2.Job) -> str:
    """"QUEUED", "RUNNING", "SUCCEEDED", ..."""
    return job_pb2.Job.State.Name(job.state)


def result_of(job: job_pb2.Job) -> Dict[str, Any]:
    """Of a job that SUCCEEDED: first_score, best_score, best_step, test_score, seconds_per_step, peak_rss_bytes, parameters_sha256, ..."""
    return json.loads(job.result_json)


class Jobs:
    """``client.jobs``.  Names: users/U/jobs/J, jobs/J or J (the caller's own).  Thread-safe."""

    def __init__(self, client: Any) -> None:
        self._transport = client.transport
        self._stub = job_pb2_grpc.JobServiceStub(client.transport.channel)

    def submit(self, spec: Mapping[str, Any], id: str = "", request_id: str = "") -> job_pb2.Job:
        """Checks the spec and queues it.  spec: the job file as a mapping (kind, model, task, scheme, optimizer, steps, ...); paths are absolute
        and of the server's machine.  request_id: a second submit with the same one and the same spec gets the first job.

        InvalidArgument: the field and what is wrong with it.  Unimplemented (reason NO_WORKER): this server runs no jobs.
        """
        request = job_pb2.CreateJobRequest(job_id=id, request_id=request_id)
        request.job.kind, request.job.spec_json = str(spec.get("kind", "")), json.dumps(spec)
        return self._transport.call(self._stub.CreateJob, request)

    def get(self, name: str) -> job_pb2.Job:
        """Its state now. NotFound."""
        return self._transport.call(self._stub.GetJob, job_pb2.GetJobRequest(name=name))

    def list(self, parent: str = "") -> Iterator[job_pb2.Job]:
        """Newest first; pages are fetched as needed."""
        request = job_pb2.ListJobsRequest(parent=parent)
        while True:
            page = self._transport.call(self._stub.ListJobs, request)
            yield from page.jobs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(self, name: str) -> job_pb2.Job:
        """Asks it to stop: it ends within 2 s or a step, and can be resumed."""
        return self._transport.call(self._stub.CancelJob, job_pb2.CancelJobRequest(name=name))

    def resume(self, name: str) -> job_pb2.Job:
        """A new attempt of a job that failed or was cancelled, from its last checkpoint. FailedPrecondition: it has succeeded."""
        return self._transport.call(self._stub.ResumeJob, job_pb2.ResumeJobRequest(name=name))

    def events(self, name: str, after: int = 0) -> Iterator[job_pb2.JobEvent]:
        """Events after a sequence number, then new ones as they come, until the job has ended. A server that went away is asked again after the
        last event delivered: none is lost, none is doubled."""
        while True:
            request = job_pb2.WatchJobRequest(name=name, after_sequence=after)
            try:
                for event in translated(self._transport.stream(self._stub.WatchJob, request)):
                    after = event.sequence
                    yield event
                return
            except errors.Unavailable:
                self.get(name)      # waits for the server, with the usual retries; raises when it stays away

    def logs(self, name: str, after: int = 0) -> Iterator[bytes]:
        """The workers' output from byte ``after`` on, until the job has ended."""
        for chunk in translated(self._transport.stream(self._stub.TailLogs, job_pb2.TailLogsRequest(name=name, after_offset=after))):
            yield chunk.data

    def wait(self, name: str, timeout: Optional[float] = None, progress: Optional[Callable[[job_pb2.Job], None]] = None,
             poll: float = 0.2) -> job_pb2.Job:
        """Waits until it has SUCCEEDED; ``progress`` gets every state seen.  timeout, poll: seconds; None = no limit.

        JobFailed: it ended otherwise.  DeadlineExceeded: it goes on.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            job = self.get(name)
            if progress is not None:
                progress(job)
            if job.state == job_pb2.Job.SUCCEEDED:
                return job
            if job.state in ENDED:
                raise JobFailed(job)
            if end is not None and time.monotonic() > end:
                raise errors.DeadlineExceeded(f"{job.name} is {state_of(job)} after {timeout:g} s, step {job.step} of {job.total_steps}")
            time.sleep(poll)
