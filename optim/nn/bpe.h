#pragma once
/// Byte-pair merging over ranked pairs, and the byte-level alphabet around it. Private to optim/nn.

#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "optim/nn/tokenizer.h"

namespace optod::nn {

/// How text is cut before merging.
struct BpeSplit {
  bool byte_level =
      true;  ///< bytes are written as printable characters; false: SentencePiece's characters with U+2581 for spaces
  bool pattern = true;         ///< GPT-2's regular expression
  bool single_digits = false;  ///< every digit stands alone (before the pattern)
  bool prefix_space = false;   ///< a space is put in front of the text when there is none
  bool dummy_prefix = false;   ///< a space is put in front of every text (not byte-level)
  bool byte_fallback = false;  ///< characters without a token become <0xNN> (not byte-level)
};

struct BpeData {
  std::vector<std::string> tokens;                          ///< by id
  std::vector<std::pair<std::string, std::string>> merges;  ///< best first
  std::vector<std::pair<std::string, int64_t>> special;     ///< recognised in text before anything else
  BpeSplit split;
  int64_t unknown = -1;
};

std::unique_ptr<Tokenizer> MakeBpe(BpeData data);

/// A vocabulary with scores: the best-scored neighbouring pair is merged first.
struct SpmData {
  std::vector<std::string> pieces;  ///< by id, U+2581 for spaces
  std::vector<float> scores;
  std::vector<int> kinds;    ///< 1 normal, 2 unknown, 3 control, 4 user, 6 byte
  bool dummy_prefix = true;  ///< a space is put in front of every text
};
std::unique_ptr<Tokenizer> MakeSpm(SpmData data);

/// Length of the UTF-8 character at `text[at]`; 1 for a byte that begins none.
size_t CharacterLength(std::string_view text, size_t at);

/// Cuts `text` as GPT-2 does: contractions, letters, digits, others, spaces (a single space belongs to what follows).
std::vector<std::string_view> SplitGpt2(std::string_view text);

}  // namespace optod::nn
