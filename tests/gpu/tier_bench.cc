// ZO2's table on this card: OPT's shapes with random weights, one sequence of 2048 tokens, parameters on the host
// beside parameters on the device. Tokens a second are the mean of the last half of the steps; device memory is what
// the driver counts (cudaMemGetInfo), as in the published column (ZO2, Wang et al., 2025; fp16 weights, embedding and
// head apart). Here the working slots are float32 and products TF32; the codec is what travels.
//   optod-gpu-tier-bench [--models 1.3b,6.7b,13b] [--codec none|bf16|fp16|fp8] [--tokens 2048] [--steps 6]
#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "base/status.h"
#include "optim/nn/model.h"
#include "optim/nn/views.h"
#include "optim/tier/cuda_accelerator.h"
#include "optim/tier/pipeline.h"
#include "optim/tier/streams_device.h"
#include "optim/train/vocabulary.h"
#include "optim/zo/stream.h"

namespace optod {
namespace {

struct Shape {
  const char* name;
  int64_t hidden, layers, heads;
  double published_gb;  ///< ZO2's
};
const Shape kShapes[] = {{"125m", 768, 12, 12, 0},     {"1.3b", 2048, 24, 32, 3.75}, {"2.7b", 2560, 32, 32, 4.14},
                         {"6.7b", 4096, 32, 32, 4.99}, {"13b", 5120, 40, 40, 6.18},  {"30b", 7168, 48, 56, 8.86}};

nn::ModelConfig Opt(const Shape& shape, int64_t tokens) {
  nn::ModelConfig c;
  c.family = nn::Family::kOpt;
  c.vocab = 50272;
  c.hidden = shape.hidden;
  c.inter = 4 * shape.hidden;
  c.layers = shape.layers;
  c.heads = c.kv_heads = shape.heads;
  c.head_dim = shape.hidden / shape.heads;
  c.max_positions = tokens;
  c.position_offset = 2;
  c.activation = nn::Activation::kRelu;
  c.attention_bias = c.mlp_bias = true;
  return c;
}

/// The forward pass, unit by unit.
class OptCompute final : public tier::BlockCompute {
 public:
  OptCompute(const nn::ModelConfig& config, const std::vector<tier::BlockSpec>& blocks,
             const std::vector<tier::Unit>& units, int64_t tokens)
      : model_(config), blocks_(blocks), units_(units) {
    for (size_t b = 0; b < blocks.size(); ++b) {
      for (size_t slot = 0; slot < blocks[b].tensors.size(); ++slot) place_.emplace_back(b, slot);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      packed_.ids.push_back(t * 7919 % config.vocab);
      packed_.rows.push_back(t);
      packed_.asks.push_back({t, t * 104729 % config.vocab});
    }
    packed_.lengths = {tokens};
    batch_ = std::make_unique<nn::Batch>(config, packed_.ids, packed_.lengths);
    batch_->MoveTo(at::kCUDA);
  }
  absl::Status Begin(int copies) override {
    copies_.clear();
    copies_.resize(static_cast<size_t>(copies));
    return absl::OkStatus();
  }
  absl::Status Forward(size_t unit, int copy, std::span<const float> weights) override {
    const at::NoGradGuard no_grad;
    Copy& c = copies_[static_cast<size_t>(copy)];
    const tier::UnitPart& part = units_[unit].parts[0];
    const auto [block, slot] = place_[part.uid];
    const auto columns = static_cast<int64_t>(part.columns), row = static_cast<int64_t>(part.first) / columns;
    if (block == 0) {
      const at::Tensor piece = nn::View(weights, {static_cast<int64_t>(weights.size()) / columns, columns}, at::kCUDA);
      const bool tokens = static_cast<int>(slot) == model_.embed_slots().tokens;
      Add(tokens ? batch_->ids : batch_->positions, row, piece, tokens ? c.tokens : c.positions);
    } else if (block <= static_cast<size_t>(model_.config().layers)) {
      if (!c.x.defined()) c.x = model_.Embed(c.tokens, c.positions, {}, nn::PlainOps(model_.config(), {}));
      const nn::Weights views = ViewsOf(unit, block, weights);
      c.x = model_.Layer(nn::PlainOps(model_.config(), views), c.x, *batch_);
    } else if (static_cast<int>(slot) == model_.head_slots().lm_head) {
      if (c.vocabulary == nullptr) c.vocabulary = std::make_unique<train::Vocabulary>(packed_, true);
      const at::Tensor piece = nn::View(weights, {static_cast<int64_t>(weights.size()) / columns, columns}, at::kCUDA);
      c.vocabulary->Piece(row, nn::Model::Logits(c.x, piece, {}));
    } else {
      const nn::Weights views = ViewsOf(unit, block, weights);
      c.x = model_.Final(nn::PlainOps(model_.config(), views), c.x);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<double>> Losses() override {
    std::vector<double> losses;
    for (const Copy& copy : copies_) {
      double sum = 0;
      for (double p : copy.vocabulary->LogProbabilities()) sum -= p;
      losses.push_back(sum / static_cast<double>(packed_.asks.size()));
    }
    return losses;
  }

 private:
  struct Copy {
    at::Tensor tokens, positions, x;
    std::unique_ptr<train::Vocabulary> vocabulary;
  };
  nn::Weights ViewsOf(size_t unit, size_t block, std::span<const float> weights) const {
    nn::Weights views(blocks_[block].tensors.size());
    for (const tier::UnitPart& part : units_[unit].parts) {
      const size_t slot = place_[part.uid].second;
      views[slot] = nn::View(weights.first(part.count), blocks_[block].tensors[slot].shape, at::kCUDA);
      weights = weights.subspan(part.count);
    }
    return views;
  }
  /// Rows outside the piece add nothing.
  static void Add(const at::Tensor& ids, int64_t first, const at::Tensor& piece, at::Tensor& rows) {
    const at::Tensor local = at::sub(ids, first), inside = local.ge(0).logical_and(local.lt(piece.size(0)));
    const at::Tensor found = at::index_select(piece, 0, local.clamp(0, piece.size(0) - 1));
    const at::Tensor part = at::mul(found, inside.to(at::kFloat).unsqueeze(1));
    rows = rows.defined() ? at::add(rows, part) : part;
  }

  nn::Model model_;
  const std::vector<tier::BlockSpec>& blocks_;
  const std::vector<tier::Unit>& units_;
  std::vector<std::pair<size_t, size_t>> place_;
  train::Packed packed_;
  std::unique_ptr<nn::Batch> batch_;
  std::vector<Copy> copies_;
};

struct Options {
  std::string models = "1.3b,6.7b,13b", codec = "bf16";
  int64_t tokens = 2048;
  int steps = 6;
};

struct Figure {
  double seconds = 0, peak_gb = 0, plan_gb = 0, uploaded_gb = 0, waited = 0, compute = 0;
};

double DriverUsedGb() {
  size_t left = 0, all = 0;
  cudaMemGetInfo(&left, &all);
  return static_cast<double>(all - left) / 1e9;
}

absl::StatusOr<Figure> Run(const Shape& shape, const Options& options, bool offloaded) {
  const nn::ModelConfig config = Opt(shape, options.tokens);
  const std::vector<tier::BlockSpec> blocks = nn::DescribeBlocks(config);
  const nn::EmbedSlots embed = nn::EmbedSlotsOf(config);
  std::vector<size_t> tables = {static_cast<size_t>(embed.tokens), static_cast<size_t>(embed.positions)};
  size_t tensors = 0;
  for (const tier::BlockSpec& block : blocks) tensors += block.tensors.size();
  tables.push_back(tensors - blocks.back().tensors.size() + static_cast<size_t>(nn::HeadSlotsOf(config).lm_head));
  std::vector<tier::Unit> units = tier::CutIntoUnits(blocks, tables, 8192);
  std::stable_partition(units.begin(), units.end(),
                        [&](const tier::Unit& unit) { return unit.parts[0].uid != tables.back(); });
  tier::TierRequest request;
  request.separate_device = true;
  if (offloaded) {
    ASSIGN_OR_RETURN(request.codec, tier::ParseCodec(options.codec));
    const size_t floats = tier::LargestUnit(units);
    request.device_budget = static_cast<int64_t>((3 + 2) * (floats + 4096) * sizeof(float));
    if (!tier::Lossless(request.codec)) request.device_budget += static_cast<int64_t>(3 * 2 * (floats + 4096));
    request.slots = 3;
  }
  ASSIGN_OR_RETURN(const tier::Plan plan, tier::MakePlan(units, 0, false, request));
  ASSIGN_OR_RETURN(const auto gpu, tier::CudaAccelerator::Create());
  const c10::cuda::CUDAStreamGuard behind(c10::cuda::getStreamFromExternal(gpu->stream(tier::Queue::kCompute), 0));
  tier::StreamsDevice device(gpu.get());
  std::vector<float> noise(size_t{1} << 22);
  zo::FillNormal({1, 0, 0}, 0, 0, noise);
  for (float& x : noise) x *= 0.02f;
  tier::PipelineOptions run;
  run.hyper = {.lr = 1e-7, .eps = 1e-3};
  run.accelerator = gpu.get();
  ASSIGN_OR_RETURN(const auto pipeline,
                   tier::Pipeline::Create(units, plan, run, &device, nullptr, {},
                                          [&](size_t, std::span<float> slot) -> absl::StatusOr<tier::Progress> {
                                            for (size_t at = 0; at < slot.size(); at += noise.size())
                                              std::copy_n(noise.begin(), std::min(noise.size(), slot.size() - at),
                                                          slot.begin() + static_cast<ptrdiff_t>(at));
                                            return tier::Progress{};
                                          }));
  OptCompute compute(config, blocks, units, options.tokens);
  Figure figure;
  tier::QueueTimes before;
  for (int step = 0; step < options.steps; ++step) {
    if (step == options.steps / 2) before = pipeline->times();
    const auto began = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(const tier::StepLosses losses, pipeline->Step(1e-7, compute));
    if (losses.skipped) return Internal("step ", step, ": ", losses.reason);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (step >= options.steps / 2) figure.seconds += seconds / (options.steps - options.steps / 2);
    figure.peak_gb = std::max(figure.peak_gb, DriverUsedGb());
  }
  const tier::QueueTimes after = pipeline->times();
  const auto compute_queue = static_cast<size_t>(tier::Queue::kCompute);
  figure.compute = after.busy[compute_queue] - before.busy[compute_queue];
  figure.waited = after.compute_waited - before.compute_waited;
  figure.plan_gb = static_cast<double>(plan.device_peak) / 1e9;
  figure.uploaded_gb = static_cast<double>(plan.uploaded) / 1e9;
  return figure;
}

void Report(const Shape& shape, const Options& options, bool offloaded) {
  const absl::StatusOr<Figure> got = Run(shape, options, offloaded);
  c10::cuda::CUDACachingAllocator::emptyCache();
  if (!got.ok())
    return (void)std::printf("%-5s %-9s %s\n", shape.name, offloaded ? "offloaded" : "resident",
                             got.status().ToString().c_str());
  std::printf(
      "%-5s %-9s %8.3f s %9.1f tok/s  device %6.2f GB (plan %6.2f without activations%s)  up %6.2f GB a step  overlap "
      "%.3f\n",
      shape.name, offloaded ? "offloaded" : "resident", got->seconds,
      static_cast<double>(options.tokens) / got->seconds, got->peak_gb, got->plan_gb,
      offloaded && shape.published_gb > 0 ? Cat("; ZO2 ", shape.published_gb).c_str() : "", got->uploaded_gb,
      got->compute / std::max(1e-9, got->compute + got->waited));
  std::fflush(stdout);
}

}  // namespace
}  // namespace optod

int main(int argc, char** argv) {
  using namespace optod;
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--models") options.models = value;
    if (key == "--codec") options.codec = value;
    if (key == "--tokens") options.tokens = std::max(1, std::atoi(value.c_str()));
    if (key == "--steps") options.steps = std::max(2, std::atoi(value.c_str()));
  }
  if (const absl::StatusOr<int> count = tier::CudaDevices(); !count.ok())
    return std::fprintf(stderr, "%s\n", count.status().ToString().c_str()), 2;
  at::globalContext().setAllowTF32CuBLAS(true);
  std::printf("OPT, %lld tokens, codec %s, %d steps\n", static_cast<long long>(options.tokens), options.codec.c_str(),
              options.steps);
  std::istringstream names(options.models);
  for (std::string name; std::getline(names, name, ',');) {
    for (const Shape& shape : kShapes) {
      if (name != shape.name) continue;
      Report(shape, options, true);
      Report(shape, options, false);
    }
  }
  return 0;
}
