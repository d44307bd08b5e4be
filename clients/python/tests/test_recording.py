"""Nodes to messages, and the references between batches."""

import pytest

from optod import recording, specs
from optod.v1 import session_pb2, trace_pb2


class Recorder(recording.Recording):
    """Stands in for the server: gives ids in order and checks that relative references stay inside the call."""

    name = "users/u/sessions/s"

    def __init__(self):
        self.nodes_seen, self.calls = [], []

    def _trace(self, method, request):
        assert method == "RecordNodes"
        self.calls.append(request)
        first = len(self.nodes_seen)
        for i, node in enumerate(request.nodes):
            edges = [edge.node if edge.node >= 0 else first - 1 - edge.node for edge in node.inputs]
            assert all(0 <= edge < first + i for edge in edges)
            self.nodes_seen.append((node.text, edges))
        return trace_pb2.RecordNodesResponse(nodes=[trace_pb2.RecordedNode(id=first + i) for i in range(len(request.nodes))])


def test_a_long_chain_is_recorded_in_batches_with_its_edges():
    nodes = [recording.node(0, base="x")] + [recording.node(i, kind="message", op="add", inputs={"a": -i}) for i in range(1, 25_000)]
    recorder = Recorder()
    out = recorder.record(nodes, request_id="r")
    assert [n.id for n in out] == list(range(25_000))
    assert [len(call.nodes) for call in recorder.calls] == [10_000, 10_000, 5_000]
    assert [call.request_id for call in recorder.calls] == ["r", "r-1", "r-2"]
    assert recorder.nodes_seen[0] == ("0", []) and all(edges == [i - 1] for i, (_, edges) in enumerate(recorder.nodes_seen) if i)


def test_values_become_text_and_json():
    class Odd:
        def __str__(self):
            return "odd"
    made = [recording.node(v) for v in (5, "a", [1, {"k": None}], Odd())]
    assert [(n.type, n.text, n.json) for n in made] == [
        ("int", "5", "5"), ("str", "a", '"a"'), ("list", "[1, {'k': None}]", '[1, {"k": null}]'), ("Odd", "odd", "")]


def test_enforced_constraints_travel():
    node = recording.node(5, base="k", kind="parameter", trainable=True, enforce=specs.Parameter(5, min=1, max=20))
    assert (node.enforce.min, node.enforce.max) == (1, 20) and not node.enforce.HasField("initial")


@pytest.mark.parametrize("value", ["text", "", 5, -(1 << 63), True, False, 1.5, [1, "a"], {"k": [None]}, None], ids=repr)
def test_values_come_back(value):
    back = specs.python_value(specs.value_message(value))
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("make,text", [
    (lambda: specs.Schedule("cosin").message(), "schedule.kind: 'cosin' is unknown; must be one of"),
    (lambda: specs.Durability("sometimes").message(), "durability.mode"),
    (lambda: specs.direction_number("up"), "direction: 'up' is unknown; must be one of maximize, minimize"),
    (lambda: specs.optimizer_message("adamw", {}, None, -1, 0, ""), "seed: -1"),
])
def test_what_is_refused_before_it_travels(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_hyperparameters_keep_their_kind():
    spec = specs.optimizer_message("x", {"a": 1, "b": True, "c": "two-side"}, specs.Schedule("inverse-sqrt", 10), 1 << 63, 0.5, "")
    assert {k: v.WhichOneof("value") for k, v in spec.hyperparameters.items()} == {"a": "number", "b": "flag", "c": "text"}
    assert spec.seed == 1 << 63 and spec.schedule.warmup_steps == 10
    with pytest.raises(TypeError, match="hyperparameters.d"):
        specs.hyper_value("d", object())


def test_seconds():
    message = specs.seconds(1.25)
    assert (message.seconds, message.nanos) == (1, 250_000_000)
    assert isinstance(session_pb2.AskRequest(lease=specs.seconds(0.001)).lease.nanos, int)
