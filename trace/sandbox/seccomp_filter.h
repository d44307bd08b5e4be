#pragma once
/// The system calls that code in the sandbox may make, as a compiled BPF program for `bwrap --seccomp FD`. An
/// allow-list: what is not on it fails with EPERM (clone3 with ENOSYS, so that the C library falls back to clone, whose
/// flags can be looked at). Other instruction sets of the machine (32-bit, x32) end the process. Thread-safe.
///
/// Not on the list: ptrace, process_vm_*, mount and namespaces, keyctl, bpf, userfaultfd, io_uring, perf, sockets other
/// than an AF_UNIX pair, modules, clocks, set*id beyond what the namespace refuses anyway, memfd, personality, quotas,
/// swap. ioctl: window size, terminal attributes, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX only (no TIOCSTI, no TIOCLINUX).
/// prctl: names, dumpable, the parent-death signal and what the C library asks for.

#include "absl/status/statusor.h"
#include "base/posix_io.h"

namespace optod::trace {

/// A memory file that holds the program, at its beginning. INTERNAL when libseccomp fails; UNIMPLEMENTED on a machine
/// whose system calls it does not know.
absl::StatusOr<UniqueFd> MakeSandboxFilter();

/// Names on the list, for tests and `optoctl doctor`.
size_t SandboxFilterSize();

}  // namespace optod::trace
