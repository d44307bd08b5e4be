// Tokenizers: small ones written out here, real vocabularies where OPTOD_DATA has them (expected ids are those of the
// `tokenizers` package 0.22 on the same vocabulary).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "optim/nn/bpe.h"
#include "optim/nn/tokenizer.h"

namespace optod::nn {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string DataFolder(const char* name) {
  const char* root = std::getenv("OPTOD_DATA");
  return root == nullptr ? "" : std::string(root) + "/" + name;
}

struct TextCase {
  const char* name;
  std::string text;
  std::vector<int64_t> ids;
};
std::string CaseName(const testing::TestParamInfo<TextCase>& info) { return info.param.name; }

class Gpt2Vocabulary : public testing::TestWithParam<TextCase> {};
TEST_P(Gpt2Vocabulary, GivesTheKnownIdsAndTheTextBack) {
  if (DataFolder("").empty()) GTEST_SKIP() << "needs OPTOD_DATA";
  static const auto* const tokenizer = new auto(LoadTokenizer(DataFolder("bpe-gpt2")));
  ASSERT_TRUE(tokenizer->ok()) << tokenizer->status();
  EXPECT_EQ((**tokenizer)->Encode(GetParam().text), GetParam().ids);
  EXPECT_EQ((**tokenizer)->Decode(GetParam().ids), GetParam().text);
}
INSTANTIATE_TEST_SUITE_P(
    Texts, Gpt2Vocabulary,
    testing::Values(TextCase{"words", "Hello world", {15496, 995}},
                    TextCase{"spaces", "  two  spaces and\ttab\n\nlines  ", {220, 734, 220, 9029, 290, 197, 8658, 198, 198, 6615, 220, 220}},
                    TextCase{"contractions", "don't we'll I'm they've 's", {9099, 470, 356, 1183, 314, 1101, 484, 1053, 705, 82}},
                    TextCase{"latin", "naïve café — “quotes” 12345 3.14", {2616, 38776, 40304, 851, 564, 250, 421, 6421, 447, 251, 17031, 2231, 513, 13, 1415}},
                    TextCase{"wide", "日本語 テスト 🙂👍", {33768, 98, 17312, 105, 45739, 252, 14524, 228, 43302, 32485, 41840, 235}},
                    TextCase{"unicode_spaces", "a\u00a0b\u3000c", {64, 1849, 65, 5099, 222, 66}}, TextCase{"empty", "", {}},
                    TextCase{"repeats", std::string(40, 'x'), {24223, 24223, 24223, 24223, 24223}},
                    TextCase{"code", "def f(x):\n    return x + 1\n", {4299, 277, 7, 87, 2599, 198, 220, 220, 220, 1441, 2124, 1343, 352, 198}},
                    TextCase{"line_ends", "\r\n mixed \r\n", {201, 198, 7668, 220, 201, 198}},
                    TextCase{"numbers", "Ünïcödé ½ Ⅷ ९९", {127, 250, 77, 26884, 66, 9101, 67, 2634, 25208, 2343, 227, 100, 220, 24231, 107, 24231, 107}}),
    CaseName);

TEST(Gpt2Vocabulary, BytesThatAreNotUtf8ComeBack) {
  if (DataFolder("").empty()) GTEST_SKIP() << "needs OPTOD_DATA";
  const auto tokenizer = *LoadTokenizer(DataFolder("bpe-gpt2"));
  std::string all;
  for (int b = 255; b >= 0; --b) all.push_back(static_cast<char>(b));
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(all)), all);
}

TEST(Llama2cVocabulary, GivesTheIdsOfTheGoldenText) {
  if (DataFolder("").empty()) GTEST_SKIP() << "needs OPTOD_DATA";
  const auto tokenizer = *LoadTokenizer(DataFolder("stories260k"));
  std::ifstream file(DataFolder("stories260k/golden.json"));
  const auto golden = nlohmann::json::parse(file);
  const auto ids = golden["token_ids"].get<std::vector<int64_t>>();
  EXPECT_EQ(tokenizer->EncodeWhole(golden["text"].get<std::string>()), ids);
  EXPECT_EQ(tokenizer->Decode(ids), golden["text"].get<std::string>());
}

/// a b c d e, with merges ab, abc, de.
BpeData Small() {
  BpeData data;
  data.tokens = {"a", "b", "c", "d", "e", "ab", "abc", "de", "<|end|>"};
  data.merges = {{"d", "e"}, {"a", "b"}, {"ab", "c"}};
  data.special = {{"<|end|>", 8}};
  return data;
}

