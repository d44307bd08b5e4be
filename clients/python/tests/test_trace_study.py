"""The Trace study's parts: problems whose values are known, the search-free halves of its methods, scoring and judgement."""

import argparse
import json
import math

import pytest
from optod.studies import arithmetic, trace, trace_bbh, trace_numeric
from optod.studies.arithmetic import Operation, Problem

X, C, R = "x", "constant", "result"
# (problem, x, value, slope): (x + 3) * x - 2;  7 - (x * x);  ((x - 1) * (x - 1)) * 2
KNOWN = [
    (Problem((3.0, 2.0), (Operation("+", (X, 0), (C, 0)), Operation("*", (R, 0), (X, 0)), Operation("-", (R, 1), (C, 1))), 1.0, 4.0), 4.0, 26.0, 11.0),
    (Problem((7.0,), (Operation("*", (X, 0), (X, 0)), Operation("-", (C, 0), (R, 0))), 3.0, 0.0), 3.0, -2.0, -6.0),
    (Problem((1.0, 2.0), (Operation("-", (X, 0), (C, 0)), Operation("*", (R, 0), (R, 0)), Operation("*", (R, 1), (C, 1))), 0.0, 3.0), 3.0, 8.0, 8.0),
]


@pytest.mark.parametrize("problem,x,value,slope", KNOWN)
def test_known_graphs(problem, x, value, slope):
    assert problem.value(x) == value and problem.slope(x) == slope
    assert problem.target == problem.value(problem.solution) and problem.error(problem.solution) == 0


@pytest.mark.parametrize("number", range(30))
def test_problems_of_the_study_can_be_solved_and_are_not_solved_at_the_start(number):
    problem = arithmetic.problem(number)
    assert problem == arithmetic.problem(number), "the same everywhere"
    assert problem.error(problem.solution) == 0 and problem.error(problem.start) > 0
    assert problem.start != problem.solution and arithmetic.LOW <= problem.solution <= arithmetic.HIGH
    assert 2 <= len(problem.operations) <= 4 and set(op.symbol for op in problem.operations) <= set("+-*")
    assert all(abs(v) <= 10_000 for x in range(-10, 11) for v in problem.results(float(x)))
    h = 1e-5
    for x in (-3.0, 0.5, 7.0):
        difference = (problem.value(x + h) - problem.value(x - h)) / (2 * h)
        assert math.isclose(problem.slope(x), difference, rel_tol=1e-4, abs_tol=1e-3)


def test_problems_differ():
    assert len({arithmetic.problem(n) for n in range(30)}) == 30


class FakeSession:
    def record(self, nodes):
        self.nodes = nodes
        return [type("Recorded", (), {"id": 100 + i}) for i in range(len(nodes))]


def test_the_graph_is_recorded_as_it_was_computed():
    problem, session = KNOWN[0][0], FakeSession()
    assert trace_numeric.record(session, 5, problem, 4.0) == 104
    assert [(n.base, n.text) for n in session.nodes] == [("c", "3.0"), ("c", "2.0"), ("add", "7.0"), ("multiply", "28.0"), ("subtract", "26.0")]
    assert [[e.node for e in n.inputs] for n in session.nodes[2:]] == [[5, -1], [-3, 5], [-4, -2]], "-1-i is the i-th node of the same call"
    assert [[e.argument for e in n.inputs] for n in session.nodes[2:]] == [["x", "y"]] * 3


@pytest.mark.parametrize("x,words", [(4.0, "right"), (1.0, "too small by 24"), (9.0, "too large by 80")])
def test_feedback_says_what_is_wrong(x, words):
    assert words in trace_numeric.feedback(KNOWN[0][0], x)


@pytest.mark.parametrize("errors,best", [([4, 6, 2, 3], [4, 4, 2, 2]), ([1], [1]), ([5, 0, 9], [5, 0, 0])])
def test_best_so_far(errors, best):
    assert trace_numeric.best_so_far(errors) == best
    assert trace_numeric.relative({"errors": errors}) == [b / errors[0] for b in best]


def asked(errors, **more):
    return {"errors": errors, "calls": 2, "prompt_tokens": 10, "completion_tokens": 5, "usd": 0.0, "outcomes": {"APPLIED": 1, "UNPARSABLE": 1}, "seconds": 1.0, **more}


