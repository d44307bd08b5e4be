"""Runs a study of gradient optimizers: plans runs, keeps what is done, prints a table, draws curves, says which acceptance figures are met.

A study is a module with
    NAME, TITLE, METRIC        name, one sentence, what the figure of a run is (smaller is better)
    FULL, FAMILY               optional: the whole grid at every seed; name under which runs are kept (studies that share runs)
    needs()                    "" or why it cannot run here (a data set that is absent)
    settings(args)             [Setting]: a label, what ``run`` gets, learning rates to try
    run(client, config)        {"metric": float, "curve": [[step, value], ...], ...} of one (setting, lr, seed)
    claims(best, client, args, say)   [Claim] from {label: Best}
    report(study, best)        optional: its own tables, as text; figures(best): more of a setting for the JSON document
    panel(label)               optional: the picture in which a setting's curve is drawn
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence

import optod
from optod.studies.report import Claim, Store, columns, judged, key_of

__all__ = ["Setting", "Claim", "Best", "main"]

SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row: a label, the optimizer and its hyperparameters, the learning rates of the grid (empty: ``fixed`` alone)."""

    label: str
    config: Mapping[str, Any]
    grid: Sequence[float]


@dataclasses.dataclass
class Best:
    """The best learning rate of a setting and its runs by seed; ``grid``: metric by learning rate at the first seed."""

    label: str
    lr: float
    runs: List[Dict[str, Any]]
    grid: Dict[float, float]

    @property
    def metric(self) -> float:
        return statistics.median(run["metric"] for run in self.runs)

    def median(self, key: str) -> float:
        return statistics.median(run[key] for run in self.runs)


_client: Optional[optod.Client] = None


def _work(study: Any, config: Dict[str, Any]) -> Dict[str, Any]:
    """In a worker process."""
    global _client
    if _client is None:
        _client = optod.connect()
    begin = time.perf_counter()
    out = study.run(_client, config)
    out["seconds"] = time.perf_counter() - begin
    return out


class Runner:
    def __init__(self, study: Any, store: Store, jobs: int, say: Any) -> None:
        self._study, self._store, self._jobs, self._say = study, store, jobs, say

    def run_all(self, configs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        """The results of all configurations, in order; those that are kept are not made again."""
        name = getattr(self._study, "FAMILY", self._study.NAME)
        keys = [key_of(name, config) for config in configs]
        todo = {key: config for key, config in zip(keys, configs) if key not in self._store.runs}
        if todo:
            self._make(todo)
        return [self._store.runs[key] for key in keys]

    def _make(self, todo: Dict[str, Dict[str, Any]]) -> None:
        begin, done = time.perf_counter(), 0

        def keep(key: str, config: Dict[str, Any], run: Dict[str, Any]) -> None:
            nonlocal done
            done += 1
            self._store.add(key, config, run)
            left = (time.perf_counter() - begin) / done * (len(todo) - done)
            self._say(f"  [{done:>3}/{len(todo)}] {config['label']:<14} lr {config['lr']:<8g} seed {config['seed']}  "
                      f"{self._study.METRIC} {run['metric']:9.4f}  {run['seconds']:6.1f} s   about {left / 60:4.1f} min left")
        if self._jobs == 1:
            for key, config in todo.items():
                keep(key, config, _work(self._study, config))
            return
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(min(self._jobs, len(todo)), mp_context=context) as pool:
            waiting = {pool.submit(_call, self._study.__name__, config): (key, config) for key, config in todo.items()}
            for future in concurrent.futures.as_completed(waiting):
                keep(*waiting[future], future.result())


def _call(module: str, config: Dict[str, Any]) -> Dict[str, Any]:
    import importlib
    return _work(importlib.import_module(module), config)


def best_of(runner: Runner, settings: Sequence[Setting], base: Mapping[str, Any], seeds: Sequence[int], full: bool) -> Dict[str, Best]:
    """The grid at the first seed (all seeds when ``full``), then the other seeds at the best rate."""
    def config(setting: Setting, lr: float, seed: int) -> Dict[str, Any]:
        return {**base, **setting.config, "label": setting.label, "lr": lr, "seed": seed}
    pairs = [(s, lr, seed) for s in settings for lr in s.grid for seed in (seeds if full else seeds[:1])]
    rows = runner.run_all([config(*pair) for pair in pairs])
    out: Dict[str, Best] = {}
    by = {(s.label, lr, seed): row for (s, lr, seed), row in zip(pairs, rows)}
    rest = []
    for s in settings:
        def grade(lr: float, s: Setting = s) -> float:
            found = [by[s.label, lr, seed]["metric"] for seed in seeds if (s.label, lr, seed) in by]
            value = statistics.median(found)
            return value if math.isfinite(value) else math.inf
        lr = min(s.grid, key=grade)
        out[s.label] = Best(s.label, lr, [], {rate: by[s.label, rate, seeds[0]]["metric"] for rate in s.grid})
        rest += [(s, lr, seed) for seed in seeds]
    for (s, _, _), row in zip(rest, runner.run_all([config(*pair) for pair in rest])):
        out[s.label].runs.append(row)
    return out


def table(study: Any, best: Mapping[str, Best]) -> str:
    rows = [("SETTING", "LR", study.METRIC.upper(), "BY SEED", "STATE BYTES", "S/RUN")]
    for b in sorted(best.values(), key=lambda b: b.metric):
        state = b.runs[0].get("state_bytes")
        rows.append((b.label, f"{b.lr:g}", f"{b.metric:.4f}", " ".join(f"{run['metric']:.4f}" for run in b.runs),
                     "" if state is None else f"{state:,}", f"{b.median('seconds'):.1f}"))
    return columns(rows)


def arguments(studies: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optoctl reproduce", description="Reproduces a paper's claims at a small size.")
    parser.add_argument("name", choices=sorted(studies))
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; progress goes to stderr")
    parser.add_argument("--out", default="optod-studies", help="folder of runs, CSV and curves; what is there is not run again [optod-studies]")
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3), help="[3]")
    parser.add_argument("--full", action="store_true", help="the whole grid at every seed (default: at the first; the others at its best rate)")
    parser.add_argument("--all", action="store_true", help="further optimizers, where the study has them")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps: shows that it runs, the figures mean nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once [number of CPUs]")
    return parser


