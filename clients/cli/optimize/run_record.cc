#include "clients/cli/optimize/run_record.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "clients/cli/optimize/unified_diff.h"

namespace optod::cli {
namespace {

std::string ScoreText(std::optional<double> score) { return score ? NumberText(*score) : "-"; }

std::string Seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", seconds);
  return text;
}

// One table cell: no line ends, no bars.
std::string Cell(std::string text) {
  for (char& c : text)
    if (c == '\n' || c == '\r') c = ' ';
  for (size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 2)) text.insert(at, "\\");
  return text.size() > 120 ? text.substr(0, 117) + "..." : text;
}

// A fence longer than any in the text.
std::string Fenced(const std::string& text, const std::string& language) {
  std::string fence = "```";
  while (text.find(fence) != std::string::npos) fence += '`';
  return fence + language + "\n" + text + (text.empty() || text.back() == '\n' ? "" : "\n") + fence + "\n";
}

}  // namespace

std::string ResultJson(const RunRecord& record) {
  const auto score = [](std::optional<double> value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
  };
  nlohmann::ordered_json usage;
  usage["steps"] = record.usage.steps;
  usage["evaluations"] = record.usage.evaluations;
  usage["llm_calls"] = record.usage.llm_calls;
  usage["llm_prompt_tokens"] = record.usage.llm_prompt_tokens;
  usage["llm_completion_tokens"] = record.usage.llm_completion_tokens;
  usage["llm_usd"] = record.usage.llm_usd;
  usage["wall_seconds"] = record.usage.wall_seconds;
  nlohmann::ordered_json out;
  out["best_score"] = score(record.best_score);
  out["start_score"] = score(record.start_score);
  out["gate"] = record.gate.passed ? "passed" : "failed";
  out["session"] = record.session;
  out["version"] = record.best_version;
  out["usage"] = usage;
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string SummaryMarkdown(const RunRecord& record, const OptimizeFile& file) {
  std::string out = Cat("## ", record.name, ": gate ", record.gate.passed ? "passed" : "failed", "\n\n");
  out += Cat("**", ScoreText(record.start_score), " → ", ScoreText(record.best_score), "** (",
             file.evaluate.maximize ? "higher" : "lower", " is better); ", record.gate.reason, ".\n\n");
  out += Cat("Stopped: ", record.stopped, ". ", record.usage.steps, " steps, ", record.usage.evaluations,
             " evaluations, ", record.usage.llm_prompt_tokens + record.usage.llm_completion_tokens, " tokens, ",
             Seconds(record.usage.wall_seconds), " s. Session `", record.session, "`, version ", record.best_version,
             ".\n\n");
  out += "| step | candidate | version | score | seconds | |\n|---:|---:|---:|---:|---:|---|\n";
  for (const EvaluatedVersion& v : record.evaluated) {
    const std::string remark = !v.failure.empty()                 ? Cell(v.failure)
                               : v.version == record.best_version ? "best"
                               : v.cached                         ? "seen before"
                                                                  : "";
    out +=
        Cat("| ", v.step == 0 ? "start" : std::to_string(v.step), " | ", v.step == 0 ? "" : std::to_string(v.candidate),
            " | ", v.version, " | ", ScoreText(v.score), " | ", Seconds(v.seconds), " | ", remark, " |\n");
  }
  if (!record.notes.empty()) {
    out += "\nNotes\n\n";
    for (const std::string& note : record.notes) out += Cat("- ", Cell(note), "\n");
  }
  if (!record.patch.empty())
    out += Cat("\n<details><summary>Patch</summary>\n\n", Fenced(record.patch, "diff"), "\n</details>\n");
  return out;
}

std::string XmlEscape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&apos;";
    else if (c == '\n')
      out += "&#10;";
    else if (byte < 0x20 && c != '\t')
      out += '?';
    else
      out += c;
  }
  return out;
}

std::string JUnitXml(const RunRecord& record) {
  size_t failed_evaluations = 0;
  for (const EvaluatedVersion& v : record.evaluated) failed_evaluations += !v.failure.empty();
  const std::string suite = XmlEscape("optoctl optimize " + record.name);
  std::string out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
  const std::string counts =
      Cat("tests=\"", record.evaluated.size() + 1, "\" failures=\"", record.gate.passed ? 0 : 1,
          "\" errors=\"0\" skipped=\"", failed_evaluations, "\" time=\"", Seconds(record.usage.wall_seconds), "\"");
  out += Cat("<testsuites ", counts, ">\n  <testsuite name=\"", suite, "\" ", counts, ">\n");
  out +=
      Cat("    <testcase classname=\"", suite, "\" name=\"gate\" time=\"", Seconds(record.usage.wall_seconds), "\">\n");
  if (!record.gate.passed) out += Cat("      <failure message=\"", XmlEscape(record.gate.reason), "\"/>\n");
  out += Cat("      <system-out>",
             XmlEscape(Cat("start ", ScoreText(record.start_score), ", best ", ScoreText(record.best_score), "; ",
                           record.gate.reason)),
             "</system-out>\n    </testcase>\n");
  for (const EvaluatedVersion& v : record.evaluated) {
    const std::string name = v.step == 0 ? "start" : Cat("step ", v.step, " candidate ", v.candidate);
    out += Cat("    <testcase classname=\"", suite, "\" name=\"", name, "\" time=\"", Seconds(v.seconds), "\"");
    if (v.failure.empty())
      out += Cat(">\n      <system-out>score ", ScoreText(v.score), "</system-out>\n    </testcase>\n");
    else
      out += Cat(">\n      <skipped message=\"", XmlEscape(v.failure), "\"/>\n    </testcase>\n");
  }
  return out + "  </testsuite>\n</testsuites>\n";
}

}  // namespace optod::cli
