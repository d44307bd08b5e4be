"""Training jobs through a real server and real workers: submit, watch, cancel, resume, and everything that can end a worker."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tiny_model
from worker_binary import BIN, needs_worker

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
from live_server import LiveServer  # noqa: E402

pytestmark = needs_worker
DEADLINE = 120.0  # of a wait; nothing is asserted about time


class Jobs:
    """optoctl on one server."""

    def __init__(self, server, folder):
        self.server, self.folder, self.files = server, folder, 0

    def run(self, *args, check=True):
        done = subprocess.run([str(BIN / "optoctl"), "--json", *map(str, args)], capture_output=True, text=True, timeout=300,
                              env={**os.environ, "OPTOD_ADDRESS": self.server.address})
        if check and done.returncode != 0:
            raise AssertionError(f"optoctl {args}: {done.stderr}")
        return done

    def submit(self, check=True, **changes):
        spec = {"kind": "finetune", "model": str(self.folder / "m"), "steps": 20, "batch": 4, "checkpoint_every": 1, "log_every": 1, "threads": 1, "seed": 1,
                "task": {"columns": ["x", "label"], "prompt": "{x}", "options": {"0": "y", "1": "z"}, "train": str(self.folder / "t.tsv"),
                         "dev": str(self.folder / "t.tsv")},
                "optimizer": {"name": "zo-sgd", "lr": 1e-3}, **changes}
        self.files += 1
        path = self.folder / f"job{self.files}.yaml"
        path.write_text(json.dumps(spec))  # JSON is YAML
        done = self.run("job", "submit", path, check=check)
        return json.loads(done.stdout)["name"] if check else done

    def show(self, name):
        return json.loads(self.run("job", "show", name, check=False).stdout)

    def wait(self, name, *states):
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            job = self.show(name)
            if job["state"] in states:
                return job
            time.sleep(0.1)
        raise AssertionError(f"{name} is {job}, not {states}")

    def wait_step(self, name, step):
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            job = self.show(name)
            assert job["state"] in ("QUEUED", "SCHEDULED", "RUNNING"), job
            if int(job.get("step", 0)) >= step:
                return job
            time.sleep(0.05)
        raise AssertionError(f"{name} never came to step {step}")

    def result(self, name):
        return json.loads(self.wait(name, "SUCCEEDED")["result_json"])

    def worker_pid(self, name):
        """The process that works on the job."""
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"attach" in words and name.encode() in words:
                    return int(entry.name)
        raise AssertionError(f"no worker for {name}")


LONG = {"steps": 3000, "log_every": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model.write(path)
    return path


@pytest.fixture
def jobs(tmp_path, folder):
    server = LiveServer(tmp_path / "data").start()
    yield Jobs(server, folder)
    assert server.stop() == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, folder):
    """The result of LONG when nobody disturbs it."""
    server = LiveServer(tmp_path_factory.mktemp("plain") / "data").start()
    one = Jobs(server, folder)
    result = one.result(one.submit(**LONG))
    server.stop()
    return result


def test_a_job_from_submit_to_result(jobs):
    name = jobs.submit()
    watched = [json.loads(line) for line in jobs.run("job", "watch", name).stdout.splitlines()]
    assert watched[-1]["job"]["state"] == "SUCCEEDED"
    assert [w.get("step") for w in watched if "loss" in w.get("metrics", {})][-1] == "20"
    assert jobs.result(name)["steps"] == 20
    assert "zo-sgd" in json.dumps(jobs.run("job", "logs", name).stdout) or jobs.run("job", "logs", name).stdout
    assert any(job["name"] == name for job in json.loads(jobs.run("job", "list").stdout)["jobs"])


@pytest.mark.parametrize("changes, message", [
    ({"steps": 0}, "steps: 0 must be >= 1"),
    ({"optimizer": {"name": "zo-sdg"}}, 'did you mean "zo-sgd"'),
    ({"stpes": 3}, 'unknown field "stpes"'),
    ({"model": "m"}, "relative"),
])
def test_a_bad_job_is_refused_at_once(jobs, changes, message):
    done = jobs.submit(check=False, **changes)
    assert done.returncode == 4 and message in done.stderr + done.stdout


@pytest.mark.parametrize("spoil, reason", [
    (lambda m: (m / "config.json").write_text('{"model_type": "t5"}'), '"t5" is not one of'),
    (lambda m: (m / "config.json").unlink(), "config.json"),
    (lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-4]), "truncated"),
    (lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 64), "header length"),
    (lambda m: (m / "tokenizer.json").unlink(), "tokenizer: none of"),
])
def test_a_bad_model_fails_with_its_reason(jobs, tmp_path, spoil, reason):
    tiny_model.write(tmp_path / "bad")
    spoil(tmp_path / "bad" / "m")
    job = jobs.wait(jobs.submit(model=str(tmp_path / "bad" / "m")), "FAILED")
    assert reason in job["reason"], job
    assert jobs.run("job", "show", job["name"], check=False).returncode == 5


def test_nan_weights(jobs, tmp_path):
    tiny_model.write(tmp_path / "bad", nan=True)
    assert "is NaN" in jobs.wait(jobs.submit(model=str(tmp_path / "bad" / "m")), "FAILED")["reason"]


def test_kill_9_of_a_worker_changes_nothing_in_the_result(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    os.kill(jobs.worker_pid(name), signal.SIGKILL)
    assert jobs.result(name)["parameters_sha256"] == undisturbed["parameters_sha256"]
    assert jobs.show(name)["attempt"] == 2


def test_kill_9_of_the_server_changes_nothing_in_the_result(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    jobs.server.kill()
    jobs.server.start()
    assert jobs.result(name)["parameters_sha256"] == undisturbed["parameters_sha256"]
    assert jobs.show(name)["attempt"] >= 2


def test_a_server_that_ends_hands_its_jobs_to_the_next(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    assert jobs.server.stop() == 0
    jobs.server.start()
    assert jobs.result(name)["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_cancel_and_resume(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    jobs.run("job", "cancel", name)
    job = jobs.wait(name, "CANCELLED")
    assert int(job["step"]) < 3000
    jobs.run("job", "resume", name)
    assert jobs.result(name)["parameters_sha256"] == undisturbed["parameters_sha256"]


def test_jobs_wait_for_their_turn_and_a_queued_one_can_be_cancelled(jobs):
    first, second = jobs.submit(**LONG), jobs.submit()
    jobs.wait_step(first, 10)
    assert jobs.show(second)["state"] == "QUEUED"
    jobs.run("job", "cancel", second)
    assert jobs.show(second)["state"] == "CANCELLED"
    jobs.run("job", "cancel", first)
    jobs.wait(first, "CANCELLED")


def test_out_of_memory_is_the_jobs_problem(jobs):
    job = jobs.wait(jobs.submit(limits={"memory": "24MiB"}), "FAILED")
    assert job["reason"]
    assert jobs.result(jobs.submit())["steps"] == 20  # the server is as before


def test_sessions_go_on_beside_a_job(jobs):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 10)
    assert jobs.run("optimizers").returncode == 0
    jobs.run("job", "cancel", name)
