#!/usr/bin/env python3
"""Durable ask + tell from 64 concurrent callers: zo-sgd sessions of optod beside suggest + complete of OSS Vizier and of Optuna.

    cmake --build build --target optod steps_client
    python3 tests/bench/steps_bench.py                        # about 7 minutes; the table goes to stdout
    python3 tests/bench/steps_bench.py --history 1000000      # does a session with a past slow down?

  callers            servers, each on SQLite, on loopback, fsync at every commit
  64, in 4 processes ─► optod            Ask + Tell, or one message of AskTellStream (C++ and Python clients)
                     ─► Vizier           suggest(count=1) + complete; RANDOM_SEARCH; database file in WAL mode
                     ─► Optuna           study.ask + study.tell; RandomSampler; gRPC proxy over SQLite in WAL mode, busy timeout 60 s

Shapes: "own" = every caller has a session (study) of its own; "shared" = all on one (optod: one query a caller, so that 64 steps make a version).
Every window uses new sessions and studies. The systems take turns, window after window; a row shows the median of its windows.
Server CPU is user + system time of the server process for a step: the figure that other work on the machine moves least.

The script makes build/bench-venv from tests/bench/requirements.txt on first use and runs itself there. A peer that cannot be installed or
started is reported with its reason, and the rest goes on.
"""

import argparse
import collections
import json
import multiprocessing
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYOUT = {"w": ((31_250, 32_000), "f32")}   # 1 B parameters, no values on the server
PROCESSES = 4


# ---- the environment of the peers

def enter_environment(build: pathlib.Path) -> None:
    """Runs this script again under build/bench-venv, which is made when it is not there."""
    venv = build / "bench-venv"
    python = venv / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == venv.resolve():
        return
    wanted = (ROOT / "tests/bench/requirements.txt").read_text()
    stamp = venv / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print("installing the peers into", venv, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        packages = [line for line in wanted.splitlines() if line and not line.startswith("#")]
        whole = subprocess.run([python, "-m", "pip", "install", "-q", *packages])
        for package in packages if whole.returncode else []:   # one that does not install must not take the others with it
            subprocess.run([python, "-m", "pip", "install", "-q", package])
        stamp.write_text(wanted)
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


def make_python_client(build: pathlib.Path) -> None:
    """clients/python with generated stubs under build/bench-python, first on the import path."""
    target = build / "bench-python"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "clients/python/src/optod", target / "optod")
    (target / "optod/v1").mkdir(exist_ok=True)
    (target / "optod/v1/__init__.py").touch()
    protos = sorted(str(path) for path in (ROOT / "protos/optod/v1").glob("*.proto"))
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"--python_out={target}", f"--grpc_python_out={target}",
                    *protos], check=True)
    os.environ["PYTHONPATH"] = str(target)
    sys.path.insert(0, str(target))


# ---- one step of each system from Python

class OptodLoad:
    def __init__(self, address):
        import optod
        self.optod = optod
        self.client = optod.connect(address)

    def caller(self, shape, run, index, callers):
        name = f"py-{run}" if shape == "shared" else f"py-{run}-{index}"
        try:
            session = self.client.sessions.create("zo-sgd", layout=LAYOUT, lr=1e-6, queries=callers if shape == "shared" else 1, id=name)
        except self.optod.errors.AlreadyExists:
            session = self.client.sessions.get(name)

        def step():
            probes = session.ask(worker=f"worker-{index}", wait=5).probes
            if not probes:
                return False
            session.tell_losses({probes[0].probe_id: (0.7001, 0.6999)})
            return True
        return step


