"""Layer statistics for MKOR and KFAC, collected by hooks from an unmodified model.

    Linear   x [rows, in], dL/dy [rows, out], all leading dimensions flattened to rows
    Conv2d   patches of one image [places, in_channels * kernel], dL/dy [places, out_channels], one row an image

    MKOR  act/L   [in]   mean over rows of x, entries clipped to +-clipping first              (Mozaffari et al. 2023, Sec. 3.1)
          pgrad/L [out]  mean over rows of rows * dL/dy, clipped likewise, for a row-mean loss
    KFAC  act/L   [rows, in], pgrad/L [rows, out]: the rows themselves                          (Martens and Grosse 2015, Sec. 3)

Conv2d: a = mean over images of the mean over places of the patches; g = mean over images of images * (sum over places of dL/dy) / places; for KFAC
every place is a row. The constant 1 of a bias is the server's to add. Passes without a backward (validation) leave nothing behind.
"""

from __future__ import annotations

from typing import Dict, List, Optional

import torch
from torch import nn

__all__ = ["LayerStatistics"]


class LayerStatistics:
    """Hooks on every Linear and Conv2d (groups = 1) of a model.

    rows: KFAC's rows instead of MKOR's means.  clipping: 0 = none.  scale: what the loss was multiplied by (loss scaling); gradients are divided
    by it.  Several backward passes before ``take`` (gradient accumulation) are averaged.  enabled: False lets passes go by unseen.
    """

    def __init__(self, model: nn.Module, rows: bool = False, clipping: float = 100.0) -> None:
        self.enabled = True
        self.scale = 1.0
        self._rows, self._clipping = rows, clipping
        self._inputs: Dict[str, List[torch.Tensor]] = {}
        self._done: Dict[str, Dict[str, List[torch.Tensor]]] = {}
        self.layers: Dict[str, nn.Module] = {}
        self._hooks = []
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
                self.layers[name] = layer
                self._hooks.append(layer.register_forward_hook(self._forward_hook(name)))

    def remove(self) -> None:
        """Takes the hooks off. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _forward_hook(self, name: str):
        def seen(layer: nn.Module, inputs, output: torch.Tensor) -> None:
            if not self.enabled or not torch.is_grad_enabled() or not output.requires_grad:
                return
            x = inputs[0].detach()

            def back(gradient: torch.Tensor) -> None:
                if self.enabled:
                    self._collect(name, layer, x, gradient.detach())
            output.register_hook(back)
        return seen

    def _collect(self, name: str, layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            act, pgrad = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
            count = pgrad.shape[0]
        else:
            patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
            places = gradient.flatten(2).transpose(1, 2)                       # [images, places, out]
            count = gradient.shape[0]
            if self._rows:
                act, pgrad = patches.reshape(-1, patches.shape[-1]), places.reshape(-1, places.shape[-1])
            else:
                act, pgrad = patches.mean(dim=1), places.sum(dim=1) / places.shape[1]
        if self.scale != 1.0:
            pgrad = pgrad / self.scale
        if not self._rows:
            act, pgrad = self._clip(act).mean(dim=0), self._clip(pgrad * count).mean(dim=0)
        into = self._done.setdefault(name, {"act": [], "pgrad": []})
        into["act"].append(act)
        into["pgrad"].append(pgrad)

    def _clip(self, value: torch.Tensor) -> torch.Tensor:
        return value.clamp(-self._clipping, self._clipping) if self._clipping > 0 else value

    def take(self, names: Optional[List[str]] = None) -> Dict[str, torch.Tensor]:
        """{"act/<layer>": ..., "pgrad/<layer>": ...} of the passes since the last call, which are forgotten.

        names: layers that are wanted, None = all that were seen.  RuntimeError: a wanted layer saw no backward pass.
        """
        out: Dict[str, torch.Tensor] = {}
        for name in names if names is not None else sorted(self._done):
            found = self._done.get(name)
            if found is None:
                raise RuntimeError(f"layer {name!r}: no backward pass went through it since the last step")
            for kind, seen in found.items():
                if self._rows:
                    out[f"{kind}/{name}"] = torch.cat(seen) if kind == "act" else torch.cat(seen) / len(seen)
                else:
                    out[f"{kind}/{name}"] = torch.stack(seen).mean(dim=0) if len(seen) > 1 else seen[0]
        self._done.clear()
        return out
