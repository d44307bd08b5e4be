"""The prompt study of Cheng et al., "Trace is the Next AutoDiff" (2024), on BIG-Bench Hard (OPTOD_DATA/bbh), with one model as worker and as optimizer.

The program is a declared workflow that the server runs: prompt template and question ──► model ──► extraction function (in the sandbox) ──► exact match.

Fixed before the first run:
  split       the first 15 examples train, the next 5 validate, the next 20 test; one pass over the training examples, one example a step
  a step      the example is answered; a wrong answer becomes feedback and the optimizer proposes; a right one asks for nothing
  kept        the version of the highest accuracy on the validation examples (the earliest of equals); measured after every change
  parameters  the prompt template; with --train-extract the extraction function too (code, run in the sandbox)
  figure      accuracy on the test examples, of the start and of what was kept; by step: validation accuracy of the best so far, mean over tasks
  chance      `majority`: always the commonest answer of the training examples; `uniform`: one of the task's answers at random (where there are few)
  judged      OptoPrime above its start, and above the better chance; not below OPRO; not below the masked trace
"""

from __future__ import annotations

import collections
import functools
import json
import os
import pathlib
import statistics
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import optod
from optod.studies.report import Claim
from optod.studies.trace_methods import METHODS, Outcomes, seed_of, usage_of

__all__ = ["NAME", "TITLE", "add_arguments", "needs", "configs", "run", "rows", "claims", "curves", "describe"]

NAME = "trace-bbh"
TITLE = "Trace, BIG-Bench Hard: validation accuracy of the best version so far; mean over tasks"
TASKS = ("boolean_expressions", "navigate", "sports_understanding")
TRAIN, VALIDATION, TEST = 15, 5, 20
START = "Answer the question."
MOST_ANSWERS = 20                    # a task with more distinct answers has no uniform chance
EXTRACT = '''def extract(reply):
    """The answer in a reply: a letter in brackets, a word that tasks ask for, else the first line."""
    import re
    letters = re.findall(r"\\([A-Z]\\)", reply)
    words = re.findall(r"\\b(?:yes|no|true|false|valid|invalid)\\b", reply, re.IGNORECASE)
    lines = [line.strip(" .*") for line in reply.splitlines() if line.strip()]
    return (letters or words or lines or [""])[0]
'''


def add_arguments(parser: Any) -> None:
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"[{','.join(TASKS)}]")
    parser.add_argument("--train", type=int, default=TRAIN, help=f"examples, a step each [{TRAIN}]")
    parser.add_argument("--validation", type=int, default=VALIDATION, help=f"[{VALIDATION}]")
    parser.add_argument("--test", type=int, default=TEST, help=f"[{TEST}]")
    parser.add_argument("--answer-tokens", type=int, default=16, help="of an answer [16]")
    parser.add_argument("--train-extract", action="store_true", help="the extraction function is a parameter too")


def _folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("OPTOD_DATA", "")) / "bbh"


def needs(args: Any) -> str:
    """"" or what is missing."""
    if not os.environ.get("OPTOD_DATA"):
        return "needs BIG-Bench Hard: set OPTOD_DATA to a folder that holds bbh/TASK.json"
    if not _folder().is_dir():
        return f"OPTOD_DATA is set, but {_folder()} is not there"
    known = sorted(path.stem for path in _folder().glob("*.json"))
    unknown = [task for task in _tasks(args) if task not in known]
    return f"--tasks: {', '.join(unknown)}: not in {_folder()}; there are {', '.join(known)}" if unknown else ""


def _tasks(args: Any) -> List[str]:
    return [task.strip() for task in args.tasks.split(",") if task.strip()]


def configs(args: Any, model: str) -> List[Dict[str, Any]]:
    tasks = _tasks(args)[:1] if args.quick else _tasks(args)
    sizes = (3, 2, 4) if args.quick else (args.train, args.validation, args.test)
    base = {"seed": args.seed, "train": sizes[0], "validation": sizes[1], "test": sizes[2], "max_tokens": args.max_tokens,
            "answer_tokens": args.answer_tokens, "train_extract": args.train_extract, "model": model}
    return [{**base, "method": label, "task": task} for task in tasks for label in METHODS if label in args.methods]


