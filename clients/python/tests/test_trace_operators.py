"""What Python's syntax on nodes records, and the operators without syntax."""

import math
import operator

import numpy as np
import pytest

from optod.trace import GRAPH, ExecutionError, Node, node, operators as ops


@pytest.fixture(autouse=True)
def fresh_names():
    GRAPH.clear()


BINARY = [("add", operator.add), ("subtract", operator.sub), ("multiply", operator.mul), ("divide", operator.truediv),
          ("floor_divide", operator.floordiv), ("mod", operator.mod), ("power", operator.pow), ("lshift", operator.lshift), ("rshift", operator.rshift),
          ("and_", operator.and_), ("or_", operator.or_), ("xor", operator.xor), ("lt", operator.lt), ("le", operator.le), ("gt", operator.gt),
          ("ge", operator.ge), ("node_divmod", divmod)]


@pytest.mark.parametrize("name, fun", BINARY, ids=[n for n, _ in BINARY])
def test_binary(name, fun):
    x, y = node(13), node(2)
    z = fun(x, y)
    assert z.data == fun(13, 2) and z.op_name == name and list(z.inputs) == ["x", "y"] and [p is q for p, q in zip(z.parents, (x, y))] == [True, True]
    assert fun(x, 2).data == fun(13, 2)


@pytest.mark.parametrize("name, fun", [(n, f) for n, f in BINARY if n not in ("lt", "le", "gt", "ge")], ids=[n for n, _ in BINARY[:12]] + ["divmod"])
def test_a_constant_on_the_left(name, fun):
    z = fun(13, node(2, name="right"))
    assert z.data == fun(13, 2)
    assert [p.name for p in z.parents] == (["right:0", "int:0"] if name == "multiply" else ["int:0", "right:0"])


@pytest.mark.parametrize("fun, name, value", [(operator.pos, "pos", -1.5), (operator.neg, "neg", -1.5), (abs, "abs", -1.5), (round, "round", 2.6),
                                              (math.floor, "floor", 2.6), (math.ceil, "ceil", 2.6), (math.trunc, "trunc", 2.6),
                                              (operator.invert, "invert", 5)])
def test_unary(fun, name, value):
    z = fun(node(value))
    assert z.data == fun(value) and z.op_name == name


def test_round_to_digits():
    assert round(node(2.345), 2).data == round(2.345, 2)


def test_texts():
    x = node("a,b c")
    cases = [(x + "!", "concat", "a,b c!"), (x.upper(), "upper", "A,B C"), (x.split(","), "split", ["a", "b c"]), (x.replace("b", "z"), "replace", "a,z c"),
             (node("{} {k}").format(1, k=node(2)), "format", "1 2"), (node("-").join([node("a"), "b"]), "join", "a-b"), (node(" a ").strip(), "strip", "a"),
             (x.title(), "title", "A,B C"), (x.swapcase(), "swapcase", "A,B C"), (x.capitalize(), "capitalize", "A,b c"), (x.lower(), "lower", "a,b c")]
    for made, name, value in cases:
        assert (made.op_name, made.data) == (name, value)
    assert list(node("{} {k}").format(1, k=2).inputs) == ["x", "args_0", "k"]
    with pytest.raises(AttributeError, match="split"):
        node(1).split(",")


def test_containers():
    x = node({"a": 1, "b": [2, 3]})
    assert [(k.data, v.data) for k, v in x.items()] == [("a", 1), ("b", [2, 3])]
    assert [k.data for k in x] == ["a", "b"] and [v.data for v in x.values()] == [1, [2, 3]] and x["b"][1].data == 3
    first, second = node((4, 5))
    assert (first.data, second.data) == (4, 5) and first.op_name == "getitem" and list(first.inputs) == ["x", "index"]
    assert sorted(v.data for v in node({1, 2})) == [1, 2] and [v.data for v in node(np.array([1, 2]))] == [1, 2]
    assert len(node([1, 2])) == 2 and node([1, 2]).len().data == 2 and (2 in node([1, 2])) is True and (node(3) in node([1, 2])) is False
    assert 2 in node([node(1), node(2)])
    with pytest.raises(ExecutionError, match="non-iterable"):
        list(node(1))


