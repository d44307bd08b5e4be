"""Eight users on one server under load: nobody sees, reads, changes or gets what is another's."""

import json
import re
import shutil
import threading

import numpy as np
import optod
import pytest
from live_server import LiveServer
from optod.v1 import job_pb2, job_pb2_grpc, search_pb2, search_pb2_grpc, session_pb2, workflow_pb2, workflow_pb2_grpc
from scripted_model import ScriptedModel

USERS = [f"user-{letter}" for letter in "abcdefgh"]
ROUNDS = 6
MARK = re.compile(r"mark-user-[a-h]")


def suggest(request):
    """The next value of the prompt that asks: its user's mark and one more than the round it shows."""
    prompt = json.dumps(request)
    marks = set(MARK.findall(prompt))
    rounds = [int(n) for n in re.findall(r"round-(\d+)-of", prompt)]
    return json.dumps({"reasoning": "", "answer": "", "suggestion": {"text0": f"{'+'.join(sorted(marks))} round-{max(rounds) + 1}-of"}})


@pytest.fixture(scope="module")
def model():
    made = ScriptedModel(suggest, delay=0.02)
    yield made
    made.close()


@pytest.fixture(scope="module")
def clients(tmp_path_factory, model):
    data = tmp_path_factory.mktemp("optod") / "data"
    live = LiveServer(data, args=["--auth", "token", "--executor", "sandbox"], env={"OPTOD_LLM_URL": model.url, "OPTOD_LLM_MODEL": "scripted"}).start()
    with live.connect(token=(data / "admin.token").read_text().strip()) as admin:
        made = {}
        for user in USERS:
            admin.admin.create_user(user)
            made[user] = live.connect(token=admin.admin.create_token(f"users/{user}").secret)
    yield made
    for client in made.values():
        client.close()
    assert live.stop() == 0


def work(client, user):
    """A traced program and a zeroth-order run of one user; every user takes the same session ids."""
    mark = f"mark-{user}"
    session = client.sessions.create("optoprime", parameters={"text": f"{mark} round-0-of"}, id="same")
    parameter = next(iter(session.nodes()))
    zo = client.sessions.create("zo-sgd", layout={"w": ((USERS.index(user) + 2,), "f32")}, lr=1e-3, id="zo")
    for number in range(ROUNDS):
        out, = session.record([optod.node(f"{mark} saw round-{number}-of", base="out", kind="message", op="look", inputs={"x": parameter.id})])
        session.backward(out, f"{mark} wants more than round-{number}-of", score=number / 10)
        answer = session.propose(candidates=1)
        assert answer.head_version == number + 1
        assert session.values() == {"text": f"{mark} round-{number + 1}-of"}
        probe, = zo.ask().probes
        assert zo.tell_losses({probe.probe_id: (1.0 + number, 1.0)}).head_version == number + 1
    return session, zo


