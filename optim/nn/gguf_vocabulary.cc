// The vocabulary in a GGUF file's metadata (ggml-org/ggml, docs/gguf.md, "Tokenizer").
#include <algorithm>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/gguf.h"
#include "optim/nn/vocabulary.h"

namespace optod::nn {
namespace {

constexpr int kControl = 3, kUserDefined = 4;

class Metadata {
 public:
  explicit Metadata(const GgufHeader& header) : values_(header.metadata) {}
  std::string Text(const std::string& key) const {
    const std::string* value = Get<std::string>(key);
    return value == nullptr ? "" : *value;
  }
  template <typename T>
  const std::vector<T>* List(const std::string& key) const {
    return Get<std::vector<T>>(key);
  }
  /// The token that `key` has the number of; "" = none.
  std::string TokenOf(const std::string& key, const std::vector<std::string>& tokens) const {
    int64_t id = -1;
    if (const auto* value = Get<uint64_t>(key); value != nullptr && *value < tokens.size()) id = static_cast<int64_t>(*value);
    if (const auto* value = Get<int64_t>(key); value != nullptr) id = *value;
    return id < 0 || id >= static_cast<int64_t>(tokens.size()) ? "" : tokens[static_cast<size_t>(id)];
  }

 private:
  template <typename T>
  const T* Get(const std::string& key) const {
    const auto it = values_.find(key);
    return it == values_.end() ? nullptr : std::get_if<T>(&it->second);
  }
  const std::map<std::string, GgufValue>& values_;
};

absl::StatusOr<BpeData> ReadBpe(const Metadata& metadata, const std::vector<std::string>& tokens,
                                const std::vector<int64_t>* kinds) {
  BpeData data;
  data.tokens = tokens;
  const auto* merges = metadata.List<std::string>("tokenizer.ggml.merges");
  if (merges == nullptr) return InvalidArgument("gguf: tokenizer.ggml.merges: missing");
  for (const std::string& merge : *merges) RETURN_IF_ERROR(AddMerge(merge, &data.merges));
  const std::string pre = metadata.Text("tokenizer.ggml.pre");
  if (pre != "" && pre != "default" && pre != "gpt-2" && pre != "smollm")
    return Unimplemented("gguf: tokenizer.ggml.pre: \"", pre, "\" is not read here (gpt-2, smollm)");
  data.split.single_digits = pre == "smollm";
  for (size_t i = 0; kinds != nullptr && i < kinds->size(); ++i) {
    if ((*kinds)[i] == kControl || (*kinds)[i] == kUserDefined)
      data.special.emplace_back(tokens[i], static_cast<int64_t>(i));
  }
  return data;
}

absl::StatusOr<SpmData> ReadSpm(const Metadata& metadata, const std::vector<std::string>& tokens,
                                const std::vector<int64_t>* kinds) {
  SpmData data;
  data.pieces = tokens;
  const auto* scores = metadata.List<double>("tokenizer.ggml.scores");
  if (scores == nullptr || scores->size() != tokens.size() || kinds == nullptr)
    return InvalidArgument("gguf: tokenizer.ggml.scores or token_type: missing");
  data.scores.assign(scores->begin(), scores->end());
  data.kinds.assign(kinds->begin(), kinds->end());
  return data;
}

}  // namespace

absl::Status AddMerge(const std::string& line, std::vector<std::pair<std::string, std::string>>* merges) {
  const size_t space = line.find(' ');
  if (space == std::string::npos || space == 0 || space + 1 == line.size())
    return InvalidArgument("merges: \"", line.substr(0, 32), "\" is not a pair");
  merges->emplace_back(line.substr(0, space), line.substr(space + 1));
  return absl::OkStatus();
}

std::string OnlyFile(const std::string& folder, const std::string& beginning, const std::string& ending) {
  std::string found;
  for (const std::string& name : PosixFs().ListDirectory(folder).value_or(std::vector<std::string>())) {
    if (name.starts_with(beginning) && name.ends_with(ending) && found.empty()) found = folder + "/" + name;
  }
  return found;
}

absl::StatusOr<Vocabulary> ReadGgufVocabulary(const std::string& path) {
  ASSIGN_OR_RETURN(const Gguf file, Gguf::Open(path));
  const Metadata metadata(file.header());
  const auto* tokens = metadata.List<std::string>("tokenizer.ggml.tokens");
  const auto* kinds = metadata.List<int64_t>("tokenizer.ggml.token_type");
  if (tokens == nullptr || tokens->empty()) return InvalidArgument("gguf: tokenizer.ggml.tokens: missing");
  if (kinds != nullptr && kinds->size() != tokens->size())
    return InvalidArgument("gguf: tokenizer.ggml.token_type: another length than the tokens");
  Vocabulary vocabulary;
  vocabulary.begin = metadata.TokenOf("tokenizer.ggml.bos_token_id", *tokens);
  vocabulary.end = metadata.TokenOf("tokenizer.ggml.eos_token_id", *tokens);
  vocabulary.unknown = metadata.TokenOf("tokenizer.ggml.unknown_token_id", *tokens);
  vocabulary.padding = metadata.TokenOf("tokenizer.ggml.padding_token_id", *tokens);
  vocabulary.chat_template = metadata.Text("tokenizer.chat_template");
  const std::string model = metadata.Text("tokenizer.ggml.model");
  if (model == "gpt2") {
    ASSIGN_OR_RETURN(vocabulary.data, ReadBpe(metadata, *tokens, kinds));
    return vocabulary;
  }
  if (model != "llama")
    return Unimplemented("gguf: tokenizer.ggml.model: \"", model, "\" is not read here (gpt2, llama)");
  ASSIGN_OR_RETURN(vocabulary.data, ReadSpm(metadata, *tokens, kinds));
  if (std::find(tokens->begin(), tokens->end(), "<s>") != tokens->end()) vocabulary.in_front = {"<s>"};
  return vocabulary;
}

}  // namespace optod::nn
