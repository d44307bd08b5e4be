#include "optim/train/answering.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/train/text_match.h"

namespace optod::train {

AnswerScore ScoreOf(const std::string& answer, const std::vector<std::string>& right) {
  AnswerScore best;
  for (const std::string& truth : right) {
    best.f1 = std::max(best.f1, TokenF1(answer, truth));
    best.exact = std::max(best.exact, SameWords(answer, truth) ? 1.0 : 0.0);
  }
  return best;
}

std::string Answering::TextOf(const std::vector<int64_t>& ids) const {
  std::string text = tokenizer_->Decode(ids);
  const size_t first = text.find_first_not_of(" \n\t");  // a stop before the first word ends nothing
  if (first == std::string::npos) return "";
  text = text.substr(first);
  text = text.substr(0, text.find(spec_.stop));
  return text.substr(0, text.find_last_not_of(" \n\t") + 1);
}

bool Answering::Ended(const std::vector<int64_t>& ids) const {
  const std::string text = tokenizer_->Decode(ids);
  return text.find(spec_.stop, std::min(text.find_first_not_of(" \n\t"), text.size())) != std::string::npos;
}

absl::StatusOr<AnswerScore> Answering::Score(Engine& engine, std::span<const float> theta,
                                             std::span<const Example* const> examples, size_t together) const {
  AnswerScore sum;
  for (size_t at = 0; at < examples.size(); at += together) {
    const auto some = examples.subspan(at, std::min(together, examples.size() - at));
    std::vector<std::vector<int64_t>> prompts;
    for (const Example* example : some) prompts.push_back(example->prompt);
    ASSIGN_OR_RETURN(const auto made, engine.Continue(theta, prompts, spec_.max_tokens,
                                                      [&](const std::vector<int64_t>& ids) { return Ended(ids); }));
    for (size_t i = 0; i < some.size(); ++i) {
      const AnswerScore one = ScoreOf(TextOf(made[i].ids), some[i]->answers);
      sum.f1 += made[i].finite ? one.f1 : std::nan("");
      sum.exact += one.exact;
    }
  }
  const auto n = static_cast<double>(std::max<size_t>(1, examples.size()));
  return AnswerScore{sum.f1 / n, sum.exact / n};
}

}  // namespace optod::train
