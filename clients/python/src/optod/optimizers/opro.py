"""OPRO: proposals from past values and what was said of them, without the graph (Yang et al., 2024)."""

from __future__ import annotations

from typing import Any, Dict, Optional

from optod.optimizers.optoprime import OptoPrime

__all__ = ["OPRO"]


class OPRO(OptoPrime):
    """memory_size: past pairs shown; 0 = all that fit."""

    server_name = "opro"
    default_objective = "Come up with a new variable in accordance to feedback."

    def _hyperparameters(self, temperature: Optional[float]) -> Dict[str, Any]:
        out = super()._hyperparameters(temperature)
        out.pop("include_example", None)
        return out
