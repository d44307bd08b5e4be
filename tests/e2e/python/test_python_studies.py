"""optoctl reproduce runs a study of the Python package against a server, keeps what is done, and says what it needs."""

import json
import os
import subprocess
import sys

import pytest
from live_server import BINARY, ROOT

sys.path.insert(0, str(ROOT / "tests" / "peer"))
from answering_model import ScriptedModel  # noqa: E402

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


# ---- trace: a scripted model in place of a language model

@pytest.fixture(scope="module")
def model():
    made = ScriptedModel()
    yield made
    made.shutdown()


@pytest.fixture
def bbh(tmp_path):
    (tmp_path / "data" / "bbh").mkdir(parents=True)
    examples = [{"input": f"not ( {n} ) is", "target": "Yes" if n % 2 else "No"} for n in range(12)]
    (tmp_path / "data" / "bbh" / "tiny.json").write_text(json.dumps({"examples": examples}))
    return str(tmp_path / "data")


def trace_study(*args, model=None, cwd=None, data=None):
    names = ("OPTOD_ADDRESS", "OPTOD_DATA", "OPTOD_LLM_URL", "OPTOD_LLM_MODEL", "OPTOD_LLM_KEY")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env.update(OPTOD_PYTHON=sys.executable, **({"OPTOD_LLM_URL": model.url, "OPTOD_LLM_MODEL": "scripted"} if model else {}), **({"OPTOD_DATA": data} if data else {}))
    return subprocess.run([str(OPTOCTL), "reproduce", "trace", *args], capture_output=True, text=True, env=env, cwd=cwd)


def test_the_whole_trace_study_and_its_replay_are_equal(model, bbh, tmp_path):
    begin = model.requests
    small = ("--tasks", "tiny", "--train", "3", "--validation", "2", "--test", "3", "--problems", "2", "--steps", "2")
    first = trace_study("all", "--json", "--cassette", "traffic.jsonl", "--out", "first", *small, model=model, cwd=tmp_path, data=bbh)
    assert first.returncode == 0, first.stderr
    asked = model.requests
    assert asked > begin and "min left" in first.stderr
    replay = trace_study("all", "--json", "--cassette", "traffic.jsonl", "--cassette-mode", "replay", "--out", "second", *small, cwd=tmp_path, data=bbh)
    assert replay.returncode == 0, replay.stderr
    assert model.requests == asked, "a replay asks nobody"
    one, two = (json.loads(done.stdout)["studies"] for done in (first, replay))
    assert [study["study"] for study in one] == ["trace-numeric", "trace-bbh"]
    for a, b in zip(one, two):
        assert a["curves"] == b["curves"] and a["cost"] == b["cost"] and a["claims"] == b["claims"]
        assert (tmp_path / "first" / f"{a['study']}.csv").read_text() == (tmp_path / "second" / f"{a['study']}.csv").read_text()
    assert set(one[0]["curves"]) == {"optoprime", "optoprime-masked", "optoprime-brief", "opro", "textgrad", "adam", "random"}
    assert one[0]["cost"]["calls"] > 0 and one[0]["cost"]["usd"] == 0
    # The scripted model says 7 to a whole number and -60.0 to any other: the record of a run holds what was tried.
    kept = [json.loads(line) for line in (tmp_path / "first" / "runs.jsonl").read_text().splitlines()]
    tried = next(k["run"] for k in kept if k["config"].get("method") == "optoprime" and k["config"].get("problem") == 0)
    assert tried["xs"][1] == -60.0 and tried["outcomes"] == {"APPLIED": 1, "UNCHANGED": 1} and len(tried["errors"]) == 3


def test_an_interrupted_trace_study_goes_on(model, tmp_path):
    small = ("numeric", "--problems", "2", "--steps", "1", "--methods", "optoprime,opro", "--out", "runs")
    assert trace_study(*small, model=model, cwd=tmp_path).returncode == 0
    path = tmp_path / "runs" / "runs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])        # killed while the last run was written
    begin = model.requests
    again = trace_study(*small, model=model, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.count("min left") == 1 and model.requests - begin <= 1


def test_a_trace_study_without_a_model_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTOD_LOCAL_LLM", str(tmp_path / "absent.sh"))
    done = trace_study("numeric", cwd=tmp_path)
    assert done.returncode == 2 and "set OPTOD_LLM_URL" in done.stderr
