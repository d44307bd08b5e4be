"""State files: export, what other readers see, import and going on bit for bit, refusals; by the library and by optoctl."""

import json
import os
import subprocess

import numpy as np
import optod
import pytest
from live_server import BINARY
from optod import safetensors_file

PARAMS = {"lm_head.weight": np.linspace(-1, 1, 70 * 70, dtype=np.float32).reshape(70, 70), "bias": np.linspace(0.5, 1.5, 3, dtype=np.float32)}   # sgd-sai divides by the spread of a gradient
FIRST_ORDER = ["sgd", "adam", "adamw", "adamw-8bit", "lamb", "adafactor", "muon", "galore", "fira", "apollo", "apollo-mini", "scale", "sgd-sai"]
ZEROTH_ORDER = ["zo-sgd", "zo-sgd-mmt", "zo-sgd-cons", "zo-sgd-sign", "zo-adam"]


def loss(params):
    return float(sum(np.sum((value.astype(np.float64) - 0.25) ** 2) for value in params.values()))


def step(session):
    if session.info.optimizer.name in ZEROTH_ORDER:
        with session.worker() as worker:
            version = worker.version
            while worker.version == version:
                worker.step(loss)
        return
    now = session.pull()
    session.tell_gradients({name: 2 * (value - np.float32(0.25)) for name, value in now.items()}, base_version=session.head_version)


def same(a, b):
    assert set(a) == set(b)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


@pytest.mark.parametrize("rule", FIRST_ORDER + ZEROTH_ORDER)
def test_a_session_goes_on_from_its_file(client, tmp_path, rule):
    path = tmp_path / "s.safetensors"
    lr = 3e-5 if rule in ZEROTH_ORDER else 0.01     # below 1 / (L (d + 2)): zo-sgd-cons stays where no candidate is better
    session = client.sessions.create(rule, PARAMS, lr=lr, seed=5, schedule=optod.Schedule("linear", total_steps=50))
    for _ in range(2):
        step(session)
    assert session.export_state(path) == 2
    arrays, metadata = safetensors_file.read(str(path))
    assert metadata["format"] == "optod-state" and metadata["session"] == session.name and metadata["step"] == "2"
    assert json.loads(metadata["optimizer"])["name"] == rule
    for prefix, want in (("params/", session.pull()), ("state/", session.pull_state())):
        same({f"{prefix}{name}": value for name, value in want.items()}, {name: value for name, value in arrays.items() if name.startswith(prefix)})
    again = client.sessions.import_state(path, optimizer=rule)
    cold = client.sessions.create(rule, session.pull(), lr=lr, seed=5, schedule=optod.Schedule("linear", total_steps=50))
    for _ in range(3):
        for one in (session, again, cold):
            step(one)
    same(session.pull(), again.pull())
    same(session.pull_state(), again.pull_state())
    assert any(not np.array_equal(value, cold.pull()[name]) for name, value in session.pull().items())


def test_the_package_safetensors_reads_and_rewrites_it(client, tmp_path):
    """Another writer puts the tensors in another order."""
    safetensors = pytest.importorskip("safetensors")
    numpy_files = pytest.importorskip("safetensors.numpy")
    session = client.sessions.create("adamw", PARAMS, lr=0.01)
    step(session)
    session.export_state(tmp_path / "s.safetensors")
    tensors = numpy_files.load_file(str(tmp_path / "s.safetensors"))
    same(tensors, safetensors_file.read(str(tmp_path / "s.safetensors"))[0])
    with safetensors.safe_open(str(tmp_path / "s.safetensors"), "np") as file:
        metadata = file.metadata()
    tensors["params/bias"] = tensors["params/bias"] + 1
    numpy_files.save_file(dict(reversed(tensors.items())), str(tmp_path / "t.safetensors"), metadata)
    changed = client.sessions.import_state(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(changed.pull()["bias"], session.pull()["bias"] + 1)
    same(changed.pull_state(), session.pull_state())
    assert list(changed.layout.names) == list(session.layout.names)


def test_bf16_and_large_tensors_travel(client, tmp_path):
    params = {"w": np.arange(3_000_000, dtype=np.float32).reshape(1000, 3000), "d": np.ones(5, np.float64), "h": np.ones(7, np.float16)}
    session = client.sessions.create("adamw", params)
    with session.gradient_stream() as stream:
        stream.step({name: np.ones_like(value) for name, value in params.items()})
    session.export_state(tmp_path / "s.safetensors")
    again = client.sessions.import_state(tmp_path / "s.safetensors")
    same(session.pull(), again.pull())
    same(session.pull_state(), again.pull_state())


def test_bad_files_and_retries(client, tmp_path):
    session = client.sessions.create("adamw", PARAMS)
    step(session)
    good = tmp_path / "s.safetensors"
    session.export_state(good)
    data = good.read_bytes()
    for name, content, message in (("cut", data[:-1], "lie outside the"), ("text", b"hello, this is text", "does not fit a file"),
                                   ("dtype", data.replace(b'"F32"', b'"F99"'), "unknown dtype")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(optod.errors.InvalidArgument, match=message):
            client.sessions.import_state(tmp_path / name, id="never")
    with pytest.raises(optod.errors.InvalidArgument, match="the file is of adamw, not of sgd"):
        client.sessions.import_state(good, optimizer="sgd")
    with pytest.raises(optod.errors.InvalidArgument, match="lr"):
        client.sessions.import_state(good, lr=-1.0)
    with pytest.raises(optod.errors.NotFound):
        client.sessions.get("never")
    first = client.sessions.import_state(good, request_id="once")
    assert client.sessions.import_state(good, request_id="once").name == first.name
    assert client.sessions.import_state(good, request_id="twice", lr=0.5).info.optimizer.hyperparameters["lr"].number == 0.5
    with pytest.raises(optod.errors.Aborted):
        client.sessions.import_state(good, request_id="once", lr=0.5)
    with pytest.raises(optod.errors.FailedPrecondition):
        client.sessions.create("zo-sgd", layout={"w": ((4,), "f32")}).export_state(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_optoctl_exports_and_imports(client, server, tmp_path):
    session = client.sessions.create("zo-adam", PARAMS, id="cli-state")
    step(session)

    def optoctl(*arguments):
        return subprocess.run([str(BINARY.parent / "optoctl"), "--json", *arguments], env={**os.environ, "OPTOD_ADDRESS": server.address}, capture_output=True, text=True)
    file = str(tmp_path / "s.safetensors")
    assert optoctl("session", "export", "cli-state", "--state", "-o", file).returncode == 0
    done = optoctl("session", "import", file, "--id", "cli-copy", "--set", "lr=0.5")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["optimizer"]["hyperparameters"]["lr"] == {"number": 0.5}
    same(client.sessions.get("cli-copy").pull(), session.pull())
    refused = optoctl("session", "import", file, "--optimizer", "zo-sgd")
    assert refused.returncode == 4 and "zo-adam" in refused.stderr


def test_a_fork_goes_on_with_directions_or_has_its_own(client):
    session = client.sessions.create("zo-sgd", PARAMS, lr=0.01, seed=5)
    step(session)
    step(session)
    follower, own = session.fork(), session.fork(seed=6)
    assert own.info.optimizer.seed == 6
    for one in (session, follower, own):
        step(one)
    same(session.pull(), follower.pull())
    drawn = [[query.step for version in one.versions for query in version.queries] for one in (session, follower, own)]
    assert drawn == [[2, 1, 0], [2], [0]]
    assert not np.array_equal(own.pull()["bias"], session.pull()["bias"])
