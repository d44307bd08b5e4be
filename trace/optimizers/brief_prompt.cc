// The short form of a problem: what was said about the run, and a question. Current values stay out, since small models
// repeat them.
#include <algorithm>

#include "base/status.h"
#include "trace/optimizers/prompt.h"

namespace optod::trace {
namespace {

constexpr uint32_t kShortestFeedback = 200;  // code points

std::string PastRounds(const std::vector<MemoryRound>& memory) {
  std::string out;
  for (const MemoryRound& round : memory) {
    std::string values;
    for (const auto& [name, text] : round.variables) values += Cat(values.empty() ? "" : ", ", name, "=", text);
    out += Cat("Tried before: ", values, "\n", round.feedback, "\n\n");
  }
  return out;
}

std::string User(const ProblemInstance& problem, const RenderOptions& options, uint32_t feedback_limit, bool* cut) {
  std::string out;
  if (problem.instruction != DefaultInstruction()) out += problem.instruction + "\n\n";
  out += PastRounds(options.memory);
  const std::string feedback =
      feedback_limit == 0 ? problem.feedback : TruncateValue(problem.feedback, feedback_limit, cut);
  return Cat(out, "Feedback:\n", feedback,
             "\n\nWhat values does the feedback ask for? Reply as JSON: {\"suggestion\": {name: value}}.");
}

}  // namespace

Prompt RenderBrief(const ProblemInstance& problem, const RenderOptions& options) {
  Prompt prompt;
  bool cut = false;
  prompt.user = User(problem, options, 0, &cut);
  const uint64_t limit = options.max_prompt_tokens;
  auto fits = [&] { return limit == 0 || EstimateTokens(prompt.user) <= limit; };
  for (uint32_t length = static_cast<uint32_t>(std::min<size_t>(problem.feedback.size(), UINT32_MAX));
       !fits() && length > kShortestFeedback;) {
    length = std::max(kShortestFeedback, length / 2);
    prompt.user = User(problem, options, length, &cut);
  }
  prompt.truncated_values = cut ? 1 : 0;
  prompt.over_limit = !fits();
  return prompt;
}

}  // namespace optod::trace
