"""The key of a language model is found nowhere: not in memory dumps, /proc, backups, cassettes, errors, web pages, or children that crash."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import urllib.error
import urllib.request

import optod
import pytest
from live_server import BINARY, LiveServer
from scripted_model import ScriptedModel

ENV_KEY, FILE_KEY = "sk-canary-environment-5f0c2d9b71", "sk-canary-secrets-file-a83be1/44c6"
KEYS = [ENV_KEY.encode(), FILE_KEY.encode()]


class CanaryServer(LiveServer):
    """Has an HTTP page, two endpoints with keys, a cassette, and a core file size limit that is none."""

    def __init__(self, folder, model, args=()):
        (folder / "secrets").write_text(f'# keys\nother: "{FILE_KEY}"\n')
        (folder / "secrets").chmod(0o600)
        (folder / "endpoints.yaml").write_text(f'endpoints: {{other: {{url: "{model.url}"}}}}\n')
        super().__init__(folder / "data", ["--llm-secrets", str(folder / "secrets"), "--llm-endpoints", str(folder / "endpoints.yaml"),
                                           "--cassette", str(folder / "cassette.jsonl"), "--log-level", "debug", *args],
                         {"OPTOD_LLM_URL": model.url, "OPTOD_LLM_MODEL": "m", "OPTOD_LLM_KEY": ENV_KEY})
        self.folder = folder

    def start(self):
        command = [self.binary, "--data-dir", self.data_dir, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *self.args]
        unlimited = lambda: resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)  # noqa: E731
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=self.env, text=True, cwd=self.folder, preexec_fn=unlimited)
        words = dict(word.split("=", 1) for word in self.process.stdout.readline().split() if "=" in word)
        self.address, self.http = words["grpc"], words["http"]
        return self


def complete(client, session, endpoint, text):
    from optod.v1 import workflow_pb2, workflow_pb2_grpc
    stub = workflow_pb2_grpc.WorkflowServiceStub(client.transport.channel)
    return client.transport.call(stub.Complete, workflow_pb2.CompleteRequest(
        session=session.name, endpoint=endpoint, messages=[workflow_pb2.ChatTurn(role="user", content=text)]))


@pytest.fixture(scope="module")
def model():
    made = ScriptedModel(lambda request: 401 if "refuse" in str(request) else "an answer")
    yield made
    made.close()


@pytest.fixture
def used(tmp_path, model):
    """A server whose two keys were sent, accepted and refused."""
    model.keys.clear()
    live = CanaryServer(tmp_path, model).start()
    with live.connect() as client:
        session = client.sessions.create("optoprime", parameters={"x": 1})
        for endpoint in ("default", "other"):
            assert complete(client, session, endpoint, "hello").text == "an answer"
            with pytest.raises(optod.errors.FailedPrecondition, match="the key was refused") as refused:
                complete(client, session, endpoint, "refuse this")
            live.refusals = getattr(live, "refusals", "") + str(refused.value)
    assert {key.removeprefix("Bearer ").encode() for key in model.keys} == set(KEYS) and len(model.keys) == 4
    yield live
    if live.process.poll() is None:
        live.kill()


def clean(what, data):
    data = data.encode() if isinstance(data, str) else data
    for key in KEYS:
        assert key not in data and key[-12:] not in data, f"a key is in {what}"


def files_of(folder):
    return [path for path in pathlib.Path(folder).rglob("*") if path.is_file() and path.name != "secrets"]


def test_the_environment_no_longer_holds_it(used):
    environment = pathlib.Path(f"/proc/{used.process.pid}/environ")
    try:
        data = environment.read_bytes()
    except PermissionError:      # the process is not dumpable: only root may look
        pytest.skip("/proc/PID/environ of the server cannot be read by this user, which is as it should be")
    assert b"OPTOD_LLM_URL=" in data
    clean("/proc/PID/environ", data)
    clean("/proc/PID/cmdline", pathlib.Path(f"/proc/{used.process.pid}/cmdline").read_bytes())


def test_pages_errors_backup_cassette_and_log(used):
    clean("an error", used.refusals)
    for page in ("/", "/metrics", "/healthz", "/nothing-here"):
        try:
            with urllib.request.urlopen(f"http://{used.http}{page}") as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        clean(f"the page {page}", text)
    with used.connect() as client:
        result = client.admin.backup("night")
        clean("the information of the server", str(client.info()))
    assert used.stop() == 0
    found = files_of(used.folder)
    assert any(str(path).startswith(result.path) for path in found)
    assert {"cassette.jsonl", "data.log"} <= {path.name for path in found}
    for path in found:
        clean(path, path.read_bytes())


def test_an_abort_leaves_no_key(used):
    """The server asks not to be dumped; should it be all the same (fs.suid_dumpable), locked memory is not part of the core."""
    used.process.send_signal(signal.SIGABRT)
    assert used.process.wait() == -signal.SIGABRT
    for path in files_of(used.folder):
        clean(path, path.read_bytes())


def memory(pid):
    """(whether a core dump leaves it out, bytes) of every readable mapping, as a debugger would read them."""
    regions, bounds = [], None
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and words[1][0] in "r-" and len(words[1]) == 4:
            bounds = (*(int(end, 16) for end in words[0].split("-")), words[-1])
        elif words[0] == "VmFlags:" and "rd" in words and bounds[2] not in ("[vvar]", "[vsyscall]"):
            regions.append((*bounds[:2], "dd" in words))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for start, end, left_out in regions:
            carried = b""
            for at in range(start, end, 16 << 20):
                file.seek(at)
                try:
                    data = file.read(min(16 << 20, end - at))
                except OSError:      # a guard page, or a mapping without memory behind it
                    break
                yield left_out, carried + data
                carried = data[-64:]


def test_what_a_core_would_hold_has_no_key(used):
    """Root can dump any process. The key lies in the locked pages that dumps leave out, and nowhere else, with two calls of each key behind it."""
    try:
        found, environment = set(), False
        for left_out, data in memory(used.process.pid):
            environment = environment or b"OPTOD_LLM_URL=" in data
            if left_out:
                found.update(key for key in KEYS if key in data)
            else:
                clean("memory that a core holds", data)
    except PermissionError:
        pytest.skip("the memory of the server cannot be read by this user, which is as it should be")
    assert environment and found == set(KEYS)      # the search looked where keys could be


def test_a_child_that_crashes_never_had_it(tmp_path, model):
    """A worker of ours in name: it writes down all it can see of its environment and its parent's, and dies."""
    worker = tmp_path / "worker"
    worker.write_text('#!/bin/sh\n{ env; cat /proc/self/environ /proc/$PPID/environ; } > "$(dirname "$0")/seen.$$" 2>&1\nkill -SEGV $$\n')
    worker.chmod(0o755)
    live = CanaryServer(tmp_path, model, ["--worker", str(worker)]).start()
    try:
        (tmp_path / "model").mkdir()
        (tmp_path / "job.yaml").write_text(
            f"kind: finetune\nmodel: {tmp_path}/model\ntask: {{name: sst2, train: {tmp_path}/worker, dev: {tmp_path}/worker}}\nscheme: {{name: full}}\n"
            "optimizer: {name: zo-sgd, lr: 1e-3, eps: 1e-3}\nsteps: 1\nbatch: 1\n")
        optoctl = [str(BINARY.parent / "optoctl")]
        env = {**os.environ, "OPTOD_ADDRESS": live.address, "OPTOD_LLM_KEY": ""}
        submitted = subprocess.run([*optoctl, "--json", "job", "submit", str(tmp_path / "job.yaml")], env=env, capture_output=True, text=True)
        assert submitted.returncode == 0, submitted.stderr
        name = json.loads(submitted.stdout)["name"]
        watched = subprocess.run([*optoctl, "job", "watch", name], env=env, capture_output=True, text=True, timeout=120)
        clean("what is said of the job", watched.stdout + watched.stderr)
        seen = list(tmp_path.glob("seen.*"))
        assert seen, watched.stdout + watched.stderr
        for path in files_of(tmp_path):
            clean(path, path.read_bytes())
    finally:
        live.kill()
