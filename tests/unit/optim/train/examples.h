#pragma once
/// Examples for small models: sequences of several lengths, options that share a sequence and such that do not.

#include <vector>

#include "optim/nn/model_config.h"
#include "optim/train/task.h"

namespace optod::train {

inline std::vector<Example> SomeExamples(const nn::ModelConfig& config) {
  std::vector<Example> examples;
  for (int n : {5, 3, 5, 8}) {
    Sequence sequence;
    for (int i = 0; i < n; ++i) sequence.ids.push_back((7 * i + 3 * n) % config.vocab);
    sequence.picks = {{n - 1, 4, 0}, {n - 1, 9, 1}};
    examples.push_back({{sequence}, 2, n % 2});
  }
  Sequence second{{1, 2, 3, 4}, {{2, 5, 0}, {3, 6, 0}}}, third{{1, 2, 3}, {{2, 7, 1}}};
  examples.push_back({{second, third}, 2, 0});
  return examples;
}

inline std::vector<const Example*> Pointers(const std::vector<Example>& examples) {
  std::vector<const Example*> all;
  for (const Example& example : examples) all.push_back(&example);
  return all;
}

}  // namespace optod::train
