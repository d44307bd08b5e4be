"""The channel to a server: address, credentials, deadlines, request ids, retries. Thread-safe."""

from __future__ import annotations

import random
import time
import uuid
from typing import Any, Callable, Optional, TypeVar

import grpc

from optod import errors
from optod.retry import RetryPolicy

__all__ = ["Transport", "new_request_id"]

T = TypeVar("T")
_OPTIONS = (
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.enable_retries", 0),                   # retries are made here, with the request id in hand
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


def new_request_id() -> str:
    """A fresh UUID4."""
    return str(uuid.uuid4())


def check_address(address: str) -> str:
    """HOST:PORT or unix:PATH; ValueError otherwise."""
    if address.startswith("unix:") and len(address) > 5:
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"address: {address!r} is neither HOST:PORT nor unix:PATH")
    return address


def is_local(address: str) -> bool:
    """Whether an address is a Unix socket or loopback."""
    return address.startswith("unix:") or address.rpartition(":")[0] in ("localhost", "[::1]") or address.startswith("127.")


class Transport:
    """Calls with a deadline, the caller's token and safe retries.

    channel: a grpc.Channel (or what behaves like one).  timeout: seconds a unary call may take, all attempts together.
    """

    def __init__(self, channel: Any, token: str = "", timeout: float = 30.0, retry: RetryPolicy = RetryPolicy(),
                 sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic) -> None:
        self.channel = channel
        self.local = False          # the server is known to be on this machine
        self.timeout = timeout
        self.retry = retry
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._sleep, self._clock = sleep, clock
        self.bytes_sent = self.bytes_received = 0     # of messages that were answered; exact while one thread calls

    @classmethod
    def open(cls, address: str, token: str = "", timeout: float = 30.0, retry: RetryPolicy = RetryPolicy(),
             root_certificates: Optional[bytes] = None) -> "Transport":
        """Opens a channel; the connection is made by the first call."""
        target = check_address(address)
        if root_certificates is None:
            channel = grpc.insecure_channel(target, options=_OPTIONS)
        else:
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(root_certificates), options=_OPTIONS)
        made = cls(channel, token, timeout, retry)
        made.local = is_local(address)
        return made

    def close(self) -> None:
        self.channel.close()

    def retrying(self, attempt_once: Callable[[float], T], timeout: Optional[float] = None, once: bool = False) -> T:
        """Runs ``attempt_once(seconds_left)`` until it succeeds, fails with something else than UNAVAILABLE, or time or attempts are used up.

        once: what cannot be repeated safely is tried a single time.
        """
        limit = self.timeout if timeout is None else timeout
        start = self._clock()
        attempt = 0
        while True:
            attempt += 1
            try:
                return attempt_once(max(limit - (self._clock() - start), 0.001))
            except grpc.RpcError as raw:
                error = errors.from_rpc(raw)
            except errors.Unavailable as raised:
                error = raised
            if once or not self.retry.again(attempt, error):
                raise error from None
            wait = self.retry.wait(attempt, random.random(), error)
            if self._clock() - start + wait >= limit:
                raise error from None
            self._sleep(wait)

    def call(self, method: Any, request: Any, timeout: Optional[float] = None, once: bool = False) -> Any:
        """One unary call. An empty ``request_id`` is filled in before the first attempt, so that a retry is the same request."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = new_request_id()
        answer = self.retrying(lambda left: method(request, timeout=left, metadata=self._metadata), timeout, once)
        self.count(request, answer)
        return answer

    def count(self, request: Any, answer: Any) -> None:
        """Adds the serialized sizes of a message and its answer to the traffic so far."""
        self.bytes_sent += request.ByteSize()
        self.bytes_received += answer.ByteSize()

    def stream(self, method: Any, request: Any, timeout: Optional[float] = None) -> Any:
        """Starts a streaming call, once. Its errors are grpc.RpcError: wrap reads with ``translated``."""
        return method(request, timeout=timeout, metadata=self._metadata)


def translated(iterator: Any) -> Any:
    """The items of a stream; its failure as an OptodError."""
    try:
        yield from iterator
    except grpc.RpcError as raw:
        raise errors.from_rpc(raw) from None


def transfer_timeout(n_bytes: int) -> float:
    """Seconds that ``n_bytes`` may take: 30 s and 100 ms a MB."""
    return 30.0 + n_bytes / 10e6
