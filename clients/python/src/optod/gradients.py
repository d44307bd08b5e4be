"""First-order steps on large tensors: gradients out and new parameters back, in 1 MiB chunks over one long-lived stream or through shared memory."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

import numpy as np

from optod import errors, raw_streams, tensors
from optod.results import TellResult, tell_result
from optod.shared_memory import Memory, copy_bytes
from optod.transport import new_request_id
from optod.v1 import session_pb2, tensor_pb2

__all__ = ["GradientStream"]

_HALVES = (tensor_pb2.DTYPE_BF16, tensor_pb2.DTYPE_F16)


class GradientStream:
    """A stream of steps of one session, made by ``session.gradient_stream()``.  For one thread; a context manager.

        with session.gradient_stream(return_values=True) as stream:
            for batch in data:
                params = stream.step(gradients(params, batch), loss=loss).values

    A stream that breaks loses nothing: the step in flight is sent again on a new one with its own seq and request id, and the server answers
    what it did the first time.  Where the gradients become known one after the other, ``begin``, ``write`` and ``commit`` take the place of
    ``step``, so that the first travel while the last are being computed.

    dtype: of the gradients on the wire, None = the parameters'.  values_dtype: "bf16" or "f16": float32 parameters come back rounded, the server
    keeps float32.  shared_memory: True, False, or "auto" = when the server can use it; ``transport`` says what came of it and
    ``shared_memory_refused`` why not.  extra_bytes: largest sum of further inputs that shared memory shall have room for.  patience: seconds
    over which a step is tried again.  reuse_values: the arrays of ``values`` are those of the step before, overwritten.

    OptodError, FailedPrecondition: the server has lost steps that it had not yet made durable (``lost_steps`` says how many).
    """

    def __init__(self, session: Any, return_values: bool = True, dtype: Any = None, values_dtype: Any = None,
                 shared_memory: Union[bool, str] = "auto", extra_bytes: int = 0, patience: float = 300.0, reuse_values: bool = False) -> None:
        if shared_memory not in (True, False, "auto"):
            raise ValueError(f"shared_memory: {shared_memory!r}; must be True, False or \"auto\"")
        self._session = session
        self._layout = session.layout
        self._dtype = tensors.dtype_of(dtype) if dtype is not None else 0
        self._values_dtype = tensors.dtype_of(values_dtype) if values_dtype is not None else 0
        if self._values_dtype and self._values_dtype not in _HALVES:
            raise ValueError(f"values_dtype: {values_dtype!r}; must be \"bf16\", \"f16\" or None")
        self._return_values = return_values
        self._patience = patience
        self.values_layout = _as_sent_back(self._layout, self._values_dtype)
        self._want_memory = shared_memory
        self._memory: Optional[Memory] = None
        self.shared_memory_refused = "" if shared_memory else "not asked for"
        if shared_memory:
            self._make_memory(extra_bytes)
        self._reuse = np.empty(self.values_layout.total_bytes, np.uint8) if reuse_values and return_values else None
        self._channel: Optional[raw_streams.StepChannel] = None
        self.lost_steps = 0
        self._begun: Optional[_Begun] = None
        self._follow()

    # ---- opening

    def _make_memory(self, extra_bytes: int) -> None:
        widest = sum(int(np.prod(spec.shape, dtype=np.int64)) * max(4, tensors.numpy_dtype(spec.dtype).itemsize)
                     for spec in self._layout.index.tensors)
        if self._want_memory == "auto" and not self._session.transport.local:
            self.shared_memory_refused = "the server's address is not on this machine"
            return
        try:
            self._memory = Memory(widest + extra_bytes, self.values_layout.total_bytes if self._return_values else 0)
        except OSError as error:
            if self._want_memory is True:
                raise
            self.shared_memory_refused = str(error)

    def _follow(self) -> None:
        """Takes seq and head from the server, on a stream that is open."""
        opened = self._session.transport.retrying(lambda _: self._open(), self._patience).opened
        self.seq, self.head_version = opened.seq, opened.head_version

    def connect(self) -> None:
        """Opens the stream when it is not; ``seq`` and ``head_version`` are then the server's."""
        if self._channel is None:
            self._follow()

    def _open(self) -> raw_streams.StepChannel:
        if self._channel is None:
            self._channel = raw_streams.StepChannel(self._session.transport, self._session.name, self._return_values, self._values_dtype,
                                                    self._memory.offer if self._memory else None)
            opened = self._channel.opened
            if self._memory is not None and not opened.shared_memory:
                self.shared_memory_refused = opened.shared_memory_refused or "the server does not know shared memory"
                if self._want_memory is True:
                    self.close()
                    raise errors.FailedPrecondition(self.shared_memory_refused)
        return self._channel

    @property
    def transport(self) -> str:
        """"shared-memory" or "chunks"."""
        return "shared-memory" if self._in_memory() else "chunks"

    def _in_memory(self) -> bool:
        return self._memory is not None and self._channel is not None and self._channel.opened.shared_memory

    # ---- a step at once

    def step(self, gradients: Mapping[str, Optional[np.ndarray]], loss: Optional[float] = None, base_version: Optional[int] = None,
             lr: Optional[float] = None, extra: Optional[Mapping[str, np.ndarray]] = None) -> TellResult:
        """One update.

        gradients: all tensors of the layout, of their shapes, in the stream's dtype; None = the tensor has no gradient in this step and is left
        alone.  base_version: where they were taken; None = the version this stream last saw.  lr: of this step, in place of the session's.
        extra: what the optimizer's tell_inputs name beyond "grad".  The result's ``values`` are the new parameters (writable) when the stream
        was opened with return_values.

        ValueError: a tensor is missing or has another shape or dtype.  Aborted: the head moved; the next step goes on at the new head.
        FailedPrecondition: see the class.
        """
        absent = [i for i, name in enumerate(self._layout.names) if name in gradients and gradients[name] is None]
        present = {name: value for name, value in gradients.items() if value is not None or name not in self._layout.specs}
        missing = [self._layout.names[i] for i in absent]
        arrays = self._layout.arrays(present, "gradients", self._dtype or None, skip=missing)
        self.begin([tensors.spec_of(name, value) for name, value in (extra or {}).items()], absent, base_version)
        arrays += [np.asarray(value, order="C") for value in (extra or {}).values()]
        for value in arrays:
            self.write(value)
        return self.commit(arrays, loss, lr)

    # ---- a step piece by piece

    def begin(self, extra: Sequence[tensor_pb2.TensorSpec] = (), absent: Iterable[int] = (), base_version: Optional[int] = None) -> None:
        """Starts a step, dropping one that was begun and not committed.  extra: specs of what follows the gradients.  absent: positions."""
        self.connect()
        absent = sorted(absent)
        total = sum(size for i, size in enumerate(self._wire_sizes()) if i not in set(absent)) + sum(tensors.spec_bytes(spec) for spec in extra)
        message = session_pb2.StepStreamBegin(seq=self.seq + 1, base_version=self.head_version if base_version is None else base_version,
                                              request_id=new_request_id(), dtype=self._dtype, total_bytes=total, extra=extra, absent=absent)
        again = self._begun is not None and self._begun.channel is self._channel
        self._begun = _Begun(message, self._channel, self._memory if self._in_memory() and total <= self._memory.input.size else None, again)

    def write(self, array: np.ndarray) -> None:
        """The bytes of the next tensor of the step, C-contiguous, in layout order without the absent ones, then the extra inputs.

        A broken stream is not noticed here: ``commit`` sends everything again.  RuntimeError: no step was begun.
        """
        if self._begun is None:
            raise RuntimeError("gradient stream: write comes without begin")
        self._begun.write(array)

    def commit(self, arrays: Sequence[np.ndarray], loss: Optional[float] = None, lr: Optional[float] = None) -> TellResult:
        """Ends the step and waits for its effect.  arrays: everything that was written, for the case that it has to be sent again."""
        begun = self._begun
        if begun is None:
            raise RuntimeError("gradient stream: commit comes without begin")
        self._begun = None
        commit = session_pb2.StepStreamCommit(seq=begun.message.seq, loss=loss, lr=[] if lr is None else [lr])
        attempts: List[_Begun] = [begun]

        def once(_: float) -> TellResult:
            if attempts:
                return self._finish(attempts.pop(), commit)
            channel = self._open()
            self._check_lost(channel.opened.seq, begun.message.seq)
            again = _Begun(begun.message, channel, begun.memory if self._in_memory() else None, False)
            for array in arrays:
                again.write(array)
            return self._finish(again, commit)

        result = self._session.transport.retrying(once, self._patience)
        self.seq, self.head_version = result.seq, result.head_version
        self._session.note_head(result.head_version)
        return result

    def _check_lost(self, server_seq: int, seq: int) -> None:
        if server_seq < seq - 1:
            self.lost_steps = seq - 1 - server_seq
            self._channel = None
            raise errors.FailedPrecondition(
                f"session {self._session.name}: the server came back at step {server_seq}; {self.lost_steps} later steps were acknowledged but "
                f"not yet durable (durability {session_pb2.Durability.Mode.Name(self._session.info.durability.mode)}) and are lost",
                reason="STEPS_LOST")

    def _finish(self, begun: "_Begun", commit: session_pb2.StepStreamCommit) -> TellResult:
        channel = begun.channel
        try:
            begun.flush(commit)
            applied = channel.read().applied
            return tell_result(applied, self._read_values(begun) if self._return_values else None)
        except BaseException:
            self._channel = None
            channel.close()
            raise

    def _read_values(self, begun: "_Begun") -> Dict[str, np.ndarray]:
        layout = self.values_layout
        if begun.memory is not None:
            lies = begun.channel.read()
            if lies.WhichOneof("message") != "in_memory" or lies.in_memory.bytes != layout.total_bytes:
                raise errors.DataLoss("stream: the new parameters are not where they were to be")
            return layout.views(begun.memory.values if self._reuse is not None else begun.memory.values.copy())
        flat = self._reuse if self._reuse is not None else np.empty(layout.total_bytes, dtype=np.uint8)
        received = 0
        while received < flat.size:
            chunk = tensors.read_chunk(begun.channel.read_bytes(), 3)
            if chunk is None:
                raise errors.DataLoss("stream: the new parameters are cut short")
            received = tensors.fill(flat, received, chunk)
        return layout.views(flat)

    def _wire_sizes(self) -> List[int]:
        if not self._dtype:
            return self._layout.sizes
        width = tensors.numpy_dtype(self._dtype).itemsize
        return [int(np.prod(spec.shape, dtype=np.int64)) * width for spec in self._layout.index.tensors]

    # ---- end

    def close(self) -> None:
        """Half-closes the stream. Idempotent; a later step opens it again."""
        self._begun = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> "GradientStream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Begun:
    """A step on its way: begin is sent, bytes go out in chunks or into shared memory."""

    def __init__(self, message: session_pb2.StepStreamBegin, channel: raw_streams.StepChannel, memory: Optional[Memory], restart: bool) -> None:
        self.message, self.channel, self.memory = message, channel, memory
        self._written = self._sent = 0
        self._pending: list = []      # memoryviews that do not fill a chunk yet
        self._filled = 0
        begin = session_pb2.StepStreamBegin()
        begin.CopyFrom(message)
        begin.restart, begin.in_shared_memory = restart, memory is not None
        self._begin: Optional[session_pb2.StepStreamBegin] = begin
        if memory is None:
            self._send_begin()

    def _send_begin(self) -> None:
        """Through shared memory nothing has to leave before the bytes are there: begin goes with commit, so that the copy is not woken up for it."""
        if self._begin is not None:
            self.channel.send(session_pb2.StepStreamRequest(begin=self._begin))
            self._begin = None

    def write(self, array: np.ndarray) -> None:
        raw = tensors.raw(array)
        if self._written + len(raw) > self.message.total_bytes:
            raise ValueError(f"gradient stream: {self._written + len(raw)} bytes written; the step has {self.message.total_bytes}")
        if self.memory is not None:
            copy_bytes(self.memory.input[self._written:self._written + len(raw)], np.frombuffer(raw, np.uint8))
            self._written += len(raw)
            return
        at = 0
        while at < len(raw):
            take = min(tensors.CHUNK_BYTES - self._filled, len(raw) - at)
            self._pending.append(raw[at:at + take])
            at += take
            self._filled += take
            if self._filled == tensors.CHUNK_BYTES:
                self._send()
        self._written += len(raw)

    def _send(self) -> None:
        self.channel.send_bytes(tensors.chunk_message(3, self._sent, self._filled, self._pending))
        self._sent += self._filled
        self._pending, self._filled = [], 0

    def flush(self, commit: session_pb2.StepStreamCommit) -> None:
        if self._written != self.message.total_bytes:
            raise ValueError(f"gradient stream: {self._written} of {self.message.total_bytes} bytes were written before commit")
        if self._filled:
            self._send()
        self._send_begin()
        self.channel.send(session_pb2.StepStreamRequest(commit=commit))


def _as_sent_back(layout: tensors.Layout, dtype: int) -> tensors.Layout:
    """The layout of the parameters that come back when float32 ones come as ``dtype`` (0 = as they are)."""
    if not dtype:
        return layout
    index = tensor_pb2.TensorIndex()
    index.CopyFrom(layout.index)
    for spec in index.tensors:
        if spec.dtype == tensor_pb2.DTYPE_F32:
            spec.dtype = dtype
    index.total_bytes = 0
    return tensors.Layout(index)