@functools.lru_cache(maxsize=32)
def examples(task: str) -> Tuple[Dict[str, str], ...]:
    return tuple(json.loads((_folder() / f"{task}.json").read_text(encoding="utf-8"))["examples"])


def split(config: Mapping[str, Any]) -> List[Tuple[Dict[str, str], ...]]:
    """Training, validation and test examples."""
    every, ends = examples(config["task"]), [config["train"], config["validation"], config["test"]]
    out, begin = [], 0
    for size in ends:
        out.append(every[begin:begin + size])
        begin += size
    return out


def chance(config: Mapping[str, Any]) -> Dict[str, float]:
    """Accuracy without a model, on the test examples."""
    train, _, test = split(config)
    commonest = collections.Counter(example["target"] for example in train).most_common(1)[0][0]
    answers = {example["target"] for example in examples(config["task"])}
    return {"majority": sum(example["target"] == commonest for example in test) / len(test),
            "uniform": 1 / len(answers) if len(answers) <= MOST_ANSWERS else 0.0}


def workflow(config: Mapping[str, Any]) -> Dict[str, Any]:
    """The declared workflow; names in braces are parameters, steps and the row."""
    source = "{{extract}}" if config["train_extract"] else EXTRACT
    ask = {"prompt": "{{ask}}", "temperature": 0, "max_tokens": config["answer_tokens"], "seed": seed_of("answers", config["method"], config["task"], config["seed"])}
    return {"data": {"file": f"{config['task']}.jsonl"},        # sent with every run
            "steps": {"ask": {"template": "{{prompt}}\n\nQuestion: {{item.input}}\nAnswer:"},
                      "reply": {"llm": ask, "timeout": "3600s"},
                      "answer": {"python": {"source": source, "function": "extract", "arguments": ["{{reply}}"]}, "description": "takes the answer out of the reply"}},
            "guide": {"exact": {"got": "{{answer}}", "want": "{{item.target}}", "ignore_case": True}},
            "parallel": 4, "trace_rows": 1}


class Program:
    """The workflow on a session: runs examples with the head's values, and remembers the accuracy of values on a set of examples."""

    def __init__(self, session: Any, config: Mapping[str, Any]) -> None:
        self._session, self._text = session, json.dumps(workflow(config))
        self._known: Dict[str, float] = {}

    def run(self, rows: Sequence[Mapping[str, str]]) -> Any:
        done = self._session.run_workflow(self._text, rows, wall=7200.0)
        failed = [row.feedback for row in done.rows if row.failed]
        if failed:
            raise optod.errors.FailedPrecondition(f"the workflow failed: {failed[0][:300]}")
        return done

    def accuracy(self, name: str, rows: Sequence[Mapping[str, str]]) -> float:
        key = name + json.dumps(self._session.values(), sort_keys=True)
        if key not in self._known:
            self._known[key] = self.run(rows).score
        return self._known[key]


def run(client: optod.Client, config: Mapping[str, Any]) -> Dict[str, Any]:
    """{"validation": best so far by step, "test_start", "test", "prompt": what was kept, chance levels and cost}."""
    method, (train, validation, test) = METHODS[config["method"]], split(config)
    parameters: Dict[str, Any] = {"prompt": optod.Parameter(START, description="the instruction before every question")}
    if config["train_extract"]:
        parameters["extract"] = optod.Parameter(EXTRACT, type="code", description="takes the answer out of the model's reply")
    session = client.sessions.create(method.optimizer, parameters=parameters, hyperparameters={**method.hyper, "max_tokens": config["max_tokens"]},
                                     seed=seed_of(method.label, config["task"], config["seed"]), direction="maximize")
    program, outcomes = Program(session, config), Outcomes()
    best, best_version = program.accuracy("validation", validation), session.refresh().head_version
    start, line = best_version, [best]
    for example in train:
        done = program.run([example])
        if done.score < 1 and done.HasField("output_node"):
            outcomes.step(session, done.output_node, done.feedback)
            now = program.accuracy("validation", validation)
            if now > best:
                best, best_version = now, session.refresh().head_version
        line.append(best)
    session.rollback(start)
    at_start = program.accuracy("test", test)
    session.rollback(best_version)
    return {"validation": line, "test_start": at_start, "test": program.accuracy("test", test), "prompt": session.values()["prompt"],
            "changed": best_version != start, "chance": chance(config), "outcomes": outcomes.counts, **usage_of(session)}


