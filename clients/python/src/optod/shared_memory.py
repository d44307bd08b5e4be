"""Memory that this process shares with a server on the same machine, so that tensors are copied and not sent.

    [0, 32) nonce   [64, values_offset) gradients, further inputs   [values_offset, end) new parameters, written by the server

An anonymous file (memfd) that only processes of this user can open; the seal against shrinking lets the server map it without fear of a fault.
See SharedMemory in session.proto.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import mmap
import os
import secrets
from typing import Optional

import numpy as np

from optod.v1 import session_pb2

__all__ = ["Memory", "copy_bytes"]

_HEADER = 64
_PARALLEL_BYTES = 2 << 20
_workers: Optional[concurrent.futures.ThreadPoolExecutor] = None
_F_ADD_SEALS, _F_SEAL_SHRINK, _F_SEAL_GROW = 1033, 0x2, 0x4


def copy_bytes(to: np.ndarray, source: np.ndarray) -> None:
    """to[...] = source, uint8 arrays of one length; large ones by up to four threads (NumPy lets go of the interpreter while it copies)."""
    global _workers
    parts = min(4, os.cpu_count() or 1, source.nbytes // _PARALLEL_BYTES)
    if parts < 2:
        to[...] = source
        return
    if _workers is None:
        _workers = concurrent.futures.ThreadPoolExecutor(3, thread_name_prefix="optod-copy")
    bounds = [source.nbytes * i // parts for i in range(parts + 1)]
    others = [_workers.submit(np.copyto, to[a:b], source[a:b]) for a, b in zip(bounds[1:], bounds[2:])]
    to[:bounds[1]] = source[:bounds[1]]
    for other in others:
        other.result()


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
