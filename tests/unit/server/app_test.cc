/// A whole server in this process, on free ports and a fresh directory, spoken to by gRPC.
#include "server/app.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <set>
#include <thread>

#include "base/fs.h"
#include "base/http_transport.h"
#include "base/sha256.h"
#include "optod/v1/admin.grpc.pb.h"
#include "optod/v1/artifact.grpc.pb.h"
#include "optod/v1/event.grpc.pb.h"
#include "optod/v1/job.grpc.pb.h"
#include "optod/v1/session.grpc.pb.h"

namespace optod::server {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;

class AppTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "optod-app-XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
    config_.data_dir = dir_ + "/data";
    config_.listen = {"127.0.0.1:0", "unix:" + dir_ + "/s.sock"};
    config_.http = "127.0.0.1:0";
    config_.drain_grace_ms = 2000;
  }
  void TearDown() override {
    app_.reset();
    std::filesystem::remove_all(dir_);
  }
  void Start() {
    auto app = App::Start(config_, environment_);
    ASSERT_TRUE(app.ok()) << app.status();
    app_ = *std::move(app);
    tcp_ = Channel(app_->grpc_addresses()[0]);
  }
  static std::shared_ptr<grpc::Channel> Channel(const std::string& address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  }
  /// A context with a deadline and, when given, a token.
  static std::unique_ptr<grpc::ClientContext> Context(const std::string& token = "") {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    if (!token.empty()) context->AddMetadata("authorization", "Bearer " + token);
    return context;
  }
  static std::string Trailer(const grpc::ClientContext& context, const std::string& key) {
    auto found = context.GetServerTrailingMetadata().find(key);
    return found == context.GetServerTrailingMetadata().end() ? ""
                                                              : std::string(found->second.data(), found->second.size());
  }
  std::string AdminToken() {
    std::string text = *PosixFs().ReadFile(config_.data_dir + "/admin.token");
    return text.substr(0, text.size() - 1);
  }
  std::string HttpGet(const std::string& path, int* status = nullptr) {
    HttpRequest request;
    request.method = "GET";
    request.url = "http://" + app_->http_address() + path;
    auto response = transport_->Perform(request);
    EXPECT_TRUE(response.ok()) << response.status();
    if (status != nullptr && response.ok()) *status = response->status;
    return response.ok() ? response->body : "";
  }
  grpc::Status Upload(const std::string& data, const v1::WriteArtifactHeader& header, v1::Artifact* artifact,
                      const std::string& token = "") {
    auto context = Context(token);
    auto writer = v1::ArtifactService::NewStub(tcp_)->WriteArtifact(context.get(), artifact);
    v1::WriteArtifactRequest request;
    *request.mutable_header() = header;
    writer->Write(request);
    for (size_t at = 0; at < data.size(); at += 1 << 20) {
      request.set_data(data.substr(at, 1 << 20));
      if (!writer->Write(request)) break;
    }
    writer->WritesDone();
    return writer->Finish();
  }

  std::string dir_;
  config::Config config_;
  Environment environment_;
  std::unique_ptr<App> app_;
  std::shared_ptr<grpc::Channel> tcp_;
  std::unique_ptr<HttpTransport> transport_ = MakeCurlTransport();
};

