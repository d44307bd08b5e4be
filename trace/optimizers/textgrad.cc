#include "trace/optimizers/textgrad.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/status.h"
#include "trace/optimizers/builtin_ops.h"
#include "trace/optimizers/fit.h"
#include "trace/optimizers/multi.h"
#include "trace/optimizers/python_text.h"
#include "trace/optimizers/reply_internal.h"

namespace optod::trace {
namespace {

constexpr std::string_view kOpen = "<IMPROVED_VARIABLE>", kClose = "</IMPROVED_VARIABLE>";
constexpr std::string_view kBackwardSystem =
    "You are one step of a chain that passes criticism backwards through a program. You are shown one call of it, its "
    "inputs and its result, and the "
    "criticism of the result. Say what should change in one of its inputs so that the result would be better. Be "
    "concrete and short. Do not write the "
    "new input, only the criticism of it.";
constexpr std::string_view kMergeSystem =
    "You are given several criticisms of one value of a program, from the places where it is used. Merge them into "
    "one, keeping all that is said, "
    "without repeating anything.";

// What is needed of a node when the graph is gone.
struct Place {
  std::string py_name, type, text, call, documentation;
  std::vector<NodeId> sources;      // inputs that lead to a parameter, and hidden parameters
  std::vector<std::string> inputs;  // as shown: `x: (int) a0=3`
  uint32_t level = 0;
};

std::string UpdateSystem() {
  return Cat(
      "You improve one variable of a program by the criticism that it got. Keep what is good in it. Answer with your "
      "thoughts in a few words, then the "
      "whole new value between ",
      kOpen, " and ", kClose,
      ", written as it is, without quotes or escapes. If the criticism asks for nothing, repeat "
      "the value. The new value has the type of the old one and obeys its constraint.");
}

class TextGrad final : public Proposer {
 public:
  TextGrad(const ProposerSpec& spec, const Graph& graph, const FeedbackStore& feedback, const Subgraph& sub,
           const std::vector<NodeId>& parameters)
      : k_(spec.candidates),
        top_(spec.temperature),
        low_(spec.temperature_low),
        limit_(spec.render.max_prompt_tokens),
        instruction_(spec.problem.instruction),
        reply_(spec.reply),
        parameters_(ReplyParameters(graph, parameters)),
        order_(parameters) {
    Places(graph, sub);
    for (const FeedbackEntry& e : feedback.entries()) {
      if (places_.contains(e.output)) feedback_[e.output].push_back(e.text);
    }
    for (const auto& [id, place] : places_) levels_.insert(place.level);
    next_level_ = levels_.empty() ? 0 : *levels_.rbegin();
  }

  size_t ExpectedCalls() const {
    size_t calls = 0;
    std::map<NodeId, size_t> arrives;
    for (const auto& [id, texts] : feedback_) arrives[id] += texts.size();
    for (const auto& [id, place] : places_) {
      calls += place.sources.size();
      for (NodeId s : place.sources) ++arrives[s];
    }
    for (const auto& [id, n] : arrives) calls += n > 1;
    for (size_t p = 0; p < order_.size(); ++p)
      calls += parameters_[p].trainable && arrives.contains(order_[p]) ? k_ : 0;
    return calls;
  }
  bool Reaches() const {
    for (size_t p = 0; p < order_.size(); ++p) {
      if (parameters_[p].trainable && places_.contains(order_[p])) return true;
    }
    return false;
  }

  std::vector<ProposerCall> Next() override {
    pending_.clear();
    while (pending_.empty() && stage_ != Stage::kDone) Advance();
    std::vector<ProposerCall> out;
    for (Pending& p : pending_) out.push_back(std::move(p.call));
    return out;
  }

  void Answer(std::vector<CallAnswer> answers) override {
    for (size_t i = 0; i < answers.size(); ++i) Use(pending_[i], std::move(answers[i]), calls_++);
  }

  ProposerResult Take() override {
    for (uint32_t c = 0; c < k_; ++c) TakeCandidate(c);
    for (size_t i = 0; i < result_.candidates.size() && !result_.selected; ++i) {
      if (result_.candidates[i].outcome.kind == ReplyKind::kApplied) result_.selected = i;
    }
    return std::move(result_);
  }

 private:
  enum class Stage { kMerge, kEdges, kUpdateMerge, kUpdate, kDone };
  struct Pending {
    enum class Kind { kMerge, kEdge, kUpdate } kind;
    NodeId node = kNoNode, source = kNoNode;
    uint32_t candidate = 0;
    ProposerCall call;
  };
  struct Update {
    CallAnswer answer;
    size_t call = 0;
  };

