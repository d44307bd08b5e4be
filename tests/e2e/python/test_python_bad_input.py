"""Bad input: request -> code -> text. Nothing is half applied."""

import re

import grpc
import numpy as np
import optod
import pytest
from optod.v1 import session_pb2, session_pb2_grpc, tensor_pb2

W = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.float32)}
F32 = np.float32


def grads(**changes):
    return {**{"w": np.ones((2, 3), F32), "b": np.ones(4, F32)}, **changes}


def with_nan(shape):
    value = np.ones(shape, F32)
    value.flat[-1] = np.nan
    return value


CREATE = [
    ("unknown_optimizer", dict(optimizer="adamv", params=W), "NOT_FOUND", r'optimizer: "adamv" is unknown; did you mean "adamw"\?'),
    ("lr_negative", dict(optimizer="adamw", params=W, lr=-1), "INVALID_ARGUMENT", r"hyperparameters\.lr: -1 is negative; must be > 0"),
    ("lr_nan", dict(optimizer="adamw", params=W, lr=float("nan")), "INVALID_ARGUMENT", r"hyperparameters\.lr"),
    ("beta_out_of_range", dict(optimizer="adamw", params=W, beta1=1.0), "INVALID_ARGUMENT", r"hyperparameters\.beta1: 1 "),
    ("unknown_hyperparameter", dict(optimizer="adamw", params=W, momentun=0.9), "INVALID_ARGUMENT", r"hyperparameters\.momentun"),
    ("text_for_number", dict(optimizer="adamw", params=W, lr="fast"), "INVALID_ARGUMENT", r"hyperparameters\.lr"),
    ("bad_choice", dict(optimizer="zo-sgd", params=W, perturbation="both"), "INVALID_ARGUMENT", r"hyperparameters\.perturbation"),
    ("no_layout", dict(optimizer="adamw"), "INVALID_ARGUMENT", r"layout"),
    ("dtype_not_for_parameters", dict(optimizer="adamw", layout={"w": ((3,), "i32")}), "INVALID_ARGUMENT", r"int32 cannot be optimized"),
    ("zeroth_order_float64", dict(optimizer="zo-sgd", params={"w": np.zeros(3)}), "INVALID_ARGUMENT", r'"w" is float64'),
    ("negative_size", dict(optimizer="adamw", layout={"w": ((-1, 3), "f32")}), "INVALID_ARGUMENT", r"shape"),
    ("too_large", dict(optimizer="adamw", layout={"w": ((1 << 31, 1 << 31), "f32")}), "INVALID_ARGUMENT", r"layout"),
    ("bad_id", dict(optimizer="adamw", params=W, id="No Spaces"), "INVALID_ARGUMENT", r"session_id"),
    ("id_taken", dict(optimizer="adamw", params=W, id="taken"), "ALREADY_EXISTS", r"taken"),
    ("schedule_without_total", dict(optimizer="adamw", params=W, schedule=optod.Schedule("cosine")), "INVALID_ARGUMENT", r"total_steps"),
    ("clip_negative", dict(optimizer="adamw", params=W, clip_norm=-1), "INVALID_ARGUMENT", r"clip_norm: -1"),
    ("every_n_zero", dict(optimizer="adamw", params=W, durability=optod.Durability("every-n")), "INVALID_ARGUMENT", r"durability"),
    ("label_key_long", dict(optimizer="adamw", params=W, labels={"k" * 64: "v"}), "INVALID_ARGUMENT", r"labels"),
    ("request_id_long", dict(optimizer="adamw", params=W, request_id="r" * 65), "INVALID_ARGUMENT", r"request_id"),
    ("parameter_name", dict(optimizer="optoprime", parameters={"not a name": 1}), "INVALID_ARGUMENT", r"parameters"),
    ("initial_outside_range", dict(optimizer="optoprime", parameters={"k": optod.Parameter(50, max=20)}), "INVALID_ARGUMENT", r"parameters\[0\]\.initial: 50 is above the maximum 20"),
    ("pattern_is_no_regex", dict(optimizer="optoprime", parameters={"k": optod.Parameter("a", pattern="(")}), "INVALID_ARGUMENT", r"parameters\[0\].*regex"),
]


@pytest.mark.parametrize("name,request_,code,text", CREATE, ids=[case[0] for case in CREATE])
def test_create(client, name, request_, code, text):
    if name == "id_taken":
        client.sessions.create("sgd", W, id="taken")
    before = {session.name for session in client.sessions.list()}
    with pytest.raises(optod.OptodError, match=text) as refused:
        client.sessions.create(**request_)
    assert refused.value.code == code
    assert {session.name for session in client.sessions.list()} == before