class OptodStreamLoad(OptodLoad):
    """The channel that optod's own Python worker uses: a tell and the next ask in one message."""

    def caller(self, shape, run, index, callers):
        from optod.v1 import session_pb2 as pb
        from optod.worker import AskTellChannel
        name = f"pys-{run}" if shape == "shared" else f"pys-{run}-{index}"
        try:
            session = self.client.sessions.create("zo-sgd", layout=LAYOUT, lr=1e-6, queries=callers if shape == "shared" else 1, id=name)
        except self.optod.errors.AlreadyExists:
            session = self.client.sessions.get(name)
        channel, ask, held = AskTellChannel(session.transport, session.stub), pb.AskRequest(session=session.name, worker=f"worker-{index}"), []
        ask.wait.seconds = 5

        def step():
            request = pb.AskTellRequest(ask=ask)
            if held:
                result = pb.ProbeResult(probe_id=held.pop(), loss_plus=0.7001, loss_minus=0.6999)
                request.tell.CopyFrom(pb.TellRequest(session=session.name, losses=pb.LossTell(results=[result])))
            told = request.HasField("tell")
            held.extend(probe.probe_id for probe in channel.exchange(request, timeout=60).ask.probes[:1])
            return told
        return step


class VizierLoad:
    def __init__(self, address):
        from vizier.service import clients, pyvizier
        clients.environment_variables.server_endpoint = address
        self.clients, self.vz = clients, pyvizier

    def caller(self, shape, run, index, callers):
        config = self.vz.StudyConfig(algorithm="RANDOM_SEARCH")
        config.search_space.root.add_float_param("x", 0.0, 1.0)
        config.metric_information.append(self.vz.MetricInformation("loss", goal=self.vz.ObjectiveMetricGoal.MINIMIZE))
        name = f"{run}" if shape == "shared" else f"{run}-{index}"
        study = self.clients.Study.from_study_config(config, owner="bench", study_id=name)

        def step():
            (trial,) = study.suggest(count=1, client_id=f"worker-{index}")
            trial.complete(self.vz.Measurement({"loss": 0.7}))
            return True
        return step


class OptunaLoad:
    def __init__(self, address):
        import optuna
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        host, port = address.split(":")
        self.optuna = optuna
        self.storage = optuna.storages.GrpcStorageProxy(host=host, port=int(port))

    def caller(self, shape, run, index, callers):
        name = f"{run}" if shape == "shared" else f"{run}-{index}"
        study = self.optuna.create_study(storage=self.storage, sampler=self.optuna.samplers.RandomSampler(), study_name=name, load_if_exists=True)
        space = {"x": self.optuna.distributions.FloatDistribution(0.0, 1.0)}

        def step():
            study.tell(study.ask(space), 0.7)
            return True
        return step


LOADS = {"optod": OptodLoad, "optod-stream": OptodStreamLoad, "vizier": VizierLoad, "optuna": OptunaLoad}


def run_caller(step, window, latencies, errors):
    begin, end = window
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            done = step()
        except Exception as error:  # whatever a client raises is a figure here
            text = re.sub(r"\s+", " ", str(error))
            locked = re.search(r"database is locked", text)
            errors[f"{type(error).__name__}: {locked.group(0) if locked else text[:120]}"] += 1
            continue
        now = time.monotonic()
        if done and begin <= now < end:
            latencies.append((now - start) * 1e3)


def load_process(pipe, kind, address, indices, callers):
    """Commands: (shape, run) makes the callers and answers None or an error; then (start, warmup, seconds) runs and answers what was seen."""
    try:
        load = LOADS[kind](address)
        pipe.send(None)
    except Exception as error:
        return pipe.send(f"{type(error).__name__}: {error}")
    while (command := pipe.recv()) is not None:
        try:
            steps = [load.caller(*command, index, callers) for index in indices]
            pipe.send(None)
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
            continue
        start, warmup, seconds = pipe.recv()
        window = (start + warmup, start + warmup + seconds)
        seen = [([], collections.Counter()) for _ in steps]
        threads = [threading.Thread(target=run_caller, args=(step, window, *pair)) for step, pair in zip(steps, seen)]
        time.sleep(max(0.0, start - time.monotonic()))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipe.send(([x for latencies, _ in seen for x in latencies], sum((errors for _, errors in seen), collections.Counter())))


