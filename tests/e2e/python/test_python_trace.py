"""Trace sessions through the Python client; proposals come from an HTTP endpoint that answers as scripted."""

import json

import optod
import pytest
from live_server import LiveServer
from scripted_model import ScriptedModel


@pytest.fixture(scope="module")
def endpoint():
    made = ScriptedModel()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory, endpoint):
    env = {"OPTOD_LLM_URL": endpoint.url, "OPTOD_LLM_MODEL": "scripted", "OPTOD_LLM_KEY": "canary-key"}
    live = LiveServer(tmp_path_factory.mktemp("optod") / "data", env=env).start()
    yield live
    assert live.stop() == 0


def recorded(client, k=5):
    session = client.sessions.create("optoprime", parameters={"k": optod.Parameter(k, description="how often", min=1, max=20)})
    parameter = next(iter(session.nodes()))
    text, out = session.record([
        optod.node("ab", base="text"),
        optod.node("ab" * k, base="out", kind="message", op="repeat", description="[repeat] Repeats the text.", inputs={"text": -1, "k": parameter.id}),
    ])
    return session, parameter, text, out


def reply(**suggestion):
    return json.dumps({"reasoning": "because", "answer": "", "suggestion": suggestion})


def test_nodes_levels_problem_and_graph(client):
    session, parameter, text, out = recorded(client)
    assert (parameter.name, text.level, out.level) == ("k:0", 0, 1)
    assert session.backward(out, "too short", score=0.25).parameters == [parameter.id]
    problem = session.problem()
    assert problem.code_lines == ["out0 = repeat(text=text0, k=k0)"] and [v.name for v in problem.variables] == ["k0"]
    assert problem.feedback == "too short" and "repeat" in problem.user_prompt
    assert session.refresh().info.best_score == 0.25
    dot = session.graph(subgraph=True)
    assert dot.startswith("digraph") and "->" in dot
    assert session.zero_feedback() == 1
    with pytest.raises(optod.errors.FailedPrecondition):
        session.propose()


def test_a_proposal_becomes_the_head(client, endpoint):
    session, _, _, out = recorded(client)
    endpoint.script[:] = [reply(k0=7)]
    session.backward(out, "too short")
    states = []
    answer = session.propose(candidates=1, progress=states.append)
    assert [c.version for c in answer.candidates] == [1] and answer.head_version == session.head_version == 1
    assert session.values() == {"k": 7} and session.values(0) == {"k": 5} and states[-1].done
    assert answer.usage.llm_prompt_tokens == 10 and endpoint.requests[-1]["model"] == "scripted"


@pytest.mark.parametrize("text,kind", [("no json at all", "REPLY_UNPARSABLE"), (reply(k0=5), "REPLY_UNCHANGED")])
def test_replies_that_change_nothing_are_said_so(client, endpoint, text, kind):
    from optod.v1 import trace_pb2
    session, _, _, out = recorded(client)
    endpoint.script[:] = [text]
    session.backward(out, "too short")
    candidate = session.propose(candidates=1).candidates[0]
    assert trace_pb2.ReplyKind.Name(candidate.kind) == kind
    assert session.values() == {"k": 5} and session.refresh().head_version == 0


def test_an_empty_reply_is_an_outcome_that_says_so(client, endpoint):
    from optod.v1 import trace_pb2
    session, _, _, out = recorded(client)
    endpoint.script[:] = [""]
    session.backward(out, "too short")
    candidate = session.propose(candidates=1).candidates[0]
    assert candidate.kind == trace_pb2.REPLY_EMPTY and "the reply is empty" in candidate.reason
    assert session.values() == {"k": 5}
    endpoint.script[:] = [reply(k0=6)]
    assert session.propose(candidates=1).head_version == 1      # the feedback was kept


def test_an_enforced_constraint_rejects(client, endpoint):
    session, _, _, out = recorded(client)
    endpoint.script[:] = [reply(k0=100)]
    session.backward(out, "too short")
    candidate = session.propose(candidates=1).candidates[0]
    assert "20" in candidate.keys[0].reason and session.values() == {"k": 5}


def test_values_set_by_hand(client):
    session, _, _, _ = recorded(client)
    assert session.set_values({"k": 9}, note="by hand").number == 1
    assert session.set_values({"k": 11}, keep_head=True).number == 2
    assert session.values() == {"k": 9} and session.values(2) == {"k": 11}
    session.tell_score(1.0, version=2)
    session.rollback(2)
    assert session.values() == {"k": 11}
    with pytest.raises(optod.errors.InvalidArgument, match="k"):
        session.set_values({"k": 99})


def test_many_nodes_in_batches(client):
    session = client.sessions.create("optoprime", parameters={"x": 1})
    chain = [optod.node(i, base="n", kind="message", op="add", inputs={"a": 0 if i == 0 else -i}) for i in range(12_000)]
    out = session.record(chain)
    assert [n.level for n in out] == list(range(1, 12_001))
    session.backward(out[-1], "larger")
    assert len(session.problem().subgraph) == 12_001
