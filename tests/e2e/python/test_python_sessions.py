"""Life cycle of sessions, tensors, events, artifacts, operations and users through the Python client."""

import hashlib
import json
import pathlib

import numpy as np
import optod
import pytest
from live_server import LiveServer

W = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(0.5, dtype=np.float64)}


def stepped(client, n, **options):
    session = client.sessions.create("sgd", W, lr=0.5, **options)
    for _ in range(n):
        session.tell_gradients({"w": np.ones((2, 3), np.float32)})
    return session


def test_create_get_list_update_delete(client):
    session = client.sessions.create("adamw", W, id="life", lr=0.25, seed=3, labels={"team": "a"}, display_name="Life", direction="minimize",
                                     budget=optod.Budget(max_steps=9), durability=optod.Durability("every-n", n=2))
    again = client.sessions.get("life")
    assert again.name == "users/local/sessions/life" == session.name and again.info == session.info
    assert again.info.optimizer.hyperparameters["lr"].number == 0.25 and again.info.optimizer.hyperparameters["beta2"].number == 0.999
    assert again.info.budget.max_steps == 9 and dict(again.info.labels) == {"team": "a"} and again.info.direction == 2
    assert [t.name for t in again.info.layout.tensors] == ["w", "b"] and list(again.info.tell_inputs) == ["grad"]
    assert "life" in [s.id for s in client.sessions.list(page_size=1)]

    old_etag = again.info.etag
    again.update(labels={"team": "b"}, display_name="Lives", budget=optod.Budget(max_steps=10))
    assert dict(again.info.labels) == {"team": "b"} and again.info.display_name == "Lives" and again.info.etag != old_etag
    with pytest.raises(optod.errors.Aborted):
        again.update(display_name="late", etag=old_etag)

    again.update(state="closed")
    with pytest.raises(optod.errors.FailedPrecondition):
        again.tell_gradients({"w": np.ones((2, 3), np.float32)})
    again.update(state="active")

    client.sessions.delete("life")
    with pytest.raises(optod.OptodError) as refused:
        session.tell_gradients({"w": np.ones((2, 3), np.float32)})
    assert refused.value.code in ("NOT_FOUND", "FAILED_PRECONDITION")
    assert "life" not in [s.id for s in client.sessions.list()] and "life" in [s.id for s in client.sessions.list(show_deleted=True)]
    client.sessions.undelete("life")
    assert session.tell_gradients({"w": np.ones((2, 3), np.float32)}).seq == 1


def test_validate_only_creates_nothing(client):
    before = len(list(client.sessions.list()))
    client.sessions.create("adamw", W, validate_only=True)
    with pytest.raises(optod.errors.NotFound):
        client.sessions.create("adamv", W, validate_only=True)
    assert len(list(client.sessions.list())) == before


def test_versions_rollback_fork_export(client, tmp_path):
    session = stepped(client, 5)
    values = [session.pull(n)["w"] for n in range(6)]
    for n, value in enumerate(values):
        np.testing.assert_array_equal(value, W["w"] - np.float32(0.5 * n))
    assert len(session.versions) == 6 and [v.number for v in session.versions] == [5, 4, 3, 2, 1, 0]

    fork = session.fork(2, id="forked")
    assert fork.info.forked_from == session.name + "/versions/2"
    np.testing.assert_array_equal(fork.pull()["w"], values[2])

    session.rollback(2)
    assert session.head_version == 2
    session.tell_gradients({"w": np.full((2, 3), 2, np.float32)})
    np.testing.assert_array_equal(session.pull()["w"], values[2] - 1)
    assert [v.number for v in session.history()] == [0, 1, 2, 6] and session.versions[6].parent == 2
    np.testing.assert_array_equal(session.pull(5)["w"], values[5])     # the other branch is still there
    np.testing.assert_array_equal(fork.pull()["w"], values[2])         # and the fork does not move

    path = tmp_path / "session.jsonl"
    session.export(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) >= 8 and lines == [json.loads(line) for line in session.export().splitlines()]


def test_exports_of_one_session_are_the_same_bytes(client):
    session = client.sessions.create("optoprime", parameters={f"p{i}": i for i in range(12)}, labels={f"l{i}": "x" for i in range(12)})
    session.tell_score(0.5, version=0, feedback="better")
    assert len({session.export() for _ in range(8)}) == 1


def test_push_and_pull_of_tensors_larger_than_a_message(client):
    rng = np.random.default_rng(0)
    params = {"half": rng.standard_normal(1_000_003).astype(np.float16), "embedding": rng.standard_normal((3000, 1000), dtype=np.float32),
              "late": rng.standard_normal(7), "empty": np.zeros((0, 4), np.float32)}
    session = client.sessions.create("sgd", params)     # too large for the call itself: pushed after it
    pulled = session.pull()
    assert list(pulled) == list(params)
    for name, value in pulled.items():
        np.testing.assert_array_equal(value, params[name])
        value[...] = 0      # writable
    assert list(session.pull(names=["e*"])) == ["embedding", "empty"]
    flat = b"".join(value.tobytes() for value in params.values())
    assert session.push(params) == hashlib.sha256(flat).hexdigest()


