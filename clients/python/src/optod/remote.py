"""One session fed step by step by a training loop: what the PyTorch optimizer and its NumPy twin have in common.

    gradients ──► RemoteRule.step ──► gradient stream (shared memory or chunks) ──► session on the server
    new parameters ◄──────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from optod import errors, tensors
from optod.client import Client, connect
from optod.gradients import GradientStream
from optod.results import TellResult
from optod.retry import RetryPolicy
from optod.specs import Durability, Schedule
from optod.v1 import optimizer_pb2, session_pb2, tensor_pb2

__all__ = ["RemoteRule", "Options", "LostSteps", "open_client", "describe", "hyperparameters"]


class LostSteps(errors.FailedPrecondition):
    """The server came back without the last acknowledged steps, because the session's durability allows it. ``resync()`` goes on from the
    server's parameters; loading an older checkpoint goes back further. Durability every-step never loses any."""


def open_client(client: Optional[Client], address: Optional[str], token: Optional[str], patience: float) -> Tuple[Client, bool]:
    """(client, whether it is ours to close): the given one, or a new one that tries for ``patience`` seconds."""
    if client is not None:
        if address is not None or token is not None:
            raise ValueError("client: given together with address or token; give one of them")
        return client, False
    return connect(address, token, timeout=max(patience, 1.0), retry=RetryPolicy(attempts=1_000_000)), True


def describe(client: Client, optimizer: str) -> optimizer_pb2.OptimizerInfo:
    """The optimizer's row of the server's table. NotFound names the nearest; ValueError when it is not told gradients."""
    info = client.optimizers(optimizer)[0]
    if info.family != "first-order":
        raise ValueError(f"optimizer: {optimizer} is {info.family}; a remote optimizer is told gradients (see client.optimizers())")
    return info


