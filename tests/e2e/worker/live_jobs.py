"""Training jobs on a real server, by optoctl: submit, wait, look."""
import json
import os
import pathlib
import subprocess
import sys
import time

from worker_binary import BIN

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
from live_server import LiveServer  # noqa: E402,F401

DEADLINE = 600.0  # of a wait; nothing is asserted about time
UNREACHABLE = 3   # optoctl's exit status
LONG = {"steps": 3000, "log_every": 10}


class Jobs:
    """optoctl on one server.  folder: of the model m and the task file t.tsv."""

    def __init__(self, server, folder):
        self.server, self.folder, self.files = server, folder, 0

    def run(self, *args, check=True, **env):
        done = subprocess.run([str(BIN / "optoctl"), "--json", *map(str, args)], capture_output=True, text=True, timeout=300,
                              env={**os.environ, "OPTOD_ADDRESS": self.server.address, **env})
        if check and done.returncode != 0:
            raise AssertionError(f"optoctl {args}: {done.stderr}")
        return done

    def spec(self, **changes):
        task = {"columns": ["x", "label"], "prompt": "{x}", "options": {"0": "y", "1": "z"}, "train": str(self.folder / "t.tsv"),
                "dev": str(self.folder / "t.tsv"), **changes.pop("task", {})}
        return {"kind": "finetune", "model": str(self.folder / "m"), "steps": 20, "batch": 4, "checkpoint_every": 1, "log_every": 1, "threads": 1, "seed": 1,
                "task": task, "optimizer": {"name": "zo-sgd", "lr": 1e-3}, **changes}

    def submit(self, check=True, **changes):
        """The job's name; with check=False the finished optoctl."""
        self.files += 1
        path = self.server_folder() / f"job{self.files}.yaml"
        path.write_text(json.dumps(self.spec(**changes)))  # JSON is YAML
        done = self.run("job", "submit", path, check=check)
        return json.loads(done.stdout)["name"] if check else done

    def server_folder(self):
        return pathlib.Path(self.server.data_dir).parent

    def show(self, name):
        """Its state now. A machine so busy that the call times out is asked again."""
        end = time.monotonic() + DEADLINE
        while True:
            done = self.run("job", "show", name, check=False)
            if done.returncode != UNREACHABLE:
                return json.loads(done.stdout)
            assert time.monotonic() < end, done.stderr

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

    def losses(self, name):
        """{step: training loss} of all attempts. A step that two attempts made must have given the same loss, bit for bit."""
        found = {}
        for line in self.run("job", "watch", name, check=False).stdout.splitlines():
            event = json.loads(line)
            if "loss" in event.get("metrics", {}):
                loss = event["metrics"]["loss"]
                assert found.setdefault(int(event["step"]), loss) == loss, event
        return found

    def worker_pids(self, name, attempt=None):
        """{rank: process} of those that work on the job (on an attempt of it)."""
        wanted = {b"attach", name.encode()} if attempt is None else {b"attach", name.encode(), str(attempt).encode()}
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if wanted <= set(words) and words[0].endswith(b"optod-worker"):
                    found[int(words[words.index(b"--rank") + 1]) if b"--rank" in words else 0] = int(entry.name)
        return found

    def worker_pid(self, name, attempt=None, rank=0):
        """The process of one rank."""
        found = self.worker_pids(name, attempt)
        assert rank in found, f"no worker of rank {rank} for {name}: {found}"
        return found[rank]

    def work(self, name):
        """The job's folder of checkpoints and results."""
        return pathlib.Path(self.server.data_dir) / "jobs" / name.split("/")[1] / name.split("/")[3] / "work"


def run_undisturbed(data_dir, folder, changes):
    """(result, losses by step) of a job on a server of its own that nobody disturbs."""
    server = LiveServer(data_dir).start()
    jobs = Jobs(server, folder)
    name = jobs.submit(**changes)
    kept = jobs.result(name), jobs.losses(name)
    assert server.stop() == 0
    return kept
