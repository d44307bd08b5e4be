"""``RemoteOptimizer``: a torch.optim.Optimizer whose state and arithmetic live on an optod server.

    backward ──► gradients ──► server: rule, state, versions ──► new parameters ──► p.copy_()
       └─ overlap=True: each gradient leaves as soon as backward has finished it

    opt = RemoteOptimizer(model, "adamw", lr=1e-3)
    for x, y in data:
        opt.zero_grad()
        loss_of(model(x), y).backward()
        opt.step()

Every parameter group is a session of its own, so groups may differ in every hyperparameter and even in the optimizer.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np
import torch
from torch import nn

from optod import specs, tensors
from optod.client import Client
from optod.remote import LostSteps, Options, RemoteRule, describe, hyperparameters, open_client
from optod.results import TellResult
from optod.torch import wire
from optod.torch.curvature import hessian_z
from optod.torch.statistics import LayerStatistics
from optod.torch.upload import Upload

__all__ = ["RemoteOptimizer"]

_OWN = ("params", "param_names", "names", "optimizer", "initial_lr")   # keys of a group that are no hyperparameters


class RemoteOptimizer(torch.optim.Optimizer):
    """A drop-in torch.optim.Optimizer.

    params: an nn.Module, parameters, (name, parameter) pairs, or group dicts. Names matter to rules that tell layers apart (scale, muon, mkor,
    kfac, ...): give the module or ``model.named_parameters()``; without names they are "param.0", "param.1", ...
    A group dict may hold any hyperparameter and ``optimizer``; a group with ``weight_decay=0`` is the usual way to exempt biases and norms.

    optimizer and hyperparameters: a row of the server's table (``optoctl optimizers``); what is not given takes the row's default. Only ``lr``
    may change afterwards (schedulers do); the rate of a step travels with it.

    address, token: as optod.connect; or ``client``. durability: optod.Durability, None = every step is on disk when ``step`` returns.
    wire: "bf16" or "f16": gradients out and parameters back in half precision, the server keeps float32.
    shared_memory: "auto" (when the server is on this machine), True (or fail), False. overlap: gradients are sent while backward goes on; for one
    backward pass a step (more are noticed and everything is sent again). patience: seconds that a step waits for a server that is away.
    session: name of a session to go on with (one group only); its parameters are written into ``params``.

    adahessian: call ``loss.backward(create_graph=opt.needs_graph)``; z * Hz is computed here, from ``seed`` and the step, as the mean of
    ``hessian_samples`` draws. mkor, mkor-h, kfac: hooks are put on ``model`` (default: the module given as params). mkor-h: hand the loss to
    ``step(closure)`` or ``step(loss=loss)``.

    step raises RuntimeError when no parameter has a gradient or when a parameter was changed behind the optimizer's back (``rebase`` accepts
    such changes), LostSteps when the server came back without acknowledged steps that were not durable, OptodError for what the server refuses;
    then nothing was stepped in that group.
    """

    def __init__(self, params: Any, optimizer: str = "adamw", *, address: Optional[str] = None, token: Optional[str] = None,
                 client: Optional[Client] = None, model: Optional[nn.Module] = None, session: Optional[str] = None,
                 durability: Optional[specs.Durability] = None, wire: Optional[str] = None, shared_memory: Union[bool, str] = "auto",
                 overlap: bool = False, seed: int = 0, clip_norm: float = 0.0, hessian_samples: int = 1, patience: float = 60.0,
                 labels: Optional[Mapping[str, str]] = None, **hyper: Any) -> None:
        self._options = Options(durability, wire, shared_memory, patience, seed, clip_norm, labels)
        self._client, self._owns_client = open_client(client, address, token, patience)
        self._optimizer, self._overlap, self._samples, self._seed = optimizer, overlap, hessian_samples, seed
        self._model = params if isinstance(params, nn.Module) else model
        self._statistics: Optional[LayerStatistics] = None
        self._members: List[_Member] = []
        self._waiting = dict(hyper)
        self._named: Dict[int, str] = {}
        try:
            info = describe(self._client, optimizer)
            super().__init__(self._without_names(params), hyperparameters(info, hyper))
            if session is not None:
                if len(self._members) != 1:
                    raise ValueError(f"session: given for {len(self._members)} parameter groups; a session is one group")
                self._members[0].attach(session, None)
        except BaseException:
            self.close()
            raise

    # ---- groups

    def _without_names(self, params: Any) -> list:
        """What torch's constructor takes; names are kept aside."""
        if isinstance(params, nn.Module):
            params = params.named_parameters()
        if isinstance(params, torch.Tensor):
            raise TypeError("params: a single tensor; give an iterable of tensors, (name, tensor) pairs, group dicts, or a module")
        given = list(params)
        if given and isinstance(given[0], dict):
            return [{**group, "params": self._strip(group["params"])} for group in given]
        return self._strip(given)

    def _strip(self, params: Any) -> list:
        out = []
        for item in [params] if isinstance(params, torch.Tensor) else list(params):
            if isinstance(item, tuple):
                self._named[id(item[1])] = item[0]
                item = item[1]
            out.append(item)
        return out

    def add_param_group(self, param_group: Dict[str, Any]) -> None:
        """A further group: a further session. Its optimizer may be another one (key ``optimizer``)."""
        group = {**param_group, "params": self._strip(param_group["params"])}
        optimizer = group.setdefault("optimizer", self._optimizer)
        info = describe(self._client, optimizer)
        given = {key: value for key, value in group.items() if key not in _OWN}
        inherited = dict(self._waiting)
        if optimizer != self._optimizer:      # common hyperparameters go only where they are known
            known = {row.name for row in info.hyperparameters}
            inherited = {key: value for key, value in inherited.items() if key in known or key == "betas"}
        group.update(hyperparameters(info, {**inherited, **given}))
        group.pop("betas", None)
        if optimizer != self._optimizer:
            for key in self.defaults:
                group.setdefault(key, None)
        super().add_param_group(group)
        count = sum(len(member.params) for member in self._members)
        names = [self._named.get(id(p), f"param.{count + i}") for i, p in enumerate(group["params"])]
        hyper = {row.name: group[row.name] for row in info.hyperparameters}
        member = _Member(self, self.param_groups[-1], names, info, hyper)
        self._members.append(member)
        if "act" in info.tell_inputs and self._statistics is None:
            if self._model is None:
                raise ValueError(f"{optimizer}: needs statistics of the layers; give the module as params, or as model=")
            self._statistics = LayerStatistics(self._model, rows=optimizer == "kfac", clipping=float(hyper.get("clipping", 0.0)))

    # ---- stepping

    @property
    def needs_graph(self) -> bool:
        """Whether the next step needs gradients that can be differentiated again: ``loss.backward(create_graph=opt.needs_graph)``."""
        return any(member.needs_graph for member in self._members)

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None, *, loss: Optional[float] = None) -> Any:  # type: ignore[override]
        """One update of every group. Returns what the closure returned. loss: kept with the version (the closure's by default)."""
        value: Any = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
            if loss is None and value is not None:
                loss = float(value)
        if not any(p.grad is not None for group in self.param_groups for p in group["params"]):
            raise RuntimeError("step: no parameter has a gradient; call loss.backward() first")
        statistics = self._take_statistics()
        for member in self._members:
            member.step(None if loss is None else float(loss), statistics)
        return value

    def _take_statistics(self) -> Dict[str, torch.Tensor]:
        if self._statistics is None:
            return {}
        found = self._statistics.take()
        if not found and any(member.statistics_due for member in self._members):
            raise RuntimeError("step: no layer statistics were seen; the loss must come from the module that was given")
        return found

    def rebase(self) -> None:
        """Takes the parameters as they are here: new sessions start from them, with fresh optimizer state."""
        for member in self._members:
            member.restart()

    def resync(self) -> None:
        """Takes the parameters as the server has them (after LostSteps, or when somebody else moved the session)."""
        for member in self._members:
            if member.rule.session is not None:
                member.write(member.rule.resync())

    # ---- checkpoints

    def state_dict(self) -> Dict[str, Any]:
        """torch's groups, and under "optod" where each group stands: session, version, optimizer, hyperparameters. The state itself stays on
        the server. A version can be gone back to while it is kept (two snapshots back, and every snapshot); ``checkpoint`` pins one."""
        return {**super().state_dict(), "optod": [member.rule.place() for member in self._members]}

    def checkpoint(self) -> Dict[str, Any]:
        """As ``state_dict``, of forks made now: durable at once, and unmoved by later steps."""
        return {**super().state_dict(), "optod": [member.rule.checkpoint() for member in self._members]}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Goes on where the state dict was taken: sessions are attached and rolled back to their version, parameters are written from the server.

        ValueError: it is another optimizer's, or groups, tensors or hyperparameters differ. FailedPrecondition: the version is no longer kept.
        """
        places = state_dict.get("optod")
        if places is None:
            raise ValueError("load_state_dict: this is no state of a RemoteOptimizer (no entry \"optod\")")
        if len(places) != len(self._members):
            raise ValueError(f"load_state_dict: {len(places)} parameter groups; this optimizer has {len(self._members)}")
        for member, place in zip(self._members, places):
            member.check_place(place)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "optod"})
        for member, group in zip(self._members, self.param_groups):
            member.group = group
        for member, place in zip(self._members, places):
            if place["session"] is not None:
                member.attach(place["session"], place["version"])

    # ---- what can be seen

    @property
    def sessions(self) -> List[Any]:
        """The optod.Session of every group; None before its first step."""
        return [member.rule.session for member in self._members]

    @property
    def results(self) -> List[Optional[TellResult]]:
        """What the server answered to the last step of every group: seq, durable_version, figures, timings."""
        return [member.rule.result for member in self._members]

    @property
    def transport(self) -> List[str]:
        """"shared-memory" or "chunks" for every group, "" before its first step."""
        return [member.rule.stream.transport if member.rule.stream is not None else "" for member in self._members]

    def close(self) -> None:
        """Lets go of streams, hooks and the connection. Sessions stay on the server. Idempotent."""
        for member in self._members:
            member.close()
        if self._statistics is not None:
            self._statistics.remove()
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> "RemoteOptimizer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Member:
    """One parameter group and its session."""

    def __init__(self, owner: RemoteOptimizer, group: Dict[str, Any], names: List[str], info: Any, hyper: Dict[str, Any]) -> None:
        if len(set(names)) != len(names):
            double = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"params: names are given twice: {', '.join(double[:5])}")
        self.owner, self.group, self.names, self.info = owner, group, names, info
        self._hyper = hyper
        # Backward finishes the last layers first: that is the order on the wire.
        self._order = list(range(len(names)))[::-1]
        self._inputs = set(info.tell_inputs)
        if owner._overlap and self._inputs & {"hessian_z", "act"}:
            raise ValueError(f"overlap: {info.name} needs more than gradients, which is known after backward only")
        self.rule = self._new_rule()
        self._seen: List[int] = []        # version counters of the parameters as this class left them
        self._upload = Upload(self, owner._options) if owner._overlap else None

    def _new_rule(self) -> RemoteRule:
        layout = {}
        for i in self._order:
            p = self.params[i]
            layout[self.names[i]] = (tuple(p.shape), wire.dtype_name(self.names[i], p))
        rule = RemoteRule(self.owner._client, self.info.name, self._hyper, layout, self.owner._options)
        rule.extra_bytes = sum(spec.numel() * 4 for spec in self.params) if "hessian_z" in self._inputs else 0
        return rule

    @property
    def params(self) -> List[torch.Tensor]:
        return self.group["params"]

    @property
    def ordered(self) -> List[torch.Tensor]:
        """Parameters in layout order."""
        return [self.params[i] for i in self._order]

    # ---- session

    def _ensure_session(self) -> None:
        if self.rule.session is None:
            self.rule.start({self.names[i]: wire.bits_array(p.detach().cpu().contiguous())
                             for i, p in zip(self._order, self.ordered)})
            self._note()

    def attach(self, session: str, version: Optional[int]) -> None:
        self.rule.attach(session, version)
        self.write(self.rule.pull())

    def check_place(self, place: Mapping[str, Any]) -> None:
        """ValueError when a checkpoint's entry is for another optimizer."""
        if place["optimizer"] != self.info.name:
            raise ValueError(f"load_state_dict: a group of {place['optimizer']}; this one is {self.info.name}")
        fixed = {key: value for key, value in self._hyper.items() if key != "lr"}
        theirs = {key: value for key, value in place["hyperparameters"].items() if key != "lr"}
        wrong = sorted(key for key in set(fixed) | set(theirs) if fixed.get(key) != theirs.get(key))
        if wrong:
            raise ValueError("load_state_dict: hyperparameters differ: " +
                             ", ".join(f"{key} {theirs.get(key)!r} there, {fixed.get(key)!r} here" for key in wrong))

    def restart(self) -> None:
        self.rule.close()
        self.rule = self._new_rule()
        self._seen = []

    def write(self, values: Mapping[str, np.ndarray]) -> None:
        """New parameters into the model, whatever they came as."""
        stream = self.rule.stream
        specs_of = stream.values_layout.specs if stream is not None and self.rule.result is not None else self.rule.layout.specs
        with torch.no_grad():
            for i, p in zip(self._order, self.ordered):
                name = self.names[i]
                array = values[name]
                spec = specs_of[name] if array.dtype.itemsize == _width(specs_of[name]) else self.rule.layout.specs[name]
                p.copy_(wire.from_flat(array, spec.dtype))
        self._note()

    def _note(self) -> None:
        self._seen = [p._version for p in self.params]

    # ---- a step

    @property
    def _next(self) -> int:
        return self.rule.steps + 1

    @property
    def needs_graph(self) -> bool:
        return "hessian_z" in self._inputs and (self._next - 1) % int(self._hyper["update_each"]) == 0

    @property
    def statistics_due(self) -> bool:
        if "act" not in self._inputs:
            return False
        t = self._next
        every = int(self._hyper.get("inv_freq", self._hyper.get("factor_every", 1)))
        return t <= int(self._hyper.get("warmup_steps", 0)) or (t - 1) % every == 0

    def step(self, loss: Optional[float], statistics: Mapping[str, torch.Tensor]) -> None:
        if all(p.grad is None for p in self.params):
            return                                      # as torch's own: a group without gradients stands still
        self._check()
        self._ensure_session()
        extra = self._extra(statistics)
        gradients = [p.grad for p in self.ordered]
        if self._upload is not None and self._upload.complete(gradients):
            arrays = self._upload.arrays()
        else:
            arrays = self._send(gradients, extra)
        try:
            result = self.rule.commit(arrays, loss, float(self.group["lr"]))
        finally:
            if self._upload is not None:
                self._upload.reset()
        assert result.values is not None
        self.write(result.values)

    def _send(self, gradients: List[Optional[torch.Tensor]], extra: Dict[str, np.ndarray]) -> List[np.ndarray]:
        self.rule.begin([tensors.spec_of(name, value) for name, value in extra.items()], [i for i, g in enumerate(gradients) if g is None])
        arrays = []
        for gradient, dtype in zip(gradients, self.rule.wire_dtypes):
            if gradient is not None:
                arrays.append(wire.as_array(gradient, dtype))
                self.rule.write(arrays[-1])
        for value in extra.values():
            arrays.append(value)
            self.rule.write(value)
        return arrays

    def _extra(self, statistics: Mapping[str, torch.Tensor]) -> Dict[str, np.ndarray]:
        """What the rule needs beyond gradients in this step."""
        out: Dict[str, torch.Tensor] = {}
        if self.needs_graph:
            with torch.enable_grad():
                products = hessian_z([p.grad for p in self.params], self.params, self.owner._seed, self._next, self.owner._samples)
            for name, p, product in zip(self.names, self.params, products):
                if product is not None:
                    out["hessian_z/" + name] = product
        if "hessian_z" in self._inputs:
            for p in self.params:
                if p.grad is not None and p.grad.requires_grad:
                    p.grad = p.grad.detach()            # lets go of the graph
        if self.statistics_due:
            for name, value in statistics.items():
                if name.split("/", 1)[1] + ".weight" in self.rule.layout.specs:
                    out[name] = value
        return {name: value.detach().to("cpu", torch.float64 if value.dtype == torch.float64 else torch.float32).contiguous().numpy()
                for name, value in out.items()}

    def _check(self) -> None:
        for name, value in self._hyper.items():
            if name != "lr" and self.group.get(name, value) != value:
                raise ValueError(f"param group: {name} was changed from {value!r} to {self.group[name]!r}; a session's hyperparameters are fixed, "
                                 f"only lr may change")
        for name, p in zip(self.names, self.params):
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise RuntimeError(f"parameter {name!r}: its gradient is sparse; remote optimizers take dense ones")
            if p.grad.shape != p.shape:
                raise RuntimeError(f"parameter {name!r}: its gradient has shape {tuple(p.grad.shape)}, the parameter {tuple(p.shape)}")
        if self._seen:
            changed = [name for name, p, seen in zip(self.names, self.params, self._seen) if p._version != seen]
            if changed:
                raise RuntimeError(f"parameter {changed[0]!r} was changed since the last step, which the server does not know; rebase() starts "
                                   f"again from the values here, resync() takes the server's")

    def close(self) -> None:
        if self._upload is not None:
            self._upload.close()
        self.rule.close()


def _width(spec: Any) -> int:
    return tensors.numpy_dtype(spec.dtype).itemsize
