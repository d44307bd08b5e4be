"""Studies of the sample order through a real server: the job, every question about it, bad input, crashes of every process, whose it is."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny_model
from worker_binary import BIN, needs_worker

import optod

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
from live_server import LiveServer  # noqa: E402

pytestmark = needs_worker
DEADLINE = 600.0  # of a wait; nothing is asserted about time
T = 6
MLP = {"model": {"builtin": "mlp", "features": 5, "classes": 3, "rows": 6, "evaluation_rows": 30, "hidden": 4, "drift": 0.7, "ragged": True},
       "batches": T, "threads": 1, "study": {"optimizer": "adam", "lr": 0.03, "curvature": "diag", "probes": 4}}
SLOW = {**MLP, "model": {**MLP["model"], "features": 64, "rows": 400, "hidden": 48, "precision": "float32"}, "batches": 24,
        "study": {**MLP["study"], "segment_bytes": 1}}   # about 600 small files: time enough to be interrupted


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    live = LiveServer(tmp_path_factory.mktemp("orders") / "data").start()
    yield live
    assert live.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    with server.connect(timeout=120.0) as made:
        yield made


@pytest.fixture(scope="module")
def study(client):
    made = client.orders.create({**MLP, "estimate": {"random_orders": 8}, "search": {"generations": 3, "population": 6}, "matrix": {"spot_checks": 3},
                                 "retrain_checks": 3})
    made.wait(DEADLINE)
    return made


def orders(count, batches=T, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.permutation(batches) for _ in range(count)]


def processes(word, name):
    """Of optod-worker with this subcommand and this job."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if word.encode() in words and name.encode() in words:
                found.append(int(entry.name))
    return found


def until(condition, what):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


# ---- the job

def test_the_result_holds_every_part(study):
    result = study.result
    assert result["parameters"] == 5 * 4 + 4 + 4 * 3 + 3 and result["positions"] == T and result["terms_bytes"] > 0
    assert len(result["estimate"]["estimates"]) == 8 and len(result["search"]["best"]) == 4 and len(result["matrix"]["matrix"]) == T * T
    checks = result["retrain_checks"]
    assert checks["orders"] == 3 and checks["error_over_guess"] < 1
    job = study.job
    assert job.step == job.total_steps and job.metrics["predicted_bytes"] == result["terms_bytes"]


@pytest.mark.parametrize("changes, message", [
    ({"batches": 0}, "batches: 0 must be in 1..100000"),
    ({"study": {"lr": -1}}, "study.lr: -1"),
    ({"study": {"optimizer": "lamb"}}, "must be one of sgd, adam, adamw"),
    ({"model": {"builtin": "cnn"}}, "not one of logistic, mlp"),
    ({"retrain": 3}, 'unknown field "retrain"'),
    ({"study": {"probe_runs": -2}}, "study.probe_runs: -2; must be in 0..1024"),
    ({"study": {"curvature": "hvp", "probe_runs": 4}}, "curvature hvp uses none"),
    ({"study": {"curvature": "multisecant", "probe_runs": 0}}, "curvature multisecant is made of them"),
    ({"kind": "sample-order"}, "not one of finetune, sample_order"),
    ({"model": {"builtin": "mlp", "table": "digits.csv"}}, "relative"),
])
def test_a_bad_job_is_refused_at_once(client, changes, message):
    with pytest.raises(optod.errors.InvalidArgument, match=message.replace("(", r"\(")):
        client.orders.create({**MLP, **changes})


@pytest.mark.parametrize("changes, message", [
    ({"study": {**MLP["study"], "disk_budget": 100}}, "disk_budget: 100 bytes; this study takes"),
    ({"study": {**MLP["study"], "lr": [0.1, 0.2]}}, "lr: 2 numbers; must be 1 or 6"),
    ({"study": {**MLP["study"], "reference_order": [0, 0, 1, 2, 3, 4]}}, "stands twice"),
    ({"model": {**MLP["model"], "table": "/nowhere.csv"}}, "model.table: no such file"),
])
def test_a_job_that_cannot_run_says_why(client, changes, message):
    bad = client.orders.create({**MLP, **changes})
    with pytest.raises(optod.jobs.JobFailed, match=message):
        bad.wait(DEADLINE)
    with pytest.raises(optod.errors.FailedPrecondition, match="nothing is recorded yet; job .* is FAILED"):
        bad.info()


