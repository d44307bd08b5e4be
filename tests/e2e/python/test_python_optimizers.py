"""Traced programs against a real server: OptoPrime and its relatives, with the server's model and with the client's."""

import json
import re
import subprocess
import sys
import threading

import pytest
from live_server import BINARY, LiveServer
from scripted_model import ScriptedModel

from optod.optimizers import OPRO, OptoPrime, OptoPrimeMulti, OptoPrimeV2, TextGrad
from optod.trace import GRAPH, ExecutionError, bundle, model, node
from optod.trace.projections import Projection


@pytest.fixture(scope="module")
def endpoint():
    made = ScriptedModel()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory, endpoint):
    live = LiveServer(tmp_path_factory.mktemp("optod") / "data", env={"OPTOD_LLM_URL": endpoint.url, "OPTOD_LLM_MODEL": "scripted", "OPTOD_LLM_KEY": "k"})
    yield live.start()
    assert live.stop() == 0


@pytest.fixture(autouse=True)
def fresh_names():
    GRAPH.clear()


def says(**suggestion):
    """A model that suggests the same every time and keeps what it was asked."""
    asked = []

    def answer(messages, **options):
        asked.append((messages, options))
        return json.dumps({"reasoning": "because", "suggestion": suggestion})

    answer.asked = asked
    return answer


def in_tags(value):
    """A model that answers in tags for the first variable it is shown."""
    def answer(messages, **options):
        name = re.findall(r'<variable name="\s*(.*?)" type=', messages[-1]["content"])[0]
        return f"<reasoning>r</reasoning><variable><name>{name}</name><value>{value}</value></variable>"
    return answer


@bundle()
def double(v):
    """Doubles v."""
    return v * 2


def told(optimizer, x, words="too small"):
    out = double(x) + 1
    optimizer.zero_feedback()
    optimizer.backward(out, words)
    return out


def test_a_step_with_the_clients_model(client):
    x = node(1.0, trainable=True, name="x", description="a factor", constraint="positive")
    model_here = says(x0=2.5)
    optimizer = OptoPrime([x], llm=model_here, client=client)
    told(optimizer, x)
    update = optimizer.step()
    assert update == {x: 2.5} and x.data == 2.5
    user = model_here.asked[0][0][1]["content"]
    for part in ("double0 = double(v=x0)", "add0 = add(x=double0, y=int0)", "(float) x0=1.0", "a factor", "positive", "too small", "Doubles v."):
        assert part in user
    assert optimizer.session.values() == {"x:0": 2.5} and optimizer.session.head_version == 1
    assert optimizer.log[0]["user_prompt"] == user and json.loads(optimizer.log[0]["response"])["suggestion"] == {"x0": 2.5}
    assert "#Code" in str(optimizer.summary_log[0]["problem_instance"])


def test_a_step_with_the_servers_model(client, endpoint):
    x = node(1, trainable=True, name="x")
    endpoint.script[:] = [json.dumps({"reasoning": "r", "suggestion": {"x0": 5}})]
    optimizer = OptoPrime([x], client=client)
    told(optimizer, x)
    assert optimizer.step() == {x: 5} and optimizer.session.refresh().info.usage.llm_prompt_tokens == 10
    assert "double0 = double" in endpoint.requests[-1]["messages"][-1]["content"]


def test_every_step_records_only_what_is_new(client):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], llm=says(x0=2.0), client=client, log=False)
    for _ in range(3):
        told(optimizer, x)
        optimizer.step()
        x._data = 1.0                    # by hand: the next step tells the server
    nodes = [n.name for n in optimizer.session.nodes()]
    assert nodes.count("x:0") == 1 and sum(n.startswith("double") for n in nodes) == 3 and len(nodes) == len(set(nodes)) == 10
    assert [v.kind for v in optimizer.session.list_versions(oldest_first=True)].count("set") == 2


def test_code_and_text_are_optimized_together(client):
    @bundle(trainable=True)
    def greet(name):
        """Says hello."""
        return "hi " + name

    who = node("you", trainable=True, name="who")
    new_code = 'def greet(name):\n    return "hello " + name'
    optimizer = OptoPrime([who, greet.parameter], llm=says(who0="all", __code0=new_code), client=client)
    optimizer.backward(greet(who), "say hello")
    optimizer.step()
    assert greet(who).data == "hello all" and greet.parameter.data.strip() == new_code


