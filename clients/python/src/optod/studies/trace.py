"""``optoctl reproduce trace [numeric|bbh|all]``: the Trace paper's claims at a small size, through a server and a language model.

    configurations ──► runs (threads; a run's calls follow each other) ──► OUT/runs.jsonl ──► table, curves, judgement
                              │
                              └──► the server's model gateway ──► endpoint, or the cassette

By default the model is a small local one (model_server.py); every figure then says more about that model than about the method. With --cassette the
same run is repeated offline with equal figures.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import optod
from optod.studies import charts, model_server, trace_bbh, trace_numeric
from optod.studies.report import Store, columns, judged, key_of
from optod.studies.trace_methods import METHODS

__all__ = ["main"]

STUDIES = {"numeric": trace_numeric, "bbh": trace_bbh}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optoctl reproduce trace", description="Reproduces the Trace paper's claims at a small size.")
    parser.add_argument("study", nargs="?", default="all", choices=(*STUDIES, "all"), help="[all]")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; progress goes to stderr")
    parser.add_argument("--out", default="optod-studies", help="folder of runs, CSV and curves; what is there is not run again [optod-studies]")
    parser.add_argument("--seed", type=int, default=0, help="of random search and of the requests to the model [0]")
    parser.add_argument("--quick", action="store_true", help="3 problems, 3 steps; BBH: 1 task: shows that it runs, the figures mean nothing")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"[{','.join(METHODS)}]")
    parser.add_argument("--max-tokens", type=int, default=96, help="of an optimizer's reply [96]")
    parser.add_argument("--jobs", type=int, default=0, help="runs at once [--slots]")
    numeric = parser.add_argument_group("numeric")
    numeric.add_argument("--problems", type=int, default=trace_numeric.PROBLEMS, help=f"[{trace_numeric.PROBLEMS}]")
    numeric.add_argument("--steps", type=int, default=trace_numeric.STEPS, help=f"[{trace_numeric.STEPS}]")
    trace_bbh.add_arguments(parser.add_argument_group("bbh (needs OPTOD_DATA)"))
    model_server.add_arguments(parser)
    return parser


def check(args: Any) -> str:
    """"" or what is wrong with the arguments."""
    unknown = [label for label in args.methods if label not in METHODS]
    if unknown:
        return f"--methods: {', '.join(unknown)}: unknown; must be of {', '.join(METHODS)}"
    for name in ("problems", "steps", "max_tokens", "slots"):
        if getattr(args, name) < 1:
            return f"--{name.replace('_', '-')}: {getattr(args, name)} is below 1"
    return trace_bbh.needs(args) if args.study == "bbh" else ""


class Runs:
    """Makes the runs of one study that are not kept yet, several at once, and says how it goes."""

    def __init__(self, study: Any, store: Store, client: optod.Client, jobs: int, say: Callable[[str], None]) -> None:
        self._study, self._store, self._client, self._jobs, self._say = study, store, client, jobs, say
        self._begin, self._done, self._todo = time.perf_counter(), 0, 0

    def all(self, configs: Sequence[Dict[str, Any]]) -> List[Tuple[Dict[str, Any], Dict[str, Any]]]:
        keys = [key_of(self._study.NAME, config) for config in configs]
        todo = [(key, config) for key, config in zip(keys, configs) if key not in self._store.runs]
        self._todo = len(todo)
        pool = concurrent.futures.ThreadPoolExecutor(self._jobs)
        try:
            for future in concurrent.futures.as_completed([pool.submit(self._one, key, config) for key, config in todo]):
                future.result()
        finally:        # after an error or an interrupt nobody waits for calls that may take minutes: they end with the client
            pool.shutdown(wait=False, cancel_futures=True)
        return [(config, self._store.runs[key]) for key, config in zip(keys, configs)]

    def _one(self, key: str, config: Dict[str, Any]) -> None:
        begin = time.perf_counter()
        run = self._study.run(self._client, config)
        run["seconds"] = time.perf_counter() - begin
        self._store.add(key, config, run)
        self._done += 1
        left = (time.perf_counter() - self._begin) / self._done * (self._todo - self._done)
        tokens = run.get("prompt_tokens", 0) + run.get("completion_tokens", 0)
        cost = f"{run['calls']:4} calls {tokens:7,} tokens" if "calls" in run else ""
        self._say(f"  [{self._done:>3}/{self._todo}] {self._study.describe(config, run):<58} {run['seconds']:7.1f} s  {cost}   about {left / 60:4.1f} min left")


def cost_of(runs: Sequence[Any]) -> Dict[str, Any]:
    return {key: sum(run.get(key, 0) for _, run in runs) for key in ("calls", "prompt_tokens", "completion_tokens", "usd")}


def cost_text(cost: Dict[str, Any]) -> str:
    """Tokens; money only where the endpoint has a price."""
    money = f", {cost['usd']:.2f} USD" if cost["usd"] > 0 else ""
    return f"{cost['calls']:,} calls, {cost['prompt_tokens']:,} prompt and {cost['completion_tokens']:,} reply tokens{money}"


def write_curves(folder: pathlib.Path, study: Any, runs: Sequence[Any]) -> List[str]:
    curves = study.curves(runs)
    path = folder / f"{study.NAME}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "step", "figure"])
        for label, line in curves.items():
            writer.writerows([label, step, value] for step, value in line)
    return [str(path), charts.draw(folder, study.NAME, study.TITLE, "figure", curves, log=False)]


def report(study: Any, runs: Sequence[Any], folder: pathlib.Path, say: Callable[[str], None]) -> Dict[str, Any]:
    claims, files, cost = study.claims(runs), write_curves(folder, study, runs), cost_of(runs)
    say("\n" + columns(study.rows(runs)))
    say("\nAcceptance\n" + judged(claims))
    say(f"  cost: {cost_text(cost)}; curves: {', '.join(files)}")
    return {"study": study.NAME, "curves": study.curves(runs), "claims": [dataclasses.asdict(claim) for claim in claims], "cost": cost, "files": files,
            "table": study.rows(runs)}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Exit status: 0 done (acceptance figures met or not), 2 usage, data or model absent, 3 no server, 4 refused."""
    args = arguments().parse_args(argv)
    args.methods = [label.strip() for label in args.methods.split(",") if label.strip()]
    why = check(args)
    if why:
        print(f"reproduce trace: {why}", file=sys.stderr)
        return 2

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
    studies = list(STUDIES.values()) if args.study == "all" else [STUDIES[args.study]]
    if args.study == "all" and trace_bbh.needs(args):
        say(f"bbh is left out: {trace_bbh.needs(args)}")
        studies.remove(trace_bbh)
    begin, documents = time.perf_counter(), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))       # the server and the model are stopped on the way out
    try:
        with model_server.StudyServer(args, say) as server, server.connect() as client:
            client.info()
            store = Store(pathlib.Path(args.out))
            for study in studies:
                configs = study.configs(args, server.model)
                say(f"{study.TITLE}\n  {len(configs)} runs, model {server.model}; runs are kept in {os.path.join(args.out, 'runs.jsonl')}")
                runs = Runs(study, store, client, args.jobs or args.slots, say).all(configs)
                documents.append(report(study, runs, store.folder, say))
    except model_server.NoModel as error:
        print(f"reproduce trace: {error}", file=sys.stderr)
        return 2
    except optod.errors.Unavailable as error:
        print(f"reproduce trace: no server or model answers: {error}", file=sys.stderr)
        return 3
    except RuntimeError as error:           # no program `optod`, or it did not start
        print(f"reproduce trace: {error}", file=sys.stderr)
        return 3
    except optod.errors.OptodError as error:
        print(f"reproduce trace: {error}; what is done is kept, start again to go on", file=sys.stderr)
        return 4
    say(f"\n{time.perf_counter() - begin:.0f} s")
    if args.json:
        print(json.dumps({"study": "trace", "quick": args.quick, "seconds": time.perf_counter() - begin, "studies": documents}))
    return 0
