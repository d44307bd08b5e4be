"""OptoPrime: one model call on the subgraph between the parameters and the output (Cheng et al., 2024, Sec. 3)."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from optod.errors import OptodError
from optod.llm import AbstractModel, reply_text
from optod.optimizers.buffers import FIFOBuffer
from optod.optimizers.optimizer import Optimizer
from optod.optimizers.remote import Remote, text_of
from optod.optimizers.replies import balanced_objects, cast_like, find_key
from optod.optimizers.summary import (FunctionFeedback, ProblemInstance, constraint_line, get_fun_name, node_to_function_feedback, repr_function_call,
                                      value_line)
from optod.trace.nodes import Node, ParameterNode
from optod.trace.propagators import GraphPropagator
from optod.trace.propagators.propagators import Propagator
from optod.v1 import trace_pb2 as pb

__all__ = ["OptoPrime", "FunctionFeedback", "ProblemInstance", "node_to_function_feedback", "repr_function_call", "get_fun_name"]


class OptoPrime(Optimizer):
    """parameters: what may be changed (only the trainable ones are).

    llm: None or a name: the server's endpoint ``default`` or of that name; a callable ``llm(messages=..., max_tokens=...)``: called here with the server's
    prompts, its reply goes back to the server.  objective: what the model is asked to do.  include_example: a worked example in the prompt.
    memory_size: past (values, feedback) pairs shown.  max_tokens: of a reply.  candidates: proposals a step; the first usable one counts.
    ignore_extraction_error: False raises ValueError when a reply changes nothing because it could not be read.  log: keep prompts and replies in ``log``,
    problems in ``summary_log``.  prompt_symbols: other section titles, {"variables": "#Knobs"}.  temperature, seed: of the server's calls.
    json_keys: other names of the reply's keys, {"suggestion": ...}.  session: the optod session (after the first step).
    """

    server_name = "optoprime"
    default_objective = "You need to change the <value> of the variables in #Variables to improve the output in accordance to #Feedback."
    default_prompt_symbols = {name.lower(): "#" + name for name in
                              ("Variables", "Constraints", "Inputs", "Outputs", "Others", "Feedback", "Instruction", "Code", "Documentation")}
    default_json_keys = {"reasoning": "reasoning", "answer": "answer", "suggestion": "suggestion"}

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "last_outcome": None, "_offers": []}

    def __init__(self, parameters: List[ParameterNode], llm: Union[None, str, Callable] = None, *args: Any, propagator: Optional[Propagator] = None,
                 objective: Optional[str] = None, ignore_extraction_error: bool = True, include_example: bool = False, memory_size: int = 0,
                 max_tokens: int = 4096, log: bool = True, prompt_symbols: Optional[Dict[str, str]] = None,
                 json_keys: Optional[Dict[str, Optional[str]]] = None, use_json_object_format: bool = True, highlight_variables: bool = False,
                 candidates: int = 1, temperature: Optional[float] = None, seed: int = 0, client: Any = None, **kwargs: Any) -> None:
        super().__init__(parameters, *args, propagator=propagator, **kwargs)
        self.llm = llm
        self.objective = objective or self.default_objective
        self.ignore_extraction_error, self.include_example = ignore_extraction_error, include_example
        self.max_tokens, self.use_json_object_format, self.highlight_variables = max_tokens, use_json_object_format, highlight_variables
        self.log: Optional[list] = [] if log else None
        self.summary_log: Optional[list] = [] if log else None
        self.memory = FIFOBuffer(memory_size)
        self.prompt_symbols = {**self.default_prompt_symbols, **(prompt_symbols or {})}
        self.json_keys = {**self.default_json_keys, **(json_keys or {})}
        self.candidates = candidates
        self._own_objective = objective
        self.remote = Remote(self.server_name, self._hyperparameters(temperature), llm if isinstance(llm, str) else "", seed, client)
        self.last_outcome: Optional[pb.ProposeResponse] = None
        self._offers: List[Tuple[int, Dict[ParameterNode, str]]] = []     # proposed versions and the texts that they hold

    def _hyperparameters(self, temperature: Optional[float]) -> Dict[str, Any]:
        out: Dict[str, Any] = {"max_tokens": self.max_tokens, "memory": self.memory.size, "include_example": self.include_example,
                               "candidates": self.candidates}
        if self._own_objective:
            out["objective"] = self._own_objective
        if temperature is not None:
            out["temperature"] = temperature
        return out

    @property
    def session(self) -> Any:
        """The session on the server: versions, usage, rollback, export."""
        return self.remote.session

    # ---- what the model sees

    def summarize(self) -> FunctionFeedback:
        """The subgraph of all trainable parameters, sorted into variables, inputs, others and outputs."""
        parameters = [p for p in self.parameters if p.trainable]
        summary = node_to_function_feedback(sum((self.propagator.aggregate(p.feedback) for p in parameters), self.propagator.aggregate({})))
        own = {p.py_name for p in parameters}
        summary.variables = {name: shown for name, shown in summary.roots.items() if name in own}
        summary.inputs = {name: shown for name, shown in summary.roots.items() if name not in own}
        return summary

    def problem_instance(self, summary: FunctionFeedback, mask: Optional[Sequence[str]] = None) -> ProblemInstance:
        """The sections of the prompt as text."""
        return ProblemInstance.of(summary, self.objective, mask or ())

    @staticmethod
    def repr_node_value(node_dict: Dict[str, Any]) -> str:
        return "\n".join(value_line(name, shown) for name, shown in node_dict.items())

    @staticmethod
    def repr_node_constraint(node_dict: Dict[str, Any]) -> str:
        return "\n".join(constraint_line(name, shown) for name, shown in node_dict.items() if shown[1] is not None)

    def construct_prompt(self, summary: Any = None, mask: Optional[Sequence[str]] = None, *args: Any, **kwargs: Any) -> Tuple[str, str]:
        """(system prompt, user prompt) as the server renders them for the feedback that is pending."""
        with self.remote.lock:
            return self._prompts_of(self.remote.tell(self._pending(), self.parameters), _titles(mask))

    def _prompts_of(self, ids: Sequence[int], mask: Sequence[str]) -> Tuple[str, str]:
        problem = self.remote.session.problem(ids, mask, self._other_titles())
        return problem.system_prompt, problem.user_prompt

    def _other_titles(self) -> Dict[str, str]:
        """{default title: title} of the sections that are called something else."""
        return {old: self.prompt_symbols[key] for key, old in self.default_prompt_symbols.items() if self.prompt_symbols.get(key, old) != old}

    def replace_symbols(self, text: str, symbols: Dict[str, str]) -> str:
        """Other section titles where a line begins with one, in a prompt that a subclass renders."""
        for key, title in symbols.items():
            old = self.default_prompt_symbols.get(key)
            if old is not None and old != title:
                text = re.sub(rf"(?m)^{re.escape(old)}\b", title.replace("\\", "\\\\"), text)
        return text

    def call_llm(self, system_prompt: str, user_prompt: str, verbose: Union[bool, str] = False, max_tokens: int = 4096, **options: Any) -> str:
        """Asks ``llm`` here.  A model that takes no response_format is asked without."""
        if verbose not in (False, "output"):
            print("Prompt\n", system_prompt + user_prompt)
        messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": user_prompt}]
        model = self.llm if callable(self.llm) else _default_model(self.llm)
        given = dict(messages=messages, max_tokens=max_tokens, **options)
        if self.use_json_object_format:
            try:
                response = model(response_format={"type": "json_object"}, **given)
            except AssertionError:
                raise
            except Exception:
                response = model(**given)
        else:
            response = model(**given)
        text = reply_text(response)
        if verbose:
            print("LLM response:\n", text)
        return text

    # ---- the step

    def _pending(self) -> List[Tuple[Node, Any]]:
        """[(output, feedback)] that the parameters heard of, in order, each once."""
        found: Dict[Tuple[int, str], Tuple[Node, Any]] = {}
        for parameter in self.parameters:
            for entries in parameter.feedback.values():
                for given in entries:
                    for node, words in given.outputs or _outputs_of(given):
                        found.setdefault((id(node), str(words)), (node, words))
        return list(found.values())

    def _step(self, verbose: Union[bool, str] = False, mask: Optional[Sequence[str]] = None, *args: Any, **kwargs: Any) -> Dict[ParameterNode, Any]:
        if not isinstance(self.propagator, GraphPropagator):
            raise AssertionError(f"{type(self).__name__} needs a GraphPropagator, not {type(self.propagator).__name__}")
        with self.remote.lock:
            ids = self.remote.tell(self._pending(), self.parameters)
        summary = self.summarize() if self.log is not None or self._renders_here() else None
        told = _Told(ids, _titles(mask), verbose)
        if self._renders_here():
            update = self._step_of_subclass(told, summary, mask)
        elif callable(self.llm):
            update = self._with_client_model(told)
        else:
            update = self._with_server_model(told)
        self._remember(told, summary)
        return update

    def _with_server_model(self, told: "_Told") -> Dict[ParameterNode, Any]:
        """The server asks its own endpoint."""
        if self.log is not None or told.verbose not in (False, "output"):
            told.prompts.append(self._prompts_of(told.ids, told.mask))
        if told.verbose not in (False, "output"):
            print("Prompt\n", *told.prompts[0])
        outcome = self.remote.session.propose(apply=False, parameters=told.ids, mask=told.mask, titles=self._other_titles())
        told.replies += [c.reply for c in outcome.candidates]
        if told.verbose:
            print("LLM response:\n", "\n".join(told.replies))
        return self._read_here(told.replies) if self._reads_here() else self._take(outcome)

    def _with_client_model(self, told: "_Told") -> Dict[ParameterNode, Any]:
        """``llm`` is asked here, with the server's prompts."""
        if self._reads_here():
            response = self.remote.session.propose(apply=False, parameters=told.ids, mask=told.mask, titles=self._other_titles(), client_model=True)
            return self._read_here(self._answer(response.calls, told))
        outcome = self.remote.session.propose_with(lambda calls: self._answer(calls, told), apply=False, parameters=told.ids, mask=told.mask,
                                                   titles=self._other_titles())
        return self._take(outcome)

    def _step_of_subclass(self, told: "_Told", summary: Any, mask: Optional[Sequence[str]]) -> Dict[ParameterNode, Any]:
        """A subclass renders the prompt."""
        system, user = self.construct_prompt(summary, mask=mask)
        prompts = (self.replace_symbols(system, self.prompt_symbols), self.replace_symbols(user, self.prompt_symbols))
        told.prompts.append(prompts)
        told.replies += [self.call_llm(system_prompt=prompts[0], user_prompt=prompts[1], verbose=told.verbose, max_tokens=self.max_tokens)
                         for _ in range(self.candidates)]
        if self._reads_here():
            return self._read_here(told.replies)
        return self._take(self.remote.session.propose(apply=False, parameters=told.ids, mask=told.mask, client_model=True, replies=told.replies))

    def _answer(self, calls: Sequence[pb.ClientCall], told: "_Told") -> List[str]:
        """The model's replies, asked side by side when there are several."""
        prompts = [(self._with_own_keys(c.system), self._highlighted(c.user)) for c in calls]

        def ask(i: int) -> str:
            options = {"temperature": calls[i].temperature} if len(calls) > 1 and calls[i].HasField("temperature") else {}
            return self.call_llm(system_prompt=prompts[i][0], user_prompt=prompts[i][1], verbose=told.verbose, max_tokens=self.max_tokens, **options)

        if len(calls) == 1:
            replies = [ask(0)]
        else:
            with ThreadPoolExecutor(max_workers=min(len(calls), 16)) as pool:
                replies = list(pool.map(ask, range(len(calls))))
        told.prompts += prompts
        told.replies += replies
        return replies

    def _with_own_keys(self, system: str) -> str:
        """The explanation of the reply's form, with the keys of ``json_keys``."""
        for key, default in self.default_json_keys.items():
            name = self.json_keys.get(key)
            if name and name != default:
                system = system.replace(f'"{default}"', f'"{name}"')
        return system

    def _highlighted(self, user: str) -> str:
        if not self.highlight_variables:
            return user
        return f"{user}\nWhat are your suggestions on variables {', '.join(p.py_name for p in self.parameters if p.trainable)}?\n"

    def _take(self, outcome: pb.ProposeResponse) -> Dict[ParameterNode, Any]:
        """The values of the candidate to take; the head stays where it is until ``update``."""
        self.last_outcome = outcome
        preferred = self._preferred(outcome)
        for candidate in preferred:
            if candidate.HasField("version"):
                with self.remote.lock:
                    update = {**self._confirmed(candidate), **self.remote.values_of(candidate.version, self.parameters)}
                    self._offers = [*self._offers[-63:], (candidate.version, {p: text_of(v) for p, v in update.items()})]
                return update
        for candidate in preferred:
            confirmed = self._confirmed(candidate)
            if confirmed:
                return confirmed
        self._explain(outcome)
        return {}

    def _confirmed(self, candidate: pb.CandidateOutcome) -> Dict[ParameterNode, Any]:
        """Parameters that the reply names with the value that they have."""
        kept = {k.key for k in candidate.keys if k.kind == pb.KEY_UNCHANGED}
        return {p: p._data for p in self.parameters if p.trainable and kept & self.remote.names_of(p)}

    def _preferred(self, outcome: pb.ProposeResponse) -> List[pb.CandidateOutcome]:
        """Candidates, the one to take first."""
        chosen = [outcome.candidates[outcome.selected]] if outcome.HasField("selected") else []
        return [*chosen, *outcome.candidates]

    def _explain(self, outcome: pb.ProposeResponse) -> None:
        """Nothing usable: says why, or raises when asked to."""
        reasons = []
        for candidate in outcome.candidates:
            reasons += [f"{k.key}: {k.reason}" for k in candidate.keys if k.reason] or ([candidate.reason] if candidate.reason else [])
        failed = any(c.kind in (pb.REPLY_UNPARSABLE, pb.REPLY_FAILED) or any(k.kind == pb.KEY_CAST_FAILED for k in c.keys) for c in outcome.candidates)
        if failed and not self.ignore_extraction_error:
            raise ValueError("; ".join(reasons) or "no suggestion could be read from the reply")
        if reasons and not all(c.kind == pb.REPLY_STOP for c in outcome.candidates):
            warnings.warn("the proposal changes nothing: " + "; ".join(reasons)[:1000], stacklevel=3)

    def _remember(self, told: "_Told", summary: Any) -> None:
        if summary is not None:
            self.memory.add((summary.variables, summary.user_feedback))
        if self.log is not None and self.summary_log is not None:
            system, user = told.prompts[0] if told.prompts else ("", "")
            self.log.append({"system_prompt": system, "user_prompt": user,
                             "response": told.replies[0] if len(told.replies) == 1 else list(told.replies)})
            self.summary_log.append({"problem_instance": self.problem_instance(summary), "summary": summary})

    def update(self, update_dict: Dict[ParameterNode, Any]) -> None:
        """Sets the values here, and makes the proposed version the server's head (values that no proposal holds become a version before the next)."""
        super().update(update_dict)
        taken = {p: text_of(v) for p, v in update_dict.items() if p.trainable}
        with self.remote.lock:
            for version, offered in reversed(self._offers):
                if taken == offered:
                    self.remote.accept(version, update_dict)
                    self._offers = []
                    return

    # ---- subclasses that render or read themselves

    def _renders_here(self) -> bool:
        return type(self).construct_prompt not in _OWN["construct_prompt"]

    def _reads_here(self) -> bool:
        changed_keys = self.json_keys != self.default_json_keys
        return changed_keys or any(getattr(type(self), name) not in _OWN[name] for name in ("extract_llm_suggestion", "construct_update_dict"))

    def _read_here(self, replies: Sequence[str]) -> Dict[ParameterNode, Any]:
        """As the peer does it: extract_llm_suggestion, then construct_update_dict."""
        if not replies:
            raise OptodError("the model gave no reply")
        for reply in replies:
            if "TERMINATE" in reply:
                continue
            suggestion = self.extract_llm_suggestion(reply)
            update = self.construct_update_dict(suggestion.get("variables", suggestion) if isinstance(suggestion.get("variables"), dict) else suggestion)
            if update:
                return update
        return {}

    def extract_llm_suggestion(self, response: str, suggestion_tag: Optional[str] = None, reasoning_tag: Optional[str] = None,
                               return_only_suggestion: bool = True, ignore_extraction_error: Optional[bool] = None) -> Dict[str, Any]:
        """The suggestion of a reply in JSON: the last object that has one, else the last object whole; code keys with blank text are dropped."""
        suggestion_tag = suggestion_tag or self.json_keys["suggestion"]
        if return_only_suggestion:
            try:                                # a reply that is one object, as it should be
                plain = json.loads(response)[suggestion_tag]
            except (ValueError, KeyError, TypeError, RecursionError):
                plain = None
            if plain and type(plain) is dict:
                return _without_blank_code(plain)
        reasoning_tag = reasoning_tag or self.json_keys["reasoning"]
        found = balanced_objects(response)
        with_tag = [o for o in found if isinstance(o.get(suggestion_tag), dict)]
        whole = with_tag[-1] if with_tag else found[-1] if found else {}
        suggestion = dict(whole[suggestion_tag]) if with_tag else dict(whole)
        if not suggestion and not (self.ignore_extraction_error if ignore_extraction_error is None else ignore_extraction_error):
            print(f"Cannot extract {suggestion_tag} from LLM's response:\n{response}")
        suggestion = _without_blank_code(suggestion)
        return suggestion if return_only_suggestion else {"reasoning": whole.get(reasoning_tag, ""), "variables": suggestion}

    def construct_update_dict(self, suggestion: Dict[str, Any]) -> Dict[ParameterNode, Any]:
        """Values of a suggestion, cast to the type that each parameter holds; keys may be written ``x0`` or ``x:0``.

        What cannot be cast is skipped with a warning, or raises ValueError when extraction errors are not ignored.
        """
        out: Dict[ParameterNode, Any] = {}
        for parameter in self.parameters:
            key = find_key(parameter.py_name, suggestion) if parameter.trainable else None
            if key is None:
                continue
            try:
                out[parameter] = cast_like(suggestion[key], parameter._data)
            except (TypeError, ValueError) as error:
                if not self.ignore_extraction_error:
                    raise ValueError(f"{parameter.py_name}: {error}") from error
                warnings.warn(f"Cannot convert the suggestion {suggestion[key]!r} for {parameter.py_name}: {error}")
        return out


