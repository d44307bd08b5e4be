#include "optim/rules/rule_base.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "absl/strings/cord.h"
#include "base/status.h"
#include "optim/zo/stream.h"

namespace optod::optim {
namespace {

// Below this many elements a parallel region costs more than it saves.
constexpr int64_t kParallelFrom = 4 * kChunk;

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

bool IsNan(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::kF64:
      return std::isnan(static_cast<const double*>(data)[i]);
    case DType::kF32:
      return std::isnan(static_cast<const float*>(data)[i]);
    default:
      return std::isnan(WidenOne(dtype, static_cast<const uint16_t*>(data)[i]));
  }
}

/// first_not_finite on all threads.
int64_t FirstNotFinite(DType dtype, const void* data, int64_t n) {
  int64_t first = n;
#pragma omp parallel for schedule(static) reduction(min : first) if (n > kParallelFrom)
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t at = Kernels().first_not_finite(dtype, At(dtype, data, begin), std::min(kChunk, n - begin));
    if (at >= 0) first = std::min(first, begin + at);
  }
  return first < n ? first : -1;
}

absl::Status NotFinite(const std::string& name, DType dtype, const void* data, int64_t i) {
  absl::Status status =
      InvalidArgument(name, ": element ", i, " is ", IsNan(dtype, data, i) ? "NaN" : "infinite", "; must be finite");
  status.SetPayload(kNotFinitePayload, absl::Cord(name));
  return status;
}

}  // namespace

RuleBase::RuleBase(RuleArgs args) : args_(std::move(args)) {
  if (args_.hyper.count("lr")) lr_ = args_.number("lr");
  for (int i = 0; i < tensors(); ++i) {
    steps_.push_back(AddState("t/" + layout()[i].name, DType::kI64, {}));
    elements_ += layout()[i].elements();
    first_chunk_.push_back(chunks_.size());
    for (int64_t begin = 0; begin < layout()[i].elements(); begin += kChunk) {
      chunks_.push_back({i, begin, std::min(begin + kChunk, layout()[i].elements())});
    }
  }
  first_chunk_.push_back(chunks_.size());
}

StateTensor* RuleBase::AddState(const std::string& name, DType dtype, std::vector<int64_t> shape) {
  StateTensor& state = state_.emplace_back();
  state.spec = {name, dtype, std::move(shape)};
  state.data = Buffer(state.spec.bytes());
  return &state;
}

std::vector<StateTensor*> RuleBase::AddLike(const std::string& prefix) {
  std::vector<StateTensor*> states;
  for (int i = 0; i < tensors(); ++i) {
    states.push_back(AddState(prefix + "/" + layout()[i].name, compute(i), layout()[i].shape));
  }
  return states;
}

void RuleBase::AddInner(const std::string& prefix, Rule* inner) { inner_.emplace_back(prefix + "/", inner); }

absl::StatusOr<StepReport> RuleBase::Step(std::span<void* const> params, const StepInput& input) {
  RETURN_IF_ERROR(CheckStep(params, input));
  for (int i = 0; i < tensors(); ++i) {
    if (input.grads[i] != nullptr) ++*steps_[i]->as<int64_t>();
  }
  StepReport report;
  Apply(params, input, report);
  return report;
}

absl::Status RuleBase::CheckStep(std::span<void* const> params, const StepInput& input) const {
  RETURN_IF_ERROR(CheckCounts(params, input));
  RETURN_IF_ERROR(Check(input));
  return input.grads_finite ? absl::OkStatus() : CheckFinite(input);
}

absl::Status RuleBase::CheckCounts(std::span<void* const> params, const StepInput& input) const {
  const size_t want = layout().size();
  if (params.size() != want)
    return InvalidArgument("parameters: ", params.size(), " tensors given; the layout has ", want);
  if (input.grads.size() != want)
    return InvalidArgument("grads: ", input.grads.size(), " tensors given; the layout has ", want);
  for (size_t i = 0; i < want; ++i) {
    if (params[i] == nullptr && layout()[i].elements() > 0)
      return InvalidArgument("parameters.", layout()[i].name, ": missing");
  }
  if (input.lr && !(std::isfinite(*input.lr) && *input.lr >= 0)) {
    return InvalidArgument("lr: ", *input.lr, " is out of range; must be finite and >= 0");
  }
  if (input.grad_dtype && *input.grad_dtype != DType::kF32) {
    return InvalidArgument("grad_dtype: ", DTypeName(*input.grad_dtype),
                           " cannot be asked for; must be float32 or absent");
  }
  return absl::OkStatus();
}

