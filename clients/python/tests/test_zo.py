"""The NumPy stream against golden bytes, against the C++ executable, and against its own contract."""
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

from optod import zo, zo_support

ROOT = pathlib.Path(__file__).resolve().parents[3]
VECTORS = json.loads((ROOT / "tests" / "golden" / "zo_stream" / "vectors.json").read_text())
BIN_DIR = pathlib.Path(os.environ.get("OPTOD_BIN_DIR", ROOT / "build" / "bin"))


def words(text):
    return [int(word, 16) for word in text.split()]


def slice_of(row):
    return tuple(row[key] for key in ("seed", "step", "query", "tensor", "first", "n"))


def floats(text):
    return np.frombuffer(bytes.fromhex(text), dtype="<f4").copy()


@pytest.mark.parametrize("row", VECTORS["philox"], ids=lambda row: row["output"][:8])
def test_philox_published_answers(row):
    assert zo.philox4x32(words(row["counter"]), words(row["key"])).tolist() == words(row["output"])


def test_philox_takes_many_counters():
    counters = [words(row["counter"]) for row in VECTORS["philox"]]
    together = zo.philox4x32(counters, (1, 2))
    assert together.dtype == np.uint32 and together.shape == (3, 4)
    assert all((together[i] == zo.philox4x32(c, (1, 2))).all() for i, c in enumerate(counters))


@pytest.mark.parametrize("row", VECTORS["normal"], ids=lambda row: f"{row['tensor']}-{row['first']}")
def test_golden_bytes(row):
    assert zo.normal(*slice_of(row)).tobytes().hex() == row["z"]
    assert zo.random_bits(*slice_of(row)).tobytes().hex() == row["bits"]


@pytest.mark.parametrize("row", VECTORS["add"], ids=lambda row: str(row["first"]))
def test_golden_sums(row):
    theta = floats(row["theta"])
    seed, step, query, tensor, first, _ = slice_of(row)
    zo.add_scaled_normal(theta, seed, step, query, tensor, row["scale"], first=first)
    assert theta.tobytes().hex() == row["result"]


def dump(mode, path, *numbers, stdin=b""):
    executable = BIN_DIR / "optod-zo-dump"
    assert executable.exists(), f"{executable} is missing: build target optod-zo-dump, or set OPTOD_BIN_DIR"
    done = subprocess.run([executable, mode, path, *map(str, numbers)], input=stdin, capture_output=True)
    return None if done.returncode == 3 else (done.check_returncode(), done.stdout)[1]  # 3: this CPU lacks the path


# Lengths and alignments of every kind; both 2**32 borders (elements, and blocks = 2**34 elements); 2.5 million elements a path.
SLICES = [
    (2**64 - 1, 2**32 - 1, 63, 2**24 - 1, 2**42 - 70_001, 70_001),
    (5, 1, 0, 0, 2**32 - 300_001, 600_007),
    (5, 1, 2, 7, 2**34 - 299_998, 600_001),
    (0, 0, 0, 0, 0, 1_000_003),
    (11, 9, 1, 300, 1, 200_000),
    (11, 9, 1, 300, 3, 1),
    (11, 9, 1, 300, 2, 0),
]


@pytest.mark.parametrize("path", ["scalar", "avx2", "avx512", "best"])
def test_cpp_and_numpy_give_identical_bytes(path):
    for row in SLICES:
        got = dump("normal", path, *row)
        assert got is None or got == zo.normal(*row).tobytes(), (path, row)


def test_cpp_and_numpy_sums_are_identical():
    for scale in (1e-3, -0.37):
        for seed, step, query, tensor, first, n in SLICES[:3]:
            theta = np.random.default_rng(n).uniform(-2, 2, n).astype(np.float32)
            want = dump("add", "best", seed, step, query, tensor, first, n, scale, stdin=theta.tobytes())
            zo.add_scaled_normal(theta, seed, step, query, tensor, scale, first=first)
            assert theta.tobytes() == want


@pytest.mark.parametrize("law", ["uniform", "normal"])
@pytest.mark.parametrize("kept", [True, False])     # z given, or drawn in place
def test_cpp_and_numpy_masked_sums_are_identical(law, kept):
    for seed, step, query, tensor, n, ratio, every, scale in ((5, 7, 2, 0, 100_001, 0.3, 1, -1e-3), (2**63, 2**32 - 1, 0, 3, 70_003, 0.9, 100, 0.37)):
        values = {"queries": 1, "mask_ratio": ratio, "mask_law": law, "mask_every": every}
        support = zo_support.Support(values, [str(i) for i in range(tensor + 1)], [n] * (tensor + 1))
        theta = np.random.default_rng(n).uniform(-2, 2, n).astype(np.float32)
        theta[:500] = -0.0
        want = dump("masked", "best", seed, step, query, tensor, 0, n, scale, ratio, law, every, stdin=theta.tobytes())
        z = zo.normal(seed, step, query, tensor, 0, n) if kept else None
        support.add_scaled(theta, z, seed, step, query, tensor, np.float32(scale))
        assert theta.tobytes() == want


@pytest.mark.parametrize("text,blocks", [("each", [0, 1, 2, 3, 4]), ("emb,norm;layers.0.;layers.1.", [0, 1, 1, 2, 0]),
                                         ("layers.1;layers;emb,norm", [2, 1, 1, 0, 2])])
