"""Arrays on the wire: dtypes, layouts, chunks by hand against protobuf."""

import numpy as np
import pytest

from optod import errors, tensors
from optod.v1 import session_pb2, tensor_pb2


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "i4", "i8", "u1", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4)], ids=str)
def test_tensors_come_back(dtype, shape):
    value = (np.arange(np.prod(shape)) % 2).reshape(shape).astype(dtype)
    back = tensors.array(tensors.tensor("t", value))
    np.testing.assert_array_equal(back, value)
    assert back.dtype == value.dtype and back.shape == shape and back.flags.writeable


def test_strided_and_big_endian_arrays_travel_as_values():
    value = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    message = tensors.tensor("t", value)
    assert message.spec.dtype == tensor_pb2.DTYPE_F32
    np.testing.assert_array_equal(tensors.array(message), value)


def test_a_wrong_number_of_bytes_is_data_loss():
    message = tensors.tensor("t", np.zeros(3, np.float32))
    message.data = message.data[:-1]
    with pytest.raises(errors.DataLoss, match="11 bytes do not fit shape"):
        tensors.array(message)


@pytest.mark.parametrize("name,number", [("f32", 1), ("float32", 1), (np.float64, 2), ("bf16", 4), ("bfloat16", 4), (">i8", 7), (bool, 9), ("f8_e4m3", 10)])
def test_dtype_names(name, number):
    assert tensors.dtype_of(name) == number


@pytest.mark.parametrize("name", ["c8", "complex64", "U5", "f99", "u2"])
def test_dtypes_that_do_not_travel(name):
    with pytest.raises(ValueError, match="must be one of"):
        tensors.dtype_of(name)


def test_layouts_from_arrays_and_shapes():
    layout = tensors.Layout.of({"w": ((2, 3), "bf16"), "b": np.zeros(4), "s": (5, "f32")}, no_decay=["b"])
    assert [(s.name, s.dtype, list(s.shape), s.no_decay) for s in layout.index.tensors] == [
        ("w", tensor_pb2.DTYPE_BF16, [2, 3], False), ("b", tensor_pb2.DTYPE_F64, [4], True), ("s", tensor_pb2.DTYPE_F32, [5], False)]
    assert layout.total_bytes == 12 + 32 + 20
    with pytest.raises(ValueError, match="no_decay"):
        tensors.Layout.of({"w": np.zeros(1)}, no_decay=["v"])


@pytest.mark.parametrize("values,text", [
    ({}, r"grads: missing \['w', 'b'\]"),
    ({"w": np.zeros((2, 3), "f4"), "b": np.zeros(2, "f4"), "x": 1}, r"grads: unknown \['x'\]"),
    ({"w": np.zeros((3, 2), "f4"), "b": np.zeros(2, "f4")}, r"grads\['w'\]: has shape \[3, 2\]; the layout wants \[2, 3\]"),
    ({"w": np.zeros((2, 3), "f8"), "b": np.zeros(2, "f4")}, r"grads\['w'\]: has dtype float64; the layout wants f32"),
])
def test_what_does_not_fit_a_layout_is_named(values, text):
    layout = tensors.Layout.of({"w": np.zeros((2, 3), "f4"), "b": np.zeros(2, "f4")})
    with pytest.raises(ValueError, match=text):
        layout.arrays(values, "grads")


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_pieces_put_together_are_the_flat_buffer(size):
    arrays = [np.arange(n, dtype=dtype) for n, dtype in ((5, "f4"), (0, "f8"), (33, "u1"), (1, "f8"), (90, "i2"))]
    flat = b"".join(a.tobytes() for a in arrays)
    out = bytearray()
    lengths = []
    for offset, n_bytes, parts in tensors.pieces(arrays, size):
        assert offset == len(out)
        out += b"".join(parts)
        lengths.append(n_bytes)
    assert bytes(out) == flat and all(n == size for n in lengths[:-1]) and len(out) == sum(lengths)


@pytest.mark.parametrize("offset", [0, 1, 127, 128, 1 << 20, (1 << 40) + 5])
@pytest.mark.parametrize("data", [b"", b"x", bytes(range(200)) * 7], ids=len)
def test_chunks_by_hand_are_protobuf(offset, data):
    want = session_pb2.PushParametersRequest(chunk=tensor_pb2.TensorChunk(offset=offset, data=data))
    by_hand = tensors.chunk_message(2, offset, len(data), [memoryview(data)])
    assert session_pb2.PushParametersRequest.FromString(by_hand) == want
    want.chunk.crc32c = 12345
    assert tensors.read_chunk(want.SerializeToString(), 2) == (offset, data)
    assert tensors.read_chunk(want.SerializeToString(), 3) is None


def test_other_messages_are_no_chunks():
    header = session_pb2.PullParametersResponse(header=session_pb2.PullParametersHeader(version=3))
    assert tensors.read_chunk(header.SerializeToString(), 2) is None
    assert tensors.read_chunk(b"", 2) is None


@pytest.mark.parametrize("received,offset,n_bytes,good", [(0, 0, 4, True), (4, 4, 6, True), (4, 5, 1, False), (4, 3, 1, False), (4, 4, 7, False)])
def test_chunks_come_in_order_and_fit(received, offset, n_bytes, good):
    flat = np.zeros(10, np.uint8)
    if good:
        assert tensors.fill(flat, received, (offset, memoryview(b"z" * n_bytes))) == received + n_bytes
        assert bytes(flat[offset:offset + n_bytes]) == b"z" * n_bytes
    else:
        with pytest.raises(errors.DataLoss):
            tensors.fill(flat, received, (offset, memoryview(b"z" * n_bytes)))


def test_views_are_writable_and_right_even_when_not_aligned():
    values = {"a": np.arange(3, dtype=np.uint8), "b": np.arange(4, dtype=np.float32).reshape(2, 2), "c": np.array(7.5)}
    layout = tensors.Layout.of(values)
    flat = np.frombuffer(bytearray(b"".join(v.tobytes() for v in values.values())), dtype=np.uint8)
    views = layout.views(flat)
    for name, value in values.items():
        np.testing.assert_array_equal(views[name], value)
        views[name][...] = 1
