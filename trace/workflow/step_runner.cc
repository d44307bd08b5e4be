#include "trace/workflow/step_runner.h"

#include <re2/re2.h>

#include <algorithm>
#include <cctype>
#include <cmath>

#include "base/status.h"
#include "base/subprocess.h"
#include "trace/llm/json_parse.h"
#include "trace/optimizers/json_schema.h"
#include "trace/optimizers/json_value.h"
#include "trace/workflow/operators.h"
#include "trace/workflow/python_call.h"

namespace optod::trace {
namespace {

constexpr size_t kErrorBytes = 2'000;

std::string End(const std::string& text, size_t bytes = kErrorBytes) {
  return text.size() <= bytes ? text : "..." + text.substr(text.size() - bytes);
}

std::string WithoutLastBreak(std::string text) {
  if (!text.empty() && text.back() == '\n') text.pop_back();
  if (!text.empty() && text.back() == '\r') text.pop_back();
  return text;
}

/// The last line with something in it.
std::string LastLine(const std::string& text) {
  const size_t end = text.find_last_not_of(" \t\r\n");
  if (end == std::string::npos) return "";
  const size_t begin = text.find_last_of('\n', end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1,
                     end - (begin == std::string::npos ? 0 : begin + 1) + 1);
}

StepOutcome ValueOf(CommandResult form, const SubprocessResult& ran) {
  switch (form) {
    case CommandResult::kText:
      return Good(JsonOfText(WithoutLastBreak(ran.out)));
    case CommandResult::kJson: {
      const Json value = ReadJson(LastLine(ran.out));
      return value.is_discarded()
                 ? Bad("ValueError", "the last line of its output is not JSON: " + End(LastLine(ran.out), 200))
                 : Good(Dump(value));
    }
    case CommandResult::kNumber: {
      auto number = ApplyOperator("number", {JsonOfText(LastLine(ran.out))});
      return number.ok()
                 ? Good(*number)
                 : Bad("ValueError", "the last line of its output is not a number: " + End(LastLine(ran.out), 200));
    }
    case CommandResult::kExitCode:
      return Good(Cat(ran.exit_code));
    case CommandResult::kAll:
      break;
  }
  return Good(Dump({{"exit_code", ran.exit_code}, {"out", ran.out}, {"err", ran.err}}));
}

/// The JSON object in a reply: the whole of it, or from the first brace to the last.
Json ObjectIn(const std::string& text) {
  const Json whole = ReadJson(text);
  if (whole.is_object()) return whole;
  const size_t begin = text.find('{'), end = text.rfind('}');
  if (begin == std::string::npos || end == std::string::npos || end < begin) return Json(Json::value_t::discarded);
  return ReadJson(text.substr(begin, end - begin + 1));
}

std::string Quoted(const std::string& json) { return json.size() <= 300 ? json : json.substr(0, 297) + "..."; }

std::string Folded(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x80) c = static_cast<char>(std::tolower(c));
  const size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

Verdict Scored(double score, std::string feedback) {
  Verdict verdict;
  verdict.ok = true;
  verdict.score = score;
  verdict.feedback = std::move(feedback);
  return verdict;
}

Verdict NoVerdict(StepOutcome failure) {
  Verdict verdict;
  verdict.failure = std::move(failure);
  return verdict;
}

absl::StatusOr<double> NumberOf(const std::string& json) {
  ASSIGN_OR_RETURN(const std::string number, ApplyOperator("number", {json}));
  return ReadJson(number).get<double>();
}

Verdict Exact(const Guide& guide, const std::string& got, const std::string& want) {
  const bool same = guide.ignore_case ? Folded(PlainText(got)) == Folded(PlainText(want))
                                      : ReadJson(got) == ReadJson(want) || PlainText(got) == PlainText(want);
  return Scored(same ? 1 : 0, same ? "correct" : Cat("wrong: got ", Quoted(got), ", expected ", Quoted(want)));
}

Verdict Numeric(const Guide& guide, const std::string& got, const std::string& want) {
  const auto x = NumberOf(got), y = NumberOf(want);
  if (!y.ok()) return NoVerdict(Bad("ValueError", "want: " + std::string(y.status().message()), false));
  if (!x.ok()) return Scored(0, Cat("wrong: got ", Quoted(got), ", which is not a number; expected ", Quoted(want)));
  const bool good = std::abs(*x - *y) <= guide.tolerance * std::max(1.0, std::abs(*y));
  return Scored(good ? 1 : 0, good ? "correct" : Cat("wrong: got ", Quoted(got), ", expected ", Quoted(want)));
}

/// "" when the value follows the schema: `$.items[2]: -1 is below the minimum 0`.
std::string Violation(const std::string& schema, const Json& value) {
  const auto parsed = ParseJson(Dump(value));
  return parsed ? CheckJsonSchema(schema, *parsed, "$") : "$: is nested too deeply to check";
}

Verdict Schema(const Guide& guide, const std::string& got) {
  // A text is checked as the JSON that it holds: replies of models are texts.
  Json value = ReadJson(got);
  if (value.is_string()) value = ObjectIn(value.get<std::string>());
  const std::string broken = value.is_discarded() ? "is not JSON" : Violation(guide.schema, value);
  return Scored(broken.empty() ? 1 : 0,
                broken.empty() ? "follows the schema" : "does not follow the schema: " + broken);
}

}  // namespace

StepOutcome Good(std::string json) {
  StepOutcome outcome;
  outcome.ok = true;
  outcome.value = std::move(json);
  return outcome;
}

StepOutcome Bad(std::string type, std::string error, bool retryable) {
  StepOutcome outcome;
  outcome.error_type = std::move(type);
  outcome.error = std::move(error);
  outcome.retryable = retryable;
  return outcome;
}

StepOutcome BadStatus(const absl::Status& status) {
  StepOutcome outcome = Bad("RuntimeError", std::string(status.message()));
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
      outcome.error_type = "CancelledError";
      outcome.cancelled = true;
      break;
    case absl::StatusCode::kDeadlineExceeded:
      outcome.error_type = "TimeoutError";
      break;
    case absl::StatusCode::kNotFound:
      outcome.error_type = "KeyError";
      outcome.retryable = false;
      break;
    case absl::StatusCode::kInvalidArgument:
      outcome.error_type = "ValueError";
      outcome.retryable = false;
      break;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
      outcome.retryable = false;
      break;
    case absl::StatusCode::kUnavailable:
      outcome.error_type = "ConnectionError";
      break;
    case absl::StatusCode::kResourceExhausted:
      outcome.error_type = "ResourceError";
      outcome.retryable = false;
      break;
    default:
      break;
  }
  return outcome;
}

