"""Tensors of PyTorch as the wire wants them, and back. Pure functions."""

from __future__ import annotations

import numpy as np
import torch

from optod.v1 import tensor_pb2

__all__ = ["dtype_name", "as_array", "bits_array", "from_flat"]

#: dtypes of parameters that may be stepped
NAMES = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16"}
DTYPES = {tensor_pb2.DTYPE_F32: torch.float32, tensor_pb2.DTYPE_F64: torch.float64, tensor_pb2.DTYPE_F16: torch.float16,
          tensor_pb2.DTYPE_BF16: torch.bfloat16}


def dtype_name(name: str, parameter: torch.Tensor) -> str:
    """The wire's name of a parameter's dtype. ValueError names the parameter."""
    if parameter.dtype not in NAMES:
        raise ValueError(f"parameter {name!r}: dtype {parameter.dtype} cannot be stepped; must be one of "
                         f"{', '.join(str(d) for d in NAMES)}")
    if parameter.layout != torch.strided:
        raise ValueError(f"parameter {name!r}: layout {parameter.layout} cannot be stepped; must be dense")
    return NAMES[parameter.dtype]


def bits_array(value: torch.Tensor) -> np.ndarray:
    """The bytes of a contiguous CPU tensor as a NumPy array of the same width; bf16 as bits. Not copied."""
    return value.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else value.numpy()


def as_array(value: torch.Tensor, dtype: int) -> np.ndarray:
    """A gradient as a C-contiguous array of the wire's dtype: a view where that is possible, else a copy (rounded to nearest even)."""
    return bits_array(value.detach().to(device="cpu", dtype=DTYPES[dtype]).contiguous())


def from_flat(array: np.ndarray, dtype: int) -> torch.Tensor:
    """A tensor over an array of the wire's dtype (bf16 as bits)."""
    if dtype == tensor_pb2.DTYPE_BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
