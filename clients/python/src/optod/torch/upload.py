"""Gradients on their way while backward goes on.

    backward (autograd's thread)      hook: parameter i is ready ─┐
                                                                  ▼ in layout order, without gaps
    one thread of our own             begin, write, write, write ...                     commit: by step()

The layout's order is that in which backward usually finishes; what comes early waits for its turn. A gradient that changes after its upload
(a second backward pass, clipping in place, unscaling) is noticed at ``complete``: then the step is sent anew.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any, List, Optional, Tuple

import numpy as np
import torch

from optod.torch import wire

__all__ = ["Upload"]


class Upload:
    """Of one parameter group (``member``). Hooks run on autograd's threads, one at a time for one model; the rest on the caller's."""

    def __init__(self, member: Any, options: Any) -> None:
        self._member = member
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="optod-upload")
        self._hooks = []
        for i, p in enumerate(member.ordered):
            if not hasattr(p, "register_post_accumulate_grad_hook"):
                raise RuntimeError("overlap: needs PyTorch 2.1 or newer")
            self._hooks.append(p.register_post_accumulate_grad_hook(lambda parameter, i=i: self._ready(i, parameter)))
        self.reset()

    def reset(self) -> None:
        """Forgets the step."""
        self._sent: List[Optional[Tuple[torch.Tensor, int]]] = [None] * len(self._member.ordered)   # gradient, its version counter
        self._waiting: List[Optional[torch.Tensor]] = [None] * len(self._sent)
        self._next = 0
        self._again = False
        self._work: List[concurrent.futures.Future] = []

    def _ready(self, i: int, parameter: torch.Tensor) -> None:
        if self._sent[i] is not None:
            self._again = True          # a second pass: what was sent is stale
        if self._again:
            return
        if not self._work:
            self._member._ensure_session()
            self._work.append(self._thread.submit(self._member.rule.begin))
        gradient = parameter.grad
        assert gradient is not None
        self._sent[i] = (gradient, gradient._version)
        self._waiting[i] = gradient
        while self._next < len(self._waiting) and self._waiting[self._next] is not None:
            at, self._waiting[self._next] = self._next, self._waiting[self._next]
            self._work.append(self._thread.submit(self._write, at, self._waiting[at]))
            self._next += 1

    def _write(self, i: int, gradient: torch.Tensor) -> np.ndarray:
        array = wire.as_array(gradient, self._member.rule.wire_dtypes[i])
        self._member.rule.write(array)
        return array

    def complete(self, gradients: List[Optional[torch.Tensor]]) -> bool:
        """Waits for the thread; whether exactly these gradients have gone out, unchanged."""
        done = [future.exception() for future in self._work]
        if not self._work or self._again or self._next < len(self._sent) or any(done):
            return False
        return all(sent is not None and g is sent[0] and g._version == sent[1] for g, sent in zip(gradients, self._sent))

    def arrays(self) -> List[np.ndarray]:
        """What went out, in order."""
        return [future.result() for future in self._work[1:]]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._thread.shutdown()