TEST_F(AppTest, SaysWhereItListensAndAnswersOnEveryAddress) {
  Start();
  EXPECT_THAT(app_->ReadyLine(), MatchesRegex("optod ready grpc=127\\.0\\.0\\.1:[0-9]+ http=127\\.0\\.0\\.1:[0-9]+"));
  struct stat info {};
  ASSERT_EQ(stat((dir_ + "/s.sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  for (const std::string& address : app_->grpc_addresses()) {
    v1::ServerInfo reply;
    auto context = Context();
    grpc::Status status = v1::AdminService::NewStub(Channel(address))->GetServerInfo(context.get(), {}, &reply);
    ASSERT_TRUE(status.ok()) << address << ": " << status.error_message();
    EXPECT_EQ(reply.version(), config::Version());
    EXPECT_EQ(reply.user(), "local");
    EXPECT_TRUE(reply.is_admin());
    EXPECT_FALSE(reply.services().at("optod.v1.JobService"));
    EXPECT_TRUE(reply.services().at("optod.v1.SessionService"));
    EXPECT_GT(reply.commits_per_second(), 0);
    EXPECT_GE(reply.checks_size(), 5);
  }
}

TEST_F(AppTest, JobServiceWithoutAWorkerProgramSaysSo) {
  Start();
  v1::Job job;
  auto context = Context();
  grpc::Status status = v1::JobService::NewStub(tcp_)->CreateJob(context.get(), {}, &job);
  EXPECT_EQ(status.error_code(), grpc::UNIMPLEMENTED);
  EXPECT_EQ(status.error_message(), "JobService: this server has no optod-worker program");
  EXPECT_EQ(Trailer(*context, "optod-reason"), "NO_WORKER");
  auto watch_context = Context();
  auto watch = v1::JobService::NewStub(tcp_)->WatchJob(watch_context.get(), {});
  v1::JobEvent event;
  EXPECT_FALSE(watch->Read(&event));
  EXPECT_EQ(watch->Finish().error_code(), grpc::INVALID_ARGUMENT);  // no name
}

TEST_F(AppTest, ASecondServerOnTheSameDirectoryNamesTheHolder) {
  Start();
  config::Config second = config_;
  second.listen = {"127.0.0.1:0"};
  auto refused = App::Start(second);
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("pid " + std::to_string(getpid())));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(app_->grpc_addresses()[0]));
}

TEST_F(AppTest, StartsAgainWhereItStopped) {
  Start();
  v1::Artifact artifact;
  v1::WriteArtifactHeader header;
  header.set_size_bytes(4);
  ASSERT_TRUE(Upload("data", header, &artifact).ok());
  app_.reset();
  Start();
  v1::Artifact again;
  v1::GetArtifactRequest request;
  request.set_name(artifact.name());
  auto context = Context();
  EXPECT_TRUE(v1::ArtifactService::NewStub(tcp_)->GetArtifact(context.get(), request, &again).ok());
  EXPECT_EQ(again.SerializeAsString(), artifact.SerializeAsString());
}

struct RefusalCase {
  const char* name;
  std::function<void(const std::string& dir, config::Config*)> change;
  absl::StatusCode code;
  const char* message;
};

class Refusal : public AppTest, public ::testing::WithParamInterface<RefusalCase> {};

const RefusalCase kRefusals[] = {
    {"plaintext_remote", [](const std::string&, config::Config* c) { c->listen = {"0.0.0.0:0"}; },
     absl::StatusCode::kInvalidArgument, "can be reached by other machines and has no TLS"},
    {"data_dir_is_a_file",
     [](const std::string& dir, config::Config* c) {
       std::ofstream(dir + "/file") << "x";
       c->data_dir = dir + "/file";
     },
     absl::StatusCode::kInvalidArgument, "data-dir "},
    {"socket_is_a_file",
     [](const std::string& dir, config::Config* c) {
       std::ofstream(dir + "/file") << "x";
       c->listen = {"unix:" + dir + "/file"};
     },
     absl::StatusCode::kUnavailable, "the path exists and is not a socket"},
    {"socket_directory_absent",
     [](const std::string& dir, config::Config* c) { c->listen = {"unix:" + dir + "/none/s"}; },
     absl::StatusCode::kUnavailable, "No such file or directory"},
    {"certificate_absent",
     [](const std::string& dir, config::Config* c) {
       c->tls_cert = dir + "/c.pem";
       c->tls_key = dir + "/k.pem";
     },
     absl::StatusCode::kInvalidArgument, "tls-cert: "},
    {"certificate_garbage",
     [](const std::string& dir, config::Config* c) {
       std::ofstream(dir + "/c.pem") << "hello";
       c->tls_cert = c->tls_key = dir + "/c.pem";
     },
     absl::StatusCode::kInvalidArgument, "is not a PEM file"},
    {"secrets_absent", [](const std::string& dir, config::Config* c) { c->llm_secrets = dir + "/none"; },
     absl::StatusCode::kInvalidArgument, "llm-secrets: "},
    {"cassette_absent",
     [](const std::string& dir, config::Config* c) {
       c->cassette = dir + "/none";
       c->cassette_mode = "replay";
     },
     absl::StatusCode::kInvalidArgument, "cassette: "},
    {"not_a_database",
     [](const std::string& dir, config::Config* c) {
       std::filesystem::create_directories(c->data_dir);
       std::ofstream(c->data_dir + "/optod.db") << std::string(5000, 'x');
     },
     absl::StatusCode::kDataLoss, "data-dir "},
};

