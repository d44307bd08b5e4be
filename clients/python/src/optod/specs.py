"""What a session is made from, as plain Python values, and their messages."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Mapping, Optional, Sequence

from google.protobuf import duration_pb2

from optod.v1 import optimizer_pb2, session_pb2

__all__ = ["Schedule", "Durability", "Budget", "Parameter", "value_message", "python_value", "hyper_value"]


def seconds(value: float) -> duration_pb2.Duration:
    """A Duration of so many seconds."""
    whole = int(value // 1)
    return duration_pb2.Duration(seconds=whole, nanos=int(round((value - whole) * 1e9)) % 1_000_000_000)


def enum_number(descriptor: Any, value: str, field: str) -> int:
    """The number of an enum's value by its name; ValueError names the field and the names that there are."""
    number = descriptor.DESCRIPTOR.values_by_name.get(value.upper().replace("-", "_"))
    if number is None or number.number == 0:
        names = [v.name.lower().replace("_", "-") for v in descriptor.DESCRIPTOR.values if v.number]
        raise ValueError(f"{field}: {value!r} is unknown; must be one of {', '.join(names)}")
    return number.number


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate by step: base * factor(t).  kind: "constant", "linear", "cosine" (both need total_steps) or "inverse-sqrt"; the factor rises
    linearly over warmup_steps first; floor in [0, 1] is the fraction of the base rate that is never undercut."""

    kind: str
    warmup_steps: int = 0
    total_steps: int = 0
    floor: float = 0.0

    def message(self) -> optimizer_pb2.Schedule:
        return optimizer_pb2.Schedule(kind=enum_number(optimizer_pb2.Schedule.Kind, self.kind, "schedule.kind"), warmup_steps=self.warmup_steps,
                                      total_steps=self.total_steps, floor=self.floor)


@dataclasses.dataclass(frozen=True)
class Durability:
    """When an acknowledged step survives a crash.  mode: "every-step", "every-n" (every n-th step waits), "on-checkpoint".
    snapshot_every: first order, steps between full snapshots; 0 = 100."""

    mode: str = "every-step"
    n: int = 0
    snapshot_every: int = 0

    def message(self) -> session_pb2.Durability:
        return session_pb2.Durability(mode=enum_number(session_pb2.Durability.Mode, self.mode, "durability.mode"), n=self.n,
                                      snapshot_every=self.snapshot_every)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits of a session; 0 = none.  max_wall: seconds since creation."""

    max_steps: int = 0
    max_evaluations: int = 0
    max_llm_tokens: int = 0
    max_llm_usd: float = 0.0
    max_wall: float = 0.0

    def message(self) -> session_pb2.Budget:
        out = session_pb2.Budget(max_steps=self.max_steps, max_evaluations=self.max_evaluations, max_llm_tokens=self.max_llm_tokens,
                                 max_llm_usd=self.max_llm_usd)
        if self.max_wall:
            out.max_wall.CopyFrom(seconds(self.max_wall))
        return out


def value_message(value: Any) -> session_pb2.Value:
    """str, bool, int, float as themselves; anything else as JSON."""
    if isinstance(value, bool):
        return session_pb2.Value(flag=value)
    if isinstance(value, str):
        return session_pb2.Value(text=value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return session_pb2.Value(integer=value)
    if isinstance(value, float):
        return session_pb2.Value(number=value)
    return session_pb2.Value(json=json.dumps(value))


def python_value(message: session_pb2.Value) -> Any:
    """The Python value of a Value."""
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    value = getattr(message, kind)
    return json.loads(value) if kind == "json" else value


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a trace session: its first value, what the model is told, and what is enforced.

    type: Python's name ("str", "code", "int", ...), "" = from the value.  description, constraint: told to the model.  min, max: of numbers;
    choices: the texts allowed; pattern: a regular expression that the whole text must match; max_length: characters (0 = 1,000,000).
    """

    initial: Any
    type: str = ""
    description: str = ""
    constraint: str = ""
    min: Optional[float] = None
    max: Optional[float] = None
    choices: Sequence[str] = ()
    pattern: str = ""
    max_length: int = 0

    def message(self, name: str) -> session_pb2.ParameterSpec:
        return session_pb2.ParameterSpec(name=name, type=self.type, initial=value_message(self.initial), description=self.description,
                                         constraint=self.constraint, min=self.min, max=self.max, choices=list(self.choices),
                                         pattern=self.pattern, max_length=self.max_length)


def hyper_value(name: str, value: Any) -> optimizer_pb2.HyperValue:
    """A hyperparameter: bool, number or str. TypeError otherwise."""
    if isinstance(value, bool):
        return optimizer_pb2.HyperValue(flag=value)
    if isinstance(value, str):
        return optimizer_pb2.HyperValue(text=value)
    try:
        return optimizer_pb2.HyperValue(number=float(value))
    except (TypeError, ValueError):
        raise TypeError(f"hyperparameters.{name}: {value!r} is no number, flag or text") from None


def group_message(number: int, group: Mapping[str, Any]) -> optimizer_pb2.ParameterGroup:
    """{"tensors": "*.bias" or a list of globs, any hyperparameter: value}."""
    if "tensors" not in group:
        raise ValueError(f"groups[{number}].tensors: missing; a glob over tensor names, or a list of them")
    globs = group["tensors"]
    out = optimizer_pb2.ParameterGroup(tensors=[globs] if isinstance(globs, str) else list(globs))
    for key, value in group.items():
        if key != "tensors":
            out.hyperparameters[key].CopyFrom(hyper_value(key, value))
    return out


def optimizer_message(name: str, hyperparameters: Mapping[str, Any], schedule: Optional[Schedule], seed: int, clip_norm: float,
                      llm: str, groups: Sequence[Mapping[str, Any]] = (), non_finite: str = "refuse",
                      clip_value: float = 0.0) -> optimizer_pb2.OptimizerSpec:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed: {seed} is outside [0, 2**64)")
    out = optimizer_pb2.OptimizerSpec(name=name, seed=seed, clip_norm=clip_norm, llm=llm, clip_value=clip_value)
    out.groups.extend(group_message(number, group) for number, group in enumerate(groups))
    if non_finite != "refuse":
        out.non_finite = enum_number(optimizer_pb2.NonFinite, non_finite, "non_finite")
    for key, value in hyperparameters.items():
        out.hyperparameters[key].CopyFrom(hyper_value(key, value))
    if schedule is not None:
        out.schedule.CopyFrom(schedule.message())
    return out


def direction_number(direction: Optional[str]) -> int:
    return 0 if direction is None else enum_number(session_pb2.Direction, direction, "direction")
