// Greedy text after prompts: one pass over all prompts, then a pass for every further token of those that have not ended.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/train/torch_engine.h"

namespace optod::train {
namespace {

/// The first of the highest logits of a row; -1 when none is finite.
int64_t Likeliest(const float* logits, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return std::isfinite(logits[best]) ? best : -1;
}

/// A prompt as what Pack takes: its last row is asked.
Example AskedAtEnd(const std::vector<int64_t>& prompt) {
  Sequence sequence{prompt, {{static_cast<int64_t>(prompt.size()) - 1, 0, 0}}};
  return {{std::move(sequence)}, 1, 0};
}

/// A sequence that goes on.
struct Open {
  size_t place = 0;  ///< among the prompts
  int64_t past = 0, last = 0;
  std::vector<nn::KeyValues> cache;  ///< a layer
};

}  // namespace

/// The model at one point, and the sequences that have not ended.
class TorchEngine::GreedyText {
 public:
  GreedyText(TorchEngine& engine, std::span<const float> theta)
      : engine_(engine),
        blocks_(engine.BlocksAt(theta)),
        adapters_(engine.AdapterViews(theta)),
        extras_(engine.Extras(adapters_)) {}

  std::vector<Continuation> Run(const std::vector<std::vector<int64_t>>& prompts, int64_t max_tokens,
                                const std::function<bool(const std::vector<int64_t>&)>& ended) {
    made_.resize(prompts.size());
    at::Tensor logits = ReadPrompts(prompts);
    for (int64_t t = 0; t < max_tokens && !open_.empty(); ++t) {
      Take(logits, ended);
      if (t + 1 < max_tokens && !open_.empty()) logits = ReadNext();
    }
    return std::move(made_);
  }

 private:
  const nn::ModelConfig& config() const { return engine_.files_.config; }

  at::Tensor ReadPrompts(const std::vector<std::vector<int64_t>>& prompts) {
    std::vector<size_t> order(prompts.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return prompts[a].size() < prompts[b].size(); });
    std::vector<Example> examples;
    for (size_t i : order) examples.push_back(AskedAtEnd(prompts[i]));
    std::vector<const Example*> pointers;
    for (const Example& example : examples) pointers.push_back(&example);
    const Packed packed = Pack(pointers, engine_.VirtualTokens());
    for (size_t i = 0; i < order.size(); ++i) open_.push_back({order[i], packed.lengths[i], 0, {}});
    const nn::Batch batch(config(), packed.ids, packed.lengths, 0, engine_.Shift());
    const at::Tensor prompt = engine_.Scheme("prompt") ? adapters_[0] : at::Tensor();
    const at::Tensor x = Layers(engine_.EmbedPlain(blocks_.front(), packed, batch, prompt), batch);
    return Logits(at::index_select(x, 0, Indices(packed.rows)));
  }

  at::Tensor ReadNext() {
    std::vector<int64_t> ids, past;
    for (const Open& sequence : open_) {
      ids.push_back(sequence.last);
      past.push_back(sequence.past);
    }
    const nn::Batch batch = nn::Batch::Next(config(), ids, past, engine_.Shift());
    for (Open& sequence : open_) ++sequence.past;
    const Packed next{ids, {}, {}, {}, {}};
    return Logits(Layers(engine_.EmbedPlain(blocks_.front(), next, batch, {}), batch));
  }

  /// Through all layers, the caches of the open sequences read and replaced.
  at::Tensor Layers(at::Tensor x, const nn::Batch& batch) {
    for (size_t b = 1; b + 1 < blocks_.size(); ++b) {
      engine_.Breathe();
      std::vector<nn::KeyValues> cache(batch.runs.size());
      for (size_t r = 0; r < cache.size() && open_[r].cache.size() >= b; ++r)
        cache[r] = open_[r].cache[b - 1];
      x = engine_.model_.Layer(nn::PlainOps(config(), blocks_[b], &extras_[b - 1]), x, batch, cache.data());
      Keep(b - 1, cache);
    }
    return x;
  }
  /// Runs of several sequences (prompts of one length) are taken apart.
  void Keep(size_t layer, const std::vector<nn::KeyValues>& cache) {
    size_t place = 0;
    for (const nn::KeyValues& run : cache) {
      for (int64_t i = 0; i < run.k.size(0); ++i, ++place) {
        std::vector<nn::KeyValues>& own = open_[place].cache;
        own.resize(std::max(own.size(), layer + 1));
        own[layer] = {run.k.slice(0, i, i + 1), run.v.slice(0, i, i + 1)};
      }
    }
  }
  at::Tensor Logits(const at::Tensor& x) const {
    const at::Tensor last = engine_.model_.Final(nn::PlainOps(config(), blocks_.back()), x);
    return nn::Model::Logits(last, engine_.Matrix(blocks_), engine_.Bias(blocks_)).contiguous();
  }

  /// The likeliest token of every open sequence; those that end here are closed.
  void Take(const at::Tensor& logits, const std::function<bool(const std::vector<int64_t>&)>& ended) {
    const auto* row = logits.data_ptr<float>();
    const int64_t vocab = logits.size(1), room = config().max_positions - engine_.Shift();
    for (Open& sequence : open_) {
      Continuation& made = made_[sequence.place];
      sequence.last = Likeliest(row, vocab);
      row += vocab;
      made.finite = sequence.last >= 0;
      if (!made.finite || sequence.last == config().eos) {
        sequence.last = -1;
        continue;
      }
      made.ids.push_back(sequence.last);
      if (sequence.past >= room || ended(made.ids)) sequence.last = -1;
    }
    std::erase_if(open_, [](const Open& sequence) { return sequence.last < 0; });
  }

  TorchEngine& engine_;
  const std::vector<nn::Weights> blocks_;
  const nn::Weights adapters_;
  const std::vector<nn::LayerExtra> extras_;
  std::vector<Open> open_;  // in the order of the batch's rows
  std::vector<Continuation> made_;
};

absl::StatusOr<std::vector<Continuation>> TorchEngine::Continue(
    std::span<const float> theta, const std::vector<std::vector<int64_t>>& prompts, int64_t max_tokens,
    const std::function<bool(const std::vector<int64_t>&)>& ended) {
  if (!config().causal()) return Unimplemented("answers: this family does not continue texts");
  for (const std::vector<int64_t>& prompt : prompts) RETURN_IF_ERROR(nn::CheckIds(config(), prompt));
  return Run([&] {
    at::NoGradGuard no_grad;
    Flush();
    return GreedyText(*this, theta).Run(prompts, max_tokens, ended);
  });
}

}  // namespace optod::train
