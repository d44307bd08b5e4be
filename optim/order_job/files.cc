#include "optim/order_job/files.h"

#include <nlohmann/json.hpp>

#include "base/status.h"

namespace optod::order {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (const int64_t size : shape) text += Cat(size, ",");
  return text + ")";
}

template <typename T>
std::string RawBytes(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

}  // namespace

std::string NpyHeader(const std::vector<int64_t>& shape, const char* dtype) {
  std::string dict = Cat("{'descr': '", dtype, "', 'fortran_order': False, 'shape': ", ShapeText(shape), ", }");
  const size_t front = 10;  // magic, version, length
  dict.append((64 - (front + dict.size() + 1) % 64) % 64, ' ');
  dict += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xff);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

std::string SafetensorsHeader(std::span<const NamedPart> parts, bool narrow) {
  nlohmann::ordered_json json;
  int64_t begin = 0;
  for (const NamedPart& part : parts) {
    int64_t bytes = narrow ? 4 : 8;
    for (const int64_t size : part.shape) bytes *= size;
    json[part.name] = {
        {"dtype", narrow ? "F32" : "F64"}, {"shape", part.shape}, {"data_offsets", {begin, begin + bytes}}};
    begin += bytes;
  }
  std::string text = json.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string header;
  for (int byte = 0; byte < 8; ++byte) header += static_cast<char>(uint64_t{text.size()} >> (8 * byte) & 0xff);
  return header + text;
}

void AppendNumbers(std::span<const double> values, bool narrow, std::string* out) {
  if (!narrow) {
    *out += RawBytes(values);
    return;
  }
  const std::vector<float> rounded(values.begin(), values.end());
  *out += RawBytes(std::span<const float>(rounded));
}

absl::Status WriteNpy(Fs& fs, const std::string& path, std::span<const double> values,
                      const std::vector<int64_t>& shape) {
  return fs.WriteFileAtomic(path, BytesOf(NpyHeader(shape, "<f8") + RawBytes(values)));
}
absl::Status WriteNpy(Fs& fs, const std::string& path, std::span<const int> values, const std::vector<int64_t>& shape) {
  return fs.WriteFileAtomic(path, BytesOf(NpyHeader(shape, "<i4") + RawBytes(values)));
}

}  // namespace optod::order
