"""Zeroth-order sessions: every worker and the server hold the same bytes; only scalars travel."""

import threading

import numpy as np
import optod
import pytest
from optod import zo
from optod.v1 import session_pb2


def start(seed=1):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((9, 7)).astype(np.float32), "b": rng.standard_normal(5).astype(np.float32),
            "s": np.array(0.5, dtype=np.float32)}


def loss(p):
    return float(sum(np.sum((v.astype(np.float64) - 1) ** 2) for v in p.values()))


def assert_same_bytes(a, b):
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name].view(np.uint32), b[name].view(np.uint32))


def derivative(p, z):
    """The loss and its derivative along z."""
    return loss(p), float(sum(np.sum(2 * (v.astype(np.float64) - 1) * z[k]) for k, v in p.items()))


CASES = [
    ("plain", "zo-sgd", dict(lr=1e-3)),
    ("queries", "zo-sgd", dict(lr=1e-3, queries=4)),
    ("one_sided", "zo-sgd", dict(lr=1e-3, perturbation="one-side")),
    ("decay", "zo-sgd", dict(lr=1e-2, weight_decay=0.1)),
    ("schedule", "zo-sgd", dict(lr=1e-2, schedule=optod.Schedule("cosine", total_steps=40))),
    ("sign", "zo-sgd-sign", dict(lr=1e-4, queries=2)),
    ("sign_of_elements", "zo-sgd-sign", dict(lr=1e-3, queries=2, weight_decay=0.1, sign="paper")),
    ("momentum", "zo-sgd-mmt", dict(lr=2e-4, queries=2, weight_decay=0.1)),
    ("adam", "zo-adam", dict(lr=1e-2, queries=3, weight_decay=0.01)),
    ("conservative", "zo-sgd-cons", dict(lr=1e-3, queries=2, weight_decay=0.1)),
    ("forward", "forward-grad", dict(lr=1e-3, queries=2, weight_decay=0.1)),
]


@pytest.mark.parametrize("name,optimizer,options", CASES, ids=[case[0] for case in CASES])
def test_worker_and_server_hold_the_same_bytes(client, name, optimizer, options):
    session = client.sessions.create(optimizer, start(), seed=1 << 63, no_decay=["b"], **options)
    with session.worker(derivative=derivative) as worker:
        before = loss(worker.params)
        for n in range(1, 41):
            while worker.version < n:
                assert worker.step(loss, more=n % 2 == 0).probes == 1
            if n % 20 == 0:
                assert_same_bytes(worker.params, session.pull(n))
        assert loss(worker.params) < before
        assert worker.version == session.refresh().head_version == 40


def test_the_update_is_the_formula(client):
    """theta <- theta - fl32(lr wd) theta on decayed tensors, then theta <- theta - fl32(lr g / q) z with g = (L+ - L-) / (2 eps), written out."""
    lr, eps, wd, seed = 0.01, 1e-2, 0.1, 77
    params = start()
    session = client.sessions.create("zo-sgd", params, lr=lr, eps=eps, weight_decay=wd, queries=2, seed=seed, no_decay=["b"])
    for step in range(3):
        coefficients = []
        for query in range(2):
            sides = []
            for sign in (1, -1):
                moved = {k: v.copy() for k, v in params.items()}
                for tensor, value in enumerate(moved.values()):
                    zo.add_scaled_normal(value, seed, step, query, tensor, sign * eps)
                sides.append(loss(moved))
            coefficients.append(zo.coefficient(lr, zo.projected_gradient(*sides, eps), 2))
        with session.worker() as worker:
            worker.step(loss, count=2)
        for name in ("w", "s"):
            params[name] -= np.float32(lr * wd) * params[name]
        for query, c in enumerate(coefficients):
            for tensor, value in enumerate(params.values()):
                value -= c * zo.normal(seed, step, query, tensor, 0, value.size).reshape(value.shape)
        assert_same_bytes(params, session.pull())


def test_several_workers_serve_one_session(client, server):
    session = client.sessions.create("zo-sgd", start(), lr=1e-3, queries=8, seed=4)
    made, failures = [], []

    def work(number):
        try:
            with server.connect() as own, own.sessions.get(session.name).worker(name=f"w{number}", wait=2.0) as worker:
                probes = 0
                while worker.version < 30:
                    probes += worker.step(loss, count=2, more=True).probes
                worker.catch_up()
                made.append((probes, worker.version, worker.params))
        except Exception as error:      # shown by the assert below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    session.refresh()
    for probes, version, params in made:
        assert 30 <= version <= session.head_version
        assert_same_bytes(params, session.pull(version))
    assert sum(probes for probes, _, _ in made) >= 30 * 8
    assert [v.step for v in session.history()] == list(range(session.head_version + 1))


def test_a_late_worker_catches_up_from_scalars_alone(client):
    params = start()
    session = client.sessions.create("zo-sgd", layout=params, lr=1e-3, seed=5)     # the server never sees the values
    assert not session.info.has_values
    with session.worker(params) as first:
        first.run(loss, 60)
        with client.sessions.get(session.name).worker(params) as late:
            assert late.version == 0 and late.catch_up() == 60
            assert_same_bytes(late.params, first.params)
            late.run(loss, 5)
        assert first.catch_up() == 65
        assert_same_bytes(late.params, first.params)
    assert_same_bytes(first.params, replayed(params, session))
    with pytest.raises(optod.errors.FailedPrecondition, match="layout only"):
        session.pull()
    with pytest.raises(optod.errors.FailedPrecondition, match="params: missing"):
        session.worker()


