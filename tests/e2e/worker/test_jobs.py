"""The life of a training job through a real server and a real worker: submit, watch, cancel, resume, wait for others."""
import json

import pytest
from live_jobs import LONG
from worker_binary import needs_worker

pytestmark = needs_worker


def test_a_job_from_submit_to_result(jobs):
    name = jobs.submit()
    watched = [json.loads(line) for line in jobs.run("job", "watch", name).stdout.splitlines()]
    assert watched[-1]["job"]["state"] == "SUCCEEDED"
    assert [w.get("step") for w in watched if "loss" in w.get("metrics", {})][-1] == "20"
    assert jobs.result(name)["steps"] == 20
    assert jobs.run("job", "logs", name).stdout
    assert any(job["name"] == name for job in json.loads(jobs.run("job", "list").stdout)["jobs"])


def test_paths_of_a_job_file_come_from_the_environment(jobs, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({**jobs.spec(steps=2), "model": "${TINY}/m"}))
    done = jobs.run("job", "submit", path, check=False)
    assert done.returncode == 2 and "model: TINY is not set" in done.stderr
    assert jobs.result(json.loads(jobs.run("job", "submit", path, TINY=str(jobs.folder)).stdout)["name"])["steps"] == 2


@pytest.mark.parametrize("changes, message", [
    ({"steps": 0}, "steps: 0 must be >= 1"),
    ({"optimizer": {"name": "zo-sdg"}}, 'did you mean "zo-sgd"'),
    ({"stpes": 3}, 'unknown field "stpes"'),
    ({"model": "m"}, "relative"),
])
def test_a_bad_job_is_refused_at_once(shared_jobs, changes, message):
    done = shared_jobs.submit(check=False, **changes)
    assert done.returncode == 4 and message in done.stderr + done.stdout


def test_cancel_and_resume(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    jobs.run("job", "cancel", name)
    job = jobs.wait(name, "CANCELLED")
    assert int(job["step"]) < 3000
    jobs.run("job", "resume", name)
    assert jobs.result(name)["parameters_sha256"] == undisturbed[0]["parameters_sha256"]
    assert jobs.losses(name) == undisturbed[1]


def test_jobs_wait_for_their_turn_and_a_queued_one_can_be_cancelled(jobs):
    first, second = jobs.submit(**LONG), jobs.submit()
    jobs.wait_step(first, 10)
    assert jobs.show(second)["state"] == "QUEUED"
    jobs.run("job", "cancel", second)
    assert jobs.show(second)["state"] == "CANCELLED"
    jobs.run("job", "cancel", first)
    jobs.wait(first, "CANCELLED")


def test_sessions_go_on_beside_a_job(jobs):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 10)
    assert jobs.run("optimizers").returncode == 0
    jobs.run("job", "cancel", name)
