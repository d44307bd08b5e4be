#pragma once
/// Vocabularies of formats that no other library opens (GGUF, llama2.c), as data: what a tokenizer is made of, and what
/// tokenizer_writer.cc makes files of. Private to optim/nn.

#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/bpe.h"

namespace optod::nn {

struct Vocabulary {
  std::variant<BpeData, SpmData> data;
  std::vector<std::string> in_front;         ///< special tokens put in front of a text
  std::string begin, end, unknown, padding;  ///< special tokens by name; "" = none
  std::string chat_template;                 ///< Jinja; "" = none
};

/// Of a .gguf file's metadata. INVALID_ARGUMENT and UNIMPLEMENTED name the key.
absl::StatusOr<Vocabulary> ReadGgufVocabulary(const std::string& path);
/// Of the bytes of a tok*.bin.
absl::StatusOr<Vocabulary> ReadLlama2cVocabulary(std::string_view bytes);

/// "a b" as a pair. INVALID_ARGUMENT: not one.
absl::Status AddMerge(const std::string& line, std::vector<std::pair<std::string, std::string>>* merges);

/// The first file of a folder whose name begins and ends so; "" = none.
std::string OnlyFile(const std::string& folder, const std::string& beginning, const std::string& ending);

}  // namespace optod::nn
