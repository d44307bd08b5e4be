"""Agents to begin with."""

from __future__ import annotations

from typing import Any, Callable, Optional

from optod.llm import LLM, reply_text
from optod.trace.bundle import bundle
from optod.trace.modules import model
from optod.trace.nodes import node

__all__ = ["BasicLearner", "Learner"]


@model
class BasicLearner:
    """One model call: the system prompt is trained, the user prompt is a template with ``{message}`` (ValueError without it).  llm: None = optod.llm.LLM()."""

    def __init__(self, system_prompt: str = "You're a helpful agent", user_prompt_template: str = "Query: {message}", llm: Optional[Callable] = None) -> None:
        self.system_prompt = node(system_prompt, trainable=True)
        self.user_prompt_template = node(user_prompt_template)
        self.llm = llm or LLM()

    @bundle()
    def model(self, system_prompt: str, user_prompt_template: str, message: Any) -> str:
        """Asks the language model with the system prompt and the filled-in user prompt."""
        if "{message}" not in user_prompt_template:
            raise ValueError("user_prompt_template: must contain '{message}'")
        return reply_text(self.llm(messages=[{"role": "system", "content": system_prompt},
                                             {"role": "user", "content": user_prompt_template.format(message=message)}]))

    def forward(self, message: Any) -> Any:
        return self.model(self.system_prompt, self.user_prompt_template, message)


Learner = BasicLearner
