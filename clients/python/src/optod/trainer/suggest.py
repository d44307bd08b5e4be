"""Suggestions: feedback in words without a score."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

from optod.llm import LLM, reply_text

__all__ = ["Suggest", "ReferenceSuggest", "SimpleReferenceSuggest", "KeywordSuggest"]


class Suggest:
    """``suggest(task, response, info)`` gives a text."""

    def __call__(self, task: Any, response: Any, info: Any = None, **kwargs: Any) -> str:
        return self.forward(task, response, info, **kwargs)

    def forward(self, task: Any, response: Any, info: Any = None, **kwargs: Any) -> str:
        return self.get_feedback(task, response, info, **kwargs)

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> str:
        raise NotImplementedError(f"{type(self).__name__}.get_feedback")


class SimpleReferenceSuggest(Suggest):
    """One of two templates, by equality with the reference; they may use {query}, {response}, {reference}."""

    def __init__(self, correctness_template: str = "The answer is correct.", incorrectness_template: str = "The answer is wrong. Expected: {reference}",
                 ) -> None:
        self.correctness_template, self.incorrectness_template = correctness_template, incorrectness_template

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> str:
        template = self.correctness_template if response == reference else self.incorrectness_template
        return template.format(query=query, response=response, reference=reference)


class ReferenceSuggest(Suggest):
    """A language model compares response and reference."""

    def __init__(self, model: Optional[str] = None, llm: Optional[Callable] = None,
                 prompt_template: str = "Task: {query}\nAnswer: {response}\nReference: {reference}\nWhat should be better?",
                 system_prompt: str = "You tell people clearly how to improve their answers.") -> None:
        self.llm, self.prompt_template, self.system_prompt = llm or LLM(model=model), prompt_template, system_prompt

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> str:
        if reference is None:
            raise ValueError("reference: missing")
        prompt = self.prompt_template.format(query=query, response=response, reference=reference)
        return reply_text(self.llm(messages=[{"role": "system", "content": self.system_prompt}, {"role": "user", "content": prompt}]))


class KeywordSuggest(Suggest):
    """keyword_responses: {keyword: text}; those whose keyword the response holds are said.  custom_analyzers: functions (response, reference) -> text."""

    def __init__(self, keyword_responses: Optional[Dict[str, str]] = None, custom_analyzers: Optional[List[Callable]] = None) -> None:
        self.keyword_responses, self.custom_analyzers = dict(keyword_responses or {}), list(custom_analyzers or [])

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **kwargs: Any) -> str:
        said = [text for keyword, text in self.keyword_responses.items() if keyword.lower() in str(response).lower()]
        said += [text for text in (analyze(response, reference) for analyze in self.custom_analyzers) if text]
        return "\n".join(said)
