"""The backward pass: subgraphs, feedback, propagators, pictures; held against a slow reference."""

import random

import pytest

from optod.trace import GRAPH, bundle, node
from optod.trace.propagators import GraphPropagator, Propagator, SumPropagator, TraceGraph
from optod.trace.utils import sum_feedback


@pytest.fixture(autouse=True)
def fresh_names():
    GRAPH.clear()


def reference_subgraph(output, parameters):
    """All nodes on paths from a parameter to the output, with the direct parents of each: walked path by path."""
    found = {}

    def reaches(at):
        hit = any(at is p for p in parameters)
        for parent in at.parents:
            hit = reaches(parent) or hit
        if hit:
            found[id(at)] = at
        return hit

    reaches(output)
    for at in list(found.values()):
        for parent in at.parents:
            found[id(parent)] = parent
    return {n.name for n in found.values()}


@pytest.mark.parametrize("seed", range(20))
def test_subgraphs_of_random_graphs(seed):
    rng = random.Random(seed)
    pool = [node(rng.random(), trainable=rng.random() < 0.5, name="r") for _ in range(4)]
    parameters = [n for n in pool if n.trainable]
    for _ in range(12):
        a, b = rng.choice(pool), rng.choice(pool)
        pool.append(rng.choice([lambda: a + b, lambda: a * b, lambda: -a])())
    output = pool[-1]
    wanted = reference_subgraph(output, parameters)
    output.backward("words", retain_graph=True)
    total = sum_feedback(parameters) if any(p.feedback for p in parameters) else TraceGraph()
    if any(p.feedback for p in parameters):
        assert {n.name for _, n in total.graph} == wanted and total.user_feedback == "words"
        assert [level for level, _ in total.graph] == sorted(level for level, _ in total.graph)
    else:
        assert wanted == set() or output.is_root or not output.parameter_dependencies


class Eager(GraphPropagator):
    """The general way, node by node."""


@pytest.mark.parametrize("seed", range(10))
def test_the_quick_pass_gives_what_the_general_one_gives(seed):
    def build():
        GRAPH.clear()
        rng = random.Random(seed)
        pool = [node(rng.random(), trainable=True, name="p") for _ in range(3)] + [node(1.0, name="c")]
        for _ in range(10):
            a, b = rng.choice(pool[-5:]), rng.choice(pool)
            pool.append(a + b)
        return pool[:3], pool[-1]

    results = []
    for propagator in (None, Eager()):
        parameters, output = build()
        output.backward("words", propagator=propagator)
        results.append([[(c.name, [n.name for _, n in e.graph], e.user_feedback) for c, es in p.feedback.items() for e in es] for p in parameters])
    quick, general = results
    assert [sorted((c, sorted(g), f) for c, g, f in entries) for entries in quick] == [sorted((c, sorted(g), f) for c, g, f in e) for e in general]


def test_a_second_pass_needs_the_graph_retained():
    x = node(1, trainable=True)
    middle = x + 1
    a, b = middle * 2, middle * 3
    a.backward("first")
    with pytest.raises(AttributeError, match="has been backwarded"):
        b.backward("second")
    assert len(x.feedback) == 1
    y = node(1, trainable=True)
    out = y + 1
    out.backward("first", retain_graph=True)
    out.backward("second", retain_graph=True)
    assert [e.user_feedback for e in y.feedback[out]] == ["first", "second"]


def test_different_feedback_on_two_outputs_is_joined_in_order():
    x = node(1, trainable=True)
    a, b = x + 1, x + 2
    a.backward("too small")
    b.backward("too large")
    total = sum_feedback([x])
    assert total.user_feedback == "too small\ntoo large" and [(n.name, f) for n, f in total.outputs] == [("add:0", "too small"), ("add:1", "too large")]
    assert {n.name for _, n in total} == {"int:0", "add:0", "int:1", "add:1", "int:2"}


def test_results_leave_their_parameters_children_after_the_pass():
    x = node(1, trainable=True)
    y1, y2 = x + 1, x + 2
    y1.backward("a")
    assert x.children == [y2] and len(x.feedback) == 1


def test_feedback_on_a_parameter_itself():
    x = node(1, trainable=True)
    x.backward("judged")
    (given,), = x.feedback.values()
    assert given.user_feedback == "judged" and [n for _, n in given.graph] == [x]


def test_sum_propagator():
    x, y = node(1, trainable=True), node(2, trainable=True)
    out = (x + y) * x
    out.backward("good ", propagator=SumPropagator())
    assert [v for v in y.feedback.values()] == [["good "]] and sorted(map(str, x.feedback.values())) == ["['good ']", "['good ']"]
    z = node(1, trainable=True)
    (z * 2).backward(1.5, propagator=SumPropagator())
    assert list(z.feedback.values()) == [[1.5]]


def test_a_rule_for_one_operator():
    propagator = GraphPropagator()
    seen = []

    def only_first(child):
        seen.append(child.op_name)
        return propagator._propagate(child)

    propagator.register("add", only_first)
    x = node(1, trainable=True)
    ((x + 1) * 2).backward("words", propagator=propagator)
    assert seen == ["add"] and len(x.feedback) == 1


def test_a_propagator_that_forgets_a_parent_is_told():
    class Bad(Propagator):
        def init_feedback(self, node, feedback):
            return feedback

        def _propagate(self, child):
            return {}

    with pytest.raises(TypeError, match="every parent"):
        (node(1, trainable=True) + 1).backward("x", propagator=Bad())


def test_expanding_a_traceable_operator():
    hidden = node(-15.0, trainable=True)

    @bundle()
    def inner(x):
        return x ** 2

    @bundle(traceable_code=True)
    def outer(x):
        return inner(x) + 1 + hidden

    out = outer(node(1.0, trainable=True))
    assert len(TraceGraph.expand(out)) == 6 and len(TraceGraph.expand(inner(1))) == 0


def test_pictures():
    x = node('quote " and\nline', trainable=True, name="x")
    picture = (x.clone() + "!").backward("words", visualize=True)
    assert picture.source.startswith('digraph "trace" {') and '"x0" -> "concat0"' in picture.source and "clone" not in picture.source
    assert 'quote \\" and\\nline' in picture.source
    y = node("a" * 300, trainable=True)
    full = (y + "b").backward("w", visualize=True, simple_visualization=False, reverse_plot=True, print_limit=10)
    assert '"concat1" -> "str1"' in full.source or "->" in full.source
    assert "a" * 11 not in full.source and "aaaaaaaaaa..." in full.source
    assert "->" in sum_feedback([y]).visualize().source


def test_a_picture_can_be_saved(tmp_path):
    picture = (node(1, trainable=True) + 1).backward("w", visualize=True)
    path = picture.save(str(tmp_path / "graph.gv"))
    assert open(path).read() == picture.source
