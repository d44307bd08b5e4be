import sys
import pathlib

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from live_server import LiveServer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server a file."""
    live = LiveServer(tmp_path_factory.mktemp("optod") / "data").start()
    yield live
    assert live.stop() == 0


@pytest.fixture(scope="module")
def unix_server(tmp_path_factory):
    """One server a file that listens on a Unix socket."""
    folder = tmp_path_factory.mktemp("optod")
    live = LiveServer(folder / "data")
    live.address = f"unix:{folder / 'socket'}"
    yield live.start()
    assert live.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    with server.connect() as made:
        yield made


@pytest.fixture
def own_server(tmp_path):
    """A server for one test, which may kill it."""
    live = LiveServer(tmp_path / "data").start()
    yield live
    live.stop()