# ---- questions

def test_info(study):
    info = study.info(decode_errors=True)
    assert (info.parameters, info.batches, info.positions, info.evaluations, info.precision_bits) == (39, T, T, 1, 64)
    assert info.complete and info.files == info.files_filled and list(info.decode_errors) == [0, 0]
    assert info.options["optimizer"] == "adam" and info.options["curvature"] == "diag" and info.model.count("\n") == 0
    assert info.cost.terms_bytes == study.result["terms_bytes"] and list(info.reference_order.batches) == list(range(T))
    assert info.reference_loss == study.result["reference"]


def test_the_identity_gives_the_reference_to_the_bit(study, tmp_path):
    one = study.estimate(range(T), retrain=True)
    assert one.value == one.reference_value and one.distance == 0 and one.retrained == one.value
    study.export(tmp_path / "a.npy")
    study.export(tmp_path / "b.npy", range(T))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_one_order_many_orders_and_the_job_agree(study):
    some = orders(3000, seed=2)
    values = study.estimates(some)
    assert values.shape == (3000,)
    for at in (0, 1, 1023, 1024, 2999):
        assert study.estimate(some[at]).value == values[at]
    one = study.estimate(some[0], retrain=True)
    assert one.error < 1 and one.retrained is not None
    linear = study.estimates(some[:50], loss="linear")
    assert np.corrcoef(linear, values[:50])[0, 1] > 0.5


@pytest.mark.parametrize("ask, what", [
    (lambda s: s.estimate(range(T), batches=[2, 3], perplexity=True).value, "perplexity of two batches"),
    (lambda s: s.estimate(orders(1)[0], expansion=0).value, "zeroth order"),
    (lambda s: s.estimate(orders(1)[0], moments="reference").value, "the reference's moments"),
])
def test_other_metrics_and_options(study, ask, what):
    assert np.isfinite(ask(study)) and ask(study) != study.estimate(orders(1)[0]).value, what


def test_no_orders_are_no_values(study):
    assert study.estimates([]).size == 0


def test_search(study):
    seen = []
    found = study.search(generations=4, population=6, seed=5, progress=lambda done, of: seen.append((done, of)))
    assert sorted(found.order) == list(range(T)) and seen[-1] == (4, 4) and len(found.best) == 5
    assert found.estimated == study.estimate(found.order).value and found.retrained is not None
    assert (np.diff(found.best) <= 0).all() and found.best[-1] == found.estimated
    assert (study.search(generations=4, population=6, seed=5).order == found.order).all()
    assert study.search(method="local", generations=2, population=4).estimated <= study.info().reference_loss


def test_matrix(study, tmp_path):
    matrix = study.matrix(spot_checks=4, seed=1)
    assert matrix.values.shape == (T, T) and len(matrix.spots) == 4
    for batch, position, estimated, _ in matrix.spots:
        assert matrix.values[int(batch), int(position)] == estimated
    for name in ("map.svg", "map.png"):
        assert pathlib.Path(matrix.draw(tmp_path / name)).stat().st_size > 500


def test_the_matrix_holds_estimates_that_are_not_calibrated(study):
    moved = [2, 0, 1, 3, 4, 5]
    raw = study.estimate(moved, calibrate=False).value
    assert study.matrix(generalisation=True).values[2, 0] == raw == study.estimates([moved], calibrate=False)[0]
    assert study.estimate(moved).value == study.estimates([moved])[0] != raw


