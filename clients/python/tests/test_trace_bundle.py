"""bundle: inputs, results, descriptions, failures, code as a parameter, methods, recursion, async, threads."""

import asyncio
import copy
import threading
from functools import partial

import pytest

from optod.trace import GRAPH, ExecutionError, TraceMissingInputsError, bundle, model, node
from optod.trace.bundle import disable_external_dependencies_check
from optod.trace.projections import DocstringProjection


@pytest.fixture(autouse=True)
def fresh_names():
    GRAPH.clear()


@bundle()
def scale(x, k=2, *rest, power=1, **more):
    """Scales x."""
    return x * k


@bundle(trainable=True)
def trained(x):
    """Adds one."""
    return x + 1


def test_inputs_are_named_after_the_signature():
    out = scale(node(3, name="given"), 4, 5, power=2, extra=node(1))
    assert out.data == 12 and list(out.inputs) == ["x", "k", "args_0", "power", "extra"]
    assert [n.name for n in out.inputs.values()] == ["given:0", "k:0", "int:1", "power:0", "int:0"]
    assert list(scale(1).inputs) == ["x", "k", "power"]
    with pytest.raises(TypeError):
        scale()


def test_default_description_and_info():
    out = scale(1)
    assert scale.description == "[scale] Scales x." and out.description == "Scales x." and out.op_name == "scale"
    info = out.info
    assert info["fun_name"] == "scale" and info["inputs"] == {"args": [1, 2], "kwargs": {"power": 1}} and info["output"] == 2
    assert info["source"].startswith("def scale(") and info["doc"] == "Scales x."


def test_the_tag_names_the_result_and_the_function_the_code_line():
    @bundle("[fancy.name] words", output_name=None)
    def plain(x):
        return x

    assert plain(1).name == "fancy.name:0" and plain.info["fun_name"].endswith("plain")
    assert bundle("[a] w", output_name="other")(lambda x: x)(1).name == "other:0"


def decorated_below(fun):
    return fun


@bundle(
    description=None,
)  # a comment with bundle(
@decorated_below
def below(x):  # bundle()
    return x


def test_the_source_starts_below_the_bundle_line():
    assert below.info["source"].startswith("@decorated_below\ndef below(x):")
    assert below.info["line_number"] == below._fun.__code__.co_firstlineno + 3


def test_an_alias_of_bundle_is_found_by_its_line():
    other_name = bundle

    @other_name(trainable=True)
    def f(x):
        return x + 1

    assert f.info["source"].startswith("def f(x):") and f(1).data == 2


def test_reading_another_node_is_an_error_unless_allowed():
    outside = node(10, name="outside")

    @bundle()
    def bad(x):
        return x + outside.data

    @bundle(allow_external_dependencies=True)
    def good(x):
        return x + outside.data

    with pytest.raises(TraceMissingInputsError, match="outside:0"):
        bad(1)
    out = good(1)
    assert out.data == 11 and out.info["external_dependencies"] == [outside] and len(out.parents) == 1
    disable_external_dependencies_check(True)
    try:
        assert bad(1).data == 11
    finally:
        disable_external_dependencies_check(None)


def test_inputs_as_they_are():
    @bundle(_process_inputs=False)
    def raw(x, y):
        return (type(x).__name__, type(y).__name__)

    assert raw(node(1), 2).data == ("Node", "int")


def test_traceable_code_is_a_graph_of_its_own():
    hidden = node(5, trainable=True, name="hidden")

    @bundle(traceable_code=True)
    def outer(x):
        return x * 2 + hidden

    x = node(3, trainable=True)
    out = outer(x)
    inner = out.info["output"]
    assert out.data == 11 and out.parents == [x] and inner.op_name == "add" and not any(p is x for p in inner.parents)
    assert out.hidden_dependencies == {hidden} and out.expandable_dependencies == {out}
    out.backward("less")
    assert len(hidden.feedback) == 1 and len(x.feedback) == 1


# ---- failures

