#!/usr/bin/env python3
"""Does one user of a server notice seven others?  Eight users with tokens of their own, each a process with two sessions.

    build/venv/bin/python tests/bench/eight_users.py [--bin build/bin] [--seconds 6] [--rounds 3]      (an interpreter with optod)

  user 1 (measured), closed loop ─┐                      a trace step: record 2 nodes, backward, propose (one model call of 50 ms), read the values
  users 2-8, one of four loads ───┼─► optod ─► model     a zeroth-order step: ask, tell; 5 between trace steps
                                  ┘

loads of the seven:  alone  they are not there          idle   connected, with their sessions, doing nothing
                     paced  the same steps as user 1, one round every 0.5 s, as programs that also evaluate something do
                     busy   the same steps without a pause

Windows take turns round after round; a figure is the median of the windows' medians or 99th percentiles.  Clients, server and model share the cores:
the share of them that a round of user 1 takes (CPU seconds of client, server and model) bounds from below what eight busy users can have.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
USERS, ZO_STEPS, MODEL_SECONDS, PAUSE = 8, 5, 0.05, 0.5
LOADS = {"alone": None, "idle": None, "paced": PAUSE, "busy": 0.0}


def cpu_seconds(pid):
    """User and system time that a process has taken."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- the processes

def serve_model():
    sys.path.insert(0, str(ROOT / "tests/e2e/python"))
    from scripted_model import ScriptedModel
    made = ScriptedModel(lambda request: json.dumps({"reasoning": "r", "suggestion": {"k0": random.randrange(1 << 30)}}), MODEL_SECONDS)
    made.requests = type("Nothing", (), {"append": lambda self, item: None})()
    print(made.url, flush=True)
    sys.stdin.read()


class User:
    """One round of work: five zeroth-order steps and one trace step; notes how long each took."""

    def __init__(self, address, token):
        import optod
        self.node = optod.node
        client = optod.connect(address, token)
        self.trace = client.sessions.create("optoprime", parameters={"k": 1})
        self.parameter = next(iter(self.trace.nodes()))
        self.zo = client.sessions.create("zo-sgd", layout={"w": ((31_250, 32_000), "f32")}, lr=1e-6)

    def zo_step(self):
        probe, = self.zo.ask().probes
        self.zo.tell_losses({probe.probe_id: (0.7001, 0.6999)})

    def trace_step(self):
        _, out = self.trace.record([self.node("ab", base="text"),
                                    self.node("abab", base="out", kind="message", op="repeat", inputs={"text": -1, "k": self.parameter.id})])
        self.trace.backward(out, "too short")
        self.trace.propose(candidates=1)
        self.trace.values()

    def work(self, seconds, pause):
        times = {"zo": [], "trace": []}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for kind, step in [("zo", self.zo_step)] * ZO_STEPS + [("trace", self.trace_step)]:
                start = time.monotonic()
                step()
                times[kind].append(time.monotonic() - start)
            time.sleep(pause * random.uniform(0.5, 1.5))
        return times


def be_user(address, token):
    """Reads `SECONDS PAUSE` lines; answers each with the times of its steps as JSON."""
    user = User(address, token)
    user.work(0.5, 0)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, pause = map(float, line.split())
        print(json.dumps(user.work(seconds, pause)), flush=True)


def spawn(*command, **options):
    return subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def start(*command, **options):
    process = spawn(*command, **options)
    return process, process.stdout.readline().strip()


