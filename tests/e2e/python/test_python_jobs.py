"""Training jobs from Python: submit, follow, wait, cancel, resume, and what they fail with."""

import pathlib
import sys

import optod
import pytest
from live_server import BINARY
from optod.jobs import JobFailed, result_of, state_of

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "worker"))
import tiny_model  # noqa: E402

pytestmark = pytest.mark.skipif(not (BINARY.parent / "optod-worker").exists(), reason="optod-worker is not built (no LibTorch)")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.write(folder)
    task = {"columns": ["x", "label"], "prompt": "{x}", "options": {"0": "y", "1": "z"}, "train": str(folder / "t.tsv"), "dev": str(folder / "t.tsv")}
    return {"kind": "finetune", "model": str(folder / "m"), "steps": 20, "batch": 4, "log_every": 1, "threads": 1, "task": task,
            "optimizer": {"name": "zo-sgd", "lr": 1e-3}}


def test_submit_wait_and_look(client, spec):
    job = client.jobs.submit(spec, id="first", request_id="once")
    assert client.jobs.submit(spec, id="first", request_id="once").name == job.name
    seen = []
    done = client.jobs.wait(job.name, timeout=240, progress=lambda state: seen.append(state_of(state)))
    assert state_of(done) == "SUCCEEDED" == seen[-1] and result_of(done)["steps"] == 20
    events = list(client.jobs.events(job.name))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.step for event in events if "loss" in event.metrics] == list(range(1, 21))
    assert list(client.jobs.events(job.name, after=len(events) - 1))[0].sequence == len(events)
    assert b"zo-sgd" in b"".join(client.jobs.logs(job.name))
    assert job.name in [one.name for one in client.jobs.list()]
    with pytest.raises(optod.errors.FailedPrecondition):
        client.jobs.resume(job.name)


def test_cancel_and_resume(client, spec):
    job = client.jobs.submit({**spec, "steps": 2000, "log_every": 10})
    for event in client.jobs.events(job.name):
        if event.step >= 50:
            break
    client.jobs.cancel(job.name)
    with pytest.raises(JobFailed, match="CANCELLED: cancelled"):
        client.jobs.wait(job.name, timeout=240)
    client.jobs.resume(job.name)
    with pytest.raises(optod.errors.DeadlineExceeded, match="of 2000"):
        client.jobs.wait(job.name, timeout=0)
    assert client.jobs.wait(job.name, timeout=240).attempt == 2


def test_what_is_refused_and_what_fails(client, spec):
    with pytest.raises(optod.errors.InvalidArgument, match="steps: 0 must be >= 1"):
        client.jobs.submit({**spec, "steps": 0})
    with pytest.raises(optod.errors.NotFound):
        client.jobs.get("absent")
    with pytest.raises(JobFailed, match='column "y" is missing') as failed:
        client.jobs.wait(client.jobs.submit({**spec, "task": {**spec["task"], "prompt": "{y}"}}).name, timeout=240)
    assert state_of(failed.value.job) == "FAILED"
