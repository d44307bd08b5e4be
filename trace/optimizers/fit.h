#pragma once
/// Makes a prompt fit a token limit, step by step, mildest first: collapse repeated calls, shorten values, drop the
/// oldest memory, shorten values more, leave out lines, drop all memory, shorten the feedback. What was done is said in
/// words. Pure functions.

#include <functional>
#include <string>

#include "trace/optimizers/prompt.h"

namespace optod::trace {

/// How much a rendering shows.
struct Cut {
  bool collapse = false;        ///< leave out collapsed lines, with their notes
  uint32_t value_limit = 0;     ///< code points of an input, other or output value; 0: no limit
  uint32_t lines = UINT32_MAX;  ///< of code, inputs and others each
  size_t memory = SIZE_MAX;     ///< newest rounds shown
  uint32_t feedback_limit = 0;  ///< code points; 0: whole
};

/// Renders with ever smaller cuts until the estimate is within `limit` (0: the first one is taken). `memory_rounds`,
/// `lines` and `feedback_points` are what there is. Sets over_limit and left_out of the result.
Prompt FitPrompt(uint32_t limit, uint32_t value_limit, size_t memory_rounds, size_t lines, size_t feedback_points,
                 const std::function<Prompt(const Cut&)>& render);

/// The first and last half of `limit` code points with a note between; the text itself when it is short enough or
/// `limit` is 0.
std::string CutMiddle(std::string_view text, uint32_t limit);

/// The newest `count` of `rounds`.
std::span<const MemoryRound> NewestRounds(const std::vector<MemoryRound>& rounds, size_t count);

/// Sums both messages.
uint64_t PromptTokens(const Prompt& prompt);

}  // namespace optod::trace
