// Which files describe a tokenizer, and how tokenizer.json and vocab/merges are read.
#include <nlohmann/json.hpp>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/bpe.h"
#include "optim/nn/vocabulary.h"

namespace optod::nn {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTokens = 1 << 22;

absl::Status Bad(const std::string& what) { return InvalidArgument("tokenizer.json: ", what); }

/// tokens[id] = name for every entry of a {name: id} object.
absl::Status ReadVocab(const json& vocab, const std::string& where, std::vector<std::string>* tokens) {
  if (!vocab.is_object() || vocab.empty()) return InvalidArgument(where, ": not an object of token ids");
  for (const auto& [name, id] : vocab.items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= kMaxTokens)
      return InvalidArgument(where, ": id of \"", name.substr(0, 32), "\" is not a count");
    const auto at = static_cast<size_t>(id.get<int64_t>());
    if (at >= tokens->size()) tokens->resize(at + 1);
    (*tokens)[at] = name;
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const json& merges, BpeData* data) {
  if (!merges.is_array()) return Bad("model.merges: missing");
  for (const json& merge : merges) {
    if (merge.is_string()) {
      RETURN_IF_ERROR(AddMerge(merge.get<std::string>(), &data->merges));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      data->merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      return Bad("model.merges: not a list of pairs");
    }
  }
  return absl::OkStatus();
}

std::string TypeOf(const json& object) {
  return object.is_object() && object.contains("type") && object["type"].is_string() ? object["type"].get<std::string>()
                                                                                     : "";
}

/// The members of a Sequence, or the thing itself; nothing for null.
std::vector<json> Members(const json& object, const char* list) {
  if (object.is_null()) return {};
  if (TypeOf(object) == "Sequence" && object.contains(list) && object[list].is_array())
    return object[list].get<std::vector<json>>();
  return {object};
}

bool Flag(const json& object, const char* key, bool fallback) {
  return object.contains(key) && object[key].is_boolean() ? object[key].get<bool>() : fallback;
}

absl::Status ReadPreTokenizer(const json& root, BpeSplit* split) {
  split->byte_level = split->pattern = false;
  for (const json& part : Members(root.value("pre_tokenizer", json()), "pretokenizers")) {
    const std::string type = TypeOf(part);
    if (type == "ByteLevel") {
      split->byte_level = true;
      split->pattern = Flag(part, "use_regex", true);
      split->prefix_space = Flag(part, "add_prefix_space", false);
    } else if (type == "Digits") {
      split->single_digits = Flag(part, "individual_digits", false);
    } else {
      return Unimplemented("tokenizer.json: pre_tokenizer: type \"", type, "\" is not read here (ByteLevel, Digits)");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadNormalizer(const json& root, BpeSplit* split) {
  for (const json& part : Members(root.value("normalizer", json()), "normalizers")) {
    const std::string type = TypeOf(part);
    if (type == "Prepend" && !split->byte_level)
      split->dummy_prefix = true;
    else if (type == "Replace" && !split->byte_level)
      continue;  // spaces to U+2581, done anyway
    else
      return Unimplemented("tokenizer.json: normalizer: type \"", type, "\" is not read here");
  }
  return absl::OkStatus();
}

void AddAround(const json& piece, const Tokenizer& tokenizer, std::vector<int64_t>* out) {
  if (!piece.is_object() || !piece.contains("SpecialToken") || !piece["SpecialToken"].is_object()) return;
  const json id = piece["SpecialToken"].value("id", json());
  if (id.is_string() && tokenizer.Find(id.get<std::string>()) >= 0)
    out->push_back(tokenizer.Find(id.get<std::string>()));
}

/// What stands around a single text: TemplateProcessing's "single", or RobertaProcessing's cls and sep.
void ReadPostProcessor(const json& root, Tokenizer* tokenizer) {
  for (const json& part : Members(root.value("post_processor", json()), "processors")) {
    if (TypeOf(part) == "TemplateProcessing" && part.contains("single") && part["single"].is_array()) {
      bool before = true;
      for (const json& piece : part["single"]) {
        if (piece.is_object() && piece.contains("Sequence"))
          before = false;
        else
          AddAround(piece, *tokenizer, before ? &tokenizer->prefix : &tokenizer->suffix);
      }
    }
    if (TypeOf(part) == "RobertaProcessing" || TypeOf(part) == "BertProcessing") {
      const auto id = [&](const char* key) {
        const json pair = part.value(key, json());
        return pair.is_array() && pair.size() == 2 && pair[1].is_number_integer() ? pair[1].get<int64_t>() : -1;
      };
      if (id("cls") >= 0) tokenizer->prefix.push_back(id("cls"));
      if (id("sep") >= 0) tokenizer->suffix.push_back(id("sep"));
    }
  }
}

absl::Status ReadAdded(const json& root, BpeData* data) {
  const json added = root.value("added_tokens", json::array());
  if (!added.is_array()) return Bad("added_tokens: not a list");
  for (const json& token : added) {
    if (!token.is_object() || !token.contains("content") || !token["content"].is_string() || !token.contains("id") ||
        !token["id"].is_number_integer())
      return Bad("added_tokens: an entry without content or id");
    const int64_t id = token["id"].get<int64_t>();
    if (id < 0 || id >= kMaxTokens) return Bad(Cat("added_tokens: id ", id, " is out of range"));
    if (static_cast<size_t>(id) >= data->tokens.size()) data->tokens.resize(static_cast<size_t>(id) + 1);
    data->tokens[static_cast<size_t>(id)] = token["content"].get<std::string>();
    data->special.emplace_back(token["content"].get<std::string>(), id);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const std::string& path) {
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadGgufVocabulary(path));
  auto* bpe = std::get_if<BpeData>(&vocabulary.data);
  std::unique_ptr<Tokenizer> made =
      bpe != nullptr ? MakeBpe(std::move(*bpe)) : MakeSpm(std::get<SpmData>(std::move(vocabulary.data)));
  for (const std::string& token : vocabulary.in_front) made->prefix.push_back(made->Find(token));
  return made;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(const std::string& text) {
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || !root.contains("model") || !root["model"].is_object()) return Bad("model: missing");
  const json& model = root["model"];
  const std::string type = model.contains("type") ? TypeOf(model) : "BPE";
  if (type != "BPE") return Unimplemented("tokenizer.json: model.type: \"", type, "\" is not read here (BPE)");
  BpeData data;
  RETURN_IF_ERROR(ReadVocab(model.value("vocab", json()), "tokenizer.json: model.vocab", &data.tokens));
  RETURN_IF_ERROR(ReadMerges(model.value("merges", json()), &data));
  RETURN_IF_ERROR(ReadPreTokenizer(root, &data.split));
  RETURN_IF_ERROR(ReadNormalizer(root, &data.split));
  data.split.byte_fallback = Flag(model, "byte_fallback", false);
  RETURN_IF_ERROR(ReadAdded(root, &data));
  if (model.contains("unk_token") && model["unk_token"].is_string()) {
    for (size_t i = 0; i < data.tokens.size(); ++i) {
      if (data.tokens[i] == model["unk_token"].get<std::string>()) data.unknown = static_cast<int64_t>(i);
    }
  }
  std::unique_ptr<Tokenizer> made = MakeBpe(std::move(data));
  ReadPostProcessor(root, made.get());
  return made;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseVocabMerges(const std::string& vocab_json, const std::string& merges) {
  BpeData data;
  RETURN_IF_ERROR(ReadVocab(json::parse(vocab_json, nullptr, false), "vocab.json", &data.tokens));
  for (size_t at = 0; at < merges.size();) {
    const size_t end = std::min(merges.find('\n', at), merges.size());
    std::string line = merges.substr(at, end - at);
    at = end + 1;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line.starts_with("#version")) continue;
    RETURN_IF_ERROR(AddMerge(line, &data.merges));
  }
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    const std::string& token = data.tokens[i];
    if (token == "<|endoftext|>" || token == "<s>" || token == "</s>" || token == "<pad>" || token == "<mask>" ||
        token == "<unk>")
      data.special.emplace_back(token, static_cast<int64_t>(i));
    if (token == "<unk>") data.unknown = static_cast<int64_t>(i);
  }
  std::unique_ptr<Tokenizer> made = MakeBpe(std::move(data));
  // RoBERTa's vocabulary begins <s> <pad> </s>; OPT puts its </s> (2) in front.
  if (made->Find("<s>") == 0 && made->Find("</s>") == 2) {
    if (made->Find("<mask>") >= 0) {
      made->prefix = {0};
      made->suffix = {2};
    } else {
      made->prefix = {2};
    }
  }
  return made;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  Fs& fs = PosixFs();
  if (path.ends_with(".gguf")) return FromGguf(path);
  if (auto text = fs.ReadFile(path + "/tokenizer.json"); text.ok()) return ParseTokenizerJson(*text);
  for (const auto& [vocab, merges] : {std::pair("vocab.json", "merges.txt"), std::pair("encoder.json", "vocab.bpe")}) {
    auto first = fs.ReadFile(path + "/" + vocab), second = fs.ReadFile(path + "/" + merges);
    if (first.ok() && second.ok()) return ParseVocabMerges(*first, *second);
  }
  if (auto bytes = fs.ReadFile(path + "/tokenizer.model"); bytes.ok()) return ParseSentencePieceModel(*bytes);
  if (const std::string file = OnlyFile(path, "tok", ".bin"); !file.empty()) {
    ASSIGN_OR_RETURN(std::string bytes, fs.ReadFile(file));
    return ParseLlama2cTokenizer(bytes);
  }
  if (const std::string file = OnlyFile(path, "", ".gguf"); !file.empty()) return FromGguf(file);
  return NotFound(
      "tokenizer: none of tokenizer.json, vocab.json with merges.txt, tokenizer.model, a .gguf file is there");
}

}  // namespace optod::nn
