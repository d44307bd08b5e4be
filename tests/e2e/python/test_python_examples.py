"""The digits example runs, learns, repeats bit for bit, and says when no server answers; the traced one reaches its goal."""

import json
import os
import subprocess
import sys

from live_server import ROOT

EXAMPLE = ROOT / "clients" / "python" / "examples" / "digits.py"


def run(address, *args):
    return subprocess.run([sys.executable, str(EXAMPLE), "--address", address, *args], capture_output=True, text=True,
                          env={**os.environ, "OPTOD_TOKEN": ""})


def test_digits_quick(server):
    done = run(server.address, "--quick", "--json", "--check-repeat", "--seed", "3")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["repeated"] is True and "train loss" in done.stderr
    rows = {(row["model"], row["optimizer"]): row for row in document["runs"]}
    assert len(rows) == 4
    for (model, optimizer), row in rows.items():
        assert row["equal_to_server"] and row["accuracy"] > row["accuracy_before"] + 0.3
        if optimizer == "zo-sgd":
            assert row["bytes_sent_per_step"] + row["bytes_received_per_step"] < 1024
    assert rows["logistic", "adamw"]["accuracy"] > 0.85 and rows["mlp", "adamw"]["accuracy"] > 0.85


def test_digits_without_a_server():
    done = run("127.0.0.1:1")
    assert done.returncode == 3 and "no server answers" in done.stderr


def test_the_traced_program_reaches_its_goal(server):
    done = subprocess.run([sys.executable, str(EXAMPLE.with_name("traced.py"))], capture_output=True, text=True,
                          env={**os.environ, "OPTOD_TOKEN": "", "OPTOD_ADDRESS": server.address})
    assert done.returncode == 0, done.stderr
    assert "result = 12.0" in done.stdout and "2 versions, 1 model calls" in done.stdout
