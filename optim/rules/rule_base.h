#pragma once
/// What every first-order rule shares: checks before anything is touched, the NaN/Inf guard, named state with export
/// and import, step counters, and the loop that runs an elementwise kernel over all tensors in parallel chunks. A rule
/// derives from it, declares its state in the constructor and implements Apply. Not part of the public surface: users
/// see rule.h and registry.h.

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "optim/rules/buffer.h"
#include "optim/rules/kernels.h"
#include "optim/rules/registry.h"
#include "optim/rules/rule.h"

namespace optod::optim {

/// What a factory is given: a complete, checked Hyper (every name of the row is present) and a checked layout.
struct RuleArgs {
  const RuleInfo* info = nullptr;
  Hyper hyper;
  std::vector<TensorSpec> layout;
  uint64_t seed = 0;

  double number(const char* name) const { return std::get<double>(hyper.at(name)); }
  bool flag(const char* name) const { return std::get<bool>(hyper.at(name)); }
  const std::string& text(const char* name) const { return std::get<std::string>(hyper.at(name)); }
};

/// One named state tensor. Its size is fixed when the rule is made, so no step allocates.
struct StateTensor {
  TensorSpec spec;
  Buffer data;
  template <typename T>
  T* as() const {
    return data.as<T>();
  }
};

/// A run of elements of one tensor, the unit of parallel work.
struct Chunk {
  int tensor;
  int64_t begin, end;
};

/// Stochastic rounding of bfloat16 parameters (hyperparameter stochastic_rounding): element e of tensor number `tensor`
/// in its step `step` is rounded with the low 16 bits of word e of the random stream (optim/zo/stream.h, query
/// kRoundingQuery), on every machine alike.
struct Rounding {
  bool stochastic = false;
  uint64_t seed = 0;
  uint32_t step = 0, tensor = 0;
  int64_t first = 0;  ///< element that position 0 stands for
};
inline constexpr uint32_t kRoundingQuery = 0xFFFFFFFFu;

/// Where one tensor's operands stand in a step. State and `x` are in the compute dtype: float64 for float64 parameters,
/// else float32.
struct Operands {
  void* p = nullptr;
  const void* g = nullptr;
  void* s[3] = {};
  const void* x = nullptr;
  DType p_dtype = DType::kF32, g_dtype = DType::kF32;
  Rounding rounding;
};

class RuleBase : public Rule {
 public:
  absl::StatusOr<StepReport> Step(std::span<void* const> params, const StepInput& input) final;
  std::vector<OwnedTensor> ExportState() const final;
  absl::Status ImportState(std::span<const OwnedTensor> state) final;
  size_t StateBytes() const final;
  std::vector<TensorSpec> StateSpecs() const final;
  size_t TransientBytes() const final;
  std::vector<size_t> TransientBytesOfTensors() const final;
  size_t SharedTransientBytes() const final;
  absl::Status CheckStep(std::span<void* const> params, const StepInput& input) const final;

 protected:
  explicit RuleBase(RuleArgs args);

  /// Refuses what the rule cannot step on (missing or misshapen extra inputs). Nothing may change here.
  virtual absl::Status Check(const StepInput& input) const { return absl::OkStatus(); }
  /// The update. Tensors whose gradient is null are to be left alone; t(i) has already been advanced for the others.
  virtual void Apply(std::span<void* const> params, const StepInput& input, StepReport& report) = 0;

  /// Declares state; zero at first. Call in the constructor only. The pointer lives as long as the rule.
  StateTensor* AddState(const std::string& name, DType dtype, std::vector<int64_t> shape);
  /// One state tensor "prefix/<tensor>" of each parameter's shape in its compute dtype.
  std::vector<StateTensor*> AddLike(const std::string& prefix);
  /// Working memory beside the state: what the rule keeps in buffers and tables of its own.
  virtual size_t Scratch() const { return 0; }
  /// What of Scratch the step of tensor i uses.
  virtual size_t ScratchOf(int i) const { return 0; }
  /// What of Scratch serves one tensor after another.
  virtual size_t SharedScratch() const { return Scratch(); }
  /// State that another rule inside this one owns, exported under "prefix/". It has this rule's layout.
  void AddInner(const std::string& prefix, Rule* inner);

  const RuleArgs& args() const { return args_; }
  const std::vector<TensorSpec>& layout() const { return args_.layout; }
  int tensors() const { return static_cast<int>(args_.layout.size()); }
  DType compute(int i) const { return layout()[i].dtype == DType::kF64 ? DType::kF64 : DType::kF32; }
  /// Steps taken by tensor i, the present one included.
  int64_t t(int i) const { return *steps_[i]->as<int64_t>(); }
  /// The hyperparameter `weight_decay`, 0 for a tensor that decay skips.
  double weight_decay(int i) const { return layout()[i].no_decay ? 0.0 : args_.number("weight_decay"); }
  double lr(const StepInput& input) const { return input.lr.value_or(lr_); }
  DType grad_dtype(int i, const StepInput& input) const;
  Operands Bind(int i, std::span<void* const> params, const StepInput& input) const;

