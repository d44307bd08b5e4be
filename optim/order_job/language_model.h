#pragma once
/// A language model of the worker as the training problem of a study: any family, task and scheme that fine-tuning
/// takes, float32, H v by central differences of gradients. Free of LibTorch types.
///
/// Batch l is examples l * batch .. (l + 1) * batch - 1 of the training file, in its order; held-out set e is the e-th
/// of `evaluations` consecutive parts of the dev file. length(l) is the mean number of tokens of its examples.
/// Small models are held once a thread, so that that many gradients are taken at a time; large ones use all threads for
/// one gradient.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/order_job/files.h"
#include "optim/order_job/spec.h"

namespace optod::order {

struct LanguageProblem {
  std::shared_ptr<const Model> model;
  std::vector<NamedPart> tensors;  ///< the trainable tensors, in the order of the parameters
};

/// `stop` is asked between the blocks of every pass; true ends the call with CANCELLED. Errors of LoadModel,
/// LoadTokenizer, LoadTask, Engine::Create; INVALID_ARGUMENT: "batches: 16 of 8 examples are 128; task.train has 90".
absl::StatusOr<LanguageProblem> MakeLanguageProblem(const SampleOrderSpec& spec, const std::function<bool()>& stop,
                                                    const std::function<void(const std::string&)>& log);

}  // namespace optod::order
