"""What an optimizer does here: reading replies, rendering summaries, texts of values.  (With a server: tests/e2e/python/test_python_optimizers.py.)"""

import pickle

import pytest

from optod.optimizers import OptoPrime, OptoPrimeV2
from optod.optimizers.buffers import FIFOBuffer
from optod.optimizers.optimizer import Optimizer
from optod.optimizers.optoprime import _Told
from optod.optimizers.optoprime_v2 import OptimizerPromptSymbolSet, OptimizerPromptSymbolSet2, OptimizerPromptSymbolSetJSON
from optod.optimizers.remote import Remote, text_of
from optod.optimizers.replies import balanced_objects, cast_like
from optod.optimizers.summary import node_to_function_feedback
from optod.optimizers.utils import extract_top_level_blocks, extract_xml_like_data, strip_nested_blocks, truncate_expression
from optod.trace import GRAPH, bundle, node
from optod.v1 import trace_pb2 as pb


@pytest.fixture(autouse=True)
def fresh_names():
    GRAPH.clear()


@pytest.mark.parametrize("value, like, result", [
    ("5", 1, 5), (5.9, 1, 5), ("5", 1.0, 5.0), ("False", True, False), ("true", False, True), (1, True, True), ("[1, 2]", [], [1, 2]), ([1], (), (1,)),
    ("x", None, "x"), (7, "a", "7"), ("a default", "b", "a default"), ({"a": 1}, {}, {"a": 1}),
])
def test_casts(value, like, result):
    made = cast_like(value, like)
    assert made == result and (like is None or type(made) is type(like))


@pytest.mark.parametrize("value, like", [("abc", 1), (None, 1), ("ab", []), ("maybe", True), (5, True), ([1, 2], 1.0)])
def test_casts_that_fail(value, like):
    with pytest.raises((TypeError, ValueError)):
        cast_like(value, like)


@pytest.mark.parametrize("text, found", [
    ('{"a": 1}', [{"a": 1}]), ('```json\n{"a": {"b": 2}}\n```', [{"a": {"b": 2}}]), ('{not json} then {"a": 1} and {"b": 2}', [{"a": 1}, {"b": 2}]),
    ('{"a": "line\nbreak"}', [{"a": "line\nbreak"}]), ("nothing", []), ("{" * 50_000, []), ('{" a ": 1}', [{"a": 1}]),
])
def test_objects_in_a_reply(text, found):
    assert balanced_objects(text) == found


def optimizer(*values):
    return OptoPrime([node(v, trainable=True, name="x") for v in values], llm=lambda **_: "")


def test_suggestions():
    o = optimizer(1)
    assert o.extract_llm_suggestion('<think>{"x": 1}</think> {"reasoning": "r", "suggestion": {"x0": 2, "__code0": " "}}') == {"x0": 2}
    assert o.extract_llm_suggestion('{"suggestion": {"x0": 2}}', return_only_suggestion=False) == {"reasoning": "", "variables": {"x0": 2}}
    assert o.extract_llm_suggestion("nothing") == {}
    assert list(o.construct_update_dict({"x:0": "3", "y0": 1}).values()) == [3]
    with pytest.warns(UserWarning, match="Cannot convert"):
        assert o.construct_update_dict({"x0": "abc"}) == {}
    o.ignore_extraction_error = False
    with pytest.raises(ValueError, match="x0"):
        o.construct_update_dict({"x0": "abc"})


def test_tags():
    text = "<reasoning>r</reasoning><variable><name>a</name><value><value>1</value></value></variable>"
    assert extract_xml_like_data(text) == {"reasoning": "r", "variables": {"a": "<value>1</value>"}}
    assert extract_top_level_blocks("<a>1<a>2</a></a><a>3</a>", "a") == ["1<a>2</a>", "3"] and strip_nested_blocks("x<a>1<a>2</a></a>y", "a") == "xy"
    assert truncate_expression("abcdef", 3).startswith("abc...")


