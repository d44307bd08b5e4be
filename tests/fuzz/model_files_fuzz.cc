// Bytes as every file of a model folder: each input must end in a value or an error, and what a header admits must be
// readable.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "optim/nn/gguf.h"
#include "optim/nn/model_config.h"
#include "optim/nn/safetensors.h"
#include "optim/nn/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace optod::nn;
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto bytes = std::as_bytes(std::span(text));
  switch (data[0] % 6) {
    case 0:
      if (auto header = ParseSafetensors(bytes); header.ok()) {
        for (const FileTensor& tensor : header->tensors) {
          std::vector<float> out((tensor.end - tensor.begin) / ElementBytes(tensor.type));
          (void)ToFloat32(tensor.type, bytes.subspan(header->data_begin + tensor.begin, tensor.end - tensor.begin), out);
        }
      }
      break;
    case 1:
      if (auto header = ParseGguf(bytes); header.ok()) {
        for (const GgufTensor& tensor : header->tensors) {
          std::vector<float> out(static_cast<size_t>(tensor.elements()));
          DequantizeGguf(tensor.type, bytes.subspan(header->data_begin + tensor.offset, tensor.bytes), out);
        }
      }
      break;
    case 2: (void)ParseConfig(text); break;
    case 3:
      if (auto tokenizer = ParseTokenizerJson(text); tokenizer.ok()) (void)(*tokenizer)->Encode("a 1\xff\n");
      break;
    case 4:
      if (auto tokenizer = ParseSentencePieceModel(text); tokenizer.ok()) (void)(*tokenizer)->Encode("a b\xff");
      break;
    default:
      if (auto tokenizer = ParseLlama2cTokenizer(text); tokenizer.ok()) (void)(*tokenizer)->Encode("a b\xff");
  }
  return 0;
}
