// Files from outside: what is taken and what is refused, in which words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "optim/nn/gguf_blocks.h"
#include "optim/nn/import.h"
#include "small_models.h"
#include "temp_folder.h"

namespace optod::nn {
namespace {

using testing::HasSubstr;

std::string SafetensorsText(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string text(reinterpret_cast<const char*>(&length), 8);
  return text + header + std::string(data_bytes, '\0');
}
std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

struct BadFile {
  const char* name;
  std::string text;
  const char* message;
};
std::string CaseName(const testing::TestParamInfo<BadFile>& info) { return info.param.name; }

class BadSafetensors : public testing::TestWithParam<BadFile> {};
TEST_P(BadSafetensors, IsRefused) {
  auto header = ParseSafetensors(Bytes(GetParam().text));
  ASSERT_FALSE(header.ok());
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(header.status().message()), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(
    Files, BadSafetensors,
    testing::Values(
        BadFile{"empty", "", "0 bytes are too short"}, BadFile{"short", "1234567", "7 bytes are too short"},
        BadFile{"length_beyond", std::string("\x84\x03\0\0\0\0\0\0", 8) + "{}", "header length 900 is beyond the file's 10 bytes"},
        BadFile{"length_huge", std::string(8, '\xff'), "is over 100000000"}, BadFile{"not_json", SafetensorsText("{", 0), "not a JSON object"},
        BadFile{"unknown_dtype", SafetensorsText(R"({"w":{"dtype":"F3","shape":[1],"data_offsets":[0,4]}})", 4), "dtype \"F3\" is not supported"},
        BadFile{"no_shape", SafetensorsText(R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", 4), "shape is missing"},
        BadFile{"negative_shape", SafetensorsText(R"({"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), "not a list of counts"},
        BadFile{"overflow", SafetensorsText(R"({"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0), "too many elements"},
        BadFile{"size_lies", SafetensorsText(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4), "do not fit F32 of this shape (8 bytes)"},
        BadFile{"truncated", SafetensorsText(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4), "the file at 4: truncated"},
        BadFile{"overlap", SafetensorsText(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8), "data begins at 4, the one before ends at 8"},
        BadFile{"hole", SafetensorsText(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8), "data begins at 4"},
        BadFile{"tail", SafetensorsText(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8), "4 bytes after the last tensor"},
        BadFile{"backwards", SafetensorsText(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4), "do not fit"},
        BadFile{"twice", SafetensorsText(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4), "named twice"},
        BadFile{"deep", SafetensorsText(R"({"a":[[[[[[[[[[1]]]]]]]]]]})", 0), "not a JSON object"}),
    CaseName);

TEST(Safetensors, WriteThenRead) {
  TempFolder folder;
  const std::vector<float> w = {1, 2, 3, 4, 5, 6};
  const std::vector<uint16_t> h = {0x3c00, 0xbc00};
  ASSERT_TRUE(WriteSafetensors(folder.path() + "/x.safetensors",
                               {{"w", FileType::kF32, {2, 3}, std::as_bytes(std::span(w))}, {"h", FileType::kF16, {2}, std::as_bytes(std::span(h))}},
                               {{"a", "b"}})
                  .ok());
  auto file = Safetensors::Open(folder.path() + "/x.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->header().metadata.at("a"), "b");
  ASSERT_EQ(file->header().tensors.size(), 2u);
  std::vector<float> out(2);
  ASSERT_TRUE(ToFloat32(FileType::kF16, file->bytes(file->header().tensors[0]), out));
  EXPECT_EQ(out, (std::vector<float>{1, -1}));
}

TEST(Half, EveryValueAsItsDefinition) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const int exponent = static_cast<int>(h >> 10) & 31, mantissa = static_cast<int>(h & 1023);
    double want = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) want = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
    if ((h & 0x8000) != 0) want = -want;
    const float got = HalfToFloat(static_cast<uint16_t>(h));
    if (std::isnan(want)) EXPECT_TRUE(std::isnan(got)) << h;
    else EXPECT_EQ(got, want) << h;
  }
}

class BadConfig : public testing::TestWithParam<BadFile> {};
TEST_P(BadConfig, IsRefused) {
  auto config = ParseConfig(GetParam().text);
  ASSERT_FALSE(config.ok());
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(GetParam().message));
}
std::string Llama(const std::string& more) {
  return R"({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2)" +
         (more.empty() ? "" : ", " + more) + "}";
}
INSTANTIATE_TEST_SUITE_P(
    Files, BadConfig,
    testing::Values(BadFile{"not_json", "{", "not a JSON object"}, BadFile{"no_type", "{}", "model_type: missing"},
                    BadFile{"unknown", R"({"model_type": "t5"})", "\"t5\" is not one of llama, mistral, opt, gpt2, roberta"},
                    BadFile{"type_is_number", R"({"model_type": 3})", "model_type: not text"},
                    BadFile{"no_size", R"({"model_type": "llama", "vocab_size": 8})", "hidden_size: missing"},
                    BadFile{"negative", Llama(R"("num_key_value_heads": -2)"), "num_key_value_heads: -2 must lie in"},
                    BadFile{"fraction", Llama(R"("num_key_value_heads": 1.5)"), "num_key_value_heads: not an integer"},
                    BadFile{"huge", Llama(R"("head_dim": 99999999999999999999)"), "head_dim"},
                    BadFile{"no_divisor", R"({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 3})", "num_attention_heads: 3 does not divide hidden_size 8"},
                    BadFile{"groups", R"({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 3})", "num_key_value_heads: 3 does not divide"},
                    BadFile{"activation", Llama(R"("hidden_act": "mish")"), "\"mish\" is not one of"},
                    BadFile{"rope", Llama(R"("rope_scaling": {"rope_type": "yarn"})"), "\"yarn\" is not computed here"},
                    BadFile{"eps", Llama(R"("rms_norm_eps": 0)"), "rms_norm_eps: 0 must be > 0"},
                    BadFile{"opt_post_norm", R"({"model_type": "opt", "vocab_size": 8, "do_layer_norm_before": false})", "do_layer_norm_before: false is not computed here"}),
    CaseName);

TEST(LoadModel, SaysWhatIsWrongWithTheFolder) {
  TempFolder folder;
  EXPECT_THAT(std::string(LoadModel(folder.path() + "/absent").status().message()), HasSubstr("no such folder"));
  EXPECT_THAT(std::string(LoadModel(folder.path()).status().message()), HasSubstr("config.json: missing"));
  folder.Write("config.json", kSmallModels[0].config);
  EXPECT_THAT(std::string(LoadModel(folder.path()).status().message()), HasSubstr("neither model.safetensors nor"));
  folder.Write("model.safetensors.index.json", R"({"weight_map": {"w": "../x.safetensors"}})");
  EXPECT_THAT(std::string(LoadModel(folder.path()).status().message()), HasSubstr("not a file of the folder"));
}

TEST(LoadModel, NamesTheTensor) {
  ModelFiles model = RandomModel(kSmallModels[0].config);
  TempFolder folder;
  const auto save = [&] { ASSERT_TRUE(SaveModel(folder.path(), model.config, model.weights).ok()); };
  model.weights.values(model.weights.Find("model.norm.weight"))[7] = std::nanf("");
  save();
  EXPECT_EQ(LoadModel(folder.path()).status().message(), "model.safetensors: model.norm.weight: element 7 is NaN");
  model.weights.values(model.weights.Find("model.norm.weight"))[7] = 1;
  save();
  std::string config = kSmallModels[0].config;
  config.replace(config.find("\"vocab_size\": 40"), 16, "\"vocab_size\": 41");
  folder.Write("config.json", config);
  EXPECT_EQ(LoadModel(folder.path()).status().message(), "model.safetensors: model.embed_tokens.weight: shape [40,24] is not [41,24], which config.json asks for");
  config = kSmallModels[0].config;
  config.replace(config.find("\"num_hidden_layers\": 2"), 22, "\"num_hidden_layers\": 3");
  folder.Write("config.json", config);
  EXPECT_EQ(LoadModel(folder.path()).status().message(), "weights: tensor \"model.layers.2.input_layernorm.weight\" is missing");
}

// ---- GGUF

class GgufWriter {
 public:
  template <typename T>
  GgufWriter& Raw(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  GgufWriter& Text(const std::string& s) {
    Raw<uint64_t>(s.size());
    text_ += s;
    return *this;
  }
  std::string text() const { return text_; }

 private:
  std::string text_;
};

std::string OneTensor(uint32_t type, const std::vector<uint64_t>& extents, size_t data) {
  GgufWriter w;
  w.Raw<uint32_t>(0x46554747).Raw<uint32_t>(3).Raw<uint64_t>(1).Raw<uint64_t>(1);
  w.Text("general.architecture").Raw<uint32_t>(8).Text("llama");
  w.Text("w").Raw<uint32_t>(static_cast<uint32_t>(extents.size()));
  for (uint64_t e : extents) w.Raw(e);
  w.Raw(type).Raw<uint64_t>(0);
  std::string text = w.text();
  text.resize((text.size() + 31) / 32 * 32 + data);
  return text;
}

class BadGguf : public testing::TestWithParam<BadFile> {};
TEST_P(BadGguf, IsRefused) {
  auto header = ParseGguf(Bytes(GetParam().text));
  ASSERT_FALSE(header.ok());
  EXPECT_THAT(std::string(header.status().message()), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(Files, BadGguf,
                         testing::Values(BadFile{"empty", "", "not a GGUF file"}, BadFile{"magic", "GGUX1234", "not a GGUF file"},
                                         BadFile{"version", std::string("GGUF\x09\0\0\0", 8), "version 9 is not read here"},
                                         BadFile{"header_cut", OneTensor(0, {4}, 16).substr(0, 40), "truncated in the metadata"},
                                         BadFile{"data_cut", OneTensor(0, {4}, 15), "data ends at 16, the file at 15: truncated"},
                                         BadFile{"format", OneTensor(99, {4}, 16), "block format 99 is not read here"},
                                         BadFile{"row", OneTensor(8, {33}, 64), "rows of 33 do not divide into blocks of 32"},
                                         BadFile{"huge", OneTensor(0, {uint64_t{1} << 39, 4}, 0), "out of range"}),
                         CaseName);

/// Every format against its formula, written out here value by value from ggml's definition.
TEST(GgufBlocks, Q4_1) {
  std::vector<uint8_t> block(20);
  const uint16_t d = 0x3800, m = 0xbc00;  // 0.5, -1
  std::memcpy(block.data(), &d, 2);
  std::memcpy(block.data() + 2, &m, 2);
  for (int j = 0; j < 16; ++j) block[static_cast<size_t>(4 + j)] = static_cast<uint8_t>(j | ((15 - j) << 4));
  std::vector<float> out(32);
  DequantizeGguf(3, std::as_bytes(std::span(block)), out);
  for (int j = 0; j < 16; ++j) {
    EXPECT_EQ(out[static_cast<size_t>(j)], 0.5f * static_cast<float>(j) - 1);
    EXPECT_EQ(out[static_cast<size_t>(j + 16)], 0.5f * static_cast<float>(15 - j) - 1);
  }
}
TEST(GgufBlocks, Q8_0) {
  std::vector<uint8_t> block(34);
  const uint16_t d = 0x4000;  // 2
  std::memcpy(block.data(), &d, 2);
  for (int j = 0; j < 32; ++j) block[static_cast<size_t>(2 + j)] = static_cast<uint8_t>(j * 8 - 128);
  std::vector<float> out(32);
  DequantizeGguf(8, std::as_bytes(std::span(block)), out);
  for (int j = 0; j < 32; ++j) EXPECT_EQ(out[static_cast<size_t>(j)], 2.0f * static_cast<float>(static_cast<int8_t>(j * 8 - 128)));
}
TEST(GgufBlocks, Q4_KScalesOfSixBits) {
  std::vector<uint8_t> block(144);
  const uint16_t one = 0x3c00;
  std::memcpy(block.data(), &one, 2);
  std::memcpy(block.data() + 2, &one, 2);
  // Groups 0..3 keep scale and minimum in the low 6 bits; 4..7 in nibbles plus the others' high 2 bits.
  uint8_t* s = block.data() + 4;
  s[0] = 5 | (2 << 6);   // scale 0 = 5, high bits of scale 4 = 2
  s[4] = 7 | (1 << 6);   // minimum 0 = 7, high bits of minimum 4 = 1
  s[8] = 3 | (9 << 4);   // low bits: scale 4 = 3, minimum 4 = 9
  block[16] = 2;         // group 0, value 0
  block[16 + 64] = 4;    // group 4, value 0
  std::vector<float> out(256);
  DequantizeGguf(12, std::as_bytes(std::span(block)), out);
  EXPECT_EQ(out[0], 5.0f * 2 - 7);
  EXPECT_EQ(out[128], (3.0f + 32) * 4 - (9 + 16));
  EXPECT_EQ(out[32], 0);
}

TEST(Import, NeighbouringPairsBecomeHalves) {
  std::vector<float> rows = {0, 1, 2, 3, 10, 11, 12, 13};  // two heads of 4 rows, one column
  NeighboursToHalves(2, 4, 1, rows);
  EXPECT_EQ(rows, (std::vector<float>{0, 2, 1, 3, 10, 12, 11, 13}));
}

}  // namespace
}  // namespace optod::nn