def describe(config: Mapping[str, Any], run_: Mapping[str, Any]) -> str:
    return f"{config['task']:<28} {config['method']:<17} test {run_['test_start']:.2f} -> {run_['test']:.2f}"


# ---- figures

def by_method(runs: Sequence[Any]) -> Dict[str, List[Any]]:
    out: Dict[str, List[Any]] = {}
    for config, run_ in runs:
        out.setdefault(config["method"], []).append((config, run_))
    return out


def curves(runs: Sequence[Any]) -> Dict[str, List[Any]]:
    return {label: [(step, statistics.mean(column)) for step, column in enumerate(zip(*(r["validation"] for _, r in found)))]
            for label, found in by_method(runs).items()}


def _mean(found: Sequence[Any], value: Any) -> float:
    return statistics.mean(value(run_) for _, run_ in found)


def rows(runs: Sequence[Any]) -> List[List[str]]:
    tasks = list(dict.fromkeys(config["task"] for config, _ in runs))
    out = [["METHOD", *tasks, "MEAN", "VALIDATION 0", "LAST", "USABLE", "CALLS", "PROMPT TOKENS", "REPLY TOKENS"]]
    for label, found in by_method(runs).items():
        by_task = {config["task"]: run_ for config, run_ in found}
        proposals = sum(sum(r["outcomes"].values()) for _, r in found)
        usable = sum(r["outcomes"].get("APPLIED", 0) + r["outcomes"].get("UNCHANGED", 0) for _, r in found)
        out.append([label, *(f"{by_task[t]['test']:.2f}" if t in by_task else "" for t in tasks), f"{_mean(found, lambda r: r['test']):.3f}",
                    f"{_mean(found, lambda r: r['validation'][0]):.2f}", f"{_mean(found, lambda r: r['validation'][-1]):.2f}",
                    f"{100 * usable / proposals:.0f} %" if proposals else "",
                    *(f"{sum(r[key] for _, r in found):,}" for key in ("calls", "prompt_tokens", "completion_tokens"))])
    first = {config["task"]: run_ for config, run_ in runs[::-1]}
    blank = [""] * 6
    out.append(["start", *(f"{first[t]['test_start']:.2f}" for t in tasks), f"{statistics.mean(first[t]['test_start'] for t in tasks):.3f}", *blank])
    for kind in ("majority", "uniform"):
        out.append([f"chance, {kind}", *(f"{first[t]['chance'][kind]:.2f}" for t in tasks),
                    f"{statistics.mean(first[t]['chance'][kind] for t in tasks):.3f}", *blank])
    return out


def claims(runs: Sequence[Any]) -> List[Claim]:
    grouped = by_method(runs)
    if "optoprime" not in grouped:
        return []
    test = {label: _mean(found, lambda r: r["test"]) for label, found in grouped.items()}
    start = _mean(grouped["optoprime"], lambda r: r["test_start"])
    luck = max(_mean(grouped["optoprime"], lambda r, k=kind: r["chance"][k]) for kind in ("majority", "uniform"))
    ours = test["optoprime"]
    out = [Claim("OptoPrime raises the test accuracy", f"{ours:.3f} from {start:.3f}", f"> {start:.3f}", ours > start),
           Claim("OptoPrime above chance", f"{ours:.3f} beside {luck:.3f}", f"> {luck:.3f}", ours > luck)]
    for label, text in (("opro", "OptoPrime not below OPRO"), ("optoprime-masked", "OptoPrime not below the masked trace")):
        if label in test:
            out.append(Claim(text, f"{ours:.3f} beside {test[label]:.3f}", f">= {test[label]:.3f}", ours >= test[label]))
    for label in ("optoprime-brief", "textgrad"):
        if label in test:
            out.append(Claim(f"{label} beside OptoPrime", f"{test[label]:.3f} beside {ours:.3f}", "", None))
    return out