TEST_P(Refusal, IsOneClearLine) {
  GetParam().change(dir_, &config_);
  auto app = App::Start(config_);
  ASSERT_FALSE(app.ok());
  EXPECT_EQ(app.status().code(), GetParam().code) << app.status();
  EXPECT_THAT(std::string(app.status().message()), HasSubstr(GetParam().message));
  EXPECT_THAT(std::string(app.status().message()), Not(HasSubstr("\n")));
}
INSTANTIATE_TEST_SUITE_P(All, Refusal, ::testing::ValuesIn(kRefusals),
                         [](const auto& info) { return info.param.name; });

TEST_F(AppTest, ABusyPortIsRefusedForGrpcAndForHttp) {
  Start();
  config::Config other = config_;
  other.data_dir = dir_ + "/other";
  other.listen = {app_->grpc_addresses()[0]};
  other.http = "off";
  EXPECT_THAT(std::string(App::Start(other).status().message()),
              HasSubstr("cannot listen on " + app_->grpc_addresses()[0] + ": Address already in use"));
  other.listen = {app_->grpc_addresses()[1]};
  EXPECT_THAT(std::string(App::Start(other).status().message()), HasSubstr("another server answers there"));
  other.listen = {"127.0.0.1:0"};
  other.http = app_->http_address();
  EXPECT_THAT(std::string(App::Start(other).status().message()), HasSubstr("http: cannot listen on "));
}

TEST_F(AppTest, HttpShowsStateAndCountsCalls) {
  Start();
  v1::ServerInfo info;
  auto context = Context();
  ASSERT_TRUE(v1::AdminService::NewStub(tcp_)->GetServerInfo(context.get(), {}, &info).ok());
  EXPECT_EQ(HttpGet("/healthz"), "ok\n");
  EXPECT_EQ(HttpGet("/readyz"), "ready\n");
  EXPECT_THAT(HttpGet("/"), HasSubstr(app_->grpc_addresses()[0]));
  const char* counted = "optod_requests_total{code=\"OK\",method=\"optod.v1.AdminService/GetServerInfo\"} 1\n";
  std::string metrics = HttpGet("/metrics");
  for (int i = 0; i < 1000 && metrics.find(counted) == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // a call is counted after its answer has left
    metrics = HttpGet("/metrics");
  }
  for (const char* name : {"optod_sessions_loaded 0", "process_resident_memory_bytes ", "optod_serving 1",
                           "optod_disk_commits_per_second ", "optod_commits_total "}) {
    EXPECT_THAT(metrics, HasSubstr(name));
  }
  EXPECT_THAT(metrics, HasSubstr(counted));
}

