"""The same request id returns the first answer: at once, after kill -9, over streams, for every kind of change."""

import numpy as np
import optod
import pytest

W = {"w": np.arange(6, dtype=np.float32)}
ONES = {"w": np.ones(6, np.float32)}


def test_a_retry_returns_the_first_answer_and_steps_once(client):
    session = client.sessions.create("sgd", W, lr=1.0)
    first = session.tell_gradients(ONES, base_version=0, return_values=True, request_id="one")
    session.tell_gradients(ONES)
    again = session.tell_gradients(ONES, base_version=0, return_values=True, request_id="one")
    assert (again.seq, again.head_version) == (1, 1) and session.refresh().seq == 2
    np.testing.assert_array_equal(again.values["w"], first.values["w"])


def test_a_request_id_belongs_to_one_request(client):
    session = client.sessions.create("sgd", W, lr=1.0)
    session.tell_gradients(ONES, base_version=0, request_id="two")
    with pytest.raises(optod.errors.Aborted) as reused:
        session.tell_gradients({"w": np.zeros(6, np.float32)}, base_version=0, request_id="two")
    assert reused.value.reason == "REQUEST_ID_REUSED" and session.refresh().seq == 1


def test_changes_of_sessions_happen_once(client):
    made = [client.sessions.create("sgd", W, lr=1.0, request_id="create") for _ in range(2)]
    assert made[0].name == made[1].name
    session = made[0]
    for _ in range(3):
        session.tell_gradients(ONES)
    forks = [session.fork(2, request_id="fork") for _ in range(2)]
    assert forks[0].name == forks[1].name
    session.rollback(1, request_id="back")
    session.tell_gradients(ONES)
    session.rollback(1, request_id="back")
    assert session.refresh().head_version == 4       # the second rollback was an answer, not a change


@pytest.mark.parametrize("durability", [None, optod.Durability("every-step", snapshot_every=2)], ids=["default", "snapshots"])
def test_answers_survive_kill_9(own_server, durability):
    with own_server.connect() as client:
        first_order = client.sessions.create("adamw", W, lr=0.1, id="first", durability=durability)
        answers = [first_order.tell_gradients(ONES, base_version=n, seq=n + 1, return_values=True, request_id=f"f{n}") for n in range(5)]
        zeroth = client.sessions.create("zo-sgd", W, lr=0.1, id="zeroth", queries=2)
        probes = [probe.probe_id for probe in zeroth.ask(2).probes]
        half = zeroth.tell_losses({probes[0]: (1.0, 2.0)}, request_id="z0")
        trace = client.sessions.create("optoprime", id="trace", parameters={"k": 1})
        set_first = trace.set_values({"k": 2}, request_id="t0")
        pulled, state = first_order.pull(), first_order.pull_state()

        own_server.kill()
        own_server.start()

        first_order = client.sessions.get("first")
        assert first_order.seq == 5
        for n, answer in enumerate(answers):
            again = first_order.tell_gradients(ONES, base_version=n, seq=n + 1, return_values=True, request_id=f"f{n}")
            assert (again.seq, again.head_version) == (answer.seq, answer.head_version)
            np.testing.assert_array_equal(again.values["w"], answer.values["w"])
        np.testing.assert_array_equal(first_order.pull()["w"], pulled["w"])
        for name, value in first_order.pull_state().items():
            np.testing.assert_array_equal(value, state[name])
        with pytest.raises(optod.errors.Aborted):
            first_order.tell_gradients({"w": np.zeros(6, np.float32)}, base_version=0, seq=1, request_id="f0")

        zeroth = client.sessions.get("zeroth")
        assert zeroth.tell_losses({probes[0]: (1.0, 2.0)}, request_id="z0") == half and half.pending == 1
        assert zeroth.tell_losses({probes[1]: (1.0, 2.0)}, request_id="z1").updated
        trace = client.sessions.get("trace")
        assert trace.set_values({"k": 2}, request_id="t0").number == set_first.number and trace.values() == {"k": 2}
        assert first_order.tell_gradients(ONES).seq == 6


def test_a_worker_and_a_stream_outlive_the_server(own_server):
    patient = optod.RetryPolicy(attempts=50, first_wait=0.05, longest_wait=0.2)
    with own_server.connect(retry=patient, timeout=60.0) as client:
        zeroth = client.sessions.create("zo-sgd", W, lr=0.01, queries=2)
        first = client.sessions.create("adamw", W, lr=0.1)
        twin = client.sessions.create("adamw", W, lr=0.1)
        with zeroth.worker() as worker, first.gradient_stream() as stream:
            for n in range(1, 13):
                worker.step(lambda p: float(p["w"].sum()), count=2, more=True)
                streamed = stream.step({"w": np.full(6, n, np.float32)})
                unary = twin.tell_gradients({"w": np.full(6, n, np.float32)}, return_values=True)
                assert streamed.seq == unary.seq == n
                np.testing.assert_array_equal(streamed.values["w"], unary.values["w"])
                if n % 4 == 0:
                    own_server.kill()
                    own_server.start()
            worker.catch_up()
            np.testing.assert_array_equal(worker.params["w"], zeroth.pull()["w"])
        assert [v.number for v in first.history()] == list(range(13))
