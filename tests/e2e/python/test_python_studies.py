"""optoctl reproduce runs a study of the Python package against a server, keeps what is done, and says what it needs."""

import json
import os
import subprocess
import sys

import pytest
from live_server import BINARY

OPTOCTL = BINARY.parent / "optoctl"


def reproduce(*args, address="", cwd=None, data=None):
    env = {**os.environ, "OPTOD_PYTHON": sys.executable, "OPTOD_TOKEN": ""}
    for name, value in (("OPTOD_ADDRESS", address), ("OPTOD_DATA", data)):
        env.pop(name, None)
        if value:
            env[name] = value
    return subprocess.run([str(OPTOCTL), "reproduce", *args], capture_output=True, text=True, env=env, cwd=cwd)


def test_mkor_quick_is_kept_and_not_run_again(server, tmp_path):
    done = reproduce("mkor", "--quick", "--seeds", "1", "--jobs", "1", "--json", address=server.address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {row["label"] for row in document["rows"]} == {"sgdm", "release", "exact", "paper", "mkor-h", "kfac"}
    assert all(claim["met"] in (True, False, None) for claim in document["claims"]) and "min left" in done.stderr
    assert (tmp_path / "optod-studies" / "mkor.csv").read_text().startswith("setting,lr,step,loss\n")
    again = reproduce("mkor", "--quick", "--seeds", "1", "--jobs", "1", address=server.address, cwd=tmp_path)
    assert again.returncode == 0 and "min left" not in again.stdout and "Acceptance" in again.stdout


def test_a_study_whose_data_are_absent_says_which(server, tmp_path):
    done = reproduce("scale", address=server.address, cwd=tmp_path)
    assert done.returncode == 2 and "set OPTOD_DATA to a folder that holds tinyshakespeare/input.txt" in done.stderr
    done = reproduce("sgd-sai", address=server.address, cwd=tmp_path, data=str(tmp_path))
    assert done.returncode == 2 and "input.txt is not there" in done.stderr


@pytest.mark.skipif(not os.environ.get("OPTOD_DATA"), reason="needs OPTOD_DATA")
def test_the_language_model_runs(server, tmp_path):
    done = reproduce("sgd-sai", "--quick", "--seeds", "1", "--json", "--jobs", "1", address=server.address, cwd=tmp_path, data=os.environ["OPTOD_DATA"])
    assert done.returncode == 0, done.stderr
    claims = json.loads(done.stdout)["claims"]
    assert claims[0]["met"] and claims[1]["met"], "bytes of state and constancy hold at any length"


@pytest.mark.skipif(not os.environ.get("OPTOD_DATA"), reason="needs OPTOD_DATA")
@pytest.mark.skipif(not (BINARY.parent / "optod-worker").exists(), reason="optod-worker is not built (no LibTorch)")
def test_zo_bench_trains_in_jobs_and_prints_the_papers_tables(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPTOD_STUDY_OPTIMIZERS", "zo-sgd,adamw")
    monkeypatch.setenv("OPTOD_STUDY_SCHEMES", "lora,head")
    monkeypatch.setenv("OPTOD_STUDY_TASKS", "sst2,text")
    flags = ("zo-bench", "--quick", "--seeds", "1", "--jobs", "2")
    done = reproduce(*flags, "--json", address=server.address, cwd=tmp_path, data=os.environ["OPTOD_DATA"])
    assert done.returncode == 0, done.stderr
    rows = {row["label"]: row for row in json.loads(done.stdout)["rows"]}
    assert set(rows) == {f"{task}/{rule}/{scheme}" for task in ("sst2", "text") for rule in ("zo-sgd", "adamw") for scheme in ("lora", "head")}
    assert all(row["failure"] == [None] and row["peak_mib"][0] > 0 and row["seconds_per_step"][0] > 0 for row in rows.values())
    assert 0 <= rows["sst2/zo-sgd/lora"]["test"][0] <= 1 and rows["text/adamw/head"]["test"][0] < 0
    with server.connect() as client:
        jobs = list(client.jobs.list())
        assert len(jobs) == 8
        again = reproduce(*flags, "--out", "elsewhere", address=server.address, cwd=tmp_path, data=os.environ["OPTOD_DATA"])
        assert again.returncode == 0 and "peak memory of the worker, MiB" in again.stdout and "sst2: test accuracy" in again.stdout
        sst2 = [job for job in client.jobs.list() if "/sst2/" in job.spec_json]
        assert len(sst2) == 4, "jobs that are done are found again, not made again"
    assert list((tmp_path / "elsewhere").glob("zo-bench.[ps][nv]g"))


def test_nobody_answers(tmp_path):
    done = reproduce("mkor", address="127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 3 and "no server answers" in done.stderr
