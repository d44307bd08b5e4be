// What a step stream may say about a step: any StepStreamBegin is refused or describes a flat buffer whose size is
// right, whose views lie inside it, and whose record reads back as what was recorded.
#include <cstdint>
#include <cstdlib>

#include "optod/v1/session.pb.h"
#include "server/engine/gradients.h"

namespace {

using optod::engine::FlatForm;
using optod::engine::Layout;

const Layout& TestLayout() {
  static const Layout* layout = [] {
    optod::v1::TensorIndex index;
    optod::engine::SpecToProto({"w", optod::optim::DType::kF32, {2, 3}}, index.add_tensors());
    optod::engine::SpecToProto({"h", optod::optim::DType::kBF16, {5}}, index.add_tensors());
    optod::engine::SpecToProto({"b", optod::optim::DType::kF64, {}}, index.add_tensors());
    return new Layout(index);
  }();
  return *layout;
}

void Check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  optod::v1::StepStreamBegin begin;
  if (!begin.ParseFromArray(data, static_cast<int>(size))) return 0;
  FlatForm form;
  form.dtype = optod::engine::DTypeFromProto(begin.dtype());
  form.absent.assign(begin.absent().begin(), begin.absent().end());
  for (const auto& spec : begin.extra()) form.extra.push_back(optod::engine::SpecFromProto(spec));
  if (!CheckForm(TestLayout(), form).ok()) return 0;
  const uint64_t bytes = FlatBytes(TestLayout(), form);
  if (bytes > 1 << 20) return 0;
  std::shared_ptr<optod::engine::TensorBuffer> flat = optod::engine::TensorBuffer::Make(bytes);
  for (size_t i = 0; i < bytes; ++i) flat->data()[i] = static_cast<std::byte>(i * 31);
  const auto gradients = GradientsFromFlat(TestLayout(), flat, form);
  Check(gradients.ok() && gradients->extra.size() == form.extra.size());
  for (const auto& view : gradients->views) {
    const auto* at = static_cast<const std::byte*>(view.data);
    Check(at == nullptr || (at >= flat->data() && at <= flat->data() + bytes));
  }
  const auto blobs = optod::store::MakeMemoryBlobStore();
  const auto row = RecordFlat(*blobs, *flat, form, "");
  Check(row.ok());
  const auto again = GradientsFromRecord(TestLayout(), *blobs, *row);
  Check(again.ok() && again->views.size() == gradients->views.size() && again->extra.size() == gradients->extra.size());
  return 0;
}
