"""The zeroth-order random stream in NumPy: the same bytes as the server's C++ and its SIMD paths.

A direction ``z`` is a pure function of ``(seed, step, query)`` and of the position inside the parameters, so it is never stored and never sent:
whoever knows the seed can rebuild any slice of it.  Philox 4x32-10 (Salmon et al., SC 2011) with

    key     = (low, high) 32 bits of the seed
    counter = (block mod 2**32, tensor + 2**24 * (block // 2**32), query, step),   block = element // 4

gives four 32-bit words a block; words (0, 1) and (2, 3) become elements (0, 1) and (2, 3) of the block by Box-Muller, with fixed polynomials in
IEEE float32 (formula and error bounds: ``optim/zo/normal_constants.h``).  Limits: tensor < 2**24, element < 2**42.

A worker that comes late rebuilds the parameters of any version from the first ones and a short list of scalars::

    replay({"weight": w, "bias": b}, records=[(step, query, coefficient), ...], seed=seed)

Functions keep no state and may be called from several threads on different arrays.  Only NumPy is needed.
"""

from __future__ import annotations

import functools
from typing import Iterable, Mapping, Sequence, Union

import numpy as np

__all__ = ["philox4x32", "random_bits", "normal", "normal_tensors", "add_scaled_normal", "decay", "replay", "projected_gradient", "coefficient"]

_MUL0, _MUL1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL0, _WEYL1 = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_ONE, _TWO_TO_MINUS_31 = np.float32(1), np.float32(2.0**-31)
_MINUS_TWO_LN2 = np.float32(float.fromhex("-0x1.62e43p+0"))


def _floats(*digits: str) -> list:
    return [np.float32(float.fromhex(d)) for d in digits]


_LOG = _floats("-0x1.fffffep+0", "0x1.00007ap+0", "-0x1.5559dcp-1", "0x1.ff623cp-2",
               "-0x1.978e2ep-2", "0x1.614c0ap-2", "-0x1.4c3d12p-2", "0x1.9dfa7ep-3")
_SIN = _floats("0x1.921fb6p+0", "-0x1.4abbc2p-1", "0x1.4668bp-4", "-0x1.324cccp-8", "0x1.3db004p-13")
_COS = _floats("0x1.fffffep-1", "-0x1.3bd3a6p+0", "0x1.03bd06p-2", "-0x1.54f61ap-6", "0x1.c1f07cp-11")

_CHUNK = 1 << 16  # elements generated at a time: a few MiB of temporaries whatever the size of the parameters
_MAX_ELEMENT, _MAX_TENSOR = 1 << 42, 1 << 24


def philox4x32(counter, key) -> np.ndarray:
    """Philox 4x32-10 of one or many counters.

    counter: integers of shape [..., 4]; key: two integers; all taken modulo 2**32.  Returns uint32 of the counter's shape.
    Published vector: counter 0, key 0 -> 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
    """
    counter = np.asarray(counter, dtype=np.uint64) & _LOW
    words = _philox(*(counter[..., i].copy() for i in range(4)), int(key[0]), int(key[1]))
    return np.stack([word.astype(np.uint32) for word in words], axis=-1)


def _philox(c0, c1, c2, c3, key0: int, key1: int):
    """Ten rounds on uint64 arrays that hold 32-bit words; scalars broadcast."""
    for round_number in range(10):
        k0 = np.uint64((key0 + round_number * _WEYL0) & 0xFFFFFFFF)
        k1 = np.uint64((key1 + round_number * _WEYL1) & 0xFFFFFFFF)
        product0, product1 = c0 * _MUL0, c2 * _MUL1
        c0, c2 = (product1 >> _HALF) ^ c1 ^ k0, (product0 >> _HALF) ^ c3 ^ k1
        c1, c3 = product1 & _LOW, product0 & _LOW
    return c0, c1, c2, c3


def _check(seed: int, step: int, query: int, tensor: int, first: int, n: int) -> None:
    for name, value, limit in (("seed", seed, 1 << 64), ("step", step, 1 << 32), ("query", query, 1 << 32),
                               ("tensor", tensor, _MAX_TENSOR), ("first", first, _MAX_ELEMENT), ("n", n, _MAX_ELEMENT - int(first) + 1)):
        if not 0 <= value < limit:
            raise ValueError(f"{name}: {value} is out of range; must be in [0, {limit})")


