"""Tensor streams as bytes: messages are put together and taken apart by hand, so that gigabytes are not parsed into messages first."""

from __future__ import annotations

import queue
from typing import Any, Callable, Iterator, Optional, Sequence

import grpc
import numpy as np

from optod import errors, tensors
from optod.transport import new_request_id, transfer_timeout, translated
from optod.v1 import session_pb2

__all__ = ["push", "pull", "export_state", "import_state", "StepChannel"]

_SERVICE = "/optod.v1.SessionService/"


def _same(data: bytes) -> bytes:
    return data


def push(transport: Any, session: str, request_id: str, arrays: Sequence[np.ndarray]) -> session_pb2.PushParametersResponse:
    """Sends the flat buffer in 1 MiB chunks, checked by SHA-256 at the end. Repeats the whole when the server is unavailable."""
    total = sum(value.nbytes for value in arrays)
    header = session_pb2.PushParametersRequest(header=session_pb2.PushParametersHeader(
        session=session, total_bytes=total, sha256=tensors.sha256(arrays), request_id=request_id))
    method = transport.channel.stream_unary(_SERVICE + "PushParameters", request_serializer=_same,
                                            response_deserializer=session_pb2.PushParametersResponse.FromString)

    def messages() -> Iterator[bytes]:
        yield header.SerializeToString()
        for offset, n_bytes, parts in tensors.pieces(arrays):
            yield tensors.chunk_message(2, offset, n_bytes, parts)

    limit = transfer_timeout(total)
    return transport.retrying(lambda left: transport.stream(method, messages(), left), limit)


def pull(transport: Any, method: str, request: Any) -> tuple:
    """(header, flat uint8 buffer) of PullParameters or PullState. Repeats the whole when the server is unavailable."""
    call = transport.channel.unary_stream(_SERVICE + method, request_serializer=type(request).SerializeToString, response_deserializer=_same)

    def once(left: float) -> tuple:
        header: Optional[session_pb2.PullParametersHeader] = None
        flat, received = np.empty(0, dtype=np.uint8), 0
        for message in transport.stream(call, request, left):
            chunk = tensors.read_chunk(message, 2)
            if chunk is not None:
                received = tensors.fill(flat, received, chunk)
                continue
            header = session_pb2.PullParametersResponse.FromString(message).header
            flat = np.empty(header.index.total_bytes, dtype=np.uint8)
        if header is None or received != flat.size:
            raise errors.DataLoss(f"stream: {received} of {flat.size} bytes came")
        return header, flat

    return transport.retrying(once, transfer_timeout(1 << 34))


def export_state(transport: Any, request: session_pb2.ExportStateRequest, write: Callable[[memoryview], Any]) -> int:
    """Hands the pieces of a state file to ``write``.  Returns the version."""
    call = transport.channel.unary_stream(_SERVICE + "ExportState", request_serializer=type(request).SerializeToString, response_deserializer=_same)
    header, received = session_pb2.ExportStateHeader(), 0
    for message in translated(transport.stream(call, request, transfer_timeout(1 << 34))):
        chunk = tensors.read_chunk(message, 2)
        if chunk is None:
            header = session_pb2.ExportStateResponse.FromString(message).header
            continue
        if chunk[0] != received:
            raise errors.DataLoss(f"stream: chunk at byte {chunk[0]}, expected {received}")
        write(chunk[1])
        received += len(chunk[1])
    if received != header.total_bytes:
        raise errors.DataLoss(f"stream: {received} of {header.total_bytes} bytes came")
    return header.version


def import_state(transport: Any, header: session_pb2.ImportStateHeader, file: np.ndarray) -> session_pb2.Session:
    """Sends a state file (uint8) in 1 MiB chunks. Repeats the whole when the server is unavailable; the request id keeps that safe."""
    header.total_bytes, header.sha256 = file.size, tensors.sha256([file])
    header.request_id = header.request_id or new_request_id()
    method = transport.channel.stream_unary(_SERVICE + "ImportState", request_serializer=_same, response_deserializer=session_pb2.Session.FromString)

    def messages() -> Iterator[bytes]:
        yield session_pb2.ImportStateRequest(header=header).SerializeToString()
        for offset, n_bytes, parts in tensors.pieces([file]):
            yield tensors.chunk_message(2, offset, n_bytes, parts)

    return transport.retrying(lambda left: transport.stream(method, messages(), left), transfer_timeout(file.size))


class StepChannel:
    """One open StepStream: requests go out through a short queue, answers are read as bytes.  For one thread."""

    def __init__(self, transport: Any, session: str, return_values: bool, values_dtype: int = 0, memory: Any = None) -> None:
        self._queue: queue.Queue = queue.Queue(maxsize=8)
        method = transport.channel.stream_stream(_SERVICE + "StepStream", request_serializer=_same, response_deserializer=_same)
        self._call = transport.stream(method, iter(self._queue.get, None))
        self._broken = False
        self.send(session_pb2.StepStreamRequest(open=session_pb2.StepStreamOpen(
            session=session, return_values=return_values, values_dtype=values_dtype, shared_memory=memory)))
        self.opened = self.read().opened

    def send(self, message: session_pb2.StepStreamRequest) -> None:
        self.send_bytes(message.SerializeToString())

    def send_bytes(self, data: bytes) -> None:
        """Blocks while the queue is full; gives up when the call has ended, whose error the next read raises."""
        while self._call.is_active():
            try:
                return self._queue.put(data, timeout=0.1)
            except queue.Full:
                continue

    def read_bytes(self) -> bytes:
        """Unavailable when the server ended the stream without an error."""
        try:
            return next(self._call)
        except StopIteration:
            raise errors.Unavailable("stream: the server ended it") from None
        except grpc.RpcError as raw:
            raise errors.from_rpc(raw) from None

    def read(self) -> session_pb2.StepStreamResponse:
        return session_pb2.StepStreamResponse.FromString(self.read_bytes())

    def close(self) -> None:
        """Half-closes, so that the server sees a clean end, and lets go of the call."""
        if self._call.is_active():
            self.send_bytes(None)  # type: ignore[arg-type]
            try:
                for _ in self._call:
                    pass
            except grpc.RpcError:
                pass
        self._call.cancel()
