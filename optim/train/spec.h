#pragma once
/// What a fine-tuning job asks for: the job file, parsed and checked. Plain data, no LibTorch: the server refuses a bad
/// job with it before anything is queued, the worker runs from it.
///
///   kind: finetune
///   model: /models/smollm2                    # Hugging Face folder or .gguf file
///   task: {name: sst2, train: train.tsv, dev: dev.tsv}
///   scheme: {name: lora, rank: 8, alpha: 16}  # or full, prefix, prompt, head
///   optimizer: {name: zo-sgd, lr: 1e-6, eps: 1e-3}
///   steps: 1000
///   batch: 16
///
/// A task is a name of ZO-Bench's (presets.h), or templates: `prompt` with `options` (or `answer` where the model answers
/// in its own words: {name: custom, format: jsonl, prompt: "{question}\nAnswer:", answer: answers, answer_tokens: 50}).
///
/// Zeroth order only, each with the names of ZO-Bench's command line (Zhang et al., 2024; github.com/ZO-Bench/ZO-LLM):
///
///   objective: f1                             # what two losses are taken of: loss, accuracy, f1 (non_diff)
///   blockwise: {level: transformer-block, schedule: coordinate}
///                                             # module_wise_perturbation; perturbed_module_level: transformer-block,
///                                             # mlp-attn, linear; coordinate_perturbation: coordinate or joint
///   sparse: {ratio: 0.2, group: layer, resample: 1000, source: random, law: uniform}
///                                             # gradient_sparsity; sparse_gradient_group: layer, global;
///                                             # sparse_gradient_resample_steps; source: random, magnitude, wanda
///   hybrid: {blocks: 4, lr: 1e-3}             # the last layers and the head by back-propagation, cut off below them
///   parallel: {workers: 4, share: examples}   # several workers, scalars between them: examples or queries are shared
///
/// Defaults follow ZO-Bench (Zhang et al., 2024) and MeZO (Malladi et al., 2023).

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/rules/rule.h"

