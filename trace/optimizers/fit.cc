#include "trace/optimizers/fit.h"

#include <algorithm>

#include "base/status.h"

namespace optod::trace {
namespace {

constexpr uint32_t kNoLimitStart = 4096, kMildValues = 500, kSmallestValues = 40, kFewestLines = 8,
                   kSmallestFeedback = 400;

void SayWhatIsLeftOut(const Cut& cut, size_t memory_rounds, size_t feedback_points, Prompt& prompt) {
  auto& out = prompt.left_out;
  if (prompt.collapsed_lines > 0)
    out.push_back(
        Cat("repeats: ", prompt.collapsed_lines, " calls of long chains and repeated subgraphs are summed up"));
  if (prompt.truncated_values > 0)
    out.push_back(Cat("values: ", prompt.truncated_values, " are cut at ", cut.value_limit, " characters"));
  if (prompt.omitted_lines > 0)
    out.push_back(Cat("lines: ", prompt.omitted_lines, " lines of code and values are left out"));
  if (cut.memory < memory_rounds)
    out.push_back(Cat("memory: ", memory_rounds - cut.memory, " of ", memory_rounds, " earlier steps are left out"));
  if (cut.feedback_limit > 0 && cut.feedback_limit < feedback_points)
    out.push_back(
        Cat("feedback: ", feedback_points - cut.feedback_limit, " of ", feedback_points, " characters are left out"));
}

}  // namespace

uint64_t PromptTokens(const Prompt& prompt) { return EstimateTokens(prompt.system) + EstimateTokens(prompt.user); }

std::span<const MemoryRound> NewestRounds(const std::vector<MemoryRound>& rounds, size_t count) {
  return std::span(rounds).last(std::min(count, rounds.size()));
}

std::string CutMiddle(std::string_view text, uint32_t limit) {
  const auto starts = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  const auto points = static_cast<size_t>(std::count_if(text.begin(), text.end(), starts));
  if (limit == 0 || points <= limit) return std::string(text);
  const auto offset = [&](size_t point) {
    size_t at = 0;
    for (size_t seen = 0; at < text.size(); ++at) {
      if (starts(text[at]) && seen++ == point) break;
    }
    return at;
  };
  const size_t head = limit / 2, tail = limit - head;
  return Cat(text.substr(0, offset(head)), "\n...[", points - limit, " characters left out]...\n",
             text.substr(offset(points - tail)));
}

Prompt FitPrompt(uint32_t limit, uint32_t value_limit, size_t memory_rounds, size_t lines, size_t feedback_points,
                 const std::function<Prompt(const Cut&)>& render) {
  Cut cut;
  cut.value_limit = value_limit;
  Prompt prompt = render(cut);
  const auto fits = [&] { return limit == 0 || PromptTokens(prompt) <= limit; };
  const auto again = [&] { prompt = render(cut); };
  const auto shorten_values = [&](uint32_t smallest) {
    if (cut.value_limit == 0 && !fits()) cut.value_limit = kNoLimitStart, again();
    while (!fits() && cut.value_limit > smallest) cut.value_limit = std::max(cut.value_limit / 2, smallest), again();
  };
  if (!fits()) cut.collapse = true, again();
  shorten_values(kMildValues);
  if (!fits() && memory_rounds > 1) cut.memory = memory_rounds;
  while (!fits() && cut.memory > 1 && cut.memory != SIZE_MAX) cut.memory /= 2, again();
  shorten_values(kSmallestValues);
  if (!fits() && lines > kFewestLines) cut.lines = static_cast<uint32_t>(std::min<size_t>(lines, UINT32_MAX));
  while (!fits() && cut.lines > kFewestLines && cut.lines != UINT32_MAX)
    cut.lines = std::max(cut.lines / 2, kFewestLines), again();
  if (!fits() && memory_rounds > 0 && cut.memory > 0) cut.memory = 0, again();
  if (!fits() && feedback_points > kSmallestFeedback)
    cut.feedback_limit = static_cast<uint32_t>(std::min<size_t>(feedback_points, UINT32_MAX));
  while (!fits() && cut.feedback_limit > kSmallestFeedback)
    cut.feedback_limit = std::max(cut.feedback_limit / 2, kSmallestFeedback), again();
  prompt.over_limit = !fits();
  SayWhatIsLeftOut(cut, memory_rounds, feedback_points, prompt);
  return prompt;
}

}  // namespace optod::trace
