"""NumPy arrays on the wire: layouts, small tensors, and the flat buffer in chunks.

A layout names tensors and their order in one flat buffer, row-major, little-endian, without gaps (the order of safetensors files).  Small tensors
travel whole in a message; large sets as chunks of 1 MiB, which are put together by hand here so that each byte is copied once.
"""

from __future__ import annotations

import hashlib
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from optod import errors
from optod.v1 import tensor_pb2

__all__ = ["CHUNK_BYTES", "UNARY_BYTES", "Layout", "dtype_of", "numpy_dtype", "tensor", "array"]

CHUNK_BYTES = 1 << 20       #: of a streamed chunk; the server takes at most 4 MiB
UNARY_BYTES = 4 << 20       #: of all tensors of one unary message

try:
    import ml_dtypes
    _BF16, _F8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
except ImportError:         # without ml_dtypes these travel as raw bits
    _BF16, _F8 = np.dtype(np.uint16), np.dtype(np.uint8)

_NUMPY = {
    tensor_pb2.DTYPE_F32: np.dtype("<f4"), tensor_pb2.DTYPE_F64: np.dtype("<f8"), tensor_pb2.DTYPE_F16: np.dtype("<f2"),
    tensor_pb2.DTYPE_BF16: _BF16, tensor_pb2.DTYPE_I8: np.dtype("i1"), tensor_pb2.DTYPE_I32: np.dtype("<i4"),
    tensor_pb2.DTYPE_I64: np.dtype("<i8"), tensor_pb2.DTYPE_U8: np.dtype("u1"), tensor_pb2.DTYPE_BOOL: np.dtype("?"),
    tensor_pb2.DTYPE_F8_E4M3: _F8,
}
_FROM_NAME = {name[len("DTYPE_"):].lower(): number for name, number in tensor_pb2.DType.items() if number}
_FROM_NAME.update(bfloat16=tensor_pb2.DTYPE_BF16, float8_e4m3fn=tensor_pb2.DTYPE_F8_E4M3)

Shape = Tuple[int, ...]
LayoutLike = Mapping[str, Any]


def dtype_of(dtype: Any) -> int:
    """The wire's DType of a NumPy dtype, or of a name: "f32", "bf16", "float32", ...  ValueError when it has none."""
    if isinstance(dtype, str) and dtype in _FROM_NAME:
        return _FROM_NAME[dtype]
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        raise ValueError(f"dtype: {dtype!r} is unknown; must be one of {', '.join(sorted(_FROM_NAME))}") from None
    for number, known in _NUMPY.items():
        if wanted.newbyteorder("<") == known and number not in (tensor_pb2.DTYPE_BF16, tensor_pb2.DTYPE_F8_E4M3):
            return number
    if wanted.name in _FROM_NAME:
        return _FROM_NAME[wanted.name]
    raise ValueError(f"dtype: {wanted} does not travel; must be one of {', '.join(sorted(_FROM_NAME))}")


def numpy_dtype(dtype: int) -> np.dtype:
    """The NumPy dtype of a wire DType; bf16 is uint16 and fp8 is uint8 unless ml_dtypes is installed."""
    return _NUMPY[dtype]


def _wire_array(value: Any, dtype: Optional[int] = None) -> np.ndarray:
    """C-contiguous, little-endian; no copy when it is already so."""
    out = np.asarray(value, order="C")
    if dtype is not None and out.dtype.itemsize != _NUMPY[dtype].itemsize:
        raise ValueError(f"has dtype {out.dtype}; the layout wants {tensor_pb2.DType.Name(dtype)[6:].lower()}")
    return out if out.dtype.byteorder in "=|<" else out.astype(out.dtype.newbyteorder("<"))


