#include "optim/train/task.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/fs.h"
#include "base/status.h"
#include "optim/train/templates.h"
#include "optim/train/text_match.h"
#include "optim/zo/stream.h"

namespace optod::train {
namespace {

constexpr uint32_t kOrderTensor =
    (1u << 24) - 1;  // no model has so many tensors: its words belong to nobody's direction

std::vector<std::string> SplitTabs(const std::string& line) {
  std::vector<std::string> cells;
  size_t at = 0;
  while (true) {
    const size_t tab = line.find('\t', at);
    cells.push_back(line.substr(at, tab - at));
    if (tab == std::string::npos) return cells;
    at = tab + 1;
  }
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    if (!lines.back().empty() && lines.back().back() == '\r') lines.back().pop_back();
    at = end + 1;
  }
  return lines;
}

absl::StatusOr<std::vector<Row>> ReadTsv(const TaskSpec& spec, const std::vector<std::string>& lines) {
  std::vector<std::string> columns = spec.columns;
  if (spec.header && !lines.empty()) columns = SplitTabs(lines[0]);
  std::vector<Row> rows;
  for (size_t i = spec.header ? 1 : 0; i < lines.size(); ++i) {
    const std::vector<std::string> cells = SplitTabs(lines[i]);
    if (cells.size() != columns.size())
      return InvalidArgument("line ", i + 1, ": ", cells.size(), " cells, not ", columns.size());
    rows.emplace_back();
    for (size_t c = 0; c < cells.size(); ++c) rows.back().emplace_back(columns[c], cells[c]);
  }
  return rows;
}

absl::StatusOr<std::vector<Row>> ReadJsonl(const std::vector<std::string>& lines) {
  std::vector<Row> rows;
  for (size_t i = 0; i < lines.size(); ++i) {
    const auto json = nlohmann::json::parse(lines[i], nullptr, false);
    if (!json.is_object()) return InvalidArgument("line ", i + 1, ": not a JSON object");
    rows.emplace_back();
    for (const auto& [key, value] : json.items())
      rows.back().emplace_back(key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return rows;
}

/// Encodes rows of one file.
class Encoder {
 public:
  Encoder(const TaskSpec& spec, const nn::Tokenizer& tokenizer, const nn::ModelConfig& config)
      : spec_(spec), tokenizer_(tokenizer), config_(config) {
    limit_ = static_cast<size_t>(std::min(spec.max_tokens, config.max_positions));
    if (config.family == nn::Family::kRoberta) mask_ = tokenizer.Find("<mask>");
  }

  absl::StatusOr<Example> Encode(const Row& row) const { return spec_.asks() ? Question(row) : Choice(row); }

  /// A prompt with options to choose from.
  absl::StatusOr<Example> Choice(const Row& row) const {
    Example example;
    example.candidates = static_cast<int>(spec_.options.size());
    const std::string* label = FieldOf(row, spec_.label);
    if (label == nullptr) return InvalidArgument("column \"", spec_.label, "\" is missing");
    example.correct = LabelNumber(*label);
    if (example.correct < 0) return InvalidArgument("label \"", label->substr(0, 32), "\" is not one of ", LabelList());
    ASSIGN_OR_RETURN(const std::string prompt, Render(spec_.prompt, row));
    std::vector<std::vector<int64_t>> options;
    std::vector<std::string> texts;
    for (const auto& [unused, text] : spec_.options) {
      ASSIGN_OR_RETURN(const std::string option, Render(text, row));
      texts.push_back(option);
      const std::vector<int64_t> alone = tokenizer_.Encode(prompt), both = tokenizer_.Encode(prompt + option);
      if (both.size() <= alone.size()) return InvalidArgument("option \"", option, "\" has no token of its own");
      options.emplace_back(both.end() - static_cast<ptrdiff_t>(both.size() - alone.size()), both.end());
      if (options.back().size() + tokenizer_.prefix.size() + tokenizer_.suffix.size() + 2 > limit_)
        return InvalidArgument("option \"", option.substr(0, 32), "\" alone is over task.max_tokens ", limit_);
    }
    for (const std::string& text : texts)
      example.f1.push_back(TokenF1(text, texts[static_cast<size_t>(example.correct)]));
    const std::vector<int64_t> body = tokenizer_.Encode(prompt);
    if (config_.family == nn::Family::kRoberta) return Masked(std::move(example), body, options);
    const bool single = std::all_of(options.begin(), options.end(), [](const auto& o) { return o.size() == 1; });
    if (single && !body.empty()) {
      Sequence sequence{Cut(body, 0), {}};
      for (size_t c = 0; c < options.size(); ++c)
        sequence.picks.push_back({static_cast<int64_t>(sequence.ids.size()) - 1, options[c][0], static_cast<int>(c)});
      example.sequences.push_back(std::move(sequence));
      return example;
    }
    for (size_t c = 0; c < options.size(); ++c) {
      ASSIGN_OR_RETURN(Sequence sequence, Continued(body, options[c], static_cast<int>(c)));
      example.sequences.push_back(std::move(sequence));
    }
    return example;
  }

  /// A prompt that the model goes on from in its own words: trained on the first right answer and what ends it.
  absl::StatusOr<Example> Question(const Row& row) const {
    const AnswerSpec& answer = spec_.answer;
    ASSIGN_OR_RETURN(const std::string prompt, Render(spec_.prompt, row));
    Example example;
    ASSIGN_OR_RETURN(example.answers, ListOf(answer.field, row));
    const std::vector<int64_t> body = tokenizer_.Encode(prompt),
                               both = tokenizer_.Encode(prompt + " " + example.answers[0] + answer.stop);
    if (both.size() <= body.size()) return InvalidArgument("answer \"", example.answers[0].substr(0, 32), "\" has no token of its own");
    std::vector<int64_t> tokens(both.begin() + static_cast<ptrdiff_t>(body.size()), both.end());
    if (tokens.size() > static_cast<size_t>(answer.max_tokens)) tokens.resize(static_cast<size_t>(answer.max_tokens));
    example.prompt = Cut(body, static_cast<size_t>(answer.max_tokens));
    ASSIGN_OR_RETURN(Sequence sequence, Continued(body, tokens, 0));
    example.sequences.push_back(std::move(sequence));
    return example;
  }

  /// Windows of max_tokens + 1 tokens, every one predicted from those before it in the window.
  std::vector<Example> EncodeText(const std::string& text) const {
    std::vector<int64_t> ids = tokenizer_.Encode(text);
    std::vector<Example> examples;
    for (size_t at = 0; at + 1 < ids.size(); at += limit_) {
      const size_t count = std::min(limit_, ids.size() - 1 - at);
      Example example;
      Sequence sequence;
      sequence.ids.assign(ids.begin() + static_cast<ptrdiff_t>(at), ids.begin() + static_cast<ptrdiff_t>(at + count));
      for (size_t i = 0; i < count; ++i) sequence.picks.push_back({static_cast<int64_t>(i), ids[at + i + 1], 0});
      example.sequences.push_back(std::move(sequence));
      examples.push_back(std::move(example));
    }
    return examples;
  }

 private:
  int LabelNumber(const std::string& label) const {
    for (size_t i = 0; i < spec_.options.size(); ++i) {
      if (spec_.options[i].first == label) return static_cast<int>(i);
    }
    return -1;
  }
  std::string LabelList() const {
    std::string list;
    for (const auto& [label, unused] : spec_.options) list += (list.empty() ? "" : ", ") + label;
    return list;
  }
  /// The ids in front and the end of the body, so that `more` further tokens fit.
  std::vector<int64_t> Cut(const std::vector<int64_t>& body, size_t more) const {
    std::vector<int64_t> ids = tokenizer_.prefix;
    const size_t room = limit_ - std::min(limit_, ids.size() + more), keep = std::min(body.size(), room);
    ids.insert(ids.end(), body.end() - static_cast<ptrdiff_t>(keep), body.end());
    return ids;
  }
  /// The body and `tokens` behind it, each of them picked.
  absl::StatusOr<Sequence> Continued(const std::vector<int64_t>& body, const std::vector<int64_t>& tokens,
                                     int candidate) const {
    Sequence sequence{Cut(body, tokens.size()), {}};
    if (sequence.ids.empty()) return InvalidArgument("the prompt is empty and the tokenizer puts nothing in front");
    for (int64_t token : tokens) {
      sequence.picks.push_back({static_cast<int64_t>(sequence.ids.size()) - 1, token, candidate});
      sequence.ids.push_back(token);
    }
    sequence.ids.pop_back();  // nothing is asked after the last token
    return sequence;
  }
  absl::StatusOr<Example> Masked(Example example, const std::vector<int64_t>& body,
                                 const std::vector<std::vector<int64_t>>& options) const {
    if (mask_ < 0) return InvalidArgument("the tokenizer has no <mask>");
    Sequence sequence{Cut(body, 1 + tokenizer_.suffix.size()), {}};
    const auto at = static_cast<int64_t>(sequence.ids.size());
    sequence.ids.push_back(mask_);
    sequence.ids.insert(sequence.ids.end(), tokenizer_.suffix.begin(), tokenizer_.suffix.end());
    for (size_t c = 0; c < options.size(); ++c) {
      if (options[c].size() != 1)
        return InvalidArgument("option ", spec_.options[c].first, " is ", options[c].size(),
                               " tokens; a masked model scores one");
      sequence.picks.push_back({at, options[c][0], static_cast<int>(c)});
    }
    example.sequences.push_back(std::move(sequence));
    return example;
  }

  const TaskSpec& spec_;
  const nn::Tokenizer& tokenizer_;
  const nn::ModelConfig& config_;
  size_t limit_;
  int64_t mask_ = -1;
};

std::vector<uint32_t> Permutation(uint64_t seed, uint64_t epoch, size_t n) {
  std::vector<uint32_t> bits(2 * n), order(n);
  zo::FillBits({seed, static_cast<uint32_t>(epoch), static_cast<uint32_t>(epoch >> 32)}, kOrderTensor, 0, bits);
  std::iota(order.begin(), order.end(), 0u);
  const auto key = [&](uint32_t i) { return uint64_t{bits[2 * i]} << 32 | bits[2 * i + 1]; };
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return key(a) != key(b) ? key(a) < key(b) : a < b; });
  return order;
}

absl::StatusOr<std::vector<Example>> LoadSet(const TaskSpec& spec, const std::string& path, int64_t limit,
                                             const Encoder& encoder) {
  absl::StatusOr<std::string> text = PosixFs().ReadFile(path);
  if (!text.ok()) return NotFound("no such file");
  if (spec.format == "text") {
    std::vector<Example> examples = encoder.EncodeText(*text);
    if (limit > 0 && examples.size() > static_cast<size_t>(limit)) examples.resize(static_cast<size_t>(limit));
    if (examples.empty()) return InvalidArgument("the text is too short");
    return examples;
  }
  std::vector<Row> rows;
  const std::vector<std::string> lines = Lines(*text);
  if (spec.format == "tsv") {
    ASSIGN_OR_RETURN(rows, ReadTsv(spec, lines));
  } else {
    ASSIGN_OR_RETURN(rows, ReadJsonl(lines));
  }
  if (rows.empty()) return InvalidArgument("no rows");
  std::vector<uint32_t> chosen = Permutation(0, 0, rows.size());  // a limit takes a sample, the same for every seed
  if (limit > 0 && chosen.size() > static_cast<size_t>(limit)) chosen.resize(static_cast<size_t>(limit));
  std::vector<Example> examples;
  for (uint32_t i : chosen) {
    absl::StatusOr<Example> example = encoder.Encode(rows[i]);
    if (!example.ok())
      return absl::Status(example.status().code(),
                          Cat("line ", i + 1 + (spec.header ? 1 : 0), ": ", std::string(example.status().message())));
    examples.push_back(*std::move(example));
  }
  return examples;
}

}  // namespace