def runs_of(**final):
    """One run a method and problem; the figure after one step is what is given."""
    out = []
    for label, value in final.items():
        config = {"method": label.replace("_", "-"), "problem": 0}
        if label.startswith("adam"):
            config = {"method": "adam", "lr": float(label[4:]), "problem": 0}
        out.append((config, asked([10.0, 10.0 * value]) if label not in ("random",) and config["method"] != "adam" else {"errors": [10.0, 10.0 * value], "seconds": 0.1}))
    return out


JUDGED = [
    (dict(optoprime=0.2, optoprime_masked=0.5, opro=0.9, random=0.4, adam1=0.15, adam3=0.3), [True, True, True, True]),
    (dict(optoprime=0.2, optoprime_masked=0.24, opro=0.2, random=0.1, adam1=0.05, adam3=0.01), [False, False, False, False]),
    (dict(optoprime=0.0, optoprime_masked=0.0, opro=0.1, random=0.4, adam1=0.0, adam3=0.3), [True, False, True, True]),
]


@pytest.mark.parametrize("final,met", JUDGED)
def test_claims_are_judged_as_they_were_fixed(final, met):
    runs = runs_of(**final)
    assert [c.met for c in trace_numeric.claims(runs) if c.met is not None] == met
    assert trace_numeric.curves(runs)["adam"][-1][1] == min(final["adam1"], final["adam3"]), "the best rate"
    table = trace_numeric.rows(runs)
    assert {row[0] for row in table[1:]} == {"optoprime", "optoprime-masked", "opro", "random", "adam"}
    assert len({len(row) for row in table}) == 1 and "50 %" in next(row for row in table if row[0] == "opro")


def test_money_is_printed_only_where_there_is_a_price():
    cost = {"calls": 2, "prompt_tokens": 1000, "completion_tokens": 5, "usd": 0.0}
    assert trace.cost_text(cost) == "2 calls, 1,000 prompt and 5 reply tokens" and "0.10 USD" in trace.cost_text({**cost, "usd": 0.1})


@pytest.mark.parametrize("argv,text", [(["--methods", "opro,adam"], "--methods: adam: unknown"), (["--steps", "0"], "--steps: 0 is below 1"),
                                       (["bbh"], "set OPTOD_DATA")])
def test_wrong_arguments_are_named(argv, text, capsys, monkeypatch):
    monkeypatch.delenv("OPTOD_DATA", raising=False)
    assert trace.main(argv) == 2 and text in capsys.readouterr().err


# ---- BIG-Bench Hard

@pytest.fixture
def bbh(tmp_path, monkeypatch):
    (tmp_path / "bbh").mkdir()
    examples = [{"input": f"{n}?", "target": "Yes" if n % 3 else "No"} for n in range(12)]
    (tmp_path / "bbh" / "tiny.json").write_text(json.dumps({"examples": examples}))
    monkeypatch.setenv("OPTOD_DATA", str(tmp_path))
    trace_bbh.examples.cache_clear()
    yield {"task": "tiny", "train": 5, "validation": 3, "test": 4, "method": "optoprime", "seed": 0, "answer_tokens": 4, "train_extract": False}
    trace_bbh.examples.cache_clear()


def test_the_split_takes_examples_in_order(bbh):
    assert [[e["input"] for e in part] for part in trace_bbh.split(bbh)] == [["0?", "1?", "2?", "3?", "4?"], ["5?", "6?", "7?"], ["8?", "9?", "10?", "11?"]]
    assert trace_bbh.chance(bbh) == {"majority": 0.75, "uniform": 0.5}


@pytest.mark.parametrize("reply,answer", [("The answer is (B), not (C).", "(B)"), ("I think yes.", "yes"), ("TRUE\nbecause", "TRUE"), ("  12. \nmore", "12"), ("", ""),
                                          ("nobody knows", "nobody knows")])
def test_answers_are_taken_out(reply, answer):
    names = {}
    exec(trace_bbh.EXTRACT, names)
    assert names["extract"](reply) == answer


def test_missing_tasks_are_named(bbh, tmp_path):
    why = trace_bbh.needs(argparse.Namespace(tasks="tiny,huge"))
    assert "--tasks: huge: not in" in why and "tiny" in why