TELL = [
    ("nan", lambda s: s.tell_gradients(grads(b=with_nan(4))), "INVALID_ARGUMENT", r"b: element 3 is NaN; must be finite"),
    ("wrong_shape", lambda s: s.tell_gradients(grads(w=np.ones((3, 2), F32))), "INVALID_ARGUMENT", r"w.*shape \[3, 2\].*\[2, 3\]"),
    ("wrong_dtype", lambda s: s.tell_gradients(grads(w=np.ones((2, 3), np.float64))), "INVALID_ARGUMENT", r"w.*float64"),
    ("integers", lambda s: s.tell_gradients(grads(w=np.ones((2, 3), np.int32))), "INVALID_ARGUMENT", r"w.*int32"),
    ("unknown_tensor", lambda s: s.tell_gradients(grads(v=np.ones(3, F32))), "INVALID_ARGUMENT", r'"?v"?'),
    ("no_tensor", lambda s: s.tell_gradients({}), "INVALID_ARGUMENT", r"gradients"),
    ("stale_version", lambda s: s.tell_gradients(grads(), base_version=0), "ABORTED", r"base_version: 0 is not the head 1; ask again"),
    ("future_version", lambda s: s.tell_gradients(grads(), base_version=9), "ABORTED", r"base_version: 9 is not the head 1"),
    ("seq_gap", lambda s: s.tell_gradients(grads(), seq=5), "FAILED_PRECONDITION", r"seq: 5 leaves a gap; expected 2"),
    ("seq_negative", lambda s: s.tell_gradients(grads(), seq=-1), "INVALID_ARGUMENT", r"seq: -1 is negative"),
    ("wrong_family", lambda s: s.tell_losses({"0.0": (1.0, 1.0)}), "INVALID_ARGUMENT", r"gradients: missing; adamw sessions are told gradients"),
    ("rollback_nowhere", lambda s: s.rollback(7), "NOT_FOUND", r"7"),
    ("fork_nowhere", lambda s: s.fork(7), "NOT_FOUND", r"7"),
    ("pull_nowhere", lambda s: s.pull(7), "NOT_FOUND", r"7"),
    ("push_after_a_step", lambda s: s.push(W), "FAILED_PRECONDITION", r"step"),
    ("score_nan", lambda s: s.tell_score(float("nan")), "INVALID_ARGUMENT", r"score"),
    ("count_negative", lambda s: s.ask(-1), "INVALID_ARGUMENT", r"count: -1"),
]


@pytest.mark.parametrize("name,call,code,text", TELL, ids=[case[0] for case in TELL])
def test_tell(client, name, call, code, text):
    session = client.sessions.create("adamw", W, lr=0.1)
    session.tell_gradients(grads())
    before = session.pull()
    with pytest.raises(optod.OptodError, match=text) as refused:
        call(session)
    assert refused.value.code == code
    session.refresh()
    assert (session.seq, session.info.version_count, session.info.head_version) == (1, 2, 1)
    for name_, value in session.pull().items():
        np.testing.assert_array_equal(value, before[name_])


def test_a_missing_declared_input_is_named(client):
    session = client.sessions.create("adahessian", W, lr=0.1)
    with pytest.raises(optod.errors.FailedPrecondition, match=r"hessian_z/(w|b).*missing"):
        session.tell_gradients(grads())
    assert session.refresh().seq == 0


PROBES = [("garbage", "probe", "INVALID_ARGUMENT", r'"probe" is no probe; must be VERSION\.QUERY'), ("future", "5.0", "INVALID_ARGUMENT", r"never handed out"),
          ("query", "0.9", "INVALID_ARGUMENT", r"never handed out"), ("long", "1" * 40 + ".0", "INVALID_ARGUMENT", r"is no probe"),
          ("empty", "", "INVALID_ARGUMENT", r"is no probe")]


@pytest.mark.parametrize("name,probe,code,text", PROBES, ids=[case[0] for case in PROBES])
def test_probes(client, name, probe, code, text):
    session = client.sessions.create("zo-sgd", W, lr=0.1)
    with pytest.raises(optod.OptodError, match=text) as refused:
        session.tell_losses({probe: (1.0, 2.0)})
    assert refused.value.code == code and session.refresh().seq == 0


def test_no_results(client):
    with pytest.raises(optod.errors.InvalidArgument, match=r"losses\.results: empty; send at least one"):
        client.sessions.create("zo-sgd", W).tell_losses({})


NAMES = [("unknown", "nobody", "NOT_FOUND", "nobody does not exist"), ("malformed", "users//sessions/x", "INVALID_ARGUMENT", 'session: "" is no user id'),
         ("empty", "", "INVALID_ARGUMENT", 'session: "" is no session id'), ("capitals", "Nobody", "INVALID_ARGUMENT", 'session: "Nobody" is no session id; must match')]


