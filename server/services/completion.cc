#include "server/services/completion.h"

#include "base/status.h"
#include "server/engine/trace_services.h"
#include "trace/llm/gateway.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Done;
using engine::Effects;
using engine::LiveSession;

trace::ChatRequest ChatOf(const v1::CompleteRequest& request) {
  trace::ChatRequest chat;
  for (const v1::ChatTurn& turn : request.messages()) chat.messages.push_back({turn.role(), turn.content()});
  if (request.has_temperature()) chat.temperature = request.temperature();
  if (request.max_tokens() != 0) chat.max_tokens = request.max_tokens();
  if (request.has_seed()) chat.seed = request.seed();
  chat.stop.assign(request.stop().begin(), request.stop().end());
  if (!request.schema().empty())
    chat.json_schema =
        trace::JsonSchema{request.schema_name().empty() ? "reply" : request.schema_name(), request.schema()};
  return chat;
}

v1::CompleteResponse ResponseOf(const trace::ChatReply& reply) {
  v1::CompleteResponse out;
  out.set_text(reply.text);
  out.set_finish_reason(reply.finish_reason);
  out.set_model(reply.model);
  out.set_endpoint(reply.endpoint);
  out.set_replayed(reply.replayed);
  out.set_cached(reply.cached);
  out.mutable_usage()->set_llm_calls(reply.cached ? 0 : 1);
  out.mutable_usage()->set_llm_prompt_tokens(reply.usage.prompt_tokens);
  out.mutable_usage()->set_llm_completion_tokens(reply.usage.completion_tokens);
  out.mutable_usage()->set_llm_usd(reply.usage.usd);
  return out;
}

/// The gateway's codes are for the server's own use: what concerns the request becomes what a caller can act upon.
absl::Status ForCaller(const absl::Status& status) {
  if (status.ok() || !absl::IsNotFound(status)) return status;
  return FailedPrecondition("llm: ", std::string(status.message()));
}

}  // namespace

void AddUsage(const v1::Usage& more, v1::Usage* usage) {
  usage->set_llm_calls(usage->llm_calls() + more.llm_calls());
  usage->set_llm_prompt_tokens(usage->llm_prompt_tokens() + more.llm_prompt_tokens());
  usage->set_llm_completion_tokens(usage->llm_completion_tokens() + more.llm_completion_tokens());
  usage->set_llm_usd(usage->llm_usd() + more.llm_usd());
}

absl::StatusOr<SessionPurse> PurseOf(const LiveSession& session, int64_t now_ms) {
  if (session.row.state != v1::Session::ACTIVE)
    return FailedPrecondition("session ", session.name().Full(), " is closed");
  RETURN_IF_ERROR(engine::CheckBudget(session.proto, session.row.create_ms, now_ms));
  SessionPurse purse;
  const v1::Budget& budget = session.proto.budget();
  const v1::Usage& usage = session.proto.usage();
  if (budget.max_llm_tokens() > 0) purse.limits.max_tokens = budget.max_llm_tokens();
  if (budget.max_llm_usd() > 0) purse.limits.max_usd = budget.max_llm_usd();
  purse.used = {usage.llm_calls(), usage.llm_prompt_tokens(), usage.llm_completion_tokens(), usage.llm_usd()};
  return purse;
}

void CompleteForSession(engine::Engine& engine, const Caller& caller, const v1::CompleteRequest& request,
                        const std::atomic<bool>* cancelled, std::function<void(std::string_view)> on_text,
                        Done<v1::CompleteResponse> done) {
  auto shared = std::make_shared<Done<v1::CompleteResponse>>(std::move(done));
  auto ask = [&engine, caller, request, cancelled, on_text, shared](SessionPurse purse) {
    engine::TraceServices& services = *engine.context().trace;
    trace::Budget budget(purse.limits, purse.used);
    trace::CallOptions options;
    options.user = caller.user;
    options.budget = &budget;
    options.cancelled = cancelled;
    options.cassette = services.cassette;
    options.timeout = std::chrono::milliseconds(request.timeout_ms());
    options.on_text = on_text;
    const std::string endpoint = request.endpoint().empty() ? "default" : request.endpoint();
    auto reply = services.gateway->Complete(endpoint, ChatOf(request), options);
    // An unusable reply was paid for as well.
    v1::Usage paid;
    if (reply.ok()) {
      paid = ResponseOf(*reply).usage();
    } else {
      const trace::BudgetUse used = budget.used();
      paid.set_llm_calls(used.calls - purse.used.calls);
      paid.set_llm_prompt_tokens(used.prompt_tokens - purse.used.prompt_tokens);
      paid.set_llm_completion_tokens(used.completion_tokens - purse.used.completion_tokens);
      paid.set_llm_usd(used.usd - purse.used.usd);
    }
    if (paid.llm_calls() == 0) {
      if (!reply.ok()) return (*shared)(ForCaller(reply.status()));
      return (*shared)(ResponseOf(*reply));
    }
    Caller internal = caller;
    internal.internal = true;  // paid work is let in during a drain
    engine.Mutate<v1::CompleteResponse>(
        internal, request.session(), "Complete", "", "",
        [reply, paid](LiveSession& session, v1::CompleteResponse* out) -> absl::StatusOr<Effects> {
          AddUsage(paid, session.proto.mutable_usage());
          if (reply.ok()) *out = ResponseOf(*reply);
          return Effects{};
        },
        [reply, shared](absl::StatusOr<v1::CompleteResponse> stored) {
          if (!reply.ok()) return (*shared)(ForCaller(reply.status()));
          (*shared)(std::move(stored));
        });
  };
  engine.Read<SessionPurse>(
      caller, request.session(),
      [&engine](LiveSession& session) { return PurseOf(session, engine.context().clock->NowUnixMs()); },
      [&engine, ask = std::move(ask), shared](absl::StatusOr<SessionPurse> purse) {
        if (!purse.ok()) return (*shared)(purse.status());
        engine.context().trace->llm_pool->Post([ask, purse = *purse] { ask(purse); });
      });
}

}  // namespace optod::services
