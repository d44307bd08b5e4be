#include "optim/nn/bpe.h"

#include <algorithm>
#include <array>
#include <queue>

#include "base/status.h"

namespace optod::nn {
namespace {

std::string Utf8(uint32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};  // < 0x800 suffices here
}

/// GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100, U+0101, ...
const std::array<std::string, 256>& ByteAlphabet() {
  static const auto* const table = [] {
    auto* made = new std::array<std::string, 256>;
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      (*made)[b] = Utf8(printable ? b : next++);
    }
    return made;
  }();
  return *table;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

class Bpe final : public Tokenizer {
 public:
  explicit Bpe(BpeData data) : data_(std::move(data)) {
    for (size_t i = 0; i < data_.tokens.size(); ++i) ids_.emplace(data_.tokens[i], static_cast<int64_t>(i));
    for (size_t i = 0; i < data_.merges.size(); ++i) {
      ranks_.emplace(data_.merges[i].first + '\0' + data_.merges[i].second, static_cast<int>(i));
    }
    for (size_t b = 0; b < 256; ++b) bytes_.emplace(ByteAlphabet()[b], static_cast<char>(b));
    for (const auto& [name, id] : data_.special) {
      ids_.emplace(name, id);
      special_ids_.emplace(id, true);
    }
    std::sort(data_.special.begin(), data_.special.end(),
              [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  }

  std::vector<int64_t> Encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
      const auto* special = SpecialAt(text, at);
      if (special == nullptr) {
        ++at;
        continue;
      }
      EncodePlain(text.substr(begin, at - begin), &ids);
      ids.push_back(special->second);
      at += special->first.size();
      begin = at;
    }
    EncodePlain(text.substr(begin), &ids);
    return ids;
  }

  std::string Decode(const std::vector<int64_t>& ids) const override {
    std::string text;
    for (int64_t id : ids) {
      if (id < 0 || id >= vocab() || special_ids_.contains(id)) continue;
      const std::string& token = data_.tokens[static_cast<size_t>(id)];
      data_.split.byte_level ? AppendBytes(token, &text) : AppendPiece(token, &text);
    }
    if (data_.split.dummy_prefix && text.starts_with(" ")) text.erase(0, 1);
    return text;
  }

  int64_t vocab() const override { return static_cast<int64_t>(data_.tokens.size()); }
  int64_t Find(const std::string& token) const override {
    const auto it = ids_.find(token);
    return it == ids_.end() ? -1 : it->second;
  }

 private:
  const std::pair<std::string, int64_t>* SpecialAt(std::string_view text, size_t at) const {
    for (const auto& special : data_.special) {
      if (!special.first.empty() && text.substr(at).starts_with(special.first)) return &special;
    }
    return nullptr;
  }

  void EncodePlain(std::string_view text, std::vector<int64_t>* ids) const {
    if (text.empty()) return;
    std::string with_space;
    if (data_.split.dummy_prefix || (data_.split.prefix_space && text.front() != ' ')) {
      with_space.append(1, ' ').append(text);
      text = with_space;
    }
    if (!data_.split.byte_level) return EncodeCharacters(text, ids);
    size_t at = 0;
    while (at < text.size()) {  // single digits first, the pattern on what lies between them
      size_t end = at;
      if (data_.split.single_digits && IsDigit(text[at])) {
        EncodeWord(text.substr(at, 1), ids);
        ++at;
        continue;
      }
      while (end < text.size() && !(data_.split.single_digits && IsDigit(text[end]))) ++end;
      const std::string_view part = text.substr(at, end - at);
      if (data_.split.pattern) {
        for (std::string_view word : SplitGpt2(part)) EncodeWord(word, ids);
      } else {
        EncodeWord(part, ids);
      }
      at = end;
    }
  }

  void EncodeWord(std::string_view word, std::vector<int64_t>* ids) const {
    std::vector<std::string> symbols;
    for (char c : word) symbols.push_back(ByteAlphabet()[static_cast<unsigned char>(c)]);
    Emit(Merge(std::move(symbols)), ids);
  }

  void EncodeCharacters(std::string_view text, std::vector<int64_t>* ids) const {
    std::vector<std::string> symbols;
    for (size_t at = 0; at < text.size();) {
      const size_t length = CharacterLength(text, at);
      symbols.push_back(text[at] == ' ' ? "\xe2\x96\x81" : std::string(text.substr(at, length)));
      at += length;
    }
    Emit(Merge(std::move(symbols)), ids);
  }

