"""When a call is sent again, and after how long. Pure functions."""

from __future__ import annotations

import dataclasses

from optod import errors

__all__ = ["RetryPolicy"]


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """UNAVAILABLE only; ``attempts`` in all; waits double from ``first_wait`` to ``longest_wait`` (seconds)."""

    attempts: int = 4
    first_wait: float = 0.1
    longest_wait: float = 2.0

    def again(self, attempt: int, error: errors.OptodError) -> bool:
        """Whether attempt number ``attempt`` (1, 2, ...) that failed with ``error`` is followed by another one."""
        return isinstance(error, errors.Unavailable) and attempt < self.attempts

    def wait(self, attempt: int, jitter: float, error: errors.OptodError) -> float:
        """Seconds to wait after attempt number ``attempt``: first_wait * 2**(attempt-1), at most longest_wait, scaled by 0.8 + 0.4 * jitter
        (jitter in [0, 1)) so that many clients do not come back at one moment. What the server asked for replaces it."""
        if error.retry_after is not None:
            return error.retry_after
        return min(self.first_wait * 2.0 ** min(attempt - 1, 30), self.longest_wait) * (0.8 + 0.4 * jitter)
