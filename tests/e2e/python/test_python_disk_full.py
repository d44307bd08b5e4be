"""A disk that fills up under a real server: refused with a clear error, nothing acknowledged is lost, and it goes on when there is room again."""

import time

import numpy as np
import optod
import pytest

from small_disk import NAMESPACE, SmallDisk

MIB = 1 << 20


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


def test_full_disk(disk):
    server, address = disk.start()
    with optod.connect(address, token="") as client:
        session = client.sessions.create("zo-sgd", {"w": np.zeros(4, np.float32)}, id="walk", lr=0.1)
        for i in range(20):
            tell(session, 1.0 + i)
        disk.fill()
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
        disk.free()
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
