// Escapes as a hostile author would try them. Each is a Python program whose attempt() returns when it got what it
// wanted and raises when it was refused; what must not happen is the line ESCAPED. Attempts that exhaust something are
// ended from outside, and the caller is told by which bound. After all of them the host is as it was.
#include <arpa/inet.h>
#include <dirent.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "gtest/gtest.h"
#include "trace/sandbox/sandbox.h"

namespace optod::trace {
namespace {

constexpr char kCanary[] = "canary-5c1f9e77";

/// How an attempt may end.
enum class End {
  kRefused,  ///< attempt() raised
  kKilled,   ///< a signal ended the program
  kBound,    ///< the caller ended it, naming `bound`
};

struct Escape {
  const char* name;
  const char* attempt;  ///< body of attempt()
  End end = End::kRefused;
  const char* bound = "";
};

constexpr char kPreamble[] = R"py(
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, stat, struct, subprocess, sys, threading, time
CANARY_FILE, CANARY, HOST_PID, PORT, ABSTRACT = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def machine_code(code):
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0: raise OSError(done.returncode, done.stderr)
    return done.stdout
)py";

constexpr char kEnding[] = R"py(
try:
    got = attempt()
except BaseException as error:
    print('refused:', type(error).__name__, error, flush=True)
else:
    print('ESCAPED:', repr(got)[:200], flush=True)
)py";

