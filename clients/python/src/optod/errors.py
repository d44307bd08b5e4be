"""What a call can fail with. Every error is an ``OptodError``; the subclass is the server's status code, the text is the server's own.

    try:
        session.tell_gradients(grads)
    except optod.errors.Aborted:          # somebody moved the head: ask again
        ...
    except optod.errors.InvalidArgument as error:
        print(error.field, error)         # "gradients[w].shape"  "gradients[w].shape: [3] differs from the layout's [4]"
"""

from __future__ import annotations

import re
from typing import Any, Optional

__all__ = ["OptodError", "from_rpc", "from_code", "CODES"]


class OptodError(Exception):
    """A call that failed.

    code: status name ("INVALID_ARGUMENT", ...).  reason: UPPER_SNAKE, to branch on ("REQUEST_ID_REUSED", ...); the code's name when the server
    gave none.  field: path of the field that is wrong ("hyperparameters.lr"), "" when no field is to blame.  retry_after: seconds after which
    the server wants to be asked again, None when it did not say.
    """

    code = "UNKNOWN"

    def __init__(self, message: str, reason: str = "", field: str = "", retry_after: Optional[float] = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code
        self.field = field
        self.retry_after = retry_after


_NUMBERS = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 6: "ALREADY_EXISTS", 7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION", 10: "ABORTED", 11: "OUT_OF_RANGE", 12: "UNIMPLEMENTED", 13: "INTERNAL",
    14: "UNAVAILABLE", 15: "DATA_LOSS", 16: "UNAUTHENTICATED",
}


class Cancelled(OptodError):
    """The call was cancelled, by the caller or because the server drains."""
    code = "CANCELLED"


class InvalidArgument(OptodError):
    """The request alone is wrong; ``field`` names where."""
    code = "INVALID_ARGUMENT"


class DeadlineExceeded(OptodError):
    """No answer in time. The effect may or may not have happened: send the same request id again to learn which."""
    code = "DEADLINE_EXCEEDED"


class NotFound(OptodError):
    """It does not exist, or it is another user's."""
    code = "NOT_FOUND"


class AlreadyExists(OptodError):
    """The id is taken."""
    code = "ALREADY_EXISTS"


class PermissionDenied(OptodError):
    """The caller's role does not allow it."""
    code = "PERMISSION_DENIED"


class ResourceExhausted(OptodError):
    """A budget, quota or size limit; the text names it."""
    code = "RESOURCE_EXHAUSTED"


class FailedPrecondition(OptodError):
    """A right request in the wrong state."""
    code = "FAILED_PRECONDITION"


class Aborted(OptodError):
    """The head moved, an etag is stale, or a request id was used for another request (reason REQUEST_ID_REUSED)."""
    code = "ABORTED"


class OutOfRange(OptodError):
    """A cursor is older than what is kept: list again."""
    code = "OUT_OF_RANGE"


class Unimplemented(OptodError):
    """This server does not offer it."""
    code = "UNIMPLEMENTED"


class Internal(OptodError):
    """A defect of the server."""
    code = "INTERNAL"


class Unavailable(OptodError):
    """Nobody answers there, or the server drains. Calls were already repeated when this is raised."""
    code = "UNAVAILABLE"


class DataLoss(OptodError):
    """A checksum or a length does not fit."""
    code = "DATA_LOSS"


class Unauthenticated(OptodError):
    """No token, or one that is wrong, revoked or expired."""
    code = "UNAUTHENTICATED"


#: status name -> class
CODES = {cls.code: cls for cls in OptodError.__subclasses__()}
__all__ += [cls.__name__ for cls in CODES.values()]

_LEADING_FIELD = re.compile(r"([a-z][a-z0-9_.\[\]]*): ")


def from_code(code: Any, message: str, reason: str = "", field: str = "", retry_after: Optional[float] = None) -> OptodError:
    """The error of a status code (its number or its name). An INVALID_ARGUMENT without a field takes the path that its text begins with."""
    name = _NUMBERS.get(code, "UNKNOWN") if isinstance(code, int) else str(code)
    if not field and name == "INVALID_ARGUMENT":
        found = _LEADING_FIELD.match(message)
        field = found.group(1) if found else ""
    return CODES.get(name, OptodError)(message, reason, field, retry_after)


def from_rpc(error: Any) -> OptodError:
    """The error of a grpc.RpcError: code, text, and the trailing metadata `optod-reason`, `optod-field`, `retry-after-ms`."""
    trailers = {key: value for key, value in (error.trailing_metadata() or ())} if hasattr(error, "trailing_metadata") else {}
    wait = str(trailers.get("retry-after-ms", ""))
    seconds = int(wait) / 1000 if wait.isdigit() and len(wait) <= 8 and int(wait) <= 86_400_000 else None
    return from_code(error.code().name, error.details() or "", str(trailers.get("optod-reason", "")), str(trailers.get("optod-field", "")),
                     seconds)