namespace optod::train {

/// An answer in the model's own words: the greedy continuation of the prompt (SQuAD, DROP), judged by words (F1).
struct AnswerSpec {
  std::string field;         ///< of the right answers: a text, a list, or a path to them; "" = options instead
  int64_t max_tokens = 50;   ///< of a generated answer
  std::string stop = "\n";   ///< ends it; trained on behind the right answer
};

/// How rows of a file become prompts and options.
struct TaskSpec {
  std::string name = "custom";       ///< custom, or a preset (presets.h)
  std::string format = "tsv";        ///< tsv, jsonl, text
  std::string train, dev, test;      ///< files; test may be ""
  std::vector<std::string> columns;  ///< of a tsv without header
  bool header = false;               ///< the tsv's first line names the columns
  std::string prompt;                ///< template: "{sentence} It was"
  std::string label = "label";       ///< column or field of the right option
  /// label value -> option template, in the order of the candidates: {"0", " terrible"}, {"1", " great"}
  std::vector<std::pair<std::string, std::string>> options;
  AnswerSpec answer;
  bool asks() const { return !answer.field.empty(); }
  bool classify =
      true;  ///< loss over all options (softmax of mean log-probabilities); false: tokens of the right one only
  int64_t train_examples = 0, dev_examples = 0, test_examples = 0;  ///< 0 = all
  int64_t max_tokens = 256;                                         ///< longer prompts lose their beginning
};

struct SchemeSpec {
  std::string name = "full";  ///< full, lora, prefix, prompt, head
  int64_t rank = 8;           ///< lora
  double alpha = 16;          ///< lora: scaling alpha / rank
  int64_t tokens = 5;         ///< prefix: virtual tokens a layer; prompt (where the default is 10): before the text
};

/// Groups of tensors perturbed alone, each with a scalar of its own.
struct BlockwiseSpec {
  std::string level;                    ///< "" = all tensors at once; transformer-block, mlp-attn, linear
  std::string schedule = "coordinate";  ///< coordinate: later groups see earlier updates; joint: all at one theta
};
/// Elements that neither are perturbed nor move.
struct SparseSpec {
  double ratio = 0;               ///< of masked elements; 0 = none
  std::string source = "random";  ///< magnitude: the smallest |w|; wanda: the smallest |w| |x| of an output row
  std::string group = "layer";    ///< layer: the ratio in every tensor; global: the smallest |w| of all tensors count
  std::string law = "uniform";    ///< normal: what the published code draws, which masks more: Phi(ratio)
  int64_t resample = 1;           ///< steps that one mask serves; wanda: it serves all
};
/// Zeroth order below, back-propagation above.
struct HybridSpec {
  int64_t blocks = 0;  ///< last layers (and the head) by gradients; 0 = none
  double lr = 0;       ///< of that part; 0 = the optimizer's
};
/// Workers of one run that exchange scalars alone (exchange.h).
struct ParallelSpec {
  int64_t workers = 1;
  std::string share = "examples";  ///< examples: a part of the batch each, one direction; queries: a direction each
};

/// Parameters over memory tiers (ZO2, Wang et al., 2025; optim/tier/plan.h), for zeroth order. Adapters stay in memory, and
/// what is not trained is only read.
///
///   tier: {host_budget: 128MiB, disk: /scratch, slots: 3, codec: none, write_every: 4}
///   device: cuda      # needs tier; with no device_budget everything stays on the GPU
struct TierSpec {
  bool on = false;
  int64_t device_budget = -1;  ///< bytes for working slots and perturbed copies; -1 = no limit
  int64_t host_budget = -1;    ///< bytes for parameters that stay in memory; -1 = no limit
  std::string disk;            ///< folder for the rest; "" = none
  int64_t slots = 0;           ///< 0 = as many as fit, 3 at most
  std::string codec = "none";  ///< none, bf16, fp16, fp8
  int64_t write_every = 1;     ///< a block on disk is written each so many steps
  bool overlap = true;         ///< false: moving and computing take turns (ZO2's ablation)
  bool fused = true;           ///< false: update and both copies in passes of their own (ZO2's ablation)
};

struct TrainSpec {
  std::string kind = "finetune";
  std::string model;
  TaskSpec task;
  SchemeSpec scheme;
  TierSpec tier;
  std::string device = "cpu";  ///< cpu, cuda: where a run with `tier` computes; its device_budget is then the GPU's memory
  std::string optimizer = "zo-sgd";
  optim::Hyper hyper;        ///< checked against the registry
  bool zeroth_order = true;  ///< which family the optimizer is of
  std::string objective = "loss";
  BlockwiseSpec blockwise;
  SparseSpec sparse;
  HybridSpec hybrid;
  ParallelSpec parallel;
  int64_t steps = 100, batch = 16, eval_every = 0, checkpoint_every = 50, log_every = 10;
  uint64_t seed = 0;
  int64_t threads = 0;                  ///< 0 = all CPUs
  std::string decay_from = "constant";  ///< learning rate: constant or linear (to 0 at `steps`)
  double clip_norm = 1;     ///< first order: largest norm of the gradient; 0 = no limit (Hugging Face's default is 1)
  bool save_model = false;  ///< write the best version as a Hugging Face folder (full, head) or PEFT folder (adapters)
  bool evaluate_before = true;
};

/// INVALID_ARGUMENT with the field: `optimizer.lr: -1 is negative; must be > 0`, `steps: 0 must be >= 1`,
/// `job: unknown field "stpes"`, `blockwise: needs a zeroth-order optimizer`; UNIMPLEMENTED: what jobs do not run.
absl::StatusOr<TrainSpec> ParseTrainSpec(const std::string& json_text);

/// Every file or folder of the spec that the worker opens.
std::vector<std::string> PathsOf(const TrainSpec& spec);

}  // namespace optod::train
