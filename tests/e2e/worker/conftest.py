import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tiny_model  # noqa: E402
from live_jobs import LONG, Jobs, LiveServer, run_undisturbed  # noqa: E402


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """m: a tiny model; t.tsv: its task."""
    path = tmp_path_factory.mktemp("model")
    tiny_model.write(path)
    return path


@pytest.fixture
def jobs(tmp_path, folder):
    """A server for one test, which may kill it."""
    server = LiveServer(tmp_path / "data").start()
    yield Jobs(server, folder)
    assert server.stop() == 0


@pytest.fixture(scope="module")
def shared_jobs(tmp_path_factory, folder):
    """One server a file, for tests that leave it alone."""
    server = LiveServer(tmp_path_factory.mktemp("shared") / "data", args=["--max-workers", "2"]).start()
    yield Jobs(server, folder)
    assert server.stop() == 0


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, folder):
    """(result, losses by step) of LONG when nobody disturbs it."""
    return run_undisturbed(tmp_path_factory.mktemp("plain") / "data", folder, LONG)
