"""SCALE (Glentis et al. 2025) against Adam, Muon, SGD and its own ablations, on a small language model."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

from optod.studies import language_model
from optod.studies.runner import Best, Claim, Setting

__all__ = ["NAME", "TITLE", "METRIC", "FAMILY", "needs", "settings", "run", "claims"]

NAME, METRIC, FAMILY = "scale", "perplexity", "language-model"
TITLE = "SCALE: column-normalised SGD with last-layer momentum, character language model, 600 steps"
needs, run = language_model.needs, language_model.run


def _scale(**more: Any) -> Dict[str, Any]:
    return {"optimizer": "scale", "adam_lr": 3e-3, **more}


SETTINGS = [
    Setting("scale", _scale(), (1e-3, 3e-3, 1e-2)),
    Setting("adam", {"optimizer": "adam"}, (3e-3, 1e-2, 3e-2)),
    Setting("muon", {"optimizer": "muon", "adam_lr": 3e-3}, (3e-3, 1e-2, 3e-2)),
    Setting("colnorm", _scale(momentum=0.0), (1e-3, 3e-3, 1e-2)),
    Setting("sgd", {"optimizer": "sgd"}, (0.5, 1.0, 2.0, 4.0)),
    # With the embedding among the matrices that are averaged, as where its name is not in the published code's list.
    Setting("scale-embed", _scale(embedding_tensors="none*"), (1e-3, 3e-3, 1e-2)),
    # The other dimension of every matrix; signs: Adam without memory is g / |g|.
    Setting("rownorm", _scale(momentum=0.0, embedding_tensors="*_proj*,*lm_head*", hidden_tensors="*embed*"), (1e-3, 3e-3, 1e-2)),
    Setting("sign", {"optimizer": "adam", "beta1": 0.0, "beta2": 0.0, "eps": 1e-12}, (3e-4, 1e-3, 3e-3)),
]
LOW_RANK = {"rank": 16, "update_proj_gap": 50}
FURTHER = [
    Setting("adamw", {"optimizer": "adamw", "weight_decay": 0.1}, (3e-3, 1e-2)),
    Setting("galore", {"optimizer": "galore", **LOW_RANK}, (3e-3, 1e-2, 3e-2)),
    Setting("fira", {"optimizer": "fira", **LOW_RANK}, (3e-3, 1e-2, 3e-2)),
    Setting("apollo", {"optimizer": "apollo", **LOW_RANK}, (3e-3, 1e-2, 3e-2)),
    Setting("apollo-mini", {"optimizer": "apollo-mini", "update_proj_gap": 50}, (3e-3, 1e-2, 3e-2)),
    Setting("adafactor", {"optimizer": "adafactor", "relative_step": False, "scale_parameter": False}, (3e-3, 1e-2, 3e-2)),
    Setting("adamw-8bit", {"optimizer": "adamw-8bit", "weight_decay": 0.0}, (3e-3, 1e-2)),
]


def settings(args: Any) -> List[Setting]:
    return SETTINGS + (FURTHER if args.all else [])


def claims(best: Mapping[str, Best], client: Any, args: Any, say: Any) -> List[Claim]:
    """The acceptance figures of the paper's claims at this size."""
    def ratio(a: str, b: str) -> float:
        return best[a].metric / best[b].metric
    state = {label: b.runs[0]["state_bytes"] for label, b in best.items()}
    # "Same eta": the ablation without momentum at SCALE's best rate, at the first seed when the grids' bests differ.
    lr = best["scale"].lr
    same = ratio("scale", "colnorm") if best["colnorm"].lr == lr else best["scale"].grid[lr] / best["colnorm"].grid[lr]
    other = min(best["rownorm"].metric, best["sign"].metric) / best["colnorm"].metric
    out = [
        Claim("SCALE near Adam", f"{ratio('scale', 'adam'):.3f} of Adam's perplexity", "<= 1.06", ratio("scale", "adam") <= 1.06),
        Claim("the same with momentum for the embedding too", f"{ratio('scale-embed', 'adam'):.3f} of Adam's, {state['scale-embed'] / state['adam']:.3f} of its state", "", None),
        Claim("at SGD-like memory", f"{state['scale'] / state['adam']:.3f} of Adam's state bytes", "<= 0.25", state["scale"] <= 0.25 * state["adam"]),
        Claim("column normalisation rescues SGD", f"{ratio('colnorm', 'sgd'):.3f} of SGD's perplexity", "<= 0.80", ratio("colnorm", "sgd") <= 0.80),
        Claim("last-layer momentum helps, same rate", f"{same:.3f} of colnorm's", "<= 0.98", same <= 0.98),
        Claim("the same with momentum for the embedding too", f"{ratio('scale-embed', 'colnorm'):.3f} of colnorm's", "", None),
        Claim("row or sign normalisation is worse", f"the better one is {other:.3f} of colnorm's", "", None),
        Claim("Muon is best per step", f"{ratio('muon', 'adam'):.3f} of Adam's", "<= 1", ratio("muon", "adam") <= 1),
    ]
    for label, limit in (("galore", 1.25), ("fira", 1.1), ("apollo", 1.1), ("apollo-mini", 1.1), ("adafactor", 1.1), ("adamw-8bit", 1.1)):
        if label in best:
            out.append(Claim(f"{label} near Adam", f"{ratio(label, 'adam'):.3f}", f"<= {limit}", ratio(label, "adam") <= limit))
    return out
