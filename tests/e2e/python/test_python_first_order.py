"""First-order sessions: adamw against the formula written in NumPy, the stream against unary calls, order of steps."""

import numpy as np
import optod
import pytest

GRAD_SEED = 5


def start(dtype):
    rng = np.random.default_rng(1)
    return {"w": rng.standard_normal((7, 5)).astype(dtype), "b": rng.standard_normal(5).astype(dtype)}


def gradients(step, like):
    rng = np.random.default_rng((GRAD_SEED, step))
    return {name: rng.standard_normal(value.shape).astype(value.dtype) for name, value in like.items()}


def warmup_linear(t, warmup=3, total=20, floor=0.1):
    """Schedule("linear"): from 1/warmup to 1, then down to the floor at ``total``."""
    return t / warmup if t <= warmup else max(floor, 1 - (1 - floor) * (t - warmup) / (total - warmup))


def reference(params, steps, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, no_decay=(), factor=lambda t: 1.0, clip=0.0):
    """Loshchilov and Hutter 2019, Algorithm 2, in float64."""
    p = {name: value.astype(np.float64) for name, value in params.items()}
    m = {name: np.zeros_like(value) for name, value in p.items()}
    v = {name: np.zeros_like(value) for name, value in p.items()}
    for t in range(1, steps + 1):
        rate = lr * factor(t)
        grads = {name: g.astype(np.float64) for name, g in gradients(t, params).items()}
        if clip:
            norm = np.sqrt(sum(np.sum(g * g) for g in grads.values()))
            grads = {name: g * min(1.0, clip / norm) for name, g in grads.items()}
        for name, g in grads.items():
            if name not in no_decay:
                p[name] *= 1 - rate * weight_decay
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g * g
            p[name] -= rate * (m[name] / (1 - beta1**t)) / (np.sqrt(v[name] / (1 - beta2**t)) + eps)
    return p


CASES = [
    ("defaults", {}, {}, {}),
    ("hyperparameters", dict(lr=0.05, beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.2), {}, {}),
    ("no_decay", dict(lr=0.05, weight_decay=0.5), dict(no_decay=["b"]), dict(no_decay=["b"])),
    ("schedule", dict(lr=0.05), dict(schedule=optod.Schedule("linear", warmup_steps=3, total_steps=20, floor=0.1)), dict(factor=warmup_linear)),
    ("clipped", dict(lr=0.05), dict(clip_norm=0.7), dict(clip=0.7)),
]


@pytest.mark.parametrize("dtype,tolerance", [(np.float64, 1e-12), (np.float32, 2e-6)], ids=["float64", "float32"])
@pytest.mark.parametrize("name,hyper,options,expected", CASES, ids=[case[0] for case in CASES])
def test_adamw_is_the_formula(client, dtype, tolerance, name, hyper, options, expected):
    params = start(dtype)
    session = client.sessions.create("adamw", params, **hyper, **options)
    for t in range(1, 26):
        result = session.tell_gradients(gradients(t, params), loss=1.0 / t, return_values=True)
        assert result.seq == result.head_version == result.durable_version == t
    want = reference(params, 25, **hyper, **expected)
    for key, value in result.values.items():
        assert value.dtype == dtype and value.flags.writeable
        np.testing.assert_allclose(value, want[key], rtol=tolerance, atol=tolerance)
    for key, value in session.pull().items():
        np.testing.assert_array_equal(value, result.values[key])
    assert [v.loss for v in session.history()][1:] == [1.0 / t for t in range(1, 26)]


def test_stream_and_unary_calls_give_the_same_bytes(client):
    params = start(np.float32)
    unary, streamed = (client.sessions.create("adamw", params, lr=0.05) for _ in range(2))
    with streamed.gradient_stream() as stream:
        for t in range(1, 11):
            a = unary.tell_gradients(gradients(t, params), return_values=True)
            b = stream.step(gradients(t, params), loss=0.5)
            assert (a.seq, a.head_version) == (b.seq, b.head_version)
            for name in params:
                np.testing.assert_array_equal(a.values[name], b.values[name])


