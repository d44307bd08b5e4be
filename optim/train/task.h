#pragma once
/// Tasks as data: rows of a file become token sequences and the places whose log-probabilities score them. No LibTorch.
///
///   row -> prompt template, option templates (templates.h) -> token ids -> Sequence{ids, picks}
///
/// A pick is one log-probability: of token `target` after row `row` of its sequence (at it, for masked models). The
/// score of an option is the mean of its picks (Zhang et al., 2024, section "task alignment"; MeZO's utils.py). Options
/// of one token each share one sequence, since they share everything before it. Where the model answers in its own words
/// (SQuAD, DROP), the first right answer is the one option, and answering.h judges what is generated.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/model_config.h"
#include "optim/nn/tokenizer.h"
#include "optim/train/spec.h"

namespace optod::train {

struct Pick {
  int64_t row = 0;     ///< in the sequence
  int64_t target = 0;  ///< token id
  int candidate = 0;
};
struct Sequence {
  std::vector<int64_t> ids;
  std::vector<Pick> picks;
};
struct Example {
  std::vector<Sequence> sequences;
  int candidates = 1;
  int correct = 0;
  std::vector<double> f1 =
      {};  ///< of every candidate's text against the right one's (TokenF1); empty = 1 for the right, 0 else
  std::vector<int64_t> prompt = {};       ///< to be gone on from; empty where there are options
  std::vector<std::string> answers = {};  ///< the right ones
};

struct TaskData {
  std::vector<Example> train, dev, test;
  bool classify = false;  ///< loss: softmax over options; else the mean token loss of the right one
  bool choose = false;    ///< accuracy is defined (more than one option)
  bool asks = false;      ///< answers are generated
};

/// Reads and encodes all sets. Errors name file, line and reason: `train: line 7: label "2" is not one of 0, 1`,
/// `dev: line 3: column "sentence" is missing`, NOT_FOUND for a file that is not there.
absl::StatusOr<TaskData> LoadTask(const TaskSpec& spec, const nn::Tokenizer& tokenizer, const nn::ModelConfig& config);

/// Which examples a step trains on: every epoch is a permutation of its own, a pure function of seed and step.
class BatchOrder {
 public:
  BatchOrder(uint64_t seed, size_t examples, size_t batch) : seed_(seed), examples_(examples), batch_(batch) {}
  std::vector<size_t> At(int64_t step);

 private:
  size_t Place(uint64_t position);
  uint64_t seed_;
  size_t examples_, batch_;
  uint64_t epoch_ = ~uint64_t{0};
  std::vector<uint32_t> order_;
};

/// The objective over the picks of some examples, and what it says about them.
struct Objective {
  double loss = 0;               ///< mean over the examples
  std::vector<double> gradient;  ///< d loss / d log-probability, one a pick
  int64_t right = 0;             ///< examples whose best option is the correct one
  double token_loss = 0;         ///< sum of -log p of the right option's tokens
  int64_t tokens = 0;
  double f1 = 0;  ///< mean over the examples of the best option's F1
};
/// What a zeroth-order step minimises: `loss`, minus the share of right answers (`accuracy`), or minus the mean F1.
double ValueOf(const Objective& objective, size_t examples, const std::string& name);
/// `log_probs`: of all picks, example by example, sequence by sequence. NaN gives a NaN loss.
Objective Judge(std::span<const Example* const> examples, std::span<const double> log_probs, bool classify);

}  // namespace optod::train
