"""OptoPrimeMulti: several replies a step, of which one is taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

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
    selection_technique: as the server's hyperparameters ``generation`` and ``selection``; with a callable ``llm`` the replies differ by temperature and
    the last usable one is taken.  llm_profiles: names of LLMFactory, asked in turn.
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
        kwargs.setdefault("candidates", num_responses)
        super().__init__(*args, **kwargs)
        self.selected_candidate: Any = None

    def _hyperparameters(self, temperature: Optional[float]) -> Dict[str, Any]:
        out = super()._hyperparameters(temperature)
        out["temperature"], out["temperature_max"] = self.temperature_min_max[0], self.temperature_min_max[1]
        if self.generation_technique != "temperature_variation":
            out["generation"] = _GENERATION.get(self.generation_technique.lower(), self.generation_technique)
        if self.selection_technique != "last_of_n":
            out["selection"] = _SELECTION.get(self.selection_technique.lower(), self.selection_technique)
        return out

    def _replies(self, system_prompt: str, user_prompt: str, verbose: Union[bool, str]) -> List[str]:
        """Asked in parallel, at temperatures that fall evenly from the hottest to the coolest."""
        low, high = self.temperature_min_max[:2]
        n = self.num_responses
        models = [LLMFactory.get_llm(self.llm_profiles[i % len(self.llm_profiles)]) if self.llm_profiles else self.llm for i in range(n)]
        messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": user_prompt}]

        def ask(i: int) -> Optional[str]:
            temperature = high - (high - low) * i / max(1, n - 1)
            try:
                return reply_text(models[i](messages=messages, max_tokens=self.max_tokens, temperature=temperature))  # type: ignore[misc, operator]
            except Exception as error:
                if verbose:
                    print(f"candidate {i}: {error}")
                return None

        with ThreadPoolExecutor(max_workers=max(1, n)) as pool:
            replies = [r for r in pool.map(ask, range(n)) if r is not None]
        if not replies:
            raise RuntimeError("llm: none of the calls was answered")
        if self.selector is not None:
            self.selected_candidate = self.selector(replies)
            return [self.selected_candidate if isinstance(self.selected_candidate, str) else reply_text(self.selected_candidate)]
        return replies

    def _preferred(self, candidates: List[pb.CandidateOutcome]) -> List[pb.CandidateOutcome]:
        outcome = self.last_outcome
        chosen = getattr(outcome, "selected", None) if outcome is not None and _has_selected(outcome) else None
        if chosen is not None:
            return [candidates[chosen], *candidates]
        return list(reversed(candidates))


def _has_selected(outcome: Any) -> bool:
    return "selected" in outcome.DESCRIPTOR.fields_by_name and outcome.HasField("selected")


