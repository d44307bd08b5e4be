// The short form of a problem: what was said about the run, and a question. Current values stay out, since small models
// repeat them.
#include <algorithm>
#include <span>

#include "base/status.h"
#include "trace/optimizers/prompt.h"

namespace optod::trace {
namespace {

constexpr uint32_t kShortestFeedback = 200;  // code points

std::string PastRounds(std::span<const MemoryRound> memory) {
  std::string out;
  for (const MemoryRound& round : memory) {
    std::string values;
    for (const auto& [name, text] : round.variables) values += Cat(values.empty() ? "" : ", ", name, "=", text);
    out += Cat("Tried before: ", values, "\n", round.feedback, "\n\n");
  }
  return out;
}

std::string User(const ProblemInstance& problem, std::span<const MemoryRound> memory, uint32_t feedback_limit,
                 bool* cut) {
  std::string out;
  if (problem.instruction != DefaultInstruction()) out += problem.instruction + "\n\n";
  out += PastRounds(memory);
  const std::string feedback =
      feedback_limit == 0 ? problem.feedback : TruncateValue(problem.feedback, feedback_limit, cut);
  return Cat(out, "Feedback:\n", feedback,
             "\n\nWhat values does the feedback ask for? Reply as JSON: {\"suggestion\": {name: value}}.");
}

}  // namespace

Prompt RenderBrief(const ProblemInstance& problem, const RenderOptions& options) {
  Prompt prompt;
  bool cut = false;
  std::span<const MemoryRound> memory = options.memory;
  prompt.user = User(problem, memory, 0, &cut);
  const uint64_t limit = options.max_prompt_tokens;
  auto fits = [&] { return limit == 0 || EstimateTokens(prompt.user) <= limit; };
  while (!fits() && !memory.empty()) {
    memory = memory.last(memory.size() / 2);  // the newest stay longest
    prompt.user = User(problem, memory, 0, &cut);
  }
  if (memory.size() < options.memory.size())
    prompt.left_out.push_back(Cat("memory: ", options.memory.size() - memory.size(), " of ", options.memory.size(),
                                  " earlier steps are left out"));
  for (uint32_t length = static_cast<uint32_t>(std::min<size_t>(problem.feedback.size(), UINT32_MAX));
       !fits() && length > kShortestFeedback;) {
    length = std::max(kShortestFeedback, length / 2);
    prompt.user = User(problem, memory, length, &cut);
  }
  prompt.truncated_values = cut ? 1 : 0;
  if (cut) prompt.left_out.push_back("feedback: its end is left out");
  prompt.over_limit = !fits();
  return prompt;
}

}  // namespace optod::trace
