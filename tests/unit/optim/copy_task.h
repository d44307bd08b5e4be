#pragma once
/// Fine-tuning a small transformer on a copy task without gradients: two layers of width 32 with two heads, vocabulary 64;
/// a row is six random tokens twice, and the loss is that of the second six (ln 64 = 4.16 for a guess).
///
/// The start is a model that half knows the task, made by arithmetic: a head of layer 0 looks five places back along
/// sine positions, with a temperature too high to tell them well apart, and hands the token on to the vocabulary matrix;
/// everything else is noise of 0.02. Fine-tuning sharpens it: all 29,056 weights, or LoRA of rank 4 on the queries and
/// values (1,024 numbers). Fixed seeds; the same losses on every machine up to rounding of exp.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "optim/zo/stream.h"
#include "optim/zo/zo_optimizer.h"

namespace optod::zo {

enum class CopyScheme { kAllWeights, kLora };
inline constexpr CopyScheme kCopySchemes[] = {CopyScheme::kAllWeights, CopyScheme::kLora};
inline const char* CopyName(CopyScheme scheme) { return scheme == CopyScheme::kLora ? "lora" : "all_weights"; }

class CopyModel {
 public:
  static constexpr int kVocab = 64, kWidth = 32, kHeads = 2, kHead = kWidth / kHeads, kLayers = 2, kInner = 4 * kWidth,
                       kCopied = 6, kTokens = 2 * kCopied, kRank = 4;

  explicit CopyModel(uint64_t seed) : weights_(Layout().size()) {
    const ZoLayout layout = Layout();
    for (size_t t = 0; t < layout.tensors(); ++t) {
      const std::span<float> w(weights_.data() + layout.offset(t), layout.tensor(t).size);
      FillNormal({seed, 0, 0}, static_cast<uint32_t>(t), 0, w);
      for (float& x : w) x *= 0.02f;
    }
    std::vector<uint32_t> bits(kVocab * kHead);
    FillBits({seed, 0, 1}, 0, 0, bits);
    for (int v = 0; v < kVocab; ++v) {
      for (int i = 0; i < kHead; ++i) {
        const float code = bits[v * kHead + i] & 1 ? 1.0f : -1.0f;
        At(kEmbedding)[v * kWidth + i] = code;
        At(kVocabulary)[i * kVocab + v] += 0.2f * code;
      }
      for (int i = kHead; i < kWidth; ++i) At(kEmbedding)[v * kWidth + i] = 0;
    }
    PlacePositions();
  }

  /// All weights; those of the layers as [in, out].
  static ZoLayout Layout() {
    std::vector<ZoTensor> tensors = {{"embedding", kVocab * kWidth}, {"positions", kTokens * kWidth}};
    for (int l = 0; l < kLayers; ++l) {
      const std::string name = "layer" + std::to_string(l) + ".";
      for (const char* square : {"q", "k", "v", "o"}) tensors.push_back({name + square, kWidth * kWidth});
      for (const char* wide : {"up", "down"}) tensors.push_back({name + wide, kWidth * kInner});
    }
    tensors.push_back({"vocabulary", kWidth * kVocab});
    return ZoLayout(std::move(tensors));
  }
  /// Factors A [in, rank] and B [rank, out] of queries and values, by layer; an update is 2 A B.
  static ZoLayout LoraLayout() {
    std::vector<ZoTensor> tensors;
    for (int l = 0; l < kLayers; ++l) {
      for (const char* which : {"q.A", "q.B", "v.A", "v.B"})
        tensors.push_back({"layer" + std::to_string(l) + "." + which, kWidth * kRank});
    }
    return ZoLayout(std::move(tensors));
  }
  /// A at random, B zero: the model is the base's at first.
  static std::vector<float> LoraStart(uint64_t seed) {
    const ZoLayout layout = LoraLayout();
    std::vector<float> out(layout.size());
    for (size_t t = 0; t < layout.tensors(); t += 2) {
      const std::span<float> a(out.data() + layout.offset(t), layout.tensor(t).size);
      FillNormal({seed, 0, 2}, static_cast<uint32_t>(t), 0, a);
      for (float& x : a) x /= std::sqrt(static_cast<float>(kWidth));
    }
    return out;
  }

  std::vector<float>& weights() { return weights_; }

