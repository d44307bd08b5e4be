"""The numerical study of Cheng et al., "Trace is the Next AutoDiff" (2024): |error| by step on random arithmetic graphs (arithmetic.py).

Fixed before the first run:
  problems    0 .. 29; 10 steps; the free number starts at the problem's start, which is evaluated as step 0
  methods     optoprime, the same with a masked trace (only variables, output, feedback), the same with the brief prompt, opro, textgrad: one candidate a
              step, temperature 0.7, no memory (opro sees all its past); adam on |error| with the best of four rates; uniform random search on [-10, 10]
  feedback    the output, what it should be, and by how much it is too large or too small
  figure      best |error| so far / |error| at the start, median over problems (every version is kept, so a user gets the best one);
              |error| of the latest value is given beside it
  judged      optoprime near adam: at most adam's + 0.1;  masked and opro clearly worse than optoprime: at least 1.25 times its figure;
              optoprime better than random search: below its figure
"""

from __future__ import annotations

import random
import statistics
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np

import optod
from optod.recording import node
from optod.studies.arithmetic import HIGH, LOW, NAMES, Problem, problem
from optod.studies.report import Claim
from optod.studies.trace_methods import METHODS, Outcomes, seed_of, usage_of

__all__ = ["NAME", "TITLE", "configs", "run", "rows", "claims", "curves", "describe"]

NAME = "trace-numeric"
TITLE = "Trace, numerical: best |error| so far, of that at the start; median over problems"
PROBLEMS, STEPS = 30, 10
RATES = (0.3, 1.0, 3.0, 10.0)
LARGEST = 1e300                       # errors beyond it are kept as this


def configs(args: Any, model: str) -> List[Dict[str, Any]]:
    """Every run of the study: method x problem (adam: x rate)."""
    problems, steps = (min(3, args.problems), min(3, args.steps)) if args.quick else (args.problems, args.steps)
    base = {"steps": steps}
    out: List[Dict[str, Any]] = [{**base, "method": "random", "problem": p, "seed": args.seed} for p in range(problems)]
    out += [{**base, "method": "adam", "lr": lr, "problem": p, "seed": 0} for lr in RATES for p in range(problems)]
    asked = {"max_tokens": args.max_tokens, "model": model}
    labels = [label for label in METHODS if label in args.methods]
    # Problem by problem: an interrupted study holds whole problems.
    return out + [{**base, **asked, "method": label, "problem": p, "seed": args.seed} for p in range(problems) for label in labels]


def run(client: optod.Client, config: Mapping[str, Any]) -> Dict[str, Any]:
    """{"errors": |error| of every value in order, "xs": the values, and what it cost}."""
    task = problem(config["problem"])
    work = {"random": _random, "adam": _adam}.get(config["method"], _language_model)
    xs, more = work(client, task, config)
    return {"xs": xs, "errors": [min(task.error(x), LARGEST) for x in xs], **more}


def _random(_: optod.Client, task: Problem, config: Mapping[str, Any]) -> Any:
    rng = random.Random(seed_of("random", config["problem"], config["seed"]))
    return [task.start] + [rng.uniform(LOW, HIGH) for _ in range(config["steps"])], {}


def _adam(client: optod.Client, task: Problem, config: Mapping[str, Any]) -> Any:
    x = np.array([task.start], np.float32)
    session = client.sessions.create("adam", {"x": x}, lr=config["lr"])
    xs = [task.start]
    for _ in range(config["steps"]):
        slope = np.sign(task.value(xs[-1]) - task.target) * task.slope(xs[-1])
        x = session.tell_gradients({"x": np.array([slope], np.float32)}, loss=task.error(xs[-1]), return_values=True).values["x"]
        xs.append(float(x[0]))
    session.delete()
    return xs, {}


def feedback(task: Problem, x: float) -> str:
    value, target = task.value(x), task.target
    if value == target:
        return f"The output is {value:g}. That is right."
    return f"The output is {value:g} and should be {target:g}. It is too {'small' if value < target else 'large'} by {abs(value - target):g}."


def record(session: Any, parameter: int, task: Problem, x: float) -> int:
    """The graph at x, as nodes of the session; returns the output's id."""
    nodes = [node(value, base="c") for value in task.constants]

    def place(at: Any) -> int:
        kind, index = at
        return parameter if kind == "x" else -1 - index if kind == "constant" else -1 - len(task.constants) - index
    words = {"+": "This is an add operator of x and y.", "-": "This is a subtract operator of x and y.", "*": "This is a multiply operator of x and y."}
    for operation, value in zip(task.operations, task.results(x)):
        nodes.append(node(value, base=NAMES[operation.symbol], kind="message", op=NAMES[operation.symbol], description=words[operation.symbol],
                          inputs=[("x", place(operation.left)), ("y", place(operation.right))]))
    return session.record(nodes)[-1].id


