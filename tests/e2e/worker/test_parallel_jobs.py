"""Jobs of several worker processes between which only scalars travel: the bits of the same run inside one process, whoever is killed meanwhile; the values
of one worker up to the rounding of float32 sums (losses of 20 steps: relative 1e-4)."""
import json
import os
import shutil
import signal

import pytest
from live_jobs import Jobs, LiveServer, run_undisturbed
from worker_binary import needs_worker, run_worker

pytestmark = needs_worker

EXAMPLES = {"parallel": {"workers": 2, "share": "examples"}}
LONG = {**EXAMPLES, "steps": 1500, "log_every": 10, "checkpoint_every": 10}
CASES = {
    "examples_2": EXAMPLES,
    "examples_4": {"parallel": {"workers": 4, "share": "examples"}},
    "examples_lora_adam": {**EXAMPLES, "scheme": {"name": "lora", "rank": 2}, "optimizer": {"name": "zo-adam", "lr": 1e-3}},
    "examples_sparse": {**EXAMPLES, "sparse": {"ratio": 0.3, "source": "magnitude", "resample": 5}},
    "queries_3": {"parallel": {"workers": 3, "share": "queries"}},
    "queries_momentum": {"parallel": {"workers": 2, "share": "queries"}, "optimizer": {"name": "zo-sgd-mmt", "lr": 1e-4}},
}


def by_step(lines):
    """{step: loss} of what `optod-worker train` prints."""
    events = [json.loads(line) for line in lines if '"loss"' in line]
    return {event["step"]: event["loss"] for event in events}


def alone(changes):
    """The same job for one worker: all examples, or all directions."""
    parallel, optimizer = changes["parallel"], changes.get("optimizer", {"name": "zo-sgd", "lr": 1e-3})
    more = {"queries": parallel["workers"]} if parallel["share"] == "queries" else {}
    return {**{key: value for key, value in changes.items() if key != "parallel"}, "optimizer": {**optimizer, **more}}


@pytest.mark.parametrize("case", CASES)
def test_processes_give_the_bits_of_threads_and_the_values_of_one_worker(shared_jobs, tmp_path, case):
    changes = CASES[case]
    name = shared_jobs.submit(**changes)
    result, losses = shared_jobs.result(name), shared_jobs.losses(name)
    assert len(losses) == 20
    (tmp_path / "spec.json").write_text(json.dumps(shared_jobs.spec(**changes)))
    done = run_worker("train", "--spec", tmp_path / "spec.json", "--folder", tmp_path / "threads").stdout.splitlines()
    assert by_step(done) == losses
    assert json.loads(done[-1])["parameters_sha256"] == result["parameters_sha256"]
    if changes["parallel"]["share"] == "examples":  # with queries, the loss told is a mean over directions
        one = shared_jobs.submit(**alone(changes))
        shared_jobs.result(one)
        assert shared_jobs.losses(one) == pytest.approx(losses, rel=1e-4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, folder):
    """(result, losses by step) of LONG when nobody disturbs it."""
    return run_undisturbed(tmp_path_factory.mktemp("plain") / "data", folder, LONG)


def assert_as_undisturbed(jobs, name, undisturbed):
    assert jobs.result(name)["parameters_sha256"] == undisturbed[0]["parameters_sha256"]
    losses = jobs.losses(name)
    assert losses.items() <= undisturbed[1].items() and max(losses) == LONG["steps"]


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_one_rank(jobs, undisturbed, rank):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    before = jobs.worker_pids(name)
    assert sorted(before) == [0, 1]
    os.kill(before[rank], signal.SIGKILL)
    assert_as_undisturbed(jobs, name, undisturbed)
    assert jobs.show(name)["attempt"] == 2
    assert not set(before.values()) & set(jobs.worker_pids(name).values())


def test_kill_9_of_the_server(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    jobs.server.kill()
    jobs.server.start()
    assert_as_undisturbed(jobs, name, undisturbed)


def test_a_rank_that_hangs_loses_the_lease_of_all(tmp_path, folder, undisturbed):
    server = LiveServer(tmp_path / "data", args=["--worker-lease", "5s"]).start()
    jobs = Jobs(server, folder)
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    os.kill(jobs.worker_pid(name, rank=1), signal.SIGSTOP)
    assert_as_undisturbed(jobs, name, undisturbed)
    assert jobs.show(name)["attempt"] == 2
    assert server.stop() == 0


def test_a_rank_that_lost_its_log_gets_it_from_the_others(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    jobs.run("job", "cancel", name)
    jobs.wait(name, "CANCELLED")
    shutil.rmtree(jobs.work(name) / "attempt-1")  # of rank 0
    jobs.run("job", "resume", name)
    assert_as_undisturbed(jobs, name, undisturbed)


@pytest.mark.parametrize("changes, message", [
    ({"optimizer": {"name": "adamw", "lr": 1e-3}}, 'parallel: needs a zeroth-order optimizer, whose workers exchange scalars; "adamw"'),
    ({"parallel": {"workers": 16}, "batch": 16}, "parallel.workers: 16 is over the 8 processes that a job of this server may have"),
    ({"batch": 5}, "parallel.workers: 2 does not divide batch 5"),
    ({"optimizer": {"name": "zo-sgd-cons", "lr": 1e-3}}, "parallel: needs two-sided estimates"),
])
def test_what_several_workers_cannot_do_is_refused_at_once(shared_jobs, changes, message):
    done = shared_jobs.submit(check=False, **{**EXAMPLES, **changes})
    assert done.returncode == 4 and message in done.stderr + done.stdout
