// AdaHessian (Yao et al. 2021, Alg. 1): Adam with a Hutchinson estimate of the Hessian diagonal as second moment.
//   D = mean over samples of z * Hz; Ds = its spatial average; m := EMA(m, g); s := EMA(s, Ds^2);
//   p -= eta (m / (1 - beta1^t) / ((sqrt(s) / sqrt(1 - beta2^t))^k + eps) + lambda p).
// Tell needs, for each tensor with a gradient: hessian_z/<tensor>, z * Hz, of the parameter's shape, or [samples,
// ...shape]; with update_each = f only at the tensor's steps 1, 1 + f, 1 + 2f, ... State: m, s of the parameter's
// shape; f > 1 adds d, the last Ds (one number a spatial block). Every published spatial average is a mean over runs of
// consecutive entries; BlockLength names the run. Figure: hessian_mean/<tensor>, the mean of Ds, at steps that took a
// spatial average or refreshed d.
#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"

namespace optod::optim {
namespace {

// Entries of one spatial block of a tensor: the last two dimensions of a rank-4 kernel, a row of a matrix, ...
absl::StatusOr<int64_t> BlockLength(const TensorSpec& spec, const RuleArgs& args) {
  const std::string& variant = args.text("variant");
  const int64_t block = static_cast<int64_t>(args.number("block"));
  const size_t rank = spec.shape.size();
  const int64_t last = rank > 0 ? spec.shape[rank - 1] : 1, last_two = rank > 1 ? spec.shape[rank - 2] * last : last;
  if (variant == "image" || variant == "lazy") {
    if (variant == "image" && (rank == 3 || rank > 4)) {
      return InvalidArgument("parameters.", spec.name, ": rank ", rank,
                             " is not known to variant image; must be 0, 1, 2 or 4");
    }
    const bool average = rank == 4 && (variant == "image" || args.flag("average_conv_kernel"));
    return average ? last_two : 1;
  }
  if (variant == "fairseq") {
    if (rank > 2)
      return InvalidArgument("parameters.", spec.name, ": rank ", rank,
                             " is not known to variant fairseq; must be 0, 1 or 2");
    if (rank < 2) return 1;
  }
  if (block < 1) return rank < 2 ? 1 : rank == 4 ? last_two : last;
  if (spec.elements() % block != 0) {
    return InvalidArgument("hyperparameters.block: ", block, " does not divide the ", spec.elements(), " entries of ",
                           spec.name);
  }
  return block;
}

class AdaHessianRule : public RuleBase {
 public:
  AdaHessianRule(RuleArgs rule_args, std::vector<int64_t> block)
      : RuleBase(std::move(rule_args)),
        block_(std::move(block)),
        beta1_(args().number("beta1")),
        beta2_(args().number("beta2")),
        power_(args().number("hessian_power")),
        update_each_(static_cast<int64_t>(args().number("update_each"))),
        m_(AddLike("m")),
        s_(AddLike("s")) {
    for (int i = 0; i < tensors(); ++i) {
      const int64_t blocks = layout()[i].elements() / std::max<int64_t>(1, block_[i]);
      const bool kept = update_each_ > 1;
      if (kept) kept_.push_back(AddState("d/" + layout()[i].name, compute(i), {blocks}));
      scratch_.emplace_back(!kept && block_[i] > 1 ? blocks * DTypeSize(compute(i)) : 0);
    }
  }

 protected:
  absl::Status Check(const StepInput& input) const override {
    for (int i = 0; i < tensors(); ++i) {
      if (input.grads[i] == nullptr || !Refreshes(t(i) + 1)) continue;
      const TensorSpec& spec = layout()[i];
      const std::string name = "hessian_z/" + spec.name;
      RETURN_IF_ERROR(
          CheckExtra(input, name, spec.dtype, "adahessian needs z * Hz of the parameter's shape at this step"));
      std::vector<int64_t> shape = Extra(input, name)->spec.shape;
      if (shape.size() == spec.shape.size() + 1 && shape[0] >= 1) shape.erase(shape.begin());
      if (shape != spec.shape)
        return InvalidArgument(name, ": its shape must be the parameter's, or that after a number of samples");
    }
    return absl::OkStatus();
  }

  void Apply(std::span<void* const> params, const StepInput& input, StepReport& report) override {
    for (int i = 0; i < tensors(); ++i) {
      if (input.grads[i] == nullptr || Averaged(i) == nullptr) continue;
      WithComputeType(compute(i), [&](auto zero) {
        if (!Refreshes(t(i))) return;
        Average<decltype(zero)>(i, input);
        ReportMean<decltype(zero)>(i, report);
      });
    }
    ForEachChunk(input, [&](const Chunk& chunk) {
      WithComputeType(compute(chunk.tensor), [&](auto zero) { Update<decltype(zero)>(chunk, params, input); });
    });
  }

 private:
  bool Refreshes(int64_t step) const { return (step - 1) % update_each_ == 0; }
  /// Where Ds of tensor i stands, one number a block; null when the sample itself serves.
  void* Averaged(int i) const { return !kept_.empty() ? kept_[i]->data.data() : scratch_[i].data(); }