  /// Adds scale times 2 A B to queries and values.
  void AddLora(std::span<const float> lora, float scale) {
    for (int l = 0; l < kLayers; ++l) {
      for (int which = 0; which < 2; ++which) {
        const float* a = lora.data() + (l * 4 + which * 2) * kWidth * kRank;
        const float* b = a + kWidth * kRank;
        float* w = At(LayerTensor(l, which == 0 ? kQuery : kValue));
        for (int i = 0; i < kWidth; ++i) {
          for (int r = 0; r < kRank; ++r) {
            for (int o = 0; o < kWidth; ++o) w[i * kWidth + o] += scale * 2 * a[i * kRank + r] * b[r * kWidth + o];
          }
        }
      }
    }
  }

  /// Mean negative log probability of the second copy, under `weights` in place of the model's own.
  static double Loss(std::span<const float> weights, std::span<const int> tokens) {
    double sum = 0;
    const size_t rows = tokens.size() / kTokens;
    for (size_t row = 0; row < rows; ++row) sum += RowLoss(weights, tokens.subspan(row * kTokens, kTokens));
    return sum / static_cast<double>(rows * kCopied);
  }

  /// `rows` rows of draw number `step`.
  static std::vector<int> Rows(uint64_t seed, uint32_t step, size_t rows) {
    std::vector<uint32_t> bits(rows * kCopied);
    FillBits({seed, step, 3}, 0, 0, bits);
    std::vector<int> out;
    for (size_t row = 0; row < rows; ++row) {
      for (int i = 0; i < kTokens; ++i) out.push_back(static_cast<int>(bits[row * kCopied + static_cast<size_t>(i % kCopied)] % kVocab));
    }
    return out;
  }

 private:
  enum : size_t { kEmbedding = 0, kPositions = 1, kFirstLayer = 2, kVocabulary = kFirstLayer + 6 * kLayers };
  enum : size_t { kQuery, kKey, kValue, kOut, kUp, kDown };
  using Hidden = std::array<float, kTokens * kWidth>;

  static size_t LayerTensor(int l, size_t which) { return kFirstLayer + 6 * static_cast<size_t>(l) + which; }
  static size_t OffsetOf(size_t t) {
    static const ZoLayout layout = Layout();
    return layout.offset(t);
  }
  float* At(size_t t) { return weights_.data() + OffsetOf(t); }

  void PlacePositions() {
    constexpr float kTemperature = 1;  // of the head that looks back: higher tells the places better apart
    float* positions = At(kPositions);
    std::fill(positions, positions + kTokens * kWidth, 0.0f);
    for (int f = 0; f < kHead / 2; ++f) {
      const double frequency = 2 * M_PI * (f + 1) / kTokens;
      const int at = kHead + 2 * f;
      for (int t = 0; t < kTokens; ++t) {
        positions[t * kWidth + at] = static_cast<float>(std::cos(frequency * t));
        positions[t * kWidth + at + 1] = static_cast<float>(std::sin(frequency * t));
      }
      // A rotation: the query of place t is the key of place t - (kCopied - 1), behind which the next token stood.
      const auto c = static_cast<float>(std::cos(frequency * (kCopied - 1))), s = static_cast<float>(std::sin(frequency * (kCopied - 1)));
      float* q = At(LayerTensor(0, kQuery));
      q[at * kWidth + at] += kTemperature * c;
      q[(at + 1) * kWidth + at] += kTemperature * s;
      q[at * kWidth + at + 1] -= kTemperature * s;
      q[(at + 1) * kWidth + at + 1] += kTemperature * c;
    }
    for (int i = 0; i < kHead; ++i) {
      At(LayerTensor(0, kKey))[(kHead + i) * kWidth + kHead + i] += 1;
      At(LayerTensor(0, kValue))[i * kWidth + kHead + i] += 1;
      At(LayerTensor(0, kOut))[(kHead + i) * kWidth + i] += 1;
    }
  }

