#!/usr/bin/env python3
"""Runs a folder of the peer's tests through optod.compat, each file in a process of its own, and prints how many passed.

    tests/peer/run_trace_tests.py --suite DIR [--dialect opentrace|trace] [--only NAME ...] [--verbose]

DIR: tests/unit_tests of a checkout of microsoft/Trace (dialect trace) or AgentOpt/OpenTrace (dialect opentrace, the default); it is read, nothing of it is kept.
Files with test functions run under pytest; what such a file does when it is imported counts as one more test, "(import)".  Files without run as programs,
each one test.  A private server is used unless OPTOD_ADDRESS is set; the model is answering_model.py (so the tests that need one run too) unless --model none.
Exit status: 0 when all that ran passed.
"""

import argparse
import ast
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

from answering_model import ScriptedModel

PLUGIN = "import optod.compat\noptod.compat.install({dialect!r})\n"


def has_test_functions(path):
    """Whether pytest finds tests in the file; one that calls its own functions at the end is a program all the same."""
    tree = ast.parse(path.read_text())
    names = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and n.name.lower().startswith("test")}
    called = {n.value.func.id for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and isinstance(n.value.func, ast.Name)}
    return bool(names) and not names & called


def run_pytest(path, folder, environment, seconds):
    """[(test, outcome, message)]"""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", "-p", "optod_peer_plugin", "--rootdir", str(folder),
               f"--junit-xml={report}", str(path)]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return [("(import)", "failed", f"no end after {seconds} s")]
    if not report.exists():
        return [("(import)", "failed", (done.stdout + done.stderr)[-400:])]
    out = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = next((c for c in case if c.tag in ("failure", "error")), None)
        skipped = next((c for c in case if c.tag == "skipped"), None)
        message = (bad if bad is not None else skipped).get("message", "") if bad is not None or skipped is not None else ""
        out.append((case.get("name"), "failed" if bad is not None else "skipped" if skipped is not None else "passed", message))
    return out


def run_program(path, folder, environment, seconds):
    command = [sys.executable, "-c", f"import optod_peer_plugin, runpy, sys; sys.argv=[{str(path)!r}]; runpy.run_path({str(path)!r}, run_name='__main__')"]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return [("(program)", "failed", f"no end after {seconds} s")]
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return [("(program)", "passed" if done.returncode == 0 else "failed", "" if done.returncode == 0 else lines[-1] + " | " + lines[-2 if len(lines) > 1 else -1].strip())]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, type=pathlib.Path)
    parser.add_argument("--dialect", default="opentrace", choices=["opentrace", "trace"])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of one file")
    parser.add_argument("--model", default="scripted", choices=["scripted", "none"])
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    suite = options.suite.resolve()
    files = sorted(p for p in suite.glob("*.py") if p.name != "run.py" and (not options.only or any(o in p.name for o in options.only)))
    if not files:
        sys.exit(f"{suite}: holds no tests")
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory(prefix="optod-peer-") as temporary:
        folder = pathlib.Path(temporary)
        (folder / "optod_peer_plugin.py").write_text(PLUGIN.format(dialect=options.dialect))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]), "MPLBACKEND": "Agg"}
        if options.model == "scripted":
            model = ScriptedModel()
            environment.update(OPTOD_LLM_URL=model.url, OPTOD_LLM_MODEL="scripted", OPTOD_LLM_KEY="none", TRACE_LITELLM_MODEL="scripted",
                               OPENAI_BASE_URL=model.url, OPENAI_API_KEY="none")
        print(f"{'file':44} {'passed':>6} {'failed':>6} {'skipped':>7}")
        for path in files:
            run = run_pytest if has_test_functions(path) else run_program
            results = run(path, folder, environment, options.seconds) or run_program(path, folder, environment, options.seconds)
            counts = {k: sum(1 for r in results if r[1] == k) for k in totals}
            for key in totals:
                totals[key] += counts[key]
            print(f"{path.name:44} {counts['passed']:6} {counts['failed']:6} {counts['skipped']:7}", flush=True)
            for name, outcome, message in results:
                if outcome != "passed" or options.verbose:
                    print(f"    {outcome}: {name}: {' '.join(message.split())[:300]}", flush=True)
    print(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