const Escape kEscapes[] = {
    // --- files of the host
    {"read_shadow", "return open('/etc/shadow').read()"},
    {"read_passwd", "return open('/etc/passwd').read()"},
    {"list_root_home", "return os.listdir('/root')"},
    {"list_home", "return os.listdir('/home')"},
    {"read_host_tmp", "return open(CANARY_FILE).read()"},
    {"read_through_symlink", "os.symlink(CANARY_FILE, '/tmp/link'); return open('/tmp/link').read()"},
    {"read_through_dots", "return open('../' * 40 + CANARY_FILE.lstrip('/')).read()"},
    {"read_var", "return os.listdir('/var')"},
    {"read_run", "return os.listdir('/run')"},
    {"read_sys", "return os.listdir('/sys')"},
    {"write_usr", "return open('/usr/bin/evil', 'w').write('x')"},
    {"write_into_a_program", "return open('/usr/bin/env', 'r+b').write(b'x')"},
    {"write_root", "return open('/evil', 'w').write('x')"},
    {"write_dev", "return open('/dev/evil', 'w').write('x')"},
    {"write_alternatives", "return open('/etc/alternatives/evil', 'w').write('x')"},
    {"chmod_program", "return os.chmod('/usr/bin/env', 0o4777)"},
    {"hard_link_of_a_program", "return os.link('/usr/bin/env', '/tmp/env')"},
    {"rename_over_usr", "open('/tmp/x', 'w').close(); return os.rename('/tmp/x', '/usr/bin/env')"},
    {"utime_program", "return os.utime('/usr/bin/env', (0, 0))"},
    {"open_by_handle", "return syscall(304, -100, ctypes.create_string_buffer(128), 0)"},
    {"leaked_descriptors",
     "open_ones = []\n"
     "    for fd in range(4, 4096):\n"
     "        try: os.fstat(fd)\n"
     "        except OSError: continue\n"
     "        open_ones.append(fd)\n"
     "    if open_ones: return open_ones\n"
     "    raise OSError('none')"},
    // --- /proc and what it leads to
    {"proc_root", "return os.listdir('/proc/1/root/etc')"},
    {"proc_environ", "return open('/proc/1/environ', 'rb').read()"},
    {"proc_mem", "return open('/proc/self/mem', 'r+b')"},
    {"core_pattern", "return open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')"},
    {"mount_proc", "os.mkdir('/tmp/p'); return syscall(165, b'proc', b'/tmp/p', b'proc', 0, 0)"},
    {"core_dump",
     "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
     "    if hard != 0: return hard\n"
     "    raise OSError('no core')"},
    // --- mounts, roots and namespaces
    {"mount_tmpfs", "return syscall(165, b'x', b'/usr', b'tmpfs', 0, 0)"},
    {"remount_usr_writable", "return syscall(165, b'x', b'/usr', 0, 32 | 4096, 0)"},
    {"bind_mount", "return syscall(165, b'/usr', b'/tmp', 0, 4096, 0)"},
    {"umount", "return syscall(166, b'/usr', 2)"},
    {"open_tree", "return syscall(428, -100, b'/', 1)"},
    {"fsopen", "return syscall(430, b'tmpfs', 0)"},
    {"move_mount", "return syscall(429, -100, b'/usr', -100, b'/tmp', 0)"},
    {"pivot_root", "return syscall(155, b'/tmp', b'/tmp')"},
    {"chroot", "os.chroot('/tmp'); return 1"},
    {"unshare_user", "return syscall(272, 0x10000000)"},
    {"unshare_mount", "return syscall(272, 0x00020000)"},
    {"clone_new_user", "return syscall(56, 0x10000000 | 17, 0, 0, 0, 0)"},
    {"clone_new_net", "return syscall(56, 0x40000000 | 17, 0, 0, 0, 0)"},
    {"clone3", "return syscall(435, ctypes.create_string_buffer(struct.pack('<11Q', 0x10000000, *[0] * 10)), 88)"},
    {"setns", "return syscall(308, 0, 0)"},
    {"sethostname", "return syscall(170, b'evil', 4)"},
    // --- network
    {"tcp_to_host", "return socket.create_connection(('127.0.0.1', PORT), timeout=2)"},
    {"udp", "return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"},
    {"ipv6", "return socket.socket(socket.AF_INET6, socket.SOCK_STREAM)"},
    {"raw_socket", "return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"},
    {"dns", "return socket.getaddrinfo('deb.debian.org', 80)"},
    {"unix_socket", "return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect('\\0' + ABSTRACT)"},
    {"netlink", "return socket.socket(16, socket.SOCK_RAW, 0)"},
    {"packet", "return socket.socket(17, socket.SOCK_RAW, 0)"},
    {"kernel_crypto_socket", "return socket.socket(38, socket.SOCK_SEQPACKET, 0)"},
    {"vsock", "return socket.socket(40, socket.SOCK_STREAM, 0)"},
    {"socketpair_of_inet", "return socket.socketpair(socket.AF_INET)"},
    // --- other processes
    {"signal_the_server", "return os.kill(HOST_PID, 0)"},
    {"kill_the_server", "return os.kill(HOST_PID, signal.SIGKILL)"},
    {"signal_the_parent",
     "os.kill(os.getppid(), signal.SIGSTOP); os.kill(os.getppid(), signal.SIGKILL)\n"
     "    time.sleep(0.1)\n"
     "    os.kill(os.getppid(), 0); raise OSError('the first process of the namespace does not mind')"},
    {"kill_everybody", "os.kill(-1, signal.SIGKILL)\n    raise OSError('nobody was there')"},
    {"priority_of_the_server", "return os.setpriority(os.PRIO_PROCESS, HOST_PID, 19)"},
    {"limits_of_the_server", "return resource.prlimit(HOST_PID, resource.RLIMIT_NOFILE, (1, 1))"},
    {"ptrace_traceme", "return syscall(101, 0, 0, 0, 0)"},
    {"ptrace_attach", "return syscall(101, 16, os.getppid(), 0, 0)"},
    {"read_memory", "b = ctypes.create_string_buffer(16); return syscall(310, 1, b, 1, b, 1, 0)"},
    {"pidfd_of_the_server", "return syscall(434, HOST_PID, 0)"},
    {"pidfd_getfd", "return syscall(438, syscall(434, os.getppid(), 0), 0, 0)"},
    {"kcmp", "return syscall(312, os.getpid(), 1, 0, 0, 0)"},
    // --- the kernel's dark corners
    {"keyctl", "return syscall(250, 0, -3, 1)"},
    {"add_key", "return syscall(248, b'user', b'evil', b'x', 1, -3)"},
    {"request_key", "return syscall(249, b'user', b'evil', 0, -3)"},
    {"userfaultfd", "return syscall(323, 0)"},
    {"io_uring", "return syscall(425, 8, ctypes.create_string_buffer(120))"},
    {"bpf", "return syscall(321, 0, ctypes.create_string_buffer(120), 120)"},
    {"perf_event", "return syscall(298, ctypes.create_string_buffer(b'\\0' * 120), 0, -1, -1, 0)"},
    {"personality", "return syscall(135, 0x0040000)"},
    {"memfd", "return syscall(319, b'evil', 0)"},
    {"init_module", "return syscall(175, b'x', 1, b'')"},
    {"kexec", "return syscall(246, 0, 0, 0, 0)"},
    {"reboot", "return syscall(169, 0xfee1dead, 672274793, 0x01234567, 0)"},
    {"swapon", "return syscall(167, b'/tmp/x', 0)"},
    {"quotactl", "return syscall(179, 0, 0, 0, 0)"},
    {"acct", "return syscall(163, b'/tmp/x')"},
    {"syslog", "return syscall(103, 3, ctypes.create_string_buffer(100), 100)"},
    {"clock_settime", "return time.clock_settime(time.CLOCK_REALTIME, 0)"},
    {"fanotify", "return syscall(300, 0, 0)"},
    {"shared_memory", "return syscall(29, 1234, 4096, 0o1777)"},
    {"message_queue", "return syscall(68, 1234, 0o1777)"},
    {"posix_queue", "return syscall(240, b'evil', 0o100 | 2, 0o777, 0)"},
    {"iopl", "return syscall(172, 3)"},
    {"ldt", "return syscall(154, 1, ctypes.create_string_buffer(16), 16)"},
    {"lookup_dcookie_vmsplice", "return syscall(278, 0, 0, 0, 0)"},
    {"own_filter_off", "return syscall(317, 0, 0, 0)"},
    {"real_time_priority", "return os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))"},
    {"raise_hard_limit", "return syscall(302, 0, 6, ctypes.create_string_buffer(struct.pack('<QQ', 4096, 4096)), 0)"},
    {"int_0x80", "return machine_code(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')", End::kKilled},  // getpid of 32 bit
    {"x32", "return syscall(0x40000000 + 39)", End::kKilled},
    // --- devices and terminals
    {"dev_mem", "return open('/dev/mem', 'rb').read(1)"},
    {"dev_kmsg", "return open('/dev/kmsg').readline()"},
    {"mknod", "os.mknod('/tmp/disk', stat.S_IFBLK | 0o600, os.makedev(8, 0)); return open('/tmp/disk', 'rb').read(1)"},
    {"tiocsti", "return [fcntl.ioctl(fd, 0x5412, b'x') for fd in (0, 1, 2)]"},
    {"tiocsti_by_the_upper_half", "return syscall(16, 0, 0x100000000 | 0x5412, b'x')"},
    {"tiocsti_controlling_terminal", "return fcntl.ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x')"},
    {"tiocsti_own_terminal", "m, s = os.openpty(); return fcntl.ioctl(s, 0x5412, b'x')"},
    // --- more rights
    {"setuid_0", "os.setuid(0); return os.getuid()"},
    {"setgroups", "return os.setgroups([0])"},
    {"su", "return run('su', '-c', 'id')"},
    {"setuid_program_of_its_own",
     "import shutil; shutil.copy('/usr/bin/id', '/tmp/id'); os.chmod('/tmp/id', 0o4755)\n"
     "    if run('/tmp/id', '-u').strip() == '0': return 'root'\n"
     "    raise OSError('still nobody')"},
    {"capabilities",
     "data = ctypes.create_string_buffer(24)\n"
     "    syscall(125, ctypes.create_string_buffer(struct.pack('<Ii', 0x20080522, 0)), data)\n"
     "    if any(struct.unpack('<6I', data.raw)): return data.raw\n"
     "    raise OSError('none')"},
    {"capset",
     "return syscall(126, ctypes.create_string_buffer(struct.pack('<Ii', 0x20080522, 0)), "
     "ctypes.create_string_buffer(struct.pack('<6I', *[0xffffffff] * 6)))"},
    // --- secrets
    {"environment",
     "found = [v for v in os.environ.values() if CANARY in v]\n"
     "    if found: return found\n"
     "    raise KeyError('nothing')"},
    {"environment_memory",
     "block = (ctypes.c_char_p * 64).in_dll(libc, 'environ') if False else os.environb\n"
     "    if CANARY.encode() in b''.join(block.values()): return 'found'\n"
     "    raise KeyError('nothing')"},
    {"host_shared_memory", "return open('/dev/shm/' + os.path.basename(CANARY_FILE)).read()"},
    // --- exhaustion: what is bounded inside ...
    {"fork_bomb",
     "n = 0\n"
     "    while n < 5000:\n"
     "        if os.fork() == 0: time.sleep(60); os._exit(0)\n"
     "        n += 1\n"
     "    return n"},
    {"thread_bomb",
     "threads = [threading.Thread(target=time.sleep, args=(60,), daemon=True) for _ in range(5000)]\n"
     "    try:\n"
     "        for t in threads: t.start()\n"
     "    except RuntimeError as error: print('refused:', error, flush=True); os._exit(0)\n"
     "    return len(threads)"},
    {"memory_of_one", "return len(bytearray(2 << 30))"},
    {"fill_scratch",
     "total = 0\n"
     "    for i in range(64):\n"
     "        with open('/tmp/f%d' % i, 'wb') as f:\n"
     "            for _ in range(64): total += f.write(b'x' * (1 << 20))\n"
     "    return total"},
    {"fill_shared_memory", "return open('/dev/shm/x', 'wb').write(b'x' * (8 << 20)) or 1"},
    {"huge_sparse_file", "return os.truncate(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 1 << 40)"},
    {"descriptors", "return [os.dup(0) for _ in range(100000)]"},
    // ... and what is ended from outside
    {"memory_of_many",
     "for _ in range(12):\n"
     "        if os.fork() == 0:\n"
     "            hoard = bytearray(os.urandom(1 << 20)) * 100; time.sleep(60); os._exit(0)\n"
     "    time.sleep(60); return 'all there'",
     End::kBound, "of memory"},
    {"flood_stdout", "while True: os.write(1, b'x' * 65536)", End::kBound, "it wrote more than"},
    {"flood_stderr", "while True: os.write(2, b'x' * 65536)", End::kBound, "it wrote more than"},
    {"flood_result", "while True: os.write(3, b'x' * 65536)", End::kBound, "it wrote more than"},
    {"sleep", "time.sleep(1000)", End::kBound, "the wall clock"},
    {"sleep_ignoring_signals",
     "[signal.signal(s, signal.SIG_IGN) for s in range(1, 32) if s not in (9, 19)]\n    time.sleep(1000)", End::kBound,
     "the wall clock"},
    {"stop_itself", "os.kill(os.getpid(), signal.SIGSTOP)", End::kBound, "the wall clock"},
    {"spin", "while True: pass", End::kBound, "CPU time"},
    {"spin_ignoring_the_signal", "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n    while True: pass", End::kKilled},
    {"spin_in_many", "[os.fork() for _ in range(3)]\n    while True: pass", End::kBound, ""},
    {"daemon",
     "for _ in range(2):\n"
     "        if os.fork(): time.sleep(0.05); os._exit(0)\n"
     "        os.setsid()\n"
     "    for fd in range(4): os.close(fd)\n"
     "    os.execv('/usr/bin/sleep', ['optod-escape-daemon-%d-' % HOST_PID, '1000'])",
     End::kBound, ""},
};

