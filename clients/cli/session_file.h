#pragma once
/// The YAML file of `optoctl session create FILE`, read strictly into the request. Pure functions.
///
///   id: digits                                    # absent = the server picks one
///   optimizer: {name: adamw, lr: 0.01, seed: 1, clip_norm: 1.0, schedule: {kind: cosine, warmup_steps: 10,
///   total_steps: 100, floor: 0.1}} layout: [{name: w, shape: [64, 10], dtype: f32, no_decay: false}] # first- and
///   zeroth-order families parameters: {prompt: {value: "Classify.", description: "...", constraint: "..."}}  # trace
///   family; as in `optoctl optimize`, values only direction: maximize budget: {steps: 100, evaluations: 0, llm_tokens:
///   10000, llm_usd: 1.5, wall: 1h} durability: {mode: every-n, n: 10, snapshot_every: 100} # every-step, every-n,
///   on-checkpoint labels: {team: vision} display_name: first try

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cli/strict_yaml.h"
#include "optod/v1/session.pb.h"

namespace optod::cli {

/// INVALID_ARGUMENT: "FILE:LINE: key: ...".
absl::StatusOr<v1::CreateSessionRequest> ParseSessionFile(const std::string& text, const std::string& file_name);

/// The same from a map that may hold other keys beside SessionKeys().
absl::StatusOr<v1::CreateSessionRequest> ReadSession(const YamlMap& root, const std::string& file_name);
const std::vector<std::string>& SessionKeys();

/// "NAME:DTYPE:64x10[:no-decay]" (scalar: "NAME:DTYPE:") of `--tensor`.
absl::StatusOr<v1::TensorSpec> ParseTensorFlag(const std::string& text);
/// "lr=0.1", "nesterov=true", "order=[...]" of `--set`: number, true/false, else text.
absl::Status ApplyHyperFlag(const std::string& text, v1::OptimizerSpec* spec);
/// "name=value" of `--param`: a text, whole number, number or flag, as it looks.
absl::StatusOr<v1::ParameterSpec> ParseParameterFlag(const std::string& text);
/// "maximize" or "minimize".
absl::StatusOr<v1::Direction> ParseDirection(const std::string& text);

}  // namespace optod::cli
