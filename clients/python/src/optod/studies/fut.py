"""optoctl reproduce fut: how close and how cheap estimates of another sample order are (FUT, arXiv 2505.22042), on jobs of a server.

    a  logistic regression, 8 and 16 batches, 50 random orders: parameter error beside the zeroth order, rank correlation
    b  a LLaMA of 29,000 weights on tinyshakespeare, 16 consecutive batches, 20 random orders: |perplexity estimated - retrained| beside guessing the
       reference order's, by curvature (the paper's plain definitions beside those with probe runs) and by storage; decay with the sketch ratio; the
       curvatures again on another model and text, and over 32 batches
    c  the order that a genetic search finds beside random orders and curricula by rule; memorisation matrix of 8 batches beside the retrained one
    d  seconds of an estimate, of 10,000, of the terms, beside a training; growth with batches, parameters and rows of a batch

Everything is estimated and retrained by the jobs themselves, one at a time; a second start finds the finished ones by their request ids.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np

import optod
from optod.studies import charts_orders
from optod.studies.fut_models import split_text, write_llama
from optod.studies.runner import Claim, judged

__all__ = ["NAME", "main"]

NAME = "fut"
RATE = 0.001        # of the language model; three times that is reported beside it: estimates hold near the reference run
Row = Dict[str, Any]


@dataclasses.dataclass
class Bench:
    """What every part uses: the server, where things are kept, how to speak, how small to be."""

    client: optod.Client
    out: pathlib.Path
    quick: bool
    say: Callable[[str], None]
    claims: List[Claim] = dataclasses.field(default_factory=list)
    rows: List[Row] = dataclasses.field(default_factory=list)
    files: List[str] = dataclasses.field(default_factory=list)

    def job(self, spec: Mapping[str, Any]) -> "tuple[optod.orders.Study, Row]":
        """The study of a spec and the job's result. The same spec is not run twice on one server."""
        key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:24]
        study = self.client.orders.create(spec, request_id=f"fut-{key}")
        return study, study.wait()

    def claim(self, text: str, figure: str, limit: str, met: Optional[bool]) -> None:
        self.claims.append(Claim(text, figure, limit, met))

    def row(self, part: str, **figures: Any) -> None:
        self.rows.append({"part": part, **figures})
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items())
        self.say(f"  {part:<10} " + "  ".join(shown))


def checks(result: Row) -> Row:
    """What 20 or 50 real trainings said."""
    c = result["retrain_checks"]
    found = {"error/zeroth": c["error_over_zeroth"], "error/guess": c["error_over_guess"], "absdiff": c["absdiff"], "absdiff_guess": c["absdiff_guess"],
             "spearman": c["spearman"]}
    for name in ("absdiff_uncalibrated", "absdiff_mean_of_probe_runs"):   # there with probe runs
        if "calibration" in c:
            found[name] = c[name]
    return found


# ---- a: logistic regression

CURVATURES: Dict[str, Row] = {"none": {"curvature": "none"}, "hvp": {"curvature": "hvp"}, "diag": {"curvature": "diag", "probes": 16},
                              "secant": {"curvature": "secant"}, "span": {"curvature": "span"}, "multisecant": {"curvature": "multisecant"}}
PLAIN = ("diag", "secant", "span")   # also as the paper defines them, without probe runs


def logistic(bench: Bench) -> None:
    for batches in (8, 16):
        for curvature, options in CURVATURES.items():
            for moments in ("replay", "reference"):
                if moments == "reference" and curvature in ("none", "span", "multisecant"):
                    continue
                spec = {"model": {"builtin": "logistic", "features": 20, "rows": 16, "evaluation_rows": 256, "data_seed": 1, "seed": 1}, "batches": batches,
                        "threads": 1, "study": {"optimizer": "adam", "lr": 0.05, **options}, "estimate": {"moments": moments, "seed": 2},
                        "retrain_checks": 10 if bench.quick else 50}
                study, result = bench.job(spec)
                found = checks(result)
                bench.row("logistic", T=batches, curvature=curvature, moments=moments, **found)
                if curvature == "hvp" and moments == "replay":
                    ratio, rank = found["error/zeroth"], found["spearman"]
                    exact = study.estimate(range(batches)).distance
                    bench.claim(f"logistic, T={batches}, first order: median parameter error of the zeroth order's", f"{ratio:.4f}", "<= 0.1", ratio <= 0.1)
                    bench.claim(f"logistic, T={batches}, first order: rank correlation with the retrained loss", f"{rank:.3f}", ">= 0.9", rank >= 0.9)
                    bench.claim(f"logistic, T={batches}: the identity order is exact", f"{exact:.1e}", "<= 1e-12", exact <= 1e-12)


