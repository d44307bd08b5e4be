#include "server/engine/snapshot.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "server/engine/tensor_file.h"

namespace optod::engine {

absl::StatusOr<std::shared_ptr<TensorBuffer>> EncodeSnapshot(const Layout& layout, const std::byte* flat,
                                                             const std::vector<optim::OwnedTensor>& state,
                                                             int64_t version, int64_t step) {
  return EncodeTensors(layout, flat, state,
                       {{"format", "optod-snapshot"}, {"version", std::to_string(version)}, {"step", std::to_string(step)}});
}

absl::StatusOr<std::shared_ptr<TensorBuffer>> EncodeTensors(const Layout& layout, const std::byte* flat,
                                                            const std::vector<optim::OwnedTensor>& state,
                                                            const TensorMetadata& metadata) {
  std::vector<TensorBytes> tensors;
  for (size_t i = 0; i < layout.size(); ++i)
    tensors.push_back({"params/" + layout.spec(i).name, &layout.spec(i), flat + layout.offset(i)});
  for (const optim::OwnedTensor& tensor : state)
    tensors.push_back({"state/" + tensor.spec.name, &tensor.spec, tensor.data.data()});
  return WriteTensorFile(metadata, tensors);
}

absl::StatusOr<Snapshot> DecodeSnapshot(const Layout& layout, const std::string& blob) {
  Snapshot out;
  const uint64_t want = layout.total_bytes();
  out.params = TensorBuffer::Make(want);
  if (out.params == nullptr) return ResourceExhausted("snapshot: no memory for ", want, " bytes");
  if (blob.size() == want) {
    if (want > 0) std::memcpy(out.params->data(), blob.data(), want);
    return out;
  }
  const auto file = ParseTensorFile(std::as_bytes(std::span(blob)));
  if (!file.ok()) return DataLoss("snapshot: ", file.status().message());
  uint64_t filled = 0;
  for (const TensorFile::Entry& entry : file->entries) {
    if (entry.spec.name.starts_with("state/")) {
      out.state.push_back(optim::OwnedTensor{entry.spec, {entry.data.begin(), entry.data.end()}});
      out.state.back().spec.name.erase(0, 6);
      continue;
    }
    const int64_t at = entry.spec.name.starts_with("params/") ? layout.Find(entry.spec.name.substr(7)) : -1;
    if (at < 0 || layout.spec(static_cast<size_t>(at)).bytes() != entry.data.size())
      return DataLoss("snapshot: ", entry.spec.name, " does not fit the session");
    if (!entry.data.empty())
      std::memcpy(out.params->data() + layout.offset(static_cast<size_t>(at)), entry.data.data(), entry.data.size());
    filled += entry.data.size();
  }
  if (filled != want) return DataLoss("snapshot: ", filled, " of ", want, " bytes of parameters");
  std::sort(out.state.begin(), out.state.end(), [](const auto& a, const auto& b) { return a.spec.name < b.spec.name; });
  out.has_state = true;
  return out;
}

}  // namespace optod::engine
