#include "optim/nn/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/errno_status.h"
#include "base/status.h"

namespace optod::nn {
namespace {

using nlohmann::json;

constexpr std::pair<const char*, FileType> kTypes[] = {
    {"F32", FileType::kF32}, {"F16", FileType::kF16},  {"BF16", FileType::kBF16}, {"F64", FileType::kF64},
    {"I64", FileType::kI64}, {"I32", FileType::kI32},  {"I16", FileType::kI16},   {"I8", FileType::kI8},
    {"U8", FileType::kU8},   {"BOOL", FileType::kBool}};

absl::Status Bad(const std::string& name, const std::string& what) {
  return InvalidArgument("safetensors: tensor \"", name, "\": ", what);
}

absl::StatusOr<FileType> ReadType(const std::string& name, const json& entry) {
  if (!entry.contains("dtype") || !entry["dtype"].is_string()) return Bad(name, "dtype is missing");
  const std::string text = entry["dtype"].get<std::string>();
  for (const auto& [key, type] : kTypes) {
    if (text == key) return type;
  }
  return Bad(name, "dtype \"" + text.substr(0, 32) + "\" is not supported");
}

bool IsCount(const json& value) { return value.is_number_unsigned() && value.get<uint64_t>() < (uint64_t{1} << 62); }

absl::StatusOr<FileTensor> ReadEntry(const std::string& name, const json& entry, size_t data_bytes) {
  FileTensor tensor;
  tensor.name = name;
  if (!entry.is_object()) return Bad(name, "not an object");
  ASSIGN_OR_RETURN(tensor.type, ReadType(name, entry));
  if (!entry.contains("shape") || !entry["shape"].is_array()) return Bad(name, "shape is missing");
  uint64_t bytes = ElementBytes(tensor.type);
  for (const json& extent : entry["shape"]) {
    if (!IsCount(extent)) return Bad(name, "shape: not a list of counts");
    const uint64_t value = extent.get<uint64_t>();
    if (value != 0 && bytes > (uint64_t{1} << 62) / value) return Bad(name, "shape: too many elements");
    bytes *= value;
    tensor.shape.push_back(static_cast<int64_t>(value));
  }
  const json offsets = entry.value("data_offsets", json());
  if (!offsets.is_array() || offsets.size() != 2 || !IsCount(offsets[0]) || !IsCount(offsets[1]))
    return Bad(name, "data_offsets: not a pair of counts");
  tensor.begin = offsets[0].get<uint64_t>();
  tensor.end = offsets[1].get<uint64_t>();
  if (tensor.begin > tensor.end || tensor.end - tensor.begin != bytes) {
    return Bad(name, Cat("data_offsets [", tensor.begin, ", ", tensor.end, "] do not fit ", FileTypeName(tensor.type),
                         " of this shape (", bytes, " bytes)"));
  }
  if (tensor.end > data_bytes)
    return Bad(name, Cat("data ends at ", tensor.end, ", the file at ", data_bytes, ": truncated"));
  return tensor;
}

/// The format leaves no holes and no overlaps.
absl::Status CheckCover(const std::vector<FileTensor>& tensors, size_t data_bytes) {
  std::vector<const FileTensor*> order;
  for (const FileTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const FileTensor* a, const FileTensor* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
  });
  size_t at = 0;
  for (const FileTensor* tensor : order) {
    if (tensor->begin != at)
      return Bad(tensor->name, Cat("data begins at ", tensor->begin, ", the one before ends at ", at));
    at = tensor->end;
  }
  if (at != data_bytes) return InvalidArgument("safetensors: ", data_bytes - at, " bytes after the last tensor");
  return absl::OkStatus();
}

/// Every tensor once: JSON libraries keep one of two equal keys silently.
class UniqueKeys {
 public:
  bool operator()(int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::key && depth == 1) {
      std::string key = parsed.get<std::string>();
      if (!seen_.insert({key, true}).second && twice_.empty()) twice_ = key;
    }
    if (depth > 8) deep_ = true;
    return !deep_;
  }
  const std::string& twice() const { return twice_; }