# ---- b: a language model

@dataclasses.dataclass(frozen=True)
class Text:
    """Where the model and the text are."""

    model: str
    train: str
    dev: str
    parameters: int

    def spec(self, batches: int, batch: int = 8, study: Mapping[str, Any] = {}, **more: Any) -> Row:
        return {"model": self.model, "task": {"name": "text", "train": self.train, "dev": self.dev, "max_tokens": 64}, "batches": batches, "batch": batch,
                "metric": {"perplexity": True}, "study": {"optimizer": "adam", "lr": RATE, **study}, **more}


def prepare(bench: Bench, source: pathlib.Path, seed: int = 0) -> Text:
    """The model drawn from `seed`, to be trained on the text from 200,000 characters times the seed on."""
    text, name = source.read_text(), f"-{seed}" if seed else ""
    folder = bench.out / f"fut-model{name}"
    parameters = write_llama(folder, text, seed=seed)
    train, dev = split_text(bench.out / f"fut-text{name}", text[200_000 * seed:], 500_000, 8192)
    return Text(str(folder), train, dev, parameters)


STORAGES: List[Row] = [{"storage": "fp16"}, {"storage": "bf16"}] + [
    {"storage": f"sketch-{kind}", "sketch_ratio": ratio} for kind in ("hadamard", "sign") for ratio in (2, 8, 32)]


def by_curvature() -> Dict[str, Row]:
    variants = {name: dict(options, probes=4) if name == "diag" else options for name, options in CURVATURES.items()}
    for name in PLAIN:
        variants[f"{name}, plain"] = {**variants[name], "probe_runs": 0}
    return variants


def language(bench: Bench, text: Text, other: Text) -> None:
    batches = 6 if bench.quick else 16
    variants = by_curvature()
    for storage in STORAGES:
        name = "multisecant " + " ".join(str(value) for value in storage.values())
        variants[name] = {"curvature": "multisecant", **storage}
        if storage["storage"].startswith("sketch"):
            variants[name + " shrunk"] = {**variants[name], "sketch_shrink": True}
    for name in ("hvp", "multisecant"):
        variants[f"{name}, lr x 3"] = {**variants[name], "lr": 3 * RATE}
    found = gaps(bench, "llama", text, batches, variants)
    sketches(bench, found)
    gaps(bench, "llama, other model and text", other, batches, by_curvature())
    gaps(bench, "llama", text, 2 * batches, by_curvature())


def gaps(bench: Bench, problem: str, text: Text, batches: int, variants: Mapping[str, Row]) -> Dict[str, Row]:
    """Jobs of all variants; rows by name of the variant."""
    found: Dict[str, Row] = {}
    orders = 4 if bench.quick else 20
    for name, options in variants.items():
        _, result = bench.job(text.spec(batches, study=options, estimate={"seed": 2}, retrain_checks=orders))
        found[name] = {**checks(result), "decode_error": result["decode_errors"][0], "terms_MB": result["terms_bytes"] / 1e6,
                       "precompute_s": result["precompute_seconds"], "training_s": result["retrain_checks"]["seconds_per_training"]}
        bench.row(problem, variant=name, T=batches, n=result["parameters"], **found[name])
        gap, guess = found[name]["absdiff"], found[name]["absdiff_guess"]
        gated = name != "none" and not name.endswith("x 3")
        bench.claim(f"{problem}, T={batches}, {name}: AbsDiff of perplexity, median of {orders} orders, beside the reference order's", f"{gap:.4f} beside {guess:.4f}",
                    "below" if gated else "", gap < guess if gated else None)
    return found


def sketches(bench: Bench, found: Mapping[str, Row]) -> None:
    kinds = {f"{kind}{shrunk}": [(float(ratio), found[f"multisecant sketch-{kind} {ratio}{shrunk}"]["absdiff"]) for ratio in (2, 8, 32)]
             for kind in ("hadamard", "sign") for shrunk in ("", " shrunk")}
    level = {"exact terms": found["multisecant"]["absdiff"], "guess": found["multisecant"]["absdiff_guess"]}
    kinds.update({label: [(2.0, value), (32.0, value)] for label, value in level.items()})
    bench.files.append(charts_orders.lines(bench.out / "fut-sketch.png", kinds, "sketched terms: AbsDiff of perplexity", "sketch ratio", "AbsDiff"))


# ---- c: what it is used for

