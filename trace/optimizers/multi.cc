#include "trace/optimizers/multi.h"

#include <algorithm>

#include "base/status.h"
#include "trace/optimizers/fit.h"
#include "trace/optimizers/json_value.h"
#include "trace/optimizers/python_text.h"
#include "trace/optimizers/reply_internal.h"
#include "trace/optimizers/text_cluster.h"

namespace optod::trace {
namespace {

// `base` with `texts` behind it, numbered, each cut so that the whole stays within the limit.
Prompt WithTexts(const Prompt& base, std::string_view intro, const std::vector<std::string>& texts,
                 std::string_view outro, uint32_t limit) {
  Prompt out = base;
  for (uint32_t most = 4000;; most /= 2) {
    out.user = Cat(base.user, "\n", intro, "\n");
    for (size_t i = 0; i < texts.size(); ++i) out.user += Cat("[", i + 1, "] ", CutMiddle(texts[i], most), "\n");
    out.user += Cat(outro, "\n");
    if (limit == 0 || PromptTokens(out) <= limit) return out;
    if (most < 50) return base;  // there is no room for any of it
  }
}

std::string ValuesText(const ReplyOutcome& outcome) {
  std::string out;
  for (const KeyResult& key : outcome.keys) {
    if (key.outcome == KeyOutcome::kApplied) out += Cat(key.key, " = ", key.new_text, "\n");
  }
  return out;
}

class Rounds final : public Proposer {
 public:
  Rounds(const ProposerSpec& spec, CandidateRequest base, std::function<ReplyOutcome(std::string_view)> read)
      : k_(spec.candidates),
        top_(spec.temperature),
        low_(spec.temperature_low),
        limit_(spec.render.max_prompt_tokens),
        generation_(spec.candidates == 1 ? Generation::kTemperature : spec.generation),
        selection_(spec.selection),
        base_(std::move(base)),
        read_(std::move(read)) {}

  std::vector<ProposerCall> Next() override {
    switch (stage_) {
      case Stage::kStart:
        if (generation_ == Generation::kExperts) return Start(Stage::kExperts, {ExpertsCall()});
        return Generate();
      case Stage::kGenerate:
        return Generate();
      case Stage::kSelect:
        return Select();
      case Stage::kExperts:
      case Stage::kWaitGenerate:
      case Stage::kWaitSelect:
      case Stage::kDone:
        return {};
    }
    return {};
  }

  void Answer(std::vector<CallAnswer> answers) override {
    if (stage_ == Stage::kExperts) {
      experts_ = ReadExperts(answers.front().text, k_);
      while (experts_.size() < k_) experts_.push_back(Cat("expert ", experts_.size() + 1, " of the field"));
      ++calls_;
      stage_ = Stage::kGenerate;
    } else if (stage_ == Stage::kWaitGenerate) {
      for (CallAnswer& answer : answers) Add(std::move(answer));
      stage_ = result_.candidates.size() < k_ ? Stage::kGenerate : Stage::kSelect;
    } else if (stage_ == Stage::kWaitSelect) {
      Choose(std::move(answers.front()));
      stage_ = Stage::kDone;
    }
  }

  ProposerResult Take() override { return std::move(result_); }

 private:
  enum class Stage { kStart, kExperts, kGenerate, kWaitGenerate, kSelect, kWaitSelect, kDone };

  std::vector<ProposerCall> Start(Stage stage, std::vector<ProposerCall> calls) {
    stage_ = stage;
    return calls;
  }

  ProposerCall CallOf(Prompt prompt, size_t i) const {
    return {std::move(prompt), SpreadTemperature(top_, low_, static_cast<uint32_t>(i), k_), base_.response_schema,
            Cat("candidate ", i + 1, " of ", k_)};
  }

  ProposerCall ExpertsCall() const {
    const Prompt ask = WithTexts(
        base_.prompt, "Before you answer:", {},
        Cat("Name ", k_,
            " kinds of experts who would look at this from different sides, one a line, a few words each, and "
            "nothing else."),
        limit_);
    return {ask, SpreadTemperature(top_, low_, 0, k_), "", "experts"};
  }

  std::vector<ProposerCall> Generate() {
    const bool at_once = generation_ == Generation::kTemperature || generation_ == Generation::kExperts;
    const size_t done = result_.candidates.size();
    std::vector<ProposerCall> calls;
    for (size_t i = done; i < (at_once ? k_ : done + 1); ++i) calls.push_back(CallOf(PromptOf(i), i));
    return Start(Stage::kWaitGenerate, std::move(calls));
  }

  Prompt PromptOf(size_t i) const {
    if (generation_ == Generation::kExperts) {
      Prompt out = base_.prompt;
      out.system = Cat("You are: ", experts_[i], ".\n", out.system);
      return out;
    }
    std::vector<std::string> before;
    for (const ProposedCandidate& c : result_.candidates) {
      if (!c.reply.empty()) before.push_back(c.reply);
    }
    if (before.empty() || generation_ == Generation::kTemperature) return base_.prompt;
    if (generation_ == Generation::kSelfRefinement)
      return WithTexts(base_.prompt, "Your last answer:", {before.back()},
                       "Find its weakness and give a better answer of the same form.", limit_);
    return WithTexts(base_.prompt, "Answers given so far:", before,
                     "Give another answer of the same form that takes a different way than all of these.", limit_);
  }

