#include "trace/workflow/python_call.h"

#include <algorithm>
#include <cstdlib>

#include "base/status.h"
#include "trace/llm/json_parse.h"

namespace optod::trace {
namespace {

constexpr size_t kKeptOutput = 4'000, kLengthDigits = 8;

// The caller's half of the pipe. It imports what it needs before the code can put something else in its place.
constexpr char kRunner[] = R"py(
import json, os, sys, traceback
request = json.load(sys.stdin)
dump, write, format_list, extract = json.dumps, os.write, traceback.format_list, traceback.extract_tb
def send(answer):
    data = dump(answer, allow_nan=False).encode()
    data = b'%08x' % len(data) + data
    while data:
        data = data[write(3, data):]
def fail(error):
    lines = [f for f in extract(error.__traceback__) if f.filename == 'source.py']
    if isinstance(error, SyntaxError) and error.filename == 'source.py':
        lines = []
    send({'ok': False, 'type': type(error).__name__, 'error': str(error)[:4000], 'traceback': ''.join(format_list(lines))[-4000:]})
space = {'__name__': 'source'}
try:
    import linecache
    linecache.cache['source.py'] = (len(request['source']), None, request['source'].splitlines(True), 'source.py')
    exec(compile(request['source'], 'source.py', 'exec'), space)
    if not callable(space.get(request['function'])):
        raise NameError('the source defines no function ' + request['function'])
    value = space[request['function']](*request['arguments'], **request['keywords'])
    try:
        dump(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError('the result has no JSON form: ' + str(error)) from None
    sys.stdout.flush()
    send({'ok': True, 'value': value})
except BaseException as error:
    fail(error)
)py";

PythonOutcome Failed(const std::string& type, const std::string& error) {
  PythonOutcome outcome;
  outcome.error_type = type;
  outcome.error = error;
  return outcome;
}

}  // namespace

PythonOutcome ReadPythonResult(const std::string& bytes) {
  const auto digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (bytes.size() < kLengthDigits || !std::all_of(bytes.begin(), bytes.begin() + kLengthDigits, digit))
    return Failed("BadResult", "no result came");
  const size_t length = std::strtoul(bytes.substr(0, kLengthDigits).c_str(), nullptr, 16);
  if (length != bytes.size() - kLengthDigits) return Failed("BadResult", "the result is cut or followed by something");
  const Json json = ReadJson(bytes.substr(kLengthDigits));
  const Json& ok = Member(json, "ok");
  if (!ok.is_boolean()) return Failed("BadResult", "the result is not of the agreed form");
  PythonOutcome outcome;
  outcome.ok = ok.get<bool>();
  outcome.value = Dump(Member(json, "value"));
  outcome.error_type = Text(Member(json, "type"));
  outcome.error = Text(Member(json, "error"));
  outcome.traceback = Text(Member(json, "traceback"));
  return outcome;
}

absl::StatusOr<PythonOutcome> CallPython(const Sandbox& sandbox, const PythonCall& call) {
  const Json arguments = ReadJson(call.arguments), keywords = ReadJson(call.keywords);
  if (!arguments.is_array()) return InvalidArgument("python.arguments: must be a list");
  if (!keywords.is_object()) return InvalidArgument("python.keywords: must be a map");
  SandboxCommand command;
  command.argv = {"python3", "-I", "-c", kRunner};
  command.stdin_data =
      Dump({{"source", call.source}, {"function", call.function}, {"arguments", arguments}, {"keywords", keywords}});
  command.limits = call.limits;
  command.cancelled = call.cancelled;
  ASSIGN_OR_RETURN(const SandboxResult ran, sandbox.Run(command));
  PythonOutcome outcome =
      ran.contained.empty() ? ReadPythonResult(ran.process.result) : Failed("SandboxLimit", ran.contained);
  if (outcome.error_type == "BadResult" && ran.process.exit_code != 0)
    outcome.error += Cat(" (exit code ", ran.process.exit_code, ")");
  const std::string& out = ran.process.out;
  outcome.out = out.size() > kKeptOutput ? out.substr(out.size() - kKeptOutput) : out;
  return outcome;
}

}  // namespace optod::trace