  // Mean over samples of entries [begin, begin + n): the sample itself when there is one and no conversion is needed.
  template <typename T>
  const T* Samples(int i, const StepInput& input, int64_t begin, int64_t n, T* tile) const {
    const OwnedTensor& extra = *Extra(input, "hessian_z/" + layout()[i].name);
    const int64_t size = layout()[i].elements();
    const int64_t samples = size > 0 ? extra.spec.elements() / size : 1;
    const T* first = Load<T>(extra.spec.dtype, extra.data.data(), begin, n, tile);
    if (samples == 1) return first;
    T more[kTile];
    if (first != tile) std::copy_n(first, n, tile);
    for (int64_t k = 1; k < samples; ++k) {
      const T* next = Load<T>(extra.spec.dtype, extra.data.data(), k * size + begin, n, more);
      for (int64_t e = 0; e < n; ++e) tile[e] += next[e];
    }
    for (int64_t e = 0; e < n; ++e) tile[e] /= static_cast<T>(samples);
    return tile;
  }

  // Ds: the mean of |D| over each block. Blocks of one entry keep D's sign, which the square forgets.
  template <typename T>
  void Average(int i, const StepInput& input) {
    T* averaged = static_cast<T*>(Averaged(i));
    const int64_t length = block_[i], blocks = layout()[i].elements() / length;
    ForEachRowBlock(blocks, length, [&](int64_t first, int64_t last) {
      T tile[kTile];
      for (int64_t b = first; b < last; ++b) {
        double sum = 0;
        for (int64_t at = 0; at < length; at += kTile) {
          const int64_t n = std::min(kTile, length - at);
          const T* d = Samples<T>(i, input, b * length + at, n, tile);
          for (int64_t e = 0; e < n; ++e) sum += length == 1 ? d[e] : std::abs(d[e]);
        }
        averaged[b] = static_cast<T>(sum / static_cast<double>(length));
      }
    });
  }

  template <typename T>
  void ReportMean(int i, StepReport& report) const {
    const int64_t blocks = layout()[i].elements() / std::max<int64_t>(1, block_[i]);
    if (blocks > 0)
      report.figures["hessian_mean/" + layout()[i].name] =
          Kernels().typed<T>().sum(static_cast<const T*>(Averaged(i)), blocks) / static_cast<double>(blocks);
  }

  template <typename T>
  void Update(const Chunk& chunk, std::span<void* const> params, const StepInput& input) {
    const int i = chunk.tensor;
    const formula::AdaHessian<T> c = Constants<T>(i, lr(input));
    Operands operands = Bind(i, params, input);
    operands.s[0] = m_[i]->data.data();
    operands.s[1] = s_[i]->data.data();
    const T* averaged = static_cast<const T*>(Averaged(i));
    const int64_t length = block_[i];
    T tile[kTile];
    for (int64_t at = chunk.begin; at < chunk.end; at += kTile) {
      const int64_t n = std::min(kTile, chunk.end - at);
      Operands slice = Slice(operands, at);
      if (averaged == nullptr) {
        slice.x = Samples<T>(i, input, at, n, tile);
      } else if (length == 1) {
        slice.x = averaged + at;
      } else {
        for (int64_t e = 0; e < n; ++e) tile[e] = averaged[(at + e) / length];
        slice.x = tile;
      }
      RunKernel(power_ == 1 ? kAdaHessian : kAdaHessianPower, &c, slice, 0, n);
    }
  }

  template <typename T>
  formula::AdaHessian<T> Constants(int i, double eta) const {
    const double steps = static_cast<double>(t(i));
    formula::AdaHessian<T> c;
    c.first = {static_cast<T>(beta1_), static_cast<T>(1 - beta1_)};
    c.second = {static_cast<T>(beta2_), static_cast<T>(1 - beta2_)};
    c.lr = static_cast<T>(eta);
    c.weight_decay = static_cast<T>(weight_decay(i));
    c.first_scale = static_cast<T>(1 / (1 - std::pow(beta1_, steps)));
    c.root_scale = static_cast<T>(1 / std::sqrt(1 - std::pow(beta2_, steps)));
    c.eps = static_cast<T>(args().number("eps"));
    c.power = static_cast<T>(power_);
    return c;
  }

  const std::vector<int64_t> block_;
  const double beta1_, beta2_, power_;
  const int64_t update_each_;
  const std::vector<StateTensor*> m_, s_;
  std::vector<StateTensor*> kept_;
  std::vector<Buffer> scratch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeAdaHessian(RuleArgs args) {
  std::vector<int64_t> block;
  for (const TensorSpec& spec : args.layout) {
    ASSIGN_OR_RETURN(const int64_t length, BlockLength(spec, args));
    block.push_back(length);
  }
  return std::make_unique<AdaHessianRule>(std::move(args), std::move(block));
}

}  // namespace optod::optim
