"""optoctl reproduce fut: it runs small, judges what it measured, writes what it says, and says what it lacks."""
import json
import os
import subprocess
import sys

import pytest
from worker_binary import BIN, needs_worker

pytestmark = needs_worker


def reproduce(tmp_path, *args, data=None):
    env = {**os.environ, "OPTOD_PYTHON": sys.executable, "OPTOD_TOKEN": ""}
    for name in ("OPTOD_ADDRESS", "OPTOD_DATA"):
        env.pop(name, None)
    if data:
        env["OPTOD_DATA"] = data
    return subprocess.run([str(BIN / "optoctl"), "reproduce", "fut", *args], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=900)


def test_without_data_it_says_what_it_needs(tmp_path):
    done = reproduce(tmp_path)
    assert done.returncode == 2 and "set OPTOD_DATA to a folder that holds tinyshakespeare/input.txt" in done.stderr


def test_logistic_regression_and_time_need_no_data(tmp_path):
    done = reproduce(tmp_path, "--quick", "--json", "--part", "a", "--part", "d")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    parts = {row["part"] for row in document["rows"]}
    assert parts == {"logistic", "time", "growth_T", "growth_n", "growth_rows"}
    exact = [claim for claim in document["claims"] if "identity" in claim["text"]]
    assert len(exact) == 2 and all(claim["met"] for claim in exact)
    assert all(os.path.getsize(path) > 500 for path in document["files"]) and len(document["files"]) == 3
    assert json.loads((tmp_path / "optod-studies" / "fut.json").read_text()) == document


@pytest.mark.skipif(not os.environ.get("OPTOD_DATA"), reason="needs OPTOD_DATA")
def test_the_language_model_runs(tmp_path):
    done = reproduce(tmp_path, "--quick", "--part", "c", data=os.environ["OPTOD_DATA"])
    assert done.returncode == 0, done.stderr
    assert "the found order retrained beside the median" in done.stdout and "correlation with the retrained one" in done.stdout