  /// Runs `body` on every chunk of every tensor that has a gradient, on all threads. Chunks never depend on the number
  /// of threads.
  void ForEachChunk(const StepInput& input, absl::FunctionRef<void(const Chunk&)> body) const;
  /// The same, with the chunk's place in the plan: for partial sums that are added in order afterwards.
  void ForEachChunkIndexed(const StepInput& input, absl::FunctionRef<void(size_t, const Chunk&)> body) const;
  const std::vector<Chunk>& chunks() const { return chunks_; }
  size_t ChunksOf(int i) const { return first_chunk_[i + 1] - first_chunk_[i]; }
  /// partial[c] summed over the chunks of tensor i, in order.
  double SumOverChunks(int i, const std::vector<double>& partial) const;

  /// Borrowed extra input `name` when given with one of the allowed shapes (checked in Check); null when absent.
  static const OwnedTensor* Extra(const StepInput& input, const std::string& name);
  /// OK when `name` is present, has dtype float32 or `also` and is finite; FAILED_PRECONDITION "name: missing; ..." or
  /// INVALID_ARGUMENT. Finite is looked at unless the input vouches for it.
  absl::Status CheckExtra(const StepInput& input, const std::string& name, DType also, const std::string& why) const;

 private:
  absl::Status CheckCounts(std::span<void* const> params, const StepInput& input) const;
  absl::Status CheckFinite(const StepInput& input) const;

  RuleArgs args_;
  double lr_ = 0;
  int64_t elements_ = 0;  ///< of all tensors
  std::deque<StateTensor> state_;
  std::vector<StateTensor*> steps_;
  std::vector<std::pair<std::string, Rule*>> inner_;
  std::vector<Chunk> chunks_;
  std::vector<size_t> first_chunk_;  ///< of tensor i; one more at the end
};

/// Calls `body` with a float or a double 0, whichever computes for `dtype`: generic code takes its type from the
/// argument.
template <typename Body>
void WithComputeType(DType compute, Body body) {
  if (compute == DType::kF64) {
    body(double{});
  } else {
    body(float{});
  }
}

/// Runs kernel `id` over elements [begin, end) of one tensor; 16-bit operands pass through a float32 tile that stays in
/// the first-level cache. `constants` are of the compute dtype (float for all but float64 parameters).
void RunKernel(KernelId id, const void* constants, const Operands& operands, int64_t begin, int64_t end);

/// The operands of elements from `begin` on (x is left alone).
Operands Slice(const Operands& operands, int64_t begin);

/// Rows of a matrix stepped in blocks on all threads; blocks never depend on the number of threads.
void ForEachRowBlock(int64_t rows, int64_t cols, absl::FunctionRef<void(int64_t first, int64_t last)> body);

/// Elements [begin, begin + n) of `data` (dtype f32, f16, bf16 for T float; f64 for double; f32 for double too) as T:
/// `data` itself where the dtype fits, else converted into `tile`.
template <typename T>
const T* Load(DType dtype, const void* data, int64_t begin, int64_t n, T* tile);
/// Squares of rows [first, first + count) of a matrix of `cols` columns: column_sums[c] += those of column c, row after
/// row; row_sums[r] += those of row first + r. count <= kRowsAtOnce: a column sum is fetched once for all rows.
inline constexpr int64_t kRowsAtOnce = 8;
template <typename T>
void AddSquares(DType dtype, const void* data, int64_t first, int64_t count, int64_t cols, double* column_sums,
                double* row_sums);
/// Writes T values back into the parameter at [begin, begin + n), n <= kTile where it is bfloat16 under stochastic
/// rounding; no-op when `values` already points there.
template <typename T>
void StoreParameter(const Operands& operands, int64_t begin, int64_t n, const T* values);

/// Element address inside a tensor of `dtype`.
inline const void* At(DType dtype, const void* data, int64_t i) {
  return static_cast<const char*>(data) + i * DTypeSize(dtype);
}
inline void* At(DType dtype, void* data, int64_t i) { return static_cast<char*>(data) + i * DTypeSize(dtype); }

inline constexpr int64_t kTile = 2048;         ///< elements of a cache-resident tile
inline constexpr int64_t kChunk = 32 * kTile;  ///< elements of a chunk

}  // namespace optod::optim
