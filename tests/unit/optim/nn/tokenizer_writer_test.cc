// Tokenizers written as Hugging Face files: the same ids from what is written as from what it was written of.
#include "optim/nn/tokenizer_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "optim/nn/tokenizer.h"
#include "temp_folder.h"

namespace optod::nn {
namespace {

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream all;
  all << file.rdbuf();
  return all.str();
}

/// A GGUF file of metadata alone.
class GgufText {
 public:
  void Text(const std::string& key, const std::string& value) { Key(key, 8), String(value); }
  void Number(const std::string& key, uint32_t value) { Key(key, 4), Raw(value); }
  void Texts(const std::string& key, const std::vector<std::string>& values) {
    Array(key, 8, values.size());
    for (const std::string& value : values) String(value);
  }
  void Kinds(const std::string& key, const std::vector<int32_t>& values) {
    Array(key, 5, values.size());
    for (int32_t value : values) Raw(value);
  }
  void Scores(const std::string& key, const std::vector<float>& values) {
    Array(key, 6, values.size());
    for (float value : values) Raw(value);
  }
  std::string File() const {
    GgufText head;
    head.body_ = "GGUF";
    head.Raw(uint32_t{3}), head.Raw(uint64_t{0}), head.Raw(keys_);
    return head.body_ + body_ + std::string(64, '\0');
  }

 private:
  template <typename T>
  void Raw(T value) {
    body_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void String(const std::string& text) { Raw(uint64_t{text.size()}), body_ += text; }
  void Key(const std::string& key, uint32_t type) { ++keys_, String(key), Raw(type); }
  void Array(const std::string& key, uint32_t type, size_t size) { Key(key, 9), Raw(type), Raw(uint64_t{size}); }
  std::string body_;
  uint64_t keys_ = 0;
};

std::string BpeGguf() {
  GgufText g;
  g.Text("tokenizer.ggml.model", "gpt2"), g.Text("tokenizer.ggml.pre", "smollm");
  g.Texts("tokenizer.ggml.tokens", {"<|end|>", "a", "b", "c", "1", "2", "ab", "12", "\xc4\xa0", "\xc4\xa0" "ab", "<pad>"});
  g.Kinds("tokenizer.ggml.token_type", {3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3});
  g.Texts("tokenizer.ggml.merges", {"a b", "1 2", "\xc4\xa0 ab"});
  g.Number("tokenizer.ggml.eos_token_id", 0), g.Number("tokenizer.ggml.padding_token_id", 10);
  g.Text("tokenizer.chat_template", "{{ messages }}");
  return g.File();
}

constexpr char kLow[] = "\xe2\x96\x81";
std::string SpmGguf() {
  GgufText g;
  g.Text("tokenizer.ggml.model", "llama");
  g.Texts("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", kLow, "a", "b", std::string(kLow) + "a", "ab",
                                    std::string(kLow) + "ab", std::string(kLow) + kLow});
  g.Kinds("tokenizer.ggml.token_type", {2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1});
  g.Scores("tokenizer.ggml.scores", {0, 0, 0, 0, 0, -9, -8, -7, -3, -2, -1, -4});
  g.Number("tokenizer.ggml.bos_token_id", 1), g.Number("tokenizer.ggml.eos_token_id", 2), g.Number("tokenizer.ggml.unknown_token_id", 0);
  return g.File();
}

struct Case {
  const char* name;
  std::string (*file)();
  std::vector<std::string> texts;
  nlohmann::json config;
};
class WrittenVocabulary : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Kinds, WrittenVocabulary,
    testing::Values(Case{"byte_level", &BpeGguf, {"abc", " ab12 c", "a<|end|>b", "1212", "<pad>", ""},
                         {{"eos_token", "<|end|>"}, {"pad_token", "<pad>"}, {"chat_template", "{{ messages }}"}}},
                    Case{"sentence_piece", &SpmGguf, {"ab", "a b", " ab", "  ab", "baab", "\xc3\xa9" "a", "ab "},
                         {{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}}}),
    [](const auto& info) { return info.param.name; });

TEST_P(WrittenVocabulary, GivesTheSameIdsAndTexts) {
  TempFolder folder;
  folder.Write("model.gguf", GetParam().file());
  const std::string from = folder.path() + "/model.gguf", to = folder.path() + "/written";
  const absl::Status saved = SaveTokenizer(from, to);
  ASSERT_TRUE(saved.ok()) << saved;
  const auto before = LoadTokenizer(from), after = LoadTokenizer(to);
  ASSERT_TRUE(before.ok() && after.ok()) << before.status() << after.status();
  for (const std::string& text : GetParam().texts) {
    EXPECT_EQ((*after)->EncodeWhole(text), (*before)->EncodeWhole(text)) << '"' << text << '"';
    EXPECT_EQ((*after)->Decode((*after)->Encode(text)), (*before)->Decode((*before)->Encode(text))) << '"' << text << '"';
  }
  const auto config = nlohmann::json::parse(Bytes(to + "/tokenizer_config.json"));
  EXPECT_EQ(config["tokenizer_class"], "PreTrainedTokenizerFast");
  for (const auto& [key, value] : GetParam().config.items()) EXPECT_EQ(config[key], value) << key;
}

TEST(TokenizerWriter, Llama2cVocabulary) {
  const char* data = std::getenv("OPTOD_DATA");
  if (data == nullptr) GTEST_SKIP() << "needs OPTOD_DATA";
  TempFolder folder;
  ASSERT_TRUE(SaveTokenizer(std::string(data) + "/stories260k", folder.path()).ok());
  const auto tokenizer = LoadTokenizer(folder.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto golden = nlohmann::json::parse(Bytes(std::string(data) + "/stories260k/golden.json"));
  EXPECT_EQ((*tokenizer)->EncodeWhole(golden["text"].get<std::string>()), golden["token_ids"].get<std::vector<int64_t>>());
}

TEST(TokenizerWriter, FilesOfAFolderAreCopiedAsTheyAre) {
  TempFolder folder;
  std::filesystem::create_directory(folder.path() + "/m");
  const std::pair<const char*, const char*> files[] = {{"tokenizer.json", "tokenizer.json"}, {"tokenizer_config.json", "tokenizer_config.json"},
                                                       {"encoder.json", "vocab.json"}, {"vocab.bpe", "merges.txt"}};
  for (const auto& [name, ours] : files) folder.Write(std::string("m/") + name, std::string("bytes of ") + name);
  folder.Write("m/config.json", "not a tokenizer's");
  const std::string to = folder.path() + "/out";
  ASSERT_TRUE(SaveTokenizer(folder.path() + "/m", to).ok());
  for (const auto& [name, ours] : files) EXPECT_EQ(Bytes(to + "/" + ours), std::string("bytes of ") + name);
  EXPECT_FALSE(std::filesystem::exists(to + "/config.json"));
}

TEST(TokenizerWriter, NothingToWrite) {
  TempFolder folder;
  EXPECT_EQ(SaveTokenizer(folder.path(), folder.path() + "/out").code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace optod::nn
