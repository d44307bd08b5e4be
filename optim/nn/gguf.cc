#include "optim/nn/gguf.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "optim/nn/gguf_blocks.h"

namespace optod::nn {
namespace {

constexpr uint64_t kMaxItems = uint64_t{1} << 24;
constexpr uint64_t kMaxText = uint64_t{1} << 24;

/// A cursor that never leaves the file; the first failed read stays failed.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T Take() {
    T value{};
    if (bytes_.size() - at_ < sizeof(T)) {
      failed_ = true;
      at_ = bytes_.size();
      return value;
    }
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string Text() {
    const uint64_t length = Take<uint64_t>();
    if (failed_ || length > kMaxText || length > bytes_.size() - at_) {
      failed_ = true;
      return "";
    }
    std::string text(reinterpret_cast<const char*>(bytes_.data()) + at_, length);
    at_ += length;
    return text;
  }
  bool failed() const { return failed_; }
  size_t at() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
  bool failed_ = false;
};

enum ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

absl::StatusOr<GgufValue> ReadScalar(Reader& in, uint32_t type) {
  switch (type) {
    case kU8:
      return GgufValue(static_cast<uint64_t>(in.Take<uint8_t>()));
    case kU16:
      return GgufValue(static_cast<uint64_t>(in.Take<uint16_t>()));
    case kU32:
      return GgufValue(static_cast<uint64_t>(in.Take<uint32_t>()));
    case kU64:
      return GgufValue(in.Take<uint64_t>());
    case kI8:
      return GgufValue(static_cast<int64_t>(in.Take<int8_t>()));
    case kI16:
      return GgufValue(static_cast<int64_t>(in.Take<int16_t>()));
    case kI32:
      return GgufValue(static_cast<int64_t>(in.Take<int32_t>()));
    case kI64:
      return GgufValue(in.Take<int64_t>());
    case kF32:
      return GgufValue(static_cast<double>(in.Take<float>()));
    case kF64:
      return GgufValue(in.Take<double>());
    case kBool:
      return GgufValue(in.Take<uint8_t>() != 0);
    case kString:
      return GgufValue(in.Text());
    default:
      return InvalidArgument("value type ", type, " is unknown");
  }
}

template <typename T>
void Append(std::vector<T>& list, const GgufValue& value) {
  if (const auto* i = std::get_if<int64_t>(&value)) list.push_back(static_cast<T>(*i));
  if (const auto* u = std::get_if<uint64_t>(&value)) list.push_back(static_cast<T>(*u));
  if (const auto* d = std::get_if<double>(&value)) list.push_back(static_cast<T>(*d));
  if (const auto* b = std::get_if<bool>(&value)) list.push_back(static_cast<T>(*b));
}

absl::StatusOr<GgufValue> ReadValue(Reader& in, uint32_t type) {
  if (type != kArray) return ReadScalar(in, type);
  const uint32_t element = in.Take<uint32_t>();
  const uint64_t count = in.Take<uint64_t>();
  if (element == kArray) return InvalidArgument("arrays of arrays are not read");
  if (in.failed() || count > kMaxItems || count > in.left()) return InvalidArgument("array of ", count, " is too long");
  std::vector<std::string> texts;
  std::vector<double> reals;
  std::vector<int64_t> integers;
  for (uint64_t i = 0; i < count && !in.failed(); ++i) {
    ASSIGN_OR_RETURN(GgufValue value, ReadScalar(in, element));
    if (element == kString)
      texts.push_back(std::get<std::string>(std::move(value)));
    else if (element == kF32 || element == kF64)
      Append(reals, value);
    else
      Append(integers, value);
  }
  if (element == kString) return GgufValue(std::move(texts));
  if (element == kF32 || element == kF64) return GgufValue(std::move(reals));
  return GgufValue(std::move(integers));
}

absl::StatusOr<GgufTensor> ReadTensorInfo(Reader& in) {
  GgufTensor tensor;
  tensor.name = in.Text();
  const uint32_t dims = in.Take<uint32_t>();
  if (in.failed() || dims > 4) return InvalidArgument("gguf: tensor \"", tensor.name, "\": ", dims, " dimensions");
  uint64_t elements = 1;
  for (uint32_t i = 0; i < dims; ++i) {
    const uint64_t extent = in.Take<uint64_t>();
    if (extent == 0 || extent > (uint64_t{1} << 40) / elements)
      return InvalidArgument("gguf: tensor \"", tensor.name, "\": extent ", extent, " is out of range");
    elements *= extent;
    tensor.shape.push_back(static_cast<int64_t>(extent));
  }
  tensor.type = in.Take<uint32_t>();
  tensor.offset = in.Take<uint64_t>();
  if (in.failed()) return InvalidArgument("gguf: truncated in the list of tensors");
  const BlockFormat* format = FindBlockFormat(tensor.type);
  if (format == nullptr)
    return Unimplemented("gguf: tensor \"", tensor.name, "\": block format ", tensor.type, " is not read here");
  const uint64_t innermost = tensor.shape.empty() ? 1 : static_cast<uint64_t>(tensor.shape[0]);
  if (innermost % format->elements != 0)
    return InvalidArgument("gguf: tensor \"", tensor.name, "\": rows of ", innermost, " do not divide into blocks of ",
                           format->elements);
  tensor.bytes = elements / format->elements * format->bytes;
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  return tensor;
}

}  // namespace