def curriculum(bench: Bench, text: Text) -> None:
    batches, randoms, (generations, population) = (6, 4, (2, 6)) if bench.quick else (16, 20, (10, 16))
    spec = text.spec(batches, study={"curvature": "multisecant"}, estimate={"seed": 2}, retrain_checks=randoms,
                     search={"generations": generations, "population": population, "seed": 1})
    _, result = bench.job(spec)
    search, random = result["search"], result["retrain_checks"]["retrained"]
    found, middle = search["retrained"], statistics.median(random)
    bench.row("curriculum", T=batches, found=found, found_estimated=search["estimated"], random_median=middle, random_best=min(random),
              reference=result["reference"], **{name: search[name] for name in ("short_to_long", "easy_to_hard", "hard_to_easy") if name in search})
    bench.claim(f"curriculum, T={batches}: the found order retrained beside the median of {randoms} random orders", f"{found:.4f} beside {middle:.4f}",
                "<=", found <= middle)
    for name in ("short_to_long", "easy_to_hard", "hard_to_easy"):
        if name in search:
            bench.claim(f"curriculum, T={batches}: {name.replace('_', '-')} retrained", f"{search[name]:.4f}", "", None)


def matrix(bench: Bench, text: Text) -> None:
    batches = 4 if bench.quick else 8
    problems = {
        "llama": lambda memorisation: text.spec(batches, study={"curvature": "multisecant"},
                                                matrix={"spot_checks": batches * batches, "memorisation": memorisation}),
        "mlp": lambda memorisation: {
            "model": {"builtin": "mlp", "features": 6, "classes": 3, "rows": 12, "evaluation_rows": 128, "hidden": 8, "drift": 0.7, "ragged": True,
                      "data_seed": 3, "seed": 3, "initial_scale": 0.3},
            "batches": batches, "threads": 1, "study": {"optimizer": "adam", "lr": 0.03, "curvature": "diag", "probes": 16},
            "metric": {"perplexity": True}, "matrix": {"spot_checks": batches * batches, "memorisation": memorisation}}}
    for problem, spec in problems.items():
        for memorisation in (True, False):
            what = "memorisation" if memorisation else "generalisation"
            _, result = bench.job(spec(memorisation))
            m = result["matrix"]
            bench.row("matrix", problem=problem, what=what, T=batches, pearson=m["pearson"], l1=m["l1"], mse=m["mse"], seconds=m["seconds"])
            bench.claim(f"matrix, {problem}, T={batches}, {what}: correlation with the retrained one", f"{m['pearson']:.3f}",
                        ">= 0.7" if memorisation else "", m["pearson"] >= 0.7 if memorisation else None)
            values = np.asarray(m["matrix"]).reshape(batches, batches)
            retrained = np.full_like(values, np.nan)
            for batch, position, _, value in m["spots"]:
                retrained[int(batch), int(position)] = value
            for label, picture in (("estimated", values), ("retrained", retrained)):
                bench.files.append(charts_orders.heat_map(bench.out / f"fut-{problem}-{what}-{label}.png", picture, f"{what}, {problem}: {label}"))


# ---- d: time

def timed(bench: Bench, group: str, spec: Mapping[str, Any], orders: int, **labels: Any) -> Row:
    """Everything on one thread and in CPU seconds, so that ratios are of work, however busy the machine is."""
    _, result = bench.job({**spec, "threads": 1, "estimate": {"random_orders": orders, "loss": "linear"}, "retrain_checks": 5})
    estimate, training = result["estimate"], result["retrain_checks"]["cpu_seconds_per_training"]
    single, many = estimate["single_cpu_seconds"], estimate["cpu_seconds"]
    row = {**labels, "n": result["parameters"], "T": result["batches"], "training_ms": 1e3 * training, "estimate_ms": 1e3 * single, "ms_an_order": 1e3 * many / orders,
           "training/estimate": training / single, "training/batched": training * orders / many, "precompute_s": result["precompute_seconds"],
           "trainings_worth": result["precompute_seconds"] / training, "orders": orders, "orders_s": many}
    bench.row(group, **row)
    return row


def mlp(batches: int, hidden: int, rows: int) -> Row:
    return {"model": {"builtin": "mlp", "features": 64, "classes": 10, "rows": rows, "evaluation_rows": 64, "hidden": hidden, "drift": 0.3, "data_seed": 1,
                      "seed": 1, "precision": "float32"},
            "batches": batches, "study": {"optimizer": "adam", "lr": 0.003, "curvature": "diag", "probes": 1, "probe_runs": 0, "segment_bytes": 64 << 20}}