SandboxLimits StepRunner::Limits(int64_t timeout_ms) const {
  SandboxLimits limits = services_.limits;
  limits.wall = std::chrono::milliseconds(timeout_ms);
  limits.cpu_seconds = static_cast<int>(std::max<int64_t>(1, (timeout_ms + 999) / 1000));
  return limits;
}

StepOutcome StepRunner::Run(const Step& step, const Expression::Lookup& lookup) {
  if (const auto* work = std::get_if<TemplateStep>(&step.work)) {
    auto value = work->value.Evaluate(lookup);
    return value.ok() ? Good(*std::move(value)) : BadStatus(value.status());
  }
  if (const auto* work = std::get_if<LlmStep>(&step.work)) return Llm(*work, step.timeout_ms, lookup);
  if (const auto* work = std::get_if<CommandStep>(&step.work)) return Command(*work, step.timeout_ms, lookup);
  if (const auto* work = std::get_if<PythonStep>(&step.work)) return Python(*work, step.timeout_ms, lookup);
  if (const auto* work = std::get_if<HttpStep>(&step.work)) return Http(*work, step.timeout_ms, lookup);
  return Op(std::get<OpStep>(step.work), lookup);
}

StepOutcome StepRunner::Complete(const std::string& endpoint, const ChatRequest& request, int64_t timeout_ms) {
  auto reply = services_.complete(endpoint, request, std::chrono::milliseconds(timeout_ms), stop_);
  if (!reply.ok()) return BadStatus(reply.status());
  std::lock_guard lock(meter.mutex);
  ++meter.calls;
  meter.usage.prompt_tokens += reply->usage.prompt_tokens;
  meter.usage.completion_tokens += reply->usage.completion_tokens;
  meter.usage.usd += reply->usage.usd;
  return Good(JsonOfText(reply->text));
}

