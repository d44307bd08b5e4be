"""OPROv2: OPRO with a memory of five rounds."""

from __future__ import annotations

from typing import Any

from optod.optimizers.opro import OPRO
from optod.optimizers.optoprime_v2 import OptimizerPromptSymbolSet

__all__ = ["OPROv2", "OPROPromptSymbolSet"]


class OPROPromptSymbolSet(OptimizerPromptSymbolSet):
    problem_context_section_title, variables_section_title, feedback_section_title = "# Problem Context", "# Solution", "# Feedback"
    variable_tag = "solution"


class OPROv2(OPRO):
    """optimizer_prompt_symbol_set: accepted for compatibility; the server's form of OPRO is used."""

    default_objective = "Propose a new solution that will incorporate the feedback."

    def __init__(self, *args: Any, optimizer_prompt_symbol_set: Any = None, memory_size: int = 5, max_tokens: int = 8192, **kwargs: Any) -> None:
        self.optimizer_prompt_symbol_set = optimizer_prompt_symbol_set or OPROPromptSymbolSet()
        super().__init__(*args, memory_size=memory_size, max_tokens=max_tokens, **kwargs)