class PythonLoad:
    """64 callers of one system, as threads of a few processes that live as long as the benchmark."""

    def __init__(self, kind, address, callers):
        self.kind, self.pipes, self.children = kind, [], []
        context = multiprocessing.get_context("spawn")
        for process in range(PROCESSES):
            here, there = context.Pipe()
            child = context.Process(target=load_process, args=(there, kind, address, range(process, callers, PROCESSES), callers), daemon=True)
            child.start()
            self.pipes.append(here)
            self.children.append(child)
        self._all_well()

    def _all_well(self):
        problems = [pipe.recv() for pipe in self.pipes]
        if any(problems):
            raise RuntimeError(next(filter(None, problems)))

    def window(self, shape, run, warmup, seconds):
        for pipe in self.pipes:
            pipe.send((shape, run))
        self._all_well()
        for pipe in self.pipes:
            pipe.send((time.monotonic() + 0.1, warmup, seconds))
        latencies, errors = [], collections.Counter()
        for pipe in self.pipes:
            one, other = pipe.recv()
            latencies += one
            errors += other
        latencies.sort()
        at = lambda p: latencies[int(p * (len(latencies) - 1))] if latencies else 0.0
        return {"steps": len(latencies), "steps_per_s": len(latencies) / seconds, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
                "errors": sum(errors.values()), "first_error": ", ".join(f"{text} ({n}x)" for text, n in errors.most_common(3))}

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)


# ---- servers

def serve_peer(kind, port, database):
    import sqlite3
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")   # a property of the file; faster for both peers than their default
    connection.close()
    if kind == "vizier":
        from vizier.service import servers
        server = servers.DefaultVizierServer(host="127.0.0.1", port=port, database_url=f"sqlite:///{database}")
        print("ready", flush=True)
        signal.pause()
        del server
    import optuna
    storage = optuna.storages.get_storage(f"sqlite:///{database}?timeout=60")
    print("ready", flush=True)
    optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port=port)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, argv, folder, address, log_name):
        self.address, self.log = address, folder / log_name
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=open(self.log, "ab"), text=True)
        line = self.process.stdout.readline()
        if "ready" not in line:
            self.process.wait()
            tail = self.log.read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"server did not start: {line.strip()} {' '.join(tail)}")

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            print("a server did not end within 30 s of SIGTERM; killed:", self.process.args[0], file=sys.stderr)
            self.process.kill()
            self.process.wait()


def start_optod(build, folder, name, synchronous="full"):
    port = free_port()
    argv = [build / "bin/optod", "--data-dir", folder / name, "--listen", f"127.0.0.1:{port}", "--http", "off", "--synchronous", synchronous]
    return Server([str(a) for a in argv], folder, f"127.0.0.1:{port}", name + ".log")


def start_peer(kind, folder):
    port = free_port()
    return Server([sys.executable, __file__, "--serve", kind, str(port), str(folder / f"{kind}.db")], folder, f"127.0.0.1:{port}", kind + ".log")


def steps_client(build, address, **options):
    argv = [str(build / "bin/steps_client"), address]
    for name, value in options.items():
        argv += ["--" + name, str(value)]
    run = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"steps_client ended {run.returncode}")
    return json.loads(run.stdout)


# ---- measuring

def fsync_rates(folder, seconds=1.5):
    """fdatasync/s after writing 4 KiB: appended (the file grows) and in place (as in a WAL that is reused)."""
    rates = {}
    path = folder / "fsync"
    for name in ("append", "in place"):
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        os.pwrite(fd, bytes(1 << 20), 0)
        os.fsync(fd)
        count, start = 0, time.monotonic()
        while time.monotonic() - start < seconds:
            os.pwrite(fd, bytes(4096), (1 << 20) + count * 4096 if name == "append" else count % 256 * 4096)
            os.fdatasync(fd)
            count += 1
        rates[name] = count / (time.monotonic() - start)
        os.close(fd)
        path.unlink()
    return rates


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    return f"{cpu}, {os.cpu_count()} threads, {platform.system()} {platform.release()}"


def measure(server, call):
    """The window's figures with what the server used and how busy the machine was."""
    load, cpu = os.getloadavg()[0], server.cpu_seconds()
    figures = call()
    used = server.cpu_seconds() - cpu
    total = figures["steps"] * figures.get("whole_over_window", 1.0)
    figures.update(load_before=load, load_after=os.getloadavg()[0], server_cpu_us=used / total * 1e6 if total else None)
    return figures


