"""OptoPrimeMulti: several replies a step, of which one is taken."""

from __future__ import annotations

import copy
import itertools
from typing import Any, Callable, Dict, List, Optional, Sequence

from optod.llm import LLMFactory, reply_text
from optod.optimizers.optoprime import OptoPrime
from optod.v1 import trace_pb2 as pb

__all__ = ["OptoPrimeMulti"]

_GENERATION = {"temperature_variation": "temperature", "self_refinement": "self_refinement", "iterative_alternatives": "alternatives",
               "multi_experts": "experts", "multi_llm": "temperature"}
_SELECTION = {"moa": "mixture", "mixture": "mixture", "best_of_n": "best_of_n", "majority": "majority", "lastofn": "last_of_n", "last_of_n": "last_of_n"}


class OptoPrimeMulti(OptoPrime):
    """num_responses: replies a step.  temperature_min_max: of the coolest (last) and the hottest (first).

    selector: function on the list of replies (texts) that returns one.  Without it, by ``selection_technique``.  generation_technique,
    selection_technique: as the server's hyperparameters ``generation`` and ``selection``.  llm_profiles: names of LLMFactory, asked in turn (here).
    llm_weights, experts_list: accepted for compatibility; the server's model names its own experts.
    """

    server_name = "optoprime-multi"

    def __init__(self, *args: Any, num_responses: int = 3, temperature_min_max: Optional[Sequence[float]] = None, selector: Optional[Callable] = None,
                 generation_technique: str = "temperature_variation", selection_technique: str = "last_of_n",
                 experts_list: Optional[List[str]] = None, llm_profiles: Optional[List[str]] = None, llm_weights: Optional[List[float]] = None,
                 **kwargs: Any) -> None:
        self.temperature_min_max = list(temperature_min_max) if temperature_min_max is not None else [0.0, 1.0]
        self.num_responses, self.selector = num_responses, selector
        self.generation_technique, self.selection_technique = generation_technique, selection_technique
        self.experts_list, self.llm_profiles, self.llm_weights = experts_list, llm_profiles, llm_weights
        if llm_profiles:
            kwargs.setdefault("llm", LLMFactory.get_llm(llm_profiles[0]))
        kwargs.setdefault("candidates", num_responses)
        super().__init__(*args, **kwargs)
        self.selected_candidate: Any = None
        self._turn = itertools.count()

    def _hyperparameters(self, temperature: Optional[float]) -> Dict[str, Any]:
        out = super()._hyperparameters(temperature)
        out["temperature"], out["temperature_max"] = self.temperature_min_max[0], self.temperature_min_max[1]
        if self.generation_technique != "temperature_variation":
            out["generation"] = _GENERATION.get(self.generation_technique.lower(), self.generation_technique)
        if self.selection_technique != "last_of_n":
            out["selection"] = _SELECTION.get(self.selection_technique.lower(), self.selection_technique)
        return out

    def call_llm(self, *args: Any, **kwargs: Any) -> str:
        """Asks ``llm``, or the profiles in turn."""
        if not self.llm_profiles:
            return super().call_llm(*args, **kwargs)
        profile = self.llm_profiles[next(self._turn) % len(self.llm_profiles)]
        asked = copy.copy(self)
        asked.llm, asked.llm_profiles = LLMFactory.get_llm(profile), None
        return asked.call_llm(*args, **kwargs)

    def _preferred(self, outcome: pb.ProposeResponse) -> List[pb.CandidateOutcome]:
        candidates = list(outcome.candidates)
        if self.selector is None:
            return super()._preferred(outcome)
        chosen = self.selector([c.reply for c in candidates])
        self.selected_candidate = chosen if isinstance(chosen, str) else reply_text(chosen)
        return [c for c in candidates if c.reply == self.selected_candidate]