StepOutcome StepRunner::Llm(const LlmStep& step, int64_t timeout_ms, const Expression::Lookup& lookup) {
  const auto system = step.system.Evaluate(lookup), prompt = step.prompt.Evaluate(lookup);
  if (!system.ok()) return BadStatus(system.status());
  if (!prompt.ok()) return BadStatus(prompt.status());
  ChatRequest request;
  if (*system != "null") request.messages.push_back({"system", PlainText(*system)});
  request.messages.push_back({"user", PlainText(*prompt)});
  request.temperature = step.temperature;
  request.max_tokens = static_cast<int>(step.max_tokens);
  request.seed = step.seed;
  request.stop = step.stop;
  if (!step.schema.empty()) request.json_schema = JsonSchema{"reply", step.schema};
  StepOutcome reply = Complete(step.endpoint, request, timeout_ms);
  if (!reply.ok || (step.schema.empty() && !step.json)) return reply;
  const std::string text = PlainText(reply.value);
  Json value = ReadJson(text);
  if (!value.is_structured()) value = ObjectIn(text);
  if (value.is_discarded()) return Bad("ValueError", "the reply is not JSON: " + End(text, 300));
  const std::string broken = step.schema.empty() ? "" : Violation(step.schema, value);
  return broken.empty() ? Good(Dump(value)) : Bad("ValueError", "the reply does not follow the schema: " + broken);
}

StepOutcome StepRunner::Command(const CommandStep& step, int64_t timeout_ms, const Expression::Lookup& lookup) {
  std::vector<std::string> argv = {"/bin/sh", "-c", step.shell, "sh"};
  for (const Expression& argument : step.arguments) {
    const auto value = argument.Evaluate(lookup);
    if (!value.ok()) return BadStatus(value.status());
    argv.push_back(PlainText(*value));
  }
  std::vector<std::pair<std::string, std::string>> environment = {{"PYTHONDONTWRITEBYTECODE", "1"}};
  for (const auto& [name, expression] : step.environment) {
    const auto value = expression.Evaluate(lookup);
    if (!value.ok()) return BadStatus(value.status());
    environment.emplace_back(name, PlainText(*value));
  }
  const auto input = step.input.Evaluate(lookup);
  if (!input.ok()) return BadStatus(input.status());
  const std::string fed = *input == "null" ? "" : PlainText(*input);
  SubprocessResult ran;
  std::string contained;
  if (step.sandbox) {
    SandboxCommand command;
    command.argv = std::move(argv);
    command.environment = std::move(environment);
    command.stdin_data = fed;
    command.working_folder = services_.folder;
    command.limits = Limits(timeout_ms);
    command.cancelled = stop_;
    auto result = services_.sandbox->Run(command);
    if (!result.ok()) return BadStatus(result.status());
    contained = result->contained;
    ran = std::move(result->process);
  } else {
    SubprocessOptions options;
    options.argv = std::move(argv);
    options.environment = std::move(environment);
    options.stdin_data = fed;
    options.working_directory = services_.folder;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    options.max_output_bytes = services_.limits.output_bytes;
    options.end_at_max_output = true;
    options.cancelled = stop_;
    auto result = RunSubprocess(options);
    if (!result.ok()) return BadStatus(result.status());
    ran = *std::move(result);
    if (ran.flooded) contained = Cat("it wrote more than ", services_.limits.output_bytes, " bytes");
  }
  if (ran.cancelled) return BadStatus(absl::CancelledError("cancelled"));
  if (ran.timed_out) return Bad("TimeoutError", Cat("it was still running after ", timeout_ms, " ms and was killed"));
  if (!contained.empty()) return Bad("CommandError", contained);
  if (ran.signal != 0) return Bad("CommandError", Cat("ended by signal ", ran.signal, "\n", End(ran.err)));
  const bool any_code = step.result == CommandResult::kExitCode || step.result == CommandResult::kAll;
  if (ran.exit_code != 0 && !any_code)
    return Bad("CommandError", Cat("exit code ", ran.exit_code, "\n", End(ran.err.empty() ? ran.out : ran.err)));
  return ValueOf(step.result, ran);
}