/// A server of the host that nothing in a sandbox may reach.
class Host {
 public:
  Host() {
    char name[] = "/tmp/optod-escape-XXXXXX";
    folder_ = mkdtemp(name);
    chmod(folder_.c_str(), 0755);
    file_ = folder_ + "/secret";
    std::ofstream(file_) << kCanary;
    std::ofstream("/dev/shm/secret") << kCanary;
    setenv("OPTOD_LLM_KEY", kCanary, 1);
    tcp_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(tcp_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(tcp_, 8) != 0) std::abort();
    getsockname(tcp_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    unix_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un local{};
    local.sun_family = AF_UNIX;
    abstract_ = "optod-escape-" + std::to_string(getpid());
    std::copy(abstract_.begin(), abstract_.end(), local.sun_path + 1);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + abstract_.size());
    if (bind(unix_, reinterpret_cast<sockaddr*>(&local), length) != 0 || listen(unix_, 8) != 0) std::abort();
    // A descriptor that a careless launcher would hand on.
    leak_ = dup(tcp_);
  }
  ~Host() {
    for (const int fd : {tcp_, unix_, leak_}) close(fd);
    std::filesystem::remove_all(folder_);
    unlink("/dev/shm/secret");
    unsetenv("OPTOD_LLM_KEY");
  }
  std::vector<std::string> Arguments() const {
    return {file_, kCanary, std::to_string(getpid()), std::to_string(port_), abstract_};
  }
  void ExpectUnharmed() const {
    std::string text;
    std::ifstream(file_) >> text;
    EXPECT_EQ(text, kCanary);
    EXPECT_FALSE(std::filesystem::exists("/usr/bin/evil"));
    EXPECT_FALSE(std::filesystem::exists("/evil"));
    struct stat info {};
    ASSERT_EQ(stat("/usr/bin/env", &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0755u);
  }

 private:
  std::string folder_, file_, abstract_;
  int tcp_ = -1, unix_ = -1, leak_ = -1, port_ = 0;
};

/// Processes of this machine with `word` in their command line.
int Running(const std::string& word) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::stringstream line;
    line << std::ifstream(entry.path() / "cmdline").rdbuf();
    count += line.str().compare(0, word.size(), word) == 0;
  }
  return count;
}

