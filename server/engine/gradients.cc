#include "server/engine/gradients.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <set>

#include "base/crc32c.h"
#include "base/status.h"
#include "optim/rules/half.h"
#include "optim/rules/kernels.h"
#include "server/engine/flat_numbers.h"

namespace optod::engine {
namespace {

using optim::DType;

constexpr uint64_t kMostExtraBytes = uint64_t{1} << 50;

/// Calls body(element index, value as double) for every element; any alignment.
template <typename Body>
void ForEachElement(const void* data, DType dtype, int64_t n, Body body) {
  const auto* bytes = static_cast<const std::byte*>(data);
  auto load = [bytes](auto zero, int64_t i) {
    std::memcpy(&zero, bytes + i * sizeof(zero), sizeof(zero));
    return zero;
  };
  switch (dtype) {
    case DType::kF32:
      for (int64_t i = 0; i < n; ++i) body(i, static_cast<double>(load(float{}, i)));
      break;
    case DType::kF64:
      for (int64_t i = 0; i < n; ++i) body(i, load(double{}, i));
      break;
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) body(i, static_cast<double>(optim::half::FromF16(load(uint16_t{}, i))));
      break;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) body(i, static_cast<double>(optim::half::FromBf16(load(uint16_t{}, i))));
      break;
    default:
      break;
  }
}

/// Block by block through the kernels of the rules, whose sums have a fixed order: the same bits for the same values on
/// every machine, wherever they lie.
double SquaredNorm(const GradientView& view, int64_t n) {
  constexpr int64_t kBlock = 4096;
  const optim::KernelTable& kernels = optim::Kernels();
  alignas(64) std::byte aligned[kBlock * sizeof(double)];
  alignas(64) float wide[kBlock];
  const auto size = static_cast<size_t>(optim::DTypeSize(view.dtype));
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    const std::byte* at = static_cast<const std::byte*>(view.data) + static_cast<size_t>(begin) * size;
    if (reinterpret_cast<uintptr_t>(at) % size != 0) {
      std::memcpy(aligned, at, static_cast<size_t>(count) * size);
      at = aligned;
    }
    if (view.dtype == DType::kF64) {
      sum += kernels.f64.sum_squares(reinterpret_cast<const double*>(at), count);
      continue;
    }
    if (size == 2) kernels.widen(view.dtype, at, wide, count);
    sum += kernels.f32.sum_squares(size == 2 ? wide : reinterpret_cast<const float*>(at), count);
  }
  return sum;
}

/// The view's elements times `scale` as float32 or float64; scale 1 keeps every bit.
absl::StatusOr<std::shared_ptr<TensorBuffer>> Widened(const GradientView& view, int64_t n, DType to, double scale) {
  auto out = TensorBuffer::Make(static_cast<size_t>(n) * optim::DTypeSize(to));
  if (out == nullptr) return ResourceExhausted("gradients: no memory for ", n, " elements");
  if (to == view.dtype && scale == 1) {
    if (n > 0) std::memcpy(out->data(), view.data, out->size());
  } else if (to == DType::kF64) {
    auto* values = reinterpret_cast<double*>(out->data());
    ForEachElement(view.data, view.dtype, n, [&](int64_t i, double x) { values[i] = x * scale; });
  } else {
    auto* values = reinterpret_cast<float*>(out->data());
    const auto factor = static_cast<float>(scale);
    ForEachElement(view.data, view.dtype, n, [&](int64_t i, double x) { values[i] = static_cast<float>(x) * factor; });
  }
  return out;
}

bool Misaligned(const GradientView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % optim::DTypeSize(view.dtype) != 0;
}

template <typename T>
void LimitTyped(int64_t n, double limit, void* data) {
  T* values = static_cast<T*>(data);
  const T most = static_cast<T>(limit);
  for (int64_t i = 0; i < n; ++i) values[i] = values[i] > most ? most : values[i] < -most ? -most : values[i];
}
void Limit(DType dtype, int64_t n, double limit, void* data) {
  if (dtype == DType::kF64) return LimitTyped<double>(n, limit, data);
  LimitTyped<float>(n, limit, data);
}