int64_t GgufTensor::elements() const {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

absl::StatusOr<GgufHeader> ParseGguf(std::span<const std::byte> file) {
  Reader in(file);
  if (in.Take<uint32_t>() != 0x46554747u) return InvalidArgument("gguf: not a GGUF file");
  const uint32_t version = in.Take<uint32_t>();
  if (version != 2 && version != 3) return Unimplemented("gguf: version ", version, " is not read here (2, 3)");
  const uint64_t tensors = in.Take<uint64_t>(), values = in.Take<uint64_t>();
  if (in.failed() || tensors > kMaxItems || values > kMaxItems)
    return InvalidArgument("gguf: absurd counts in the header");
  GgufHeader header;
  for (uint64_t i = 0; i < values; ++i) {
    const std::string key = in.Text();
    const uint32_t type = in.Take<uint32_t>();
    absl::StatusOr<GgufValue> value = ReadValue(in, type);
    if (in.failed()) return InvalidArgument("gguf: truncated in the metadata");
    if (!value.ok()) return InvalidArgument("gguf: ", key, ": ", std::string(value.status().message()));
    header.metadata[key] = *std::move(value);
  }
  for (uint64_t i = 0; i < tensors; ++i) {
    ASSIGN_OR_RETURN(GgufTensor tensor, ReadTensorInfo(in));
    header.tensors.push_back(std::move(tensor));
  }
  uint64_t align = 32;
  if (auto it = header.metadata.find("general.alignment"); it != header.metadata.end()) {
    if (const auto* given = std::get_if<uint64_t>(&it->second)) align = *given;
  }
  if (align == 0 || align > (1u << 20) || (align & (align - 1)) != 0)
    return InvalidArgument("gguf: general.alignment: ", align, " is not a power of two");
  header.data_begin = (in.at() + align - 1) / align * align;
  const uint64_t data = header.data_begin > file.size() ? 0 : file.size() - header.data_begin;
  for (const GgufTensor& tensor : header.tensors) {
    if (tensor.offset > data || tensor.bytes > data - tensor.offset)
      return InvalidArgument("gguf: tensor \"", tensor.name, "\": data ends at ", tensor.offset + tensor.bytes,
                             ", the file at ", data, ": truncated");
  }
  return header;
}

absl::StatusOr<Gguf> Gguf::Open(const std::string& path) {
  Gguf result;
  ASSIGN_OR_RETURN(result.file_, MappedFile::Open(path));
  ASSIGN_OR_RETURN(result.header_, ParseGguf(result.file_.bytes()));
  return result;
}

const GgufTensor* Gguf::Find(const std::string& name) const {
  for (const GgufTensor& tensor : header_.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

void Gguf::ReadRows(const GgufTensor& tensor, uint64_t first, std::span<float> out) const {
  const BlockFormat& format = *FindBlockFormat(tensor.type);
  const std::span<const std::byte> data = file_.bytes().subspan(header_.data_begin + tensor.offset, tensor.bytes);
  DequantizeGguf(tensor.type,
                 data.subspan(first / format.elements * format.bytes, out.size() / format.elements * format.bytes), out);
}

}  // namespace optod::nn
