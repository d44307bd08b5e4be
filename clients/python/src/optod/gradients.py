"""First-order steps on large tensors: gradients out as raw 1 MiB chunks, new parameters back, over one long-lived stream."""

from __future__ import annotations

from typing import Any, Mapping, Optional

import numpy as np

from optod import errors, raw_streams, tensors
from optod.results import TellResult, tell_result
from optod.transport import new_request_id
from optod.v1 import session_pb2

__all__ = ["GradientStream"]


class GradientStream:
    """A stream of steps of one session, made by ``session.gradient_stream()``.  For one thread; a context manager.

        with session.gradient_stream(return_values=True) as stream:
            for batch in data:
                params = stream.step(gradients(params, batch), loss=loss).values

    A stream that breaks loses nothing: the step in flight is sent again on a new one with its own seq and request id, and the server answers
    what it did the first time.
    """

    def __init__(self, session: Any, return_values: bool = True, dtype: Any = None) -> None:
        self._session = session
        self._layout = session.layout
        self._dtype = tensors.dtype_of(dtype) if dtype is not None else 0
        self._return_values = return_values
        self._channel: Optional[raw_streams.StepChannel] = None
        self._follow()

    def _follow(self) -> None:
        """Takes seq and head from the server, on a stream that is open."""
        opened = self._session.transport.retrying(lambda _: self._open()).opened
        self.seq, self.head_version = opened.seq, opened.head_version

    def _open(self) -> raw_streams.StepChannel:
        if self._channel is None:
            self._channel = raw_streams.StepChannel(self._session.transport, self._session.name, self._return_values)
        return self._channel

    def step(self, gradients: Mapping[str, np.ndarray], loss: Optional[float] = None, base_version: Optional[int] = None) -> TellResult:
        """One update.

        gradients: all tensors of the layout, of their shapes, in the stream's dtype.  base_version: where they were taken; None = the version
        this stream last saw.  The result's ``values`` are the new parameters (writable) when the stream was opened with return_values.
        ValueError: a tensor is missing or has another shape or dtype.  Aborted: the head moved; the next step goes on at the new head.
        """
        arrays = self._layout.arrays(gradients, "gradients", self._dtype or None)
        if self._channel is None:
            self._follow()
        begin = session_pb2.StepStreamBegin(seq=self.seq + 1, base_version=self.head_version if base_version is None else base_version,
                                            request_id=new_request_id(), loss=loss, dtype=self._dtype,
                                            total_bytes=sum(value.nbytes for value in arrays))
        result = self._session.transport.retrying(lambda _: self._once(begin, arrays), timeout=300.0)
        self.seq, self.head_version = result.seq, result.head_version
        self._session.note_head(result.head_version)
        return result

    def _once(self, begin: session_pb2.StepStreamBegin, arrays: list) -> TellResult:
        channel = self._open()
        try:
            channel.send(session_pb2.StepStreamRequest(begin=begin))
            for offset, n_bytes, parts in tensors.pieces(arrays):
                channel.send_bytes(tensors.chunk_message(3, offset, n_bytes, parts))
            channel.send(session_pb2.StepStreamRequest(commit=session_pb2.StepStreamCommit(seq=begin.seq)))
            applied = channel.read().applied
            return tell_result(applied, self._read_values(channel) if self._return_values else None)
        except BaseException:
            self._channel = None
            channel.close()
            raise

    def _read_values(self, channel: raw_streams.StepChannel) -> dict:
        flat, received = np.empty(self._layout.total_bytes, dtype=np.uint8), 0
        while received < flat.size:
            chunk = tensors.read_chunk(channel.read_bytes(), 3)
            if chunk is None:
                raise errors.DataLoss("stream: the new parameters are cut short")
            received = tensors.fill(flat, received, chunk)
        return self._layout.views(flat)

    def close(self) -> None:
        """Half-closes the stream. Idempotent."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> "GradientStream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