def median_row(label, windows):
    middle = lambda key: statistics.median(w[key] for w in windows if w[key] is not None) if any(w[key] is not None for w in windows) else None
    row = {key: middle(key) for key in ("steps_per_s", "p50_ms", "p99_ms", "server_cpu_us")}
    row.update(label=label, errors=sum(w["errors"] for w in windows), windows=windows,
               spread=(min(w["steps_per_s"] for w in windows), max(w["steps_per_s"] for w in windows)),
               load=(min(w["load_before"] for w in windows), max(w["load_after"] for w in windows)))
    return row


def take_turns(entries, repetitions):
    """entries: {label: (server, function -> figures)}. A B C A B C ...; an entry that fails is dropped with its reason."""
    windows, failed = collections.defaultdict(list), {}
    for repetition in range(repetitions):
        for label, (server, call) in entries.items():
            if label in failed:
                continue
            try:
                windows[label].append(measure(server, lambda: call(repetition)))
            except (RuntimeError, EOFError, OSError) as error:
                failed[label] = str(error) or type(error).__name__
                continue
            last = windows[label][-1]
            print(f"  {repetition + 1}/{repetitions} {label}: {last['steps_per_s']:.0f}/s, load {last['load_after']:.1f}", file=sys.stderr)
    return [median_row(label, windows[label]) for label in entries if windows[label]], failed


def compare(build, folder, options):
    entries, servers, notes = {}, [], {}
    whole = (options.warmup + options.seconds) / options.seconds   # CPU is read over warm-up and window
    ours = start_optod(build, folder, "optod")
    servers.append(ours)

    def cpp(mode, shape):
        return lambda _: {**steps_client(build, ours.address, mode=mode, shape=shape, callers=options.callers, processes=PROCESSES,
                                         seconds=options.seconds, warmup=options.warmup), "whole_over_window": whole}

    def python(load, shape, server):
        def window(repetition):
            return {**load.window(shape, f"{load.kind}{shape}{repetition}", options.warmup, options.seconds), "whole_over_window": whole}
        return server, window

    loads = {}
    for kind in ("optod", "optod-stream", "vizier", "optuna"):
        try:
            server = ours if kind.startswith("optod") else start_peer(kind, folder)
            if server is not ours:
                servers.append(server)
            if kind == "optod":
                make_python_client(build)
            loads[kind] = (PythonLoad(kind, server.address, options.callers), server)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            notes[kind] = str(error)
    names = {"optod": "optod, Python unary", "optod-stream": "optod, Python stream", "vizier": "Vizier", "optuna": "Optuna"}
    for shape in ("own", "shared"):
        for mode in ("stream", "unary"):
            entries[f"optod, C++ {mode} | {shape}"] = (ours, cpp(mode, shape))
        for kind, (load, server) in loads.items():
            entries[f"{names[kind]} | {shape}"] = python(load, shape, server)
    rows, failed = take_turns(entries, options.windows)
    for load, _ in loads.values():
        load.close()
    for server in servers:
        server.stop()
    return rows, {**notes, **failed}