const Sandbox& Of(bool cgroups) {
  static const auto with = Sandbox::Detect("/usr/bin:/bin", true), without = Sandbox::Detect("/usr/bin:/bin", false);
  return cgroups ? *with : *without;
}

SandboxCommand CommandOf(const Escape& escape, const Host& host) {
  const std::string body = std::string("def attempt():\n    ") + escape.attempt + "\n";
  SandboxCommand command;
  command.argv = {"python3", "-I", "-c", kPreamble + body + kEnding};
  for (const std::string& argument : host.Arguments()) command.argv.push_back(argument);
  // The memory of the fork bomb's idle copies is not what it is about.
  command.limits.memory_bytes = int64_t{400} << 20;
  command.limits.cpu_seconds = 1;
  const bool by_the_clock = escape.end == End::kBound && std::string(escape.bound) != "CPU time";
  command.limits.wall = std::chrono::milliseconds(by_the_clock ? 2'500 : 60'000);
  return command;
}

class EscapeTest : public ::testing::TestWithParam<Escape> {};

void ExpectContained(const Escape& escape, bool cgroups) {
  const Sandbox& sandbox = Of(cgroups);
  if (!sandbox.features().available) GTEST_SKIP() << sandbox.features().reason;
  const Host host;
  const auto result = sandbox.Run(CommandOf(escape, host));
  ASSERT_TRUE(result.ok()) << result.status();
  const std::string said = result->process.out.substr(0, 500) + result->process.err.substr(0, 500);
  EXPECT_EQ(result->process.out.find("ESCAPED"), std::string::npos) << said;
  EXPECT_EQ((result->process.out + result->process.err + result->process.result).find(kCanary), std::string::npos);
  switch (escape.end) {
    case End::kRefused:
      EXPECT_NE(result->process.out.find("refused:"), std::string::npos) << result->contained << "\n" << said;
      // A body that is no Python would pass for contained.
      for (const char* mistake : {"SyntaxError", "NameError", "TypeError", "AttributeError", "ValueError"})
        EXPECT_EQ(said.find(mistake), std::string::npos) << said;
      break;
    case End::kKilled:
      EXPECT_GT(result->process.exit_code, 128) << said;
      break;
    case End::kBound:
      EXPECT_NE(result->contained.find(escape.bound), std::string::npos) << result->contained << "\n" << said;
  }
  host.ExpectUnharmed();
  EXPECT_EQ(Running("optod-escape-daemon-" + std::to_string(getpid()) + "-"), 0);
}

TEST_P(EscapeTest, IsContained) {
#ifndef __x86_64__
  GTEST_SKIP() << "the numbers of the system calls are those of x86-64";
#endif
  ExpectContained(GetParam(), true);
}
INSTANTIATE_TEST_SUITE_P(All, EscapeTest, ::testing::ValuesIn(kEscapes),
                         [](const auto& info) { return info.param.name; });

// What control groups bound must be bounded without them too.
TEST(EscapeWithoutControlGroups, IsContained) {
  for (const Escape& escape : kEscapes) {
    for (const char* name : {"fork_bomb", "thread_bomb", "memory_of_one", "memory_of_many", "daemon"}) {
      if (std::string(escape.name) == name) ExpectContained(escape, false);
    }
  }
}

}  // namespace
}  // namespace optod::trace
