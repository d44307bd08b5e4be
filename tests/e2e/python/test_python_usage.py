"""What AdminService.GetUsage, ``client.admin.usage`` and ``optoctl usage`` say about one day, before and after a kill -9."""

import json
import subprocess
import time

import optod
import pytest
from live_server import BINARY, LiveServer
from optod.v1 import workflow_pb2, workflow_pb2_grpc
from scripted_model import ScriptedModel

FILE = 'endpoints:\n  plain: {{url: "{url}"}}\n  priced: {{url: "{url}", usd_per_million: {{prompt: 1000, completion: 4000}}}}\n'
PRICE = 10 * 1000 + 5 * 4000       # micro-dollars of an answer of `priced`: 10 prompt and 5 completion tokens


@pytest.fixture
def live(tmp_path):
    model = ScriptedModel(lambda request: "an answer")
    (tmp_path / "endpoints.yaml").write_text(FILE.format(url=model.url))
    made = LiveServer(tmp_path / "data", ["--llm-endpoints", str(tmp_path / "endpoints.yaml"), "--auth", "token"]).start()
    yield made
    assert made.stop() == 0
    model.close()


def work(client, calls, scores):
    """Model calls by endpoint, and scores of version 0."""
    session = client.sessions.create("optoprime", parameters={"x": 1})
    stub = workflow_pb2_grpc.WorkflowServiceStub(session.transport.channel)
    for endpoint, count in calls.items():
        for _ in range(count):
            session.transport.call(stub.Complete, workflow_pb2.CompleteRequest(
                session=session.name, endpoint=endpoint, messages=[workflow_pb2.ChatTurn(role="user", content="hello")]))
    for i in range(scores):
        session.tell_score(i / 10, version=0)
    return session


def counts(usage):
    """{user: (calls, prompt, completion, micro-dollars, evaluations)} of a day, and the sum."""
    def one(c):
        return c.llm.calls, c.llm.prompt_tokens, c.llm.completion_tokens, c.llm.micro_usd, c.evaluations
    return {day.user: one(day.total) for day in usage.days}, one(usage.total)


def test_usage_by_user_and_model_holds_across_a_kill(live, tmp_path):
    admin_token = (tmp_path / "data/admin.token").read_text().strip()
    tokens = {}
    with live.connect(token=admin_token) as admin:
        for user in ("ann", "bob"):
            admin.admin.create_user(user)
            tokens[user] = admin.admin.create_token(f"users/{user}").secret
    with live.connect(token=tokens["ann"]) as ann, live.connect(token=tokens["bob"]) as bob:
        work(ann, {"plain": 1, "priced": 2}, 3)
        work(bob, {"plain": 1}, 0)
        want = {"users/ann": (3, 30, 15, 2 * PRICE, 3), "users/bob": (1, 10, 5, 0, 0)}
        seen, total = counts(ann.admin.usage())
        assert seen == {"users/ann": want["users/ann"]} and total == want["users/ann"]     # others are not shown
        with pytest.raises(optod.errors.NotFound):
            ann.admin.usage(user="users/bob")
    with live.connect(token=admin_token) as admin:
        usage = admin.admin.usage()
        assert counts(usage) == (want, (4, 40, 20, 2 * PRICE, 3))
        assert {name: model.calls for name, model in usage.days[0].models.items()} == {"plain": 1, "priced": 2}
        assert admin.admin.usage(first_day="2001-01-01", last_day="2001-12-31").days == []
        for days, message in ((("2001-01-01", "2002-01-02"), "367 days; at most 366"), (("2001-02-30", ""), "no day"),
                              (("2001-01-02", "2001-01-01"), "is before from_day")):
            with pytest.raises(optod.errors.InvalidArgument, match=message):
                admin.admin.usage(first_day=days[0], last_day=days[1])
    time.sleep(0.6)      # evaluations are written about four times a second
    live.kill()
    live.start()
    with live.connect(token=admin_token) as admin:
        assert counts(admin.admin.usage()) == (want, (4, 40, 20, 2 * PRICE, 3))
    command = [str(BINARY.parent / "optoctl"), "--address", live.address, "--token", admin_token, "--json", "usage", "--user", "ann"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert told["days"][0]["models"]["priced"]["micro_usd"] == str(2 * PRICE) and told["total"]["evaluations"] == "3"
