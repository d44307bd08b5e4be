/// Model calls and workflow runs through a whole server in this process, with an endpoint that answers over TCP.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "../base/scripted_http_server.h"
#include "optod/v1/operation.grpc.pb.h"
#include "optod/v1/session.grpc.pb.h"
#include "optod/v1/workflow.grpc.pb.h"
#include "server/app.h"

namespace optod::server {
namespace {

using ::testing::HasSubstr;

const std::string kGood = HttpAnswer(
    200,
    R"({"model":"m","choices":[{"message":{"content":"good"},"finish_reason":"stop"}],"usage":{"prompt_tokens":30,"completion_tokens":20}})");

class WorkflowServiceTest : public ::testing::Test {
 protected:
  void Start(const std::string& executor) {
    config_.data_dir = ":memory:";
    config_.listen = {"127.0.0.1:0"};
    config_.http = "off";
    config_.executor = executor;
    environment_.get_env = [this](const std::string& name) -> std::optional<std::string> {
      if (name == "OPTOD_LLM_URL") return model_.url() + "/v1";
      if (name == "PATH") return "/usr/bin:/bin";
      return std::nullopt;
    };
    auto app = App::Start(config_, environment_);
    ASSERT_TRUE(app.ok()) << app.status();
    app_ = *std::move(app);
    auto channel = grpc::CreateChannel(app_->grpc_addresses()[0], grpc::InsecureChannelCredentials());
    workflows_ = v1::WorkflowService::NewStub(channel);
    operations_ = v1::OperationService::NewStub(channel);
    v1::CreateSessionRequest create;
    create.mutable_optimizer()->set_name("optoprime");
    create.mutable_budget()->set_max_llm_tokens(120);
    create.add_parameters()->set_name("k");
    create.mutable_parameters(0)->set_type("int");
    create.mutable_parameters(0)->mutable_initial()->set_integer(7);
    sessions_ = v1::SessionService::NewStub(channel);
    const grpc::Status made = sessions_->CreateSession(Context().get(), create, &session_);
    ASSERT_TRUE(made.ok()) << made.error_message();
  }
  static std::unique_ptr<grpc::ClientContext> Context() {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    return context;
  }
  v1::CompleteRequest Hello() {
    v1::CompleteRequest request;
    request.set_session(session_.name());
    request.add_messages()->set_role("user");
    request.mutable_messages(0)->set_content("hello");
    return request;
  }
  /// The run's operation when it has ended, or the refusal as its error.
  v1::Operation Execute(v1::ExecuteRunRequest request) {
    request.set_session(session_.name());
    v1::Operation operation;
    const grpc::Status started = workflows_->ExecuteRun(Context().get(), request, &operation);
    if (!started.ok()) {
      operation.mutable_error()->set_code(started.error_code());
      operation.mutable_error()->set_message(started.error_message());
      return operation;
    }
    while (!operation.done()) {
      v1::WaitOperationRequest wait;
      wait.set_name(operation.name());
      wait.mutable_timeout()->set_seconds(10);
      if (!operations_->WaitOperation(Context().get(), wait, &operation).ok()) break;
    }
    return operation;
  }
  v1::Operation ExecuteText(const std::string& text) {
    v1::ExecuteRunRequest request;
    request.set_text(text);
    return Execute(request);
  }

