#include "optim/nn/tokenizer_writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/vocabulary.h"

namespace optod::nn {
namespace {

using json = nlohmann::ordered_json;

constexpr char kSpace[] = "\xe2\x96\x81";  // U+2581 stands for a space
constexpr int kUnknown = 2, kControl = 3, kUserDefined = 4;

/// File in a Hugging Face folder, and its name in ours.
constexpr std::pair<const char*, const char*> kFiles[] = {{"tokenizer.json", "tokenizer.json"},
                                                          {"tokenizer.model", "tokenizer.model"},
                                                          {"vocab.json", "vocab.json"},
                                                          {"merges.txt", "merges.txt"},
                                                          {"encoder.json", "vocab.json"},
                                                          {"vocab.bpe", "merges.txt"},
                                                          {"tokenizer_config.json", "tokenizer_config.json"},
                                                          {"special_tokens_map.json", "special_tokens_map.json"},
                                                          {"added_tokens.json", "added_tokens.json"},
                                                          {"chat_template.jinja", "chat_template.jinja"},
                                                          {"generation_config.json", "generation_config.json"}};

absl::StatusOr<bool> CopyFiles(const std::string& from, const std::string& to) {
  Fs& fs = PosixFs();
  bool vocabulary = false;
  for (const auto& [name, ours] : kFiles) {
    const absl::StatusOr<std::string> bytes = fs.ReadFile(from + "/" + name);
    if (!bytes.ok()) continue;
    RETURN_IF_ERROR(fs.WriteFileAtomic(to + "/" + ours, BytesOf(*bytes)));
    const std::string written = ours;
    vocabulary = vocabulary || written == "tokenizer.json" || written == "tokenizer.model" || written == "vocab.json";
  }
  return vocabulary;
}

json Added(const std::string& content, int64_t id) {
  return {{"id", id},        {"content", content}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

json VocabOf(const std::vector<std::string>& tokens) {
  json vocab = json::object();
  for (size_t i = 0; i < tokens.size(); ++i) vocab[tokens[i]] = i;
  return vocab;
}

json BpeModel(json vocab, json merges) {
  return {{"type", "BPE"},        {"dropout", nullptr},   {"unk_token", nullptr}, {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr}, {"fuse_unk", false}, {"byte_fallback", false}, {"ignore_merges", false},
          {"vocab", std::move(vocab)},     {"merges", std::move(merges)}};
}

/// Byte-level: bytes as printable characters, GPT-2's pattern, single digits where the model has them.
json FromBpe(const BpeData& data) {
  json parts = json::array();
  if (data.split.single_digits) parts.push_back({{"type", "Digits"}, {"individual_digits", true}});
  parts.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}});
  json merges = json::array(), added = json::array();
  for (const auto& [left, right] : data.merges) merges.push_back({left, right});
  for (const auto& [token, id] : data.special) added.push_back(Added(token, id));
  return {{"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", parts}}},
          {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
          {"model", BpeModel(VocabOf(data.tokens), merges)}};
}

/// Every way to make a piece of two others, the best-scored piece first: the merges that SentencePiece finds by score.
json MergesOf(const SpmData& data) {
  std::unordered_map<std::string, size_t> ids;
  for (size_t i = 0; i < data.pieces.size(); ++i) ids.emplace(data.pieces[i], i);
  std::vector<size_t> order(data.pieces.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return data.scores[a] > data.scores[b]; });
  json merges = json::array();
  for (size_t i : order) {
    const std::string& piece = data.pieces[i];
    if (data.kinds[i] != 1 && data.kinds[i] != kUserDefined) continue;
    for (size_t at = CharacterLength(piece, 0); at < piece.size(); at += CharacterLength(piece, at)) {
      const std::string left = piece.substr(0, at), right = piece.substr(at);
      if (ids.contains(left) && ids.contains(right)) merges.push_back({left, right});
    }
  }
  return merges;
}

json FromSpm(const SpmData& data) {
  json added = json::array(), model = BpeModel(VocabOf(data.pieces), MergesOf(data));
  model["fuse_unk"] = model["byte_fallback"] = true;
  for (size_t i = 0; i < data.pieces.size(); ++i) {
    if (data.kinds[i] == kUnknown) model["unk_token"] = data.pieces[i];
    if (data.kinds[i] == kUnknown || data.kinds[i] == kControl) added.push_back(Added(data.pieces[i], static_cast<int64_t>(i)));
  }
  json normalizers = json::array(), decoders = json::array();
  if (data.dummy_prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (data.dummy_prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"added_tokens", added},
          {"normalizer", {{"type", "Sequence"}, {"normalizers", normalizers}}},
          {"pre_tokenizer", nullptr},
          {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
          {"model", model}};
}

/// The special tokens in front of every text.
json Template(const std::vector<std::string>& in_front, const json& vocab) {
  if (in_front.empty()) return nullptr;
  json single = json::array(), pair = json::array(), special = json::object();
  for (const std::string& token : in_front) {
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    special[token] = {{"id", token}, {"ids", {vocab[token]}}, {"tokens", {token}}};
  }
  pair = single;
  for (const auto& [sequence, type] : {std::pair("A", 0), {"B", 1}}) {
    const json part = {{"Sequence", {{"id", sequence}, {"type_id", type}}}};
    if (type == 0) single.push_back(part);
    pair.push_back(part);
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

absl::Status Write(const Vocabulary& vocabulary, const std::string& folder) {
  const auto* bpe = std::get_if<BpeData>(&vocabulary.data);
  json file = bpe != nullptr ? FromBpe(*bpe) : FromSpm(std::get<SpmData>(vocabulary.data));
  file["version"] = "1.0";
  file["truncation"] = file["padding"] = nullptr;
  file["post_processor"] = Template(vocabulary.in_front, file["model"]["vocab"]);
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  for (const auto& [key, token] : {std::pair("bos_token", &vocabulary.begin), {"eos_token", &vocabulary.end},
                                   {"unk_token", &vocabulary.unknown}, {"pad_token", &vocabulary.padding}}) {
    if (!token->empty()) config[key] = *token;
  }
  if (!vocabulary.chat_template.empty()) config["chat_template"] = vocabulary.chat_template;
  constexpr auto kReplace = json::error_handler_t::replace;  // a piece that is not UTF-8 cannot be in a JSON file
  RETURN_IF_ERROR(PosixFs().WriteFileAtomic(folder + "/tokenizer.json", BytesOf(file.dump(1, ' ', false, kReplace) + "\n")));
  return PosixFs().WriteFileAtomic(folder + "/tokenizer_config.json", BytesOf(config.dump(2, ' ', false, kReplace) + "\n"));
}

}  // namespace

absl::Status SaveTokenizer(const std::string& model, const std::string& folder) {
  RETURN_IF_ERROR(PosixFs().CreateDirectories(folder));
  std::string gguf = model.ends_with(".gguf") ? model : "";
  if (gguf.empty()) {
    ASSIGN_OR_RETURN(const bool copied, CopyFiles(model, folder));
    if (copied) return absl::OkStatus();
    if (const std::string file = OnlyFile(model, "tok", ".bin"); !file.empty()) {
      ASSIGN_OR_RETURN(const std::string bytes, PosixFs().ReadFile(file));
      ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadLlama2cVocabulary(bytes));
      return Write(vocabulary, folder);
    }
    gguf = OnlyFile(model, "", ".gguf");
  }
  if (gguf.empty()) return NotFound("tokenizer: no tokenizer.json, vocabulary or .gguf file is there");
  ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadGgufVocabulary(gguf));
  return Write(vocabulary, folder);
}

}  // namespace optod::nn
