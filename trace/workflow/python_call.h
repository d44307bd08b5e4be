#pragma once
/// Calls one function of a Python source in the sandbox: the source and the arguments go in as JSON on stdin, the
/// result comes back as length-prefixed JSON on a pipe of its own (8 hexadecimal digits, then that many bytes), so that
/// what the code prints cannot be taken for it. The result is the code's own word: whoever scores it must not ask the
/// same process.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trace/sandbox/sandbox.h"

namespace optod::trace {

struct PythonCall {
  std::string source, function;
  std::string arguments = "[]", keywords = "{}";  ///< JSON list, JSON map
  SandboxLimits limits;
  const std::atomic<bool>* cancelled = nullptr;
};

struct PythonOutcome {
  bool ok = false;
  std::string value;       ///< JSON text
  std::string error_type;  ///< "ZeroDivisionError"; "SandboxLimit" when a bound ended it, "BadResult" when it sent none
  std::string error;       ///< message
  std::string traceback;   ///< of the code's own lines
  std::string out;         ///< what it printed, the last 4,000 bytes
};

/// Errors: those of Sandbox::Run. What the code does is an outcome.
absl::StatusOr<PythonOutcome> CallPython(const Sandbox& sandbox, const PythonCall& call);

/// Reads what came on the pipe; never throws, whatever the bytes are.
PythonOutcome ReadPythonResult(const std::string& bytes);

}  // namespace optod::trace