  /// y[rows, out] += x[rows, in] w[in, out].
  static void Multiply(const float* x, const float* w, float* y, int rows, int in, int out) {
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < in; ++i) {
        const float scale = x[r * in + i];
        for (int o = 0; o < out; ++o) y[r * out + o] += scale * w[i * out + o];
      }
    }
  }
  /// Every row over its root mean square.
  static Hidden Normalised(const Hidden& x) {
    Hidden out = x;
    for (int t = 0; t < kTokens; ++t) {
      float sum = 1e-5f * kWidth;
      for (int i = 0; i < kWidth; ++i) sum += x[t * kWidth + i] * x[t * kWidth + i];
      const float scale = 1 / std::sqrt(sum / kWidth);
      for (int i = 0; i < kWidth; ++i) out[t * kWidth + i] *= scale;
    }
    return out;
  }
  static void Attend(const Hidden& q, const Hidden& k, const Hidden& v, Hidden* mixed) {
    for (int head = 0; head < kHeads; ++head) {
      for (int t = 0; t < kTokens; ++t) {
        std::array<float, kTokens> score;
        float most = -1e30f, sum = 0;
        for (int s = 0; s <= t; ++s) {
          float dot = 0;
          for (int i = head * kHead; i < (head + 1) * kHead; ++i) dot += q[t * kWidth + i] * k[s * kWidth + i];
          score[s] = dot / std::sqrt(static_cast<float>(kHead));
          most = std::max(most, score[s]);
        }
        for (int s = 0; s <= t; ++s) sum += score[s] = std::exp(score[s] - most);
        for (int s = 0; s <= t; ++s) {
          for (int i = head * kHead; i < (head + 1) * kHead; ++i) (*mixed)[t * kWidth + i] += score[s] / sum * v[s * kWidth + i];
        }
      }
    }
  }
  static double RowLoss(std::span<const float> weights, std::span<const int> tokens) {
    const auto at = [&](size_t t) { return weights.data() + OffsetOf(t); };
    Hidden x;
    for (int t = 0; t < kTokens; ++t) {
      for (int i = 0; i < kWidth; ++i) x[t * kWidth + i] = at(kEmbedding)[tokens[t] * kWidth + i] + at(kPositions)[t * kWidth + i];
    }
    for (int l = 0; l < kLayers; ++l) {
      const Hidden h = Normalised(x);
      Hidden q{}, k{}, v{}, mixed{};
      for (auto [to, which] : {std::pair{&q, kQuery}, {&k, kKey}, {&v, kValue}})
        Multiply(h.data(), at(LayerTensor(l, which)), to->data(), kTokens, kWidth, kWidth);
      Attend(q, k, v, &mixed);
      Multiply(mixed.data(), at(LayerTensor(l, kOut)), x.data(), kTokens, kWidth, kWidth);
      const Hidden g = Normalised(x);
      std::array<float, kTokens * kInner> inner{};
      Multiply(g.data(), at(LayerTensor(l, kUp)), inner.data(), kTokens, kWidth, kInner);
      for (float& value : inner) value = std::max(value, 0.0f);
      Multiply(inner.data(), at(LayerTensor(l, kDown)), x.data(), kTokens, kInner, kWidth);
    }
    const Hidden h = Normalised(x);
    double loss = 0;
    for (int t = kCopied - 1; t + 1 < kTokens; ++t) {
      std::array<float, kVocab> logits{};
      Multiply(h.data() + t * kWidth, at(kVocabulary), logits.data(), 1, kWidth, kVocab);
      const float most = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit - most));
      loss += std::log(sum) - static_cast<double>(logits[static_cast<size_t>(tokens[t + 1])] - most);
    }
    return loss;
  }

  std::vector<float> weights_;
};

struct CopyRun {
  size_t parameters = 0;
  int steps = 0;
  double before = 0, after = 0;  ///< loss on 256 rows that no step saw
};

/// ZO-SGD, two sides, one query, batches of 16 rows, at most 3000 steps.
inline CopyRun TrainCopyTask(CopyScheme scheme, uint64_t seed) {
  constexpr uint32_t kHeldOut = 1u << 31;
  CopyModel model(seed);
  const bool lora = scheme == CopyScheme::kLora;
  const ZoLayout layout = lora ? CopyModel::LoraLayout() : CopyModel::Layout();
  std::vector<float> theta = lora ? CopyModel::LoraStart(seed) : model.weights();
  const std::vector<int> held_out = CopyModel::Rows(seed, kHeldOut, 256);
  const auto loss_on = [&](std::span<const float> at, std::span<const int> rows) {
    if (!lora) return CopyModel::Loss(at, rows);
    CopyModel merged = model;
    merged.AddLora(at, 1);
    return CopyModel::Loss(merged.weights(), rows);
  };
  CopyRun run{layout.size(), lora ? 3000 : 1500, loss_on(theta, held_out), 0};
  ZoOptimizer<float> optimizer(layout, {.lr = lora ? 4e-3 : 1e-3, .eps = 1e-3});
  for (int step = 0; step < run.steps; ++step) {
    const std::vector<int> rows = CopyModel::Rows(seed, static_cast<uint32_t>(step), 16);
    optimizer.Step(theta, StreamDirection<float>(seed, static_cast<uint32_t>(step), layout),
                   [&](std::span<const float> at) { return loss_on(at, rows); });
  }
  run.after = loss_on(theta, held_out);
  return run;
}

}  // namespace optod::zo
