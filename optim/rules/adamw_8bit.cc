// AdamW with block-wise 8-bit moments (Dettmers et al. 2022): AdamW's formula in full precision between two conversions
// of each block. State of tensors from min_8bit_size entries on, unless named by float_tensors: m, v as codes of the
// parameter's shape (m signed, v unsigned), m_max, v_max one float32 a block of block_size consecutive entries. Smaller
// ones: m, v in the compute dtype.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/status.h"
#include "optim/rules/adam_constants.h"
#include "optim/rules/factories.h"
#include "optim/rules/glob.h"

namespace optod::optim {
namespace {

constexpr int64_t kMostBlock = 4096;
static_assert(kChunk % kMostBlock == 0, "chunks hold whole blocks, so that no two threads share one");

class AdamW8bitRule : public RuleBase {
 public:
  explicit AdamW8bitRule(RuleArgs rule_args)
      : RuleBase(std::move(rule_args)),
        settings_{args().number("beta1"), args().number("beta2"), args().number("eps"), args().number("weight_decay")},
        block_(static_cast<int64_t>(args().number("block_size"))) {
    for (int i = 0; i < tensors(); ++i) {
      const TensorSpec& spec = layout()[i];
      const bool coded = spec.elements() >= static_cast<int64_t>(args().number("min_8bit_size")) &&
                         spec.elements() > 0 && !MatchesAny(args().text("float_tensors"), spec.name);
      const DType dtype = coded ? DType::kU8 : compute(i);
      Moments moments;
      moments.m = AddState("m/" + spec.name, dtype, spec.shape);
      moments.v = AddState("v/" + spec.name, dtype, spec.shape);
      const int64_t blocks = (spec.elements() + block_ - 1) / block_;
      if (coded) moments.m_max = AddState("m_max/" + spec.name, DType::kF32, {blocks});
      if (coded) moments.v_max = AddState("v_max/" + spec.name, DType::kF32, {blocks});
      moments_.push_back(moments);
    }
  }

 protected:
  void Apply(std::span<void* const> params, const StepInput& input, StepReport&) override {
    const double eta = lr(input);
    ForEachChunk(input, [&](const Chunk& chunk) {
      const int i = chunk.tensor;
      Operands operands = Bind(i, params, input);
      WithComputeType(compute(i), [&](auto zero) {
        using T = decltype(zero);
        const formula::Adam<T> c =
            AdamConstants<T>(settings_.WithDecay(weight_decay(i)), eta, static_cast<double>(t(i)));
        if (moments_[i].m_max != nullptr) return StepCoded<T>(c, moments_[i], operands, chunk);
        operands.s[0] = moments_[i].m->data.data();
        operands.s[1] = moments_[i].v->data.data();
        RunKernel(kAdam, &c, operands, chunk.begin, chunk.end);
      });
    });
  }

 private:
  struct Moments {
    StateTensor *m = nullptr, *v = nullptr, *m_max = nullptr, *v_max = nullptr;
  };

  template <typename T>
  void StepCoded(const formula::Adam<T>& c, const Moments& moments, const Operands& operands,
                 const Chunk& chunk) const {
    alignas(64) T m[kMostBlock], v[kMostBlock];
    for (int64_t at = chunk.begin; at < chunk.end; at += block_) {
      const int64_t n = std::min(block_, chunk.end - at), block = at / block_;
      Decode(true, moments.m->as<uint8_t>() + at, moments.m_max->as<float>()[block], n, m);
      Decode(false, moments.v->as<uint8_t>() + at, moments.v_max->as<float>()[block], n, v);
      Operands slice = Slice(operands, at);
      slice.s[0] = m;
      slice.s[1] = v;
      RunKernel(kAdam, &c, slice, 0, n);
      moments.m_max->as<float>()[block] = Encode(true, m, n, moments.m->as<uint8_t>() + at);
      moments.v_max->as<float>()[block] = Encode(false, v, n, moments.v->as<uint8_t>() + at);
    }
  }

  static void Decode(bool is_signed, const uint8_t* codes, float largest, int64_t n, float* values) {
    Kernels().decode8(is_signed, codes, largest, values, n);
  }
  static void Decode(bool is_signed, const uint8_t* codes, float largest, int64_t n, double* values) {
    float tile[kMostBlock];
    Decode(is_signed, codes, largest, n, tile);
    std::copy_n(tile, n, values);
  }
  /// Returns the block's absolute maximum, at least the smallest normal number: below it a block is zeros.
  static float Encode(bool is_signed, const float* values, int64_t n, uint8_t* codes) {
    const float largest = std::max(Kernels().max_abs(values, n), std::numeric_limits<float>::min());
    Kernels().encode8(is_signed, values, 1 / largest, codes, n);
    return largest;
  }
  static float Encode(bool is_signed, const double* values, int64_t n, uint8_t* codes) {
    float tile[kMostBlock];
    std::transform(values, values + n, tile, [](double x) { return static_cast<float>(x); });
    return Encode(is_signed, tile, n, codes);
  }

  const AdamSettings settings_;
  const int64_t block_;
  std::vector<Moments> moments_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeAdamW8bit(RuleArgs args) {
  const int64_t block = static_cast<int64_t>(args.number("block_size"));
  if ((block & (block - 1)) != 0) return InvalidArgument("hyperparameters.block_size: ", block, " is no power of two");
  return std::make_unique<AdamW8bitRule>(std::move(args));
}

}  // namespace optod::optim
