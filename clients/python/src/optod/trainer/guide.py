"""Guides: (task, response, reference) -> (score, feedback in words)."""

from __future__ import annotations

import copy
import os
import pickle
import re
from typing import Any, Callable, Dict, Optional, Tuple

from optod.llm import LLM, reply_text

__all__ = ["Guide", "ExactMatch", "RegexMatch", "NumericMatch", "LLMJudge", "exact_match_metric"]


def exact_match_metric(question: Any, student_answer: Any, info: Any) -> float:
    """1.0 when the answer equals the reference."""
    return float(student_answer == info)


class Guide:
    """Subclasses give ``get_feedback(query, response, reference) -> (score, feedback)``; the score is a number, or {objective: number}."""

    def __call__(self, task: Any, response: Any, info: Any, **kwargs: Any) -> Tuple[Any, str]:
        return self.forward(task, response, info, **kwargs)

    def forward(self, task: Any, response: Any, info: Any, **kwargs: Any) -> Tuple[Any, str]:
        return self.get_feedback(task, response, info, **kwargs)

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> Tuple[Any, str]:
        raise NotImplementedError(f"{type(self).__name__}.get_feedback")

    def metric(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> Any:
        """The score alone."""
        return self.get_feedback(query, response, reference)[0]

    def get_score_dict(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> Dict[str, float]:
        """The score as {objective: number}; a single one is called "score"."""
        score = self.get_feedback(query, response, reference, **kwargs)[0]
        return {k: float(v) for k, v in score.items()} if isinstance(score, dict) else {"score": float(score)}

    def copy(self) -> "Guide":
        return copy.deepcopy(self)

    def save(self, path: str) -> None:
        folder = os.path.dirname(path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(path, "wb") as file:
            pickle.dump(self.__getstate__(), file)

    def load(self, path: str) -> None:
        with open(path, "rb") as file:
            self.__setstate__(pickle.load(file))

    def __getstate__(self) -> dict:
        return dict(self.__dict__)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)


class ExactMatch(Guide):
    """1 when the response equals the reference, after ``normalize`` (default: text without white space at its ends)."""

    def __init__(self, normalize: Optional[Callable[[Any], Any]] = None) -> None:
        self.normalize = normalize

    def _plain(self, value: Any) -> Any:
        return self.normalize(value) if self.normalize is not None else value.strip() if isinstance(value, str) else value

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> Tuple[float, str]:
        if self._plain(response) == self._plain(reference):
            return 1.0, "The answer is correct."
        return 0.0, f"The answer is wrong: expected {reference!r}, got {response!r}."


class RegexMatch(Guide):
    """1 when the pattern (the reference, or the one given) is found in the response's text."""

    def __init__(self, pattern: Optional[str] = None, flags: int = 0) -> None:
        self.pattern, self.flags = pattern, flags

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> Tuple[float, str]:
        pattern = self.pattern if self.pattern is not None else str(reference)
        if re.search(pattern, str(response), self.flags):
            return 1.0, "The answer has the form that is wanted."
        return 0.0, f"The answer does not match the pattern {pattern!r}: got {response!r}."


class NumericMatch(Guide):
    """1 when the last number in the response is within ``tolerance`` of the reference; ``relative``: times the reference's size."""

    _NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")

    def __init__(self, tolerance: float = 1e-6, relative: bool = False) -> None:
        self.tolerance, self.relative = tolerance, relative

    def _number(self, value: Any) -> Optional[float]:
        if isinstance(value, (int, float)):
            return float(value)
        found = self._NUMBER.findall(str(value))
        return float(found[-1].replace(",", "")) if found else None

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> Tuple[float, str]:
        wanted, got = self._number(reference), self._number(response)
        if wanted is None:
            raise ValueError(f"reference: {reference!r} holds no number")
        if got is None:
            return 0.0, f"The answer holds no number: {response!r}; expected {wanted:g}."
        if abs(got - wanted) <= self.tolerance * (abs(wanted) if self.relative else 1.0):
            return 1.0, "The answer is correct."
        return 0.0, f"The answer is {got:g}, expected {wanted:g}: it is too {'large' if got > wanted else 'small'} by {abs(got - wanted):g}."


class LLMJudge(Guide):
    """A language model compares the response with the reference; the score is 1 when its reply holds the text that means correct, else 0.

    llm: a callable model; None = optod.llm.LLM(model).  prompt_template: with {query}, {response}, {reference}, {correctness_template},
    {incorrectness_template}.  use_formatted_response: the feedback repeats query, response and reference.
    """

    DEFAULT_CORRECTNESS_TEMPLATE = "Correct [TERMINATE]"
    DEFAULT_INCORRECTNESS_TEMPLATE = "Incorrect"
    DEFAULT_PROMPT_TEMPLATE = (
        "Task:\n{query}\n\nAnswer that was given:\n{response}\n\nReference answer:\n{reference}\n\nDecide whether the given answer is right; think it through "
        "first. If it is right, write {correctness_template}. If not, write {incorrectness_template} and say precisely what to do better.")
    DEFAULT_SYSTEM_PROMPT = "You judge answers fairly and tell people clearly how to improve them."

    def __init__(self, model: Optional[str] = None, llm: Optional[Callable] = None, prompt_template: Optional[str] = None,
                 system_prompt: Optional[str] = None, correctness_template: Optional[str] = None, use_formatted_response: bool = False) -> None:
        self.model, self.llm = model, llm or LLM(model=model)
        self.prompt_template = prompt_template or self.DEFAULT_PROMPT_TEMPLATE
        self.system_prompt = system_prompt or self.DEFAULT_SYSTEM_PROMPT
        self.correctness_template = correctness_template or self.DEFAULT_CORRECTNESS_TEMPLATE
        self.use_formatted_response = use_formatted_response

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> Tuple[float, str]:
        if reference is None:
            raise ValueError("reference: the judge needs one")
        prompt = self.prompt_template.format(query=query, response=response, reference=reference, correctness_template=self.correctness_template,
                                             incorrectness_template=self.DEFAULT_INCORRECTNESS_TEMPLATE)
        text = reply_text(self.llm(messages=[{"role": "system", "content": self.system_prompt}, {"role": "user", "content": prompt}]))
        score = 1 if self.correctness_template in text else 0
        if self.use_formatted_response:
            text = f"Task: {query}\nAnswer: {response}\nReference: {reference}\nJudgement: {text}"
        return score, text
