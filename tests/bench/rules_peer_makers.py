"""The optimizers that rules_peers.py steps beside ours: how each is made for one parameter, and on what size.

Checkouts are looked for under the names of their repositories: SGD_SaI, adahessian, ada-hessian, Minimalist_LLM_Pretraining, mkor, GaLore,
Fira, APOLLO.  A maker takes the parameter (with its gradient) and returns a function that makes one step.
"""
import dataclasses
import importlib
import sys
import warnings
from typing import Callable, Optional

import torch

SQUARE = 1 << 22   # [2048, 2048]: rules that multiply matrices
SMALL = 1 << 24


@dataclasses.dataclass(frozen=True)
class Pair:
    rule: str                    # label of rules_bench
    peer: str
    make: Callable
    dtype: str = "f32"
    width: int = 4096
    most: Optional[int] = None   # largest number of elements
    guarded: bool = False        # measured once more behind a NaN/Inf guard


def of_torch(name, **options):
    return lambda p: getattr(torch.optim, name)([p], **options).step


def bitsandbytes_step(p):
    import bitsandbytes
    return bitsandbytes.optim.AdamW8bit([p], lr=1e-3).step


def torchao_step(p):
    from torchao.optim import AdamW8bit
    return AdamW8bit([p], lr=1e-3).step


def imported(folder, module, name):
    """Class `name` of a paper's code; `folder` holds its module."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkout {folder.name}")
    sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        sys.path.pop(0)


def sgd_sai_step(peers):
    return lambda p: imported(peers / "SGD_SaI", "sgd_sai.sgd_sai", "SGD_sai")([p], lr=1e-3).step


def lazy_adahessian_step(peers):
    """Only the update: the Hessian estimate of every step is given, as it is to ours."""
    def make(p):
        optimizer = imported(peers / "ada-hessian", "ada_hessian", "AdaHessian")([p], lr=0.1)
        optimizer.zero_hessian = optimizer.set_hessian = lambda: None
        p.hess = torch.full_like(p, 0.02)
        return optimizer.step
    return make


def image_adahessian_step(peers):
    """Only the update, with its absolute value of the given estimate."""
    def make(p):
        optimizer = imported(peers / "adahessian/image_classification", "optim_adahessian", "Adahessian")([p], lr=0.15)
        estimate = torch.full_like(p, 0.02)
        optimizer.get_trace = lambda params, grads: [estimate.abs()]
        return optimizer.step
    return make


def scale_step(peers, name):
    """One matrix; the last layer has momentum."""
    def make(p):
        scale = imported(peers / "Minimalist_LLM_Pretraining/mem_eff_pt/pt_scale", "scale_optimizer", "SCALE")
        last = name.startswith("lm_head")
        return scale(lr=1e-3, main_params=[] if last else [p], secondary_params=[p] if last else [], id_to_name={id(p): name}).step
    return make


def low_rank_step(peers, folder, module, name, **group):
    """Rank and period of ours; the first step, which decomposes or draws, is not timed."""
    def make(p):
        warnings.simplefilter("ignore", FutureWarning)
        cls = imported(peers / folder, module, name)
        return cls([{"params": [p], "update_proj_gap": 200, "proj_type": "std", **group}], lr=0.01).step
    return make


def mkor_step(peers, half):
    """A linear layer whose factors are updated on every step from 64 rows of statistics, as ours."""
    def make(p):
        model = torch.nn.Linear(p.shape[1], p.shape[0], bias=False)
        model.device = torch.device("cpu")
        model.weight = p
        optimizer = imported(peers / "mkor", "mkor", "MKOR")(model, inv_freq=1, half_precision=half, optimizer="sgd", lr=0.01, momentum=0.9)
        kind = torch.float16 if half else torch.float32
        rows = [(torch.arange(64 * n).reshape(64, n) * 7919 % 101 - 50).to(kind) / 100 for n in (p.shape[1], p.shape[0])]
        gradient = p.grad.clone()

        def step():
            # What its hooks leave behind: inputs averaged already, output gradients not yet.
            optimizer.inputs, optimizer.grads = optimizer.low_rank_approx([rows[0]]), [rows[1]]
            optimizer.reduced_inputs = optimizer.input_handles = optimizer.input_shapes = None
            p.grad.copy_(gradient)  # the step overwrites it
            optimizer.step()
        return step
    return make


def of_papers(peers):
    """Pairs with the papers' own code."""
    return [
        Pair("sgd-sai", "SGD_SaI's own", sgd_sai_step(peers)),
        Pair("adahessian", "davda54/ada-hessian, update alone", lazy_adahessian_step(peers)),
        Pair("adahessian", "AdaHessian's own, update alone", image_adahessian_step(peers)),
        Pair("scale hidden", "SCALE's own", scale_step(peers, "mlp.weight")),
        Pair("scale embedding", "SCALE's own", scale_step(peers, "embed_tokens.weight")),
        Pair("scale last layer", "SCALE's own", scale_step(peers, "lm_head.weight")),
        Pair("mkor", "MKOR's own", mkor_step(peers, False), width=2048, most=SQUARE),
        Pair("mkor", "MKOR's own, float16 factors", mkor_step(peers, True), width=2048, most=SQUARE),
        Pair("galore", "GaLore's own", low_rank_step(peers, "GaLore", "galore_torch", "GaLoreAdamW", rank=128, scale=0.25), width=2048, most=SQUARE),
        Pair("fira", "Fira's own", low_rank_step(peers, "Fira", "optimizer_torch", "FiraAdamW", rank=128, alpha=0.25), width=2048, most=SQUARE),
        Pair("apollo", "APOLLO's own", low_rank_step(peers, "APOLLO", "apollo_torch", "APOLLOAdamW", rank=256, scale=1.0, proj="random",
                                                     scale_type="channel"), width=2048, most=SQUARE),
        Pair("apollo-mini", "APOLLO's own, Mini", low_rank_step(peers, "APOLLO", "apollo_torch", "APOLLOAdamW", rank=1, scale=128.0, proj="random",
                                                                scale_type="tensor"), width=2048, most=SQUARE),
    ]