absl::Status RuleBase::CheckFinite(const StepInput& input) const {
  // Index of the first bad element a chunk; the smallest chunk wins, so that the message does not depend on timing.
  int64_t bad_chunk = static_cast<int64_t>(chunks_.size()), bad_element = -1;
  const int64_t count = bad_chunk;
  const KernelTable& kernels = Kernels();
#pragma omp parallel for schedule(static) if (elements_ > kParallelFrom)
  for (int64_t c = 0; c < count; ++c) {
    const Chunk& chunk = chunks_[c];
    const void* grad = input.grads[chunk.tensor];
    if (grad == nullptr) continue;
    const DType dtype = grad_dtype(chunk.tensor, input);
    const int64_t at = kernels.first_not_finite(dtype, At(dtype, grad, chunk.begin), chunk.end - chunk.begin);
    if (at < 0) continue;
#pragma omp critical(optod_rules_not_finite)
    if (c < bad_chunk) {
      bad_chunk = c;
      bad_element = chunk.begin + at;
    }
  }
  if (bad_element < 0) return absl::OkStatus();
  const int i = chunks_[bad_chunk].tensor;
  return NotFinite("grads." + layout()[i].name, grad_dtype(i, input), input.grads[i], bad_element);
}

DType RuleBase::grad_dtype(int i, const StepInput& input) const {
  const DType own = layout()[i].dtype;
  return input.grad_dtype && own != DType::kF64 ? *input.grad_dtype : own;
}

Operands RuleBase::Bind(int i, std::span<void* const> params, const StepInput& input) const {
  Operands operands;
  operands.p = params[i];
  operands.g = input.grads[i];
  operands.p_dtype = layout()[i].dtype;
  operands.g_dtype = grad_dtype(i, input);
  if (args_.flag("stochastic_rounding"))
    operands.rounding = {true, args_.seed, static_cast<uint32_t>(t(i)), static_cast<uint32_t>(i), 0};
  return operands;
}

void RuleBase::ForEachChunk(const StepInput& input, absl::FunctionRef<void(const Chunk&)> body) const {
  ForEachChunkIndexed(input, [&](size_t, const Chunk& chunk) { body(chunk); });
}

void RuleBase::ForEachChunkIndexed(const StepInput& input, absl::FunctionRef<void(size_t, const Chunk&)> body) const {
  const int64_t count = static_cast<int64_t>(chunks_.size());
#pragma omp parallel if (elements_ > kParallelFrom)
  {
    // A thread's run of chunks is that of the scan, from its end on: what the scan read last is still in cache.
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    for (int64_t c = count * (me + 1) / threads; c-- > count * me / threads;) {
      if (input.grads[chunks_[c].tensor] != nullptr) body(static_cast<size_t>(c), chunks_[c]);
    }
  }
}

double RuleBase::SumOverChunks(int i, const std::vector<double>& partial) const {
  double sum = 0;
  for (size_t c = first_chunk_[i]; c < first_chunk_[i + 1]; ++c) sum += partial[c];
  return sum;
}

const OwnedTensor* RuleBase::Extra(const StepInput& input, const std::string& name) {
  const auto it = input.extra.find(name);
  return it == input.extra.end() ? nullptr : it->second;
}

absl::Status RuleBase::CheckExtra(const StepInput& input, const std::string& name, DType also,
                                  const std::string& why) const {
  const OwnedTensor* tensor = Extra(input, name);
  if (tensor == nullptr) return FailedPrecondition(name, ": missing; ", why);
  if (tensor->spec.dtype != DType::kF32 && tensor->spec.dtype != also) {
    return InvalidArgument(name, ": dtype ", DTypeName(tensor->spec.dtype), " does not fit; must be float32 or ",
                           DTypeName(also));
  }
  if (tensor->data.size() != tensor->spec.bytes()) {
    return InvalidArgument(name, ": ", tensor->data.size(), " bytes given; its shape ", ShapeText(tensor->spec.shape),
                           " has ", tensor->spec.bytes());
  }
  if (input.extra_finite) return absl::OkStatus();
  const int64_t bad = FirstNotFinite(tensor->spec.dtype, tensor->data.data(), tensor->spec.elements());
  return bad < 0 ? absl::OkStatus() : NotFinite(name, tensor->spec.dtype, tensor->data.data(), bad);
}

std::vector<OwnedTensor> RuleBase::ExportState() const {
  std::vector<OwnedTensor> out;
  for (const StateTensor& state : state_) {
    OwnedTensor& tensor = out.emplace_back();
    tensor.spec = state.spec;
    const auto* bytes = state.data.as<std::byte>();
    tensor.data.assign(bytes, bytes + state.data.size());
  }
  for (const auto& [prefix, inner] : inner_) {
    for (OwnedTensor& tensor : inner->ExportState()) {
      tensor.spec.name = prefix + tensor.spec.name;
      out.push_back(std::move(tensor));
    }
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.spec.name < b.spec.name; });
  return out;
}

