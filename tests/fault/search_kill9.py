"""Kills the server with SIGKILL at random moments of searches whose model calls are paid, and checks that no durable reply is asked for again.

    optod ──► a workflow's two model calls a task ──┐
      │                                             ├──► counting model: every request answers with a text of its own
      └────► an optimizer's proposals ──────────────┘
    kill -9, read what the store holds, start again on the same folder, let the search go on: N rounds for each algorithm

    python tests/fault/search_kill9.py [--rounds N] [--seed S] [--longest SECONDS]

A reply is paid for when the model sent it, and received when it is in the store. Checked at the end of every search:
  - no request whose reply the store held at a kill was asked again after it, neither a proposal's nor an evaluation's
  - what was asked again is what was under way at a kill: at most as many requests a kill as may be on the wire at once
  - it came with the Idempotency-Key of the first time, and no two different requests share one: an endpoint that knows the header charges once
  - the search ended, its best version is the head, and its score is what the workflow gives for that version's values
  - equal values on a task were evaluated once; the session's usage counts every received reply once
Exit status 0 when all of it holds.
"""

import argparse
import json
import pathlib
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "python"))
import counting_model  # noqa: E402
import optod  # noqa: E402
from live_server import LiveServer  # noqa: E402
from optod.v1 import search_pb2 as pb  # noqa: E402

ALGORITHMS = ("minibatch", "beam", "ucb", "priority", "pareto")
ON_THE_WIRE = 8          # EndpointConfig.max_concurrency
TASKS, STEPS = 4, 4
PATIENT = optod.RetryPolicy(attempts=1000, first_wait=0.01, longest_wait=0.05)


def durable_requests(data_dir):
    """Numbers of the requests whose reply a copy of the store holds, in whatever table."""
    found = set()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("optod.db", "optod.db-wal"):
            if (pathlib.Path(data_dir) / name).exists():
                shutil.copy(pathlib.Path(data_dir) / name, folder)
        connection = sqlite3.connect(pathlib.Path(folder) / "optod.db")
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f"SELECT * FROM {table}"):      # noqa: S608
                for value in row:
                    raw = value.encode() if isinstance(value, str) else value
                    if isinstance(raw, bytes):
                        found |= {int(number) for number in re.findall(rb"request (\d+)\.", raw)}
        connection.close()
    return found


class Round:
    """One search of an algorithm, killed again and again until it has ended."""

    def __init__(self, algorithm, args, rng, report):
        self.algorithm, self.args, self.rng, self.report = algorithm, args, rng, report
        self.kills = []          # (requests that came before it, those whose replies were durable)

    def run(self, folder):
        model = counting_model.CountingModel(counting_model.answer, delay=lambda: self.rng.uniform(0.0, 0.06))
        server = LiveServer(f"{folder}/{self.algorithm}", args=["--executor", "sandbox"], env=model.environment()).start()
        try:
            name = self.start(server)
            for _ in range(self.args.rounds):
                time.sleep(self.rng.uniform(0.0, self.args.longest))
                server.kill()
                self.note(model, server.data_dir)
                server.start()
                if self.go_on(server, name).state in (pb.Search.DONE, pb.Search.STOPPED):
                    break
            self.check(server, name, model)
        finally:
            server.stop()
            model.shutdown()
        return len(self.kills), len(model.log)

    def start(self, server):
        with server.connect() as client:
            session = client.sessions.create("optoprime", parameters={"k": optod.Parameter(5, min=0, max=40)}, direction="maximize")
            return session.search(self.algorithm, workflow=json.dumps(counting_model.WORKFLOW), rows=list(range(TASKS)), batch=2, proposals=2, candidates=2,
                                  max_steps=STEPS, seed=self.rng.randrange(1000), ensure_improvement=self.algorithm == "minibatch").name

    def go_on(self, server, name):
        with server.connect(retry=PATIENT) as client:
            return optod.searches.Search(client, pb.Search(name=name)).resume()

    def note(self, model, data_dir):
        time.sleep(0.1)          # answers under way find nobody now
        self.kills.append((len(model.log), durable_requests(data_dir)))

    def check(self, server, name, model):
        with server.connect(retry=PATIENT) as client:
            search = optod.searches.Search(client, pb.Search(name=name))
            search.resume()
            done = search.wait(timeout=300.0)
            session = client.sessions.get(name.rsplit("/searches/", 1)[0])
            self.check_search(done, session)
            self.check_calls(model.log, session.refresh().info.usage.llm_calls)

    def check_search(self, done, session):
        self.report(done.state == pb.Search.DONE, f"state {pb.Search.State.Name(done.state)} {done.reason}")
        self.report(session.head_version == done.best_version, f"head {session.head_version}, best {done.best_version}")
        seen = {}
        for candidate in done.candidates:
            k = session.values(candidate.version)["k"]
            for task, score in zip(candidate.tasks, candidate.scores):
                self.report(abs(score - counting_model.score_of(k, task)) < 1e-9, f"version {candidate.version} on task {task}: {score}")
                seen.setdefault((k, task), []).append(candidate.version)
        self.report(done.evaluations == len(seen), f"{done.evaluations} evaluations of {len(seen)} values on tasks")

    def check_calls(self, log, counted):
        by_key, by_idempotency = {}, {}
        for entry in log:
            by_key.setdefault(entry["key"], []).append(entry["number"])
            by_idempotency.setdefault(entry["idempotency"], []).append(entry["number"])
        self.report(sorted(by_idempotency.values()) == sorted(by_key.values()), f"{len(by_idempotency)} idempotency keys of {len(by_key)} requests")
        again = [0] * len(self.kills)
        for numbers in by_key.values():
            for first, second in zip(numbers, numbers[1:]):
                between = [i for i, (before, _) in enumerate(self.kills) if first < before <= second]
                self.report(bool(between), f"request {first} came again as {second} without a kill")
                if between:
                    again[between[-1]] += 1
                    self.report(all(first not in self.kills[i][1] for i in between), f"request {first} was durable and came again as {second}")
        for i, count in enumerate(again):
            self.report(count <= ON_THE_WIRE, f"{count} requests came again after kill {i + 1}")
        self.again = sum(again)
        self.report(counted == len(by_key), f"{counted} calls in the session's usage, {len(by_key)} different requests")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6, help="kills of each algorithm's search, at most (default 6)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    parser.add_argument("--longest", type=float, default=0.6, help="seconds between a start and the kill, at most (default 0.6)")
    args = parser.parse_args()
    rng, failures, kills, requests, again, checks = random.Random(args.seed), [], 0, 0, 0, 0

    def report(holds, text):
        nonlocal checks
        checks += 1
        if not holds:
            failures.append(f"{algorithm}: {text}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for algorithm in ALGORITHMS:
            one = Round(algorithm, args, rng, report)
            killed, asked = one.run(folder)
            kills, requests, again = kills + killed, requests + asked, again + one.again
    for failure in failures[:20]:
        print("FAILED", failure)
    print(f"search_kill9: {len(ALGORITHMS)} searches, {kills} kills, {requests} requests, {again} under way at a kill and asked again, "
          f"{checks} checks, {len(failures)} failed, {time.monotonic() - began:.1f} s, seed {args.seed}")
    return 0 if not failures and kills > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
