#pragma once
/// Answers in the model's own words: generated greedily at a point, and judged against the right ones.
///
///   prompt -> Engine::Continue at theta -> text up to the stop -> best F1 over the right answers (SQuAD, DROP)

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/tokenizer.h"
#include "optim/train/engine.h"
#include "optim/train/task.h"

namespace optod::train {

struct AnswerScore {
  double f1 = 0;     ///< mean over the examples of the highest TokenF1 against a right answer; NaN if logits were not finite
  double exact = 0;  ///< share of examples whose answer has the words of a right one
};

class Answering {
 public:
  Answering(AnswerSpec spec, std::shared_ptr<const nn::Tokenizer> tokenizer)
      : spec_(std::move(spec)), tokenizer_(std::move(tokenizer)) {}

  /// Generates at `theta`, `together` prompts at a time. CANCELLED when the engine is stopped.
  absl::StatusOr<AnswerScore> Score(Engine& engine, std::span<const float> theta,
                                    std::span<const Example* const> examples, size_t together) const;
  /// Text of generated ids, up to the stop, without blanks around it.
  std::string TextOf(const std::vector<int64_t>& ids) const;

 private:
  bool Ended(const std::vector<int64_t>& ids) const;
  const AnswerSpec spec_;
  const std::shared_ptr<const nn::Tokenizer> tokenizer_;
};

/// Of the best of the right answers.
AnswerScore ScoreOf(const std::string& answer, const std::vector<std::string>& right);

}  // namespace optod::train