  // Nodes on a path to a parameter, with their sources.
  void Places(const Graph& g, const Subgraph& sub) {
    const std::set<NodeId> wanted(sub.parameters.begin(), sub.parameters.end());
    std::set<NodeId> on_path = wanted;
    for (NodeId id : sub.nodes) {
      Place place;
      const auto parents = g.Parents(id);
      for (size_t i = 0; i < parents.size(); ++i) {
        place.inputs.push_back(Cat(g.Argument(id, i), ": (", g.TypeName(parents[i]), ") ", g.PyName(parents[i]), "=",
                                   ShortValue(g.ValueText(parents[i]))));
        const bool again = std::find(place.sources.begin(), place.sources.end(), parents[i]) != place.sources.end();
        if (on_path.contains(parents[i]) && !again) place.sources.push_back(parents[i]);
      }
      for (NodeId h : g.HiddenParameters(id)) {
        if (wanted.contains(h)) place.sources.push_back(h);
      }
      if (place.sources.empty() && !wanted.contains(id)) continue;
      on_path.insert(id);
      Describe(g, id, place);
      places_.emplace(id, std::move(place));
    }
    for (NodeId id : sub.hidden) {
      Place place;
      Describe(g, id, place);
      places_.emplace(id, std::move(place));
    }
  }

  static void Describe(const Graph& g, NodeId id, Place& place) {
    place.py_name = g.PyName(id);
    place.type = g.IsCode(id) ? "code" : g.TypeName(id);
    place.text = g.ValueText(id);
    place.level = g.Level(id);
    place.call = g.FunctionName(id);
    place.documentation = g.Description(id).value_or(BuiltinOpText(g.Op(id)));
  }

  void Advance() {
    switch (stage_) {
      case Stage::kMerge:
        stage_ = Stage::kEdges;
        ForLevel([&](NodeId id, const Place& place) {
          if (!place.sources.empty()) Merge(id);
        });
        return;
      case Stage::kEdges:
        ForLevel([&](NodeId id, const Place& place) {
          for (NodeId source : place.sources) Edge(id, place, source);
        });
        Descend();
        return;
      case Stage::kUpdateMerge:
        stage_ = Stage::kUpdate;
        for (NodeId id : order_) Merge(id);
        return;
      case Stage::kUpdate:
        stage_ = Stage::kDone;
        for (size_t p = 0; p < order_.size(); ++p) {
          for (uint32_t c = 0; c < k_; ++c) Rewrite(p, c);
        }
        return;
      case Stage::kDone:
        return;
    }
  }

  void Descend() {
    auto it = levels_.find(next_level_);
    if (it == levels_.begin()) {
      stage_ = Stage::kUpdateMerge;
      return;
    }
    next_level_ = *std::prev(it);
    stage_ = Stage::kMerge;
  }

  template <typename F>
  void ForLevel(F visit) {
    for (const auto& [id, place] : places_) {
      if (place.level == next_level_ && feedback_.contains(id)) visit(id, place);
    }
  }

  // Shortens `body`'s criticism until the prompt fits.
  Prompt Fitted(std::string system, const std::function<std::string(uint32_t)>& user) const {
    Prompt prompt;
    prompt.system = std::move(system);
    for (uint32_t limit : {0u, 8000u, 4000u, 2000u, 1000u, 400u, 100u}) {
      prompt.user = user(limit);
      if (limit_ == 0 || PromptTokens(prompt) <= limit_) return prompt;
    }
    prompt.over_limit = true;
    return prompt;
  }

  void Push(Pending::Kind kind, NodeId node, NodeId source, uint32_t candidate, Prompt prompt,
            std::optional<double> temperature, std::string label) {
    pending_.push_back({kind, node, source, candidate, {std::move(prompt), temperature, "", std::move(label)}});
  }

  void Merge(NodeId id) {
    auto it = feedback_.find(id);
    if (it == feedback_.end() || it->second.size() < 2) return;
    const Place& place = places_.at(id);
    Prompt prompt = Fitted(std::string(kMergeSystem), [&](uint32_t limit) {
      std::string out = Cat("The value: (", place.type, ") ", place.py_name, "=", ShortValue(place.text), "\n");
      for (size_t i = 0; i < it->second.size(); ++i)
        out += Cat("Criticism ", i + 1, ": ", CutMiddle(it->second[i], limit), "\n");
      return out + "The one criticism:\n";
    });
    Push(Pending::Kind::kMerge, id, kNoNode, 0, std::move(prompt), top_, Cat("merge at ", place.py_name));
  }