def test_directions_belong_to_blocks(text, blocks):
    """The cases of tests/unit/optim/zo_support_test.cc."""
    support = zo_support.Support({"queries": 2, "blocks": text}, ["emb", "layers.0.w", "layers.0.b", "layers.1.w", "norm"], [5, 9, 3, 7, 4])
    for query in range(2 * max(blocks) + 2):
        assert [support.moves(query, tensor) for tensor in range(5)] == [block == query // 2 for block in blocks]


def test_scattered_slices_equal_the_whole():
    whole = zo.normal(3, 1, 4, 1, 0, 300_000)
    generator = np.random.default_rng(1)
    for _ in range(200):
        first = int(generator.integers(0, 299_000))
        n = int(generator.integers(0, 1000))
        assert (zo.normal(3, 1, 4, 1, first, n) == whole[first:first + n]).all()


def test_moments():
    z = zo.normal(1, 0, 0, 0, 0, 4_000_000).astype(np.float64)
    assert abs(z.mean()) < 4 / 2000
    assert abs(z.var() - 1) < 4 * np.sqrt(2) / 2000
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96) / 2000
    assert 4.8 < abs(z).max() < 6.6


@pytest.mark.parametrize("name, arguments", [
    ("seed", (-1, 0, 0, 0, 0, 1)), ("seed", (2**64, 0, 0, 0, 0, 1)), ("step", (0, 2**32, 0, 0, 0, 1)), ("query", (0, 0, -1, 0, 0, 1)),
    ("tensor", (0, 0, 0, 2**24, 0, 1)), ("first", (0, 0, 0, 0, 2**42, 1)), ("n", (0, 0, 0, 0, 2**42 - 1, 2)), ("n", (0, 0, 0, 0, 0, -1)),
])
def test_ranges(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}: "):
        zo.normal(*arguments)


@pytest.mark.parametrize("theta", [np.zeros(4), np.zeros((4, 4), np.float32)[:, ::2], [0.0], np.broadcast_to(np.float32(0), (3,))],
                         ids=["float64", "strided", "list", "read-only"])
def test_unsuitable_arrays(theta):
    with pytest.raises(ValueError, match="writeable C-contiguous float32"):
        zo.add_scaled_normal(theta, 0, 0, 0, 0, 1.0)


def test_shape_is_row_major():
    matrix, flat = np.zeros((30, 41), np.float32), np.zeros(30 * 41, np.float32)
    zo.add_scaled_normal(matrix, 1, 2, 3, 4, 0.5)
    zo.add_scaled_normal(flat, 1, 2, 3, 4, 0.5)
    assert (matrix.reshape(-1) == flat).all() and matrix.any()


def start():
    generator = np.random.default_rng(0)
    return {"w": generator.standard_normal((6, 9)).astype(np.float32), "b": np.zeros(9, np.float32)}


def loss(params):
    return float(np.mean(np.square(params["w"].astype(np.float64) - 0.3)) + np.mean(np.square(params["b"].astype(np.float64) + 0.1)))


def train(params, seed, steps, queries=2, lr=0.1, eps=1e-2, rate=0.0):
    """A live zo-sgd run; returns what would travel."""
    records, losses = [], []
    for step in range(steps):
        scalars = []
        for query in range(queries):
            sides = []
            for sign in (1, -1):
                point = {name: value.copy() for name, value in params.items()}
                for tensor, name in enumerate(point):
                    zo.add_scaled_normal(point[name], seed, step, query, tensor, sign * eps)
                sides.append(loss(point))
            scalars.append(zo.coefficient(lr, zo.projected_gradient(*sides, eps), queries))
            losses.append(sides[0])
        if rate:
            zo.decay(params["w"], rate)
        for query, scalar in enumerate(scalars):
            for tensor, name in enumerate(params):
                zo.add_scaled_normal(params[name], seed, step, query, tensor, -scalar)
            records.append((step, query, float(scalar)))
    return records, losses


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_replay_rebuilds_a_run(rate):
    live = start()
    records, losses = train(live, seed=77, steps=100, rate=rate)
    assert losses[-1] < losses[0]
    late = start()
    replay = dict(records=records, seed=77, decays={step: rate for step in range(100)} if rate else None, no_decay=["b"])
    zo.replay(late, **replay)
    assert all((late[name] == live[name]).all() for name in live)
    as_list = list(start().values())
    replay["no_decay"] = [1]
    zo.replay(as_list, **replay)
    assert all((a == b).all() for a, b in zip(as_list, live.values()))


def test_replay_in_two_parts():
    live = start()
    records, _ = train(live, seed=5, steps=10)
    late = start()
    zo.replay(late, records[:7], 5)
    zo.replay(late, records[7:], 5)
    assert all((late[name] == live[name]).all() for name in live)


def test_replay_checks_before_it_changes():
    params = {"w": np.zeros(3, np.float32), "b": np.zeros(3)}
    with pytest.raises(ValueError, match="params\\['b'\\]"):
        zo.replay(params, [(0, 0, 1.0)], 1)
    assert not params["w"].any()


def test_projected_gradient():
    assert zo.projected_gradient(2.0, 1.0, 0.25) == 2.0
    assert zo.projected_gradient(2.0, 1.0, 0.25, one_sided=True) == 4.0
    assert zo.coefficient(1e-6, 0.1, 3).dtype == np.float32


@pytest.mark.parametrize("sizes", [[], [0], [1], [640, 10], [5, 0, 4, 3, 1], [2048, 32, 320, 10], [70_000, 3]], ids=str)
def test_all_tensors_at_once_equal_one_by_one(sizes):
    together = zo.normal_tensors(9, 3, 2, sizes)
    assert [z.size for z in together] == sizes
    for tensor, z in enumerate(together):
        np.testing.assert_array_equal(z.view(np.uint32), zo.normal(9, 3, 2, tensor, 0, sizes[tensor]).view(np.uint32))
