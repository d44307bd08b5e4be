"""Handwritten digits, trained through the server: two models, two ways to say how good they are.

    8x8 image ─► logistic regression (650 parameters) ─┬─► adamw   gradients out, parameters back
              └► MLP 64-32-10, tanh (2,410)           ─┴─► zo-sgd  two losses a step out; the parameters never travel

    python digits.py [--address HOST:PORT] [--seed N] [--quick] [--json] [--check-repeat]

Data: scikit-learn's load_digits (1,797 images, 10 classes), 1,347 to train and 450 to test.  Models and gradients are plain NumPy.  The server holds
optimizer and versions; this program holds data and loss.  --check-repeat trains everything twice and fails unless both give the same bytes.
"""

import argparse
import hashlib
import json
import os
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # 64x32 matrices gain nothing from threads, and one thread repeats bit for bit

import numpy as np
import optod
from sklearn.datasets import load_digits

N_TRAIN = 1347


def load(seed):
    """Images [n, 64] float32 with the training mean taken off, labels [n]; shuffled by ``seed``."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = (images[order] / 16.0).astype(np.float32), labels[order]
    images -= images[:N_TRAIN].mean(axis=0)
    return (images[:N_TRAIN], labels[:N_TRAIN]), (images[N_TRAIN:], labels[N_TRAIN:])


def cross_entropy(logits, labels):
    """Mean negative log likelihood, and d loss / d logits [n, 10]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels]))
    d_logits = exp / total
    d_logits[rows, labels] -= 1
    return loss, d_logits / np.float32(len(labels))