  void Add(CallAnswer answer) {
    ProposedCandidate c;
    c.calls.push_back(calls_++);
    if (answer.kind == CallAnswer::Kind::kText) {
      c.outcome = read_(answer.text);
      c.reply = std::move(answer.text);
    } else {
      c.call_failed = answer.kind == CallAnswer::Kind::kFailed;
      c.outcome.kind = ReplyKind::kEmpty;
      c.outcome.reason = std::move(answer.reason);
    }
    result_.candidates.push_back(std::move(c));
  }

  std::vector<size_t> Usable() const {
    std::vector<size_t> out;
    for (size_t i = 0; i < result_.candidates.size(); ++i) {
      if (result_.candidates[i].outcome.kind == ReplyKind::kApplied) out.push_back(i);
    }
    return out;
  }

  std::vector<ProposerCall> Select() {
    const std::vector<size_t> usable = Usable();
    stage_ = Stage::kDone;
    if (usable.empty()) return {};
    result_.selected = selection_ == Selection::kFirst ? usable.front() : usable.back();
    if (usable.size() == 1) return {};
    std::vector<std::string> texts;
    for (size_t i : usable) texts.push_back(ValuesText(result_.candidates[i].outcome));
    if (selection_ == Selection::kMajority) {
      result_.selected = usable[MajorityText(texts).value_or(usable.size() - 1)];
      return {};
    }
    if (selection_ == Selection::kBestOfN) {
      const Prompt judge = WithTexts(
          base_.prompt, "Proposals for the variables:", texts,
          "Do not make a new proposal: say which of these serves the feedback best. Answer with one JSON object: "
          "{\"reason\": \"why\", \"best\": its number}",
          limit_);
      return Start(
          Stage::kWaitSelect,
          {{judge, 0.0,
            Cat(R"({"type":"object","properties":{"reason":{"type":"string"},"best":{"type":"integer","minimum":1,"maximum":)",
                texts.size(), R"(}},"required":["reason","best"],"additionalProperties":false})"),
            "choice"}});
    }
    if (selection_ == Selection::kMixture) {
      Prompt merge =
          WithTexts(base_.prompt, "Proposals for the variables:", texts,
                    "Take what is best in each and give one answer of the same form as they were given.", limit_);
      return Start(Stage::kWaitSelect, {{std::move(merge), 0.0, base_.response_schema, "mixture"}});
    }
    return {};
  }

  void Choose(CallAnswer answer) {
    if (selection_ == Selection::kBestOfN) {
      ++calls_;
      const std::vector<size_t> usable = Usable();
      if (auto choice = ReadChoice(answer.text, usable.size())) result_.selected = usable[*choice - 1];
      return;
    }
    Add(std::move(answer));  // the mixture is one more candidate
    if (result_.candidates.back().outcome.kind == ReplyKind::kApplied) result_.selected = result_.candidates.size() - 1;
  }

  const uint32_t k_;
  const std::optional<double> top_;
  const double low_;
  const uint32_t limit_;
  const Generation generation_;
  const Selection selection_;
  const CandidateRequest base_;
  const std::function<ReplyOutcome(std::string_view)> read_;
  Stage stage_ = Stage::kStart;
  size_t calls_ = 0;
  std::vector<std::string> experts_;
  ProposerResult result_;
};

}  // namespace

std::unique_ptr<Proposer> MakeRounds(const ProposerSpec& spec, CandidateRequest base,
                                     std::function<ReplyOutcome(std::string_view)> read) {
  return std::make_unique<Rounds>(spec, std::move(base), std::move(read));
}

std::optional<double> SpreadTemperature(std::optional<double> top, double low, uint32_t i, uint32_t k) {
  if (k == 1) return top;
  const double hottest = std::max(top.value_or(1.0), low);
  return low + (hottest - low) * (k - 1 - i) / (k - 1);
}

std::optional<size_t> ReadChoice(std::string_view reply, size_t n) {
  const std::string visible = WithoutThoughts(reply);
  for (size_t at = visible.find('{'); at != std::string::npos; at = visible.find('{', at + 1)) {
    size_t end = 0;
    int64_t work = 1 << 20;
    auto value = ParseJsonPrefix(std::string_view(visible).substr(at), {.lenient = true}, &end, nullptr, &work);
    if (!value) continue;
    const JsonValue* best = value->Find("best");
    if (best == nullptr) continue;
    const std::string text = PythonStr(*best);
    if (!text.empty() && text.size() < 8 &&
        std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      if (const size_t number = std::stoul(text); number >= 1 && number <= n) return number;
    }
  }
  std::optional<size_t> last;
  for (size_t i = 0; i < visible.size();) {
    if (visible[i] < '0' || visible[i] > '9') {
      ++i;
      continue;
    }
    size_t number = 0, digits = 0;
    for (; i < visible.size() && visible[i] >= '0' && visible[i] <= '9'; ++i, ++digits)
      number = std::min<size_t>(number * 10 + static_cast<size_t>(visible[i] - '0'), 1000000);
    if (number >= 1 && number <= n) last = number;
  }
  return last;
}

std::vector<std::string> ReadExperts(std::string_view reply, size_t n) {
  const std::string visible = WithoutThoughts(reply);
  std::vector<std::string> out;
  for (size_t begin = 0; begin < visible.size() && out.size() < n;) {
    const size_t end = std::min(visible.find('\n', begin), visible.size());
    std::string_view line = Strip(std::string_view(visible).substr(begin, end - begin));
    while (!line.empty() && (line.front() == '-' || line.front() == '*' || line.front() == '.' || line.front() == ')' ||
                             line.front() == ' ' || (line.front() >= '0' && line.front() <= '9')))
      line.remove_prefix(1);
    if (!line.empty()) out.emplace_back(line.substr(0, 120));
    begin = end + 1;
  }
  return out;
}

}  // namespace optod::trace