TEST_F(AppTest, WithTokensEveryServiceAsksForOne) {
  config_.auth = "token";
  Start();
  auto without = Context();
  v1::ServerInfo info;
  EXPECT_EQ(v1::AdminService::NewStub(tcp_)->GetServerInfo(without.get(), {}, &info).error_code(),
            grpc::UNAUTHENTICATED);
  EXPECT_EQ(Trailer(*without, "optod-reason"), "TOKEN_MISSING");
  v1::ListSessionsResponse sessions;
  EXPECT_EQ(v1::SessionService::NewStub(tcp_)->ListSessions(Context().get(), {}, &sessions).error_code(),
            grpc::UNAUTHENTICATED);
  v1::ListEventsResponse events;
  EXPECT_EQ(v1::EventService::NewStub(tcp_)->ListEvents(Context().get(), {}, &events).error_code(),
            grpc::UNAUTHENTICATED);
  v1::Artifact artifact;
  EXPECT_EQ(Upload("x", {}, &artifact).error_code(), grpc::UNAUTHENTICATED);
  EXPECT_TRUE(v1::AdminService::NewStub(tcp_)->GetServerInfo(Context(AdminToken()).get(), {}, &info).ok());
  EXPECT_EQ(info.user(), "admin");
  EXPECT_TRUE(info.authentication());
  EXPECT_TRUE(
      v1::AdminService::NewStub(Channel(app_->grpc_addresses()[1]))->GetServerInfo(Context().get(), {}, &info).ok());
  EXPECT_EQ(info.user(), "local");
}

TEST_F(AppTest, UsersAndTokensOverTheWire) {
  config_.auth = "token";
  Start();
  auto admin = v1::AdminService::NewStub(tcp_);
  v1::CreateUserRequest create;
  create.set_user_id("ann");
  create.set_role(v1::User::VIEWER);
  v1::User user;
  ASSERT_TRUE(admin->CreateUser(Context(AdminToken()).get(), create, &user).ok());
  EXPECT_EQ(user.name(), "users/ann");
  v1::CreateTokenRequest ask;
  ask.set_user("users/ann");
  v1::CreateTokenResponse issued;
  ASSERT_TRUE(admin->CreateToken(Context(AdminToken()).get(), ask, &issued).ok());
  EXPECT_THAT(issued.token().name(), StartsWith("users/ann/tokens/"));
  v1::Artifact artifact;
  EXPECT_EQ(Upload("x", {}, &artifact, issued.secret()).error_code(), grpc::PERMISSION_DENIED) << "a viewer";
  v1::ListUsersResponse users;
  EXPECT_EQ(admin->ListUsers(Context(issued.secret()).get(), {}, &users).error_code(), grpc::PERMISSION_DENIED);
  v1::ListUsersRequest page;
  page.set_page_size(1);
  ASSERT_TRUE(admin->ListUsers(Context(AdminToken()).get(), page, &users).ok());
  ASSERT_EQ(users.users_size(), 1);
  page.set_page_token(users.next_page_token());
  v1::ListUsersResponse rest;
  ASSERT_TRUE(admin->ListUsers(Context(AdminToken()).get(), page, &rest).ok());
  EXPECT_EQ(users.users(0).name() + " " + rest.users(0).name(), "users/admin users/ann");
  v1::RevokeTokenRequest revoke;
  revoke.set_name(issued.token().name());
  v1::Token revoked;
  ASSERT_TRUE(admin->RevokeToken(Context(AdminToken()).get(), revoke, &revoked).ok());
  v1::ServerInfo info;
  EXPECT_EQ(admin->GetServerInfo(Context(issued.secret()).get(), {}, &info).error_code(), grpc::UNAUTHENTICATED)
      << "at the very next call";
}

TEST_F(AppTest, ArtifactsComeBackAsTheyWent) {
  Start();
  std::string data((3 << 20) + 7, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 31 >> 3);
  v1::WriteArtifactHeader header;
  header.set_size_bytes(static_cast<int64_t>(data.size()));
  header.set_sha256(Sha256Hex(std::string_view(data)));
  header.set_display_name("file.bin");
  v1::Artifact artifact, twice;
  ASSERT_TRUE(Upload(data, header, &artifact).ok());
  ASSERT_TRUE(Upload(data, header, &twice).ok());
  EXPECT_EQ(artifact.SerializeAsString(), twice.SerializeAsString()) << "the same bytes are the same artifact";
  const struct {
    int64_t offset, limit;
  } cases[] = {{0, 0}, {5, 0}, {1 << 20, 17}, {static_cast<int64_t>(data.size()), 0}, {0, 1 << 30}};
  for (const auto& c : cases) {
    v1::ReadArtifactRequest request;
    request.set_name(artifact.name());
    request.set_offset(c.offset);
    request.set_limit(c.limit);
    auto context = Context();
    auto reader = v1::ArtifactService::NewStub(tcp_)->ReadArtifact(context.get(), request);
    std::string got;
    for (v1::ReadArtifactResponse piece; reader->Read(&piece);) got += piece.data();
    ASSERT_TRUE(reader->Finish().ok());
    EXPECT_EQ(got, data.substr(static_cast<size_t>(c.offset),
                               c.limit == 0 ? std::string::npos : static_cast<size_t>(c.limit)));
  }
}

