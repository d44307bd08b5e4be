// First-order sessions through the engine: steps against the rule itself, crash and reload, errors, durability,
// rollback, fork.
#include "server/engine/first_order.h"

#include <cmath>
#include <thread>

#include "numeric_testing.h"
#include "optim/rules/registry.h"

namespace optod::engine {
namespace {

using ::testing::HasSubstr;

const std::vector<float> kW = {0.5f, -1.25f, 2.0f, 0.125f, -3.0f, 1.0f}, kB = {0.25f, -0.75f};

v1::CreateSessionRequest Request(const std::string& id, const std::string& optimizer, bool values = true) {
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  request.mutable_optimizer()->set_name(optimizer);
  (*request.mutable_optimizer()->mutable_hyperparameters())["lr"].set_number(0.1);
  for (const v1::Tensor& tensor : {TensorOf("w", {2, 3}, kW), TensorOf("b", {2}, kB)}) {
    *request.mutable_layout()->add_tensors() = tensor.spec();
    if (values) *request.add_initial() = tensor;
  }
  return request;
}

float GradientAt(int64_t step, int i) { return 0.01f * static_cast<float>((step * 7 + i * 3) % 11) - 0.04f; }

v1::TellRequest Gradient(const std::string& id, int64_t base, int64_t step) {
  v1::TellRequest request;
  request.set_session(id);
  request.mutable_gradients()->set_base_version(base);
  std::vector<float> w, b;
  for (int i = 0; i < 6; ++i) w.push_back(GradientAt(step, i));
  for (int i = 6; i < 8; ++i) b.push_back(GradientAt(step, i));
  *request.mutable_gradients()->add_gradients() = TensorOf("b", {2}, b);  // any order
  *request.mutable_gradients()->add_gradients() = TensorOf("w", {2, 3}, w);
  return request;
}

/// The slow obvious reference: the rule on plain vectors.
class Reference {
 public:
  Reference(const std::string& name, const optim::Hyper& hyper) {
    const std::vector<optim::TensorSpec> layout = {{"w", optim::DType::kF32, {2, 3}}, {"b", optim::DType::kF32, {2}}};
    auto info = optim::FindRule(name);
    rule_ = *optim::MakeRule(name, *optim::CheckHyper(**info, hyper), layout, 0);
  }
  void Step(int64_t step, std::optional<double> lr = std::nullopt) {
    std::vector<float> w, b;
    for (int i = 0; i < 6; ++i) w.push_back(GradientAt(step, i));
    for (int i = 6; i < 8; ++i) b.push_back(GradientAt(step, i));
    const std::vector<const void*> grads = {w.data(), b.data()};
    const std::vector<void*> params = {w_.data(), b_.data()};
    optim::StepInput input;
    input.grads = grads;
    input.lr = lr;
    ASSERT_TRUE(rule_->Step(params, input).ok());
  }
  std::vector<float> Values() const {
    std::vector<float> out = w_;
    out.insert(out.end(), b_.begin(), b_.end());
    return out;
  }