def clock(bench: Bench, text: Optional[Text]) -> None:
    many, some = (500, 50) if bench.quick else (10_000, 100)
    base = timed(bench, "time", mlp(16, 128, 64), many, rows=64)
    growth = {"batches T": [timed(bench, "growth_T", mlp(batches, 64, 64), some, rows=64) for batches in (4, 8, 16, 32)],
              "parameters n": [timed(bench, "growth_n", mlp(16, hidden, 64), some, rows=64) for hidden in (16, 64, 256)],
              "rows of a batch": [base] + [timed(bench, "growth_rows", mlp(16, 128, rows), some, rows=rows) for rows in (256, 1024)]}
    at = {"batches T": "T", "parameters n": "n", "rows of a batch": "rows"}
    if text is not None:
        language_rows = [timed(bench, "time", text.spec(4 if bench.quick else 16, batch, {"curvature": "diag", "probes": 1, "probe_runs": 0}), some, tokens=64 * batch)
                         for batch in ((8,) if bench.quick else (8, 64))]
        growth["tokens of a batch, llama"], at["tokens of a batch, llama"] = language_rows, "tokens"
    for name, rows in growth.items():
        curves = {label: [(float(row[at[name]]), row[key]) for row in rows]
                  for label, key in (("training", "training_ms"), ("estimate", "estimate_ms"), ("an order of many", "ms_an_order"))}
        bench.files.append(charts_orders.lines(bench.out / f"fut-growth-{at[name]}.png", curves, f"growth with {name}", name, "ms"))
    bench.claim(f"an estimate beside a training: 9,610 parameters, 64 rows a batch, one thread", f"{base['training/estimate']:.0f}x", ">= 100x",
                base["training/estimate"] >= 100)
    best = max((row for rows in growth.values() for row in rows), key=lambda row: row["training/estimate"])
    size = f"{best['tokens']} tokens" if "tokens" in best else f"{best['rows']} rows"
    bench.claim(f"the same at its best: {best['n']:,} parameters, {size} a batch (a training grows with the batch, an estimate does not)",
                f"{best['training/estimate']:.0f}x", ">= 100x", best["training/estimate"] >= 100)
    bench.claim(f"{many:,} orders", f"{base['orders_s']:.2f} s, {base['ms_an_order']:.3f} ms each ({base['training/batched']:.0f}x)", "", None)
    bench.claim("the terms", f"{base['precompute_s']:.2f} s, worth {base['trainings_worth']:.1f} trainings of {16 * 16} pairs", "", None)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Exit status: 0 done (acceptance figures met or not), 2 usage, 3 no server, 4 refused."""
    parser = argparse.ArgumentParser(prog="optoctl reproduce fut", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; progress goes to stderr")
    parser.add_argument("--out", default="optod-studies", help="folder of pictures, tables, the model [optod-studies]")
    parser.add_argument("--quick", action="store_true", help="small: shows that it runs, the figures mean nothing")
    parser.add_argument("--part", action="append", choices=("a", "b", "c", "d"), help="only this part; may be repeated [all]")
    args = parser.parse_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
    begin, out = time.perf_counter(), pathlib.Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(os.environ.get("OPTOD_DATA", "")) / "tinyshakespeare" / "input.txt"
    parts = args.part or ["a", "b", "c", "d"]
    have = bool(os.environ.get("OPTOD_DATA")) and source.is_file()
    if not have and {"b", "c"} & set(parts):
        print("reproduce fut: parts b and c need the data set tinyshakespeare: set OPTOD_DATA to a folder that holds tinyshakespeare/input.txt, or choose "
              "--part a --part d", file=sys.stderr)
        return 2
    try:
        with optod.connect(timeout=120.0) as client:
            client.info()
            bench = Bench(client, out, args.quick, say)
            text = prepare(bench, source) if have else None
            if "a" in parts:
                logistic(bench)
            if "b" in parts:
                language(bench, text, prepare(bench, source, seed=1))
            if "c" in parts:
                curriculum(bench, text)
                matrix(bench, text)
            if "d" in parts:
                clock(bench, text)
    except optod.errors.Unavailable as error:
        print(f"reproduce fut: no server answers: {error}", file=sys.stderr)
        return 3
    except optod.OptodError as error:
        print(f"reproduce fut: {error.code}: {error}", file=sys.stderr)
        return 4
    seconds = time.perf_counter() - begin
    document = {"study": NAME, "quick": args.quick, "seconds": seconds, "files": bench.files, "rows": bench.rows,
                "claims": [dataclasses.asdict(claim) for claim in bench.claims]}
    (out / "fut.json").write_text(json.dumps(document, indent=1))
    if args.json:
        print(json.dumps(document))
        return 0
    say(f"\nAcceptance{' (QUICK: the figures mean nothing)' if args.quick else ''}\n" + judged(bench.claims))
    say(f"\n{seconds:.0f} s; tables: {out / 'fut.json'}; pictures: {', '.join(bench.files)}")
    return 0
