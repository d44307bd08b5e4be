#include <re2/re2.h>

#include "optim/nn/bpe.h"

namespace optod::nn {
namespace {

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ (Radford et al., 2019). RE2 has no
// look-ahead: runs of spaces are cut by hand.
struct Patterns {
  RE2 word{R"(('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{Z}\x{85}\p{L}\p{N}]+))", Quiet()};
  RE2 spaces{R"(([\s\p{Z}\x{85}]+))", Quiet()};
  static RE2::Options Quiet() {
    RE2::Options options;
    options.set_log_errors(false);
    return options;
  }
};
const Patterns& Shared() {
  static const Patterns* const patterns = new Patterns;
  return *patterns;
}

size_t LastCharacter(std::string_view run) {
  size_t length = 1;
  while (length < run.size() && (static_cast<unsigned char>(run[run.size() - length]) & 0xc0) == 0x80) ++length;
  return length;
}

size_t Match(const RE2& pattern, std::string_view text) {
  re2::StringPiece input(text.data(), text.size()), found;
  return RE2::Consume(&input, pattern, &found) ? found.size() : 0;
}

}  // namespace

size_t CharacterLength(std::string_view text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  const size_t length = lead < 0x80                   ? 1
                        : lead >= 0xf0 && lead < 0xf8 ? 4
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xc2 && lead < 0xe0 ? 2
                                                      : 1;
  if (at + length > text.size()) return 1;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[at + i]) & 0xc0) != 0x80) return 1;
  }
  return length;
}

std::vector<std::string_view> SplitGpt2(std::string_view text) {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    size_t length = Match(Shared().word, text);
    if (length == 0) {
      length = Match(Shared().spaces, text);
      if (length == 0) {
        length = CharacterLength(text, 0);  // bytes that are not UTF-8
      } else if (length < text.size()) {
        const size_t last = LastCharacter(text.substr(0, length));
        if (last < length) length -= last;  // the last space goes with what follows
      }
    }
    pieces.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return pieces;
}

}  // namespace optod::nn
