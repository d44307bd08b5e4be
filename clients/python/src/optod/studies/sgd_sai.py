"""SGD-SaI (Xu et al. 2024) against SGD, momentum SGD and AdamW, on a small language model."""

from __future__ import annotations

from typing import Any, List, Mapping

from optod.studies import language_model
from optod.studies.runner import Best, Claim, Setting

__all__ = ["NAME", "TITLE", "METRIC", "FAMILY", "needs", "settings", "run", "claims"]

NAME, METRIC, FAMILY = "sgd-sai", "perplexity", "language-model"
TITLE = "SGD-SaI: momentum SGD scaled at initialisation, character language model, 600 steps"
needs, run = language_model.needs, language_model.run

SETTINGS = [
    Setting("sgd-sai", {"optimizer": "sgd-sai", "weight_decay": 0.0}, (3e-3, 1e-2, 3e-2)),
    Setting("sgdm", {"optimizer": "sgd", "momentum": 0.9}, (0.1, 0.3, 1.0)),
    Setting("sgd", {"optimizer": "sgd"}, (0.5, 1.0, 2.0, 4.0)),
    Setting("adamw", {"optimizer": "adamw", "weight_decay": 0.1}, (3e-3, 1e-2)),
]


def settings(args: Any) -> List[Setting]:
    return SETTINGS


def claims(best: Mapping[str, Best], client: Any, args: Any, say: Any) -> List[Claim]:
    """State, constancy, sensitivity; that it beats AdamW is not to be expected at this size."""
    state = {label: b.runs[0]["state_bytes"] for label, b in best.items()}
    tensors = len(best["sgd-sai"].runs[0]["ratios"][0])
    extra = state["sgd-sai"] - state["adamw"] / 2
    constant = all(run["ratios"][0] == run["ratios"][-1] for run in best["sgd-sai"].runs)

    def spread(label: str) -> float:
        values = best[label].grid.values()
        return max(values) / min(values)
    beats = best["sgd-sai"].metric < best["sgd"].metric
    return [
        Claim("state is half of AdamW's and a number a tensor", f"half and {extra:.0f} bytes for {tensors} tensors", f"<= {8 * (tensors + 1)} bytes",
              extra <= 8 * (tensors + 1)),
        Claim("the ratios stay what they were after step 1", "equal" if constant else "they moved", "equal", constant),
        Claim("SGD-SaI beats SGD", f"{best['sgd-sai'].metric:.3f} against {best['sgd'].metric:.3f}", "<", beats),
        Claim("it depends less on the rate than momentum SGD, over 10x", f"worst/best {spread('sgd-sai'):.3f} against {spread('sgdm'):.3f}", "<",
              spread("sgd-sai") < spread("sgdm")),
        Claim("against momentum SGD and AdamW (the paper's headline)",
              f"{best['sgd-sai'].metric / best['sgdm'].metric:.3f} and {best['sgd-sai'].metric / best['adamw'].metric:.3f} of theirs", "", None),
    ]