  /// Repeatedly joins the pair of the best rank, leftmost first among equals: a heap of candidates over a linked list.
  std::vector<std::string> Merge(std::vector<std::string> symbols) const {
    struct Candidate {
      int rank;
      size_t left, right, left_size, right_size;
      bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
    };
    const size_t n = symbols.size();
    std::vector<size_t> next(n), previous(n);
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
    const auto consider = [&](size_t left, size_t right) {
      if (left >= n || right >= n) return;
      const auto it = ranks_.find(symbols[left] + '\0' + symbols[right]);
      if (it != ranks_.end()) heap.push({it->second, left, right, symbols[left].size(), symbols[right].size()});
    };
    for (size_t i = 0; i < n; ++i) {
      next[i] = i + 1;
      previous[i] = i == 0 ? n : i - 1;
    }
    for (size_t i = 0; i + 1 < n; ++i) consider(i, i + 1);
    while (!heap.empty()) {
      const Candidate c = heap.top();
      heap.pop();
      // Stale when either side has been merged since.
      if (symbols[c.left].size() != c.left_size || symbols[c.right].size() != c.right_size || next[c.left] != c.right)
        continue;
      symbols[c.left] += symbols[c.right];
      symbols[c.right].clear();
      next[c.left] = next[c.right];
      if (next[c.left] < n) previous[next[c.left]] = c.left;
      consider(previous[c.left], c.left);
      consider(c.left, next[c.left]);
    }
    std::erase_if(symbols, [](const std::string& s) { return s.empty(); });
    return symbols;
  }

  void Emit(const std::vector<std::string>& symbols, std::vector<int64_t>* ids) const {
    for (const std::string& symbol : symbols) {
      const auto it = ids_.find(symbol);
      if (it != ids_.end()) {
        ids->push_back(it->second);
      } else if (data_.split.byte_fallback && !data_.split.byte_level) {
        static constexpr char kHex[] = "0123456789ABCDEF";
        for (unsigned char c : symbol) {
          const int64_t id = Find(std::string("<0x") + kHex[c >> 4] + kHex[c & 15] + ">");
          if (id >= 0 || data_.unknown >= 0) ids->push_back(id >= 0 ? id : data_.unknown);
        }
      } else if (data_.unknown >= 0) {
        ids->push_back(data_.unknown);
      }
    }
  }

  void AppendBytes(const std::string& token, std::string* text) const {
    for (size_t at = 0; at < token.size();) {
      const size_t length = CharacterLength(token, at);
      const auto it = bytes_.find(token.substr(at, length));
      if (it != bytes_.end()) text->push_back(it->second);
      at += length;
    }
  }

  static void AppendPiece(const std::string& token, std::string* text);
  friend void AppendSpmPiece(const std::string& token, std::string* text);

  BpeData data_;
  std::unordered_map<std::string, int64_t> ids_;
  std::unordered_map<std::string, int> ranks_;
  std::unordered_map<std::string, char> bytes_;
  std::map<int64_t, bool> special_ids_;
};

int HexDigit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                : -1;
}

}  // namespace

/// "<0x0A>" is a byte, U+2581 a space.
void AppendSpmPiece(const std::string& token, std::string* text) {
  if (token.size() == 6 && token.starts_with("<0x") && token[5] == '>' && HexDigit(token[3]) >= 0 &&
      HexDigit(token[4]) >= 0) {
    text->push_back(static_cast<char>(HexDigit(token[3]) * 16 + HexDigit(token[4])));
    return;
  }
  for (size_t at = 0; at < token.size();) {
    if (std::string_view(token).substr(at).starts_with("\xe2\x96\x81")) {
      text->push_back(' ');
      at += 3;
    } else {
      text->push_back(token[at++]);
    }
  }
}

void Bpe::AppendPiece(const std::string& token, std::string* text) { AppendSpmPiece(token, text); }

std::vector<int64_t> Tokenizer::EncodeWhole(std::string_view text) const {
  std::vector<int64_t> ids = prefix;
  const std::vector<int64_t> body = Encode(text);
  ids.insert(ids.end(), body.begin(), body.end());
  ids.insert(ids.end(), suffix.begin(), suffix.end());
  return ids;
}

std::unique_ptr<Tokenizer> MakeBpe(BpeData data) { return std::make_unique<Bpe>(std::move(data)); }

}  // namespace optod::nn
