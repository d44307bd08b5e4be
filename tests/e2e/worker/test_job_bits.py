"""Bit-identity of whole jobs: uninterrupted == resumed == replayed from the log, at any number of threads that generate directions."""
import json
import shutil

import pytest
from worker_binary import needs_worker, run_worker

pytestmark = needs_worker

RULES = {
    "zo-sgd": {"name": "zo-sgd", "lr": 1e-3}, "zo-sgd-q3": {"name": "zo-sgd", "lr": 1e-3, "queries": 3}, "zo-sgd-mmt": {"name": "zo-sgd-mmt", "lr": 1e-4},
    "zo-sgd-cons": {"name": "zo-sgd-cons", "lr": 1e-3}, "zo-sgd-sign": {"name": "zo-sgd-sign", "lr": 1e-4}, "zo-adam": {"name": "zo-adam", "lr": 1e-3},
    "adamw": {"name": "adamw", "lr": 1e-3}, "sgd": {"name": "sgd", "lr": 1e-2, "momentum": 0.9},
}
SCHEMES = ("full", "lora", "prefix", "head")
CASES = [(rule, "full") for rule in RULES] + [(rule, scheme) for rule in ("zo-sgd", "adamw") for scheme in SCHEMES[1:]]
STEPS = 600


def spec(jobs, rule, scheme, **changes):
    """Evaluations in between must not change the trajectory, and the rate is scheduled: a resumed step must know its own."""
    named = {"name": scheme, **({"rank": 2} if scheme == "lora" else {"tokens": 2} if scheme == "prefix" else {})}
    return {"steps": STEPS, "log_every": 5, "checkpoint_every": 10, "schedule": "linear", "scheme": named, "optimizer": RULES[rule], **changes}


def interrupted(jobs, changes):
    """The job cancelled at a step of chance and resumed."""
    name = jobs.submit(**changes)
    jobs.wait_step(name, STEPS // 4)
    jobs.run("job", "cancel", name)
    if jobs.wait(name, "CANCELLED", "SUCCEEDED")["state"] == "CANCELLED":
        jobs.run("job", "resume", name)
    return name


@pytest.mark.parametrize("rule, scheme", CASES)
def test_a_resumed_job_equals_an_uninterrupted_one(shared_jobs, rule, scheme):
    changes = spec(shared_jobs, rule, scheme)
    whole = shared_jobs.submit(**changes)
    parts = interrupted(shared_jobs, changes)
    a, b = shared_jobs.result(whole), shared_jobs.result(parts)
    assert a["parameters_sha256"] == b["parameters_sha256"]
    first, second = shared_jobs.losses(whole), shared_jobs.losses(parts)
    assert first.keys() >= second.keys() and len(first) == STEPS // 5
    assert all(first[step] == loss for step, loss in second.items())


def test_evaluations_in_between_change_nothing(shared_jobs):
    often, never = (shared_jobs.submit(**spec(shared_jobs, "zo-sgd", "full", eval_every=every)) for every in (7, 0))
    assert shared_jobs.result(often)["parameters_sha256"] == shared_jobs.result(never)["parameters_sha256"]
    assert shared_jobs.losses(often) == shared_jobs.losses(never)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.startswith("zo")])
def test_a_replayed_log_equals_the_run_at_any_number_of_threads(shared_jobs, tmp_path, rule, threads):
    changes = spec(shared_jobs, rule, "full", steps=100)
    name = shared_jobs.submit(**changes)
    result = shared_jobs.result(name)
    shutil.copytree(shared_jobs.work(name), tmp_path / "work")
    (tmp_path / "spec.json").write_text(json.dumps(shared_jobs.spec(**{**changes, "threads": threads})))
    done = run_worker("train", "--spec", tmp_path / "spec.json", "--folder", tmp_path / "work", "--attempt", 2)
    assert "resumed after step 100" in done.stderr, "nothing was left to train: every update came from the log"
    assert json.loads(done.stdout.splitlines()[-1])["parameters_sha256"] == result["parameters_sha256"]
