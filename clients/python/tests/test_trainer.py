"""Guides, loaders, running side by side, objectives, and the algorithms with an optimizer that knows the answer."""

import random

import numpy as np
import pytest

from optod import trainer
from optod.optimizers.optimizer import Optimizer
from optod.trace import ExecutionError, bundle, model, node
from optod.trainer import objectives
from optod.trainer.algorithms import (BasicSearchAlgorithm, BeamSearch, BeamsearchAlgorithm, MinibatchAlgorithm, ParetobasedPS, PrioritySearch, SequentialSearch,
                                      SequentialUpdate, UCBSearchAlgorithm)
from optod.trainer.evaluators import evaluate
from optod.trainer.guide import ExactMatch, Guide, LLMJudge, NumericMatch, RegexMatch
from optod.trainer.loader import DataLoader
from optod.trainer.loggers import NullLogger
from optod.trainer.suggest import KeywordSuggest, SimpleReferenceSuggest
from optod.trainer.utils import async_run, batch_run, deepcopy_module, is_module_copy, safe_mean


@pytest.mark.parametrize("guide, response, reference, score", [
    (ExactMatch(), " a ", "a", 1), (ExactMatch(), "b", "a", 0), (ExactMatch(str.lower), "A", "a", 1), (RegexMatch(), "x=12", r"\d+", 1),
    (RegexMatch("^y"), "x", None, 0), (NumericMatch(), "so 1,234.5", 1234.5, 1), (NumericMatch(0.1, relative=True), "11", 10, 1), (NumericMatch(), "no", 3, 0),
])
def test_guides(guide, response, reference, score):
    got, words = guide("task", response, reference)
    assert got == score and words and guide.metric("task", response, reference) == score and guide.get_score_dict("t", response, reference) == {"score": score}


def test_a_judge():
    judge = LLMJudge(llm=lambda messages: "It is Correct [TERMINATE]" if "42" in messages[1]["content"] else "Incorrect: more")
    assert judge("q", "42", "r")[0] == 1 and judge("q", "7", "r") == (0, "Incorrect: more")
    with pytest.raises(ValueError, match="reference"):
        judge("q", "7", None)


def test_suggestions():
    assert SimpleReferenceSuggest()("q", 1, 2) == "The answer is wrong. Expected: 2" and KeywordSuggest({"slow": "be quick"})("q", "so Slow") == "be quick"


