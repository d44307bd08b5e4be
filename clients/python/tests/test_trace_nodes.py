"""Nodes: names, values, parents and children, copies."""

import copy
import gc
import pickle
import threading
import weakref

import pytest

from optod.trace import GRAPH, ExceptionNode, MessageNode, Node, ParameterNode, bundle, naming, node, stop_tracing


@pytest.fixture(autouse=True)
def fresh_names():
    GRAPH.clear()
    yield
    naming.set_dialect("opentrace")


def test_names_count_per_base():
    assert [node(v).name for v in (1, 2, 2.0, "a", [1])] == ["int:0", "int:1", "float:0", "str:0", "list:0"]
    assert [node(1, name="x").py_name, node(1, name="x").py_name] == ["x0", "x1"]
    assert GRAPH.count("x") == 2 and len(GRAPH) == 7


def test_names_that_would_print_alike_are_kept_apart():
    for _ in range(11):
        last = node(1, name="x")
    other = node(1, name="x1")
    assert (last.py_name, other.name, other.py_name) == ("x10", "x1:0", "x1_0")


def test_a_colon_in_a_name_is_refused():
    with pytest.raises(ValueError, match="':'"):
        node(1, name="a:b")


def test_scopes_prefix_the_base():
    naming.NAME_SCOPES.append("outer")
    try:
        assert node(1, name="x").name == "outer/x:0"
    finally:
        naming.NAME_SCOPES.pop()


def test_wrapping_a_node():
    x = node([1], name="x")
    assert node(x) is x
    with pytest.warns(UserWarning, match="ignored"):
        assert node(x, name="y") is x
    p = node(x, trainable=True)
    assert isinstance(p, ParameterNode) and p.data is x.data and p.name == "x:1"


@pytest.mark.parametrize("dialect, shown", [("opentrace", [None, "words", "words", None]),
                                            ("trace", ["[Node] This is a node in a computational graph.", "[Node] words", "[tag] words",
                                                       "[ParameterNode] This is a ParameterNode in a computational graph."])])
def test_descriptions(dialect, shown):
    naming.set_dialect(dialect)
    made = [node(1), node(1, description="words"), node(1, description="[tag] words"), node(1, trainable=True)]
    assert [n.description for n in made] == shown
    assert [n.op_name for n in made] == ["Node", "Node", "tag", "ParameterNode"]


def test_levels_parents_children():
    x, y = node(1), node(2)
    z = (x + y) * x
    assert (x.level, z.level, z.is_root, x.is_root) == (0, 2, False, True)
    assert [p.name for p in z.parents] == ["add:0", "int:0"] and z.inputs["y"] is x
    assert [c.op_name for c in x.children] == ["multiply"] or {c.op_name for c in x.children} == {"add", "multiply"}


def test_the_same_node_twice_is_one_parent():
    v = node(3, trainable=True)
    square = v * v
    assert square.data == 9 and [p is v for p in square.parents] == [True] and len(v.children) == 1
    square.backward("smaller")
    assert len(v.feedback) == 1


def test_equality_compares_values_and_hash_is_identity():
    x, y = node(1), node(1)
    assert x == y and x == 1 and y in [x] and y not in {x} and bool(x != 2)


def test_children_do_not_keep_results_alive():
    x = node(1)
    results = [x + i for i in range(1000)]
    gone = weakref.ref(results[0])
    assert len(x.children) == 1000
    del results
    assert gone() is None and x.children == []
    for i in range(5000):
        x + i
    assert len(x._children) < 200          # dead references are dropped now and then


def test_long_chains_need_no_recursion():
    x = start = node(0, trainable=True)
    for _ in range(20_000):
        x = x + 1
    assert x.parameter_dependencies == {start}
    x.backward("larger")
    assert len(start.feedback[start.children[0]] if start.children else next(iter(start.feedback.values()))) == 1
    del x, start
    gc.collect()


def test_detached_copies():
    x = node([1], name="x", trainable=True)
    y = (x + [2]).detach()
    assert y.data == [1, 2] and y.parents == [] and y.level == 1 and y.name == "add0_copy:0"
    assert copy.deepcopy(x).data is not x.data
    naming.set_dialect("trace")
    assert copy.deepcopy(x).name == "x:1"


def test_pickled_nodes_are_detached():
    x = node(3, name="x", trainable=True, description="words", constraint="positive")
    back = pickle.loads(pickle.dumps(x))
    assert (back.data, back.name, back.trainable, back.words, back.constraint) == (3, "x:0", True, "words", "positive")
    assert pickle.loads(pickle.dumps(x + 1)).parents == []


def test_threads_never_share_a_name():
    names = []

    def make():
        names.extend([node(1, name="t").name for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(names)) == 16_000


def test_stop_tracing_is_local_to_the_thread():
    x = node(1)
    seen = []
    with stop_tracing():
        y = x + 1
        other = threading.Thread(target=lambda: seen.append((x + 1).inputs))
        other.start()
        other.join()
    assert y.data == 2 and y.inputs == {} and y.is_root and set(seen[0]) == {"x", "y"}
    GRAPH.TRACE = False
    try:
        assert (x + 1).inputs == {}
    finally:
        GRAPH.TRACE = True


def test_message_nodes_by_hand():
    x = node(1, name="x")
    made = MessageNode(2, inputs=[x], description="[twice] Twice x.")
    assert made.inputs == {"x:0": x} and made.op_name == "twice" and made.info is None
    with pytest.raises(AssertionError, match="no Node"):
        MessageNode(2, inputs={"a": 1}, description="[f]")


def test_exception_nodes_name_the_module_of_foreign_errors():
    class Own(Exception):
        pass

    assert ExceptionNode(ValueError("bad"), inputs=[]).data == "(ValueError) bad"
    assert ExceptionNode(Own("bad"), inputs=[]).data.endswith("Own) bad") and __name__ in ExceptionNode(Own("bad"), inputs=[]).data


def test_generic_annotations():
    assert Node[str] is not None

    def f(x: Node[int]) -> "MessageNode[int]":
        return x
    assert bundle()(f)(1) == 1


def test_values_set_in_place_are_not_recorded():
    x = node(1)
    x._set(node(5))
    assert x.data == 5 and x.children == []


def test_nodes_by_name_when_asked_for():
    GRAPH.LEGACY_GRAPH_BEHAVIOR = True
    try:
        x = node(1, name="looked-up")
        assert GRAPH.get("looked-up:0") is x and x in GRAPH.roots
    finally:
        del GRAPH.LEGACY_GRAPH_BEHAVIOR
    with pytest.raises(KeyError):
        GRAPH.get("nothing:0")