def test_an_update_by_the_program_is_kept_apart(client):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrime([x], llm=says(x0=2.0), client=client)
    told(optimizer, x)
    assert optimizer.step(bypassing=True) == {x: 2.0} and x.data == 1.0 and optimizer.session.refresh().head_version == 0
    optimizer.update({x: 7.0})
    told(optimizer, x)
    optimizer.step()
    assert [v.kind for v in optimizer.session.list_versions(oldest_first=True)] == ["initial", "candidate", "set", "candidate"]


def test_projections_come_between_proposal_and_update(client):
    class AtMostTwo(Projection):
        def project(self, x):
            return min(x, 2)

    x = node(1, trainable=True, name="x")
    x.projections = [AtMostTwo()]
    optimizer = OptoPrime([x], llm=says(x0=9), client=client)
    told(optimizer, x)
    optimizer.step()
    assert x.data == 2


@pytest.mark.parametrize("reply, outcome", [("no json", {}), ('{"suggestion": {"x0": "abc"}}', {}), ("TERMINATE", {}), ('{"suggestion": {"y0": 1}}', {})])
def test_replies_that_change_nothing(client, reply, outcome):
    x = node(1, trainable=True, name="x")
    optimizer = OptoPrime([x], llm=lambda **_: reply, client=client)
    told(optimizer, x)
    if reply == "TERMINATE":
        assert optimizer.step() == outcome
    else:
        with pytest.warns(UserWarning, match="changes nothing"):
            assert optimizer.step() == outcome
    assert x.data == 1


def test_an_unreadable_reply_raises_when_asked_to(client):
    x = node(1, trainable=True, name="x")
    optimizer = OptoPrime([x], llm=lambda **_: "no json", client=client, ignore_extraction_error=False)
    told(optimizer, x)
    with pytest.raises(ValueError):
        optimizer.step()


def test_without_feedback_nothing_is_asked(client):
    x = node(1, trainable=True, name="x")
    model_here = says(x0=2)
    with pytest.raises(ValueError, match="backward"):
        OptoPrime([x], llm=model_here, client=client).step()
    assert model_here.asked == []


def test_several_outputs_and_their_feedback_meet_in_one_prompt(client):
    x = node(1.0, trainable=True, name="x")
    model_here = says(x0=2.0)
    optimizer = OptoPrime([x], llm=model_here, client=client)
    a, b = double(x), x + 1
    optimizer.backward(a, "first is too small")
    optimizer.backward(b, "second is too large")
    optimizer.step()
    user = model_here.asked[0][0][1]["content"]
    assert user.index("first is too small") < user.index("second is too large") and "double0" in user and "add0" in user


def test_hidden_parameters_are_listed_and_changed(client):
    hidden = node(-15.0, trainable=True, name="hidden")

    @bundle(traceable_code=True)
    def outer(x):
        return x * 2 + hidden

    model_here = says(hidden0=3.0)
    optimizer = OptoPrime([hidden], llm=model_here, client=client)
    optimizer.backward(outer(node(1.0)), "larger")
    optimizer.step()
    assert hidden.data == 3.0 and "hidden0=-15.0" in model_here.asked[0][0][1]["content"]


def test_a_failed_run_is_feedback(client):
    @model
    class Agent:
        def __init__(self):
            self.k = node(0, trainable=True, name="k")

        @bundle()
        def ratio(self, k):
            return 1 / k

        def forward(self):
            return self.ratio(self.k)

    agent, model_here = Agent(), says(k0=2)
    optimizer = OptoPrime(agent.parameters(), llm=model_here, client=client)
    with pytest.raises(ExecutionError) as caught:
        agent()
    optimizer.backward(caught.value.exception_node, caught.value.exception_node.create_feedback("full"))
    optimizer.step()
    user = model_here.asked[0][0][1]["content"]
    assert agent().data == 0.5 and "return 1 / k <--- (ZeroDivisionError) division by zero." in user and "0x" not in user


def test_masks_and_titles(client):
    x = node(1.0, trainable=True, name="x")
    model_here = says(x0=2.0)
    optimizer = OptoPrime([x], llm=model_here, client=client, prompt_symbols={"variables": "#Knobs"})
    told(optimizer, x, "the #Variables are bad")
    optimizer.step(mask=["#Code"])
    user = model_here.asked[0][0][1]["content"]
    assert "#Knobs" in user and "double0 = double" not in user and "the #Variables are bad" in user


def test_other_keys_and_highlighted_variables(client):
    x = node(1.0, trainable=True, name="x")
    seen = []
    optimizer = OptoPrime([x], llm=lambda messages, **_: seen.extend(messages) or '{"changes": {"x0": 2.5}}', client=client,
                          json_keys={"suggestion": "changes"}, highlight_variables=True)
    told(optimizer, x)
    assert optimizer.step() == {x: 2.5}
    assert '"changes"' in seen[0]["content"] and '"suggestion"' not in seen[0]["content"] and "suggestions on variables x0?" in seen[1]["content"]


