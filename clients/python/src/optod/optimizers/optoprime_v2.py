"""OptoPrimeV2: OptoPrime with values and replies in tags."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Optional, Tuple

from optod.optimizers.optoprime import _OWN, OptoPrime
from optod.optimizers.replies import balanced_objects
from optod.optimizers.summary import FunctionFeedback, ProblemInstance
from optod.optimizers.utils import extract_xml_like_data, truncate_expression
from optod.v1 import trace_pb2 as pb

__all__ = ["OptoPrimeV2", "OptimizerPromptSymbolSet", "OptimizerPromptSymbolSetJSON", "OptimizerPromptSymbolSet2", "extract_xml_like_data",
           "truncate_expression", "FunctionFeedback", "ProblemInstance"]


class OptimizerPromptSymbolSet:
    """Section titles and tag names.  expect_json: replies are JSON instead of tags."""

    variables_section_title, inputs_section_title, outputs_section_title = "# Variables", "# Inputs", "# Outputs"
    others_section_title, feedback_section_title, instruction_section_title = "# Others", "# Feedback", "# Instruction"
    code_section_title, documentation_section_title = "# Code", "# Documentation"
    node_tag, variable_tag, value_tag, constraint_tag = "node", "variable", "value", "constraint"
    reasoning_tag, improved_variable_tag, name_tag = "reasoning", "variable", "name"
    expect_json = False
    custom_output_format_instruction: Optional[str] = None

    @property
    def output_format(self) -> str:
        """The form that a reply must have."""
        if self.custom_output_format_instruction is not None:
            return self.custom_output_format_instruction.strip()
        return self.example_output("reasoning", {"variable_name": "value"})

    def example_output(self, reasoning: str, variables: Dict[str, Any]) -> str:
        """A reply with these contents."""
        parts = [f"<{self.reasoning_tag}>\n{reasoning}\n</{self.reasoning_tag}>"] if reasoning else []
        for name, value in variables.items():
            parts.append(f"<{self.improved_variable_tag}>\n<{self.name_tag}>{name}</{self.name_tag}>\n<{self.value_tag}>\n{value}\n</{self.value_tag}>\n"
                         f"</{self.improved_variable_tag}>")
        return "\n".join(parts)

    def output_response_extractor(self, response: str) -> Dict[str, Any]:
        """{"reasoning": text, "variables": {name: text}}; code with blank text is dropped."""
        found = extract_xml_like_data(response, self.reasoning_tag, self.improved_variable_tag, self.name_tag, self.value_tag)
        found["variables"] = {k: v for k, v in found["variables"].items() if not ("__code" in k and not v.strip())}
        return found

    @property
    def default_prompt_symbols(self) -> Dict[str, str]:
        names = ("variables", "inputs", "outputs", "others", "feedback", "instruction", "code", "documentation")
        return {name: getattr(self, f"{name}_section_title") for name in names}


class OptimizerPromptSymbolSetJSON(OptimizerPromptSymbolSet):
    """Replies in JSON: {"reasoning": ..., "suggestion": {name: value}}."""

    expect_json = True
    custom_output_format_instruction = '{"reasoning": <text>, "suggestion": {<variable>: <value>, ...}}'

    def example_output(self, reasoning: str, variables: Dict[str, Any]) -> str:
        return json.dumps({"reasoning": reasoning, "suggestion": variables}, indent=2)

    def output_response_extractor(self, response: str, suggestion_tag: str = "suggestion") -> Dict[str, Any]:
        objects = balanced_objects(response)
        whole = next((o for o in reversed(objects) if isinstance(o.get(suggestion_tag), dict)), objects[-1] if objects else {})
        variables = whole.get(suggestion_tag) if isinstance(whole.get(suggestion_tag), dict) else whole
        return {"reasoning": whole.get("reasoning", ""),
                "variables": {k: v for k, v in variables.items() if not ("__code" in k and not str(v).strip())}}


class OptimizerPromptSymbolSet2(OptimizerPromptSymbolSet):
    """Short tags."""

    node_tag, variable_tag, value_tag = "const", "var", "data"
    reasoning_tag, improved_variable_tag, name_tag = "reason", "var", "name"


class OptoPrimeV2(OptoPrime):
    """initial_var_char_limit: characters shown of inputs, others and outputs.  optimizer_prompt_symbol_set: tag names; other
    than the default ones need a callable ``llm``, since the server writes and reads the default ones.  OptimizerPromptSymbolSetJSON: replies in JSON."""

    server_name = "optoprime-v2"

    def __init__(self, parameters: list, llm: Any = None, *args: Any, max_tokens: int = 8192, initial_var_char_limit: int = 2000,
                 optimizer_prompt_symbol_set: Optional[OptimizerPromptSymbolSet] = None, use_json_object_format: bool = True,
                 truncate_expression: Any = truncate_expression, **kwargs: Any) -> None:
        self.initial_var_char_limit = initial_var_char_limit
        self.optimizer_prompt_symbol_set = optimizer_prompt_symbol_set or OptimizerPromptSymbolSet()
        if self.optimizer_prompt_symbol_set.expect_json:
            self.server_name = "optoprime"         # the same problem, replies in JSON
        self._other_tags = {old: new for old, new in zip(_tags(OptimizerPromptSymbolSet()), _tags(self.optimizer_prompt_symbol_set)) if old != new}
        self.truncate_expression = truncate_expression
        super().__init__(parameters, llm, *args, max_tokens=max_tokens,
                         use_json_object_format=use_json_object_format and self.optimizer_prompt_symbol_set.expect_json, **kwargs)

    def _hyperparameters(self, temperature: Optional[float]) -> Dict[str, Any]:
        limit = {"initial_var_char_limit": self.initial_var_char_limit} if self.server_name == "optoprime-v2" else {}
        return {**super()._hyperparameters(temperature), **limit}

    def extract_llm_suggestion(self, response: str, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """{"reasoning": text, "variables": {name: value}} of a reply."""
        found = self.optimizer_prompt_symbol_set.output_response_extractor(response)
        if not found.get("variables") and not self.ignore_extraction_error:
            print(f"Cannot extract suggestion from LLM's response:\n{response}")
        return found

    def construct_prompt(self, summary: Any = None, mask: Any = None, *args: Any, **kwargs: Any) -> Tuple[str, str]:
        return self._in_own_tags(*super().construct_prompt(summary, mask, *args, **kwargs))

    def _in_own_tags(self, system: str, user: str) -> Tuple[str, str]:
        """The server's prompts with other tags: everywhere in the explanation, where a line begins with a tag in the problem (values come behind one)."""
        for old, new in self._other_tags.items():
            system = re.sub(rf"<(/?){old}\b", rf"<\1{new}", system)
            user = re.sub(rf"(?m)^<(/?){old}\b", rf"<\1{new}", user)
        return system, user

    def _answer(self, calls: Any, told: Any) -> List[str]:
        """Other tags are put into the prompts, and the default ones into the replies that go back to the server."""
        if not self._other_tags:
            return super()._answer(calls, told)
        changed = []
        for call in calls:
            system, user = self._in_own_tags(call.system, call.user)
            copied = pb.ClientCall()
            copied.CopyFrom(call)
            copied.system, copied.user = system, user
            changed.append(copied)
        default = OptimizerPromptSymbolSet()
        found = [self.optimizer_prompt_symbol_set.output_response_extractor(r) for r in super()._answer(changed, told)]
        return [default.example_output(f.get("reasoning") or "none given", f.get("variables") or {}) for f in found]


def _tags(symbols: OptimizerPromptSymbolSet) -> tuple:
    return tuple(getattr(symbols, f"{name}_tag") for name in ("node", "variable", "value", "constraint", "reasoning", "name"))


_OWN["extract_llm_suggestion"].add(OptoPrimeV2.extract_llm_suggestion)
_OWN["construct_prompt"].add(OptoPrimeV2.construct_prompt)
