#pragma once
/// Renders a problem instance as the two messages of a chat request. Pure functions.

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trace/optimizers/problem.h"

namespace optod::trace {

enum class Section {
  kInstruction,
  kCode,
  kDocumentation,
  kVariables,
  kConstraints,
  kInputs,
  kOthers,
  kOutputs,
  kFeedback
};
inline constexpr int kSectionCount = 9;

/// `#Instruction`, `#Code`, ...: the default titles, in prompt order.
std::string_view DefaultTitle(Section section);
/// Finds a section by title, with or without '#', in any case.
std::optional<Section> ParseSection(std::string_view title);

/// One past step, newest last.
struct MemoryRound {
  std::vector<std::pair<std::string, std::string>> variables{};  ///< py_name, value text
  std::string feedback{};
  std::optional<double> score{};
};

/// How much of the run the model is told.
enum class PromptForm {
  kFull,   ///< the whole problem instance, with a system message that explains it
  kBrief,  ///< the judgement and one question, for models too small to follow the format: no graph, no current values
};

struct RenderOptions {
  PromptForm form = PromptForm::kFull;
  std::vector<Section> mask{};                            ///< sections left empty
  std::vector<std::pair<Section, std::string>> titles{};  ///< replacements of default titles; values are never touched
  uint32_t value_limit =
      2000;  ///< code points of an input, other or output value; variables are never cut; 0: no limit
  uint32_t max_prompt_tokens =
      0;  ///< estimate over both messages; cut to fit as fit.h says, variables never; 0: no limit
  bool include_example = false;  ///< put a small worked example before the instance
  std::vector<MemoryRound> memory{};
};

struct Prompt {
  std::string system;  ///< empty: no system message
  std::string user;
  uint32_t truncated_values = 0;  ///< values that were cut
  uint32_t omitted_lines = 0;     ///< code lines and intermediate values left out to fit max_prompt_tokens
  uint32_t collapsed_lines = 0;   ///< calls of chains and repeats that one line stands for, to fit max_prompt_tokens
  bool over_limit = false;        ///< even the shortest form exceeds max_prompt_tokens
  std::vector<std::string> left_out;  ///< what was shortened or left out, in words; empty: nothing
};

Prompt Render(const ProblemInstance& problem, const RenderOptions& options = {});

/// Render's short form (RenderOptions::form). It asks for `{"suggestion": {name: value}}`. Masks, titles, the example
/// and value limits do not concern it; the feedback is cut to fit max_prompt_tokens.
Prompt RenderBrief(const ProblemInstance& problem, const RenderOptions& options);

/// Rough count of a byte-pair tokenizer: never far below the truth for English, code and JSON. Within 30 % of GPT-like
/// tokenizers on such text; non-ASCII counts one token a code point.
uint64_t EstimateTokens(std::string_view text);

/// Cuts `text` to `limit` code points and says how many were left out: `...[123 more characters]`. `cut` (optional) is
/// set to whether it did.
std::string TruncateValue(std::string_view text, uint32_t limit, bool* cut = nullptr);

}  // namespace optod::trace
