"""Jobs whose parameters are on disk, on a real server: losses and parameters of the same job in memory, bit for bit, whoever is killed meanwhile."""
import os
import signal

import pytest
from worker_binary import needs_worker

pytestmark = needs_worker

ZO = {"name": "zo-sgd", "lr": 1e-3}
CASES = {
    "full": {},
    "momentum_lazy": {"optimizer": {"name": "zo-sgd-mmt", "lr": 1e-4}, "tier": {"write_every": 7}},
    "adam": {"optimizer": {"name": "zo-adam", "lr": 1e-3}},
    "conservative": {"optimizer": {"name": "zo-sgd-cons", "lr": 1e-2}},
    "forward_grad": {"optimizer": {"name": "forward-grad", "lr": 1e-4}},
    "three_queries": {"optimizer": {**ZO, "queries": 3}},
    "lora": {"scheme": {"name": "lora", "rank": 2}},
    "prefix": {"scheme": {"name": "prefix", "tokens": 2}},
    "blockwise": {"blockwise": "transformer-block"},
    "sparse_random": {"sparse": {"ratio": 0.3}},
    "sparse_magnitude": {"sparse": {"ratio": 0.3, "source": "magnitude", "resample": 5}},
    "sparse_wanda": {"sparse": {"ratio": 0.3, "source": "wanda"}},
    "two_workers_share_examples": {"parallel": {"workers": 2, "share": "examples"}},
    "two_workers_share_queries": {"parallel": {"workers": 2, "share": "queries"}},
}
LONG = {"steps": 400, "log_every": 10, "checkpoint_every": 10}


def on_disk(folder, changes):
    folder.mkdir(exist_ok=True)
    return {**changes, "tier": {"host_budget": 0, "disk": str(folder), **changes.get("tier", {})}}


def in_memory(changes):
    return {key: value for key, value in changes.items() if key != "tier"}


@pytest.mark.parametrize("case", CASES)
def test_the_bits_of_the_job_in_memory(shared_jobs, tmp_path, case):
    resident, tiered = shared_jobs.submit(**in_memory(CASES[case])), shared_jobs.submit(**on_disk(tmp_path / "units", CASES[case]))
    want, got = shared_jobs.result(resident), shared_jobs.result(tiered)
    assert got["parameters_sha256"] == want["parameters_sha256"]
    assert got["tier"] and "tier" not in want
    losses = shared_jobs.losses(tiered)
    assert len(losses) == 20 and losses == shared_jobs.losses(resident)
    assert not any((tmp_path / "units").iterdir()), "the unit file of a job that is done is of no more use"


@pytest.fixture(scope="module")
def undisturbed(shared_jobs):
    name = shared_jobs.submit(**LONG)
    return shared_jobs.result(name), shared_jobs.losses(name)


def assert_as_undisturbed(jobs, name, undisturbed):
    assert jobs.result(name)["parameters_sha256"] == undisturbed[0]["parameters_sha256"]
    assert jobs.losses(name) == undisturbed[1]
    assert jobs.show(name)["attempt"] >= 2


@pytest.mark.parametrize("write_every", [1, 7])
def test_kill_9_of_the_worker(jobs, tmp_path, undisturbed, write_every):
    name = jobs.submit(**on_disk(tmp_path / "units", {**LONG, "tier": {"write_every": write_every}}))
    jobs.wait_step(name, 60)
    os.kill(jobs.worker_pid(name), signal.SIGKILL)
    assert_as_undisturbed(jobs, name, undisturbed)


def test_kill_9_of_the_server(jobs, tmp_path, undisturbed):
    name = jobs.submit(**on_disk(tmp_path / "units", LONG))
    jobs.wait_step(name, 60)
    jobs.server.kill()
    jobs.server.start()
    assert_as_undisturbed(jobs, name, undisturbed)


REFUSED = {
    "first_order": ({"optimizer": {"name": "adamw", "lr": 1e-3}}, "needs gradients"),
    "hybrid": ({"hybrid": {"blocks": 1}}, "hybrid"),
    "codec": ({"tier": {"codec": "int4"}}, 'tier.codec: "int4" is not one of none, bf16, fp16, fp8'),
    "no_bytes": ({"tier": {"device_budget": "many"}}, "is not a number of bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_file_decides_is_refused_at_submit(shared_jobs, tmp_path, case):
    changes, reason = REFUSED[case]
    done = shared_jobs.submit(check=False, **on_disk(tmp_path / "units", changes))
    assert done.returncode != 0 and reason in done.stderr, done.stderr


def test_a_budget_for_less_than_two_units_says_the_smallest_that_works(shared_jobs, tmp_path):
    job = shared_jobs.wait(shared_jobs.submit(**on_disk(tmp_path / "units", {"tier": {"device_budget": 4096}})), "FAILED")
    assert "(20480 bytes), a slot and a perturbed copy of the largest unit, \"layers.0\"" in job["reason"], job