class Machine:
    """The server, the model and the users that are started so far."""

    def __init__(self, binaries, folder):
        self.model, url = start(sys.executable, __file__, "--role", "model")
        env = {**os.environ, "OPTOD_LLM_URL": url, "OPTOD_LLM_MODEL": "scripted"}
        self.server, line = start(binaries / "optod", "--data-dir", f"{folder}/data", "--listen", "127.0.0.1:0", "--http", "off", "--auth", "token",
                                  env=env, stderr=subprocess.DEVNULL)
        self.address = line.split("grpc=")[1].split()[0]
        import optod
        with optod.connect(self.address, pathlib.Path(folder, "data/admin.token").read_text().strip()) as admin:
            self.tokens = []
            for number in range(USERS):
                admin.admin.create_user(f"user-{number + 1}")
                self.tokens.append(admin.admin.create_token(f"users/user-{number + 1}").secret)
        self.measured, = self.users(0, 1)
        self.others = []

    def users(self, first, last):
        made = [spawn(sys.executable, __file__, "--role", "user", "--address", self.address, "--token", token) for token in self.tokens[first:last]]
        for process in made:
            process.stdout.readline()
        return made

    def window(self, load, seconds):
        """What user 1 saw: {"zo": [seconds], "trace": [seconds]}, rounds of all users, CPU seconds of all processes."""
        if load != "alone" and not self.others:
            self.others = self.users(1, USERS)
        while load == "alone" and self.others:
            self.others.pop().communicate()
        running = [self.measured, *(self.others if LOADS[load] is not None else [])]
        before = self.cpu()
        for user in running[1:]:
            print(seconds + 0.5, LOADS[load], file=user.stdin, flush=True)
        time.sleep(0.25 if len(running) > 1 else 0)
        print(seconds, 0.0, file=self.measured.stdin, flush=True)
        answers = [json.loads(user.stdout.readline()) for user in running]
        return answers[0], sum(len(a["trace"]) for a in answers), self.cpu() - before

    def cpu(self):
        return sum(cpu_seconds(process.pid) for process in (self.server, self.model, self.measured, *self.others))

    def stop(self):
        for process in (self.measured, *self.others, self.model):
            process.communicate()
        self.server.terminate()
        self.server.wait()


# ---- figures

def p99(values):
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def report(windows):
    """windows: {load: [(times, rounds, cpu)]}."""
    def median(load, kind, of):
        return statistics.median(of(times[kind]) for times, _, _ in windows[load]) * 1000

    print("| the seven others | trace step p50 ms | p99 ms | p99, ratio | zeroth-order step p50 ms | p99 ms | p99, ratio | rounds/s, all users | cores busy |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for load in windows:
        cells = []
        for kind in ("trace", "zo"):
            tail = median(load, kind, p99)
            cells += [f"{median(load, kind, statistics.median):.1f}", f"{tail:.1f}", f"**{tail / median('alone', kind, p99):.2f}**"]
        seconds = [sum(map(sum, times.values())) for times, _, _ in windows[load]]
        rounds = statistics.median(n / s for (_, n, _), s in zip(windows[load], seconds))
        cores = statistics.median(cpu / s for (_, _, cpu), s in zip(windows[load], seconds))
        print(f"| {load} | {' | '.join(cells)} | {rounds:.1f} | {cores:.2f} |")
    cost = statistics.median(cpu / n for _, n, cpu in windows["alone"])
    bound = cost * USERS / os.cpu_count()
    alone = statistics.median(sum(map(sum, times.values())) / len(times["trace"]) for times, _, _ in windows["alone"])
    print(f"\nA round (5 + 1 steps) takes user 1 alone {alone * 1000:.0f} ms and all processes {cost * 1000:.1f} ms of CPU: eight users without a pause "
          f"need {bound * 1000:.0f} ms a round of {os.cpu_count()} cores at the least, {max(1.0, bound / alone):.2f} times what one alone takes.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/bin")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", choices=["bench", "model", "user"], default="bench", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--token", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "model":
        return serve_model()
    if arguments.role == "user":
        return be_user(arguments.address, arguments.token)
    with tempfile.TemporaryDirectory(prefix="optod-eight-") as folder:
        machine = Machine(arguments.bin, folder)
        windows = {load: [] for load in LOADS}
        for _ in range(arguments.rounds):
            for load in LOADS:
                windows[load].append(machine.window(load, arguments.seconds))
        machine.stop()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.rounds} windows of {arguments.seconds:g} s a load, "
          f"{sum(len(t['trace']) for t, _, _ in windows['alone'])} trace steps of user 1 alone")
    report(windows)


if __name__ == "__main__":
    main()