StepOutcome StepRunner::Python(const PythonStep& step, int64_t timeout_ms, const Expression::Lookup& lookup) {
  const auto source = step.source.Evaluate(lookup), arguments = step.arguments.Evaluate(lookup),
             keywords = step.keywords.Evaluate(lookup);
  for (const auto* value : {&source, &arguments, &keywords})
    if (!value->ok()) return BadStatus(value->status());
  PythonCall call;
  call.source = PlainText(*source);
  call.function = step.function;
  if (*arguments != "null") call.arguments = *arguments;
  if (*keywords != "null") call.keywords = *keywords;
  call.limits = Limits(timeout_ms);
  call.cancelled = stop_;
  auto outcome = CallPython(*services_.sandbox, call);
  if (!outcome.ok()) return BadStatus(outcome.status());
  if (outcome->ok) return Good(std::move(outcome->value));
  std::string error = outcome->error;
  if (!outcome->traceback.empty()) error += "\n" + outcome->traceback;
  if (!outcome->out.empty()) error += "\nit printed:\n" + End(outcome->out);
  if (outcome->error == "cancelled" && outcome->error_type == "SandboxLimit")
    return BadStatus(absl::CancelledError("cancelled"));
  // The same source with the same arguments: trying again is for what a bound ended.
  return Bad(outcome->error_type, error, outcome->error_type == "SandboxLimit");
}

StepOutcome StepRunner::Http(const HttpStep& step, int64_t timeout_ms, const Expression::Lookup& lookup) {
  const auto url = step.url.Evaluate(lookup), body = step.body.Evaluate(lookup);
  if (!url.ok()) return BadStatus(url.status());
  if (!body.ok()) return BadStatus(body.status());
  HttpRequest request;
  request.method = step.method;
  request.url = PlainText(*url);
  request.timeout = std::chrono::milliseconds(timeout_ms);
  request.max_response_bytes = services_.limits.output_bytes;
  if (*body != "null") request.body = PlainText(*body);
  if (*body != "null" && !ReadJson(*body).is_string()) request.headers.emplace_back("Content-Type", "application/json");
  for (const auto& [name, expression] : step.headers) {
    const auto value = expression.Evaluate(lookup);
    if (!value.ok()) return BadStatus(value.status());
    request.headers.emplace_back(name, PlainText(*value));
  }
  auto response = services_.http->Perform(request);
  if (!response.ok()) return BadStatus(response.status());
  if (response->status < 200 || response->status > 299) {
    const bool again = response->status == 408 || response->status == 429 || response->status >= 500;
    return Bad("HttpError", Cat("status ", response->status, "\n", End(response->body, 500)), again);
  }
  if (!step.json) return Good(JsonOfText(response->body));
  const Json value = ReadJson(response->body);
  return value.is_discarded() ? Bad("ValueError", "the answer is not JSON: " + End(response->body, 200))
                              : Good(Dump(value));
}

StepOutcome StepRunner::Op(const OpStep& step, const Expression::Lookup& lookup) {
  std::vector<std::string> arguments;
  for (const Expression& argument : step.arguments) {
    auto value = argument.Evaluate(lookup);
    if (!value.ok()) return BadStatus(value.status());
    arguments.push_back(*std::move(value));
  }
  auto value = ApplyOperator(step.op, arguments);
  return value.ok() ? Good(*std::move(value)) : BadStatus(value.status());
}