def main(studies: Mapping[str, Any], argv: Optional[Sequence[str]] = None) -> int:
    """Exit status: 0 done (acceptance figures met or not), 2 usage or data absent, 3 no server, 4 refused."""
    args = arguments(studies).parse_args(argv)
    study = studies[args.name]

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
    why = study.needs()
    if why:
        print(f"reproduce {args.name}: {why}", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    try:
        with optod.connect() as client:
            client.info()
            store = Store(pathlib.Path(args.out))
            settings, base = study.settings(args), {"quick": args.quick}
            say(f"{study.TITLE}\n  {len(settings)} settings, seeds {', '.join(map(str, SEEDS[:args.seeds]))}; runs are kept in {args.out}/runs.jsonl")
            best = best_of(Runner(study, store, max(1, args.jobs), say), settings, base, SEEDS[:args.seeds], args.full or getattr(study, "FULL", False))
            claims = study.claims(best, client, args, say)
    except optod.errors.Unavailable as error:
        print(f"reproduce {args.name}: no server answers: {error}", file=sys.stderr)
        return 3
    except optod.OptodError as error:
        print(f"reproduce {args.name}: {error.code}: {error}", file=sys.stderr)
        return 4
    from optod.studies import charts
    files = charts.write(pathlib.Path(args.out), study, best)
    if args.json:
        print(json.dumps({
            "study": args.name, "metric": study.METRIC, "quick": args.quick, "seconds": time.perf_counter() - begin, "files": files,
            "rows": [{"label": b.label, "lr": b.lr, "metric": b.metric, "by_seed": [run["metric"] for run in b.runs], "grid": b.grid,
                      "state_bytes": b.runs[0].get("state_bytes"), **(study.figures(b) if hasattr(study, "figures") else {})} for b in best.values()],
            "claims": [dataclasses.asdict(claim) for claim in claims]}))
        return 0
    say("\n" + getattr(study, "report", table)(study, best))
    say(f"\nAcceptance (median of {args.seeds} seeds, best of the grid{', QUICK: the figures mean nothing' if args.quick else ''})")
    say(judged(claims))
    say(f"\n{time.perf_counter() - begin:.0f} s; curves: {', '.join(files)}")
    return 0