TEST(Bpe, MergesByRankThenFromTheLeft) {
  const auto tokenizer = MakeBpe(Small());
  EXPECT_THAT(tokenizer->Encode("abcde"), ElementsAre(6, 7));
  EXPECT_THAT(tokenizer->Encode("abab"), ElementsAre(5, 5));
  EXPECT_THAT(tokenizer->Encode("aabcd"), ElementsAre(0, 6, 3));
}
TEST(Bpe, SpecialTokensStandAlone) {
  const auto tokenizer = MakeBpe(Small());
  EXPECT_THAT(tokenizer->Encode("ab<|end|>c"), ElementsAre(5, 8, 2));
  EXPECT_EQ(tokenizer->Decode({5, 8, 2, 99, -1}), "abc");
}

TEST(Split, SingleDigits) {
  BpeData data = Small();
  data.tokens.insert(data.tokens.end(), {"1", "2", "12"});
  data.merges.push_back({"1", "2"});
  EXPECT_THAT(MakeBpe(data)->Encode("ab12"), ElementsAre(5, 11));
  data.split.single_digits = true;
  EXPECT_THAT(MakeBpe(data)->Encode("ab12"), ElementsAre(5, 9, 10));
}

constexpr char kJson[] = R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3, "</s>": 4}, "merges": [["a", "b"]]},
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
  "added_tokens": [{"id": 3, "content": "<s>"}, {"id": 4, "content": "</s>"}],
  "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]}})";

TEST(TokenizerJson, WhatStandsAroundAText) {
  auto tokenizer = ParseTokenizerJson(kJson);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->EncodeWhole("aba"), ElementsAre(3, 2, 0, 4));
}

/// SentencePiece's space in front stands there even before a space: " a" is two of them and an a.
TEST(TokenizerJson, PrependIsUnconditional) {
  const auto tokenizer = ParseTokenizerJson(R"({"model": {"type": "BPE", "vocab": {"\u2581": 0, "a": 1, "\u2581a": 2}, "merges": [["\u2581", "a"]]},
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->Encode("a"), ElementsAre(2));
  EXPECT_THAT((*tokenizer)->Encode(" a"), ElementsAre(0, 2));
  EXPECT_EQ((*tokenizer)->Decode({2}), "a");
  EXPECT_EQ((*tokenizer)->Decode({0, 2}), " a");
}

TEST(TokenizerJson, RefusesWhatItCannotDo) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "model: missing"},
      {"[]", "model: missing"},
      {R"({"model": {"type": "Unigram"}})", "\"Unigram\" is not read here"},
      {R"({"model": {"type": "BPE", "vocab": {}, "merges": []}})", "model.vocab: not an object of token ids"},
      {R"({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}})", "id of \"a\" is not a count"},
      {R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["ab"]}})", "\"ab\" is not a pair"},
      {R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "Split"}})", "\"Split\" is not read here"}};
  for (const auto& [text, message] : cases) EXPECT_THAT(std::string(ParseTokenizerJson(text).status().message()), HasSubstr(message));
}

std::string Piece(const std::string& text, float score, int kind) {
  std::string inner = std::string("\x0a") + static_cast<char>(text.size()) + text + "\x15";
  inner.append(reinterpret_cast<const char*>(&score), 4);
  inner += std::string("\x18") + static_cast<char>(kind);
  return std::string("\x0a") + static_cast<char>(inner.size()) + inner;
}

TEST(SentencePiece, MergesByScoreAndFallsBackToBytes) {
  std::string model = Piece("<unk>", 0, 2) + Piece("<s>", 0, 3) + Piece("<0xC3>", 0, 6) + Piece("<0xA9>", 0, 6) + Piece("\xe2\x96\x81", -3, 1) +
                      Piece("a", -2, 1) + Piece("b", -2, 1) + Piece("\xe2\x96\x81" "a", -1.5f, 1) + Piece("ab", -1, 1);
  model += std::string("\x12\x02\x18\x02", 4);  // trainer_spec.model_type = BPE
  auto tokenizer = ParseSentencePieceModel(model);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->EncodeWhole("ab"), ElementsAre(1, 4, 8));
  EXPECT_THAT((*tokenizer)->Encode("a b"), ElementsAre(7, 4, 6));
  EXPECT_THAT((*tokenizer)->Encode("é"), ElementsAre(4, 2, 3));
  EXPECT_EQ((*tokenizer)->Decode({1, 4, 8, 2, 3}), "abé");
  EXPECT_THAT(std::string(ParseSentencePieceModel(model.substr(0, 20)).status().message()), HasSubstr("not a SentencePiece model"));
  EXPECT_THAT(std::string(ParseSentencePieceModel(Piece("a", 0, 1)).status().message()), HasSubstr("model_type 1 is not read here"));
}

}  // namespace
}  // namespace optod::nn
