"""Searches that the server evaluates by a declared workflow: from Python, from optod.trainer, and by optoctl; the model answers by rule over HTTP."""

import json
import os
import subprocess

import counting_model
import optod
import pytest
from live_server import BINARY, LiveServer
from optod import trainer
from optod.v1 import search_pb2 as pb

OPTOCTL = str(BINARY.parent / "optoctl")


@pytest.fixture(scope="module")
def model():
    made = counting_model.CountingModel(counting_model.answer)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def searching(tmp_path_factory, model):
    """A server that runs workflows."""
    live = LiveServer(tmp_path_factory.mktemp("search") / "data", args=["--executor", "sandbox"], env=model.environment()).start()
    yield live
    assert live.stop() == 0


def k_session(client):
    return client.sessions.create("optoprime", parameters={"k": optod.Parameter(5, min=0, max=40)}, direction="maximize")


@pytest.mark.parametrize("algorithm", ["minibatch", "beam", "ucb", "priority", "pareto"])
def test_the_server_evaluates_and_improves(searching, algorithm):
    with searching.connect() as client:
        session, states = k_session(client), []
        search = session.search(algorithm, workflow=json.dumps(counting_model.WORKFLOW), rows=[0, 1, 2, 3, 4, 5], validation_tasks=2, batch=2, proposals=2,
                                max_steps=4)
        done = search.wait(timeout=120.0, progress=lambda s: states.append(s.state))
        assert done.state == pb.Search.DONE and done.best_score > counting_model.score_of(5, 1)
        assert session.refresh().head_version == done.best_version and session.values()["k"] > 5
        assert done.usage.llm_calls == session.info.usage.llm_calls > done.evaluations * 2 - 1
        assert not done.spec.workflow.rows and done.spec.tasks == 4, "rows stay on the server"
        for candidate in done.candidates:
            k = session.values(candidate.version)["k"]
            assert list(candidate.scores) == pytest.approx([counting_model.score_of(k, task) for task in candidate.tasks])
        assert [found.name for found in session.searches()] == [search.name]


def test_what_happened_is_recorded_for_the_optimizer(searching, model):
    with searching.connect() as client:
        session, before = k_session(client), len(model.log)
        session.search("minibatch", workflow=json.dumps(counting_model.WORKFLOW), rows=[0, 1], max_steps=1).wait(timeout=120.0)
        prompts = [e["key"] for e in model.log[before:] if "part one of" not in e["key"].split('"content"')[-1][:40]]
        assert any("k should be near 12" in p and "sum0" in p for p in prompts), "the trace of the workflow and its feedback are in the prompt"


def test_a_target_ends_it_and_a_cancelled_one_stays_stopped(searching):
    with searching.connect() as client:
        session = k_session(client)
        done = session.search("beam", workflow=json.dumps(counting_model.WORKFLOW), rows=[0, 2], proposals=2, max_steps=50, target=0.8).wait(timeout=120.0)
        assert done.reason == "target" and done.best_score >= 0.8
        other = session.search("ucb", workflow=json.dumps(counting_model.WORKFLOW), rows=[0, 2], max_steps=1000)
        assert other.stop().state == pb.Search.STOPPED and other.refresh().state == pb.Search.STOPPED


BAD = [
    (dict(rows=[]), "spec.workflow.rows: 0 rows"),
    (dict(rows=[1, 2], tasks=3), "spec.workflow.rows: 2 rows for 3 tasks"),
    (dict(rows=[1], batch=2), "spec.batch"),
    (dict(rows=[1], parallel=99), "spec.workflow.parallel: 99"),
    (dict(rows=[1], workflow="steps: {a: {template: '{{nothing}}'}}"), "nothing has that name"),
    (dict(rows=[1], workflow="data: {file: x}\nsteps: {a: {template: '{{k}}'}}"), "guide: missing"),
    (dict(rows=[1], workflow="data: {file: x}\nsteps: {a: {http: {url: 'http://x/'}}}\nguide: {score: '{{a}}'}"), "http"),
]