def test_a_failure_inside_keeps_its_message_on_every_level():
    @bundle()
    def inner(x):
        return x / 0

    @bundle()
    def outer(x):
        return inner(x)

    with pytest.raises(ExecutionError) as caught:
        outer(1)
    made = caught.value.exception_node
    assert made.name.startswith("exception_") and "outer" in made.name
    assert made.data == "(ZeroDivisionError) division by zero"
    full = made.create_feedback("full")
    assert "return inner(x) <--- Error raised in function call. See below." in full and "return x / 0 <--- (ZeroDivisionError) division by zero." in full
    assert full.rstrip().endswith("(ZeroDivisionError) division by zero.")


def test_an_exception_without_arguments():
    @bundle()
    def empty(x):
        raise ValueError

    with pytest.raises(ExecutionError) as caught:
        empty(1)
    assert caught.value.exception_node.data == "(ValueError) " and "<---" in caught.value.exception_node.create_feedback("full")


def test_uncaught_when_asked():
    @bundle(catch_execution_error=False)
    def f(x):
        raise KeyError("k")

    with pytest.raises(KeyError):
        f(1)


# ---- code as a parameter

def test_trained_code_is_the_last_input():
    out = trained(2)
    assert out.data == 3 and out.name == "eval:0" and list(out.inputs) == ["x", "__code"] and out.inputs["__code"] is trained.parameter
    assert out.info["fun_name"] == "eval" and trained.parameter._base == "__code"
    assert trained.parameter.constraint == 'The code should start with:\ndef trained(x):\n    """Adds one."""'


@pytest.mark.parametrize("text, value", [
    ("def trained(x):\n    return x * 10", 20),
    ("import math\ndef helper(x):\n    return math.floor(x)\ndef trained(x):\n    return helper(x) + 7", 9),
    ("def trained(x):\n    return 1 if x <= 1 else x * trained(x - 1)", 2),
    ("def renamed(x):\n    return -x", -2),
])
def test_changed_code_runs(text, value):
    f = trained.detach()
    f.parameter._data = text
    assert f(2).data == value


@pytest.mark.parametrize("text, words", [("def trained(x):\n    return x +", "SyntaxError"), ("x = 1", "NameError"), ("import nothing_like_it", "ModuleNotFoundError")])
def test_code_that_defines_nothing_is_an_exception_node_on_the_code(text, words):
    f = trained.detach()
    f.parameter._data = text
    with pytest.raises(ExecutionError) as caught:
        f(2)
    made = caught.value.exception_node
    assert list(made.inputs) == ["code"] and words in made.data and "<---" in made.create_feedback("full")


def test_failing_code_marks_its_line():
    f = trained.detach()
    f.parameter._data = "def trained(x):\n    y = x\n    return y / 0"
    with pytest.raises(ExecutionError) as caught:
        f(2)
    assert "    return y / 0 <--- (ZeroDivisionError) division by zero." in caught.value.exception_node.create_feedback("full")


def test_code_sees_closures_and_locals_of_its_definition():
    factor = 3

    def helper(x):
        return x * factor

    @bundle(trainable=True)
    def f(x):
        return helper(x)

    factor = 4
    assert f(2).data == 8


def test_projections_belong_to_the_code():
    f = bundle(trainable=True, projections=[DocstringProjection("kept")])(_documented)
    assert f.parameter.projections[0](f.parameter.data) == 'def _documented(x):\n    """kept"""\n    return x'


def _documented(x):
    """old"""
    return x


# ---- methods

@model
class Counter:
    def __init__(self, start):
        self.start = node(start, trainable=True)

    @bundle(trainable=True)
    def step(self, x):
        return x + self.start

    @bundle("[same] one")
    def one(self):
        return 1

    @bundle("[same] two")
    def two(self):
        return 2

    def forward(self, x):
        return self.step(x)


def test_every_instance_has_its_own_code():
    a, b = Counter(1), Counter(2)
    assert a.step is a.step and a.step is not b.step and a.step.parameter is not b.step.parameter
    out = a.forward(5)
    assert out.data == 6 and list(out.inputs) == ["self", "x", "__code"] and [p.name for p in a.parameters()] == [a.start.name, a.step.parameter.name]


def test_two_methods_of_one_tag_stay_two():
    a = Counter(1)
    assert (a.one().data, a.two().data, a.one().data) == (1, 2, 1)


