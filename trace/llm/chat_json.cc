#include "trace/llm/chat_json.h"

#include "base/status.h"
#include "trace/llm/error.h"
#include "trace/llm/json_parse.h"

namespace optod::trace {
namespace {

/// "content" is a string, or (multi-part answers) a list of {"type":"text","text":..}.
std::string Content(const Json& json) {
  if (!json.is_array()) return Text(json);
  std::string joined;
  for (const Json& part : json) joined += part.is_string() ? Text(part) : Text(Member(part, "text"));
  return joined;
}

bool IsUtf8(const std::string& text) {
  try {
    (void)Json(text).dump();
    return true;
  } catch (const Json::exception&) {
    return false;
  }
}

Json Fields(const std::string& model, const ChatRequest& request) {
  Json json;
  json["model"] = model;
  Json& messages = json["messages"] = Json::array();
  for (const ChatMessage& message : request.messages)
    messages.push_back({{"role", message.role}, {"content", message.content}});
  if (request.temperature) json["temperature"] = *request.temperature;
  json["max_tokens"] = request.max_tokens;
  if (request.seed) json["seed"] = *request.seed;
  return json;
}

ChatOutcome Unusable(ChatReply reply, absl::StatusCode code, const char* reason, const std::string& message) {
  return {std::move(reply), LlmError(code, reason, message)};
}

}  // namespace

absl::Status CheckRequest(const ChatRequest& request) {
  const auto bad = [](const auto&... parts) {
    return LlmError(absl::StatusCode::kInvalidArgument, "bad_request", Cat("llm request: ", parts...));
  };
  if (request.messages.empty()) return bad("messages: is empty; must hold at least one");
  for (size_t i = 0; i < request.messages.size(); ++i) {
    const std::string& role = request.messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return bad("messages[", i, "].role: must be system, user or assistant");
    }
    if (!IsUtf8(request.messages[i].content)) return bad("messages[", i, "].content: is not UTF-8");
  }
  if (request.temperature && !(*request.temperature >= 0 && *request.temperature <= 2)) {
    return bad("temperature: ", *request.temperature, " is out of range; must be 0 to 2");
  }
  if (request.max_tokens < 1) return bad("max_tokens: ", request.max_tokens, " is too small; must be >= 1");
  if (request.seed && *request.seed < 0) return bad("seed: ", *request.seed, " is negative; must be >= 0");
  if (request.stop.size() > 4) return bad("stop: ", request.stop.size(), " entries; at most 4");
  for (const std::string& stop : request.stop) {
    if (stop.empty() || !IsUtf8(stop)) return bad("stop: an entry is empty or not UTF-8");
  }
  if (request.json_schema) {
    const std::string& name = request.json_schema->name;
    const bool named =
        !name.empty() && name.size() <= 64 &&
        name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == std::string::npos;
    if (!named) return bad("json_schema.name: must be 1 to 64 of A-Z, a-z, 0-9, _ and -");
    if (!ReadJson(request.json_schema->schema).is_object()) return bad("json_schema.schema: is not a JSON object");
  }
  return absl::OkStatus();
}

std::string EncodeRequest(const std::string& model, const ChatRequest& request, SchemaForm form, bool stream) {
  Json json = Fields(model, request);
  if (request.json_schema && form == SchemaForm::kSchema) {
    json["response_format"] = {
        {"type", "json_schema"},
        {"json_schema",
         {{"name", request.json_schema->name}, {"strict", true}, {"schema", ReadJson(request.json_schema->schema)}}}};
  } else if (request.json_schema && form == SchemaForm::kObject) {
    json["response_format"] = {{"type", "json_object"}};
  }
  if (!request.stop.empty()) json["stop"] = request.stop;
  if (stream) {
    json["stream"] = true;
    json["stream_options"] = {{"include_usage", true}};
  }
  return Dump(json);
}

std::string CanonicalRequest(const std::string& model, const ChatRequest& request) {
  Json json = Fields(model, request);
  if (request.json_schema) {
    json["schema"] = {{"name", request.json_schema->name}, {"schema", ReadJson(request.json_schema->schema)}};
  }
  if (!request.stop.empty()) json["stop"] = request.stop;
  return Dump(json);
}

ChatOutcome ParseReply(const std::string& who, const std::string& body, std::span<const Secret> secrets) {
  const Json json = ReadJson(body);
  ChatReply reply;
  const auto malformed = [&](const char* what) {
    return Unusable(reply, absl::StatusCode::kFailedPrecondition, "malformed",
                    Cat(who, ": ", what, "; it sent: ", Quote(body, secrets)));
  };
  if (body.find_first_not_of(" \t\r\n") == std::string::npos) {
    return Unusable(reply, absl::StatusCode::kFailedPrecondition, "malformed",
                    Cat(who, ": the answer is empty (200 without a body)"));
  }
  if (json.is_discarded()) return malformed("the answer is not JSON");
  const Json& usage = Member(json, "usage");
  reply.usage.prompt_tokens = Count(Member(usage, "prompt_tokens"));
  reply.usage.completion_tokens = Count(Member(usage, "completion_tokens"));
  reply.model = Text(Member(json, "model"));
  const Json& choices = Member(json, "choices");
  if (!choices.is_array() || choices.empty()) return malformed("the answer has no choices");
  const Json& message = Member(choices[0], "message");
  if (!message.is_object()) return malformed("the first choice has no message");
  reply.finish_reason = Text(Member(choices[0], "finish_reason"));
  reply.text = Content(Member(message, "content"));
  if (reply.text.empty()) {
    const std::string refusal = Text(Member(message, "refusal"));
    const std::string why = !refusal.empty()
                                ? Cat("the model refused: ", Quote(refusal, secrets))
                                : Cat("the reply is empty (finish_reason ",
                                      reply.finish_reason.empty() ? "none" : Quote(reply.finish_reason, secrets, 40),
                                      ", ", reply.usage.completion_tokens, " tokens)");
    return Unusable(reply, absl::StatusCode::kUnavailable, "empty", Cat(who, ": ", why));
  }
  return {std::move(reply), absl::OkStatus()};
}

std::string ErrorText(const std::string& body) {
  const Json json = ReadJson(body);
  const Json& error = Member(json, "error");
  for (const Json* candidate : {&Member(error, "message"), &error, &Member(json, "message"), &Member(json, "detail")}) {
    if (candidate->is_string()) return candidate->get<std::string>();
  }
  return body;
}

}  // namespace optod::trace