@pytest.mark.parametrize("change,text", BAD, ids=[text for _, text in BAD])
def test_bad_searches_are_refused_with_the_field(searching, change, text):
    with searching.connect() as client:
        options = {"workflow": json.dumps(counting_model.WORKFLOW), "rows": [0, 1], **change}
        session = k_session(client)
        with pytest.raises(optod.errors.OptodError, match=text.replace(".", "[.]")):
            session.search("minibatch", **options)
        assert session.searches() == []


def test_a_version_that_fails_gets_the_worst_score_and_its_error_as_feedback(searching):
    workflow = {"data": {"file": "rows"}, "steps": {"half": {"op": "div", "arguments": [1, "{{k}}"]}}, "guide": {"score": "{{half}}"}}
    with searching.connect() as client:
        session = client.sessions.create("optoprime", parameters={"k": 0}, direction="maximize")
        done = session.search("minibatch", workflow=json.dumps(workflow), rows=[0], max_steps=2, min_score=-1.0, max_score=1.0).wait(timeout=120.0)
        assert done.candidates[0].scores == [-1.0] and done.best_score > 0


def test_programs_may_evaluate_instead(searching):
    with searching.connect() as client:
        search = k_session(client).search("ucb", tasks=4, batch=2, max_steps=3)
        for work in search.evaluations(count=2):
            search.tell(work, counting_model.score_of(optod.searches.values_of(work)["k"], work.task), "k should be near 12")
        assert search.info.state == pb.Search.DONE and search.info.best_score > counting_model.score_of(5, 1)


def test_a_server_that_leaves_workflows_to_clients_says_so(client):
    with pytest.raises(optod.errors.FailedPrecondition):
        k_session(client).search("beam", workflow=json.dumps(counting_model.WORKFLOW), rows=[0])


def test_an_endpoint_that_is_gone_pauses_the_search_and_scores_nobody(tmp_path):
    gone = counting_model.CountingModel(counting_model.answer)
    environment = gone.environment()
    gone.shutdown()
    gone.server_close()
    live = LiveServer(tmp_path / "data", args=["--executor", "sandbox"], env=environment).start()
    try:
        with live.connect() as client:
            search = k_session(client).search("beam", workflow=json.dumps(counting_model.WORKFLOW), rows=[0, 1])
            with pytest.raises(optod.errors.FailedPrecondition, match="pauses: "):
                search.wait(timeout=300.0)
            assert search.info.evaluations == 0
    finally:
        live.kill()


def test_a_trainer_leaves_its_search_to_the_server(searching):
    workflow = {**counting_model.WORKFLOW, "steps": {"reply": {"llm": {"prompt": "part one of {{k}} on {{item.input}}", "json": True}}},
                "guide": {"score": "{{reply.part}}", "feedback": "{{item.info}}"}}
    with searching.connect() as client:
        search = trainer.search_on_server(client=client, parameters={"k": 5}, workflow=json.dumps(workflow), algorithm="BeamSearch", max_steps=2,
                                          train_dataset={"inputs": [0, 1], "infos": ["more", "more"]}, validate_dataset={"inputs": [2], "infos": ["more"]})
        assert search.wait(timeout=120.0).spec.validation_tasks == 1 and search.info.best_score > counting_model.score_of(5, 0) / 4


# ---- optoctl search

