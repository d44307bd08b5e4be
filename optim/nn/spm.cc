#include <cmath>
#include <queue>

#include "base/status.h"
#include "optim/nn/bpe.h"
#include "optim/nn/vocabulary.h"

namespace optod::nn {

void AppendSpmPiece(const std::string& token, std::string* text);

namespace {

constexpr int kUnknown = 2, kControl = 3;

class Spm final : public Tokenizer {
 public:
  explicit Spm(SpmData data) : data_(std::move(data)) {
    for (size_t i = 0; i < data_.pieces.size(); ++i) {
      ids_.emplace(data_.pieces[i], static_cast<int64_t>(i));
      if (data_.kinds[i] == kUnknown) unknown_ = static_cast<int64_t>(i);
    }
  }

  std::vector<int64_t> Encode(std::string_view text) const override {
    if (text.empty()) return {};
    std::vector<std::string> symbols;
    if (data_.dummy_prefix) symbols.push_back("\xe2\x96\x81");
    for (size_t at = 0; at < text.size();) {
      const size_t length = CharacterLength(text, at);
      symbols.push_back(text[at] == ' ' ? "\xe2\x96\x81" : std::string(text.substr(at, length)));
      at += length;
    }
    std::vector<int64_t> ids;
    for (const std::string& symbol : Merge(std::move(symbols))) Emit(symbol, &ids);
    return ids;
  }

  std::string Decode(const std::vector<int64_t>& ids) const override {
    std::string text;
    bool first = true;
    for (int64_t id : ids) {
      if (id < 0 || id >= vocab() || data_.kinds[static_cast<size_t>(id)] == kControl) continue;
      AppendSpmPiece(data_.pieces[static_cast<size_t>(id)], &text);
      if (first && data_.dummy_prefix && text.starts_with(" ")) text.erase(0, 1);
      first = false;
    }
    return text;
  }

  int64_t vocab() const override { return static_cast<int64_t>(data_.pieces.size()); }
  int64_t Find(const std::string& token) const override {
    const auto it = ids_.find(token);
    return it == ids_.end() ? -1 : it->second;
  }

 private:
  /// Joins the neighbouring pair whose piece has the best score, leftmost first among equals.
  std::vector<std::string> Merge(std::vector<std::string> symbols) const {
    struct Candidate {
      float score;
      size_t left, right, size;
      bool operator<(const Candidate& o) const { return score != o.score ? score < o.score : left > o.left; }
    };
    const size_t n = symbols.size();
    std::vector<size_t> next(n), previous(n);
    std::priority_queue<Candidate> heap;
    const auto consider = [&](size_t left, size_t right) {
      if (left >= n || right >= n) return;
      const std::string joined = symbols[left] + symbols[right];
      const int64_t id = Find(joined);
      if (id >= 0 && data_.kinds[static_cast<size_t>(id)] != kControl)
        heap.push({data_.scores[static_cast<size_t>(id)], left, right, joined.size()});
    };
    for (size_t i = 0; i < n; ++i) {
      next[i] = i + 1;
      previous[i] = i == 0 ? n : i - 1;
    }
    for (size_t i = 0; i + 1 < n; ++i) consider(i, i + 1);
    while (!heap.empty()) {
      const Candidate c = heap.top();
      heap.pop();
      if (symbols[c.left].empty() || symbols[c.right].empty() || next[c.left] != c.right ||
          symbols[c.left].size() + symbols[c.right].size() != c.size)
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

  void Emit(const std::string& symbol, std::vector<int64_t>* ids) const {
    if (const int64_t id = Find(symbol); id >= 0) return ids->push_back(id);
    static constexpr char kHex[] = "0123456789ABCDEF";
    for (unsigned char c : symbol) {
      const int64_t id = Find(std::string("<0x") + kHex[c >> 4] + kHex[c & 15] + ">");
      if (id >= 0)
        ids->push_back(id);
      else if (unknown_ >= 0)
        return ids->push_back(unknown_);
    }
  }

  SpmData data_;
  std::unordered_map<std::string, int64_t> ids_;
  int64_t unknown_ = -1;
};

/// The few parts of protobuf's wire format that a ModelProto needs.
class Wire {
 public:
  explicit Wire(std::string_view bytes) : bytes_(bytes) {}
  bool done() const { return at_ >= bytes_.size() || failed_; }
  bool failed() const { return failed_; }
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ >= bytes_.size()) break;
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    failed_ = true;
    return 0;
  }
  std::string_view Bytes(uint64_t length) {
    if (length > bytes_.size() - at_) {
      failed_ = true;
      return {};
    }
    at_ += length;
    return bytes_.substr(at_ - length, length);
  }
  std::string_view Delimited() { return Bytes(Varint()); }
  float Float() {
    float value = 0;
    const std::string_view bytes = Bytes(4);
    if (bytes.size() == 4) std::memcpy(&value, bytes.data(), 4);
    return value;
  }
  void Skip(uint64_t kind) {
    if (kind == 0)
      Varint();
    else if (kind == 1)
      Bytes(8);
    else if (kind == 2)
      Delimited();
    else if (kind == 5)
      Bytes(4);
    else
      failed_ = true;
  }

