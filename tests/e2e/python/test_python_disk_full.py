"""A disk that fills up under a real server: refused with a clear error, nothing acknowledged is lost, and it goes on when there is room again.

The data directory is a small tmpfs in a mount namespace of the server's own (needs root, or unprivileged user namespaces).
"""

import os
import pathlib
import subprocess
import time

import numpy as np
import optod
import pytest

from live_server import BINARY

MIB = 1 << 20


def namespace_command():
    """How to get a mount namespace here, or None."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        probe = subprocess.run([*command, "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"], capture_output=True)
        if probe.returncode == 0:
            return command
    return None


NAMESPACE = namespace_command()


class SmallDisk:
    """A tmpfs of `mib` MiB at `folder` in a namespace that a sleeping process holds; optod runs inside."""

    def __init__(self, folder, mib):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir()
        script = 'mount -t tmpfs -o size="$1" none "$2" && echo mounted && exec sleep 1000'
        self.holder = subprocess.Popen([*NAMESPACE, "sh", "-c", script, "sh", f"{mib}m", str(folder)], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline() == "mounted\n"

    def inside(self, *command, **options):
        user = ["--user", "--preserve-credentials"] if "--user" in NAMESPACE else []
        return subprocess.Popen(["nsenter", f"--target={self.holder.pid}", "--mount", *user, *command], text=True, **options)

    def run(self, *command):
        assert self.inside(*command).wait() == 0, command

    def start(self):
        server = self.inside(str(BINARY), "--data-dir", str(self.folder / "data"), "--listen", "127.0.0.1:0", "--http", "off", stdout=subprocess.PIPE)
        line = server.stdout.readline()
        assert line.startswith("optod ready grpc="), line
        return server, line.split("grpc=")[1].split()[0]

    def close(self):
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def disk(tmp_path):
    if NAMESPACE is None:
        pytest.skip("no mount namespaces here")
    small = SmallDisk(tmp_path / "disk", 16)
    yield small
    small.close()


def tell(session, loss):
    probe = session.ask().probes[0]
    return session.tell_losses({probe.probe_id: (loss, 0.5)})


def fill(disk):
    """Uses up what is left, in the namespace."""
    disk.inside("sh", "-c", f"head -c 100M /dev/zero > {disk.folder}/ballast", stderr=subprocess.DEVNULL).wait()


def test_full_disk(disk):
    server, address = disk.start()
    with optod.connect(address, token="") as client:
        session = client.sessions.create("zo-sgd", {"w": np.zeros(4, np.float32)}, id="walk", lr=0.1)
        for i in range(20):
            tell(session, 1.0 + i)
        fill(disk)
        done, refused = 20, None
        deadline = time.monotonic() + 60
        while refused is None and time.monotonic() < deadline:   # what SQLite has preallocated takes some steps to fill
            try:
                tell(session, 2.0)
                done += 1
            except optod.OptodError as error:
                refused = error
        assert refused is not None, "the disk never filled"
        assert refused.code == "RESOURCE_EXHAUSTED", refused
        assert "disk" in str(refused), refused
        with pytest.raises(optod.OptodError) as pushed:
            client.sessions.create("sgd", {"w": np.zeros(8 * MIB, np.uint8).view(np.float32)}, id="large")
        assert pushed.value.code == "RESOURCE_EXHAUSTED"
        assert client.sessions.get("walk").refresh().head_version == done, "reads go on, and show what was acknowledged"
        disk.run("rm", f"{disk.folder}/ballast")
        session = client.sessions.get("walk")
        tell(session, 3.0)
        done += 1
    server.kill()
    server.wait()
    server.stdout.close()
    server, address = disk.start()
    with optod.connect(address, token="") as client:
        versions = [version.number for version in client.sessions.get("walk").history()]
        assert sorted(versions) == list(range(done + 1))
    server.terminate()
    assert server.wait() == 0
    server.stdout.close()