  ScriptedHttpServer model_{std::vector<std::string>{kGood}};
  config::Config config_;
  Environment environment_;
  std::unique_ptr<App> app_;
  std::unique_ptr<v1::WorkflowService::Stub> workflows_;
  std::unique_ptr<v1::OperationService::Stub> operations_;
  std::unique_ptr<v1::SessionService::Stub> sessions_;
  v1::Session session_;
};

TEST_F(WorkflowServiceTest, CallsCountToTheSessionUntilItsBudgetIsSpent) {
  Start("client");
  v1::CompleteResponse reply;
  for (int i = 0; i < 3; ++i) {  // 50 tokens each, 120 allowed: the third is let in and paid
    const grpc::Status status = workflows_->Complete(Context().get(), Hello(), &reply);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(reply.text(), "good");
    EXPECT_EQ(reply.endpoint(), "default");
    EXPECT_EQ(reply.usage().llm_prompt_tokens(), 30);
  }
  const grpc::Status refused = workflows_->Complete(Context().get(), Hello(), &reply);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << refused.error_message();
  EXPECT_EQ(model_.seen().size(), 3u);
  v1::GetSessionRequest get;
  get.set_name(session_.name());
  ASSERT_TRUE(sessions_->GetSession(Context().get(), get, &session_).ok());
  EXPECT_EQ(session_.usage().llm_calls(), 3);
  EXPECT_EQ(session_.usage().llm_completion_tokens(), 60);
}

TEST_F(WorkflowServiceTest, CallsThatAreWrongAreRefused) {
  Start("client");
  v1::CompleteResponse reply;
  v1::CompleteRequest request = Hello();
  request.set_endpoint("other");
  EXPECT_EQ(workflows_->Complete(Context().get(), request, &reply).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  request = Hello();
  request.clear_session();
  EXPECT_EQ(workflows_->Complete(Context().get(), request, &reply).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request = Hello();
  request.set_session("nobody");
  EXPECT_EQ(workflows_->Complete(Context().get(), request, &reply).error_code(), grpc::StatusCode::NOT_FOUND);
  request = Hello();
  request.set_max_tokens(-1);
  EXPECT_EQ(workflows_->Complete(Context().get(), request, &reply).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(model_.seen().empty());
}

TEST_F(WorkflowServiceTest, StreamsTheReply) {
  Start("client");
  auto context = Context();
  auto reader = workflows_->StreamComplete(context.get(), Hello());
  std::string text;
  v1::CompleteChunk chunk, last;
  while (reader->Read(&chunk)) {
    text += chunk.text();
    last = chunk;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "good");
  EXPECT_EQ(last.done().text(), "good");
  EXPECT_EQ(last.done().usage().llm_calls(), 1);
}

TEST_F(WorkflowServiceTest, RunsOnlyWhereTheOperatorSaysSo) {
  for (const char* executor : {"client", "disabled"}) {
    Start(executor);
    const v1::Operation refused = ExecuteText("steps:\n  a: {template: x}");
    EXPECT_EQ(refused.error().code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(refused.error().message(), HasSubstr("executor"));
  }
}

TEST_F(WorkflowServiceTest, RunsInTheSandbox) {
  Start("sandbox");
  if (ExecuteText("steps:\n  a: {template: x}").error().message().find("sandbox:") == 0)
    GTEST_SKIP() << "no sandbox here";
  v1::ExecuteRunRequest request;
  auto& steps = *(*request.mutable_document()->mutable_fields())["steps"].mutable_struct_value()->mutable_fields();
  (*steps["a"].mutable_struct_value()->mutable_fields())["template"].set_string_value("{{k}}");
  v1::ExecuteRunResponse response;
  ASSERT_TRUE(Execute(request).response().UnpackTo(&response));
  EXPECT_EQ(response.output_node(), 2);  // the parameter, the node of the run before, this one

  request.set_text(
      "data: {rows: [1]}\nsteps:\n  a: {python: {source: 'def f(x): return x * 2', function: f, arguments: "
      "['{{item}}']}}\nguide: {exact: {got: '{{a}}', want: 4}}");
  for (const char* row : {"1", "2"}) request.add_rows(row);
  ASSERT_TRUE(Execute(request).response().UnpackTo(&response));
  EXPECT_EQ(response.score(), 0.5);
  EXPECT_EQ(response.rows(0).feedback(), "wrong: got 2, expected 4");

  EXPECT_THAT(ExecuteText("steps:\n  a: {templat: x}").error().message(),
              HasSubstr("workflow:2: steps.a.templat: unknown field; did you mean template?"));
  EXPECT_EQ(ExecuteText("steps:\n  a: {http: {url: 'http://127.0.0.1/'}}").error().code(),
            grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(ExecuteText("steps:\n  a: {command: {run: id, sandbox: false}}").error().code(),
            grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(ExecuteText("data: {file: /etc/passwd}\nsteps:\n  a: {template: x}").error().code(),
            grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(Execute({}).error().code(), grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace optod::server