 private:
  std::string_view bytes_;
  size_t at_ = 0;
  bool failed_ = false;
};

bool ReadPiece(std::string_view bytes, SpmData* data) {
  Wire wire(bytes);
  std::string piece;
  float score = 0;
  int kind = 1;
  while (!wire.done()) {
    const uint64_t tag = wire.Varint();
    if (tag == (1 << 3 | 2))
      piece = std::string(wire.Delimited());
    else if (tag == (2 << 3 | 5))
      score = wire.Float();
    else if (tag == (3 << 3 | 0))
      kind = static_cast<int>(wire.Varint());
    else
      wire.Skip(tag & 7);
  }
  data->pieces.push_back(std::move(piece));
  data->scores.push_back(std::isfinite(score) ? score : 0);
  data->kinds.push_back(kind);
  return !wire.failed();
}

}  // namespace

std::unique_ptr<Tokenizer> MakeSpm(SpmData data) { return std::make_unique<Spm>(std::move(data)); }

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePieceModel(std::string_view bytes) {
  SpmData data;
  int model_type = 1;  // unigram is SentencePiece's default
  Wire wire(bytes);
  while (!wire.done()) {
    const uint64_t tag = wire.Varint();
    if (tag == (1 << 3 | 2)) {  // pieces
      if (!ReadPiece(wire.Delimited(), &data)) return InvalidArgument("tokenizer.model: a piece is broken");
    } else if (tag == (2 << 3 | 2)) {  // trainer_spec
      for (Wire spec(wire.Delimited()); !spec.done();) {
        const uint64_t inner = spec.Varint();
        if (inner == (3 << 3 | 0))
          model_type = static_cast<int>(spec.Varint());
        else
          spec.Skip(inner & 7);
      }
    } else if (tag == (3 << 3 | 2)) {  // normalizer_spec
      for (Wire spec(wire.Delimited()); !spec.done();) {
        const uint64_t inner = spec.Varint();
        if (inner == (3 << 3 | 0))
          data.dummy_prefix = spec.Varint() != 0;
        else
          spec.Skip(inner & 7);
      }
    } else {
      wire.Skip(tag & 7);
    }
  }
  if (wire.failed() || data.pieces.empty()) return InvalidArgument("tokenizer.model: not a SentencePiece model");
  if (model_type != 2) return Unimplemented("tokenizer.model: model_type ", model_type, " is not read here (2, BPE)");
  std::unique_ptr<Tokenizer> made = MakeSpm(std::move(data));
  if (const int64_t bos = made->Find("<s>"); bos >= 0) made->prefix = {bos};
  return made;
}

absl::StatusOr<Vocabulary> ReadLlama2cVocabulary(std::string_view bytes) {
  SpmData data;
  size_t at = 4;
  while (at < bytes.size()) {
    float score;
    int32_t length;
    if (bytes.size() - at < 8) return InvalidArgument("tok.bin: truncated");
    std::memcpy(&score, bytes.data() + at, 4);
    std::memcpy(&length, bytes.data() + at + 4, 4);
    at += 8;
    if (length < 0 || static_cast<size_t>(length) > bytes.size() - at)
      return InvalidArgument("tok.bin: token ", data.pieces.size(), ": length ", length);
    std::string piece;
    for (char c : bytes.substr(at, static_cast<size_t>(length))) c == ' ' ? piece += "\xe2\x96\x81" : piece += c;
    at += static_cast<size_t>(length);
    const size_t id = data.pieces.size();
    data.pieces.push_back(std::move(piece));
    data.scores.push_back(std::isfinite(score) ? score : 0);
    data.kinds.push_back(id == 0 ? kUnknown : id <= 2 ? kControl : 1);
  }
  if (data.pieces.size() < 259)
    return InvalidArgument("tok.bin: ", data.pieces.size(), " tokens; 3 special ones and 256 bytes are the least");
  Vocabulary vocabulary;
  vocabulary.unknown = data.pieces[0];
  vocabulary.begin = data.pieces[1];
  vocabulary.end = data.pieces[2];
  vocabulary.in_front = {vocabulary.begin};
  vocabulary.data = std::move(data);
  return vocabulary;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseLlama2cTokenizer(std::string_view bytes) {
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadLlama2cVocabulary(bytes));
  std::unique_ptr<Tokenizer> made = MakeSpm(std::get<SpmData>(std::move(vocabulary.data)));
  made->prefix = {1};
  return made;
}

}  // namespace optod::nn
