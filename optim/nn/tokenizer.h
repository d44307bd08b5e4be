#pragma once
/// Text to token ids and back. Two kinds: byte-level BPE (GPT-2, OPT, RoBERTa, SmolLM2; Sennrich et al., 2016) and
/// SentencePiece-style BPE with byte fallback (LLaMA, Mistral, stories260k; Kudo & Richardson, 2018). Thread-safe.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::nn {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// Ids of `text`, without the ids a model wants around it. Any bytes: what is not UTF-8 becomes byte tokens (or the
  /// unknown token). Special tokens written out in the text are recognised.
  virtual std::vector<int64_t> Encode(std::string_view text) const = 0;
  /// Bytes of the ids; special tokens give nothing, unknown ids nothing.
  virtual std::string Decode(const std::vector<int64_t>& ids) const = 0;
  virtual int64_t vocab() const = 0;
  /// Id of a token by its exact name; -1 when there is none.
  virtual int64_t Find(const std::string& token) const = 0;

  /// Ids put in front of (behind) a text, as the model was trained: LLaMA 1 | -, RoBERTa 0 | 2, GPT-2 none.
  std::vector<int64_t> prefix, suffix;

  std::vector<int64_t> EncodeWhole(std::string_view text) const;
};

/// Finds what the folder (or .gguf file) has: tokenizer.json, vocab.json with merges.txt (or encoder.json with
/// vocab.bpe), tokenizer.model, a tok*.bin of llama2.c, or a GGUF file's own vocabulary. NOT_FOUND: `tokenizer: none of
/// tokenizer.json, ... is there`; INVALID_ARGUMENT and UNIMPLEMENTED name file and field.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path);

/// The parsers behind it; each takes a file's bytes.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(const std::string& text);
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseVocabMerges(const std::string& vocab_json, const std::string& merges);
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePieceModel(std::string_view bytes);
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseLlama2cTokenizer(std::string_view bytes);

}  // namespace optod::nn