Verdict StepRunner::JudgeByModel(const Guide& guide, const std::string& got, const std::string& want) {
  ChatRequest request;
  request.messages.push_back({"system",
                              "You grade an answer by a rubric. Reply with one JSON object and nothing else: "
                              "{\"feedback\": one or two sentences on what is right and what "
                              "is wrong, \"score\": a number from 0 (worst) to 1 (best)}."});
  std::string text = "Rubric:\n" + guide.rubric + "\n\nAnswer:\n" + PlainText(got);
  if (want != "null") text += "\n\nReference answer:\n" + PlainText(want);
  request.messages.push_back({"user", text});
  request.temperature = 0;
  request.max_tokens = static_cast<int>(guide.max_tokens);
  request.json_schema = JsonSchema{
      "grade",
      R"({"type":"object","properties":{"feedback":{"type":"string"},"score":{"type":"number","minimum":0,"maximum":1}},"required":["feedback","score"],"additionalProperties":false})"};
  const StepOutcome reply = Complete(guide.endpoint, request, 120'000);
  if (!reply.ok) return NoVerdict(reply);
  const Json json = ObjectIn(PlainText(reply.value));
  const Json& score = Member(json, "score");
  if (!score.is_number() || !(score.get<double>() >= 0 && score.get<double>() <= 1))
    return NoVerdict(
        Bad("ValueError", "the judge's reply holds no score from 0 to 1: " + End(PlainText(reply.value), 300)));
  return Scored(score.get<double>(), Text(Member(json, "feedback")));
}

Verdict StepRunner::JudgeByCommand(const Guide& guide, const Expression::Lookup& lookup) {
  CommandStep command = guide.command;
  command.result = CommandResult::kAll;
  const StepOutcome ran = Command(command, 60'000, lookup);
  if (!ran.ok) return NoVerdict(ran);
  const Json all = ReadJson(ran.value);
  const bool good = all["exit_code"] == 0;
  std::string said = Text(Member(all, "out")) + Text(Member(all, "err"));
  return Scored(good ? 1 : 0,
                said.empty() ? (good ? "correct" : Cat("wrong: exit code ", Dump(all["exit_code"]))) : End(said));
}

Verdict StepRunner::Judge(const Guide& guide, const Expression::Lookup& lookup) {
  const auto got = guide.got.Evaluate(lookup), want = guide.want.Evaluate(lookup),
             said = guide.feedback.Evaluate(lookup);
  for (const auto* value : {&got, &want, &said})
    if (!value->ok()) return NoVerdict(BadStatus(value->status()));
  Verdict verdict;
  switch (guide.kind) {
    case Guide::Kind::kScore: {
      const auto number = NumberOf(*got);
      verdict = number.ok() ? Scored(*number, "") : NoVerdict(BadStatus(number.status()));
      break;
    }
    case Guide::Kind::kExact:
      verdict = Exact(guide, *got, *want);
      break;
    case Guide::Kind::kRegex: {
      const bool found = RE2::PartialMatch(PlainText(*got), RE2(guide.pattern, RE2::Quiet));
      verdict =
          Scored(found ? 1 : 0, found ? "matches" : Cat("wrong: ", Quoted(*got), " does not match ", guide.pattern));
      break;
    }
    case Guide::Kind::kNumeric:
      verdict = Numeric(guide, *got, *want);
      break;
    case Guide::Kind::kSchema:
      verdict = Schema(guide, *got);
      break;
    case Guide::Kind::kCommand:
      verdict = JudgeByCommand(guide, lookup);
      break;
    case Guide::Kind::kJudge:
      verdict = JudgeByModel(guide, *got, *want);
      break;
    case Guide::Kind::kNone:
      break;
  }
  if (verdict.ok && *said != "null") verdict.feedback = PlainText(*said);
  return verdict;
}

}  // namespace optod::trace
