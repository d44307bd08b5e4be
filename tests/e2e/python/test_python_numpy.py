"""optod.numpy.RemoteOptimizer on a real server: trees of arrays, rates, further inputs, checkpoints, transports."""

import numpy as np
import optod
import optod.numpy
import pytest


def start(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {"layers": [{"weight": rng.standard_normal((4, 3)).astype(dtype), "bias": np.zeros(4, dtype)}], "scale": np.ones((), dtype)}


def gradients(step, params):
    rng = np.random.default_rng(100 + step)
    return optod.numpy.unflatten(params, {k: rng.standard_normal(v.shape).astype(v.dtype) for k, v in optod.numpy.flatten(params).items()})


def equal(a, b):
    a, b = optod.numpy.flatten(a), optod.numpy.flatten(b)
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_trees_are_flattened_by_path_and_back():
    tree = start()
    flat = optod.numpy.flatten(tree)
    assert list(flat) == ["layers.0.weight", "layers.0.bias", "scale"]
    equal(optod.numpy.unflatten(tree, flat), tree)
    assert optod.numpy.flatten(np.ones(2)).keys() == {"param"}
    with pytest.raises(ValueError, match="the name 'a.b' stands for two arrays"):
        optod.numpy.flatten({"a": {"b": 1}, "a.b": 2})


@pytest.mark.parametrize("shared", [True, False], ids=["memory", "chunks"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_unary_tells(server, client, shared, dtype):
    params = start(dtype)
    other = client.sessions.create("adamw", optod.numpy.flatten(params), lr=0.1)
    with optod.numpy.RemoteOptimizer(params, "adamw", lr=0.1, address=server.address, token="", shared_memory=shared) as opt:
        for step in range(5):
            g = gradients(step, params)
            params = opt.step(g, loss=1.0)
            told = other.tell_gradients(optod.numpy.flatten(g), return_values=True)
        equal(optod.numpy.flatten(params), told.values)
        equal(opt.session.pull(), told.values)
        assert opt.steps == 5 and params["scale"].shape == ()


def test_rates_by_step_and_absent_gradients(server):
    params = start()
    with optod.numpy.RemoteOptimizer(params, "sgd", lr=1.0, address=server.address) as opt:
        g = gradients(0, params)
        g["scale"] = None
        new = opt.step(g, lr=0.5)
        np.testing.assert_array_equal(new["scale"], params["scale"])
        np.testing.assert_array_equal(new["layers"][0]["bias"], params["layers"][0]["bias"] - np.float32(0.5) * g["layers"][0]["bias"])
        assert opt.session.versions[1].lr == 0.5


def test_bf16_on_the_wire(server):
    params = {"w": np.array([1.0, 2.0, np.pi], np.float32)}
    with optod.numpy.RemoteOptimizer(params, "sgd", lr=1.0, address=server.address, wire="bf16") as opt:
        new = opt.step({"w": np.array([1 / 3, 1e-3, -7.7], np.float32)})
        kept = opt.session.pull()["w"]
    rounded = np.array([0.333984375, 0.00099945068359375, -7.6875], np.float32)       # to 8 bits
    np.testing.assert_array_equal(kept, params["w"] - rounded)
    assert np.all(np.abs(new["w"] / kept - 1) <= 2**-8) and new["w"].dtype == np.float32 and not np.array_equal(new["w"], kept)


@pytest.mark.parametrize("gradient,text", [
    ({"w": np.ones(3, np.float32)}, r"missing \['b'\]"),
    ({"w": np.ones(4, np.float32), "b": np.ones(2, np.float32)}, r"gradients\['w'\]: has shape \[4\]"),
    ({"w": np.ones(3), "b": np.ones(2, np.float32)}, r"gradients\['w'\]: has dtype float64"),
    ({"w": np.ones(3, np.float32), "b": np.ones(2, np.float32), "c": np.ones(1)}, r"unknown \['c'\]"),
], ids=["missing", "shape", "dtype", "unknown"])
def test_wrong_gradients(server, gradient, text):
    with optod.numpy.RemoteOptimizer({"w": np.ones(3, np.float32), "b": np.ones(2, np.float32)}, "sgd", address=server.address) as opt:
        with pytest.raises(ValueError, match=text):
            opt.step(gradient)
        opt.step({"w": np.ones(3, np.float32), "b": np.ones(2, np.float32)})


def test_checkpoints_go_on_bit_for_bit(server):
    params = start()
    with optod.numpy.RemoteOptimizer(params, "adamw", lr=0.1, address=server.address) as opt:
        for step in range(3):
            params = opt.step(gradients(step, params))
        state, pinned = opt.state_dict(), opt.checkpoint()
        for step in range(3, 6):
            params = opt.step(gradients(step, params))
    for saved in (state, pinned):
        with optod.numpy.RemoteOptimizer(start(), "adamw", lr=0.1, address=server.address) as opt:
            again = opt.load_state_dict(saved)
            for step in range(3, 6):
                again = opt.step(gradients(step, again))
        equal(again, params)
    with optod.numpy.RemoteOptimizer(start(), "sgd", address=server.address) as opt:
        with pytest.raises(ValueError, match="the state is of adamw"):
            opt.load_state_dict(state)


def test_hessian_products_by_differences():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    a = root @ root.T
    found = optod.numpy.hessian_z(lambda p: {"p": a @ p["p"]}, {"p": rng.standard_normal(5)}, seed=3, step=2)["hessian_z/p"]
    z = optod.numpy.rademacher(3, 2, 0, 0, (5,))
    np.testing.assert_allclose(found, z * (a @ z), rtol=1e-8)


def test_a_lost_server_is_waited_for(own_server):
    params = start()
    with optod.numpy.RemoteOptimizer(params, "adamw", lr=0.1, address=own_server.address, patience=30) as opt:
        params = opt.step(gradients(0, params))
        own_server.kill()
        own_server.start()
        params = opt.step(gradients(1, params))
        assert opt.session.refresh().seq == 2
        equal(opt.session.pull(), optod.numpy.flatten(params))
        own_server.kill()
        own_server.start()
    with optod.numpy.RemoteOptimizer(params, "adamw", lr=0.1, address=own_server.address, session=opt.session.name) as again:
        equal(again.params, params)


def test_pieces_of_a_step_are_checked(server, client):
    session = client.sessions.create("sgd", {"w": np.zeros(4, np.float32)}, lr=1.0)
    with session.gradient_stream(shared_memory=False) as stream:
        with pytest.raises(RuntimeError, match="write comes without begin"):
            stream.write(np.ones(4, np.float32))
        stream.begin()
        with pytest.raises(ValueError, match="20 bytes written; the step has 16"):
            stream.write(np.ones(5, np.float32))
        stream.begin()
        stream.write(np.ones(2, np.float32))
        stream.begin()                                   # again: what was written is dropped
        stream.write(np.full(4, 2, np.float32))
        result = stream.commit([np.full(4, 2, np.float32)], lr=0.5)
        np.testing.assert_array_equal(result.values["w"], -np.ones(4, np.float32))


def test_shared_memory_that_must_be_and_cannot(server, client):
    session = client.sessions.create("sgd", {"w": np.zeros(4, np.float32)}, lr=1.0)
    with pytest.raises(ValueError, match="shared_memory: 'yes'"):
        session.gradient_stream(shared_memory="yes")
    with session.gradient_stream(shared_memory=True) as stream:
        assert stream.transport == "shared-memory" and stream.shared_memory_refused == ""
    with session.gradient_stream(shared_memory=False) as stream:
        assert stream.transport == "chunks" and stream.shared_memory_refused == "not asked for"
