#include "server/engine/snapshot.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace optod::engine {
namespace {

using Json = nlohmann::ordered_json;
using optim::DType;

constexpr std::pair<DType, const char*> kNames[] = {
    {DType::kF32, "F32"},   {DType::kF64, "F64"},       {DType::kF16, "F16"}, {DType::kBF16, "BF16"},
    {DType::kI8, "I8"},     {DType::kI32, "I32"},       {DType::kI64, "I64"}, {DType::kU8, "U8"},
    {DType::kBool, "BOOL"}, {DType::kF8E4M3, "F8_E4M3"}};

const char* NameOf(DType dtype) {
  for (const auto& [value, name] : kNames)
    if (value == dtype) return name;
  return "";
}

DType DTypeOf(const std::string& text) {
  for (const auto& [value, name] : kNames)
    if (text == name) return value;
  return DType::kUnspecified;
}

void AddEntry(Json* header, const std::string& name, const optim::TensorSpec& spec, uint64_t* offset) {
  (*header)[name] = {
      {"dtype", NameOf(spec.dtype)}, {"shape", spec.shape}, {"data_offsets", {*offset, *offset + spec.bytes()}}};
  *offset += spec.bytes();
}

absl::StatusOr<std::vector<optim::OwnedTensor>> ReadState(const std::string& header_text, const char* data,
                                                          size_t data_bytes) {
  std::vector<optim::OwnedTensor> out;
  try {
    const Json header = Json::parse(header_text);
    for (const auto& [name, entry] : header.items()) {
      if (name.rfind("state/", 0) != 0) continue;
      optim::OwnedTensor tensor;
      tensor.spec = {name.substr(6), DTypeOf(entry.at("dtype").get<std::string>()),
                     entry.at("shape").get<std::vector<int64_t>>()};
      const auto from = entry.at("data_offsets").at(0).get<uint64_t>();
      const auto to = entry.at("data_offsets").at(1).get<uint64_t>();
      if (to > data_bytes || from > to || to - from != tensor.spec.bytes())
        return DataLoss("snapshot: tensor ", name, " lies outside the file");
      tensor.data.resize(to - from);
      if (to > from) std::memcpy(tensor.data.data(), data + from, to - from);
      out.push_back(std::move(tensor));
    }
  } catch (const Json::exception& e) {
    return DataLoss("snapshot: header cannot be read: ", e.what());
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.spec.name < b.spec.name; });
  return out;
}

}  // namespace

absl::StatusOr<std::shared_ptr<TensorBuffer>> EncodeSnapshot(const Layout& layout, const std::byte* flat,
                                                             const std::vector<optim::OwnedTensor>& state,
                                                             int64_t version, int64_t step) {
  Json header;
  header["__metadata__"] = {
      {"format", "optod-snapshot"}, {"version", std::to_string(version)}, {"step", std::to_string(step)}};
  uint64_t offset = 0;
  for (const optim::TensorSpec& spec : layout.specs()) AddEntry(&header, "params/" + spec.name, spec, &offset);
  for (const optim::OwnedTensor& tensor : state) AddEntry(&header, "state/" + tensor.spec.name, tensor.spec, &offset);
  std::string text = header.dump();
  text.resize((text.size() + 8 + 63) / 64 * 64 - 8, ' ');
  auto file = TensorBuffer::Make(8 + text.size() + offset);
  if (file == nullptr) return ResourceExhausted("snapshot: no memory for ", offset, " bytes");
  std::byte* at = file->data();
  const uint64_t length = text.size();
  std::memcpy(at, &length, 8);
  std::memcpy(at + 8, text.data(), text.size());
  at += 8 + text.size();
  if (layout.total_bytes() > 0) std::memcpy(at, flat, layout.total_bytes());
  at += layout.total_bytes();
  for (const optim::OwnedTensor& tensor : state) {
    if (!tensor.data.empty()) std::memcpy(at, tensor.data.data(), tensor.data.size());
    at += tensor.data.size();
  }
  return file;
}

absl::StatusOr<Snapshot> DecodeSnapshot(const Layout& layout, const std::string& blob) {
  Snapshot out;
  const uint64_t want = layout.total_bytes();
  const char* data = blob.data();
  if (blob.size() != want) {
    uint64_t length = 0;
    if (blob.size() < 8) return DataLoss("snapshot: ", blob.size(), " bytes are no safetensors file");
    std::memcpy(&length, blob.data(), 8);
    if (length > blob.size() - 8 || blob.size() - 8 - length < want)
      return DataLoss("snapshot: header of ", length, " bytes does not fit the file");
    data += 8 + length;
    ASSIGN_OR_RETURN(out.state, ReadState(blob.substr(8, length), data, blob.size() - 8 - length));
    out.has_state = true;
  }
  out.params = TensorBuffer::Make(want);
  if (out.params == nullptr) return ResourceExhausted("snapshot: no memory for ", want, " bytes");
  if (want > 0) std::memcpy(out.params->data(), data, want);
  return out;
}

}  // namespace optod::engine
