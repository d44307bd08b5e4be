"""Kills the server with SIGKILL at random moments under 16 tellers, and checks that nothing acknowledged is lost or doubled.

    16 tellers ──tell──► optod ──► SQLite            half of them adamw on small tensors, half zo-sgd; one session each, and two zo-sgd
        ▲  (an unanswered request is sent again,      sessions are served by two tellers at once
        │   with its own id, until it is answered)
    kill -9, start again on the same folder: N rounds

    python tests/fault/kill9.py [--rounds N] [--seed S] [--longest SECONDS] [--data-dir DIR]

At the end every teller's list of acknowledged answers is compared with what the server holds: each acknowledged version is there once, made by the
observation that was told; no version is there that nobody told; numbers have no gaps; seq is the number of updates; each request id, sent
once more, gives its first answer; parameters equal a replay in NumPy (zo-sgd) or a session that was never killed (adamw).
Exit status 0 when all of it holds.
"""

import argparse
import pathlib
import random
import sys
import tempfile
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "python"))
import optod  # noqa: E402
from live_server import LiveServer  # noqa: E402
from optod import zo  # noqa: E402

PATIENT = optod.RetryPolicy(attempts=1_000_000, first_wait=0.01, longest_wait=0.05)


def first_values():
    return {"w": np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4), "b": np.zeros(4, np.float32)}


class Teller(threading.Thread):
    """Tells until stopped; keeps (request, first answer) of everything that was acknowledged."""

    def __init__(self, address, session, number, stop):
        super().__init__(name=f"{session}/{number}", daemon=True)
        self.client = optod.connect(address, token="", timeout=300.0, retry=PATIENT)
        self.session, self.number, self.stop = self.client.sessions.get(session), number, stop
        self.acked, self.stale, self.failure = [], 0, None
        self.rng = np.random.default_rng((number, 1))

    def run(self):
        try:
            while not self.stop.is_set():
                self.one()
        except Exception as error:   # reported by main
            self.failure = error

    def tell(self, kind, args, request_id):
        if kind == "gradients":
            gradients, loss, base = args
            return self.session.tell_gradients(gradients, loss, base_version=base, request_id=request_id)
        return self.session.tell_losses(args, request_id=request_id)

    def one(self):
        request_id = f"{self.name.rsplit('/', 1)[-1]}-{len(self.acked) + self.stale}"
        if self.session.info.optimizer.name == "adamw":
            gradients = {k: self.rng.standard_normal(v.shape, dtype=np.float32) for k, v in first_values().items()}
            request = "gradients", (gradients, float(len(self.acked)) + self.number / 64, len(self.acked))
        else:
            probes = self.session.ask(1, worker=self.name, lease=0.2, wait=0.2).probes
            if not probes:
                return
            request = "losses", {probes[0].probe_id: tuple(self.rng.standard_normal(2) + self.number)}
        try:
            answer = self.tell(*request, request_id)
        except optod.errors.Aborted:     # another teller of this session ended the step first
            self.stale += 1
            return
        self.acked.append((request, request_id, answer))


def same_answer(a, b):
    return (a.head_version, a.seq, a.updated, a.skipped, a.pending) == (b.head_version, b.seq, b.updated, b.skipped, b.pending)


def check_session(client, session, tellers, report):
    """All statements of the top comment about one session; returns the number of acknowledged tells."""
    session.refresh()
    history = session.history()
    acked = [(teller, *entry) for teller in tellers for entry in teller.acked]
    updates = {}
    for teller, request, request_id, answer in acked:
        if answer.updated:
            report(answer.seq not in updates, f"seq {answer.seq} was acknowledged twice")
            updates[answer.seq] = (teller, request, answer)
        report(same_answer(teller.tell(*request, request_id), answer), f"{request_id}: sent again, the answer differs")
    report(session.refresh().info.version_count == len(history), "a retry made a version")
    report([v.number for v in history] == list(range(len(history))), "version numbers have gaps")
    report(session.info.version_count == len(history) and session.head_version == len(history) - 1, "head and versions differ")
    report(session.seq == len(history) - 1, f"seq {session.seq} with {len(history) - 1} updates")
    report(sorted(updates) == list(range(1, len(history))), f"{len(history) - 1} versions, {len(updates)} acknowledged")
    for seq, (teller, (kind, args), answer) in updates.items():
        if seq >= len(history):
            continue
        version = history[seq]
        report(answer.head_version == seq, f"seq {seq} is version {answer.head_version}")
        told = args[1] if kind == "gradients" else next(iter(args.values()))[0]
        report(version.loss == told, f"version {seq} has loss {version.loss}, told {told}")
        if kind == "losses":
            plus, minus = next(iter(args.values()))
            eps, lr = (session.info.optimizer.hyperparameters[name].number for name in ("eps", "lr"))
            report(version.queries[0].coefficient == zo.coefficient(lr, zo.projected_gradient(plus, minus, eps)), f"version {seq}: coefficient")
    check_values(client, session, updates, history, report)
    return len(acked)


