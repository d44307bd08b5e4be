"""z * (H z) for AdaHessian (Yao et al. 2021, Alg. 1, lines 4 to 6; Hutchinson's estimator of the Hessian's diagonal) by a second backward pass.

The loss must have been differentiated with ``create_graph=True``, so that the gradients can be differentiated again. The spatial averaging of the
result (variants image, block, fairseq, lazy) is the server's, by the session's hyperparameter ``variant``.
"""

from __future__ import annotations

from typing import List, Optional, Sequence

import numpy as np
import torch

from optod import zo

__all__ = ["rademacher", "hessian_z"]

_QUERY = 1 << 31   # keeps these draws apart from the zeroth-order directions of the same seed


def rademacher(seed: int, step: int, tensor: int, sample: int, like: torch.Tensor) -> torch.Tensor:
    """Signs +1 or -1, each with probability 1/2, of a tensor's shape, dtype and device.

    A pure function of (seed, step, tensor's position, sample): bit k of word w of the counter-based stream (Philox 4x32-10) is element
    32 w + k. Every rank of a data-parallel run draws the same.
    """
    n = like.numel()
    words = zo.random_bits(seed, step, _QUERY + sample, tensor, 0, (n + 31) // 32)
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")[:n]
    signs = torch.from_numpy(bits.astype(np.float32) * 2 - 1)
    return signs.reshape(like.shape).to(device=like.device, dtype=like.dtype)


def hessian_z(gradients: Sequence[Optional[torch.Tensor]], parameters: Sequence[torch.Tensor], seed: int, step: int,
              samples: int = 1, retain_graph: bool = False) -> List[Optional[torch.Tensor]]:
    """The mean over ``samples`` draws of z * (H z), signed, one tensor a parameter; None where the gradient is None.

    gradients: with a graph (``loss.backward(create_graph=True)`` or ``torch.autograd.grad(..., create_graph=True)``).  step: 1, 2, ...;
    draws of another step are others.  A parameter that the gradients do not depend on has H z = 0.
    RuntimeError: no gradient has a graph.
    """
    here = [i for i, g in enumerate(gradients) if g is not None]
    if not any(gradients[i].requires_grad for i in here):
        raise RuntimeError("adahessian: the gradients have no graph to be differentiated again; call loss.backward(create_graph=True)")
    graph = [i for i in here if gradients[i].requires_grad]
    total: List[Optional[torch.Tensor]] = [None] * len(parameters)
    for i in here:
        total[i] = torch.zeros_like(parameters[i])
    for sample in range(samples):
        z = {i: rademacher(seed, step, i, sample, parameters[i]) for i in here}
        keep = retain_graph or sample + 1 < samples
        products = torch.autograd.grad([gradients[i] for i in graph], [parameters[i] for i in here], grad_outputs=[z[i] for i in graph],
                                       retain_graph=keep, allow_unused=True)
        with torch.no_grad():
            for i, product in zip(here, products):
                if product is not None:
                    total[i] += z[i] * product
    if samples > 1:
        for i in here:
            total[i] /= samples
    return total
