#include "clients/cli/optimize/progress.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "clients/cli/optimize/gate.h"

namespace optod::cli {
namespace {

class Quiet final : public Progress {
 public:
  void Show(const ProgressEvent&) override {}
};

class Json final : public Progress {
 public:
  void Show(const ProgressEvent& event) override {
    if (event.kind == "proposing" || event.kind == "evaluating") return;
    std::printf("%s\n", ProgressJson(event).c_str());
    std::fflush(stdout);
  }
};

// Finished things scroll; what is going on now is rewritten in place.
class Terminal final : public Progress {
 public:
  void Show(const ProgressEvent& event) override {
    Done();
    if (event.kind == "step" || (event.kind == "proposal" && event.outcome == "applied")) return;
    const bool passing = event.kind == "proposing" || event.kind == "evaluating";
    std::fprintf(stderr, passing ? "%s" : "%s\n", ProgressLine(event).c_str());
    std::fflush(stderr);
    open_ = passing;
  }
  void Done() override {
    if (open_) std::fputs("\r\033[K", stderr);
    open_ = false;
  }

 private:
  bool open_ = false;
};

std::string Fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string Short(std::string text, size_t width) {
  for (char& c : text)
    if (c == '\n' || c == '\r' || c == '\t') c = ' ';
  return text.size() <= width ? text : text.substr(0, width - 3) + "...";
}

std::string Score(std::optional<double> score) {
  char text[32];
  if (!score) return "-";
  std::snprintf(text, sizeof text, "%.6g", *score);
  return text;
}

}  // namespace

std::string ProgressLine(const ProgressEvent& event) {
  const std::string where = event.step == 0 ? std::string("start") : Cat("step ", event.step, "/", event.steps);
  char head[32];
  std::snprintf(head, sizeof head, "%7ss  %-12s", Fixed(event.seconds, 1).c_str(), where.c_str());
  if (event.kind == "session") return Cat("session ", event.session);
  if (event.kind == "note") return Cat(head, "note         ", Short(event.text, 160));
  if (event.kind == "proposing")
    return Cat(head, "asking the model ... ", Short(event.text, 40), "  ", event.tokens, " tokens");
  if (event.kind == "proposal")
    return Cat(head, "proposal ", event.candidate, "   ", event.outcome, event.text.empty() ? "" : ": ",
               Short(event.text, 120));
  if (event.kind == "step") return Cat(head, "best ", Score(event.best), "  ", event.tokens, " tokens");
  const std::string what = event.step == 0 ? std::string("evaluated  ") : Cat("candidate ", event.candidate);
  if (event.kind == "evaluating") return Cat(head, what, "  running ...");
  return Cat(head, what, "  ",
             event.score ? Cat("score ", Score(event.score)) : Cat("failed: ", Short(event.text, 120)),
             event.cached ? "  (seen before)" : "", "  best ", Score(event.best), "  ", event.tokens, " tokens");
}

std::string ProgressJson(const ProgressEvent& event) {
  const auto score = [](std::optional<double> value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
  };
  nlohmann::ordered_json out;
  out["event"] = event.kind;
  if (!event.session.empty()) out["session"] = event.session;
  if (event.kind != "session") out["step"] = event.step;
  if (event.candidate > 0) out["candidate"] = event.candidate;
  if (event.version) out["version"] = *event.version;
  if (event.kind == "evaluation") out["score"] = score(event.score);
  if (event.kind == "evaluation" || event.kind == "step") out["best"] = score(event.best);
  if (event.kind == "evaluation") out["cached"] = event.cached;
  if (!event.outcome.empty()) out["outcome"] = event.outcome;
  if (!event.text.empty()) out["text"] = event.text;
  out["tokens"] = event.tokens;
  out["seconds"] = event.seconds;
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::unique_ptr<Progress> MakeProgress(ProgressStyle style) {
  if (style == ProgressStyle::kJson) return std::make_unique<Json>();
  if (style == ProgressStyle::kTerminal) return std::make_unique<Terminal>();
  return std::make_unique<Quiet>();
}

}  // namespace optod::cli