  void Edge(NodeId id, const Place& place, NodeId source) {
    const Place& input = places_.at(source);
    Prompt prompt = Fitted(std::string(kBackwardSystem), [&](uint32_t limit) {
      std::string out = Goal();
      out += Cat("The call: ", place.py_name, " = ", place.call, "(...)\n");
      if (!place.documentation.empty()) out += Cat("What it does: ", place.documentation, "\n");
      out += "Its inputs:\n";
      for (const std::string& line : place.inputs) out += line + "\n";
      out += Cat("Its result: (", place.type, ") ", place.py_name, "=", ShortValue(place.text),
                 "\nCriticism of the result: ", CutMiddle(feedback_.at(id).front(), limit), "\nWhat should change in ",
                 input.py_name, "?\n");
      return out;
    });
    Push(Pending::Kind::kEdge, id, source, 0, std::move(prompt), top_,
         Cat("feedback ", place.py_name, " to ", input.py_name));
  }

  void Rewrite(size_t p, uint32_t c) {
    const NodeId id = order_[p];
    auto it = feedback_.find(id);
    if (it == feedback_.end() || !parameters_[p].trainable) return;
    const ReplyParameter& parameter = parameters_[p];
    const std::string rule = ConstraintText(parameter.constraint);
    Prompt prompt = Fitted(UpdateSystem(), [&](uint32_t limit) {
      return Cat(Goal(), "The variable: (", places_.at(id).type, ") ", parameter.py_name, "\nIts value:\n",
                 parameter.text, "\n", rule.empty() ? std::string() : Cat("Its constraint: ", rule, "\n"),
                 "Criticism:\n", CutMiddle(it->second.front(), limit), "\n");
    });
    Push(Pending::Kind::kUpdate, id, kNoNode, c, std::move(prompt), SpreadTemperature(top_, low_, c, k_),
         Cat("variable ", parameter.py_name, ", candidate ", c + 1, " of ", k_));
  }

  std::string Goal() const {
    return instruction_.empty() ? std::string() : Cat("The aim of the program: ", instruction_, "\n");
  }

  void Use(const Pending& p, CallAnswer answer, size_t call) {
    if (p.kind == Pending::Kind::kUpdate) {
      updates_[{p.candidate, p.node}] = {std::move(answer), call};
      return;
    }
    shared_calls_.push_back(call);
    const bool usable = answer.kind == CallAnswer::Kind::kText;
    const std::string text = usable ? std::string(Strip(WithoutThoughts(answer.text))) : std::string();
    if (p.kind == Pending::Kind::kMerge) {
      std::vector<std::string>& all = feedback_[p.node];
      // A merge that failed: the criticisms one below the other say the same, at greater length.
      std::string joined;
      for (const std::string& one : all) joined += (joined.empty() ? "" : "\n") + one;
      all = {text.empty() ? joined : text};
      return;
    }
    if (!text.empty()) feedback_[p.source].push_back(text);
    if (!usable) failures_.push_back(answer.reason);
  }

  void TakeCandidate(uint32_t c) {
    ProposedCandidate out;
    out.calls = shared_calls_;
    std::vector<std::pair<std::string, std::string>> values;
    std::vector<KeyResult> missing;
    size_t asked = 0, failed = 0, empty = 0;
    std::string reason;
    for (size_t p = 0; p < order_.size(); ++p) {
      auto it = updates_.find({c, order_[p]});
      if (it == updates_.end()) continue;
      ++asked;
      out.calls.push_back(it->second.call);
      const CallAnswer& answer = it->second.answer;
      if (answer.kind != CallAnswer::Kind::kText) {
        ++(answer.kind == CallAnswer::Kind::kEmpty ? empty : failed);
        reason = answer.reason;
        missing.push_back({parameters_[p].py_name, KeyOutcome::kCastFailed, static_cast<int>(p), parameters_[p].text,
                           "", std::nullopt, answer.reason});
        continue;
      }
      out.reply += Cat(out.reply.empty() ? "" : "\n", parameters_[p].py_name, ":\n", answer.text);
      if (auto value = ImprovedVariable(answer.text)) {
        values.emplace_back(parameters_[p].py_name, *std::move(value));
      } else {
        missing.push_back({parameters_[p].py_name, KeyOutcome::kCastFailed, static_cast<int>(p), parameters_[p].text,
                           answer.text.substr(0, 200), std::nullopt, Cat("no complete ", kOpen, " block")});
      }
    }
    if (asked == 0) {
      out.call_failed = !failures_.empty();
      out.outcome.kind = failures_.empty() ? ReplyKind::kNothingApplied : ReplyKind::kUnparsable;
      out.outcome.reason = failures_.empty() ? "no feedback reached a parameter" : failures_.front();
    } else if (asked == failed) {
      out.call_failed = true;
      out.outcome.kind = ReplyKind::kUnparsable;
      out.outcome.reason = reason;
    } else if (values.empty()) {
      out.outcome.kind = asked == empty + failed ? ReplyKind::kEmpty : ReplyKind::kUnparsable;
      out.outcome.reason = empty > 0 ? reason : Cat("no reply holds a complete ", kOpen, " block");
    } else {
      out.outcome = JudgeTexts({}, values, parameters_, reply_);
    }
    out.outcome.keys.insert(out.outcome.keys.end(), missing.begin(), missing.end());
    result_.candidates.push_back(std::move(out));
  }

