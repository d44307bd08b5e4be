#!/usr/bin/env python3
"""Runs the peer's own example programs, unchanged, through optod.compat: greeting, battleship (the tutorial notebook's cells) and BIG-Bench Hard.

    OPTOD_DATA=... tests/peer/run_examples.py --checkout DIR [--only greeting battleship bbh] [--llm scripted|environment] [--verbose]

DIR: a checkout of microsoft/Trace; it is read, nothing of it is kept.  Each example runs in a process of its own against a private server (or OPTOD_ADDRESS).
--llm environment takes the model of OPTOD_LLM_URL, OPTOD_LLM_MODEL, OPTOD_LLM_KEY instead of answering_model.py.  What the examples import beside the peer
(autogen, ray, datasets, notebook widgets) is stood in for by modules of a few lines here; the data set is OPTOD_DATA/bbh.  Exit status: 0 when all ran to the end.
"""

import argparse
import json
import linecache
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


def module(name, **members):
    made = types.ModuleType(name)
    made.__dict__.update(members)
    sys.modules[name] = made
    return made


def stand_ins():
    """What the examples import: language model clients, progress bars, remote calls, data sets, widgets."""
    from optod.llm import OpenAICompatible

    class Wrapper:
        def __init__(self, config_list=None, **_):
            self._model = OpenAICompatible()

        def create(self, **options):
            return self._model.create(**options)

    class Widget:
        value = ""

        def __init__(self, *_, **__):
            pass

        def on_click(self, *_):
            pass

    def load_dataset(name, task):
        path = pathlib.Path(os.environ["OPTOD_DATA"]) / "bbh" / f"{task}.json"
        return {"train": json.loads(path.read_text())["examples"]}

    module("autogen", OpenAIWrapper=Wrapper, config_list_from_json=lambda *_, **__: [{"model": "default"}])
    module("ray", init=lambda *_, **__: None, remote=lambda f: f, get=lambda x: x)
    module("datasets", load_dataset=load_dataset)
    module("tqdm", tqdm=lambda x, **_: x)
    module("ipywidgets", Text=Widget, Password=Widget, Button=Widget)
    module("IPython")
    module("IPython.display", display=lambda *_: None)


def run_cells(path):
    """The code cells of a notebook, one after the other in one namespace; lines of magic commands are left out."""
    names = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        text = "\n".join(line for line in "".join(cell["source"]).split("\n") if not line.lstrip().startswith(("%", "!")))
        file = f"<cell {number}>"
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        exec(compile(text, file, "exec"), names)
    return names


def child(example, checkout):
    import optod.compat
    optod.compat.install("trace")
    stand_ins()
    if example == "greeting":
        names = runpy.run_path(str(checkout / "examples" / "greeting.py"))
        agent = names["train"]()
        optimizer_parameters = agent.parameters()
    elif example == "battleship":
        runpy.run_path(str(checkout / "examples" / "battleship.py"))
        names = run_cells(checkout / "docs" / "examples" / "game" / "battleship.ipynb")
        optimizer_parameters = names["optimizer"].parameters
    else:
        sys.argv = ["run_prompt_bigbench_trace.py", "--task", "boolean_expressions", "--train", "--save_path", "results"]
        names = runpy.run_path(str(checkout / "examples" / "bbh" / "run_prompt_bigbench_trace.py"), run_name="__main__")
        optimizer_parameters = names["dp"].parameters()
        print("val_acc", names["stats"]["val_acc"])
    print("parameters:", {p.name: str(p.data)[:60] for p in optimizer_parameters})
    from optod import private
    client = private.default_client()
    for session in client.sessions.list():
        info = session.refresh().info
        print("session:", info.optimizer.name, "versions", info.version_count, "steps", info.usage.steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", required=True, type=pathlib.Path)
    parser.add_argument("--only", nargs="*", default=["greeting", "battleship", "bbh"])
    parser.add_argument("--llm", default="scripted", choices=["scripted", "environment"])
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--child")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    if options.child:
        return child(options.child, checkout)
    environment = dict(os.environ)
    if options.llm == "scripted":
        from answering_model import ScriptedModel
        model = ScriptedModel()
        environment.update(OPTOD_LLM_URL=model.url, OPTOD_LLM_MODEL="scripted", OPTOD_LLM_KEY="none")
    failed = 0
    for example in options.only:
        if example == "bbh" and not os.environ.get("OPTOD_DATA"):
            print("bbh         skipped: OPTOD_DATA is not set")
            continue
        with tempfile.TemporaryDirectory(prefix="optod-example-") as folder:
            command = [sys.executable, os.path.abspath(__file__), "--checkout", str(checkout), "--child", example]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=options.seconds)
        tail = [line for line in done.stdout.splitlines() if line.startswith(("session:", "parameters:", "val_acc"))]
        print(f"{example:11} {'ran to its end' if done.returncode == 0 else 'failed'}", *tail, sep="\n    ")
        if done.returncode != 0 or options.verbose:
            print(done.stdout[-3000:] if options.verbose else "", done.stderr[-3000:])
        failed += done.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