 private:
  std::map<std::string, bool> seen_;
  std::string twice_;
  bool deep_ = false;
};

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file) {
  if (file.size() < 8) return InvalidArgument("safetensors: ", file.size(), " bytes are too short for a header");
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  if (length > kMaxHeaderBytes)
    return InvalidArgument("safetensors: header length ", length, " is over ", kMaxHeaderBytes);
  if (length > file.size() - 8)
    return InvalidArgument("safetensors: header length ", length, " is beyond the file's ", file.size(), " bytes");
  const char* text = reinterpret_cast<const char*>(file.data()) + 8;
  UniqueKeys keys;
  const json parsed = json::parse(text, text + length, std::ref(keys), /*allow_exceptions=*/false);
  if (!parsed.is_object()) return InvalidArgument("safetensors: the header is not a JSON object");
  if (!keys.twice().empty()) return Bad(keys.twice(), "named twice");
  SafetensorsHeader header;
  header.data_begin = 8 + length;
  const size_t data_bytes = file.size() - header.data_begin;
  for (const auto& [name, entry] : parsed.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return InvalidArgument("safetensors: __metadata__ is not an object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) return InvalidArgument("safetensors: __metadata__.", key, " is not text");
        header.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    ASSIGN_OR_RETURN(FileTensor tensor, ReadEntry(name, entry, data_bytes));
    header.tensors.push_back(std::move(tensor));
  }
  RETURN_IF_ERROR(CheckCover(header.tensors, data_bytes));
  return header;
}

absl::StatusOr<Safetensors> Safetensors::Open(const std::string& path) {
  Safetensors result;
  ASSIGN_OR_RETURN(result.file_, MappedFile::Open(path));
  absl::StatusOr<SafetensorsHeader> header = ParseSafetensors(result.file_.bytes());
  if (!header.ok()) {
    return absl::Status(header.status().code(),
                        Cat(path.substr(path.rfind('/') + 1), ": ", std::string(header.status().message())));
  }
  result.header_ = *std::move(header);
  return result;
}

namespace {

size_t BytesOfTensor(const TensorToWrite& tensor) {
  size_t bytes = ElementBytes(tensor.type);
  for (int64_t extent : tensor.shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

std::string HeaderText(const std::vector<TensorToWrite>& tensors, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  size_t at = 0;
  for (const TensorToWrite& tensor : tensors) {
    const size_t end = at + BytesOfTensor(tensor);
    header[tensor.name] = {
        {"dtype", FileTypeName(tensor.type)}, {"shape", tensor.shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // data stays 8-byte aligned, as the reference writer does
  return text;
}

absl::Status WriteAll(int fd, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t wrote = write(fd, data.data(), std::min<size_t>(data.size(), 1u << 30));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0)
      return errno == ENOSPC ? ResourceExhausted("the disk is full") : Internal("write: ", std::strerror(errno));
    data = data.subspan(static_cast<size_t>(wrote));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            const std::vector<TensorToWrite>& tensors,
                                                            const std::map<std::string, std::string>& metadata) {
  SafetensorsWriter writer;
  writer.path_ = path;
  writer.temporary_ = path + ".tmp";
  writer.fd_ = open(writer.temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer.fd_ < 0)
    return writer.Named(InvalidArgument("cannot be written: ", std::strerror(errno)));
  const std::string header = HeaderText(tensors, metadata);
  const uint64_t length = header.size();
  for (const TensorToWrite& tensor : tensors) writer.left_ += BytesOfTensor(tensor);
  RETURN_IF_ERROR(writer.Named(WriteAll(writer.fd_, std::as_bytes(std::span(&length, 1)))));
  RETURN_IF_ERROR(writer.Named(WriteAll(writer.fd_, std::as_bytes(std::span(header)))));
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)),
      left_(other.left_) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

absl::Status SafetensorsWriter::Named(absl::Status status) const {
  if (status.ok()) return status;
  return absl::Status(status.code(), Cat(path_.substr(path_.rfind('/') + 1), ": ", std::string(status.message())));
}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> data) {
  if (data.size() > left_) return Named(Internal(data.size() - left_, " bytes more than the header says"));
  left_ -= data.size();
  return Named(WriteAll(fd_, data));
}

absl::Status SafetensorsWriter::Commit() {
  if (left_ != 0) return Named(Internal(left_, " bytes less than the header says"));
  if (fsync(fd_) != 0) return Named(DataLoss("fsync: ", std::strerror(errno)));
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return Named(Internal("rename: ", std::strerror(errno)));
  close(std::exchange(fd_, -1));
  return absl::OkStatus();
}

absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(path, tensors, metadata));
  for (const TensorToWrite& tensor : tensors) RETURN_IF_ERROR(writer.Append(tensor.data));
  return writer.Commit();
}

}  // namespace optod::nn