def _blocks(seed: int, step: int, query: int, tensor: int, block: int, count: int):
    """The four words of blocks [block, block + count) as uint32 arrays."""
    numbers = np.arange(block, block + count, dtype=np.uint64)
    word1 = np.uint64(tensor) + ((numbers >> _HALF) << np.uint64(24))
    words = _philox(numbers & _LOW, word1, np.uint64(query), np.uint64(step), seed & 0xFFFFFFFF, seed >> 32)
    return [word.astype(np.uint32) for word in words]


def _horner(coefficients, x: np.ndarray) -> np.ndarray:
    p = coefficients[-1] * x
    p += coefficients[-2]
    for c in reversed(coefficients[:-2]):
        p *= x
        p += c
    return p


def _box_muller(radius_word: np.ndarray, angle_word: np.ndarray, z_even: np.ndarray, z_odd: np.ndarray) -> None:
    """Every line is one rounding or an exact bit operation; the order is part of the format."""
    u = (radius_word >> np.uint32(1)).view(np.int32).astype(np.float32)
    u += _ONE
    u *= _TWO_TO_MINUS_31
    bits = u.view(np.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> np.int32(23)
    f = (bits - (exponent << np.int32(23))).view(np.float32)
    f -= _ONE
    tail = _horner(_LOG, f)
    tail *= f
    r = exponent.astype(np.float32)
    r *= _MINUS_TWO_LN2
    r += tail
    np.sqrt(r, out=r)
    r.view(np.uint32)[...] ^= radius_word << np.uint32(31)
    y = angle_word.view(np.int32).astype(np.float32)
    y *= _TWO_TO_MINUS_31
    y2 = y * y
    np.multiply(r, _horner(_COS, y2), out=z_even)
    y *= _horner(_SIN, y2)
    np.multiply(r, y, out=z_odd)


def _normal_chunk(seed: int, step: int, query: int, tensor: int, first: int, n: int) -> np.ndarray:
    block, end = first // 4, (first + n + 3) // 4
    x0, x1, x2, x3 = _blocks(seed, step, query, tensor, block, end - block)
    z = np.empty((end - block, 4), dtype=np.float32)
    _box_muller(x0, x1, z[:, 0], z[:, 1])
    _box_muller(x2, x3, z[:, 2], z[:, 3])
    skip = first - 4 * block
    return z.reshape(-1)[skip:skip + n]


def _chunks(n: int):
    return ((begin, min(_CHUNK, n - begin)) for begin in range(0, n, _CHUNK))


def random_bits(seed: int, step: int, query: int, tensor: int, first: int, n: int) -> np.ndarray:
    """The raw words behind the stream, uint32 [n]: word (first + i) % 4 of block (first + i) // 4."""
    _check(seed, step, query, tensor, first, n)
    out = np.empty(n, dtype=np.uint32)
    for begin, count in _chunks(n):
        start = first + begin
        block, end = start // 4, (start + count + 3) // 4
        words = np.stack(_blocks(seed, step, query, tensor, block, end - block), axis=-1).reshape(-1)
        out[begin:begin + count] = words[start - 4 * block:][:count]
    return out


def normal(seed: int, step: int, query: int, tensor: int, first: int, n: int) -> np.ndarray:
    """Standard normal values of elements [first, first + n) of tensor number ``tensor``, float32 [n], |z| <= 6.556.

    ValueError when a number is outside its range.
    """
    _check(seed, step, query, tensor, first, n)
    z = np.empty(n, dtype=np.float32)
    for begin, count in _chunks(n):
        z[begin:begin + count] = _normal_chunk(seed, step, query, tensor, first + begin, count)
    return z


@functools.lru_cache(maxsize=8)
def _layout_counters(sizes: tuple):
    """Counter words 0 and 1 of all blocks of tensors of these sizes, one tensor after another, and where each tensor's values begin."""
    blocks = [(size + 3) // 4 for size in sizes]
    numbers = np.concatenate([np.arange(count, dtype=np.uint64) for count in blocks]) if blocks else np.zeros(0, np.uint64)
    tensor = np.repeat(np.arange(len(sizes), dtype=np.uint64), blocks)
    starts = np.concatenate([[0], np.cumsum(blocks)[:-1]]).astype(np.int64) * 4 if blocks else []
    return numbers, tensor, [int(start) for start in starts]


def normal_tensors(seed: int, step: int, query: int, sizes: Sequence[int]) -> list:
    """z of every tensor of a layout: what ``normal(seed, step, query, i, 0, sizes[i])`` gives for each i, in one pass when they are small.

    Returns float32 arrays of ``sizes``, which may share memory.  Many small tensors cost one pass of NumPy calls instead of one each.
    """
    sizes = tuple(int(size) for size in sizes)
    if sum(sizes) > _CHUNK:
        return [normal(seed, step, query, tensor, 0, size) for tensor, size in enumerate(sizes)]
    _check(seed, step, query, max(len(sizes) - 1, 0), 0, 0)
    numbers, tensor, starts = _layout_counters(sizes)
    words = _philox(numbers, tensor, np.uint64(query), np.uint64(step), seed & 0xFFFFFFFF, seed >> 32)
    x0, x1, x2, x3 = (word.astype(np.uint32) for word in words)
    z = np.empty((numbers.size, 4), dtype=np.float32)
    _box_muller(x0, x1, z[:, 0], z[:, 1])
    _box_muller(x2, x3, z[:, 2], z[:, 3])
    flat = z.reshape(-1)
    return [flat[start:start + size] for start, size in zip(starts, sizes)]


def _flat(theta: np.ndarray, name: str = "theta") -> np.ndarray:
    if not isinstance(theta, np.ndarray) or theta.dtype != np.float32 or not theta.flags.c_contiguous or not theta.flags.writeable:
        raise ValueError(f"{name}: must be a writeable C-contiguous float32 array")
    return theta.reshape(-1)


def add_scaled_normal(theta: np.ndarray, seed: int, step: int, query: int, tensor: int, scale: float, first: int = 0) -> None:
    """theta += scale * z in place, each element as fl32(theta + fl32(fl32(scale) * z)).

    theta: float32, C-contiguous, any shape; its elements are [first, first + theta.size) of the tensor, row-major.
    """
    flat = _flat(theta)
    _check(seed, step, query, tensor, first, flat.size)
    factor = np.float32(scale)
    for begin, count in _chunks(flat.size):
        z = _normal_chunk(seed, step, query, tensor, first + begin, count)
        z *= factor
        flat[begin:begin + count] += z


def decay(theta: np.ndarray, rate: float) -> None:
    """Weight decay in place: theta -= fl32(fl32(rate) * theta), rate = lr * weight_decay."""
    flat = _flat(theta)
    factor = np.float32(rate)
    for begin, count in _chunks(flat.size):
        part = flat[begin:begin + count]
        part -= part * factor


def replay(params: Union[Mapping[str, np.ndarray], Sequence[np.ndarray]], records: Iterable[tuple], seed: int,
           decays: Mapping[int, float] | None = None, no_decay: Iterable = ()) -> None:
    """Rebuild parameters in place from the scalars of past steps.

    params: float32 arrays in layout order (the order gives the tensor numbers), as a dict or a list.
    records: (step, query, coefficient) in the order in which the updates were made; each does theta -= fl32(coefficient) * z(step, query).
    decays: {step: lr * weight_decay}, applied before the first record of that step to all tensors but those in ``no_decay`` (keys of the dict, or
    indices of the list).  The result equals the live run's parameters bit for bit.
    """
    keys = list(params.keys()) if isinstance(params, Mapping) else list(range(len(params)))
    for key in keys:
        _flat(params[key], f"params[{key!r}]")
    skipped, last_step = set(no_decay), None
    for step, query, coefficient_ in records:
        if decays and step != last_step and step in decays:
            for key in keys:
                if key not in skipped:
                    decay(params[key], decays[step])
        last_step = step
        for tensor, key in enumerate(keys):
            add_scaled_normal(params[key], seed, step, query, tensor, -np.float32(coefficient_))


def projected_gradient(loss_plus: float, loss_minus: float, eps: float, one_sided: bool = False) -> float:
    """g = (L+ - L-) / (2 eps), or (L+ - L(theta)) / eps when one-sided; float64."""
    return (loss_plus - loss_minus) / (eps if one_sided else 2.0 * eps)


def coefficient(lr: float, g: float, queries: int = 1) -> np.float32:
    """What travels for one direction of plain zo-sgd: fl32(lr * g / q), computed in float64."""
    return np.float32(lr * g / float(queries))