def hyperparameters(info: optimizer_pb2.OptimizerInfo, given: Mapping[str, Any]) -> Dict[str, Any]:
    """Every hyperparameter of the row: the default or what was given; ``betas`` stands for beta1 and beta2.

    TypeError: a name that the optimizer does not have.
    """
    wanted = dict(given)
    if "betas" in wanted:
        wanted["beta1"], wanted["beta2"] = wanted.pop("betas")
    known = {row.name: getattr(row.default_value, row.default_value.WhichOneof("value")) for row in info.hyperparameters}
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise TypeError(f"{info.name} has no hyperparameter {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return {**known, **wanted}


class Options:
    """How tensors travel and what a crash may cost.

    durability: optod.Durability; None = every-step.  wire: "bf16" or "f16": gradients go out and parameters come back in half precision, the
    server keeps float32; None = as they are.  shared_memory: True, False or "auto".  patience: seconds over which a call is tried again while
    the server is away.  seed, clip_norm, labels, display_name, schedule: of the session.
    """

    def __init__(self, durability: Optional[Durability] = None, wire: Optional[str] = None, shared_memory: Union[bool, str] = "auto",
                 patience: float = 60.0, seed: int = 0, clip_norm: float = 0.0, labels: Optional[Mapping[str, str]] = None,
                 display_name: str = "", schedule: Optional[Schedule] = None) -> None:
        if wire not in (None, "bf16", "f16"):
            raise ValueError(f"wire: {wire!r}; must be \"bf16\", \"f16\" or None")
        self.durability, self.wire, self.shared_memory, self.patience = durability, wire, shared_memory, patience
        self.seed, self.clip_norm, self.labels, self.display_name = seed, clip_norm, labels, display_name
        self.schedule = schedule


class RemoteRule:
    """An optimizer on the server for one list of tensors.  For one thread.

    layout: {name: (shape, dtype)} in the order in which gradients will come.  The session is made by the first ``start``; ``attach`` takes one
    that is there.  The constructor has the server check optimizer, hyperparameters and layout; nothing is made then.
    """

    def __init__(self, client: Client, optimizer: str, hyper: Mapping[str, Any], layout: Mapping[str, Tuple[Tuple[int, ...], str]],
                 options: Options, no_decay: Sequence[str] = ()) -> None:
        self.client, self.optimizer, self.hyper, self.options = client, optimizer, dict(hyper), options
        self.layout = tensors.Layout.of(dict(layout), no_decay)
        self._no_decay = list(no_decay)
        self.session: Any = None
        self.stream: Optional[GradientStream] = None
        self.extra_bytes = 0
        self.steps = 0                 # made on the way from version 0 to the head
        self.version = self.seq = 0    # of the parameters here; updates applied when they were made
        self.result: Optional[TellResult] = None
        self._create(validate_only=True)

    # ---- the session

    def _shapes(self) -> Dict[str, Tuple[Tuple[int, ...], str]]:
        return {spec.name: (tuple(spec.shape), tensor_pb2.DType.Name(spec.dtype)[6:].lower()) for spec in self.layout.index.tensors}

    def _create(self, validate_only: bool = False) -> Any:
        o = self.options
        return self.client.sessions.create(
            self.optimizer, layout=self._shapes(), no_decay=self._no_decay, hyperparameters=self.hyper, seed=o.seed, clip_norm=o.clip_norm,
            schedule=o.schedule, durability=o.durability, labels=o.labels, display_name=o.display_name, validate_only=validate_only)

    def start(self, values: Mapping[str, np.ndarray]) -> None:
        """Makes the session with these parameters (bf16 as bits), unless there is one."""
        if self.session is not None:
            return
        session = self._create()
        session.push(values)
        self.session = session

    def attach(self, name: str, version: Optional[int] = None) -> None:
        """Goes on with a session that is there, at ``version`` (None = its head).

        ValueError: its optimizer or tensors are others.  FailedPrecondition: the version can no longer be rebuilt.
        """
        session = self.client.sessions.get(name)
        if session.info.optimizer.name != self.optimizer:
            raise ValueError(f"session {session.name}: its optimizer is {session.info.optimizer.name}, not {self.optimizer}")
        theirs = [(s.name, s.dtype, tuple(s.shape)) for s in session.info.layout.tensors]
        ours = [(s.name, s.dtype, tuple(s.shape)) for s in self.layout.index.tensors]
        if theirs != ours:
            wrong = next((f"{a} there, {b} here" for a, b in zip(theirs, ours) if a != b), f"{len(theirs)} tensors there, {len(ours)} here")
            raise ValueError(f"session {session.name}: its tensors are others: {wrong}")
        if version is not None and session.head_version != version:
            session.rollback(version)
        self._drop_stream()
        self.session = session
        self._count()

    def _count(self) -> None:
        self.session.refresh()
        self.version, self.seq = self.session.head_version, self.session.seq
        self.steps = self.session.versions[self.version].step

    def place(self) -> Dict[str, Any]:
        """Where the optimizer stands, for a checkpoint: session (None before the first step), version, optimizer, hyperparameters."""
        return {"session": self.session.name if self.session is not None else None,
                "version": self.session.head_version if self.session is not None else 0,
                "optimizer": self.optimizer, "hyperparameters": dict(self.hyper)}

    def pull(self) -> Dict[str, np.ndarray]:
        """The server's parameters of the head, as the layout has them."""
        return self.session.pull()

    # ---- steps

    def opened(self) -> GradientStream:
        """The stream, opened by the first call after ``start`` or ``attach``."""
        if self.session is None:
            raise RuntimeError("remote optimizer: there is no session yet; start or attach comes first")
        if self.stream is None:
            if self.session.info.state == session_pb2.Session.CLOSED:
                raise errors.FailedPrecondition(f"session {self.session.name} is closed; update(state=\"active\") opens it")
            self.stream = GradientStream(self.session, dtype=self._wire(), values_dtype=self.options.wire, extra_bytes=self.extra_bytes,
                                         shared_memory=self.options.shared_memory, patience=self.options.patience, reuse_values=True)
        return self.stream

    def _wire(self) -> Optional[str]:
        """Half precision only where the parameters are float32; others travel as they are."""
        dtypes = {spec.dtype for spec in self.layout.index.tensors}
        return self.options.wire if dtypes == {tensor_pb2.DTYPE_F32} else None

    @property
    def wire_dtypes(self) -> List[int]:
        """The dtype in which each tensor's gradient goes out."""
        wire = self._wire()
        return [tensors.dtype_of(wire) if wire else spec.dtype for spec in self.layout.index.tensors]

    def begin(self, extra: Sequence[Any] = (), absent: Iterable[int] = ()) -> None:
        """See GradientStream.begin.  LostSteps, Aborted: the server is not where the parameters here are; ``resync``."""
        stream = self.opened()
        stream.connect()
        if stream.seq < self.seq:
            raise LostSteps(f"session {self.session.name}: the server is at step {stream.seq}, the parameters here are of step {self.seq}; resync() "
                            f"goes on from the server's", reason="STEPS_LOST")
        if stream.head_version != self.version:
            raise errors.Aborted(f"session {self.session.name}: the head is version {stream.head_version}, the parameters here are of version "
                                 f"{self.version}; resync() goes on from the server's")
        stream.begin(extra, absent)

    def write(self, array: np.ndarray) -> None:
        self.opened().write(array)

    def commit(self, arrays: Sequence[np.ndarray], loss: Optional[float], lr: Optional[float]) -> TellResult:
        """See GradientStream.commit; ``result.values`` are overwritten by the next step.  LostSteps."""
        stream = self.opened()
        try:
            self.result = stream.commit(arrays, loss, lr)
        except errors.FailedPrecondition as error:
            if error.reason == "STEPS_LOST":
                raise LostSteps(error.message, reason=error.reason) from None
            raise
        self.steps += 1
        self.version, self.seq = self.result.head_version, self.result.seq
        return self.result

    def resync(self) -> Dict[str, np.ndarray]:
        """Goes on where the server is; returns its parameters."""
        self._drop_stream()
        self._count()
        return self.pull()

    def checkpoint(self) -> Dict[str, Any]:
        """``place()`` of a fork made here: durable whatever the session's durability, and untouched by later steps."""
        if self.session is None:
            return self.place()
        fork = self.session.fork(self.session.head_version)
        return {**self.place(), "session": fork.name, "version": fork.head_version}

    def _drop_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def close(self) -> None:
        """Lets go of the stream; the session stays. Idempotent."""
        self._drop_stream()