def pairs(peers):
    """All pairs; `peers`: the folder of checkouts, or None."""
    rows = [
        Pair("sgd", "torch SGD fused", of_torch("SGD", lr=1e-3, fused=True), guarded=True),
        Pair("sgd momentum", "torch SGD momentum fused", of_torch("SGD", lr=1e-3, momentum=0.9, fused=True), guarded=True),
        Pair("sgd momentum", "torch SGD momentum foreach", of_torch("SGD", lr=1e-3, momentum=0.9, foreach=True), guarded=True),
        Pair("adam", "torch Adam fused", of_torch("Adam", lr=1e-3, fused=True), guarded=True),
        Pair("adam", "torch Adam foreach", of_torch("Adam", lr=1e-3, foreach=True), guarded=True),
        Pair("adamw", "torch AdamW fused", of_torch("AdamW", lr=1e-3, fused=True), guarded=True),
        Pair("adamw", "torch AdamW foreach", of_torch("AdamW", lr=1e-3, foreach=True), guarded=True),
        Pair("adamw amsgrad", "torch AdamW amsgrad fused", of_torch("AdamW", lr=1e-3, amsgrad=True, fused=True), guarded=True),
        Pair("adamw", "torch AdamW fused bf16 (bf16 state)", of_torch("AdamW", lr=1e-3, fused=True), dtype="bf16", guarded=True),
        Pair("adafactor", "torch Adafactor foreach", of_torch("Adafactor", lr=1e-2, foreach=True)),
        Pair("adafactor", "torch Adafactor", of_torch("Adafactor", lr=1e-2, foreach=False)),
        Pair("muon", "torch Muon", of_torch("Muon", lr=1e-3), width=2048, most=SMALL),
        Pair("adamw-8bit", "bitsandbytes AdamW8bit", bitsandbytes_step),
        Pair("adamw-8bit", "torchao AdamW8bit", torchao_step),
    ]
    return rows + (of_papers(peers) if peers else [])