def replayed(params, session):
    out = {name: value.copy() for name, value in params.items()}
    records = [(q.step, q.query, q.coefficient) for version in session.history() for q in version.queries]
    zo.replay(out, records, session.info.optimizer.seed)
    return out


@pytest.mark.parametrize("optimizer", ["zo-sgd", "zo-sgd-mmt", "zo-adam", "zo-sgd-cons"])
def test_a_worker_follows_a_rollback(client, optimizer):
    session = client.sessions.create(optimizer, start(), lr=1e-3, seed=6)
    with session.worker() as worker:
        held = worker.params["w"]
        worker.run(loss, 10)
        session.rollback(4)
        worker.run(loss, 3)
        assert_same_bytes(worker.params, session.pull())
        assert held is worker.params["w"] and [v.number for v in session.history()] == [0, 1, 2, 3, 4, 11, 12, 13]


def test_losses_that_are_no_numbers_skip_the_step(client):
    session = client.sessions.create("zo-sgd", start(), lr=1e-3)
    with session.worker() as worker:
        worker.step(lambda p: float("nan"))
        assert worker.version == 1 and session.versions[1].kind == "skipped"
        assert_same_bytes(worker.params, start())
        worker.step(loss)
        assert_same_bytes(worker.params, session.pull())


@pytest.mark.parametrize("optimizer,moments", [("zo-sgd-mmt", "m"), ("zo-adam", "mv")])
def test_a_worker_that_joins_late_brings_the_moments_along(client, optimizer, moments):
    session = client.sessions.create(optimizer, start(), lr=1e-3, queries=2, seed=9)
    with session.worker() as first, session.worker(start()) as replaying:
        first.run(loss, 20)
        with session.worker() as late:                       # values and moments from the server
            late.run(loss, 7)
            first.catch_up(), replaying.catch_up()
            for worker in (late, replaying):                 # pulled in the middle; replayed from the start
                assert_same_bytes(worker.params, first.params)
            state = session.pull_state()
            assert int(state["t"]) == first.version
            for moment in moments:
                for key in ("w", "b", "s"):
                    np.testing.assert_array_equal(state[f"{moment}/{key}"], getattr(replaying._replay, moment)[key])
            assert_same_bytes(first.params, session.pull())


def test_a_derivative_is_asked_for_by_name(client):
    session = client.sessions.create("forward-grad", start(), lr=1e-3)
    with pytest.raises(ValueError, match="derivative: missing"):
        session.worker()


def test_a_probe_told_twice_counts_once(client):
    session = client.sessions.create("zo-sgd", start(), lr=1e-3, queries=2)
    probes = session.ask(2).probes
    assert session.tell_losses({probes[0].probe_id: (1.0, 2.0)}).pending == 1
    assert session.tell_losses({probes[0].probe_id: (5.0, 2.0)}).pending == 1
    done = session.tell_losses({probes[1].probe_id: (1.0, 1.0)})
    assert done.updated and done.seq == 1 and done.projected_gradient == pytest.approx((1.0 - 2.0) / 2e-3 / 2)
    with pytest.raises(optod.errors.Aborted, match="ask again"):
        session.tell_losses({probes[1].probe_id: (1.0, 1.0)})


def test_the_server_can_send_the_perturbed_point(client):
    params = start()
    session = client.sessions.create("zo-sgd", params, lr=1e-3, eps=0.25, seed=8)
    probe = session.ask(with_point=True).probes[0]
    with session.worker() as worker:
        for sign, point in ((1, probe.plus), (-1, probe.minus)):
            assert_same_bytes(worker.perturbed(probe, sign), {t.spec.name: optod.tensors.array(t) for t in point})


def test_a_billion_parameters_take_less_than_a_kib_a_step(client):
    """Serialized size of ask and tell, each with its answer; the layout has 1,000,000,000 parameters and no values anywhere."""
    session = client.sessions.create("zo-sgd", layout={f"layers.{n}": ((10_000, 10_000), "f32") for n in range(10)}, lr=1e-6)
    assert session.layout.total_bytes == 4_000_000_000
    stub, sizes, version = client.session_stub, [], 0
    for step in range(20):
        ask = session_pb2.AskRequest(session=session.name, worker="worker-00000000", known_version=version)
        asked = stub.Ask(ask)
        assert len(asked.replay) == min(step, 1) and len(asked.probes) == 1
        version = asked.head_version
        result = session_pb2.ProbeResult(probe_id=asked.probes[0].probe_id, loss_plus=0.7 + step, loss_minus=0.6)
        tell = session_pb2.TellRequest(session=session.name, request_id="0" * 36, losses=session_pb2.LossTell(results=[result]))
        tell.request_id = f"{step:036d}"
        told = stub.Tell(tell)
        sizes.append(sum(message.ByteSize() for message in (ask, asked, tell, told)))
    assert max(sizes) < 1024, sizes
    print(f"bytes a step: {max(sizes)}")