absl::Status RuleBase::ImportState(std::span<const OwnedTensor> state) {
  std::map<std::string, const OwnedTensor*> given;
  std::vector<std::vector<OwnedTensor>> for_inner(inner_.size());
  for (const OwnedTensor& tensor : state) {
    bool taken = false;
    for (size_t k = 0; k < inner_.size() && !taken; ++k) {
      if (tensor.spec.name.rfind(inner_[k].first, 0) != 0) continue;
      for_inner[k].push_back(tensor);
      for_inner[k].back().spec.name.erase(0, inner_[k].first.size());
      taken = true;
    }
    if (!taken && !given.emplace(tensor.spec.name, &tensor).second)
      return InvalidArgument("state.", tensor.spec.name, ": given twice");
  }
  for (const StateTensor& own : state_) {
    const auto it = given.find(own.spec.name);
    if (it == given.end()) return InvalidArgument("state.", own.spec.name, ": missing");
    const OwnedTensor& tensor = *it->second;
    if (tensor.spec.dtype != own.spec.dtype) {
      return InvalidArgument("state.", own.spec.name, ": dtype ", DTypeName(tensor.spec.dtype),
                             " does not fit; must be ", DTypeName(own.spec.dtype));
    }
    if (tensor.spec.shape != own.spec.shape) {
      return InvalidArgument("state.", own.spec.name, ": shape ", ShapeText(tensor.spec.shape),
                             " does not fit; must be ", ShapeText(own.spec.shape));
    }
    if (tensor.data.size() != own.data.size()) {
      return InvalidArgument("state.", own.spec.name, ": ", tensor.data.size(), " bytes given; must be ",
                             own.data.size());
    }
  }
  if (given.size() > state_.size()) {
    for (const StateTensor& own : state_) given.erase(own.spec.name);
    return InvalidArgument("state.", given.begin()->first, ": unknown to ", args_.info->name);
  }
  for (size_t k = 0; k < inner_.size(); ++k) RETURN_IF_ERROR(inner_[k].second->ImportState(for_inner[k]));
  for (StateTensor& own : state_) {
    if (own.data.size() > 0) std::memcpy(own.data.data(), given.at(own.spec.name)->data.data(), own.data.size());
  }
  return absl::OkStatus();
}

size_t RuleBase::StateBytes() const {
  size_t bytes = 0;
  for (const StateTensor& state : state_) bytes += state.data.size();
  for (const auto& [prefix, inner] : inner_) bytes += inner->StateBytes();
  return bytes;
}

