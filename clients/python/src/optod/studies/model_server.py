"""A server with a language model for a study: the caller's endpoint, or a small local model that is started for it; all traffic on a cassette.

    with StudyServer(args, say) as server:
        server.connect()      # optod.Client
        server.model          # name, for the report

The local model is SmolLM2-135M behind llama.cpp's server, started and stopped by ``deploy/local-llm.sh`` (which quickstart.sh uses too).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import tempfile
from typing import Any, Callable, List, Optional

import optod
from optod import llm
from optod.private import PrivateServer

__all__ = ["StudyServer", "add_arguments"]

# Small models on one core are slow: a call may wait for others and still take minutes.
_LOCAL_ENDPOINT = """endpoints:
  default: {{url: "{url}", model: "{model}", concurrency: {slots}, timeout: 1800s, attempts: 2, context_tokens: {context}}}
"""
_CONTEXT, _LOCAL_MODEL = 4096, "smollm2-135m-instruct"
_NOWHERE = "http://127.0.0.1:9/v1"      # a replay asks nobody


class NoModel(RuntimeError):
    """There is neither an endpoint nor a way to start one; the message says what to set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cassette", default="", metavar="FILE", help="record the model's traffic there, or replay it offline with the same figures")
    parser.add_argument("--cassette-mode", default="auto", choices=("auto", "record", "replay"),
                        help="auto: replay what FILE holds, ask for the rest; record: ask for all; replay: never ask [auto]")
    parser.add_argument("--slots", type=int, default=4, metavar="N", help="requests that the local model decodes at once [4]")


def _script() -> pathlib.Path:
    named = os.environ.get("OPTOD_LOCAL_LLM")
    return pathlib.Path(named) if named else pathlib.Path(__file__).resolve().parents[5] / "deploy" / "local-llm.sh"


def _recorded_model(path: str) -> str:
    """The model that a cassette's first exchange names."""
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.loads(file.readline())["request"]["model"])
    except (OSError, ValueError, KeyError) as error:
        raise NoModel(f"--cassette: {path} holds no recorded exchange: {error}") from None


class StudyServer:
    """args: of ``add_arguments``.  NoModel: no endpoint is set and the local model cannot be started."""

    def __init__(self, args: Any, say: Callable[[str], None]) -> None:
        self._args, self._say = args, say
        self._folder = tempfile.TemporaryDirectory(prefix="optod-study-")
        self._script_stop: Optional[List[str]] = None
        self._server: Optional[PrivateServer] = None
        self.address, self.model = os.environ.get("OPTOD_ADDRESS", ""), ""

    def __enter__(self) -> "StudyServer":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if self._server is not None:
            self._server.stop()
        if self._script_stop is not None:
            subprocess.run(self._script_stop, stderr=subprocess.DEVNULL, check=False)
        self._folder.cleanup()

    def connect(self) -> optod.Client:
        return optod.connect(self.address, timeout=120.0, **({"token": ""} if self._server is not None else {}))

    def _start(self) -> None:
        if self.address:
            if self._args.cassette:
                raise NoModel(f"--cassette belongs to the server that is started for the study; the one at {self.address} has its own")
            self.model = f"endpoint default of {self.address}"
            return
        arguments = ["--executor", "sandbox"]
        if self._args.cassette:
            arguments += ["--cassette", os.path.abspath(self._args.cassette), "--cassette-mode", self._args.cassette_mode]
        given = llm.environment()
        if self._args.cassette_mode == "replay" and self._args.cassette:
            self.model = _recorded_model(self._args.cassette)
            given = (_NOWHERE, self.model, "")
            if self.model == _LOCAL_MODEL:      # prompts are cut to an endpoint's context: the replayed one has the same
                given = ("", "", "")
                arguments += ["--llm-endpoints", self._endpoint_file(_NOWHERE)]
        elif given[0]:
            self.model = given[1] or "default"
        else:
            self.model = _LOCAL_MODEL
            arguments += ["--llm-endpoints", self._endpoint_file(self._local_model())]
        self._server = PrivateServer(arguments=arguments, model=given)
        self.address = self._server.address

    def _local_model(self) -> str:
        """Starts it; returns its URL."""
        script = _script()
        if not script.is_file():
            raise NoModel("no language model: set OPTOD_LLM_URL (and OPTOD_LLM_MODEL, OPTOD_LLM_KEY), or OPTOD_LOCAL_LLM to deploy/local-llm.sh")
        folder = os.path.join(self._folder.name, "llm")
        self._say("  starting the local language model (set OPTOD_LLM_URL to use another)")
        # One slot a request of its own context; the prefix that calls share is computed once. Replies then depend on what came before: the cassette keeps them.
        command = [str(script), "start", "--dir", folder, "--slots", str(self._args.slots), "--context", str(_CONTEXT), "--reuse-prefix"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        self._script_stop = [str(script), "stop", "--dir", folder]
        found = re.search(r"export OPTOD_LLM_URL=(\S+)", done.stdout)
        if done.returncode != 0 or found is None:
            raise NoModel(f"the local language model did not start ({script} start exited {done.returncode}); set OPTOD_LLM_URL to use another")
        return found.group(1)

    def _endpoint_file(self, url: str) -> str:
        path = os.path.join(self._folder.name, "endpoints.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(_LOCAL_ENDPOINT.format(url=url, model=_LOCAL_MODEL, slots=self._args.slots, context=_CONTEXT))
        return path
