#include "server/services/llm_run.h"

#include <algorithm>

#include "base/sha256.h"
#include "base/status.h"
#include "trace/llm/gateway.h"

namespace optod::services {

using engine::Effects;
using engine::LiveSession;
using engine::TraceFamily;

namespace {

/// Why an answered call has no text, or "": an empty reply is an outcome, not an error.
std::string EmptyReason(const absl::Status& error) {
  return trace::LlmErrorReason(error) == "empty" ? std::string(error.message()) : std::string();
}

trace::CallAnswer AnswerOf(const v1::ReceivedReply& reply) {
  if (!reply.text().empty()) return {trace::CallAnswer::Kind::kText, reply.text(), ""};
  return {trace::CallAnswer::Kind::kEmpty, "", reply.reason()};
}

TraceFamily::CallCost CostOf(const v1::ReceivedReply& reply) {
  return {true, reply.prompt_tokens(), reply.completion_tokens(), reply.usd()};
}

}  // namespace

LlmRun::LlmRun(engine::Engine& engine, engine::Caller caller, std::string session, TraceFamily::Proposal& proposal,
               std::shared_ptr<std::atomic<bool>> cancelled)
    : engine_(engine),
      services_(*engine.context().trace),
      caller_(std::move(caller)),
      session_(std::move(session)),
      proposal_(proposal),
      cancelled_(std::move(cancelled)),
      budget_(proposal.limits, proposal.used) {}

void LlmRun::Start(Progress progress, std::function<void(Result)> done) {
  progress_ = std::move(progress);
  done_ = std::move(done);
  NextRound();
}

void LlmRun::NextRound() {
  calls_ = proposal_.proposer->Next();
  if (calls_.empty()) {
    result_.made = proposal_.proposer->Take();
    if (!any_answered_) result_.failure = first_error_;
    return done_(std::move(result_));
  }
  first_call_ = result_.costs.size();
  if (proposal_.client_model) return AnswerByClient();
  result_.costs.resize(first_call_ + calls_.size());
  answers_.assign(calls_.size(), {});
  waiting_ = calls_.size();
  Lookup();
}

void LlmRun::AnswerByClient() {
  const std::vector<std::string>& given = proposal_.given;
  if (given.size() < first_call_ + calls_.size()) {
    const size_t known = std::max(given.size(), first_call_) - first_call_;
    result_.pending.assign(calls_.begin() + static_cast<ptrdiff_t>(known), calls_.end());
    return done_(std::move(result_));
  }
  std::vector<trace::CallAnswer> answers;
  for (size_t i = 0; i < calls_.size(); ++i) {
    const std::string& text = given[first_call_ + i];
    const auto kind = text.empty() ? trace::CallAnswer::Kind::kEmpty : trace::CallAnswer::Kind::kText;
    answers.push_back({kind, text, text.empty() ? "the reply is empty" : ""});
    result_.costs.push_back({true, 0, 0, 0});
  }
  any_answered_ = true;
  proposal_.proposer->Answer(std::move(answers));
  NextRound();
}

std::string LlmRun::KeyOf(size_t i) const {
  const size_t number = first_call_ + i;
  if (!proposal_.scope.empty()) return Cat(proposal_.scope, "/", number);
  const trace::ProposerCall& call = calls_[i];
  Sha256 hash;
  hash.Update(Cat(proposal_.first_seed + static_cast<int64_t>(number), " ", call.prompt.system.size(), "\n",
                  call.prompt.system, call.prompt.user));
  const Sha256Digest digest = hash.Finish();
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

void LlmRun::Lookup() {
  std::vector<std::string> keys;
  for (size_t i = 0; i < calls_.size(); ++i) keys.push_back(KeyOf(i));
  engine_.Read<std::vector<v1::ReceivedReply>>(
      caller_, session_,
      [keys](LiveSession& session) -> absl::StatusOr<std::vector<v1::ReceivedReply>> {
        ASSIGN_OR_RETURN(TraceFamily * family, engine::AsTrace(session));
        std::vector<v1::ReceivedReply> out(keys.size());
        for (size_t i = 0; i < keys.size(); ++i) {
          if (const v1::ReceivedReply* found = family->replies().Find(keys[i])) out[i] = *found;
        }
        return out;
      },
      [self = shared_from_this()](absl::StatusOr<std::vector<v1::ReceivedReply>> received) {
        for (size_t i = 0; i < self->answers_.size(); ++i) {
          self->services_.llm_pool->Post([self, i, reply = received.ok() ? (*received)[i] : v1::ReceivedReply()] {
            if (!reply.key().empty()) return self->Answered(i, AnswerOf(reply), CostOf(reply));
            self->AskModel(i);
          });
        }
      });
}

void LlmRun::AskModel(size_t i) {
  const trace::ProposerCall& call = calls_[i];
  trace::ChatRequest chat;
  if (!call.prompt.system.empty()) chat.messages.push_back({"system", call.prompt.system});
  chat.messages.push_back({"user", call.prompt.user});
  chat.temperature = call.temperature;
  chat.max_tokens = proposal_.max_tokens;
  chat.seed = (proposal_.first_seed + static_cast<int64_t>(first_call_ + i)) & 0x7fffffff;
  if (!call.response_schema.empty()) chat.json_schema = trace::JsonSchema{"suggestion", call.response_schema};
  trace::CallOptions options;
  options.user = caller_.user;
  options.budget = &budget_;
  options.cancelled = cancelled_.get();
  options.cassette = services_.cassette;
  options.purpose = Cat(session_, " ", KeyOf(i));
  auto outcome = services_.gateway->Exchange(proposal_.endpoint, chat, options);
  const absl::Status error = outcome.ok() ? outcome->error : outcome.status();
  const std::string empty = EmptyReason(error);
  if (!error.ok() && empty.empty()) {
    {
      std::lock_guard lock(mutex_);
      if (first_error_.ok()) first_error_ = error;
    }
    return Answered(i, {trace::CallAnswer::Kind::kFailed, "", std::string(error.message())}, {});
  }
  v1::ReceivedReply reply;
  reply.set_key(KeyOf(i));
  reply.set_reason(empty);
  if (outcome.ok()) {
    if (empty.empty()) reply.set_text(outcome->reply.text);
    reply.set_prompt_tokens(outcome->reply.usage.prompt_tokens);
    reply.set_completion_tokens(outcome->reply.usage.completion_tokens);
    reply.set_usd(outcome->reply.usage.usd);
  }
  Keep(i, std::move(reply));
}

void LlmRun::Keep(size_t i, v1::ReceivedReply reply) {
  engine_.Mutate<v1::ReceivedReply>(
      caller_, session_, "ReceivedReply", "", "",
      [reply](LiveSession& session, v1::ReceivedReply* out) -> absl::StatusOr<Effects> {
        ASSIGN_OR_RETURN(TraceFamily * family, engine::AsTrace(session));
        Effects effects;
        family->replies().Add(session, reply, &effects);
        *out = reply;
        return effects;
      },
      [self = shared_from_this(), i, reply](absl::StatusOr<v1::ReceivedReply> kept) {
        // A reply that could not be kept is used all the same: it is paid for. The step that uses it will meet the
        // store's error.
        (void)kept;
        self->services_.llm_pool->Post([self, i, reply] { self->Answered(i, AnswerOf(reply), CostOf(reply)); });
      });
}

void LlmRun::Answered(size_t i, trace::CallAnswer answer, TraceFamily::CallCost cost) {
  size_t left = 0, known = 0;
  {
    std::lock_guard lock(mutex_);
    any_answered_ = any_answered_ || cost.answered;
    answers_[i] = std::move(answer);
    result_.costs[first_call_ + i] = cost;
    left = --waiting_;
    known = result_.costs.size();
  }
  if (progress_) progress_(known - left, known, calls_[i].label);
  if (left > 0) return;
  proposal_.proposer->Answer(std::move(answers_));
  NextRound();
}

}  // namespace optod::services