def raw(value: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, not copied."""
    return memoryview(value.reshape(-1).view(np.uint8)) if value.size else memoryview(b"")


def spec_of(name: str, value: np.ndarray) -> tensor_pb2.TensorSpec:
    """The spec of an array under a name."""
    return tensor_pb2.TensorSpec(name=name, dtype=dtype_of(value.dtype), shape=value.shape)


def spec_bytes(spec: tensor_pb2.TensorSpec) -> int:
    """Bytes of a tensor."""
    return int(np.prod(spec.shape, dtype=np.int64)) * _NUMPY[spec.dtype].itemsize


def tensor(name: str, value: Any, dtype: Optional[int] = None, no_decay: bool = False) -> tensor_pb2.Tensor:
    """One small tensor as a message."""
    data = _wire_array(value)
    spec = tensor_pb2.TensorSpec(name=name, dtype=dtype or dtype_of(data.dtype), shape=data.shape, no_decay=no_decay)
    return tensor_pb2.Tensor(spec=spec, data=data.tobytes())


def array(message: tensor_pb2.Tensor) -> np.ndarray:
    """A writable array of a tensor message. DataLoss when the bytes do not fit the shape."""
    spec = message.spec
    dtype = _NUMPY[spec.dtype]
    if len(message.data) != dtype.itemsize * int(np.prod(spec.shape, dtype=np.int64)):
        raise errors.DataLoss(f"tensor {spec.name!r}: {len(message.data)} bytes do not fit shape {list(spec.shape)}")
    return np.frombuffer(bytearray(message.data), dtype=dtype).reshape(tuple(spec.shape))


class Layout:
    """Names, dtypes, shapes and order of a session's tensors.  Immutable."""

    def __init__(self, index: tensor_pb2.TensorIndex) -> None:
        self.index = index
        self.names = [spec.name for spec in index.tensors]
        self.specs = {spec.name: spec for spec in index.tensors}
        self.sizes = [int(np.prod(spec.shape, dtype=np.int64)) * _NUMPY[spec.dtype].itemsize for spec in index.tensors]
        self.total_bytes = sum(self.sizes)

    @classmethod
    def of(cls, tensors: LayoutLike, no_decay: Iterable[str] = ()) -> "Layout":
        """From {name: array} or {name: (shape, dtype)}; dtype as ``dtype_of`` takes it. The dict's order is the layout's.

        no_decay: names that weight decay skips.  ValueError: a dtype that does not travel, or a name of no_decay that is not there.
        """
        skipped = set(no_decay)
        unknown = skipped - set(tensors)
        if unknown:
            raise ValueError(f"no_decay: {sorted(unknown)} are no tensors of the layout")
        index = tensor_pb2.TensorIndex()
        for name, value in tensors.items():
            if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[1], (int, float, np.ndarray)):
                shape, dtype = value
            else:
                data = np.asarray(value)
                shape, dtype = data.shape, data.dtype
            shape = (shape,) if isinstance(shape, int) else shape
            index.tensors.add(name=name, dtype=dtype_of(dtype), shape=shape, no_decay=name in skipped)
        return cls(index)

    def arrays(self, tensors: Mapping[str, Any], what: str, dtype: Optional[int] = None, skip: Iterable[str] = ()) -> list:
        """The arrays of all tensors but those of ``skip`` in layout order, checked.

        ValueError names what is missing, unknown or of another shape or dtype."""
        skipped = set(skip)
        extra = [name for name in tensors if name not in self.specs]
        missing = [name for name in self.names if name not in tensors and name not in skipped]
        if extra or missing:
            raise ValueError(f"{what}: " + "; ".join(f"{word} {names[:5]}" for word, names in (("missing", missing), ("unknown", extra)) if names))
        out = []
        for name in self.names:
            if name in skipped:
                continue
            spec = self.specs[name]
            try:
                data = _wire_array(tensors[name], dtype or spec.dtype)
            except ValueError as error:
                raise ValueError(f"{what}[{name!r}]: {error}") from None
            if tuple(data.shape) != tuple(spec.shape):
                raise ValueError(f"{what}[{name!r}]: has shape {list(data.shape)}; the layout wants {list(spec.shape)}")
            out.append(data)
        return out

    def views(self, flat: np.ndarray, index: Optional[tensor_pb2.TensorIndex] = None) -> dict:
        """{name: writable view into the flat uint8 buffer}."""
        out, offset = {}, 0
        for spec in (index or self.index).tensors:
            dtype = _NUMPY[spec.dtype]
            size = int(np.prod(spec.shape, dtype=np.int64)) * dtype.itemsize
            part = flat[offset:offset + size]
            part = part.view(dtype) if (flat.ctypes.data + offset) % dtype.itemsize == 0 else np.frombuffer(bytearray(part), dtype=dtype)
            out[spec.name] = part.reshape(tuple(spec.shape))
            offset += size
        return out