def test_a_subclass_renders_and_reads_itself(client):
    class Own(OptoPrime):
        def construct_prompt(self, summary, mask=None, *args, **kwargs):
            return "mine", f"{summary.variables} {summary.user_feedback}"

        def extract_llm_suggestion(self, response, *args, **kwargs):
            return {"x0": response.split("=")[1]}

    x = node(1.0, trainable=True, name="x")
    seen = []
    optimizer = Own([x], llm=lambda messages, **_: seen.append(messages) or "x0=4.5", client=client)
    told(optimizer, x)
    assert optimizer.step() == {x: 4.5} and seen[0][0]["content"] == "mine" and "too small" in seen[0][1]["content"]


def test_v2_asks_and_reads_tags(client):
    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrimeV2([x], llm=in_tags(6.5), client=client)
    told(optimizer, x)
    assert optimizer.step() == {x: 6.5} and '<variable name="x0"' in optimizer.log[0]["user_prompt"]


def test_opro_shows_past_values_without_the_graph(client):
    x = node(1.0, trainable=True, name="x")
    model_here = says(x0=2.0)
    optimizer = OPRO([x], llm=model_here, client=client)
    for words in ("first words", "second words"):
        told(optimizer, x, words)
        optimizer.step()
        x._data += 1
    last = model_here.asked[-1][0][-1]["content"]
    assert "first words" in last and "double0 = double" not in last


def test_textgrad_asks_along_the_edges(client):
    asked = []

    def answer(messages, **options):
        asked.append(messages)
        return "<IMPROVED_VARIABLE>8.5</IMPROVED_VARIABLE>"

    x = node(1.0, trainable=True, name="x")
    optimizer = TextGrad([x], llm=answer, client=client)
    told(optimizer, x)
    assert optimizer.step() == {x: 8.5} and len(asked) >= 3


def test_multi_takes_one_of_several(client):
    lock, count = threading.Lock(), [0]

    def answer(messages, temperature=None, **options):
        with lock:
            count[0] += 1
        return json.dumps({"suggestion": {"x0": round(10 + temperature, 3)}})

    x = node(1.0, trainable=True, name="x")
    optimizer = OptoPrimeMulti([x], llm=answer, num_responses=3, temperature_min_max=[0.0, 1.0], client=client)
    told(optimizer, x)
    optimizer.step()
    assert count[0] == 3 and x.data == 10.0                     # the last, coolest one
    y = node(1.0, trainable=True, name="x")
    chooses = OptoPrimeMulti([y], llm=lambda temperature=None, **_: json.dumps({"suggestion": {"x1": 10 + temperature}}), num_responses=3,
                             selector=lambda replies: replies[0], client=client)
    told(chooses, y)
    chooses.step()
    assert y.data == 11.0 and "11.0" in chooses.selected_candidate


def test_steps_of_one_optimizer_may_run_side_by_side(client):
    x = node(1.0, trainable=True, name="x")
    values = iter(range(100))
    lock = threading.Lock()

    def answer(**_):
        with lock:
            return json.dumps({"suggestion": {"x0": float(next(values)) + 10}})

    optimizer = OptoPrime([x], llm=answer, client=client)
    told(optimizer, x)
    results, threads = [], []
    for _ in range(6):
        threads.append(threading.Thread(target=lambda: results.append(optimizer.step(bypassing=True))))
        threads[-1].start()
    for t in threads:
        t.join()
    assert sorted(r[x] for r in results) == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0] and x.data == 1.0
    optimizer.update(results[0])
    assert optimizer.session.values() == {"x:0": results[0][x]}


SCRIPT = '''
import optod.compat
optod.compat.install()
from opto.trace import node
from opto.optimizers import OptoPrime
from optod import private

x = node(1.0, name="x", trainable=True)
optimizer = OptoPrime([x], llm=lambda **_: '{"suggestion": {"x0": 3.5}}')
optimizer.backward(x + 1, "larger")
optimizer.step()
print(x.data, private._server.address)
'''


def test_a_script_without_a_server_starts_one_and_stops_it(tmp_path):
    import os
    path = tmp_path / "program.py"
    path.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "OPTOD_ADDRESS"}
    done = subprocess.run([sys.executable, str(path)], env={**environment, "OPTOD_BIN": str(BINARY)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    value, address = done.stdout.split()
    assert value == "3.5"
    import socket
    host, _, port = address.rpartition(":")
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=2).close()
