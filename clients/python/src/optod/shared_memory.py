"""Memory that this process shares with a server on the same machine, so that tensors are copied and not sent.

    [0, 32) nonce   [64, values_offset) gradients, further inputs   [values_offset, end) new parameters, written by the server

An anonymous file (memfd) that only processes of this user can open; the seal against shrinking lets the server map it without fear of a fault.
See SharedMemory in session.proto.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets

import numpy as np

from optod.v1 import session_pb2

__all__ = ["Memory"]

_HEADER = 64
_F_ADD_SEALS, _F_SEAL_SHRINK, _F_SEAL_GROW = 1033, 0x2, 0x4


class Memory:
    """``input`` and ``values``: uint8 arrays over the two parts.  OSError: the system has no memfd, or no such memory."""

    def __init__(self, input_bytes: int, values_bytes: int) -> None:
        self._offset = (_HEADER + input_bytes + 63) // 64 * 64
        total = max(self._offset + values_bytes, self._offset + 1)
        if not hasattr(os, "memfd_create"):
            raise OSError("shared memory: this system has no memfd_create")
        self._fd = os.memfd_create("optod-" + secrets.token_hex(4), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, total)
            fcntl.fcntl(self._fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)
            self._map = mmap.mmap(self._fd, total)
        except BaseException:
            os.close(self._fd)
            raise
        nonce = secrets.token_bytes(32)
        self._map[:32] = nonce
        whole = np.frombuffer(self._map, dtype=np.uint8)
        self.input = whole[_HEADER:_HEADER + input_bytes]
        self.values = whole[self._offset:self._offset + values_bytes]
        self.offer = session_pb2.SharedMemory(pid=os.getpid(), fd=self._fd, total_bytes=total, values_offset=self._offset, nonce=nonce)

    def close(self) -> None:
        """Closes the file; the mapping lives as long as arrays over it do. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