def history(build, folder, options):
    """A: an empty server. B: a server whose session "old" has made --history steps. Both with fsync at every commit."""
    makes = start_optod(build, folder, "old", synchronous="normal")   # the past is written without an fsync a step: same rows, sooner
    past = steps_client(build, makes.address, history=options.history, session="old")
    makes.stop()
    start = time.monotonic()
    old = start_optod(build, folder, "old")
    ready = time.monotonic() - start
    fresh = start_optod(build, folder, "fresh")

    def one(server, session):
        def window(repetition):
            name = session or f"new-{repetition}-{server is old:d}"
            return {**steps_client(build, server.address, mode="stream", shape="own", callers=1, session=name, seconds=options.seconds,
                                   warmup=options.warmup), "whole_over_window": (options.warmup + options.seconds) / options.seconds}
        return server, window

    def many(server):
        return server, lambda _: {**steps_client(build, server.address, mode="stream", shape="own", callers=options.callers, processes=PROCESSES,
                                                 seconds=options.seconds, warmup=options.warmup),
                                  "whole_over_window": (options.warmup + options.seconds) / options.seconds}

    million = f"{options.history:,} past steps"
    entries = {"new session, empty server | 1 caller": one(fresh, None),
               f"new session beside one with {million} | 1 caller": one(old, None),
               f"session with {million} | 1 caller": one(old, "old"),
               f"new sessions, empty server | {options.callers} callers": many(fresh),
               f"new sessions beside one with {million} | {options.callers} callers": many(old)}
    rows, failed = take_turns(entries, options.windows)
    size = sum(path.stat().st_size for path in (folder / "old").rglob("*") if path.is_file())
    old.stop()
    fresh.stop()
    print(f"past: {past['steps']:,} steps in {past['seconds']:.0f} s ({past['steps_per_s']:.0f}/s over one stream, synchronous=normal); "
          f"data folder {size / 1e6:.0f} MB; restart to ready {ready * 1e3:.0f} ms\n")
    return rows, failed


def ratio_lines(rows):
    rate = {row["label"]: row["steps_per_s"] for row in rows}
    for shape in ("own", "shared"):
        for peer in ("Vizier", "Optuna"):
            base = rate.get(f"{peer} | {shape}")
            if not base:
                continue
            parts = [f"{name} {rate[key] / base:.0f}x" for name in ("C++ stream", "C++ unary", "Python stream", "Python unary")
                     if (key := f"optod, {name} | {shape}") in rate]
            yield f"- {shape}, against {peer}: " + ", ".join(parts)


def print_table(rows, failed, options, disk):
    print(f"{time.strftime('%Y-%m-%d')}, {machine()}; {options.windows} windows of {options.seconds:g} s after {options.warmup:g} s of warm-up each, "
          f"medians; {options.callers} callers in {PROCESSES} processes unless the row says otherwise.")
    print("fdatasync of 4 KiB: " + "; ".join(f"{when}: " + ", ".join(f"{rate:.0f}/s {name}" for name, rate in rates.items())
                                            for when, rates in disk.items()) + ".\n")
    print("| system | callers on | steps/s (min-max) | p50 ms | p99 ms | server CPU µs/step | errors | load |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        system, where = row["label"].split(" | ")
        low, high = row["spread"]
        cpu = f"{row['server_cpu_us']:,.0f}" if row["server_cpu_us"] else "-"
        print(f"| {system} | {where} | **{row['steps_per_s']:,.0f}** ({low:,.0f}-{high:,.0f}) | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {cpu} | "
              f"{row['errors']} | {row['load'][0]:.0f}-{row['load'][1]:.0f} |")
    print()
    for line in ratio_lines(rows):
        print(line)
    for row in rows:
        text = next((w["first_error"] for w in row["windows"] if w.get("first_error")), "")
        if text:
            print(f"- errors of {row['label']}: {text}")
    for name, reason in failed.items():
        print(f"- not measured: {name}: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build", help="folder with bin/optod and bin/steps_client")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--warmup", type=float, default=2)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--history", type=int, default=0, metavar="STEPS", help="compare a session with a past with a new one, instead of the peers")
    parser.add_argument("--json", type=pathlib.Path, help="file for all windows")
    parser.add_argument("--data", type=pathlib.Path, help="folder on the disk to measure; default: the build folder's")
    parser.add_argument("--serve", nargs=3, metavar=("PEER", "PORT", "DATABASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve_peer(options.serve[0], int(options.serve[1]), options.serve[2])
    build = options.build.resolve()
    enter_environment(build)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="steps-", dir=options.data or build))
    try:
        disk = {"before": fsync_rates(folder)}
        rows, failed = (history if options.history else compare)(build, folder, options)
        disk["after"] = fsync_rates(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_table(rows, failed, options, disk)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "date": time.strftime("%Y-%m-%dT%H:%M:%S"), "fdatasync": disk, "rows": rows,
                                            "failed": failed}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