@dataclasses.dataclass
class _Told:
    """A step under way: ids of the parameters on the server, masked sections, and what was asked and answered."""

    ids: Sequence[int]
    mask: Sequence[str]
    verbose: Union[bool, str]
    prompts: List[Tuple[str, str]] = dataclasses.field(default_factory=list)
    replies: List[str] = dataclasses.field(default_factory=list)


def _without_blank_code(suggestion: Dict[str, Any]) -> Dict[str, Any]:
    return {k: v for k, v in suggestion.items() if "__code" not in k or str(v).strip()}


def _titles(mask: Optional[Sequence[str]]) -> List[str]:
    """``# Code`` and ``#Code`` name the same section."""
    return ["#" + title.lstrip("# ") for title in mask or ()]


def _outputs_of(given: Any) -> List[Tuple[Node, Any]]:
    """Of feedback made by another propagator: the nodes of the highest level."""
    entries = list(getattr(given, "graph", ()))
    return [(node, given.user_feedback) for level, node in entries if level == entries[-1][0]]


def _default_model(name: Optional[str]) -> AbstractModel:
    from optod.llm import LLM
    return LLM(name) if name else LLM()


_OWN: Dict[str, set] = {name: {getattr(OptoPrime, name)} for name in ("construct_prompt", "extract_llm_suggestion", "construct_update_dict")}
"""Methods of the package itself, which leave the work to the server; others are a subclass's."""

