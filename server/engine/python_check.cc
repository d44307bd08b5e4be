#include "server/engine/python_check.h"

#include "base/status.h"
#include "base/subprocess.h"

namespace optod::engine {
namespace {

constexpr char kProgram[] = R"(import ast, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (8, 8))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
source = sys.stdin.buffer.read()
try:
    ast.parse(source)
except SyntaxError as error:
    print("line %s: %s" % (error.lineno, error.msg))
except (ValueError, RecursionError, MemoryError) as error:
    print("%s: %s" % (type(error).__name__, error))
else:
    print("ok")
)";

}  // namespace

std::string CheckWithPython(std::string_view source) {
  SubprocessOptions options;
  options.argv = {"python3", "-I", "-S", "-c", kProgram};
  options.inherit_environment = false;
  options.environment = {{"PATH", "/usr/bin:/bin"}, {"PYTHONDONTWRITEBYTECODE", "1"}};
  options.stdin_data = std::string(source);
  options.timeout = std::chrono::seconds(10);
  options.max_output_bytes = 4096;
  auto result = RunSubprocess(options);
  if (!result.ok()) return {};  // no interpreter here
  if (result->timed_out) return "takes Python longer than 10 s to parse";
  if (result->signal != 0) return "is too deeply nested for Python's parser";
  std::string said = result->out.substr(0, result->out.find('\n'));
  if (said == "ok") return {};
  if (said.empty()) return "cannot be parsed by Python";
  return Cat("is no Python source: ", said);
}

}  // namespace optod::engine