@pytest.fixture(scope="module")
def worked(clients):
    """What each user made while all of them worked at once."""
    made, failed = {}, []

    def run(user):
        try:
            made[user] = work(clients[user], user)
        except BaseException as error:   # of a thread: told below
            failed.append((user, error))

    threads = [threading.Thread(target=run, args=(user,)) for user in USERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    return made


@pytest.mark.parametrize("user", USERS)
def test_each_user_has_what_it_made_and_nothing_else(clients, worked, user):
    client, (session, zo) = clients[user], worked[user]
    own = {f"mark-{user}"}
    assert sorted(s.name for s in client.sessions.list()) == [f"users/{user}/sessions/same", f"users/{user}/sessions/zo"]
    assert [v.number for v in session.history()] == list(range(ROUNDS + 1)) and len(zo.versions) == ROUNDS + 1
    assert list(zo.layout.specs["w"].shape) == [USERS.index(user) + 2]
    assert set(MARK.findall(session.export().decode())) == own
    session.backward(next(iter(session.nodes())).id, f"mark-{user} round-9-of")
    problem = session.problem()
    assert set(MARK.findall(problem.user_prompt)) == own and MARK.findall(problem.feedback) == [f"mark-{user}"]
    session.zero_feedback()
    assert all(user in event.resource for event in client.events.list())
    assert all(f"users/{user}/" in operation.name for operation in client.operations.list())


def test_prompts_and_keys_of_the_model_never_mix(model, worked):
    marks = [set(MARK.findall(json.dumps(request))) for request in model.requests]
    assert len(marks) == ROUNDS * len(USERS) and all(len(found) == 1 for found in marks)


def foreign(client, session):
    """A Session of another user as this client would address it."""
    return optod.session.Session(client, session_pb2.Session.FromString(session.info.SerializeToString()))


def content(session):
    """All that an export holds."""
    return session.export()


# What one user may try on the trace session s and the zeroth-order session zo of another.
SESSION_CALLS = {
    "get": lambda s, zo: s.client.sessions.get(s.name),
    "refresh": lambda s, zo: s.refresh(),
    "update": lambda s, zo: s.update(display_name="mine"),
    "close": lambda s, zo: s.update(state="closed"),
    "delete": lambda s, zo: s.delete(),
    "undelete": lambda s, zo: s.undelete(),
    "fork": lambda s, zo: s.fork(id="taken"),
    "fork a version": lambda s, zo: s.fork(version=1, id="taken"),
    "rollback": lambda s, zo: s.rollback(0),
    "export": lambda s, zo: s.export(),
    "versions": lambda s, zo: list(s.list_versions()),
    "a version": lambda s, zo: s.versions[1],
    "values": lambda s, zo: s.values(1),
    "set values": lambda s, zo: s.set_values({"text": "mine"}),
    "record": lambda s, zo: s.record([optod.node(1, base="n")]),
    "nodes": lambda s, zo: list(s.nodes()),
    "backward": lambda s, zo: s.backward(1, "mine"),
    "zero feedback": lambda s, zo: s.zero_feedback(),
    "problem": lambda s, zo: s.problem(),
    "propose": lambda s, zo: s.propose(),
    "graph": lambda s, zo: s.graph(),
    "tell a score": lambda s, zo: s.tell_score(9.0, version=1),
    "ask": lambda s, zo: s.ask(),
    "ask for a probe": lambda s, zo: zo.ask(),
    "tell losses": lambda s, zo: zo.tell_losses({"0-0": (1.0, 2.0)}),
    "pull": lambda s, zo: zo.pull(),
    "pull the state": lambda s, zo: zo.pull_state(),
    "push": lambda s, zo: zo.push({"w": np.zeros(tuple(zo.layout.specs["w"].shape), "float32")}),
    "memory": lambda s, zo: zo.memory(),
    "complete": lambda s, zo: s.transport.call(
        workflow_pb2_grpc.WorkflowServiceStub(s.transport.channel).Complete,
        workflow_pb2.CompleteRequest(session=s.name, messages=[workflow_pb2.ChatTurn(role="user", content="hi")])),
    "run a workflow": lambda s, zo: s.transport.call(
        workflow_pb2_grpc.WorkflowServiceStub(s.transport.channel).ExecuteRun, workflow_pb2.ExecuteRunRequest(session=s.name, text="steps: {}")),
}
REFUSED = (optod.errors.NotFound, optod.errors.PermissionDenied)


@pytest.mark.parametrize("call", SESSION_CALLS)
def test_the_sessions_of_another_are_not_there(clients, worked, call):
    session, zo = worked["user-a"]
    if call == "run a workflow" and not shutil.which("bwrap"):
        pytest.skip("bwrap is not installed: no server here runs workflows")
    before = content(session), content(zo)
    own = sorted(s.name for s in clients["user-b"].sessions.list())
    with pytest.raises(optod.errors.NotFound, match="user-a"):
        SESSION_CALLS[call](foreign(clients["user-b"], session), foreign(clients["user-b"], zo))
    assert (content(session), content(zo)) == before
    assert sorted(s.name for s in clients["user-b"].sessions.list()) == own


# What the client c may try on the resources a of another user.
RESOURCE_CALLS = {
    "list sessions": lambda c, a: list(c.sessions.list("users/user-a")),
    "list everybody's sessions": lambda c, a: list(c.sessions.list("users/-")),
    "list operations": lambda c, a: list(c.operations.list("users/user-a")),
    "get an operation": lambda c, a: c.operations.get(a["operation"]),
    "wait for an operation": lambda c, a: c.operations.wait(a["operation"], timeout=1),
    "cancel an operation": lambda c, a: c.operations.cancel(a["operation"]),
    "list artifacts": lambda c, a: list(c.artifacts.list("users/user-a")),
    "get an artifact": lambda c, a: c.artifacts.get(a["artifact"]),
    "read an artifact": lambda c, a: c.artifacts.read(a["artifact"]),
    "delete an artifact": lambda c, a: c.artifacts.delete(a["artifact"]),
    "list events": lambda c, a: list(c.events.list(parent="users/user-a")),
    "watch events": lambda c, a: next(c.events.watch(parent="users/user-a", timeout=5)),
    "create a session": lambda c, a: c.transport.call(c.session_stub.CreateSession, session_pb2.CreateSessionRequest(parent="users/user-a")),
    "list jobs": lambda c, a: c.transport.call(job_pb2_grpc.JobServiceStub(c.transport.channel).ListJobs, job_pb2.ListJobsRequest(parent="users/user-a")),
    "list searches": lambda c, a: c.transport.call(
        search_pb2_grpc.SearchServiceStub(c.transport.channel).ListSearches, search_pb2.ListSearchesRequest(session="users/user-a/sessions/same")),
    "list users": lambda c, a: list(c.admin.list_users()),
    "make a token": lambda c, a: c.admin.create_token("users/user-a"),
    "list tokens": lambda c, a: c.admin.list_tokens("users/user-a"),
    "backup": lambda c, a: c.admin.backup(),
}


@pytest.fixture(scope="module")
def of_user_a(clients, worked):
    client = clients["user-a"]
    return {"operation": next(iter(client.operations.list())).name, "artifact": client.artifacts.put(b"private bytes").name}


@pytest.mark.parametrize("call", RESOURCE_CALLS)
def test_what_belongs_to_another_is_out_of_reach(clients, of_user_a, call):
    with pytest.raises(REFUSED):
        RESOURCE_CALLS[call](clients["user-b"], of_user_a)
    assert clients["user-a"].artifacts.read(of_user_a["artifact"]) == b"private bytes"
    assert clients["user-a"].operations.get(of_user_a["operation"]).done
