"""Retries, request ids, deadlines and errors, against a scripted method."""

import grpc
import pytest
from fake_rpc import Failure, Method, Time, UNAVAILABLE

from optod import errors
from optod.retry import RetryPolicy
from optod.transport import Transport, check_address
from optod.v1 import session_pb2


def made(**options):
    time = Time()
    return Transport(None, sleep=time.sleep, clock=time.clock, **options), time


def test_a_retry_sends_the_same_request_id():
    transport, time = made()
    method = Method(UNAVAILABLE, UNAVAILABLE, session_pb2.TellResponse(seq=7))
    assert transport.call(method, session_pb2.TellRequest(session="s")).seq == 7
    ids = {call[0].request_id for call in method.calls}
    assert len(method.calls) == 3 and len(ids) == 1 and len(ids.pop()) == 36
    assert 0.08 <= time.slept[0] <= 0.12 and 0.16 <= time.slept[1] <= 0.24


def test_a_given_request_id_is_kept_and_two_calls_differ_otherwise():
    transport, _ = made()
    method = Method(*[session_pb2.TellResponse()] * 3)
    transport.call(method, session_pb2.TellRequest(request_id="mine"))
    transport.call(method, session_pb2.TellRequest())
    transport.call(method, session_pb2.TellRequest())
    ids = [call[0].request_id for call in method.calls]
    assert ids[0] == "mine" and len(set(ids)) == 3


CODES = [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_only_unavailable_is_tried_again(code):
    transport, _ = made()
    method = Method(Failure(code, "no", [("optod-reason", "BECAUSE"), ("optod-field", "layout.tensors[0].dtype")]))
    with pytest.raises(errors.OptodError, match="^no$") as caught:
        transport.call(method, session_pb2.AskRequest())
    error = caught.value
    assert len(method.calls) == 1
    assert (error.code, error.reason, error.field) == (code.name, "BECAUSE", "layout.tensors[0].dtype")
    assert type(error) is (errors.OptodError if code.name == "UNKNOWN" else errors.CODES[code.name])


def test_four_attempts_in_all():
    transport, time = made()
    method = Method(*[UNAVAILABLE] * 9)
    with pytest.raises(errors.Unavailable, match="connection refused"):
        transport.call(method, session_pb2.AskRequest())
    assert len(method.calls) == 4 and len(time.slept) == 3


def test_once_means_once():
    transport, _ = made()
    method = Method(UNAVAILABLE, session_pb2.AskResponse())
    with pytest.raises(errors.Unavailable):
        transport.call(method, session_pb2.AskRequest(), once=True)


def test_the_deadline_spans_all_attempts():
    transport, time = made(timeout=1.0, retry=RetryPolicy(attempts=10, first_wait=0.4, longest_wait=0.4))
    method = Method(*[UNAVAILABLE] * 9)
    with pytest.raises(errors.Unavailable):
        transport.call(method, session_pb2.AskRequest())
    timeouts = [call[1] for call in method.calls]
    assert timeouts[0] == 1.0 and timeouts == sorted(timeouts, reverse=True)
    assert time.now - 100.0 < 1.0


def test_the_server_says_when_to_come_back():
    transport, time = made()
    busy = Failure(grpc.StatusCode.UNAVAILABLE, "draining", [("retry-after-ms", "1250")])
    transport.call(Method(busy, session_pb2.AskResponse()), session_pb2.AskRequest())
    assert time.slept == [1.25]


@pytest.mark.parametrize("attempt,jitter,want", [(1, 0.5, 0.1), (2, 0.5, 0.2), (5, 0.5, 1.6), (6, 0.5, 2.0), (60, 0.0, 1.6), (60, 1.0, 2.4)])
def test_waits(attempt, jitter, want):
    assert RetryPolicy().wait(attempt, jitter, errors.Unavailable("")) == pytest.approx(want)


def test_the_token_travels():
    transport, _ = made(token="secret")
    method = Method(session_pb2.AskResponse())
    transport.call(method, session_pb2.AskRequest())
    assert method.calls[0][2] == (("authorization", "Bearer secret"),)


@pytest.mark.parametrize("code,message,field,want", [
    (3, "hyperparameters.lr: -1 is negative; must be > 0", "", "hyperparameters.lr"),
    (3, "layout.tensors[3].dtype: F99", "", "layout.tensors[3].dtype"),
    (3, "a sentence: no field", "", ""),
    (3, "x: y", "given", "given"),
    (10, "base_version: 3 is not the head", "", ""),
])
def test_fields(code, message, field, want):
    error = errors.from_code(code, message, field=field)
    assert error.field == want and str(error) == message


def test_numbers_and_names_give_the_same_class():
    assert type(errors.from_code(10, "")) is type(errors.from_code("ABORTED", "")) is errors.Aborted
    assert type(errors.from_code(99, "")) is errors.OptodError


@pytest.mark.parametrize("address,good", [("127.0.0.1:7070", True), ("unix:/run/optod.sock", True), ("[::1]:80", True), ("localhost", False),
                                          ("host:", False), ("host:0", False), ("host:65536", False), ("unix:", False), (":80", False)])
def test_addresses(address, good):
    if good:
        assert check_address(address) == address
    else:
        with pytest.raises(ValueError, match="neither HOST:PORT nor unix:PATH"):
            check_address(address)