absl::StatusOr<TaskData> LoadTask(const TaskSpec& spec, const nn::Tokenizer& tokenizer, const nn::ModelConfig& config) {
  if (spec.format == "text" && !config.causal())
    return Unimplemented("task.format: text needs a model that continues texts");
  if (spec.asks() && !config.causal()) return Unimplemented("task.answer: needs a model that continues texts");
  const Encoder encoder(spec, tokenizer, config);
  TaskData data;
  data.asks = spec.asks();
  data.choose = spec.format != "text" && !data.asks;
  data.classify = spec.classify && data.choose;
  struct Set {
    const char* name;
    const std::string& path;
    int64_t limit;
    std::vector<Example>* out;
  };
  for (const Set& set : {Set{"task.train", spec.train, spec.train_examples, &data.train},
                         Set{"task.dev", spec.dev, spec.dev_examples, &data.dev},
                         Set{"task.test", spec.test, spec.test_examples, &data.test}}) {
    if (set.path.empty()) continue;
    auto examples = LoadSet(spec, set.path, set.limit, encoder);
    if (!examples.ok())
      return absl::Status(examples.status().code(), Cat(set.name, ": ", std::string(examples.status().message())));
    *set.out = *std::move(examples);
  }
  return data;
}

size_t BatchOrder::Place(uint64_t position) {
  const uint64_t epoch = position / examples_;
  if (epoch != epoch_) {
    order_ = Permutation(seed_, epoch + 1, examples_);
    epoch_ = epoch;
  }
  return order_[position % examples_];
}