FILE = """
parameters: {k: {value: 5, type: int, range: [0, 40]}}
optimizer: {name: optoprime, seed: 1}
workflow:
  data: {file: cases.jsonl, limit: 5}
  steps:
    first: {llm: {prompt: "part one of {{k}} on {{item}}", json: true, seed: 1}}
    second: {llm: {prompt: "part two of {{k}} on {{item}}", json: true, seed: 1}}
    sum: {op: add, arguments: ["{{first.part}}", "{{second.part}}"]}
  guide: {score: "{{sum}}", feedback: "k should be near 12"}
search: {algorithm: beam, validation_tasks: 1, batch: 2, candidates: 2, proposals: 2, max_steps: 3, seed: 3, parallel: 2, timeout: 1m}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "search.yaml").write_text(FILE)
    (tmp_path / "cases.jsonl").write_text("".join(f"{n}\n" for n in range(9)))
    return tmp_path


def optoctl(*args, address="", env=None):
    environment = {**os.environ, "OPTOD_TOKEN": "", **(env or {})}
    environment.pop("OPTOD_ADDRESS", None)
    if address:
        environment["OPTOD_ADDRESS"] = address
    return subprocess.run([OPTOCTL, *args], capture_output=True, text=True, env=environment)


def test_start_watch_show_list_cancel_resume(searching, folder):
    started = optoctl("--json", "search", "start", str(folder / "search.yaml"), address=searching.address)
    assert started.returncode == 0, started.stderr
    name = json.loads(started.stdout)["name"]
    watched = optoctl("--json", "search", "watch", name, address=searching.address)
    assert watched.returncode == 0, watched.stderr
    lines = [json.loads(line) for line in watched.stdout.splitlines()]
    assert lines[-1]["state"] == "DONE" and lines[-1]["best_score"] > counting_model.score_of(5, 4) and len(lines[-1]["candidates"]) > 1
    shown = optoctl("search", "show", name, address=searching.address)
    assert shown.returncode == 0 and "VERSION" in shown.stdout and "best" in shown.stdout and "calls" in shown.stdout
    session = name.rsplit("/searches/", 1)[0]
    listed = optoctl("search", "list", session, address=searching.address)
    assert name in listed.stdout and "BEAM" in listed.stdout
    assert optoctl("search", "cancel", name, address=searching.address).returncode == 0
    assert json.loads(optoctl("--json", "search", "resume", name, address=searching.address).stdout)["state"] == "DONE"
    over = folder / "over.yaml"
    over.write_text(f"session: {session}\n" + FILE[FILE.index("workflow:"):].replace("beam", "pareto"))
    again = optoctl("search", str(over), address=searching.address)
    assert again.returncode == 0 and "done" in again.stdout, again.stderr


def test_a_target_that_is_missed_is_exit_1(searching, folder):
    text = FILE.replace("max_steps: 3", "max_steps: 1, target: 5.0, max_score: 6.0")
    (folder / "search.yaml").write_text(text)
    assert optoctl("search", str(folder / "search.yaml"), address=searching.address).returncode == 1


def test_without_a_server_one_is_started(folder, model):
    done = optoctl("search", str(folder / "search.yaml"), env=model.environment())
    assert done.returncode == 0 and "started a private optod" in done.stderr and "state        done" in done.stdout, done.stderr + done.stdout


WRONG = [
    ("algorithm: beam", "algorithm: beem", "search.algorithm: \"beem\" is unknown; did you mean beam", 2),
    ("candidates: 2", "candidate: 2", "search.candidate", 2),
    ("batch: 2", "batch: -1", "search.batch: must be >= 0", 2),
    ("batch: 2", "batch: 99", "search.yaml: search.batch", 4),
    ("timeout: 1m", "timeout: soon", "search.timeout", 2),
    ("cases.jsonl", "../cases.jsonl", "data.file: must be a relative path", 2),
    ("cases.jsonl", "none.jsonl", "workflow.data.file: none.jsonl cannot be read", 2),
    ("{{first.part}}", "{{frist.part}}", "nothing has that name", 2),
    ("parameters:", "session: s1\nparameters:", "give either `parameters` or `session`", 2),
]


@pytest.mark.parametrize("old,new,text,code", WRONG, ids=[new for _, new, _, _ in WRONG])
def test_mistakes_in_the_file_are_named(searching, folder, old, new, text, code):
    (folder / "search.yaml").write_text(FILE.replace(old, new, 1))
    done = optoctl("search", "start", str(folder / "search.yaml"), address=searching.address)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr


def test_exit_codes(searching, folder):
    assert optoctl("search", address=searching.address).returncode == 2
    assert optoctl("search", "start", str(folder / "absent.yaml"), address=searching.address).returncode == 2
    assert optoctl("search", "show", "users/root/sessions/none/searches/1", address=searching.address).returncode == 4
    assert optoctl("search", "start", str(folder / "search.yaml"), address="127.0.0.1:1").returncode == 3