class Logistic:
    name = "logistic"

    def start(self, rng):
        return {"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}

    def logits(self, p, x):
        return x @ p["weight"] + p["bias"]

    def loss_and_gradients(self, p, x, y):
        loss, d = cross_entropy(self.logits(p, x), y)
        return loss, {"weight": x.T @ d, "bias": d.sum(axis=0)}


class Mlp:
    name = "mlp"

    def start(self, rng):
        def glorot(n, m):
            return (rng.standard_normal((n, m)) * np.sqrt(2.0 / (n + m))).astype(np.float32)
        return {"w1": glorot(64, 32), "b1": np.zeros(32, np.float32), "w2": glorot(32, 10), "b2": np.zeros(10, np.float32)}

    def logits(self, p, x):
        return np.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    def loss_and_gradients(self, p, x, y):
        hidden = np.tanh(x @ p["w1"] + p["b1"])
        loss, d = cross_entropy(hidden @ p["w2"] + p["b2"], y)
        d_hidden = (d @ p["w2"].T) * (1 - hidden * hidden)
        return loss, {"w1": x.T @ d_hidden, "b1": d_hidden.sum(axis=0), "w2": hidden.T @ d, "b2": d.sum(axis=0)}


class Run:
    """One model trained by one optimizer."""

    def __init__(self, client, model, data, seed, say):
        self.client, self.model, self.seed, self.say = client, model, seed, say
        (self.x, self.y), (self.x_test, self.y_test) = data
        self.params = model.start(np.random.default_rng(seed))

    def batch(self, step, size):
        """The batch of a step, the same for everybody who knows the seed."""
        rows = np.random.default_rng((self.seed, step)).integers(0, len(self.x), size)
        return self.x[rows], self.y[rows]

    def accuracy(self, params):
        return float(np.mean(self.model.logits(params, self.x_test).argmax(axis=1) == self.y_test))

    def loss(self, params, x, y):
        return cross_entropy(self.model.logits(params, x), y)[0]

    def progress(self, step, steps, params):
        self.say(f"  {self.model.name}/{self.optimizer}  step {step:>6}/{steps}  train loss {self.loss(params, self.x, self.y):8.4f}"
                 f"  test accuracy {self.accuracy(params):.4f}")

    def train(self, optimizer, steps):
        self.optimizer = optimizer
        before, sent = self.accuracy(self.params), self.client.traffic
        start = time.perf_counter()
        session, params = self.by_gradients(steps) if optimizer == "adamw" else self.by_losses(steps)
        seconds = time.perf_counter() - start
        traffic = [after - at_start for after, at_start in zip(self.client.traffic, sent)]
        equal = all(np.array_equal(value, params[name]) for name, value in session.pull().items())
        digest = hashlib.sha256(b"".join(value.tobytes() for value in params.values())).hexdigest()
        return {"model": self.model.name, "optimizer": optimizer, "parameters": sum(v.size for v in params.values()),
                "accuracy_before": before, "accuracy": self.accuracy(params), "loss": self.loss(params, self.x, self.y), "steps": steps,
                "seconds": seconds, "steps_per_second": steps / seconds, "bytes_sent_per_step": traffic[0] / steps,
                "bytes_received_per_step": traffic[1] / steps, "equal_to_server": equal, "sha256": digest, "session": session.name}

    def by_gradients(self, steps):
        schedule = optod.Schedule("cosine", total_steps=steps, floor=0.05)
        session = self.client.sessions.create("adamw", self.params, no_decay=[name for name in self.params if name.startswith("b")],
                                              lr=0.02, weight_decay=0.01, schedule=schedule, seed=self.seed)
        params = self.params
        for step in range(steps):
            loss, gradients = self.model.loss_and_gradients(params, *self.batch(step, 128))
            params = session.tell_gradients(gradients, loss, return_values=True).values
            if (step + 1) % max(steps // 5, 1) == 0:
                self.progress(step + 1, steps, params)
        return session, params

    def by_losses(self, steps):
        schedule = optod.Schedule("linear", total_steps=steps, floor=0.1)
        session = self.client.sessions.create("zo-sgd", self.params, lr=0.02 if self.model.name == "logistic" else 0.01, eps=1e-3,
                                              schedule=schedule, seed=self.seed)
        with session.worker() as worker:
            def loss(params):           # theta + eps z and theta - eps z see the same batch: that of the version they belong to
                return self.loss(params, *self.batch(worker.version, 256))

            def report(i, result):
                if (i + 1) % max(steps // 5, 1) == 0:
                    self.progress(i + 1, steps, worker.params)
            worker.run(loss, steps, on_step=report)
            return session, worker.params


def train_all(client, seed, quick, say):
    data = load(seed)
    scale = 10 if quick else 1
    plan = [(Logistic(), "adamw", 400), (Logistic(), "zo-sgd", 5000), (Mlp(), "adamw", 600), (Mlp(), "zo-sgd", 6000)]
    rows = []
    for model, optimizer, steps in plan:
        say(f"{model.name} by {optimizer}")
        rows.append(Run(client, model, data, seed, say).train(optimizer, steps // scale))
    return rows


def table(rows):
    lines = [f"{'model':<10}{'optimizer':<10}{'params':>7}{'accuracy before':>17}{'after':>8}{'steps':>7}{'seconds':>9}{'steps/s':>9}"
             f"{'bytes/step out':>16}{'in':>9}  same bytes as the server"]
    for r in rows:
        lines.append(f"{r['model']:<10}{r['optimizer']:<10}{r['parameters']:>7}{r['accuracy_before']:>17.4f}{r['accuracy']:>8.4f}{r['steps']:>7}"
                     f"{r['seconds']:>9.1f}{r['steps_per_second']:>9.0f}{r['bytes_sent_per_step']:>16.0f}{r['bytes_received_per_step']:>9.0f}"
                     f"  {'yes' if r['equal_to_server'] else 'NO'}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--address", help="HOST:PORT or unix:PATH; default OPTOD_ADDRESS, else 127.0.0.1:7070")
    parser.add_argument("--seed", type=int, default=1, help="of data order, first values and directions (default 1)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else")
    parser.add_argument("--check-repeat", action="store_true", help="train twice and compare the bytes of all parameters")
    args = parser.parse_args()

    def say(text):
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
    try:
        with optod.connect(args.address) as client:
            rows = train_all(client, args.seed, args.quick, say)
            again = train_all(client, args.seed, args.quick, lambda _: None) if args.check_repeat else rows
    except optod.errors.Unavailable as error:
        print(f"digits: no server answers: {error}", file=sys.stderr)
        return 3
    same = [a["sha256"] == b["sha256"] for a, b in zip(rows, again)]
    if args.json:
        print(json.dumps({"seed": args.seed, "runs": rows, "repeated": args.check_repeat and all(same)}))
    else:
        print("\n" + table(rows))
        if args.check_repeat:
            print("trained twice: " + ("the same bytes" if all(same) else "DIFFERENT BYTES"))
    return 0 if all(same) and all(row["equal_to_server"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
