"""Which elements a zeroth-order direction moves: blocks and random masks, as the session's hyperparameters name them (optim/zo/support.h).

A direction of a session with ``blocks`` perturbs the tensors of one block: number ``query // queries``.  A mask leaves the elements still whose word of
the random stream (seed, step // mask_every, 2**32 - 1) falls below the tensor's ratio.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

from optod import zo

__all__ = ["Support", "global_mask_ratios"]

MASK_QUERY = 2**32 - 1
_KEPT_ELEMENTS = 1 << 22      # masks are kept until the next is drawn, up to this many elements (4 MiB)


class Support:
    """values: the hyperparameters as {name: number or text}; names, sizes: of the layout's tensors."""

    def __init__(self, values: Mapping[str, Any], names: Sequence[str], sizes: Sequence[int]) -> None:
        self._queries = int(values.get("queries", 1))
        self._every, self._normal = int(values.get("mask_every", 1)), values.get("mask_law") == "normal"
        self._sizes = list(sizes)
        self._blocks = _blocks(str(values.get("blocks", "")), names)
        ratios = str(values.get("mask_ratios", ""))
        self._ratios = [float(r) for r in ratios.split(",")] if ratios else [float(values.get("mask_ratio", 0.0))] * len(self._sizes)
        self.masked = any(ratio > 0 for ratio in self._ratios)
        self._kept: Dict[tuple, np.ndarray] = {}

    def moves(self, query: int, tensor: int) -> bool:
        """Whether direction ``query`` moves the tensor."""
        return self._blocks is None or query // self._queries == self._blocks[tensor]

    def open(self, seed: int, step: int, tensor: int) -> Optional[np.ndarray]:
        """True where an element is not masked, bool [size]; None = everywhere."""
        ratio = self._ratios[tensor]
        if ratio <= 0:
            return None
        mask_step = step // self._every
        key = (seed, mask_step, tensor)
        if key in self._kept:
            return self._kept[key]
        size = self._sizes[tensor]
        if self._normal:
            made = zo.normal(seed, mask_step, MASK_QUERY, tensor, 0, size).astype(np.float64) >= ratio
        else:
            made = zo.random_bits(seed, mask_step, MASK_QUERY, tensor, 0, size) >= ratio * 2.0**32
        if sum(self._sizes) <= _KEPT_ELEMENTS:
            if any(kept[:2] != key[:2] for kept in self._kept):
                self._kept.clear()
            self._kept[key] = made
        return made

    def add_scaled(self, out: np.ndarray, z: Optional[np.ndarray], seed: int, step: int, query: int, tensor: int, scale: np.float32) -> None:
        """out += scale * z in place where the direction moves it; z: of the whole tensor, None = drawn here.  A value that stays still keeps its bits."""
        if not self.moves(query, tensor):
            return
        kept = self.open(seed, step, tensor)
        if kept is None:
            if z is None:
                zo.add_scaled_normal(out, seed, step, query, tensor, scale)
            else:
                out += z * scale
            return
        if z is None:
            z = zo.normal(seed, step, query, tensor, 0, out.size).reshape(out.shape)
        np.add(out, z * scale, out=out, where=kept.reshape(out.shape))


def _blocks(text: str, names: Sequence[str]) -> Optional[List[int]]:
    """The block of every tensor, None = one block.  The server has checked the text."""
    if not text:
        return None
    if text == "each":
        return list(range(len(names)))
    blocks = [tuple(prefix for prefix in block.split(",") if prefix) for block in text.split(";")]
    return [next(b for b, prefixes in enumerate(blocks) if name.startswith(prefixes)) for name in names]


def global_mask_ratios(params: Mapping[str, np.ndarray], ratio: float) -> str:
    """``mask_ratios`` of ZO-Bench's global scheme: tau = the ``ratio`` quantile of |w| over all weights; a tensor's ratio is the fraction of its |w| that
    is <= tau.

        client.sessions.create("zo-sgd", params, mask_ratios=optod.zo_support.global_mask_ratios(params, 0.2), mask_every=100)
    """
    sizes = np.concatenate([np.abs(value).ravel() for value in params.values()])
    rank = min(sizes.size - 1, int(ratio * sizes.size))
    tau = np.partition(sizes, rank)[rank]
    return ",".join(repr(float(np.mean(np.abs(value) <= tau))) for value in params.values())