def test_bf16_travels_as_bits(client):
    bits = np.array([0x3F80, 0xBF80, 0x0001, 0x7F7F], dtype=np.uint16)     # 1, -1, the smallest, the largest
    session = client.sessions.create("sgd", layout={"h": ((4,), "bf16")}, lr=1.0)
    session.push({"h": bits})
    np.testing.assert_array_equal(session.pull()["h"].view(np.uint16), bits)
    session.tell_gradients({"h": np.array([0.5, 0, 0, 0], np.float32)})
    assert session.pull()["h"].view(np.uint16)[0] == 0x3F00               # 0.5


def test_scores_keep_the_best_version(client):
    session = stepped(client, 2)
    session.tell_score(0.5, version=1, feedback="fine")
    session.tell_score(0.25, version=2)
    assert session.refresh().info.best_version == 1 and session.info.best_score == 0.5


def test_events_are_numbered_without_gaps_and_watched_live(client):
    before = [e.sequence for e in client.events.list()]
    assert before == list(range(1, len(before) + 1))
    watch = client.events.watch(after=before[-1], timeout=30)
    session = client.sessions.create("sgd", W)
    client.sessions.delete(session.name)
    seen = [next(watch), next(watch)]
    watch.close()
    assert [(e.sequence, e.type, e.resource) for e in seen] == [
        (before[-1] + 1, "session.created", session.name), (before[-1] + 2, "session.deleted", session.name)]


def test_artifacts_are_named_by_content(client, tmp_path):
    data = bytes(range(256)) * 10_000
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    first, second = client.artifacts.put(path), client.artifacts.put(data)
    assert first.name == second.name and first.size_bytes == len(data) and first.display_name == "model.bin"
    assert client.artifacts.read(first.name) == data and client.artifacts.read(first.name, 5, 10) == data[5:15]
    assert first.name in [a.name for a in client.artifacts.list()]
    client.artifacts.delete(first.name)
    with pytest.raises(optod.errors.NotFound):
        client.artifacts.get(first.name)


def test_backup_is_an_operation_with_progress(client):
    states = []
    result = client.admin.backup("nightly", progress=states.append)
    assert result.integrity_ok and (pathlib.Path(result.path)).is_dir() and states[-1].done
    assert states[-1].name in [o.name for o in client.operations.list()] and client.operations.get(states[-1].name).done


def test_server_information(client):
    info = client.info()
    assert info.user == "local" and info.is_admin and info.services["optod.v1.SessionService"] is True
    rows = {row.name: row for row in client.optimizers()}
    assert {"adamw", "sgd", "zo-sgd", "optoprime"} <= set(rows) and rows["zo-sgd"].family == "zeroth-order"
    assert [h.name for h in client.optimizers("zo-sgd")[0].hyperparameters][:2] == ["lr", "eps"]


def test_unix_socket(tmp_path):
    live = LiveServer(tmp_path / "data", args=["--listen", f"unix:{tmp_path}/s"]).start()
    try:
        with optod.connect(f"unix:{tmp_path}/s") as client:
            assert client.info().user == "local"
    finally:
        assert live.stop() == 0


def test_users_and_tokens(tmp_path):
    live = LiveServer(tmp_path / "data", args=["--auth", "token"]).start()
    try:
        with live.connect() as nobody, pytest.raises(optod.errors.Unauthenticated):
            nobody.sessions.create("sgd", W)
        with live.connect(token=(tmp_path / "data" / "admin.token").read_text().strip()) as admin:
            admin.admin.create_user("ann")
            made = admin.admin.create_token("users/ann", label="laptop", ttl=3600)
            with live.connect(token=made.secret) as ann:
                session = ann.sessions.create("sgd", W, id="mine")
                assert session.name == "users/ann/sessions/mine" and ann.info().user == "ann"
                with pytest.raises(optod.errors.PermissionDenied):
                    list(ann.admin.list_users())
                admin.sessions.create("sgd", W, id="secret")
                with pytest.raises(optod.errors.NotFound):
                    ann.sessions.get("users/admin/sessions/secret")
                admin.admin.revoke_token(made.token.name)
                with pytest.raises(optod.errors.Unauthenticated):
                    ann.info()
            assert [t.revoked for t in admin.admin.list_tokens("users/ann")] == [True]
    finally:
        assert live.stop() == 0


def test_nobody_there():
    with optod.connect("127.0.0.1:1", retry=optod.RetryPolicy(attempts=2, first_wait=0.01)) as client, pytest.raises(optod.errors.Unavailable):
        client.info()