def test_stream_of_tensors_larger_than_a_message(client):
    value = np.random.default_rng(0).standard_normal((1500, 1001), dtype=np.float32)
    session = client.sessions.create("sgd", {"w": value}, lr=0.5)
    with session.gradient_stream() as stream:
        for _ in range(3):
            result = stream.step({"w": np.ones_like(value)})
    want = value.copy()
    for _ in range(3):
        want -= np.float32(0.5)
    np.testing.assert_array_equal(result.values["w"], want)


def test_a_stream_whose_head_moves_goes_on_at_the_new_head(client):
    params = start(np.float32)
    session = client.sessions.create("sgd", params, lr=1.0)
    with session.gradient_stream() as stream:
        for t in (1, 2):
            stream.step(gradients(t, params))
        session.rollback(1)
        with pytest.raises(optod.errors.Aborted, match="base_version: 2 is not the head 1"):
            stream.step(gradients(3, params))
        result = stream.step(gradients(3, params))
    assert (result.seq, result.head_version) == (3, 3) and session.versions[3].parent == 1
    for name in params:
        want = params[name] - gradients(1, params)[name] - gradients(3, params)[name]
        np.testing.assert_array_equal(result.values[name], want)


def test_tensors_left_out_are_not_touched(client):
    params = start(np.float32)
    session = client.sessions.create("sgd", params, lr=1.0)
    values = session.tell_gradients({"b": np.ones(5, np.float32)}, return_values=True).values
    np.testing.assert_array_equal(values["w"], params["w"])
    np.testing.assert_array_equal(values["b"], params["b"] - np.float32(1))


def test_order_of_steps(client):
    params = start(np.float32)
    session = client.sessions.create("sgd", params, lr=1.0)
    first = session.tell_gradients(gradients(1, params), seq=1)
    session.tell_gradients(gradients(2, params), seq=2)
    again = session.tell_gradients(gradients(1, params), seq=1, base_version=0)
    assert (again.seq, again.head_version) == (first.seq, first.head_version)
    with pytest.raises(optod.errors.Aborted, match="seq: 1 was taken by a tell with other gradients; expected 3"):
        session.tell_gradients(gradients(2, params), seq=1, base_version=0)
    with pytest.raises(optod.errors.FailedPrecondition, match="seq: 9 leaves a gap; expected 3"):
        session.tell_gradients(gradients(3, params), seq=9, base_version=2)
    with pytest.raises(optod.errors.Aborted, match="base_version: 1 is not the head 2; ask again"):
        session.tell_gradients(gradients(3, params), base_version=1)
    assert session.refresh().seq == 2 and len(session.versions) == 3


@pytest.mark.parametrize("bad,word", [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_gradients_that_are_no_numbers_are_refused_and_change_nothing(client, bad, word):
    params = start(np.float32)
    session = client.sessions.create("adamw", params, lr=0.1)
    wrong = gradients(1, params)
    wrong["w"][3, 2] = bad
    with pytest.raises(optod.errors.InvalidArgument, match=f"w: element 17 is {word}; must be finite"):
        session.tell_gradients(wrong)
    assert session.refresh().seq == 0 and len(session.versions) == 1
    for name in params:
        np.testing.assert_array_equal(session.pull()[name], params[name])


def test_groups_schedules_and_the_guard(client):
    params = {"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}
    session = client.sessions.create("sgd", params, lr=0.5, groups=[{"tensors": "b", "lr": 0.125}], non_finite="skip", clip_value=1.0)
    session.tell_gradients({"w": np.full((3, 2), 2, np.float32), "b": np.full(2, 0.5, np.float32)})
    np.testing.assert_array_equal(session.pull()["w"], np.full((3, 2), 0.5))
    np.testing.assert_array_equal(session.pull()["b"], np.full(2, 1 - 0.125 * 0.5, np.float32))
    skipped = session.tell_gradients({"w": np.full((3, 2), np.nan, np.float32)})
    assert skipped.skipped and session.versions[2].kind == "skipped"
    np.testing.assert_array_equal(session.pull()["w"], np.full((3, 2), 0.5))
    memory = session.memory()
    assert [t.parameter_bytes for t in memory.tensors] == [24, 8] and memory.resident
    with pytest.raises(optod.errors.InvalidArgument, match="matches \"biass\""):
        client.sessions.create("sgd", params, groups=[{"tensors": "biass"}])
    with pytest.raises(ValueError, match="groups\\[0\\].tensors: missing"):
        client.sessions.create("sgd", params, groups=[{"lr": 1.0}])
