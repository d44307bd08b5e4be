"""What the gateway promises, through a whole server: budgets of session, user and day, prices, fallbacks, the cache, streams, concurrency."""

import threading

import optod
import pytest
from live_server import LiveServer
from optod.transport import translated
from optod.v1 import workflow_pb2, workflow_pb2_grpc
from scripted_model import ScriptedModel

FILE = """
endpoints:
  plain: {{url: "{url}"}}
  narrow: {{url: "{url}", concurrency: 2}}
  priced: {{url: "{url}", usd_per_million: {{prompt: 1000, completion: 4000}}}}
  cached: {{url: "{url}", cache: true}}
  away: {{url: "http://127.0.0.1:1/v1", attempts: 1, fallback: [plain]}}
budgets: {budgets}
"""
CALL = (10, 5)     # prompt and completion tokens of every answer of the model


@pytest.fixture
def model():
    made = ScriptedModel(lambda request: "an answer")
    yield made
    made.close()


@pytest.fixture
def start(tmp_path, model):
    """start(budgets, token=False) -> a server with the endpoints above."""
    made = []

    def run(budgets="{}", args=()):
        (tmp_path / "endpoints.yaml").write_text(FILE.format(url=model.url, budgets=budgets))
        made.append(LiveServer(tmp_path / "data", ["--llm-endpoints", str(tmp_path / "endpoints.yaml"), *args]).start())
        return made[-1]

    yield run
    for live in made:
        assert live.stop() == 0


def ask(session, endpoint="plain", text="hello"):
    stub = workflow_pb2_grpc.WorkflowServiceStub(session.transport.channel)
    return session.transport.call(stub.Complete, workflow_pb2.CompleteRequest(
        session=session.name, endpoint=endpoint, messages=[workflow_pb2.ChatTurn(role="user", content=text)]))


def prompt_session(client, **options):
    return client.sessions.create("optoprime", parameters={"x": 1}, **options)


def test_a_session_s_budget_of_tokens_and_what_it_used(start, model):
    with start().connect() as client:
        session = prompt_session(client, budget=optod.Budget(max_llm_tokens=2 * sum(CALL)))
        ask(session), ask(session)
        with pytest.raises(optod.errors.ResourceExhausted, match="30 of 30 tokens"):
            ask(session)
        used = session.refresh().info.usage
        assert (used.llm_calls, used.llm_prompt_tokens, used.llm_completion_tokens) == (2, 20, 10) and len(model.requests) == 2
        assert ask(prompt_session(client)).text == "an answer"      # another session has a budget of its own


@pytest.mark.parametrize("budgets,ann,bob,reason", [
    ("{user_day: {calls: 2}}", 2, 2, "llm budget of user {user} today: 2 of 2 calls"),
    ("{user_day: {tokens: 30}}", 2, 2, "llm budget of user {user} today: 30 of 30 tokens"),
    ("{day: {calls: 3}}", 3, 0, "llm budget of this server today: 3 of 3 calls"),
])
def test_a_day_s_budget_holds_across_a_restart(start, tmp_path, budgets, ann, bob, reason):
    live = start(budgets, ["--auth", "token"])
    with live.connect(token=(tmp_path / "data/admin.token").read_text().strip()) as admin:
        tokens = {}
        for user in ("ann", "bob"):
            admin.admin.create_user(user)
            tokens[user] = admin.admin.create_token(f"users/{user}").secret
    sessions = {}
    for user, calls in (("ann", ann), ("bob", bob)):
        with live.connect(token=tokens[user]) as client:
            session = prompt_session(client)
            sessions[user] = session.name
            for _ in range(calls):
                ask(session)
            with pytest.raises(optod.errors.ResourceExhausted, match=reason.format(user=user)):
                ask(session)
    live.kill()
    live.start()
    with live.connect(token=tokens["bob"]) as client, pytest.raises(optod.errors.ResourceExhausted, match=reason.format(user="bob")):
        ask(client.sessions.get(sessions["bob"]))


def test_prices_make_dollars(start):
    with start().connect() as client:
        session = prompt_session(client)
        want = (CALL[0] * 1000 + CALL[1] * 4000) / 1e6
        assert ask(session, "priced").usage.llm_usd == pytest.approx(want)
        assert session.refresh().info.usage.llm_usd == pytest.approx(want)


def test_a_fallback_answers_and_is_named(start):
    with start().connect() as client:
        answer = ask(prompt_session(client), "away")
        assert (answer.text, answer.endpoint) == ("an answer", "plain")


def test_equal_requests_are_paid_once(start, model):
    with start().connect() as client:
        session = prompt_session(client)
        first, second, other = ask(session, "cached"), ask(session, "cached"), ask(session, "cached", "something else")
        assert [a.cached for a in (first, second, other)] == [False, True, False] and second.usage.llm_calls == 0
        assert len(model.requests) == 2 and session.refresh().info.usage.llm_calls == 2


def test_an_answer_as_a_stream(start):
    with start().connect() as client:
        session = prompt_session(client)
        request = workflow_pb2.CompleteRequest(session=session.name, endpoint="plain", messages=[workflow_pb2.ChatTurn(role="user", content="hello")])
        chunks = list(translated(session.transport.stream(workflow_pb2_grpc.WorkflowServiceStub(session.transport.channel).StreamComplete, request)))
        assert "".join(chunk.text for chunk in chunks) == "an answer" and session.refresh().info.usage.llm_calls == 1


def test_an_endpoint_s_concurrency_holds_over_all_users(start, model):
    inside, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)     # the third call must not come in while two wait for each other

    def answer(_):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        both.wait(30)
        with lock:
            inside -= 1
        return "an answer"

    model.answer = answer
    with start().connect() as client:
        sessions = [prompt_session(client) for _ in range(4)]
        threads = [threading.Thread(target=ask, args=(session, "narrow", f"call {i}")) for i, session in enumerate(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 2 and len(model.requests) == 4