std::vector<TensorSpec> RuleBase::StateSpecs() const {
  std::vector<TensorSpec> out;
  for (const StateTensor& state : state_) out.push_back(state.spec);
  for (const auto& [prefix, inner] : inner_) {
    for (TensorSpec& spec : inner->StateSpecs()) {
      spec.name = prefix + spec.name;
      out.push_back(std::move(spec));
    }
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

size_t RuleBase::TransientBytes() const {
  size_t bytes = Scratch();
  for (const auto& [prefix, inner] : inner_) bytes += inner->TransientBytes();
  return bytes;
}

std::vector<size_t> RuleBase::TransientBytesOfTensors() const {
  std::vector<size_t> bytes(layout().size());
  for (int i = 0; i < tensors(); ++i) bytes[i] = layout()[i].elements() > 0 ? ScratchOf(i) : 0;
  for (const auto& [prefix, inner] : inner_) {
    const std::vector<size_t> more = inner->TransientBytesOfTensors();
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] += more[i];
  }
  return bytes;
}

size_t RuleBase::SharedTransientBytes() const {
  size_t bytes = SharedScratch();
  for (const auto& [prefix, inner] : inner_) bytes += inner->SharedTransientBytes();
  return bytes;
}

template <typename T>
const T* Load(DType dtype, const void* data, int64_t begin, int64_t n, T* tile) {
  const void* at = At(dtype, data, begin);
  if (DTypeSize(dtype) == sizeof(T)) return static_cast<const T*>(at);
  if constexpr (sizeof(T) == 4) {
    Kernels().widen(dtype, at, tile, n);
  } else {
    std::copy_n(static_cast<const float*>(at), n, tile);
  }
  return tile;
}
template const float* Load<float>(DType, const void*, int64_t, int64_t, float*);
template const double* Load<double>(DType, const void*, int64_t, int64_t, double*);

template <typename T>
void AddSquares(DType dtype, const void* data, int64_t first, int64_t count, int64_t cols, double* column_sums,
                double* row_sums) {
  constexpr int64_t kColumnsAtOnce = 1024;
  T tile[kRowsAtOnce * kColumnsAtOnce];
  for (int64_t at = 0; at < cols; at += kColumnsAtOnce) {
    const int64_t n = std::min(kColumnsAtOnce, cols - at);
    const T* x = tile;
    int64_t stride = n;
    if (DTypeSize(dtype) == sizeof(T)) {
      x = static_cast<const T*>(data) + first * cols + at;
      stride = cols;
    } else {
      for (int64_t r = 0; r < count; ++r) Load<T>(dtype, data, (first + r) * cols + at, n, tile + r * n);
    }
    Kernels().typed<T>().add_squares_rows(x, stride, count, column_sums + at, row_sums, n);
  }
}
template void AddSquares<float>(DType, const void*, int64_t, int64_t, int64_t, double*, double*);
template void AddSquares<double>(DType, const void*, int64_t, int64_t, int64_t, double*, double*);

template <typename T>
void StoreParameter(const Operands& o, int64_t begin, int64_t n, const T* values) {
  void* at = At(o.p_dtype, o.p, begin);
  if (at == values) return;
  if (DTypeSize(o.p_dtype) == sizeof(T)) {
    std::memcpy(at, values, n * sizeof(T));
  } else if constexpr (sizeof(T) == 4) {
    if (!o.rounding.stochastic || o.p_dtype != DType::kBF16) return Kernels().narrow(o.p_dtype, values, at, n);
    uint32_t words[kTile];
    zo::FillBits({o.rounding.seed, o.rounding.step, kRoundingQuery}, o.rounding.tensor,
                 static_cast<uint64_t>(o.rounding.first + begin), std::span(words, static_cast<size_t>(n)));
    Kernels().narrow_stochastic(values, words, static_cast<uint16_t*>(at), n);
  }
}
template void StoreParameter<float>(const Operands&, int64_t, int64_t, const float*);
template void StoreParameter<double>(const Operands&, int64_t, int64_t, const double*);

namespace {

template <typename T>
void RunTyped(KernelId id, const void* constants, const Operands& o, int64_t begin, int64_t end) {
  const Kernel<T> kernel = Kernels().typed<T>().step[id];
  const bool direct = DTypeSize(o.p_dtype) == sizeof(T) && (o.g == nullptr || DTypeSize(o.g_dtype) == sizeof(T));
  T p_tile[kTile], g_tile[kTile];
  for (int64_t at = begin; at < end;) {
    const int64_t n = direct ? end - at : std::min(kTile, end - at);
    Lanes<T> lanes;
    lanes.p = const_cast<T*>(Load<T>(o.p_dtype, o.p, at, n, p_tile));
    if (o.g != nullptr) lanes.g = Load<T>(o.g_dtype, o.g, at, n, g_tile);
    for (int k = 0; k < 3; ++k) {
      if (o.s[k] != nullptr) lanes.s[k] = static_cast<T*>(o.s[k]) + at;
    }
    if (o.x != nullptr) lanes.x = static_cast<const T*>(o.x) + at;
    kernel(constants, lanes, n);
    StoreParameter<T>(o, at, n, lanes.p);
    at += n;
  }
}

}  // namespace

void RunKernel(KernelId id, const void* constants, const Operands& operands, int64_t begin, int64_t end) {
  if (operands.p_dtype == DType::kF64) {
    RunTyped<double>(id, constants, operands, begin, end);
  } else {
    RunTyped<float>(id, constants, operands, begin, end);
  }
}

Operands Slice(const Operands& operands, int64_t begin) {
  Operands slice = operands;
  const DType compute = operands.p_dtype == DType::kF64 ? DType::kF64 : DType::kF32;
  slice.p = At(operands.p_dtype, operands.p, begin);
  slice.rounding.first += begin;
  if (operands.g != nullptr) slice.g = At(operands.g_dtype, operands.g, begin);
  for (void*& state : slice.s) {
    if (state != nullptr) state = At(compute, state, begin);
  }
  return slice;
}

void ForEachRowBlock(int64_t rows, int64_t cols, absl::FunctionRef<void(int64_t first, int64_t last)> body) {
  const int64_t block = std::max<int64_t>(1, kChunk / std::max<int64_t>(1, cols));
  const int64_t count = (rows + block - 1) / block;
#pragma omp parallel for schedule(static) if (rows * cols > kParallelFrom)
  for (int64_t b = 0; b < count; ++b) body(b * block, std::min(rows, (b + 1) * block));
}

}  // namespace optod::optim
