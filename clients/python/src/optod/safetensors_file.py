"""Arrays in a safetensors file: 8 bytes with the header's length, a JSON header, the data.  Readable by the `safetensors` package and by optod's snapshots.

    write("model.safetensors", {"w": w}, {"step": "10"});  arrays, metadata = read("model.safetensors")

bf16 is ml_dtypes.bfloat16 when that package is installed; without it bf16 is read as its bits in uint16.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Dict, Mapping, Optional, Tuple

import numpy as np

from optod import tensors
from optod.v1 import tensor_pb2

__all__ = ["write", "read"]

_NAMES = {tensor_pb2.DTYPE_F32: "F32", tensor_pb2.DTYPE_F64: "F64", tensor_pb2.DTYPE_F16: "F16", tensor_pb2.DTYPE_BF16: "BF16",
          tensor_pb2.DTYPE_I8: "I8", tensor_pb2.DTYPE_I32: "I32", tensor_pb2.DTYPE_I64: "I64", tensor_pb2.DTYPE_U8: "U8",
          tensor_pb2.DTYPE_BOOL: "BOOL", tensor_pb2.DTYPE_F8_E4M3: "F8_E4M3"}
_NUMBERS = {name: number for number, name in _NAMES.items()}


def write(path: str, arrays: Mapping[str, np.ndarray], metadata: Optional[Mapping[str, str]] = None) -> None:
    """Writes a new file and puts it in place of `path` at once.  TypeError for a dtype that tensors cannot have."""
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, value in arrays.items():
        header[name] = {"dtype": _NAMES[tensors.dtype_of(value.dtype)], "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    partial = f"{path}.partial"
    with open(partial, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for value in arrays.values():
            out.write(np.ascontiguousarray(value).tobytes())
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)


def read(path: str) -> Tuple[Dict[str, np.ndarray], Dict[str, str]]:
    """(arrays, metadata).  ValueError naming the tensor when the file is cut short or its header does not fit."""
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else len(data)
    if length > len(data) - 8:
        raise ValueError(f"{path}: a header of {length} bytes does not fit a file of {len(data)}")
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = tensors.numpy_dtype(_NUMBERS[entry["dtype"]])
        if not 0 <= begin <= end <= len(data) - 8 - length or end - begin != dtype.itemsize * int(np.prod(entry["shape"], dtype=np.int64)):
            raise ValueError(f"{path}: tensor {name} lies outside the file or does not fit its shape")
        arrays[name] = np.frombuffer(data, dtype, count=(end - begin) // dtype.itemsize, offset=8 + length + begin).reshape(entry["shape"]).copy()
    return arrays, metadata
