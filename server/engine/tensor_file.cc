#include "server/engine/tensor_file.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace optod::engine {
namespace {

using Json = nlohmann::json;
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

/// As the safetensors package limits it.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

/// Bytes that a tensor of `shape` has, or -1 when a size is negative or the product does not fit 2^62.
int64_t BytesOf(const optim::TensorSpec& spec) {
  int64_t total = static_cast<int64_t>(optim::DTypeSize(spec.dtype));
  for (const int64_t size : spec.shape) {
    if (size < 0 || __builtin_mul_overflow(total, size, &total) || total > (int64_t{1} << 62)) return -1;
  }
  return total;
}

absl::StatusOr<TensorFile::Entry> ReadEntry(const std::string& name, const Json& entry, std::span<const std::byte> data) {
  TensorFile::Entry out;
  out.spec.name = name;
  const auto dtype = entry.at("dtype").get<std::string>();
  out.spec.dtype = DTypeOf(dtype);
  if (out.spec.dtype == DType::kUnspecified) return InvalidArgument("file: tensor \"", name, "\": unknown dtype \"", dtype, "\"");
  out.spec.shape = entry.at("shape").get<std::vector<int64_t>>();
  const auto from = entry.at("data_offsets").at(0).get<uint64_t>(), to = entry.at("data_offsets").at(1).get<uint64_t>();
  if (from > to || to > data.size())
    return InvalidArgument("file: tensor \"", name, "\": bytes ", from, " to ", to, " lie outside the ", data.size(), " bytes of data");
  const int64_t want = BytesOf(out.spec);
  if (want < 0 || static_cast<uint64_t>(want) != to - from)
    return InvalidArgument("file: tensor \"", name, "\": ", to - from, " bytes do not fit its dtype and shape");
  out.data = data.subspan(from, to - from);
  return out;
}

absl::StatusOr<TensorFile> ReadHeader(const Json& header, std::span<const std::byte> data) {
  TensorFile out;
  if (!header.is_object()) return InvalidArgument("file: the header is no JSON object");
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.items()) out.metadata[key] = value.get<std::string>();
      continue;
    }
    ASSIGN_OR_RETURN(TensorFile::Entry read, ReadEntry(name, entry, data));
    out.entries.push_back(std::move(read));
  }
  return out;
}

}  // namespace

absl::StatusOr<std::shared_ptr<TensorBuffer>> WriteTensorFile(const TensorMetadata& metadata,
                                                              std::span<const TensorBytes> tensors) {
  std::string text = "{\"__metadata__\":" + Json(std::map<std::string, std::string>(metadata.begin(), metadata.end())).dump();
  uint64_t total = 0;
  for (const TensorBytes& tensor : tensors) {
    const uint64_t end = total + tensor.spec->bytes();
    const Json entry = {{"dtype", NameOf(tensor.spec->dtype)}, {"shape", tensor.spec->shape}, {"data_offsets", {total, end}}};
    text += "," + Json(tensor.name).dump() + ":" + entry.dump();
    total = end;
  }
  text += '}';
  text.resize((text.size() + 8 + 63) / 64 * 64 - 8, ' ');
  auto file = TensorBuffer::Make(8 + text.size() + total);
  if (file == nullptr) return ResourceExhausted("file: no memory for ", total, " bytes");
  std::byte* at = file->data();
  const uint64_t length = text.size();
  std::memcpy(at, &length, 8);
  std::memcpy(at + 8, text.data(), text.size());
  at += 8 + text.size();
  for (const TensorBytes& tensor : tensors) {
    const size_t size = tensor.spec->bytes();
    if (size > 0) std::memcpy(at, tensor.data, size);
    at += size;
  }
  return file;
}

absl::StatusOr<TensorFile> ParseTensorFile(std::span<const std::byte> bytes) {
  if (bytes.size() < 8) return InvalidArgument("file: ", bytes.size(), " bytes are no safetensors file");
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  if (length > bytes.size() - 8)
    return InvalidArgument("file: a header of ", length, " bytes does not fit a file of ", bytes.size(), "; cut short, or no safetensors file");
  if (length > kMaxHeaderBytes) return InvalidArgument("file: a header of ", length, " bytes; at most ", kMaxHeaderBytes);
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + 8;
  try {
    return ReadHeader(Json::parse(text, text + length), bytes.subspan(8 + length));
  } catch (const Json::exception& e) {
    return InvalidArgument("file: the header cannot be read: ", e.what());
  }
}

}  // namespace optod::engine
