#include "optim/nn/inference.h"

#include <ATen/core/grad_mode.h>
#include <torch/version.h>

#include <cmath>
#include <new>

#include "base/status.h"
#include "optim/nn/guard.h"
#include "optim/nn/model.h"
#include "optim/nn/views.h"
#include "optim/zo/stream.h"

namespace optod::nn {
namespace {

class TorchInference final : public Inference {
 public:
  TorchInference(const ModelFiles& files, Precision precision)
      : model_(files.config),
        blocks_(ViewsOf(files.weights)),
        type_(precision == Precision::kFloat32 ? at::kFloat : at::kBFloat16) {
    for (Weights& block : blocks_) {
      for (at::Tensor& tensor : block) tensor = tensor.to(type_);
    }
  }

  absl::StatusOr<std::vector<float>> Logits(const std::vector<int64_t>& ids) override {
    RETURN_IF_ERROR(CheckIds(model_.config(), ids));
    return Guarded([&] {
      at::NoGradGuard no_grad;
      const at::Tensor logits =
          Forward(Batch(model_.config(), ids, {static_cast<int64_t>(ids.size())}), nullptr, /*last_only=*/false);
      return std::vector<float>(logits.data_ptr<float>(), logits.data_ptr<float>() + logits.numel());
    });
  }

  absl::StatusOr<std::vector<int64_t>> Generate(const std::vector<int64_t>& ids, const SamplingOptions& options,
                                                const std::function<bool(int64_t)>& each) override {
    if (!model_.config().causal()) return Unimplemented("generate: this family does not continue texts");
    RETURN_IF_ERROR(CheckIds(model_.config(), ids));
    return Guarded([&] { return Continue(ids, options, each); });
  }

 private:
  std::vector<int64_t> Continue(const std::vector<int64_t>& ids, const SamplingOptions& options,
                                const std::function<bool(int64_t)>& each) {
    at::NoGradGuard no_grad;
    std::vector<KeyValues> cache(blocks_.size());
    std::vector<int64_t> made, fresh = ids;
    int64_t past = 0;
    while (static_cast<int64_t>(made.size()) < options.max_tokens &&
           past + static_cast<int64_t>(fresh.size()) <= model_.config().max_positions) {
      const at::Tensor logits = Forward(Batch(model_.config(), fresh, {static_cast<int64_t>(fresh.size())}, past),
                                        &cache, /*last_only=*/true);
      past += static_cast<int64_t>(fresh.size());
      const int64_t next = Pick(logits, options, made.size());
      if (next == options.stop_token) break;
      made.push_back(next);
      if (each != nullptr && !each(next)) break;
      fresh = {next};
    }
    return made;
  }

  at::Tensor Forward(const Batch& batch, std::vector<KeyValues>* cache, bool last_only) {
    const EmbedSlots& e = model_.embed_slots();
    const Weights &embed = blocks_.front(), &head = blocks_.back();
    at::Tensor positions, types;
    if (e.positions >= 0) positions = at::embedding(embed[static_cast<size_t>(e.positions)], batch.positions);
    if (e.types >= 0) types = embed[static_cast<size_t>(e.types)].slice(0, 0, 1);
    const at::Tensor& tokens = embed[static_cast<size_t>(e.tokens)];
    at::Tensor x = model_.Embed(at::embedding(tokens, batch.ids), positions, types, PlainOps(model_.config(), embed));
    for (size_t b = 1; b + 1 < blocks_.size(); ++b)
      x = model_.Layer(PlainOps(model_.config(), blocks_[b]), x, batch, cache == nullptr ? nullptr : &(*cache)[b]);
    if (last_only) x = x.slice(0, x.size(0) - 1);
    const HeadSlots& h = model_.head_slots();
    const at::Tensor& matrix = h.lm_head < 0 ? tokens : head[static_cast<size_t>(h.lm_head)];
    return Model::Logits(model_.Final(PlainOps(model_.config(), head), x), matrix,
                         h.lm_bias < 0 ? at::Tensor() : head[static_cast<size_t>(h.lm_bias)])
        .to(at::kFloat)
        .contiguous();
  }

  /// The likeliest, or a draw from softmax(logits / temperature) by the random stream's words.
  static int64_t Pick(const at::Tensor& logits, const SamplingOptions& options, size_t step) {
    const float* l = logits.data_ptr<float>();
    const int64_t n = logits.size(-1);
    int64_t best = 0;
    for (int64_t i = 1; i < n; ++i) {
      if (l[i] > l[best]) best = i;
    }
    if (options.temperature <= 0) return best;
    std::vector<double> up_to(static_cast<size_t>(n));
    double sum = 0;
    for (int64_t i = 0; i < n; ++i)
      up_to[static_cast<size_t>(i)] = sum += std::exp((l[i] - l[best]) / options.temperature);
    uint32_t word = 0;
    zo::FillBits({options.seed, static_cast<uint32_t>(step), 0}, 0, 0, {&word, 1});
    const double draw = (word + 0.5) / 4294967296.0 * sum;
    return std::lower_bound(up_to.begin(), up_to.end(), draw) - up_to.begin();
  }

  Model model_;
  std::vector<Weights> blocks_;
  at::ScalarType type_;
};

}  // namespace

absl::Status CheckIds(const ModelConfig& config, const std::vector<int64_t>& ids) {
  if (ids.empty()) return InvalidArgument("ids: the list is empty");
  if (static_cast<int64_t>(ids.size()) > config.max_positions)
    return InvalidArgument("ids: ", ids.size(), " tokens are more than the model's ", config.max_positions,
                           " positions");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0) return InvalidArgument("ids[", i, "]: ", ids[i], " is negative");
    if (ids[i] >= config.vocab)
      return InvalidArgument("ids[", i, "]: ", ids[i], " is not below the vocabulary's ", config.vocab);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Inference>> Inference::Create(const ModelFiles& files, Precision precision) {
  return Guarded([&]() -> std::unique_ptr<Inference> { return std::make_unique<TorchInference>(files, precision); });
}

std::string RuntimeName() {
  return Cat("LibTorch ", TORCH_VERSION_MAJOR, ".", TORCH_VERSION_MINOR, ".", TORCH_VERSION_PATCH);
}

}  // namespace optod::nn