def test_loader_epochs():
    loader = DataLoader({"inputs": list(range(5)), "infos": list("abcde")}, batch_size=2, randomize=False)
    assert [xs for xs, _ in loader] == [[0, 1], [2, 3], [4, 0]] and [xs for xs, _ in loader] == [[0, 1], [2, 3], [4, 0]]
    assert [loader.sample()[0] for _ in range(4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]
    shuffled = DataLoader({"inputs": list(range(5)), "infos": list(range(5))}, batch_size=5, seed=1)
    assert sorted(next(shuffled)[0]) == list(range(5))
    for bad in ({"inputs": [1]}, {"inputs": [1], "infos": []}, [1]):
        with pytest.raises(AssertionError):
            DataLoader(bad)


def test_side_by_side():
    assert async_run([lambda a, b=1: a + b] * 3, [(1,), (2,), (3,)], [{}, {"b": 5}, {}]) == [2, 7, 4]
    with pytest.raises(ZeroDivisionError):
        async_run([lambda: 1 / 0] * 2)
    assert batch_run(max_workers=2)(lambda x, y: x * y)([1, 2, 3], 10) == [10, 20, 30]
    with pytest.raises(ValueError, match="same length"):
        batch_run()(lambda x, y: 0)([1, 2], [1, 2, 3])
    assert safe_mean([1.0, None, 3.0]) == 2.0 and safe_mean([None]) is None


@pytest.mark.parametrize("seed", range(10))
def test_pareto_ranks_against_a_reference(seed):
    rng = random.Random(seed)
    scores = [{"a": rng.randint(0, 4), "b": rng.randint(0, 4)} for _ in range(12)]

    def depth(i, among):           # longest chain of dominators above i
        above = [j for j in among if all(scores[j][k] >= scores[i][k] for k in "ab") and scores[j] != scores[i]]
        return 0 if not above else 1 + max(depth(j, among) for j in above)

    assert objectives.pareto_rank(scores) == [depth(i, range(12)) for i in range(12)]


@model
class Adder:
    def __init__(self, start=0):
        self.k = node(start, trainable=True, name="k")

    def forward(self, x):
        return x + self.k


@bundle()
def failing(x):
    raise ValueError("always")


class Distance(Guide):
    """The wanted offset is 3; the score falls with the distance."""

    def get_feedback(self, query, response, reference=None, **kwargs):
        return -abs(float(response - reference)), "off"


class Steps(Optimizer):
    """Proposes the next of given offsets; the order is shared by its copies."""

    def __init__(self, parameters, offsets):
        super().__init__(parameters)
        self.offsets = iter(offsets)

    def __deepcopy__(self, memo):
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def _step(self, verbose=False, **kwargs):
        return {p: next(self.offsets) for p in self.parameters}


DATA = {"inputs": [1, 2, 3, 4], "infos": [4, 5, 6, 7]}
OFFSETS = [9, 1, 7, 3, 8, 2] * 40


def made(algorithm, offsets=OFFSETS, **options):
    agent = Adder()
    return agent, algorithm(agent, Steps(agent.parameters(), offsets), logger=NullLogger(), **options)


def test_minibatch_takes_every_step_or_only_better_ones():
    agent, algorithm = made(MinibatchAlgorithm, [9, 5])
    scores, test = algorithm.train(Distance(), DATA, num_epochs=1, batch_size=2, num_threads=1)
    assert agent.k.data == 5 and scores == [-3.0, -6.0] and test == -2.0
    agent, algorithm = made(MinibatchAlgorithm, [9, 1, 7, 2])
    algorithm.train(Distance(), DATA, num_epochs=2, batch_size=2, num_threads=1, ensure_improvement=True)
    assert agent.k.data == 2


def test_a_failed_run_counts_the_least_score():
    assert list(evaluate(failing, Distance(), [1, 2], [0, 0], min_score=-9, num_threads=1)) == [-9, -9]
    with pytest.raises(ExecutionError):
        failing(1)


@pytest.mark.parametrize("algorithm, options", [
    (BasicSearchAlgorithm, dict(num_proposals=4, num_epochs=1, batch_size=2)),
    (BeamsearchAlgorithm, dict(beam_width=2, num_proposals=3, max_depth=2)),
    (UCBSearchAlgorithm, dict(num_search_iterations=6, evaluation_batch_size=4)),
    (PrioritySearch, dict(num_candidates=2, num_proposals=3, num_epochs=2, batch_size=2, score_range=(-10, 0))),
    (PrioritySearch, dict(num_candidates=2, num_proposals=3, num_epochs=2, batch_size=2, score_range=(-10, 0), score_function="ucb")),
    (SequentialSearch, dict(num_proposals=4, num_epochs=2, batch_size=2, score_range=(-10, 0))),
    (BeamSearch, dict(num_candidates=2, num_proposals=3, num_epochs=2, batch_size=2, score_range=(-10, 0))),
    (ParetobasedPS, dict(num_candidates=2, num_proposals=3, num_epochs=2, batch_size=2, score_range=(-10, 0))),
], ids=["basic", "beam-steps", "ucb", "priority", "priority-ucb", "sequential", "beam", "pareto"])
def test_searches_find_the_offset(algorithm, options):
    agent, search = made(algorithm)
    search.train(guide=Distance(), train_dataset=DATA, num_threads=1, **options)
    assert agent.k.data == 3


def test_sequential_update_takes_what_comes():
    agent, search = made(SequentialUpdate, [9, 8, 7, 6, 5])
    search.train(guide=Distance(), train_dataset=DATA, num_epochs=1, batch_size=4, num_threads=1, score_range=(-10, 0))
    assert agent.k.data in (0, 9, 8)


def test_a_search_is_saved_and_resumed(tmp_path):
    agent = Adder()
    search = PrioritySearch(agent, Kept(agent.parameters()), logger=NullLogger())
    search.train(guide=Distance(), train_dataset=DATA, num_epochs=1, batch_size=2, num_threads=1, score_range=(-10, 0), num_candidates=2,
                 save_frequency=1, save_path=str(tmp_path))
    back = PrioritySearch.load(str(tmp_path))
    other = Adder()
    back.resume(model=other, train_dataset=DATA, num_epochs=3)
    assert back.n_iters > search.n_iters - 1 and back.agent is other


class Kept(Optimizer):
    def _step(self, verbose=False, **kwargs):
        return {p: p.data + 1 for p in self.parameters}


def test_train_by_names():
    agent = Adder()
    trainer.train(model=agent, train_dataset=DATA, algorithm="MinibatchAlgorithm", optimizer=Steps(agent.parameters(), [3] * 9), guide=Distance(),
                  logger="NullLogger", num_threads=1, batch_size=4)
    assert agent.k.data == 3
    with pytest.raises(AssertionError):
        trainer.train(model=agent, train_dataset={"inputs": [1]}, optimizer=Kept(agent.parameters()), guide=Distance())
    with pytest.raises(AttributeError):
        trainer.train(model=agent, train_dataset=DATA, algorithm="Nothing", optimizer=Kept(agent.parameters()), guide=Distance())


def test_copies_of_modules_are_recognized():
    agent = Adder(4)
    copied = deepcopy_module(agent)
    assert is_module_copy(agent, copied) and copied.k is not agent.k and copied.k.name == agent.k.name
    other = Adder(4)
    assert not is_module_copy(agent, other)
    assert list(np.array(evaluate(copied, Distance(), [1], [5], num_threads=1))) == [0.0]


def test_agents_to_begin_with():
    from optod.flows import ChatHistory, TracedLLM
    from optod.predefined_agents import BasicLearner

    def said(messages, **_):
        return " | ".join(m["content"] for m in messages)

    learner = BasicLearner("sys", "Q: {message}", llm=said)
    assert learner("why").data == "sys | Q: why" and len(learner.parameters()) == 1
    chat = TracedLLM("sys", llm=said, chat_history_on=True, trainable=True)
    first, second = chat("a"), chat("b")
    assert first.data == "sys | a" and second.data == "sys | a | sys | a | b"
    assert any(p is first for p in second.parents) and second.parameter_dependencies == {chat.system_prompt}
    history = ChatHistory(max_len=2)
    for text in "abc":
        history.add(text, "user")
    assert [m["content"] for m in history] == ["a", "c"]
    with pytest.raises(ValueError, match="role"):
        history.add("x", "system")