def test_symbol_sets():
    plain, json_form = OptimizerPromptSymbolSet(), OptimizerPromptSymbolSetJSON()
    assert plain.output_response_extractor(plain.example_output("r", {"a": 1})) == {"reasoning": "r", "variables": {"a": "1"}}
    assert json_form.output_response_extractor(json_form.example_output("r", {"a": 1})) == {"reasoning": "r", "variables": {"a": 1}}
    x = node(1, trainable=True)
    assert OptoPrimeV2([x], optimizer_prompt_symbol_set=json_form).remote.optimizer == "optoprime"
    short = OptoPrimeV2([x], optimizer_prompt_symbol_set=OptimizerPromptSymbolSet2(), llm=lambda messages, **_: (
        f"<reason>r</reason><var><name>x0</name><data>{messages[1]['content'].count('<data>')}</data></var>"))
    call = pb.ClientCall(system="answer as <variable>", user='<variable name="x0" type="str">\n<value>\nsee <value>\n</value>\n</variable>')
    assert short._in_own_tags(call.system, call.user) == ("answer as <var>", '<var name="x0" type="str">\n<data>\nsee <value>\n</data>\n</var>')
    assert plain.output_response_extractor(short._answer([call], _Told([], [], False))[0])["variables"] == {"x0": "1"}


def test_summaries():
    x, c = node(2.0, trainable=True, name="x", constraint="positive"), node(3, name="c")

    @bundle()
    def zero():
        """Nothing given."""
        return 0

    out = x * c + zero()
    out.backward("words")
    o = OptoPrime([x], llm=lambda **_: "")
    summary = o.summarize()
    assert summary.variables == {"x0": (2.0, "positive")} and set(summary.inputs) == {"c0", "test_summaries.zero0"} and summary.user_feedback == "words"
    assert [line for _, line in sorted(summary.graph)] == ["multiply0 = multiply(x=x0, y=c0)", "add0 = add(x=multiply0, y=test_summaries.zero0)"]
    text = str(o.problem_instance(summary, mask=["#Inputs"]))
    assert "(float) x0=2.0" in text and "(float) x0: positive" in text and "(int) c0=3" not in text and "#Feedback\nwords" in text
    assert set(summary.output) == {"add0"} and set(summary.others) == {"multiply0"}
    assert node_to_function_feedback(next(iter(x.feedback.values()))[0]).output == summary.output


def test_texts_hold_no_addresses():
    class Plain:
        pass

    class Broken:
        def __str__(self):
            raise RuntimeError("no")

    assert text_of(Plain()) == "<Plain object>" and " at 0x" not in text_of([Plain(), test_tags]) and "RuntimeError" in text_of(Broken())
    assert text_of("see at 0x12") == "see at 0x12" and len(text_of("a" * 3_000_000)) == 1 << 20


def test_messages_of_nodes():
    x = node(2.0, trainable=True, name="x", description="a factor", constraint="positive")
    out = x + 1
    ids = {id(n): i for i, n in enumerate([x, *out.parents[1:], out])}
    message = Remote._message(x, lambda n: ids[id(n)])
    assert (message.base, message.index, message.kind, message.trainable, message.type, message.text, message.json) == (
        "x", 0, pb.Node.PARAMETER, True, "float", "2.0", "2.0")
    assert message.constraint == "a factor\npositive"
    result = Remote._message(out, lambda n: ids[id(n)])
    assert result.kind == pb.Node.MESSAGE and result.op == "add" and result.function == "add" and [(i.argument, i.node) for i in result.inputs] == [("x", 0), ("y", 1)]


def test_optimizers_of_ones_own():
    class Fixed(Optimizer):
        def _step(self, value=0):
            return {p: value for p in self.parameters}

    x, fixed = node(1, trainable=True), node(2, trainable=True)
    fixed.trainable = False
    o = Fixed([x, fixed, x])
    assert len(o.parameters) == 2 and o.step(5) == {x: 5, fixed: 5} and (x.data, fixed.data) == (5, 2)
    assert o.step(7, bypassing=True) and x.data == 5
    for bad in ((), [1], []):
        with pytest.raises(AssertionError):
            Fixed(bad)


def test_optimizers_are_copied_and_pickled_without_parameters(tmp_path):
    o = OptoPrime([node(1, trainable=True)], objective="mine", llm=None)
    back = pickle.loads(pickle.dumps(o))
    assert back.parameters is None and back.objective == "mine" and back.remote.hyperparameters["objective"] == "mine"
    o.save(str(tmp_path / "o.pkl"))
    other = OptoPrime([node(2, trainable=True)], llm=None)
    parameters = other.parameters
    other.load(str(tmp_path / "o.pkl"))
    assert other.objective == "mine" and other.parameters is parameters
    import copy
    assert copy.deepcopy(o).parameters is o.parameters and copy.deepcopy(o).remote is not o.remote


def test_buffers():
    b = FIFOBuffer(2)
    for i in range(3):
        b.add(i)
    assert list(b) == [1, 2] and len(b) == 2 and list(FIFOBuffer(0)) == []