std::vector<size_t> BatchOrder::At(int64_t step) {
  std::vector<size_t> places;
  for (size_t i = 0; i < batch_; ++i) places.push_back(Place(static_cast<uint64_t>(step) * batch_ + i));
  return places;
}

double ValueOf(const Objective& objective, size_t examples, const std::string& name) {
  if (!std::isfinite(objective.loss) || name == "loss") return objective.loss;  // NaN scores have no best option
  return name == "f1" ? -objective.f1 : -static_cast<double>(objective.right) / static_cast<double>(examples);
}

Objective Judge(std::span<const Example* const> examples, std::span<const double> log_probs, bool classify) {
  Objective result;
  result.gradient.assign(log_probs.size(), 0);
  const double share = 1.0 / static_cast<double>(examples.size());
  size_t begin = 0;
  for (const Example* example : examples) {
    const auto options = static_cast<size_t>(example->candidates), correct = static_cast<size_t>(example->correct);
    std::vector<double> score(options, 0), count(options, 0);
    std::vector<size_t> owner;
    for (const Sequence& sequence : example->sequences) {
      for (const Pick& pick : sequence.picks) {
        const auto c = static_cast<size_t>(pick.candidate);
        score[c] += log_probs[begin + owner.size()];
        count[c] += 1;
        owner.push_back(c);
      }
    }
    result.token_loss -= score[correct];
    result.tokens += static_cast<int64_t>(count[correct]);
    for (size_t c = 0; c < options; ++c) score[c] /= std::max(count[c], 1.0);
    const size_t best = static_cast<size_t>(std::max_element(score.begin(), score.end()) - score.begin());
    result.right += best == correct ? 1 : 0;
    result.f1 += share * (example->f1.empty() ? (best == correct ? 1.0 : 0.0) : example->f1[best]);
    std::vector<double> slope(options, 0);  // d loss of the example / d score
    if (classify) {
      double sum = 0;
      for (double s : score) sum += std::exp(s - score[best]);
      result.loss += share * (score[best] + std::log(sum) - score[correct]);
      for (size_t c = 0; c < options; ++c) slope[c] = std::exp(score[c] - score[best]) / sum - (c == correct ? 1 : 0);
    } else {
      result.loss -= share * score[correct];
      slope[correct] = -1;
    }
    for (size_t i = 0; i < owner.size(); ++i) result.gradient[begin + i] = share * slope[owner[i]] / count[owner[i]];
    begin += owner.size();
  }
  return result;
}

}  // namespace optod::train