def test_copies_of_instances():
    a = Counter(1)
    a.step.parameter._data = "def step(self, x):\n    return x * 100"
    for b in (copy.deepcopy(a), a.copy()):
        assert b.step(2).data == 200 and b.step.info is not None
    shared = a.copy()
    assert shared.step.parameter is a.step.parameter and shared.start is a.start
    assert copy.deepcopy(a).step.parameter is not a.step.parameter


# ---- recursion, async, threads

@bundle(overwrite_python_recursion=True)
def factorial(n):
    if n <= 1:
        return 1
    rest = factorial(n - 1)
    assert isinstance(rest, int)
    return n * rest


def test_recursion_goes_to_the_plain_function():
    assert factorial(10).data == 3628800 and len(factorial(3).parents) == 1

    @bundle(overwrite_python_recursion=True)
    def local(n):
        return n if n == 0 else n + local(n - 1)

    assert local(10).data == 55


def test_async_operators_do_not_mix_what_they_read():
    other = node("other")

    @bundle()
    async def read(x, wait):
        await asyncio.sleep(wait)
        return x

    async def run():
        tasks = [read(node(i), 0.001 * (3 - i)) for i in range(3)]
        other.data
        return await asyncio.gather(*tasks)

    assert [r.data for r in asyncio.run(run())] == [0, 1, 2]

    @bundle()
    async def fail(x):
        raise ValueError("no")

    with pytest.raises(ExecutionError):
        asyncio.run(fail(1))


def test_threads_do_not_mix_what_they_read():
    inside, proceed, failures = threading.Event(), threading.Event(), []

    @bundle()
    def slow(x):
        inside.set()
        assert proceed.wait(10)
        return x + 1

    def run():
        try:
            assert slow(1).data == 2
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(10)
    node("read elsewhere").data
    proceed.set()
    thread.join()
    assert failures == []


def test_partial_of_bundle():
    quick = partial(bundle, trainable=True)

    @quick()
    def f(x):
        return x + 2

    assert f(1).data == 3 and f.trainable


def test_operators_as_arguments():
    @bundle(_process_inputs=False)
    def apply(fun, x):
        return fun(x)

    assert apply(trained, 2).data == 3 and apply(trained, 2).inputs["fun"] is trained.parameter
    assert apply(scale, 2).data == 4


# ---- files

def test_models_are_saved_and_loaded(tmp_path):
    path = str(tmp_path / "new" / "agent.pkl")
    a = Counter(1)
    a.start._data, a.note, a.socket = 9, "kept", threading.Lock()
    a.step.parameter._data = "def step(self, x):\n    return x + 100"
    a.save(path)
    b = Counter(2)
    b.load(path)
    assert b.start.data == 9 and b.step(1).data == 101 and b.note == "kept" and not hasattr(b, "socket")
    trained.detach().save(str(tmp_path / "fun.pkl"))
    f = trained.detach()
    f.parameter._data = "changed"
    f.load(str(tmp_path / "fun.pkl"))
    assert f(1).data == 2


def test_a_failed_save_leaves_the_file(tmp_path):
    from optod.trace import Map
    from optod.trace.modules import Module

    class Holder(Module):
        def __init__(self):
            self.p = node(1, trainable=True)

    path = str(tmp_path / "m.pkl")
    good = Holder()
    good.save(path)
    good.p._data = threading.Lock()
    with pytest.raises(TypeError):
        good.save(path)
    back = Holder()
    back.load(path)
    assert back.p.data == 1 and Map({"a": back.p}).parameters() == [back.p]


def test_a_parameter_that_the_file_lacks(tmp_path):
    path = str(tmp_path / "m.pkl")
    Counter(1).save(path)
    other = Counter(1)
    other.extra = node(1, trainable=True)
    with pytest.raises(AssertionError, match="extra"):
        other.load(path)


def test_export_writes_plain_python(tmp_path):
    a = Counter(4)
    a.step.parameter._data = "def step(self, x):\n    return x + self.start + 1"
    path = tmp_path / "exported.py"
    a.export(str(path), projections=[])
    text = path.read_text()
    space = {}
    exec(text, space)
    assert "node(" not in text and "@bundle" not in text and space["Counter"](0).step(1) == 6
