"""The server that a script uses when it names none: a private ``optod`` on a temporary folder, started when first needed, stopped at exit."""

from __future__ import annotations

import atexit
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import threading
from typing import Optional, Sequence, Tuple

from optod import llm
from optod.client import Client, connect

__all__ = ["default_client", "find_binary", "PrivateServer", "reset"]

_lock = threading.Lock()
_client: Optional[Client] = None
_server: Optional["PrivateServer"] = None


def find_binary() -> str:
    """The program ``optod``: OPTOD_BIN, then OPTOD_BIN_DIR, then PATH, then build/bin of the source tree.  RuntimeError when it is nowhere."""
    named = os.environ.get("OPTOD_BIN")
    folder = os.environ.get("OPTOD_BIN_DIR")
    tree = pathlib.Path(__file__).resolve().parents[4] / "build" / "bin" / "optod"
    for path in (named, folder and os.path.join(folder, "optod"), shutil.which("optod"), str(tree)):
        if path and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise RuntimeError("no server: set OPTOD_ADDRESS to one that runs, or OPTOD_BIN to the program `optod` (or put it on PATH)")


class PrivateServer:
    """address: HOST:PORT.  The server keeps its data in a folder of its own, which goes away with ``stop``.

    arguments: further flags of ``optod``.  model: of the endpoint ``default`` as (URL, model, key), URL "" = none; None = ``llm.environment()``.
    """

    def __init__(self, start_seconds: float = 60.0, arguments: Sequence[str] = (), model: Optional[Tuple[str, str, str]] = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="optod-")
        names = ("OPTOD_LLM_URL", "OPTOD_LLM_MODEL", "OPTOD_LLM_KEY")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        endpoint = llm.environment() if model is None else model
        if endpoint[0]:
            environment.update(zip(names, endpoint))
        command = [find_binary(), "--data-dir", os.path.join(self._folder.name, "data"), "--listen", "127.0.0.1:0", "--http", "off", *arguments]
        with open(os.path.join(self._folder.name, "optod.log"), "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment,
                                             start_new_session=True, text=True)
        self.address = self._wait(start_seconds)

    def _wait(self, seconds: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line.startswith("optod ready grpc="):
            self._process.kill()
            self._process.wait()
            with open(os.path.join(self._folder.name, "optod.log"), encoding="utf-8", errors="replace") as log:
                tail = log.read()[-2000:]
            self._folder.cleanup()
            raise RuntimeError(f"the private server did not start: {line.strip() or 'no answer'}\n{tail}")
        return line.split("grpc=")[1].split()[0]

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


def default_client() -> Client:
    """The client of OPTOD_ADDRESS when that is set, else of this process's private server."""
    global _client, _server
    with _lock:
        if _client is None:
            address = os.environ.get("OPTOD_ADDRESS")
            if not address:
                _server = PrivateServer()
                atexit.register(reset)
            _client = connect(address) if address else connect(_server.address, token="")  # type: ignore[union-attr]
        return _client


def reset() -> None:
    """Closes the client and stops the private server; the next ``default_client`` starts anew."""
    global _client, _server
    with _lock:
        client, server, _client, _server = _client, _server, None, None
    if client is not None:
        client.close()
    if server is not None:
        server.stop()


def _forget() -> None:
    """A forked child must not use (or stop) what belongs to its parent."""
    global _client, _server, _lock
    _client = _server = None
    _lock = threading.Lock()
    atexit.unregister(reset)


os.register_at_fork(after_in_child=_forget)
