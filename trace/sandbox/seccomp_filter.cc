#include "trace/sandbox/seccomp_filter.h"

#include <asm/ioctls.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "base/status.h"

namespace optod::trace {
namespace {

// What interpreters, compilers' products and the usual tools use. Names that an architecture lacks are skipped.
constexpr const char* kAllowed[] = {
    // memory
    "brk", "mmap", "mmap2", "munmap", "mprotect", "mremap", "madvise", "msync", "mincore", "mlock", "munlock",
    "membarrier",
    // files
    "access", "chdir", "chmod", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3", "faccessat",
    "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fcntl", "fdatasync", "flock", "fstat",
    "fstat64", "fstatfs", "fsync", "ftruncate", "getcwd", "getdents", "getdents64", "getxattr", "fgetxattr",
    "lgetxattr", "link", "linkat", "listxattr", "flistxattr", "llistxattr", "lseek", "_llseek", "lstat", "mkdir",
    "mkdirat", "newfstatat", "open", "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev",
    "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "rename", "renameat", "renameat2", "rmdir",
    "sendfile", "splice", "tee", "stat", "statfs", "statx", "symlink", "symlinkat", "sync_file_range", "truncate",
    "umask", "unlink", "unlinkat", "utime", "utimensat", "utimes", "write", "writev",
    // waiting and pipes
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2",
    "pipe", "pipe2", "poll", "ppoll", "pselect6", "select", "timerfd_create", "timerfd_gettime", "timerfd_settime",
    "inotify_init1", "inotify_add_watch", "inotify_rm_watch",
    // the socket pair's data
    "recvfrom", "recvmsg", "sendmsg", "sendto", "shutdown", "getsockopt", "setsockopt", "getsockname", "getpeername",
    // processes and threads; the pid namespace bounds whom signals reach
    "arch_prctl", "execve", "execveat", "exit", "exit_group", "fork", "vfork", "futex", "futex_waitv",
    "get_robust_list", "set_robust_list", "set_tid_address", "set_thread_area", "getpgid", "getpgrp", "getpid",
    "getppid", "getpriority", "getrlimit", "getrusage", "getsid", "gettid", "kill", "tgkill", "tkill", "pause",
    "pidfd_open", "pidfd_send_signal", "prlimit64", "rseq", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_getscheduler", "sched_get_priority_max", "sched_get_priority_min", "sched_setaffinity", "sched_yield",
    "setpgid", "setpriority", "setrlimit", "setsid", "times", "ugetrlimit", "wait4", "waitid", "waitpid",
    // signals
    "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sigaltstack", "signalfd", "signalfd4", "sigreturn",
    // who and when
    "alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "getegid", "geteuid", "getgid", "getgroups",
    "getitimer", "getrandom", "getresgid", "getresuid", "getuid", "gettimeofday", "nanosleep", "setitimer", "sysinfo",
    "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "uname", "getcpu",
    "capget"};

constexpr unsigned long long kIoctls[] = {TCGETS, TIOCGWINSZ, TIOCGPGRP, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX};

constexpr int kPrctls[] = {PR_SET_NAME,         PR_GET_NAME,     PR_SET_PDEATHSIG, PR_GET_PDEATHSIG,
                           PR_GET_DUMPABLE,     PR_SET_DUMPABLE, PR_SET_VMA,       PR_GET_NO_NEW_PRIVS,
                           PR_SET_NO_NEW_PRIVS, PR_CAPBSET_READ, PR_GET_TIMERSLACK};

constexpr unsigned long long kNewNamespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                              CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_PTRACE |
                                              CLONE_UNTRACED;

struct Release {
  void operator()(void* filter) const { seccomp_release(filter); }
};

absl::Status Failed(const char* what, int error) {
  return Internal("sandbox: seccomp: ", what, ": ", std::strerror(error < 0 ? -error : error));
}

class Rules {
 public:
  explicit Rules(scmp_filter_ctx filter) : filter_(filter) {}

  /// A name that the machine's instruction set does not have needs no rule.
  template <typename... Comparisons>
  void Add(uint32_t action, const char* name, Comparisons... comparisons) {
    const int number = seccomp_syscall_resolve_name(name);
    if (number == __NR_SCMP_ERROR || number < 0 || !status_.ok()) return;
    const int error = seccomp_rule_add(filter_, action, number, sizeof...(comparisons), comparisons...);
    if (error != 0) status_ = Failed(name, error);
  }
  const absl::Status& status() const { return status_; }

 private:
  scmp_filter_ctx filter_;
  absl::Status status_;
};

absl::Status AddRules(scmp_filter_ctx filter) {
  Rules rules(filter);
  for (const char* name : kAllowed) rules.Add(SCMP_ACT_ALLOW, name);
  // All 64 bits are compared: a request with something in the upper half matches none and fails.
  for (const unsigned long long request : kIoctls) rules.Add(SCMP_ACT_ALLOW, "ioctl", SCMP_A1(SCMP_CMP_EQ, request));
  for (const int option : kPrctls)
    rules.Add(SCMP_ACT_ALLOW, "prctl", SCMP_A0(SCMP_CMP_EQ, static_cast<unsigned long long>(option)));
  rules.Add(SCMP_ACT_ALLOW, "clone", SCMP_A0(SCMP_CMP_MASKED_EQ, kNewNamespaces, 0));
  rules.Add(SCMP_ACT_ERRNO(ENOSYS), "clone3");
  rules.Add(SCMP_ACT_ALLOW, "socketpair", SCMP_A0(SCMP_CMP_EQ, AF_UNIX));
  return rules.status();
}

}  // namespace

size_t SandboxFilterSize() { return std::size(kAllowed) + 4; }

absl::StatusOr<UniqueFd> MakeSandboxFilter() {
  const std::unique_ptr<void, Release> filter(seccomp_init(SCMP_ACT_ERRNO(EPERM)));
  if (filter == nullptr) return Unimplemented("sandbox: seccomp: libseccomp does not know this machine");
  RETURN_IF_ERROR(AddRules(filter.get()));
  UniqueFd file(memfd_create("optod-seccomp", MFD_CLOEXEC));
  if (!file.ok()) return Failed("memory file", errno);
  if (const int error = seccomp_export_bpf(filter.get(), file.get()); error != 0) return Failed("export", error);
  if (lseek(file.get(), 0, SEEK_SET) != 0) return Failed("memory file", errno);
  return file;
}

}  // namespace optod::trace