def _language_model(client: optod.Client, task: Problem, config: Mapping[str, Any]) -> Any:
    method = METHODS[config["method"]]
    session = client.sessions.create(method.optimizer, parameters={"x": optod.Parameter(task.start)}, direction="minimize",
                                     seed=seed_of(method.label, config["problem"], config["seed"]),
                                     hyperparameters={**method.hyper, "max_tokens": config["max_tokens"]})
    parameter = next(found.id for found in session.nodes() if found.base == "x")
    xs, outcomes = [task.start], Outcomes()
    for _ in range(config["steps"]):
        x = xs[-1]
        if task.error(x) == 0:        # nothing is left to ask for
            xs.append(x)
            continue
        outcomes.step(session, record(session, parameter, task, x), feedback(task, x))
        xs.append(float(session.values()["x"]))
    return xs, {**usage_of(session), "outcomes": outcomes.counts}


def describe(config: Mapping[str, Any], run_: Mapping[str, Any]) -> str:
    label = f"adam {config['lr']:g}" if config["method"] == "adam" else config["method"]
    return f"problem {config['problem']:>2}  {label:<17} |error| {run_['errors'][0]:.4g} -> {min(run_['errors']):.4g}"


# ---- figures

def best_so_far(errors: Sequence[float]) -> List[float]:
    out: List[float] = []
    for error in errors:
        out.append(min(error, out[-1]) if out else error)
    return out


def relative(run_: Mapping[str, Any]) -> List[float]:
    errors = run_["errors"]
    return [error / errors[0] for error in best_so_far(errors)]


def by_method(runs: Sequence[Any]) -> Dict[str, List[Mapping[str, Any]]]:
    """{label: runs over problems}; adam at the rate whose median final figure is least."""
    out: Dict[str, List[Mapping[str, Any]]] = {}
    for config, run_ in runs:
        label = f"adam {config['lr']:g}" if config["method"] == "adam" else config["method"]
        out.setdefault(label, []).append(run_)
    rates = [label for label in out if label.startswith("adam ")]
    if rates:
        best = min(rates, key=lambda label: statistics.median(relative(r)[-1] for r in out[label]))
        chosen = out[best]
        for label in rates:
            del out[label]
        out["adam"] = chosen
    return out


def curves(runs: Sequence[Any]) -> Dict[str, List[Any]]:
    return {label: [(step, statistics.median(column)) for step, column in enumerate(zip(*map(relative, found)))]
            for label, found in by_method(runs).items()}


def rows(runs: Sequence[Any]) -> List[List[str]]:
    """The table: figure by step, latest value, problems solved, cost."""
    lines = curves(runs)
    last = max(x for x, _ in next(iter(lines.values())))
    shown = sorted({0, 1, 2, last // 2, last} & set(range(last + 1)))
    out = [["METHOD", *(f"STEP {s}" for s in shown), "LATEST", "SOLVED", "USABLE", "CALLS", "PROMPT TOKENS", "REPLY TOKENS", "S/STEP"]]
    grouped = by_method(runs)
    for label in sorted(grouped, key=lambda name: lines[name][-1][1]):
        found = grouped[label]
        latest = statistics.median(r["errors"][-1] / r["errors"][0] for r in found)
        solved = sum(min(r["errors"]) <= 1e-6 * max(1.0, r["errors"][0]) for r in found)
        asked = [r for r in found if "calls" in r]
        proposals = sum(sum(r["outcomes"].values()) for r in asked)
        usable = sum(r["outcomes"].get("APPLIED", 0) + r["outcomes"].get("UNCHANGED", 0) for r in asked)
        total = lambda key: f"{sum(r[key] for r in asked):,}"   # noqa: E731
        out.append([label, *(f"{dict(lines[label])[s]:.3f}" for s in shown), f"{latest:.3g}", f"{solved}/{len(found)}",
                    f"{100 * usable / proposals:.0f} %" if proposals else "",
                    *((total("calls"), total("prompt_tokens"), total("completion_tokens")) if asked else ("", "", "")),
                    f"{sum(r['seconds'] for r in found) / max(1, proposals):.2f}" if asked else ""])
    return out


def claims(runs: Sequence[Any]) -> List[Claim]:
    final = {label: line[-1][1] for label, line in curves(runs).items()}
    out: List[Claim] = []
    if "optoprime" not in final:
        return out
    ours = final["optoprime"]
    out.append(Claim("OptoPrime near Adam", f"{ours:.3f} beside {final['adam']:.3f}", f"<= {final['adam'] + 0.1:.3f}", ours <= final["adam"] + 0.1))
    for label, text in (("optoprime-masked", "without the trace clearly worse"), ("opro", "OPRO clearly worse")):
        if label in final:
            out.append(Claim(text, f"{final[label]:.3f} beside {ours:.3f}", f">= {1.25 * ours:.3f}", ours < final[label] and final[label] >= 1.25 * ours))
    out.append(Claim("OptoPrime better than random search", f"{ours:.3f} beside {final['random']:.3f}", f"< {final['random']:.3f}", ours < final["random"]))
    for label in ("optoprime-brief", "textgrad"):
        if label in final:
            out.append(Claim(f"{label} beside OptoPrime", f"{final[label]:.3f} beside {ours:.3f}", "", None))
    grouped = by_method(runs)
    if "textgrad" in grouped:
        each = {label: sum(r["calls"] for r in grouped[label]) / max(1, sum(sum(r["outcomes"].values()) for r in grouped[label]))
                for label in ("optoprime", "textgrad")}
        out.append(Claim("calls a step, TextGrad beside OptoPrime", f"{each['textgrad']:.1f} beside {each['optoprime']:.1f}", "", None))
    return out