# ---- chunks, by hand: `outer { offset: varint 1, crc32c: fixed32 2, data: bytes 15 }`

_OFFSET_TAG, _CRC_TAG, _DATA_TAG = 0x08, 0x15, 0x7A


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def pieces(arrays: Sequence[np.ndarray], size: int = CHUNK_BYTES) -> Iterator[Tuple[int, int, list]]:
    """(offset, bytes, memoryviews) of the flat buffer that the arrays form, every piece but the last of exactly ``size`` bytes."""
    offset = filled = 0
    parts: list = []
    for value in arrays:
        data = raw(value)
        at = 0
        while at < len(data):
            take = min(size - filled, len(data) - at)
            parts.append(data[at:at + take])
            at += take
            filled += take
            if filled == size:
                yield offset, filled, parts
                offset, filled, parts = offset + filled, 0, []
    if filled:
        yield offset, filled, parts


def chunk_message(field: int, offset: int, n_bytes: int, parts: Sequence[Any]) -> bytes:
    """A message whose only field, number ``field``, is a TensorChunk of the given memoryviews."""
    head = (bytes([_OFFSET_TAG]) + _varint(offset) if offset else b"") + bytes([_DATA_TAG]) + _varint(n_bytes)
    return b"".join([_varint(field << 3 | 2), _varint(len(head) + n_bytes), head, *parts])


def _read_varint(message: Any, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def read_chunk(message: bytes, field: int) -> Optional[Tuple[int, memoryview]]:
    """(offset, data) of a message whose first field is the TensorChunk number ``field``; None when it is something else."""
    view = memoryview(message)
    if not message:
        return None
    tag, at = _read_varint(view, 0)
    if tag != field << 3 | 2:
        return None
    length, at = _read_varint(view, at)
    if at + length != len(view):
        return None
    offset, data = 0, memoryview(b"")
    while at < len(view):
        tag, at = _read_varint(view, at)
        if tag == _OFFSET_TAG:
            offset, at = _read_varint(view, at)
        elif tag == _CRC_TAG:
            at += 4
        elif tag == _DATA_TAG:
            length, at = _read_varint(view, at)
            data = view[at:at + length]
            at += length
        else:
            return None
    return offset, data


def fill(flat: np.ndarray, received: int, chunk: Tuple[int, memoryview]) -> int:
    """Copies a chunk to its place; returns the bytes received so far. DataLoss when it does not follow the last one or does not fit."""
    offset, data = chunk
    if offset != received or offset + len(data) > flat.size:
        raise errors.DataLoss(f"stream: chunk of {len(data)} bytes at byte {offset}; {received} of {flat.size} came so far")
    flat[offset:offset + len(data)] = np.frombuffer(data, dtype=np.uint8)
    return received + len(data)


def sha256(arrays: Sequence[np.ndarray]) -> str:
    """Hex digest of the flat buffer."""
    digest = hashlib.sha256()
    for value in arrays:
        digest.update(raw(value))
    return digest.hexdigest()


Arrays = Mapping[str, np.ndarray]
ArrayOrShape = Union[np.ndarray, Tuple[Shape, Any]]
