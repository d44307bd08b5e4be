"""Work that takes longer than a call: started at once, waited for with progress, cancelled on request."""

from __future__ import annotations

import time
from typing import Any, Callable, Iterator, Optional

from optod import errors
from optod.specs import seconds
from optod.v1 import operation_pb2, operation_pb2_grpc

__all__ = ["Operations", "Progress"]

Progress = Callable[[operation_pb2.Operation], None]


class Operations:
    """``client.operations``.  Names: users/U/operations/ID.  Thread-safe."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._stub = operation_pb2_grpc.OperationServiceStub(transport.channel)

    def get(self, name: str) -> operation_pb2.Operation:
        """Its state now. NotFound."""
        return self._transport.call(self._stub.GetOperation, operation_pb2.GetOperationRequest(name=name))

    def list(self, parent: str = "") -> Iterator[operation_pb2.Operation]:
        """Newest first; pages are fetched as needed."""
        request = operation_pb2.ListOperationsRequest(parent=parent)
        while True:
            page = self._transport.call(self._stub.ListOperations, request)
            yield from page.operations
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(self, name: str) -> operation_pb2.Operation:
        """Asks it to stop; it ends with CANCELLED within 2 s or is already done."""
        return self._transport.call(self._stub.CancelOperation, operation_pb2.CancelOperationRequest(name=name))

    def wait(self, name: str, timeout: float = 600.0, progress: Optional[Progress] = None) -> operation_pb2.Operation:
        """Waits until it is done; ``progress`` gets every state seen, about one a second.

        Raises the operation's own error when it failed, DeadlineExceeded after ``timeout`` seconds (the operation goes on).
        """
        end = time.monotonic() + timeout
        while True:
            left = max(end - time.monotonic(), 0.0)
            request = operation_pb2.WaitOperationRequest(name=name, timeout=seconds(min(left, 1.0)))
            state = self._transport.call(self._stub.WaitOperation, request)
            if progress is not None:
                progress(state)
            if state.done:
                if state.HasField("error"):
                    raise errors.from_code(state.error.code, state.error.message)
                return state
            if left <= 0:
                raise errors.DeadlineExceeded(f"operation {name} is not done after {timeout:g} s: {state.progress_message}")

    def run(self, started: operation_pb2.Operation, response: Any, timeout: float = 600.0, progress: Optional[Progress] = None) -> Any:
        """``wait``, then the response as the message ``response``. An interrupt (Ctrl-C) cancels the operation before it goes on."""
        try:
            done = self.wait(started.name, timeout, progress)
        except KeyboardInterrupt:
            self.cancel(started.name)
            raise
        if not done.response.Unpack(response):
            raise errors.Internal(f"operation {started.name}: its response is {done.response.type_url}, not {response.DESCRIPTOR.full_name}")
        return response