def test_export(study, tmp_path):
    order = orders(1, seed=3)[0]
    size = study.export(tmp_path / "o.npy", order)
    parameters = np.load(tmp_path / "o.npy")
    assert parameters.shape == (39,) and parameters.dtype == np.float64 and size == (tmp_path / "o.npy").stat().st_size
    study.export(tmp_path / "path.npy", order, trajectory=True)
    path = np.load(tmp_path / "path.npy")
    assert path.shape == (T + 1, 39) and (path[-1] == parameters).all()
    study.export(tmp_path / "o.safetensors", order)
    raw = (tmp_path / "o.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert json.loads(raw[8:8 + length])["parameters"]["shape"] == [39]
    assert (np.frombuffer(raw[8 + length:], np.float64) == parameters).all()
    study.export(tmp_path / "reference.npy")
    distance = np.linalg.norm(parameters - np.load(tmp_path / "reference.npy"))
    assert distance == pytest.approx(study.estimate(order).distance, rel=1e-12)


# ---- bad input

INVALID, PRECONDITION = optod.errors.InvalidArgument, optod.errors.FailedPrecondition
BAD = {
    "twice": (lambda s: s.estimate([0, 0, 1, 2, 3, 4]), INVALID, r"order\[1\]: 0 stands twice"),
    "no_batch": (lambda s: s.estimate([0, 1, 2, 3, 4, 6]), INVALID, r"order\[5\]: 6"),
    "negative": (lambda s: s.estimate([0, 1, 2, 3, 4, -1]), INVALID, r"order\[5\]: -1"),
    "short": (lambda s: s.estimate([0, 1]), INVALID, "order: 2"),
    "empty": (lambda s: s.estimate([]), INVALID, "order: 0"),
    "of_many": (lambda s: s.estimates([range(T), [0] * T]), INVALID, r"orders\[1\]"),
    "evaluation": (lambda s: s.estimate(range(T), evaluations=[1]), INVALID, "evaluation set 1 is not there"),
    "batch": (lambda s: s.estimate(range(T), batches=[6]), INVALID, "batch 6 is not there"),
    "expansion": (lambda s: s.estimate(range(T), expansion=3), INVALID, "expansion: 3"),
    "second_order": (lambda s: s.estimate(range(T), expansion=2), PRECONDITION, "expansion: 2 was asked"),
    "optimizer": (lambda s: s.info(expected={"optimizer": "sgd", "beta1": 0.9}), PRECONDITION, "optimizer: sgd was asked, adam is recorded"),
    "lr": (lambda s: s.estimates([range(T)], expected={"lr": 0.5}), PRECONDITION, "lr: 0.5 was asked"),
    "option": (lambda s: s.estimate(range(T), expected={"optimiser": "adam"}), INVALID, "expected.optimiser: no such option; did you mean optimizer"),
    "search_start": (lambda s: s.search(generations=1, start=[[0, 1]]), INVALID, "start"),
    "search_share": (lambda s: s.search(generations=1, crossover=1.5), INVALID, "crossover: 1.5"),
    "search_count": (lambda s: s.search(generations=-1), INVALID, "generations: -1"),
    "matrix_base": (lambda s: s.matrix(base=[0, 1, 2]), INVALID, "order"),
    "matrix_spots": (lambda s: s.matrix(spot_checks=37), INVALID, "spot_checks: 37"),
    "export": (lambda s: s.export("/dev/null/x", [1, 1, 1, 1, 1, 1]), OSError, "Not a directory"),
    "moments": (lambda s: s.estimate(range(T), moments="old"), ValueError, "not one of replay, reference"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_questions_are_refused_with_field_and_rule(study, name):
    ask, error, message = BAD[name]
    with pytest.raises(error, match=message):
        ask(study)
    assert study.info().complete, "the study answers as before"


@pytest.mark.parametrize("name, error", [("nobody", optod.errors.NotFound), ("users/x/jobs/y", optod.errors.NotFound),
                                         ("a/b", optod.errors.InvalidArgument), ("", optod.errors.InvalidArgument)])
def test_names(client, name, error):
    with pytest.raises(error, match="study:"):
        client.orders.get(name).info()


def test_a_job_of_another_kind(client, tmp_path):
    tiny_model.write(tmp_path)
    job = client.jobs.submit({"kind": "finetune", "model": str(tmp_path / "m"), "steps": 1, "batch": 4, "optimizer": {"name": "zo-sgd"}, "task": {
        "columns": ["x", "label"], "prompt": "{x}", "options": {"0": "y", "1": "z"}, "train": str(tmp_path / "t.tsv"), "dev": str(tmp_path / "t.tsv")}})
    with pytest.raises(optod.errors.InvalidArgument, match="is of kind finetune; must be sample_order"):
        client.orders.get(job.name).info()


def test_a_budget_of_memory_that_is_too_small(client):
    small = client.orders.create({**MLP, "study": {**MLP["study"], "memory_budget": 64}})
    with pytest.raises(optod.jobs.JobFailed, match="memory_budget: 64 bytes, half of it for probe runs"):
        small.wait(DEADLINE)
    small = client.orders.create({**MLP, "study": {**MLP["study"], "memory_budget": 64, "probe_runs": 0}})
    small.wait(DEADLINE)
    with pytest.raises(optod.errors.ResourceExhausted, match="memory_budget: 64 bytes"):
        small.estimate(orders(1)[0])


def test_a_damaged_file_is_data_loss(client, server):
    damaged = client.orders.create(MLP)
    damaged.wait(DEADLINE)
    folder = next(pathlib.Path(server.data_dir).glob(f"jobs/*/{damaged.name.split('/')[-1]}/work/study"))
    file = sorted(folder.glob("terms-*.bin"))[0]
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(optod.errors.DataLoss, match="checksum"):
        damaged.estimates(orders(50))


# ---- what can end

def test_kill_9_of_the_studys_process_is_unavailable_and_the_next_question_starts_another(study, client):
    study.info()
    first = processes("order-serve", study.name)
    assert len(first) == 1
    os.kill(first[0], signal.SIGKILL)
    assert study.estimate(range(T)).distance == 0      # the client asks again
    assert processes("order-serve", study.name) != first
    assert client.info().version

    def ask():
        try:
            study.search(generations=100000, population=64)
        except optod.errors.OptodError as raised:
            seen.append(raised)
    seen = []
    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    for pid in processes("order-serve", study.name):
        os.kill(pid, signal.SIGKILL)
    thread.join(DEADLINE)
    assert isinstance(seen[0], optod.errors.Unavailable) and "killed by signal 9" in str(seen[0])


def test_a_caller_who_leaves_stops_the_search(study):
    stream = study._transport.stream(study._stub.SearchOrders, optod.v1.order_pb2.SearchOrdersRequest(study=study.name, generations=100000, population=64))
    next(stream)
    stream.cancel()
    assert study.estimate(range(T)).distance == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    live = LiveServer(tmp_path_factory.mktemp("plain") / "data").start()
    with live.connect(timeout=120.0) as one:
        slow = one.orders.create(SLOW)
        slow.wait(DEADLINE)
        values = slow.estimates(orders(20, 24), loss="linear")
    live.stop()
    return values


def started(slow):
    until(lambda: slow.job.metrics.get("terms", 0) > 20, "some terms are there")


def kill_worker(live, slow):
    for pid in processes("attach", slow.name):
        os.kill(pid, signal.SIGKILL)


def kill_server(live, slow):
    live.kill()
    live.start()


def cancel_and_resume(live, slow):
    slow.cancel()
    until(lambda: slow.job.state in (optod.v1.job_pb2.Job.CANCELLED, optod.v1.job_pb2.Job.SUCCEEDED), "cancelled")
    if slow.job.state == optod.v1.job_pb2.Job.CANCELLED:
        slow._orders._jobs.resume(slow.name)


@pytest.mark.parametrize("end", [kill_worker, kill_server, cancel_and_resume])
def test_an_interrupted_fill_goes_on_to_the_same_numbers(tmp_path, undisturbed, end):
    live = LiveServer(tmp_path / "data").start()
    with live.connect(timeout=120.0) as one:
        slow = one.orders.create(SLOW)
        started(slow)
        files = next(pathlib.Path(live.data_dir).glob("jobs/*/*/work/study"))
        kept = {path.name: path.stat().st_mtime_ns for path in files.glob("terms-*.bin")}
        end(live, slow)
        slow.wait(DEADLINE)
        assert (slow.estimates(orders(20, 24), loss="linear") == undisturbed).all()
        again = {path.name: path.stat().st_mtime_ns for path in files.glob("terms-*.bin")}
        assert kept and all(again[name] == at for name, at in kept.items()), "finished files are not made again"
    live.stop()


def test_questions_while_the_job_fills(tmp_path):
    live = LiveServer(tmp_path / "data").start()
    with live.connect(timeout=120.0) as one:
        slow = one.orders.create(SLOW)
        with pytest.raises(optod.errors.FailedPrecondition, match="nothing is recorded yet; job .* is (QUEUED|SCHEDULED|RUNNING)"):
            slow.info()
        started(slow)
        assert slow.info().files_filled > 0
        if not slow.info().complete:
            with pytest.raises(optod.errors.FailedPrecondition, match=r"terms\[\d+\]\[\d+\]: missing; \d+ of \d+ files are filled"):
                slow.estimates(orders(300, 24), loss="linear")
        slow.wait(DEADLINE)
        assert slow.info().complete and slow.estimate(range(24)).distance == 0
    live.stop()


def test_a_study_is_its_owners_alone(tmp_path):
    live = LiveServer(tmp_path / "data", ["--auth", "token"]).start()
    with live.connect(token=(pathlib.Path(live.data_dir) / "admin.token").read_text().strip()) as admin:
        tokens = []
        for name in ("ann", "bob"):
            admin.admin.create_user(name)
            tokens.append(admin.admin.create_token(name).secret)
        with live.connect(token=tokens[0]) as ann, live.connect(token=tokens[1]) as bob:
            hers = ann.orders.create(MLP)
            hers.wait(DEADLINE)
            assert hers.info().study == "users/ann/jobs/" + hers.name.split("/")[-1]
            for ask in (lambda s: s.info(), lambda s: s.estimates([range(T)]), lambda s: s.search(generations=1), lambda s: s.export(tmp_path / "x")):
                with pytest.raises(optod.errors.NotFound):
                    ask(bob.orders.get(hers.name))
            with live.connect() as nobody, pytest.raises(optod.errors.Unauthenticated):
                nobody.orders.get(hers.name).info()
    live.stop()


# ---- a language model, and the command line

def test_a_language_model_on_text(client, tmp_path):
    tiny_model.write(tmp_path)
    text = "the quick brown fox jumps over the lazy dog and runs away from it ".replace(" ", "") * 40
    for name in ("train.txt", "dev.txt"):
        (tmp_path / name).write_text(text if name[0] == "t" else text[::-1][:400])
    made = client.orders.create({"model": str(tmp_path / "m"), "task": {"name": "text", "train": str(tmp_path / "train.txt"), "dev": str(tmp_path / "dev.txt"),
                                                                        "max_tokens": 16}, "batches": 4, "batch": 2, "threads": 2,
                                 "study": {"optimizer": "adam", "lr": 0.01, "curvature": "diag", "probes": 1}, "metric": {"perplexity": True},
                                 "estimate": {"random_orders": 4}, "retrain_checks": 3, "matrix": {"spot_checks": 1}})
    result = made.wait(DEADLINE)
    info = made.info()
    assert info.precision_bits == 32 and info.parameters == result["parameters"] > 1000
    assert made.estimate(range(4), perplexity=True).value == pytest.approx(result["reference"], rel=1e-6)
    assert result["retrain_checks"]["error_over_guess"] < 1
    made.export(tmp_path / "e.safetensors", [3, 1, 0, 2])
    raw = (tmp_path / "e.safetensors").read_bytes()
    header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
    assert header["model.embed_tokens.weight"] == {"dtype": "F32", "shape": [32, 16], "data_offsets": header["model.embed_tokens.weight"]["data_offsets"]}
    assert made.search(generations=1, population=2, retrain_best=False, perplexity=True).evaluations >= 2


def optoctl(server, *args):
    return subprocess.run([str(BIN / "optoctl"), *map(str, args)], capture_output=True, text=True, timeout=300, env={**os.environ, "OPTOD_ADDRESS": server.address})


COMMANDS = {
    "show": (["show"], 0, "adam"),
    "one": (["estimate", "5,4,3,2,1,0", "--retrain"], 0, "retrained"),
    "random": (["estimate", "--random", "5"], 0, ","),
    "search": (["search", "--generations", "2", "--population", "4", "--retrain"], 0, "generation 2 of 2"),
    "matrix": (["matrix", "--spot-checks", "2"], 0, "2 cells trained for real"),
    "no_order": (["estimate"], 2, "give one of ORDER, --file and --random"),
    "no_number": (["estimate", "1,x"], 2, '"x" is no batch number'),
    "twice": (["estimate", "0,0,0,0,0,0"], 4, "stands twice"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_optoctl_order(server, study, name):
    words, code, text = COMMANDS[name]
    done = optoctl(server, "order", words[0], study.name, *words[1:])
    assert done.returncode == code and text in done.stdout + done.stderr, done


def test_optoctl_exports_what_python_exports(server, study, tmp_path):
    done = optoctl(server, "--json", "order", "export", study.name, tmp_path / "a.npy", "--order", "5,4,3,2,1,0")
    study.export(tmp_path / "b.npy", [5, 4, 3, 2, 1, 0])
    assert done.returncode == 0 and (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert int(json.loads(done.stdout)["total_bytes"]) == (tmp_path / "a.npy").stat().st_size