def check_values(client, session, updates, history, report):
    if session.info.optimizer.name == "zo-sgd":
        want = first_values()
        zo.replay(want, [(q.step, q.query, q.coefficient) for v in history for q in v.queries], session.info.optimizer.seed)
    else:
        twin = client.sessions.create("adamw", first_values(), lr=0.01, durability=optod.Durability("on-checkpoint", snapshot_every=1_000_000))
        for seq in sorted(updates):
            twin.tell_gradients(updates[seq][1][1][0], updates[seq][1][1][1])
        want = twin.pull()
    for name, value in session.pull().items():
        report(np.array_equal(value.view(np.uint32), want[name].view(np.uint32)), f"{name} differs from what was told")


class Report:
    def __init__(self):
        self.checks, self.failures = 0, []

    def of(self, session):
        def report(holds, text):
            self.checks += 1
            if not holds:
                self.failures.append(f"{session.id}: {text}")
        return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="kills (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the values told (default 1)")
    parser.add_argument("--longest", type=float, default=0.5, help="seconds between a start and the kill, at most (default 0.5)")
    parser.add_argument("--data-dir", help="default: a fresh folder, removed afterwards")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return run(args, args.data_dir or f"{folder}/data")


def run(args, data_dir):
    rng = random.Random(args.seed)
    server = LiveServer(data_dir).start()
    began = time.monotonic()
    try:
        with server.connect(timeout=300.0, retry=PATIENT) as client:
            sessions, tellers, stop = [], [], threading.Event()
            for n in range(14):
                family = dict(optimizer="adamw", lr=0.01) if n < 8 else dict(optimizer="zo-sgd", lr=1e-4, seed=n)
                session = client.sessions.create(params=first_values(), id=f"s{n}", **family)
                mine = [Teller(server.address, session.name, 16 * k + n, stop) for k in range(2 if n >= 12 else 1)]
                sessions.append((session, mine))
                tellers += mine
            for teller in tellers:
                teller.start()
            starts = []
            for number in range(args.rounds):
                stop.wait(rng.uniform(0.0, args.longest))
                server.kill()
                begun = time.monotonic()
                server.start()
                starts.append(time.monotonic() - begun)
                if sys.stderr.isatty():
                    print(f"\rround {number + 1}/{args.rounds}  acknowledged {sum(len(t.acked) for t in tellers)}", end="", file=sys.stderr)
            stop.set()
            for teller in tellers:
                teller.join()
            report = Report()
            for teller in tellers:
                report.of(teller.session)(teller.failure is None, f"teller {teller.name} stopped: {teller.failure!r}")
            total = sum(check_session(client, session, mine, report.of(session)) for session, mine in sessions)
    finally:
        status = server.stop()
    for failure in report.failures[:20]:
        print("FAILED", failure)
    starts.sort()
    print(f"kill9: {args.rounds} kills, {len(tellers)} tellers, {total} acknowledged tells, {sum(t.stale for t in tellers)} stale, "
          f"{report.checks} checks, {len(report.failures)} failed, restart median {starts[len(starts) // 2] * 1e3 if starts else 0:.0f} ms, "
          f"{time.monotonic() - began:.1f} s, seed {args.seed}, last exit status {status}")
    return 0 if not report.failures and status == 0 and total > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