TEST_F(AppTest, UploadsThatAreWrongLeaveNothing) {
  config_.max_artifact_bytes = 100;
  Start();
  auto header = [](int64_t size, const std::string& sha256 = "") {
    v1::WriteArtifactHeader made;
    made.set_size_bytes(size);
    made.set_sha256(sha256);
    return made;
  };
  v1::WriteArtifactHeader foreign = header(1);
  foreign.set_parent("not a user");
  const struct {
    v1::WriteArtifactHeader header;
    grpc::StatusCode code;
    const char* message;
  } cases[] = {{header(5), grpc::INVALID_ARGUMENT, "size_bytes: 5 announced, 4 sent"},
               {header(3), grpc::INVALID_ARGUMENT, "size_bytes: 3 announced, more sent"},
               {header(-1), grpc::INVALID_ARGUMENT, "size_bytes: -1 is negative"},
               {header(101), grpc::INVALID_ARGUMENT, "size_bytes: 101 is over the limit of 100"},
               {header(4, "zz"), grpc::INVALID_ARGUMENT, "sha256: must be 64 lower-case hex digits"},
               {header(4, std::string(64, '0')), grpc::DATA_LOSS, "sha256: the bytes have "},
               {foreign, grpc::INVALID_ARGUMENT, "parent: \"not a user\" is not users/USER"}};
  for (const auto& c : cases) {
    v1::Artifact artifact;
    grpc::Status status = Upload("data", c.header, &artifact);
    EXPECT_EQ(status.error_code(), c.code) << c.message;
    EXPECT_THAT(status.error_message(), StartsWith(c.message));
  }
  v1::ListArtifactsResponse list;
  ASSERT_TRUE(v1::ArtifactService::NewStub(tcp_)->ListArtifacts(Context().get(), {}, &list).ok());
  EXPECT_EQ(list.artifacts_size(), 0);
}

