#include "server/engine/gradients.h"

#include <cmath>
#include <cstring>
#include <set>

#include "base/crc32c.h"
#include "base/status.h"
#include "optim/rules/half.h"

namespace optod::engine {
namespace {

using optim::DType;

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

/// Eight partial sums in a fixed order: the same bits every time, and no chain of dependent additions.
double SquaredNorm(const GradientView& view, int64_t n) {
  double sums[8] = {};
  ForEachElement(view.data, view.dtype, n, [&](int64_t i, double x) { sums[i & 7] += x * x; });
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
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

absl::Status AddExtra(const v1::Tensor& tensor, const std::string& field, std::set<std::string>* names,
                      Gradients* out) {
  optim::OwnedTensor extra;
  extra.spec = SpecFromProto(tensor.spec());
  if (!names->insert(extra.spec.name).second) return InvalidArgument(field, " \"", extra.spec.name, "\": given twice");
  unsigned __int128 bytes = optim::DTypeSize(extra.spec.dtype);
  if (bytes == 0) return InvalidArgument(field, " \"", extra.spec.name, "\": dtype is missing or unknown");
  for (int64_t d : extra.spec.shape) {
    if (d < 0)
      return InvalidArgument(field, " \"", extra.spec.name, "\": shape ", ShapeText(extra.spec.shape),
                             " has a negative size");
    bytes *= static_cast<unsigned __int128>(d);
    if (bytes > (static_cast<unsigned __int128>(1) << 48))
      return InvalidArgument(field, " \"", extra.spec.name, "\": shape is too large");
  }
  if (bytes != tensor.data().size())
    return InvalidArgument(field, " \"", extra.spec.name, "\": ", tensor.data().size(),
                           " bytes of data; its shape takes ", static_cast<uint64_t>(bytes));
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
  return out;
}

uint64_t FlatBytes(const Layout& layout, DType dtype) {
  return dtype == DType::kUnspecified ? layout.total_bytes() : layout.total_elements() * optim::DTypeSize(dtype);
}

absl::StatusOr<Gradients> GradientsFromFlat(const Layout& layout, std::shared_ptr<const TensorBuffer> flat,
                                            DType dtype) {
  if (flat->size() != FlatBytes(layout, dtype))
    return InvalidArgument("total_bytes: ", flat->size(), "; gradients of this layout have ", FlatBytes(layout, dtype));
  Gradients out;
  uint64_t offset = 0;
  for (const optim::TensorSpec& spec : layout.specs()) {
    const DType own = dtype == DType::kUnspecified ? spec.dtype : dtype;
    if (own != spec.dtype && own != DType::kF32)
      return InvalidArgument("dtype: ", optim::DTypeName(own), "; tensor \"", spec.name, "\" takes ",
                             optim::DTypeName(spec.dtype), " or float32");
    out.views.push_back({flat->data() + offset, own});
    offset += static_cast<uint64_t>(spec.elements()) * optim::DTypeSize(own);
  }
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
  return (int64_t{1} << 32) | crc;
}

absl::StatusOr<Prepared> Prepare(const Layout& layout, const Gradients& gradients, double clip_norm) {
  Prepared out;
  double scale = 1;
  if (clip_norm > 0) {
    double sum = 0;
    for (size_t i = 0; i < layout.size(); ++i)
      if (gradients.views[i].data != nullptr) sum += SquaredNorm(gradients.views[i], layout.spec(i).elements());
    out.norm = std::sqrt(sum);
    if (std::isfinite(out.norm) && out.norm > clip_norm) scale = clip_norm / out.norm;
  }
  bool halves_as_f32 = scale != 1;
  for (size_t i = 0; i < layout.size(); ++i) {
    const GradientView& view = gradients.views[i];
    if (view.data != nullptr && optim::DTypeSize(layout.spec(i).dtype) == 2 && view.dtype == DType::kF32)
      halves_as_f32 = true;
  }
  if (halves_as_f32) out.grad_dtype = DType::kF32;
  out.grads.assign(layout.size(), nullptr);
  for (size_t i = 0; i < layout.size(); ++i) {
    const GradientView& view = gradients.views[i];
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

// ---- durable form. The payload is a GradientTell; a single tensor without a name means a flat buffer, whose dtype it
// carries. With a blob, the tensors' data fields are empty and the blob holds them one after another (gradients, then
// extra).

absl::StatusOr<store::ObservationRow> RecordTell(store::BlobStore& blobs, const v1::GradientTell& tell) {
  v1::GradientTell kept;
  *kept.mutable_gradients() = tell.gradients();
  *kept.mutable_extra() = tell.extra();
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

absl::StatusOr<store::ObservationRow> RecordFlat(store::BlobStore& blobs, const TensorBuffer& flat, DType dtype,
                                                 const std::string& blob) {
  v1::GradientTell kept;
  v1::Tensor* tensor = kept.add_gradients();
  tensor->mutable_spec()->set_dtype(static_cast<v1::DType>(dtype));
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
  if (kept->gradients_size() == 1 && kept->gradients(0).spec().name().empty()) {
    const std::string& bytes = row.blob.empty() ? kept->gradients(0).data() : data;
    auto flat = TensorBuffer::Make(bytes.size());
    if (flat == nullptr)
      return ResourceExhausted("gradient of version ", row.a, ": no memory for ", bytes.size(), " bytes");
    if (!bytes.empty()) std::memcpy(flat->data(), bytes.data(), bytes.size());
    return GradientsFromFlat(layout, std::move(flat), DTypeFromProto(kept->gradients(0).spec().dtype()));
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
