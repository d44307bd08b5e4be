#pragma once
/// A model's tokenizer as files that `transformers` opens, beside the weights that SaveModel writes.

#include <string>

#include "absl/status/status.h"

namespace optod::nn {

/// `model`: what LoadTokenizer takes. Tokenizer files of a Hugging Face folder (tokenizer.json, tokenizer.model,
/// vocab.json with merges.txt, their configuration and chat template) are copied byte by byte, encoder.json and
/// vocab.bpe under their Hugging Face names; the vocabulary of a GGUF or llama2.c file is written as tokenizer.json and
/// tokenizer_config.json. The same text gives the same ids. NOT_FOUND: there is none; RESOURCE_EXHAUSTED: the disk is
/// full.
absl::Status SaveTokenizer(const std::string& model, const std::string& folder);

}  // namespace optod::nn