TEST_F(AppTest, ArtifactListsTurnPagesAndDeletedOnesAreGone) {
  Start();
  auto stub = v1::ArtifactService::NewStub(tcp_);
  std::string first_name;
  for (int i = 0; i < 5; ++i) {
    v1::WriteArtifactHeader header;
    header.set_size_bytes(1);
    v1::Artifact artifact;
    ASSERT_TRUE(Upload(std::string(1, static_cast<char>('a' + i)), header, &artifact).ok());
    first_name = artifact.name();
  }
  v1::DeleteArtifactRequest remove;
  remove.set_name(first_name);
  v1::DeleteArtifactResponse removed;
  ASSERT_TRUE(stub->DeleteArtifact(Context().get(), remove, &removed).ok());
  EXPECT_EQ(stub->DeleteArtifact(Context().get(), remove, &removed).error_code(), grpc::NOT_FOUND);
  std::set<std::string> seen;
  v1::ListArtifactsRequest request;
  request.set_page_size(3);
  int pages = 0;
  do {
    v1::ListArtifactsResponse page;
    ASSERT_TRUE(stub->ListArtifacts(Context().get(), request, &page).ok());
    for (const v1::Artifact& artifact : page.artifacts()) EXPECT_TRUE(seen.insert(artifact.name()).second);
    request.set_page_token(page.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_EQ(seen.size(), 4u);
  EXPECT_EQ(pages, 2);
}

TEST_F(AppTest, EventsAreListedAndFollowedLive) {
  Start();
  auto stub = v1::EventService::NewStub(tcp_);
  auto context = Context();
  auto watch = stub->WatchEvents(context.get(), {});
  std::vector<v1::Event> seen;
  for (char c : {'a', 'b'}) {  // each event is read before the next is made: the watch is live
    v1::WriteArtifactHeader header;
    header.set_size_bytes(1);
    v1::Artifact artifact;
    ASSERT_TRUE(Upload(std::string(1, c), header, &artifact).ok());
    v1::Event event;
    ASSERT_TRUE(watch->Read(&event));
    EXPECT_EQ(event.type(), "artifact.created");
    EXPECT_EQ(event.resource(), artifact.name());
    seen.push_back(event);
  }
  EXPECT_EQ(seen[0].sequence(), 1);
  EXPECT_EQ(seen[1].sequence(), 2);
  v1::ListEventsRequest request;
  request.set_after_sequence(1);
  v1::ListEventsResponse list;
  ASSERT_TRUE(stub->ListEvents(Context().get(), request, &list).ok());
  ASSERT_EQ(list.events_size(), 1);
  EXPECT_EQ(list.last_sequence(), 2);
  request.set_resource_prefix("users/local/sessions/");
  list.Clear();
  ASSERT_TRUE(stub->ListEvents(Context().get(), request, &list).ok());
  EXPECT_EQ(list.events_size(), 0);
  EXPECT_EQ(list.last_sequence(), 2);
  context->TryCancel();
  v1::Event event;
  EXPECT_FALSE(watch->Read(&event));
  EXPECT_EQ(watch->Finish().error_code(), grpc::CANCELLED);
}

TEST_F(AppTest, AWatcherAheadOfTheLogIsToldToListAnew) {
  Start();
  v1::WatchEventsRequest request;
  request.set_after_sequence(7);
  auto context = Context();
  auto watch = v1::EventService::NewStub(tcp_)->WatchEvents(context.get(), request);
  v1::Event event;
  EXPECT_FALSE(watch->Read(&event));
  grpc::Status status = watch->Finish();
  EXPECT_EQ(status.error_code(), grpc::OUT_OF_RANGE);
  EXPECT_EQ(status.error_message(), "after_sequence: 7 is after the last event, 0; list anew");
}

TEST_F(AppTest, ARevokedTokenEndsItsWatch) {
  config_.auth = "token";
  Start();
  auto admin = v1::AdminService::NewStub(tcp_);
  v1::CreateTokenResponse issued;
  ASSERT_TRUE(admin->CreateToken(Context(AdminToken()).get(), {}, &issued).ok());
  auto context = Context(issued.secret());
  auto watch = v1::EventService::NewStub(tcp_)->WatchEvents(context.get(), {});
  watch->WaitForInitialMetadata();
  v1::RevokeTokenRequest revoke;
  revoke.set_name(issued.token().name());
  v1::Token token;
  ASSERT_TRUE(admin->RevokeToken(Context(AdminToken()).get(), revoke, &token).ok());
  v1::Event event;
  EXPECT_FALSE(watch->Read(&event));
  EXPECT_EQ(watch->Finish().error_code(), grpc::UNAUTHENTICATED);
}

TEST_F(AppTest, BackupIsAnOperationThatIsDoneAndARetryGetsTheSame) {
  Start();
  auto admin = v1::AdminService::NewStub(tcp_);
  v1::BackupRequest request;
  request.set_backup_id("nightly");
  request.set_request_id("r1");
  v1::Operation first, again;
  ASSERT_TRUE(admin->Backup(Context().get(), request, &first).ok());
  EXPECT_TRUE(first.done());
  v1::BackupResult result;
  ASSERT_TRUE(first.response().UnpackTo(&result));
  EXPECT_TRUE(result.integrity_ok());
  EXPECT_TRUE(PosixFs().Exists(config_.data_dir + "/backups/nightly/COMPLETE"));
  ASSERT_TRUE(admin->Backup(Context().get(), request, &again).ok());
  EXPECT_EQ(first.SerializeAsString(), again.SerializeAsString());
  request.set_backup_id("other");
  EXPECT_EQ(admin->Backup(Context().get(), request, &again).error_code(), grpc::ABORTED);
  request.set_request_id("");
  request.set_backup_id("../escape");
  EXPECT_EQ(admin->Backup(Context().get(), request, &again).error_code(), grpc::INVALID_ARGUMENT);
}

TEST_F(AppTest, ShutdownEndsWatchersWithUnavailableAndRefusesWhoComesLater) {
  Start();
  auto context = Context();
  auto watch = v1::EventService::NewStub(tcp_)->WatchEvents(context.get(), {});
  v1::WriteArtifactHeader header;
  header.set_size_bytes(1);
  v1::Artifact artifact;
  ASSERT_TRUE(Upload("x", header, &artifact).ok());
  v1::Event event;
  ASSERT_TRUE(watch->Read(&event));
  std::string address = app_->grpc_addresses()[0];
  app_->Shutdown();
  EXPECT_FALSE(watch->Read(&event));
  grpc::Status status = watch->Finish();
  EXPECT_EQ(status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("draining"));
  EXPECT_EQ(Trailer(*context, "retry-after-ms"), "1000");
  v1::ServerInfo info;
  EXPECT_EQ(v1::AdminService::NewStub(Channel(address))->GetServerInfo(Context().get(), {}, &info).error_code(),
            grpc::UNAVAILABLE);
  app_->Shutdown();  // idempotent
}

TEST_F(AppTest, ADrainRequestReachesWhoeverRunsTheServer) {
  std::promise<int64_t> asked;
  environment_.on_drain_request = [&](int64_t grace_ms) { asked.set_value(grace_ms); };
  Start();
  v1::DrainRequest request;
  request.mutable_grace()->set_seconds(3);
  v1::DrainResponse response;
  ASSERT_TRUE(v1::AdminService::NewStub(tcp_)->Drain(Context().get(), request, &response).ok());
  EXPECT_EQ(asked.get_future().get(), 3000);
}

TEST_F(AppTest, LanguageModelsComeFromTheEnvironmentAndTheirKeysGoNowhere) {
  const std::string canary = "sk-canary-5f0a9c";
  environment_.get_env = [&](const std::string& name) -> std::optional<std::string> {
    if (name == "OPTOD_LLM_URL") return "http://127.0.0.1:9/v1";
    if (name == "OPTOD_LLM_KEY") return canary;
    return std::nullopt;
  };
  Start();
  v1::ServerInfo info;
  ASSERT_TRUE(v1::AdminService::NewStub(tcp_)->GetServerInfo(Context().get(), {}, &info).ok());
  ASSERT_EQ(info.llm_endpoints_size(), 1);
  EXPECT_EQ(info.llm_endpoints(0), "default");
  std::string metrics = HttpGet("/metrics");
  EXPECT_THAT(metrics, HasSubstr("optod_llm_calls_total{endpoint=\"default\"} 0\n"));
  EXPECT_THAT(info.DebugString() + HttpGet("/") + metrics, Not(HasSubstr(canary)));
  app_.reset();
  for (const auto& entry : std::filesystem::recursive_directory_iterator(config_.data_dir)) {
    if (!entry.is_regular_file()) continue;
    EXPECT_THAT(*PosixFs().ReadFile(entry.path().string()), Not(HasSubstr(canary))) << entry.path();
  }
}

TEST_F(AppTest, InMemoryItKeepsNothing) {
  config_.data_dir = ":memory:";
  Start();
  v1::WriteArtifactHeader header;
  header.set_size_bytes(1);
  v1::Artifact artifact;
  EXPECT_TRUE(Upload("x", header, &artifact).ok());
  EXPECT_FALSE(PosixFs().Exists(":memory:"));
}

}  // namespace
}  // namespace optod::server