def test_a_node_in_a_container_comes_out_by_value():
    inner = node(7)
    got = node([inner, 2])[0]
    assert got.data == 7 and got.info["output"] is inner


def test_append_makes_a_new_node_and_leaves_the_old_one():
    x = node([1])
    y = x.append(node(2))
    assert x.data == [1] and y.data == [1, 2] and y.op_name == "list_append" and len(y.parents) == 2


def test_changed_copies():
    x, d, s = [3, 1], {"a": 1}, {1, 2}
    cases = [(ops.list_sort(x), [1, 3]), (ops.list_sort(x, reverse=True), [3, 1]), (ops.list_reverse(x), [1, 3]), (ops.list_extend(x, [5]), [3, 1, 5]),
             (ops.list_insert(x, 0, 9), [9, 3, 1]), (ops.list_pop(x, 0), [1]), (ops.list_remove(x, 3), [1]), (ops.list_clear(x), []),
             (ops.dict_update(d, {"b": 2}), {"a": 1, "b": 2}), (ops.dict_pop(d, "a"), {}), (ops.dict_popitem(d), {}), (ops.set_add(s, 3), {1, 2, 3}),
             (ops.set_discard(s, 9), {1, 2}), (ops.set_intersection_update(s, {2}), {2}), (ops.set_symmetric_difference_update(s, {2, 3}), {1, 3}),
             (ops.set_update(s, {5}), {1, 2, 5}), (ops.set_remove(s, 1), {2}), (ops.set_clear(s), set())]
    for made, value in cases:
        assert made.data == value
    assert x == [3, 1] and d == {"a": 1} and s == {1, 2}


def test_functions_without_syntax():
    cases = [(ops.identity(3), "clone", 3), (ops.not_(True), "not_", False), (ops.is_(None, None), "is_", True), (ops.is_not(1, None), "is_not", True),
             (ops.not_in(1, [2]), "not_in", True), (ops.ord_("a"), "ord_", 97), (ops.chr_(97), "chr_", "a"), (ops.make_list(1, 2), "make_list", [1, 2]),
             (ops.make_dict(a=1), "make_dict", {"a": 1}), (ops.make_tuple(1), "make_tuple", (1,)), (ops.make_set(1), "make_set", {1}),
             (ops.to_list((1,)), "to_list", [1]), (ops.to_tuple([1]), "to_tuple", (1,)), (ops.to_set([1]), "to_set", {1}),
             (ops.to_dict([("a", 1)]), "to_dict", {"a": 1}), (ops.cond(True, 1, 2), "cond", 1), (ops.get({"a": 1}, "b", 5), "get", 5),
             (node(3).eq(3), "eq", True), (node(3).neq(3), "neq", False), (ops.ne(1, 2), "ne", True)]
    for made, name, value in cases:
        assert (made.op_name, made.data) == (name, value) and isinstance(made, Node)


def test_objects_and_calls():
    class Box:
        def __init__(self):
            self.value = 4

        def plus(self, n):
            return self.value + n.data

    box = node(Box())
    assert box.getattr("value").data == 4
    result = box.call("plus", 3)
    assert result.data == 7 and result.op_name == "call" and [p.op_name for p in result.parents] == ["node_getattr", "Node"]
    assert node(lambda n: n * 2)(node(5)).data == 10


def test_a_failed_operator_leaves_an_exception_node():
    x, y = node(1, name="x"), node(0, name="y")
    with pytest.raises(ExecutionError) as caught:
        x / y
    made = caught.value.exception_node
    assert made.data == "(ZeroDivisionError) division by zero" and made.name == "exception_divide:0" and list(made.inputs) == ["x", "y"]
    assert "ZeroDivisionError" in str(caught.value) and "<--- (ZeroDivisionError)" in made.create_feedback("full")


def test_in_place_operators_make_new_nodes():
    x = y = node(1)
    x += 2
    assert x.data == 3 and y.data == 1 and x.op_name == "add"


def test_call_llm():
    def model(messages, **options):
        return {"choices": [{"message": {"content": " | ".join(m["content"] for m in messages)}}]}

    assert ops.call_llm(model, "system", "user", node("more")).data == "system | user | more"