  const uint32_t k_;
  const std::optional<double> top_;
  const double low_;
  const uint32_t limit_;
  const std::string instruction_;
  const ReplyOptions reply_;
  const std::vector<ReplyParameter> parameters_;
  const std::vector<NodeId> order_;  // of parameters_
  std::map<NodeId, Place> places_;
  std::set<uint32_t> levels_;
  std::map<NodeId, std::vector<std::string>> feedback_;
  Stage stage_ = Stage::kMerge;
  uint32_t next_level_ = 0;
  std::vector<Pending> pending_;
  std::map<std::pair<uint32_t, NodeId>, Update> updates_;  // (candidate, parameter)
  std::vector<size_t> shared_calls_;
  std::vector<std::string> failures_;
  size_t calls_ = 0;
  ProposerResult result_;
};

}  // namespace

std::optional<std::string> ImprovedVariable(std::string_view reply) {
  const std::string visible = WithoutThoughts(reply);
  const size_t close = visible.rfind(kClose);
  if (close == std::string::npos) return std::nullopt;
  const size_t open = visible.rfind(kOpen, close);
  if (open == std::string::npos) return std::nullopt;
  std::string_view value = std::string_view(visible).substr(open + kOpen.size(), close - open - kOpen.size());
  if (!value.empty() && value.front() == '\n') value.remove_prefix(1);
  if (!value.empty() && value.back() == '\n') value.remove_suffix(1);
  return std::string(value);
}

std::string ShortValue(std::string_view text, size_t words, uint32_t limit) {
  std::vector<std::pair<size_t, size_t>> found;
  for (size_t i = 0; i < text.size();) {
    while (i < text.size() && (text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r')) ++i;
    const size_t begin = i;
    while (i < text.size() && !(text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r')) ++i;
    if (i > begin) found.emplace_back(begin, i);
  }
  std::string out(text);
  if (found.size() > 2 * words)
    out = Cat(text.substr(0, found[words - 1].second), " (...) ", text.substr(found[found.size() - words].first));
  return CutMiddle(out, limit);
}

absl::StatusOr<std::unique_ptr<Proposer>> MakeTextGrad(const ProposerSpec& spec, const Graph& graph,
                                                       const FeedbackStore& feedback,
                                                       const std::vector<NodeId>& parameters) {
  if (feedback.empty()) return FailedPrecondition("feedback: none was given since the last step; call backward first");
  std::vector<NodeId> trainable;
  for (NodeId id : parameters) {
    if (graph.Contains(id) && graph.IsParameter(id) && graph.Trainable(id)) trainable.push_back(id);
  }
  if (trainable.empty()) return FailedPrecondition("parameters: none is trainable");
  ASSIGN_OR_RETURN(const Subgraph sub, ComputeSubgraph(graph, feedback.Outputs(), trainable));
  auto out = std::make_unique<TextGrad>(spec, graph, feedback, sub, parameters);
  if (!out->Reaches()) return FailedPrecondition("feedback: reaches no trainable parameter");
  if (const size_t calls = out->ExpectedCalls(); calls > kMostTextGradCalls) {
    return FailedPrecondition("textgrad: this run takes ", calls, " calls of the model (one an edge); at most ",
                              kMostTextGradCalls, " are made; use optoprime");
  }
  return std::unique_ptr<Proposer>(std::move(out));
}

}  // namespace optod::trace
