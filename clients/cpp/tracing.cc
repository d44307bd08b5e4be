#include "clients/cpp/tracing.h"

#include <charconv>
#include <cmath>

#include "base/status.h"

namespace optod::client {

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  // Python takes the exponent form below 1e-4 and from 1e16 on.
  const double size = std::fabs(value);
  const bool exponent = value != 0 && (size < 1e-4 || size >= 1e16);
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value,
                                 exponent ? std::chars_format::scientific : std::chars_format::fixed)
                       .ptr;
  std::string out(buffer, end);
  if (!exponent && out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string JsonText(const std::string& value) {
  std::string out = "\"";
  for (const char c : value) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20) {
      constexpr char kHex[] = "0123456789abcdef";
      out += "\\u00";
      out += kHex[u >> 4];
      out += kHex[u & 15];
    } else {
      out += c;
    }
  }
  return out + "\"";
}

absl::StatusOr<std::unique_ptr<Tracer>> Tracer::Create(Client& client, const TracerOptions& options) {
  v1::CreateSessionRequest request;
  request.set_session_id(options.session_id);
  v1::OptimizerSpec* optimizer = request.mutable_optimizer();
  optimizer->set_name(options.optimizer);
  optimizer->set_llm(options.llm);
  optimizer->set_seed(options.seed);
  for (const auto& [name, value] : options.hyperparameters) (*optimizer->mutable_hyperparameters())[name] = value;
  if (!options.objective.empty()) (*optimizer->mutable_hyperparameters())["objective"].set_text(options.objective);
  ASSIGN_OR_RETURN(const v1::Session session, client.CreateSession(request));
  return std::unique_ptr<Tracer>(new Tracer(client, session.name()));
}

v1::Node Tracer::Describe(std::string type, std::string text, std::string json) {
  v1::Node node;
  node.set_type(std::move(type));
  node.set_text(std::move(text));
  node.set_json(std::move(json));
  return node;
}

std::string Tracer::ErrorName(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnknown ? "Exception"
                                                     : std::string(absl::StatusCodeToString(status.code()));
}

TraceRecorder::Ref Tracer::Record(v1::Node node,
                                  const std::vector<std::pair<std::string, TraceRecorder::Ref>>& inputs) {
  if (!status_.ok()) return {};
  auto ref = recorder_.Add(std::move(node), inputs);
  if (ref.ok()) return *ref;
  status_ = ref.status();
  return {};
}

TraceRecorder::Ref Tracer::RecordParameter(v1::Node node, const ParameterOptions& options,
                                           std::function<bool(const v1::Value&)> set) {
  if (absl::Status flushed = Flush(); !flushed.ok()) return {};
  node.set_kind(v1::Node::PARAMETER);
  node.set_trainable(true);
  std::string told = options.description;
  if (!options.constraint.empty()) told += (told.empty() ? "" : "; ") + options.constraint;
  node.set_constraint(told);
  v1::ParameterSpec* enforce = node.mutable_enforce();
  if (options.min) enforce->set_min(*options.min);
  if (options.max) enforce->set_max(*options.max);
  for (const std::string& choice : options.choices) enforce->add_choices(choice);
  enforce->set_pattern(options.pattern);
  enforce->set_max_length(options.max_length);
  v1::RecordNodesRequest request;
  request.set_session(session_);
  *request.add_nodes() = std::move(node);
  auto recorded = client_.RecordNodes(request);
  if (!recorded.ok()) {
    status_ = recorded.status();
    return {};
  }
  parameters_.push_back({recorded->nodes(0).name(), std::move(set)});
  return TraceRecorder::Known(recorded->nodes(0).id());
}

absl::Status Tracer::Flush() {
  if (!status_.ok()) return status_;
  status_ = recorder_.Flush();
  return status_;
}

absl::Status Tracer::BackwardRef(TraceRecorder::Ref output, const std::string& feedback, std::optional<double> score) {
  RETURN_IF_ERROR(Flush());
  v1::BackwardRequest request;
  request.set_session(session_);
  ASSIGN_OR_RETURN(const int64_t id, recorder_.Id(output));
  request.set_output_node(id);
  request.set_feedback(feedback);
  if (score) request.set_score(*score);
  return client_.Backward(request).status();
}

absl::Status Tracer::ZeroFeedback() {
  v1::ZeroFeedbackRequest request;
  request.set_session(session_);
  return client_.ZeroFeedback(request).status();
}

absl::StatusOr<TraceStep> Tracer::Step(int candidates) {
  RETURN_IF_ERROR(Flush());
  v1::ProposeRequest request;
  request.set_session(session_);
  request.set_candidates(candidates);
  request.set_apply(true);
  TraceStep out;
  ASSIGN_OR_RETURN(out.response, client_.ProposeAndWait(request));
  const int32_t selected = out.response.has_selected() ? out.response.selected() : -1;
  out.changed = selected >= 0 && out.response.candidates(selected).has_version() &&
                out.response.candidates(selected).version() == out.response.head_version();
  if (out.changed) RETURN_IF_ERROR(Load(out.response.head_version()));
  return out;
}

absl::Status Tracer::GoTo(int64_t version) {
  RETURN_IF_ERROR(Flush());
  v1::RollbackRequest request;
  request.set_session(session_);
  request.set_version(version);
  RETURN_IF_ERROR(client_.Rollback(request).status());
  return Load(version);
}

absl::Status Tracer::Load(int64_t version) {
  v1::GetVersionRequest request;
  request.set_name(session_ + "/versions/" + std::to_string(version));
  ASSIGN_OR_RETURN(const v1::Version values, client_.GetVersion(request));
  for (const ParameterSlot& parameter : parameters_) {
    auto it = values.values().find(parameter.key);
    if (it == values.values().end()) return Internal("version ", version, " has no value of ", parameter.key);
    if (!parameter.set(it->second))
      return Internal("version ", version, ": the value of ", parameter.key, " has another type");
  }
  return absl::OkStatus();
}

}  // namespace optod::client
