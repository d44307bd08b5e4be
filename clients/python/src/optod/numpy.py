"""The remote optimizer for NumPy, JAX and whatever else gives arrays: optod.torch.RemoteOptimizer without PyTorch.

    opt = optod.numpy.RemoteOptimizer(params, "scale", lr=1e-3)       # params: {name: array}, nested dicts, lists and tuples
    for batch in data:
        loss, grads = value_and_grad(params, batch)
        params = opt.step(grads, loss=loss)                           # the same structure, new arrays

Arrays come back as NumPy arrays of the same dtype (JAX takes them as they are).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from optod import specs, tensors, zo
from optod.client import Client
from optod.remote import LostSteps, Options, RemoteRule, describe, hyperparameters, open_client
from optod.results import TellResult

__all__ = ["RemoteOptimizer", "LostSteps", "flatten", "unflatten", "rademacher", "hessian_z"]


def flatten(tree: Any, prefix: str = "") -> Dict[str, Any]:
    """{path: leaf} of nested dicts, lists and tuples, paths joined by dots ("layers.0.weight"); a leaf alone is called "param"."""
    if isinstance(tree, Mapping):
        items: Sequence[Tuple[str, Any]] = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, (list, tuple)):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return {prefix or "param": tree}
    out: Dict[str, Any] = {}
    for key, value in items:
        for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else key).items():
            if name in out:
                raise ValueError(f"params: the name {name!r} stands for two arrays")
            out[name] = leaf
    return out


def unflatten(tree: Any, leaves: Mapping[str, Any], prefix: str = "") -> Any:
    """The structure of ``tree`` with other leaves."""
    if isinstance(tree, Mapping):
        return type(tree)({key: unflatten(value, leaves, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()})
    if isinstance(tree, (list, tuple)):
        parts = [unflatten(value, leaves, f"{prefix}.{i}" if prefix else str(i)) for i, value in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return leaves[prefix or "param"]


class RemoteOptimizer:
    """One session for one tree of arrays.  For one thread; a context manager.

    optimizer, hyperparameters, address, token, client, durability, wire, shared_memory, seed, clip_norm, patience: as
    optod.torch.RemoteOptimizer.  no_decay: names that weight decay skips.  schedule: optod.Schedule of the session; or give ``lr`` to ``step``.
    session: name of a session to go on with: ``params`` are then read from it.

    TypeError, ValueError: a hyperparameter or an array that cannot be; what the server refuses is an OptodError.
    """

    def __init__(self, params: Any, optimizer: str = "adamw", *, address: Optional[str] = None, token: Optional[str] = None,
                 client: Optional[Client] = None, session: Optional[str] = None, durability: Optional[specs.Durability] = None,
                 wire: Optional[str] = None, shared_memory: Union[bool, str] = "auto", seed: int = 0, clip_norm: float = 0.0,
                 no_decay: Sequence[str] = (), schedule: Optional[specs.Schedule] = None, extra_bytes: int = 0, patience: float = 60.0,
                 labels: Optional[Mapping[str, str]] = None, display_name: str = "", **hyper: Any) -> None:
        self._client, self._owns_client = open_client(client, address, token, patience)
        try:
            self.info = describe(self._client, optimizer)
            self._tree = params
            leaves = {name: np.asarray(value) for name, value in flatten(params).items()}
            options = Options(durability, wire, shared_memory, patience, seed, clip_norm, labels, display_name, schedule)
            self.hyper = hyperparameters(self.info, hyper)
            layout = {name: (value.shape, value.dtype.name) for name, value in leaves.items()}
            self.rule = RemoteRule(self._client, optimizer, self.hyper, layout, options, no_decay)
            self.rule.extra_bytes = extra_bytes or (sum(v.size * 4 for v in leaves.values()) if "hessian_z" in self.info.tell_inputs else 0)
            if session is None:
                self.rule.start({name: np.asarray(value, order="C") for name, value in leaves.items()})
                self._values = {name: np.array(value) for name, value in leaves.items()}
            else:
                self.rule.attach(session)
                self._values = self.rule.pull()
        except BaseException:
            self.close()
            raise

    @property
    def params(self) -> Any:
        """The parameters as this object last saw them, in the structure given."""
        return unflatten(self._tree, self._values)

    @property
    def session(self) -> Any:
        """The optod.Session."""
        return self.rule.session

    @property
    def result(self) -> Optional[TellResult]:
        """What the server answered to the last step."""
        return self.rule.result

    @property
    def steps(self) -> int:
        """Steps on the way from version 0 to here."""
        return self.rule.steps

    def step(self, gradients: Any, loss: Optional[float] = None, lr: Optional[float] = None,
             extra: Optional[Mapping[str, np.ndarray]] = None) -> Any:
        """One update; returns the new parameters.

        gradients: the structure of params; None for a leaf without a gradient in this step.  lr: of this step, None = the session's.  extra: what
        the rule's tell_inputs name beyond "grad": {"hessian_z/<name>": array}, {"act/<layer>": ..., "pgrad/<layer>": ...}.
        ValueError names what is missing, unknown or of another shape or dtype.  LostSteps; OptodError.
        """
        given = {name: None if value is None else np.asarray(value) for name, value in flatten(gradients).items()}
        layout = self.rule.layout
        absent = [i for i, name in enumerate(layout.names) if name in given and given[name] is None]
        skip = [layout.names[i] for i in absent]
        arrays = layout.arrays({name: value for name, value in given.items() if value is not None}, "gradients", skip=skip)
        dtypes = [dtype for i, dtype in enumerate(self.rule.wire_dtypes) if i not in set(absent)]
        arrays = [_as_wire(value, dtype) for value, dtype in zip(arrays, dtypes)]
        more = {name: np.asarray(value, order="C") for name, value in (extra or {}).items()}
        self.rule.begin([tensors.spec_of(name, value) for name, value in more.items()], absent)
        arrays += list(more.values())
        for value in arrays:
            self.rule.write(value)
        result = self.rule.commit(arrays, None if loss is None else float(loss), lr)
        assert result.values is not None
        self._values = {name: self._own(name, value) for name, value in result.values.items()}
        return self.params

    def _own(self, name: str, value: np.ndarray) -> np.ndarray:
        """A copy in the parameter's dtype; half precision on the wire is widened."""
        want = tensors.numpy_dtype(self.rule.layout.specs[name].dtype)
        if value.dtype.itemsize == want.itemsize:
            return value.copy()
        return _widen(value)

    def resync(self) -> Any:
        """Goes on where the server is; returns its parameters."""
        self._values = self.rule.resync()
        return self.params

    # ---- checkpoints

    def state_dict(self) -> Dict[str, Any]:
        """Where the optimizer stands: plain values, to be kept beside the parameters."""
        return self.rule.place()

    def checkpoint(self) -> Dict[str, Any]:
        """As ``state_dict``, of a fork made now: durable at once, and unmoved by later steps."""
        return self.rule.checkpoint()

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Goes on where ``state`` was taken; returns the parameters of that version.  ValueError: it is another optimizer's."""
        if state["optimizer"] != self.info.name or {**state["hyperparameters"], "lr": 0} != {**self.hyper, "lr": 0}:
            raise ValueError(f"load_state_dict: the state is of {state['optimizer']} {dict(state['hyperparameters'])}; this one is {self.info.name} "
                             f"{self.hyper}")
        self.rule.attach(state["session"], state["version"])
        return self.resync()

    def close(self) -> None:
        """Lets go of the stream and the connection; the session stays. Idempotent."""
        if hasattr(self, "rule"):
            self.rule.close()
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> "RemoteOptimizer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _as_wire(value: np.ndarray, dtype: int) -> np.ndarray:
    """float32 rounded to the wire's half precision, to nearest even; everything else as it is."""
    width = tensors.numpy_dtype(dtype).itemsize
    if value.dtype.itemsize == width:
        return value
    if dtype == tensors.dtype_of("f16"):
        return value.astype(np.float16)
    bits = np.asarray(value, order="C").view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(value), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _widen(value: np.ndarray) -> np.ndarray:
    if value.dtype == np.float16:
        return value.astype(np.float32)
    return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def rademacher(seed: int, step: int, tensor: int, sample: int, shape: Tuple[int, ...]) -> np.ndarray:
    """Signs of optod.torch.rademacher, the same ones, as float32."""
    n = int(np.prod(shape, dtype=np.int64))
    words = zo.random_bits(seed, step, (1 << 31) + sample, tensor, 0, (n + 31) // 32)
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")[:n]
    return (bits.astype(np.float32) * 2 - 1).reshape(shape)


def hessian_z(gradient: Callable[[Any], Any], params: Any, seed: int, step: int, epsilon: float = 1e-4) -> Dict[str, np.ndarray]:
    """{"hessian_z/<name>": z * (H z)} by a central difference of gradients, for programs without a second derivative.

    gradient: params -> gradients, of one and the same batch; two calls.  Use float64 parameters or an epsilon that fits their precision: the
    error is O(epsilon^2) plus rounding over epsilon.
    """
    leaves = {name: np.asarray(value) for name, value in flatten(params).items()}
    z = {name: rademacher(seed, step, i, 0, value.shape).astype(value.dtype) for i, (name, value) in enumerate(leaves.items())}
    def at(sign: float) -> Dict[str, np.ndarray]:
        return flatten(gradient(unflatten(params, {name: value + value.dtype.type(sign * epsilon) * z[name] for name, value in leaves.items()})))
    above, below = at(1.0), at(-1.0)
    return {"hessian_z/" + name: z[name] * (np.asarray(above[name]) - np.asarray(below[name])) / leaves[name].dtype.type(2 * epsilon) for name in leaves}