@pytest.mark.parametrize("name,session,code,text", NAMES, ids=[case[0] for case in NAMES])
def test_names(client, name, session, code, text):
    with pytest.raises(optod.OptodError, match=text) as refused:
        client.sessions.get(session)
    assert refused.value.code == code


def chunks(*parts):
    header, body = parts[0], parts[1:]
    yield session_pb2.PushParametersRequest(header=header)
    for offset, data in body:
        yield session_pb2.PushParametersRequest(chunk=tensor_pb2.TensorChunk(offset=offset, data=data))


PUSH = [
    ("wrong_total", dict(total_bytes=39), [(0, b"x" * 40)], "INVALID_ARGUMENT", r"total_bytes: 39"),
    ("cut_short", dict(total_bytes=40), [(0, b"x" * 39)], "INVALID_ARGUMENT|DATA_LOSS", r"39"),
    ("too_long", dict(total_bytes=40), [(0, b"x" * 41)], "INVALID_ARGUMENT", r"."),
    ("gap", dict(total_bytes=40), [(0, b"x" * 8), (16, b"x" * 24)], "INVALID_ARGUMENT", r"offset"),
    ("checksum", dict(total_bytes=40, sha256="00" * 32), [(0, b"x" * 40)], "DATA_LOSS", r"sha256"),
    ("checksum_no_hex", dict(total_bytes=40, sha256="zz"), [(0, b"x" * 40)], "INVALID_ARGUMENT|DATA_LOSS", r"sha256"),
    ("chunk_too_large", dict(total_bytes=40), [(0, b"x" * (5 << 20))], "RESOURCE_EXHAUSTED|INVALID_ARGUMENT", r"."),
]


@pytest.mark.parametrize("name,header,body,code,text", PUSH, ids=[case[0] for case in PUSH])
def test_push(client, name, header, body, code, text):
    session = client.sessions.create("adamw", layout=W)
    head = session_pb2.PushParametersHeader(session=session.name, **header)
    with pytest.raises(optod.OptodError, match=text) as refused:
        client.transport.retrying(lambda left: client.session_stub.PushParameters(chunks(head, *body), timeout=left))
    assert refused.value.code in code.split("|")
    assert not session.refresh().info.has_values


def test_an_oversize_message_is_refused_and_the_server_lives(client):
    session = client.sessions.create("adamw", layout={"w": ((2_000_000,), "f32")})
    with pytest.raises(optod.errors.ResourceExhausted, match="larger than max"):
        session.tell_gradients({"w": np.zeros(2_000_000, F32)})
    assert client.info().version


def test_an_error_on_the_stream_leaves_the_stream_open(client):
    session = client.sessions.create("zo-sgd", W, lr=0.1)
    with session.worker() as worker:
        bad = session_pb2.AskTellRequest(tell=session_pb2.TellRequest(session=session.name, losses=session_pb2.LossTell()))
        with pytest.raises(optod.errors.InvalidArgument, match="empty; send at least one") as refused:
            worker._channel.exchange(bad)
        assert refused.value.field == "losses.results"
        assert worker.step(lambda p: 1.0).probes == 1


BUDGETS = [("steps", dict(max_steps=2), r"budget\.max_steps: all 2 steps are used"),
           ("evaluations", dict(max_evaluations=2), r"budget\.max_evaluations: all 2 evaluations are used")]


@pytest.mark.parametrize("name,limits,text", BUDGETS, ids=[case[0] for case in BUDGETS])
def test_a_spent_budget_is_named(client, name, limits, text):
    session = client.sessions.create("zo-sgd", W, lr=0.1, budget=optod.Budget(**limits))
    with session.worker() as worker:
        assert worker.run(lambda p: 1.0, 10) == 2 and worker.budget_spent
    answer = session.ask()
    assert answer.budget_spent and not answer.probes
    assert re.search(text, answer.budget_reason)


STREAMS = [
    ("PullParameters", lambda stub, name: list(stub.PullParameters(session_pb2.PullParametersRequest(session=name, tensors=["nope"])))),
    ("PullState", lambda stub, name: list(stub.PullState(session_pb2.PullStateRequest(session="nobody")))),
    ("ExportSession", lambda stub, name: list(stub.ExportSession(session_pb2.ExportSessionRequest(session="nobody")))),
    ("PushParameters", lambda stub, name: stub.PushParameters(iter([session_pb2.PushParametersRequest()]))),
    ("StepStream", lambda stub, name: list(stub.StepStream(iter([session_pb2.StepStreamRequest()])))),
]


@pytest.mark.parametrize("name,call", STREAMS, ids=[case[0] for case in STREAMS])
def test_errors_of_streams_carry_their_reason(client, server, name, call):
    session = client.sessions.create("sgd", W)
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            call(session_pb2_grpc.SessionServiceStub(channel), session.name)
    details = dict(refused.value.trailing_metadata())
    assert details.get("optod-reason") == refused.value.code().name, details
