"""A scripted server side for tests without one: a method that fails as told, and a clock that only sleeping moves."""

import grpc


class Failure(grpc.RpcError):
    def __init__(self, code, details="", trailers=()):
        self._code, self._details, self._trailers = code, details, tuple(trailers)

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailers


UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE, "connection refused")


class Method:
    """A unary method: plays its script (exceptions are raised), records a copy of every request, its timeout and metadata."""

    def __init__(self, *script):
        self.script, self.calls = list(script), []

    def __call__(self, request, timeout=None, metadata=()):
        copied = type(request)()
        copied.CopyFrom(request)
        self.calls.append((copied, timeout, tuple(metadata)))
        outcome = self.script.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Time:
    def __init__(self):
        self.now, self.slept = 100.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