/// Whether a spec from outside has a dtype and a size that arithmetic can bear.
absl::Status CheckSpec(const optim::TensorSpec& spec, const std::string& field, std::set<std::string>* names) {
  if (!names->insert(spec.name).second) return InvalidArgument(field, " \"", spec.name, "\": given twice");
  unsigned __int128 bytes = optim::DTypeSize(spec.dtype);
  if (bytes == 0) return InvalidArgument(field, " \"", spec.name, "\": dtype is missing or unknown");
  for (int64_t d : spec.shape) {
    if (d < 0)
      return InvalidArgument(field, " \"", spec.name, "\": shape ", ShapeText(spec.shape), " has a negative size");
    bytes *= static_cast<unsigned __int128>(d);
    if (bytes > (static_cast<unsigned __int128>(1) << 48))
      return InvalidArgument(field, " \"", spec.name, "\": shape is too large");
  }
  return absl::OkStatus();
}

absl::Status AddExtra(const v1::Tensor& tensor, const std::string& field, std::set<std::string>* names,
                      Gradients* out) {
  optim::OwnedTensor extra;
  extra.spec = SpecFromProto(tensor.spec());
  RETURN_IF_ERROR(CheckSpec(extra.spec, field, names));
  if (extra.spec.bytes() != tensor.data().size())
    return InvalidArgument(field, " \"", extra.spec.name, "\": ", tensor.data().size(),
                           " bytes of data; its shape takes ", extra.spec.bytes());
  extra.data.resize(tensor.data().size());
  if (!extra.data.empty()) std::memcpy(extra.data.data(), tensor.data().data(), extra.data.size());
  out->extra.push_back(std::move(extra));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Gradients> GradientsFromTell(const Layout& layout, const v1::GradientTell& tell) {
  if (tell.gradients().empty())
    return InvalidArgument("gradients.gradients: empty; send a tensor for every parameter that has a gradient");
  Gradients out;
  out.views.resize(layout.size());
  for (int i = 0; i < tell.gradients_size(); ++i) {
    const v1::Tensor& tensor = tell.gradients(i);
    const std::string field = Cat("gradients.gradients[", i, "]");
    ASSIGN_OR_RETURN(const size_t at, CheckTensor(layout, tensor, field, /*allow_f32=*/true));
    if (out.views[at].data != nullptr) return InvalidArgument(field, " \"", layout.spec(at).name, "\": given twice");
    out.views[at] = {tensor.data().data(), DTypeFromProto(tensor.spec().dtype())};
  }
  std::set<std::string> names;
  for (int i = 0; i < tell.extra_size(); ++i)
    RETURN_IF_ERROR(AddExtra(tell.extra(i), Cat("gradients.extra[", i, "]"), &names, &out));
  out.lr.assign(tell.lr().begin(), tell.lr().end());
  RETURN_IF_ERROR(CheckRates(out.lr, "gradients.lr"));
  return out;
}

absl::Status CheckRates(const std::vector<double>& lr, const std::string& field) {
  for (size_t i = 0; i < lr.size(); ++i)
    if (!std::isfinite(lr[i]) || lr[i] < 0)
      return InvalidArgument(field, "[", i, "]: ", lr[i], " must be a finite number >= 0");
  return absl::OkStatus();
}

absl::Status CheckForm(const Layout& layout, const FlatForm& form) {
  int32_t last = -1;
  for (const int32_t at : form.absent) {
    if (at <= last) return InvalidArgument("absent: ", at, " follows ", last, "; must ascend from 0");
    if (at >= static_cast<int64_t>(layout.size()))
      return InvalidArgument("absent: ", at, " is no tensor; the layout has ", layout.size());
    last = at;
  }
  if (form.absent.size() == layout.size())
    return InvalidArgument("absent: names every tensor; a step needs a gradient of at least one");
  for (const optim::TensorSpec& spec : layout.specs()) {
    const DType own = form.dtype == DType::kUnspecified ? spec.dtype : form.dtype;
    const bool half = own == DType::kBF16 || own == DType::kF16;
    if (own != spec.dtype && own != DType::kF32 && !(half && spec.dtype == DType::kF32))
      return InvalidArgument("dtype: ", optim::DTypeName(own), "; tensor \"", spec.name, "\" takes ",
                             spec.dtype == DType::kF32 ? "float32, bfloat16 or float16"
                                                       : Cat(optim::DTypeName(spec.dtype), " or float32"));
  }
  std::set<std::string> names;
  uint64_t extra_bytes = 0;  // at most 2^48 each: the sum is looked at before it can wrap around
  for (size_t i = 0; i < form.extra.size(); ++i) {
    RETURN_IF_ERROR(CheckSpec(form.extra[i], Cat("extra[", i, "]"), &names));
    extra_bytes += form.extra[i].bytes();
    if (extra_bytes > kMostExtraBytes)
      return InvalidArgument("extra: more than ", kMostExtraBytes, " bytes up to \"", form.extra[i].name, "\"");
  }
  return CheckRates(form.lr, "lr");
}

uint64_t FlatBytes(const Layout& layout, const FlatForm& form) {
  auto bytes = [&](const optim::TensorSpec& spec) {
    return form.dtype == DType::kUnspecified ? spec.bytes()
                                             : static_cast<uint64_t>(spec.elements()) * optim::DTypeSize(form.dtype);
  };
  uint64_t total =
      form.dtype == DType::kUnspecified ? layout.total_bytes() : layout.total_elements() * optim::DTypeSize(form.dtype);
  for (const int32_t at : form.absent) total -= bytes(layout.spec(static_cast<size_t>(at)));
  for (const optim::TensorSpec& spec : form.extra) total += spec.bytes();
  return total;
}

absl::StatusOr<Gradients> GradientsFromFlat(const Layout& layout, std::shared_ptr<const TensorBuffer> flat,
                                            const FlatForm& form) {
  RETURN_IF_ERROR(CheckForm(layout, form));
  if (flat->size() != FlatBytes(layout, form))
    return InvalidArgument("total_bytes: ", flat->size(), "; gradients of this layout have ", FlatBytes(layout, form));
  Gradients out;
  uint64_t offset = 0;
  auto absent = form.absent.begin();
  for (size_t i = 0; i < layout.size(); ++i) {
    if (absent != form.absent.end() && static_cast<size_t>(*absent) == i) {
      ++absent;
      out.views.emplace_back();
      continue;
    }
    const DType own = form.dtype == DType::kUnspecified ? layout.spec(i).dtype : form.dtype;
    out.views.push_back({flat->data() + offset, own});
    offset += static_cast<uint64_t>(layout.spec(i).elements()) * optim::DTypeSize(own);
  }
  for (const optim::TensorSpec& spec : form.extra) {
    optim::OwnedTensor extra;
    extra.spec = spec;
    extra.data.assign(flat->data() + offset, flat->data() + offset + spec.bytes());
    offset += spec.bytes();
    out.extra.push_back(std::move(extra));
  }
  out.lr = form.lr;
  out.owner = std::move(flat);
  return out;
}

int64_t Fingerprint(const Layout& layout, const Gradients& gradients) {
  constexpr size_t kWhole = 64 << 10, kBlock = 4 << 10, kBlocks = 16;
  uint32_t crc = 1;
  auto add = [&crc](const void* data, optim::DType dtype, size_t size) {
    const uint64_t head[2] = {static_cast<uint64_t>(dtype), size};
    crc = Crc32c(head, sizeof(head), crc);
    const auto* bytes = static_cast<const std::byte*>(data);
    if (size <= kWhole) {
      crc = Crc32c(bytes, size, crc);
      return;
    }
    for (size_t i = 0; i < kBlocks; ++i) crc = Crc32c(bytes + (size - kBlock) / (kBlocks - 1) * i, kBlock, crc);
  };
  for (size_t i = 0; i < gradients.views.size(); ++i) {
    const GradientView& view = gradients.views[i];
    const size_t size = view.data == nullptr ? 0 : static_cast<size_t>(layout.spec(i).elements()) * optim::DTypeSize(view.dtype);
    add(view.data, view.dtype, size);
  }
  for (const optim::OwnedTensor& extra : gradients.extra) add(extra.data.data(), extra.spec.dtype, extra.data.size());
  if (!gradients.lr.empty()) crc = Crc32c(gradients.lr.data(), gradients.lr.size() * sizeof(double), crc);
  return (int64_t{1} << 32) | crc;
}

absl::StatusOr<Prepared> Prepare(const Layout& layout, const Gradients& told, double clip_value, double clip_norm) {
  Prepared out;
  out.finite = told.finite;
  std::vector<GradientView> views = told.views;
  if (clip_value > 0) {
    for (size_t i = 0; i < layout.size(); ++i) {
      if (views[i].data == nullptr) continue;
      const DType dtype = layout.spec(i).dtype == DType::kF64 ? DType::kF64 : DType::kF32;
      ASSIGN_OR_RETURN(auto copy, Widened(views[i], layout.spec(i).elements(), dtype, 1));
      Limit(dtype, layout.spec(i).elements(), clip_value, copy->data());
      views[i] = {copy->data(), dtype};
      out.scratch.push_back(std::move(copy));
    }
  }
  double scale = 1;
  if (clip_norm > 0) {
    double sum = 0;
    for (size_t i = 0; i < layout.size(); ++i)
      if (views[i].data != nullptr) sum += SquaredNorm(views[i], layout.spec(i).elements());
    out.norm = std::sqrt(sum);
    const bool finite_norm = std::isfinite(out.norm);
    out.finite = out.finite || finite_norm;
    if (finite_norm && out.norm > clip_norm) scale = clip_norm / out.norm;
  }
  bool halves_as_f32 = scale != 1;
  for (size_t i = 0; i < layout.size(); ++i) {
    const GradientView& view = views[i];
    if (view.data != nullptr && optim::DTypeSize(layout.spec(i).dtype) == 2 && view.dtype == DType::kF32)
      halves_as_f32 = true;
  }
  if (halves_as_f32) out.grad_dtype = DType::kF32;
  out.grads.assign(layout.size(), nullptr);
  for (size_t i = 0; i < layout.size(); ++i) {
    const GradientView& view = views[i];
    if (view.data == nullptr) continue;
    const DType own = layout.spec(i).dtype;
    const DType want = halves_as_f32 && own != DType::kF64 ? DType::kF32 : own;
    out.grads[i] = view.data;
    if (view.dtype == want && scale == 1 && !Misaligned(view)) continue;
    ASSIGN_OR_RETURN(auto copy, Widened(view, layout.spec(i).elements(), want, scale));
    out.grads[i] = copy->data();
    out.scratch.push_back(std::move(copy));
  }
  return out;
}

// ---- durable form. The payload is a GradientTell; a first tensor without a name means a flat buffer, whose dtype it
// carries; the tensors after it name the absent ones (their position as the shape) and `extra` has no data of its own.
// With a blob, the tensors' data fields are empty and the blob holds them one after another (gradients, then extra).

absl::StatusOr<store::ObservationRow> RecordTell(store::BlobStore& blobs, const v1::GradientTell& tell) {
  v1::GradientTell kept;
  *kept.mutable_gradients() = tell.gradients();
  *kept.mutable_extra() = tell.extra();
  *kept.mutable_lr() = tell.lr();
  store::ObservationRow row;
  row.kind = "gradient";
  if (kept.ByteSizeLong() > kInlineGradientBytes) {
    std::string data;
    for (auto* tensors : {kept.mutable_gradients(), kept.mutable_extra()}) {
      for (v1::Tensor& tensor : *tensors) {
        data += tensor.data();
        tensor.clear_data();
      }
    }
    ASSIGN_OR_RETURN(row.blob, blobs.Put(std::as_bytes(std::span(data))));
  }
  kept.SerializeToString(&row.payload);
  return row;
}

absl::StatusOr<store::ObservationRow> RecordFlat(store::BlobStore& blobs, const TensorBuffer& flat,
                                                 const FlatForm& form, const std::string& blob) {
  v1::GradientTell kept;
  v1::Tensor* tensor = kept.add_gradients();
  tensor->mutable_spec()->set_dtype(static_cast<v1::DType>(form.dtype));
  for (const int32_t at : form.absent) kept.add_gradients()->mutable_spec()->add_shape(at);
  for (const optim::TensorSpec& spec : form.extra) SpecToProto(spec, kept.add_extra()->mutable_spec());
  kept.mutable_lr()->Add(form.lr.begin(), form.lr.end());
  store::ObservationRow row;
  row.kind = "gradient";
  row.blob = blob;
  if (blob.empty() && flat.size() <= kInlineGradientBytes) {
    tensor->set_data(flat.data(), flat.size());
  } else if (blob.empty()) {
    ASSIGN_OR_RETURN(row.blob, blobs.Put(flat.bytes()));
  }
  kept.SerializeToString(&row.payload);
  return row;
}

absl::StatusOr<Gradients> GradientsFromRecord(const Layout& layout, store::BlobStore& blobs,
                                              const store::ObservationRow& row) {
  auto kept = std::make_shared<v1::GradientTell>();
  if (!kept->ParseFromString(row.payload)) return DataLoss("gradient of version ", row.a, " cannot be parsed");
  std::string data;
  if (!row.blob.empty()) {
    ASSIGN_OR_RETURN(data, blobs.Get(row.blob));
  }
  if (kept->gradients_size() >= 1 && kept->gradients(0).spec().name().empty()) {
    const std::string& bytes = row.blob.empty() ? kept->gradients(0).data() : data;
    auto flat = TensorBuffer::Make(bytes.size());
    if (flat == nullptr)
      return ResourceExhausted("gradient of version ", row.a, ": no memory for ", bytes.size(), " bytes");
    FlatForm form;
    form.dtype = DTypeFromProto(kept->gradients(0).spec().dtype());
    for (int i = 1; i < kept->gradients_size(); ++i) {
      if (kept->gradients(i).spec().shape_size() != 1)
        return DataLoss("gradient of version ", row.a, ": absent tensors");
      form.absent.push_back(static_cast<int32_t>(kept->gradients(i).spec().shape(0)));
    }
    for (const v1::Tensor& extra : kept->extra()) form.extra.push_back(SpecFromProto(extra.spec()));
    form.lr.assign(kept->lr().begin(), kept->lr().end());
    RETURN_IF_ERROR(CheckForm(layout, form));
    const bool finite = FlatNumbers(layout, form).CopyFinite(flat->data(), reinterpret_cast<const std::byte*>(bytes.data()),
                                                             0, bytes.size());
    ASSIGN_OR_RETURN(Gradients out, GradientsFromFlat(layout, std::move(flat), form));
    out.finite = finite;
    return out;
  }
  size_t at = 0;
  if (!row.blob.empty()) {
    for (auto* tensors : {kept->mutable_gradients(), kept->mutable_extra()}) {
      for (v1::Tensor& tensor : *tensors) {
        const size_t bytes = SpecFromProto(tensor.spec()).bytes();
        if (bytes > data.size() - at) return DataLoss("gradient of version ", row.a, " is too short");
        tensor.set_data(data.data() + at, bytes);
        at += bytes;
      }
    }
  }
  ASSIGN_OR_RETURN(Gradients out, GradientsFromTell(layout, *kept));
  out.owner = kept;
  return out;
}

}  // namespace optod::engine