 private:
  std::unique_ptr<optim::Rule> rule_;
  std::vector<float> w_ = kW, b_ = kB;
};

struct RuleCase {
  const char* name;
  const char* optimizer;
  std::map<std::string, double> numbers;
};
void PrintTo(const RuleCase& c, std::ostream* out) { *out << c.name; }
const RuleCase kRules[] = {{"sgd_momentum", "sgd", {{"momentum", 0.9}}}, {"adamw", "adamw", {{"weight_decay", 0.01}}}};

class FirstOrderRules : public testing::TestWithParam<RuleCase> {
 protected:
  v1::CreateSessionRequest Make(int32_t snapshot_every) {
    auto request = Request("s", GetParam().optimizer);
    for (const auto& [name, value] : GetParam().numbers)
      (*request.mutable_optimizer()->mutable_hyperparameters())[name].set_number(value);
    request.mutable_durability()->set_snapshot_every(snapshot_every);
    return request;
  }
  Reference MakeReference() {
    optim::Hyper hyper = {{"lr", 0.1}};
    for (const auto& [name, value] : GetParam().numbers) hyper[name] = value;
    return Reference(GetParam().optimizer, hyper);
  }
};

TEST_P(FirstOrderRules, CrashAfterEveryStepEqualsTheUninterruptedRun) {
  for (const int snapshot_every : {1, 3, 100}) {
    Server server;
    ASSERT_TRUE(server.Create(Make(snapshot_every)).ok());
    Reference reference = MakeReference();
    for (int64_t step = 0; step < 10; ++step) {
      auto told = server.Tell(Gradient("s", step, step));
      ASSERT_TRUE(told.ok()) << told.status();
      EXPECT_EQ(told->head_version(), step + 1);
      EXPECT_EQ(told->durable_version(), step + 1);
      reference.Step(step);
      const auto state = server.State("s");
      EXPECT_EQ(*server.Parameters("s"), reference.Values());
      server.Crash();
      EXPECT_EQ(*server.Parameters("s"), reference.Values())
          << "step " << step << " snapshots every " << snapshot_every;
      EXPECT_EQ(server.State("s"), state);
      EXPECT_EQ(server.Get("s")->seq(), step + 1);
    }
  }
}

TEST_P(FirstOrderRules, RollbackRebuildsAndGrowsABranch) {
  Server server;
  ASSERT_TRUE(server.Create(Make(4)).ok());
  std::vector<std::vector<float>> values = {MakeReference().Values()};
  Reference reference = MakeReference();
  for (int64_t step = 0; step < 6; ++step) {
    ASSERT_TRUE(server.Tell(Gradient("s", step, step)).ok());
    reference.Step(step);
    values.push_back(reference.Values());
  }
  for (const int64_t version : {3, 0, 6, 5, 4}) {
    EXPECT_EQ(*server.Parameters("s", version), values[version]);
    auto session = server.Rollback("s", version);
    ASSERT_TRUE(session.ok()) << session.status();
    EXPECT_EQ(session->head_version(), version);
    EXPECT_EQ(*server.Parameters("s"), values[version]);
  }
  // A new branch from version 2: 2 -> 7, gradients of step 40.
  ASSERT_TRUE(server.Rollback("s", 2).ok());
  auto told = server.Tell(Gradient("s", 2, 40));
  ASSERT_TRUE(told.ok()) << told.status();
  EXPECT_EQ(told->head_version(), 7);
  Reference branch = MakeReference();
  branch.Step(0);
  branch.Step(1);
  branch.Step(40);
  EXPECT_EQ(*server.Parameters("s"), branch.Values());
  server.Crash();
  EXPECT_EQ(*server.Parameters("s"), branch.Values());
  EXPECT_EQ(server.Version("s", 7)->parent(), 2);
}

TEST_P(FirstOrderRules, ForkGoesOnLikeItsSource) {
  Server server;
  ASSERT_TRUE(server.Create(Make(4)).ok());
  for (int64_t step = 0; step < 5; ++step) ASSERT_TRUE(server.Tell(Gradient("s", step, step)).ok());
  for (const int64_t version : {0, 3, 4, 5}) {  // flat values, replayed, snapshot, head
    const std::string id = "f" + std::to_string(version);
    ASSERT_TRUE(server.Fork("s", version, id).ok());
    EXPECT_EQ(*server.Parameters(id), *server.Parameters("s", version));
    ASSERT_TRUE(server.Tell(Gradient(id, 0, version)).ok());
    if (version < 5) {
      EXPECT_EQ(*server.Parameters(id), *server.Parameters("s", version + 1));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, FirstOrderRules, testing::ValuesIn(kRules),
                         [](const auto& info) { return info.param.name; });

TEST(FirstOrder, OldGradientsGoAndTheNearestVersionIsNamed) {
  Server server;
  auto request = Request("s", "sgd");
  request.mutable_durability()->set_snapshot_every(3);
  ASSERT_TRUE(server.Create(request).ok());
  for (int64_t step = 0; step < 10; ++step)
    ASSERT_TRUE(server.Tell(Gradient("s", step, step)).ok());  // snapshots 3, 6, 9
  EXPECT_TRUE(server.Rollback("s", 8).ok());
  EXPECT_TRUE(server.Rollback("s", 7).ok());
  auto refused = server.Rollback("s", 5);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("nearest that can is 3"));
  EXPECT_EQ(server.Get("s")->head_version(), 7);
  EXPECT_TRUE(server.Rollback("s", 3).ok());
  EXPECT_TRUE(server.Rollback("s", 0).ok());
}

// ---- errors: nothing changes, the message says what is wrong

struct ErrorCase {
  const char* name;
  std::function<void(v1::TellRequest*)> spoil;
  absl::StatusCode want;
  const char* message;
};
void PrintTo(const ErrorCase& c, std::ostream* out) { *out << c.name; }
v1::Tensor* Sent(v1::TellRequest* request, int i) { return request->mutable_gradients()->mutable_gradients(i); }
const ErrorCase kErrors[] = {
    {"unknown_name", [](auto* r) { Sent(r, 1)->mutable_spec()->set_name("ww"); }, absl::StatusCode::kInvalidArgument,
     "gradients.gradients[1].spec.name: \"ww\" is not in the layout; did you mean \"w\"?"},
    {"shape", [](auto* r) { Sent(r, 1)->mutable_spec()->set_shape(0, 3); }, absl::StatusCode::kInvalidArgument,
     "gradients.gradients[1] \"w\": shape [3, 3]; the layout has [2, 3]"},
    {"dtype", [](auto* r) { Sent(r, 0)->mutable_spec()->set_dtype(v1::DTYPE_F64); }, absl::StatusCode::kInvalidArgument,
     "gradients.gradients[0] \"b\": dtype float64; must be float32"},
    {"dtype_number", [](auto* r) { Sent(r, 0)->mutable_spec()->set_dtype(static_cast<v1::DType>(257)); },
     absl::StatusCode::kInvalidArgument, "must be float32"},
    {"bytes", [](auto* r) { Sent(r, 0)->set_data("abc"); }, absl::StatusCode::kInvalidArgument,
     "gradients.gradients[0] \"b\": 3 bytes of data; 2 elements of float32 take 8"},
    {"twice", [](auto* r) { *r->mutable_gradients()->add_gradients() = r->gradients().gradients(0); },
     absl::StatusCode::kInvalidArgument, "gradients.gradients[2] \"b\": given twice"},
    {"empty", [](auto* r) { r->mutable_gradients()->clear_gradients(); }, absl::StatusCode::kInvalidArgument,
     "gradients.gradients: empty"},
    {"nan",
     [](auto* r) {
       *Sent(r, 0) = TensorOf("b", {2}, {1, std::nanf("")});
     },
     absl::StatusCode::kInvalidArgument, "b: element 1 is NaN"},
    {"inf",
     [](auto* r) {
       *Sent(r, 0) = TensorOf("b", {2}, {INFINITY, 0});
     },
     absl::StatusCode::kInvalidArgument, "b: element 0 is infinite"},
    {"stale_base", [](auto* r) { r->mutable_gradients()->set_base_version(1); }, absl::StatusCode::kAborted,
     "base_version: 1 is not the head 2"},
    {"seq_gap", [](auto* r) { r->set_seq(5); }, absl::StatusCode::kFailedPrecondition,
     "seq: 5 leaves a gap; expected 3"},
    {"seq_negative", [](auto* r) { r->set_seq(-1); }, absl::StatusCode::kInvalidArgument, "seq: -1 is negative"},
    {"losses", [](auto* r) { r->mutable_losses(); }, absl::StatusCode::kInvalidArgument,
     "gradients: missing; sgd sessions are told gradients"},
};

class FirstOrderErrors : public testing::TestWithParam<ErrorCase> {};

TEST_P(FirstOrderErrors, ChangeNothing) {
  for (const double clip : {0.0, 100.0}) {
    Server server;
    auto create = Request("s", "sgd");
    create.mutable_optimizer()->set_clip_norm(clip);
    ASSERT_TRUE(server.Create(create).ok());
    for (int64_t step = 0; step < 2; ++step) ASSERT_TRUE(server.Tell(Gradient("s", step, step)).ok());
    const auto before = *server.Parameters("s");
    auto request = Gradient("s", 2, 2);
    GetParam().spoil(&request);
    auto told = server.Tell(request);
    EXPECT_EQ(told.status().code(), GetParam().want) << told.status();
    EXPECT_THAT(std::string(told.status().message()), HasSubstr(GetParam().message));
    EXPECT_EQ(*server.Parameters("s"), before);
    EXPECT_EQ(server.Get("s")->version_count(), 3);
    EXPECT_TRUE(server.Tell(Gradient("s", 2, 2)).ok());
  }
}
INSTANTIATE_TEST_SUITE_P(Tell, FirstOrderErrors, testing::ValuesIn(kErrors),
                         [](const auto& info) { return info.param.name; });

struct CreateCase {
  const char* name;
  std::function<void(v1::CreateSessionRequest*)> spoil;
  const char* message;
};
void PrintTo(const CreateCase& c, std::ostream* out) { *out << c.name; }
const CreateCase kCreates[] = {
    {"missing_tensor", [](auto* r) { r->mutable_initial()->RemoveLast(); }, "initial: tensor \"b\" is missing"},
    {"unknown_tensor", [](auto* r) { r->mutable_initial(1)->mutable_spec()->set_name("bb"); },
     "initial[1].spec.name: \"bb\" is not in the layout; did you mean \"b\"?"},
    {"shape", [](auto* r) { r->mutable_initial(0)->mutable_spec()->add_shape(1); },
     "initial[0] \"w\": shape [2, 3, 1]; the layout has [2, 3]"},
    {"dtype", [](auto* r) { r->mutable_initial(0)->mutable_spec()->set_dtype(v1::DTYPE_F16); },
     "initial[0] \"w\": dtype float16; must be float32"},
    {"dtype_number",
     [](auto* r) {
       r->mutable_layout()->mutable_tensors(0)->set_dtype(static_cast<v1::DType>(257));
       r->clear_initial();
     },
     "layout.tensors[0].dtype: missing or unknown (257)"},
    {"integer_layout",
     [](auto* r) {
       r->mutable_layout()->mutable_tensors(0)->set_dtype(v1::DTYPE_I32);
       r->clear_initial();
     },
     "int32"},
};
class FirstOrderCreate : public testing::TestWithParam<CreateCase> {};
TEST_P(FirstOrderCreate, Refuses) {
  Server server;
  auto request = Request("s", "adamw");
  GetParam().spoil(&request);
  auto created = server.Create(request);
  EXPECT_EQ(created.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(created.status().message()), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(Create, FirstOrderCreate, testing::ValuesIn(kCreates),
                         [](const auto& info) { return info.param.name; });

TEST(FirstOrder, SessionWithoutValuesAsksForThem) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", "sgd", /*values=*/false)).ok());
  EXPECT_EQ(server.Tell(Gradient("s", 0, 0)).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(server.Parameters("s").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(server.Get("s")->has_values());
}

TEST(FirstOrder, IdleSessionsLeaveMemoryBeyondTheBudget) {
  Server kept, evicted;
  evicted.engine().SetMemoryBudget(1);  // less than any session holds
  for (Server* server : {&kept, &evicted}) {
    for (const std::string name : {"a", "b", "c"}) ASSERT_TRUE(server->Create(Request(name, "adamw")).ok());
    for (int64_t step = 0; step < 6; ++step) {
      for (const std::string name : {"a", "b", "c"}) {
        const auto told = server->Tell(Gradient(name, step, step));
        ASSERT_TRUE(told.ok()) << told.status();
      }
    }
    for (const std::string name : {"a", "b", "c"}) EXPECT_EQ(server->Get(name)->seq(), 6);
  }
  EXPECT_EQ(kept.engine().LoadedSessions(), 3);
  EXPECT_LT(evicted.engine().LoadedSessions(), 3);
  EXPECT_LT(evicted.engine().ResidentBytes(), kept.engine().ResidentBytes());
  for (const std::string name : {"a", "b", "c"}) EXPECT_EQ(*kept.Parameters(name), *evicted.Parameters(name));
}

TEST(FirstOrder, ToldSeqReturnsTheStoredAnswerAlsoAfterACrash) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", "sgd")).ok());
  std::vector<v1::TellResponse> answers;
  for (int64_t step = 0; step < 70; ++step) {
    auto request = Gradient("s", step, step);
    request.set_seq(step + 1);
    auto told = server.Tell(request);
    ASSERT_TRUE(told.ok()) << told.status();
    answers.push_back(*told);
  }
  for (int round = 0; round < 2; ++round) {
    for (const int64_t seq : {7, 42, 70}) {
      auto other = Gradient("s", seq - 1, seq + 100);
      other.set_seq(seq);
      const auto refused = server.Tell(other);
      EXPECT_EQ(refused.status().code(), absl::StatusCode::kAborted) << "another writer's gradients";
      EXPECT_THAT(std::string(refused.status().message()), HasSubstr("expected 71"));
      auto request = Gradient("s", seq - 1, seq - 1);
      request.set_seq(seq);
      auto again = server.Tell(request);
      ASSERT_TRUE(again.ok()) << again.status();
      again->clear_timings();
      v1::TellResponse want = answers[seq - 1];
      want.clear_timings();
      EXPECT_EQ(again->SerializeAsString(), want.SerializeAsString());
    }
    auto old = Gradient("s", 0, 0);
    old.set_seq(6);
    auto refused = server.Tell(old);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("expected 71"));
    EXPECT_EQ(server.Get("s")->seq(), 70);
    server.Crash();
  }
}

TEST(FirstOrder, RequestIdsReturnTheFirstAnswerAlsoAfterACrash) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", "adamw")).ok());
  auto request = Gradient("s", 0, 0);
  request.set_request_id("one");
  auto first = server.Tell(request);
  ASSERT_TRUE(first.ok());
  server.Crash();
  auto again = server.Tell(request);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->SerializeAsString(), first->SerializeAsString());
  auto other = Gradient("s", 0, 1);
  other.set_request_id("one");
  EXPECT_EQ(server.Tell(other).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(server.Get("s")->version_count(), 2);
}

TEST(FirstOrder, ClippingScalesByTheJointNorm) {
  Server server;
  auto request = Request("s", "sgd");
  request.mutable_optimizer()->set_clip_norm(1);
  ASSERT_TRUE(server.Create(request).ok());
  v1::TellRequest tell;
  tell.set_session("s");
  *tell.mutable_gradients()->add_gradients() = TensorOf("b", {2}, {3, 4});
  auto told = server.Tell(tell);
  ASSERT_TRUE(told.ok()) << told.status();
  EXPECT_DOUBLE_EQ(told->figures().at("grad_norm"), 5);
  const auto values = *server.Parameters("s");
  const float scale = static_cast<float>(1.0 / 5);
  EXPECT_FLOAT_EQ(values[6], kB[0] - 0.1f * (3 * scale));
  EXPECT_FLOAT_EQ(values[7], kB[1] - 0.1f * (4 * scale));
  EXPECT_EQ(std::vector<float>(values.begin(), values.begin() + 6), kW);  // no gradient, no step
  server.Crash();
  EXPECT_EQ(*server.Parameters("s"), values);
}

TEST(FirstOrder, ScheduleSetsTheRateAlsoInAReplay) {
  Server server;
  auto request = Request("s", "sgd");
  request.mutable_optimizer()->mutable_schedule()->set_kind(v1::Schedule::LINEAR);
  request.mutable_optimizer()->mutable_schedule()->set_warmup_steps(2);
  request.mutable_optimizer()->mutable_schedule()->set_total_steps(6);
  ASSERT_TRUE(server.Create(request).ok());
  Reference reference("sgd", {{"lr", 0.1}});
  const double want[] = {0.05, 0.1, 0.075, 0.05, 0.025, 0};
  for (int64_t step = 0; step < 6; ++step) {
    auto told = server.Tell(Gradient("s", step, step));
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_NEAR(told->lr(), want[step], 1e-12);
    reference.Step(step, told->lr());
    server.Crash();
    EXPECT_EQ(*server.Parameters("s"), reference.Values());
  }
}

TEST(FirstOrder, ReturnsValuesAndAnswersAsk) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", "sgd")).ok());
  auto request = Gradient("s", 0, 0);
  request.mutable_gradients()->set_return_values(true);
  auto told = server.Tell(request);
  ASSERT_TRUE(told.ok());
  ASSERT_EQ(told->values_size(), 2);
  const auto values = *server.Parameters("s");
  EXPECT_EQ(told->values(0).data(), std::string(reinterpret_cast<const char*>(values.data()), 24));
  v1::AskRequest ask;
  ask.set_session("s");
  ask.set_with_values(true);
  auto asked = server.Ask(ask);
  ASSERT_TRUE(asked.ok());
  ASSERT_EQ(asked->points_size(), 1);
  EXPECT_EQ(asked->points(0).version(), 1);
  EXPECT_EQ(asked->points(0).tensors(1).data(), std::string(reinterpret_cast<const char*>(values.data() + 6), 8));
}

TEST(FirstOrder, LessDurabilityLosesAtMostWhatItSays) {
  Server server;
  auto request = Request("s", "adamw");
  request.mutable_durability()->set_mode(v1::Durability::EVERY_N);
  request.mutable_durability()->set_n(4);
  ASSERT_TRUE(server.Create(request).ok());
  Reference reference("adamw", {{"lr", 0.1}});
  std::vector<float> at4, at8;
  for (int64_t step = 0; step < 10; ++step) {
    auto told = server.Tell(Gradient("s", step, step));
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_EQ(told->durable_version(), (step + 1) / 4 * 4);
    reference.Step(step);
    if (step == 7) at8 = reference.Values();
  }
  server.Crash();
  EXPECT_EQ(server.Get("s")->head_version(), 8);
  EXPECT_EQ(server.Get("s")->seq(), 8);
  EXPECT_EQ(*server.Parameters("s"), at8);
  // Another write commits a session row that counts steps which are not written: they are lost all the same.
  for (int64_t step = 8; step < 10; ++step) ASSERT_TRUE(server.Tell(Gradient("s", step, step)).ok());
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_name("s");
  update.mutable_session()->set_display_name("renamed");
  update.mutable_update_mask()->add_paths("display_name");
  ASSERT_TRUE(Await<v1::Session>([&](auto done) {
                server.engine().UpdateSession(server.caller(), update, std::move(done));
              }).ok());
  server.Crash();
  EXPECT_EQ(server.Get("s")->head_version(), 8);
  EXPECT_EQ(server.Get("s")->version_count(), 9);
  EXPECT_EQ(*server.Parameters("s"), at8);
  // Steps go on from there, and a rollback makes what is pending durable first.
  for (int64_t step = 8; step < 10; ++step) ASSERT_TRUE(server.Tell(Gradient("s", step, step)).ok());
  EXPECT_EQ(*server.Parameters("s"), reference.Values());
  ASSERT_TRUE(server.Rollback("s", 4).ok());
  server.Crash();
  EXPECT_EQ(server.Get("s")->head_version(), 4);
  EXPECT_EQ(*server.Parameters("s", 10), reference.Values());
}

TEST(FirstOrder, FullDiskRefusesTheStepThatNeedsIt) {
  Server server;
  auto request = Request("s", "adamw");
  request.mutable_durability()->set_mode(v1::Durability::ON_CHECKPOINT);
  request.mutable_durability()->set_snapshot_every(2);
  ASSERT_TRUE(server.Create(request).ok());
  ASSERT_TRUE(server.Tell(Gradient("s", 0, 0)).ok());
  const auto before = *server.Parameters("s");
  const auto state = server.State("s");
  server.blobs().set_full(true);
  EXPECT_EQ(server.Tell(Gradient("s", 1, 1)).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(*server.Parameters("s"), before);
  EXPECT_EQ(server.State("s"), state);
  server.blobs().set_full(false);
  auto told = server.Tell(Gradient("s", 1, 1));
  ASSERT_TRUE(told.ok());
  EXPECT_EQ(told->durable_version(), 2);
}

TEST(FirstOrder, LargeGradientsAndOddLayoutsReload) {
  Server server;
  v1::CreateSessionRequest request;
  request.set_session_id("s");
  request.mutable_optimizer()->set_name("adamw");
  const int64_t n = 30'000;               // 120 kB: a blob
  std::vector<uint16_t> half(3, 0x3f80);  // bf16 1.0; makes what follows start at an odd place
  v1::Tensor h;
  SpecToProto({"h", optim::DType::kBF16, {3}}, h.mutable_spec());
  h.set_data(half.data(), 6);
  const v1::Tensor big = TensorOf("big", {n}, std::vector<float>(n, 0.5f));
  for (const v1::Tensor& tensor : {h, big}) {
    *request.mutable_layout()->add_tensors() = tensor.spec();
    *request.add_initial() = tensor;
  }
  auto created = server.Create(request);
  ASSERT_TRUE(created.ok()) << created.status();
  auto read = [&] {
    using Buffer = std::shared_ptr<const TensorBuffer>;
    auto buffer = Await<Buffer>([&](auto done) {
      server.engine().Read<Buffer>(
          server.caller(), "s",
          [](LiveSession& live) { return (*AsNumeric(live))->ParametersAt(live, live.row.head_version); },
          std::move(done));
    });
    return std::string(reinterpret_cast<const char*>((*buffer)->data()), (*buffer)->size());
  };
  for (int64_t step = 0; step < 3; ++step) {
    v1::TellRequest tell;
    tell.set_session("s");
    tell.mutable_gradients()->set_base_version(step);
    *tell.mutable_gradients()->add_gradients() =
        TensorOf("h", {3}, {0.5f, -0.5f, 1});  // float32 for a half-precision parameter
    *tell.mutable_gradients()->add_gradients() =
        TensorOf("big", {n}, std::vector<float>(n, 0.25f * static_cast<float>(step + 1)));
    auto told = server.Tell(tell);
    ASSERT_TRUE(told.ok()) << told.status();
    const std::string values = read();
    server.Crash();
    EXPECT_EQ(read(), values);
  }
}

TEST(FirstOrder, BudgetEndsTheSteps) {
  Server server;
  auto request = Request("s", "sgd");
  request.mutable_budget()->set_max_steps(2);
  ASSERT_TRUE(server.Create(request).ok());
  for (int64_t step = 0; step < 2; ++step) ASSERT_TRUE(server.Tell(Gradient("s", step, step)).ok());
  EXPECT_EQ(server.Tell(Gradient("s", 2, 2)).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(FirstOrder, SixteenTellersMakeOneGaplessSequence) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", "sgd")).ok());
  std::vector<std::thread> threads;
  std::atomic<int> applied{0};
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&] {
      int64_t base = 0;
      for (int mine = 0; mine < 20;) {
        auto told = server.Tell(Gradient("s", base, base));
        if (told.ok()) {
          ++applied, ++mine;
          base = told->head_version();
        } else {
          ASSERT_EQ(told.status().code(), absl::StatusCode::kAborted) << told.status();
          base = server.Get("s")->head_version();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(applied, 320);
  const auto values = *server.Parameters("s");
  server.Crash();
  EXPECT_EQ(server.Get("s")->seq(), 320);
  EXPECT_EQ(server.Get("s")->version_count(), 321);
  EXPECT_EQ(*server.Parameters("s"), values);
  Reference reference("sgd", {{"lr", 0.1}});
  for (int64_t step = 0; step < 320; ++step) reference.Step(step);
  EXPECT_EQ(values, reference.Values());
}

}  // namespace
}  // namespace optod::engine
