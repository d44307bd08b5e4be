"""Block-wise and sparse zeroth-order sessions: workers in NumPy, the server, a late joiner and the published masks' fractions."""

import math

import numpy as np
import optod
import pytest
from optod import zo_support

PARAMS = {
    "emb": np.linspace(-1, 1, 35, dtype=np.float32).reshape(7, 5),
    "layers.0.w": np.linspace(1, 2, 5000, dtype=np.float32).reshape(50, 100),
    "layers.0.b": np.full(3, -0.0, np.float32),
    "layers.1.w": np.linspace(-2, 2, 60, dtype=np.float32).reshape(6, 10),
}
BLOCKS = "emb;layers.0.;layers.1."
VARIANTS = {
    "coordinate": ("zo-sgd", {"blocks": BLOCKS, "queries": 2, "weight_decay": 0.1}),
    "joint": ("zo-sgd", {"blocks": BLOCKS, "block_schedule": "joint"}),
    "momentum": ("zo-sgd-mmt", {"blocks": BLOCKS, "weight_decay": 0.1}),
    "adam-joint": ("zo-adam", {"blocks": "each", "block_schedule": "joint", "queries": 2}),
    "sign-paper": ("zo-sgd-sign", {"blocks": BLOCKS, "sign": "paper"}),
    "sparse": ("zo-sgd", {"mask_ratio": 0.5, "mask_every": 3}),
    "sparse-published": ("zo-sgd", {"mask_ratio": 0.2, "mask_law": "normal"}),
    "sparse-global": ("zo-sgd", {"mask_ratios": zo_support.global_mask_ratios(PARAMS, 0.4), "blocks": BLOCKS}),
}


def loss(params):
    return float(sum(np.sum(value.astype(np.float64) ** 2) for value in params.values()))


def same_bits(a, b):
    for name, value in a.items():
        np.testing.assert_array_equal(value.view(np.uint32), b[name].view(np.uint32), err_msg=name)


@pytest.mark.parametrize("name", VARIANTS)
def test_workers_and_server_hold_the_same_bits(client, name):
    optimizer, hyper = VARIANTS[name]
    session = client.sessions.create(optimizer, PARAMS, lr=1e-4, eps=1e-3, seed=9, no_decay=["layers.0.b"], **hyper)
    with session.worker(PARAMS) as worker:
        for _ in range(9):
            worker.step(loss, count=8)
        assert worker.version >= 3
        same_bits(worker.params, session.pull())
        with session.worker(PARAMS) as late, session.worker() as fresh:      # by replay from version 0; from the server's values and moments
            late.catch_up()
            same_bits(late.params, worker.params)
            worker.step(loss, count=8)
            late.catch_up()
            fresh.catch_up()
            same_bits(fresh.params, session.pull())
            same_bits(late.params, fresh.params)
    assert not np.array_equal(session.pull()["layers.0.w"], PARAMS["layers.0.w"])


def test_a_block_is_moved_alone_and_in_turn(client):
    session = client.sessions.create("zo-sgd", PARAMS, lr=1e-4, seed=9, blocks=BLOCKS)
    values = [PARAMS]
    with session.worker(PARAMS) as worker:
        for _ in range(4):
            worker.step(loss)
            values.append({key: value.copy() for key, value in worker.params.items()})
    moved = [[key for key in PARAMS if not np.array_equal(before[key], after[key])] for before, after in zip(values, values[1:])]
    assert moved == [["emb"], ["layers.0.w", "layers.0.b"], ["layers.1.w"], ["emb"]]


@pytest.mark.parametrize("law,fraction", [("uniform", 0.4), ("normal", 0.5 * math.erfc(-0.4 / math.sqrt(2)))])
def test_masked_values_keep_their_bits(client, law, fraction):
    session = client.sessions.create("zo-sgd", PARAMS, lr=1e-4, seed=9, mask_ratio=0.4, mask_law=law, mask_every=1000)
    with session.worker(PARAMS) as worker:
        for _ in range(6):
            worker.step(loss)
        still = np.mean(worker.params["layers.0.w"].view(np.uint32) == PARAMS["layers.0.w"].view(np.uint32))
    assert abs(still - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / 5000)


@pytest.mark.parametrize("hyper,message", [({"blocks": "emb"}, "no prefix matches tensor"), ({"blocks": "emb,layers;norm"}, "has no tensor"),
                                           ({"mask_ratio": 1.5}, "mask_ratio"), ({"mask_ratios": "1,2"}, "2 numbers; the layout has 4"),
                                           ({"mask_every": 0}, "mask_every"), ({"block_schedule": "both"}, "block_schedule")])
def test_what_does_not_fit_is_refused(client, hyper, message):
    with pytest.raises(optod.errors.InvalidArgument, match=message):
        client.sessions.create("zo-sgd", PARAMS, **hyper)
