// State files: every optimizer goes on bit for bit after export and import, bad files are refused by name, and an
// import is durable and repeatable.
#include "server/engine/state_file.h"

#include "../optim/rules/run.h"
#include "numeric_testing.h"

namespace optod::engine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using optim::Family;
using optim::RuleInfo;
using optim::testing::Random;
using optim::testing::RandomStep;

std::vector<std::string> Names(Family family) {
  std::vector<std::string> names;
  for (const RuleInfo& info : optim::AllRules())
    if (info.family == family && info.implemented) names.push_back(info.name);
  return names;
}
std::string CaseName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

const std::vector<optim::TensorSpec> kLayout = {{"embed_tokens.weight", optim::DType::kF32, {7, 4}},
                                                {"l.0.weight", optim::DType::kF32, {6, 5}},
                                                {"l.0.bias", optim::DType::kF32, {6}},
                                                {"norm.gain", optim::DType::kF32, {9}},
                                                {"lm_head.weight", optim::DType::kF32, {7, 4}}};

void AddTensors(const std::vector<float>& flat, v1::CreateSessionRequest* request) {
  size_t at = 0;
  for (const optim::TensorSpec& spec : kLayout) {
    const auto n = static_cast<size_t>(spec.elements());
    *request->add_initial() = TensorOf(spec.name, spec.shape, {flat.begin() + at, flat.begin() + at + n});
    *request->mutable_layout()->add_tensors() = request->initial(request->initial_size() - 1).spec();
    at += n;
  }
  request->mutable_layout()->mutable_tensors(2)->set_no_decay(true);
}

std::vector<float> Start() {
  std::vector<float> out;
  Random random(3);
  for (const optim::TensorSpec& spec : kLayout)
    for (const double value : random.Normals(spec.elements())) out.push_back(static_cast<float>(value));
  return out;
}

v1::CreateSessionRequest Request(const std::string& optimizer, const std::string& id, const std::vector<float>& flat) {
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  request.mutable_optimizer()->set_name(optimizer);
  request.mutable_optimizer()->set_seed(11);
  request.mutable_optimizer()->mutable_schedule()->set_kind(v1::Schedule::LINEAR);
  request.mutable_optimizer()->mutable_schedule()->set_total_steps(20);
  AddTensors(flat, &request);
  return request;
}

absl::StatusOr<StateFile> Export(Server& server, const std::string& session, int64_t version = -1) {
  v1::ExportStateRequest request;
  request.set_session(session);
  if (version >= 0) request.set_version(version);
  return Await<StateFile>([&](auto done) { ExportState(server.engine(), server.caller(), request, std::move(done)); });
}

std::string Bytes(const StateFile& file) {
  const auto encoded = EncodeStateFile(file);
  EXPECT_TRUE(encoded.ok()) << encoded.status();
  return {reinterpret_cast<const char*>((*encoded)->data()), (*encoded)->size()};
}

absl::StatusOr<v1::Session> Import(Server& server, const std::string& bytes, v1::ImportStateHeader header) {
  auto buffer = TensorBuffer::Make(bytes.size());
  std::memcpy(buffer->data(), bytes.data(), bytes.size());
  return Await<v1::Session>([&](auto done) {
    ImportState(server.engine(), server.caller(), header, buffer, Sha256Hex(bytes), std::move(done));
  });
}
v1::ImportStateHeader Header(const std::string& id, const std::string& request_id = "") {
  v1::ImportStateHeader header;
  header.set_session_id(id);
  header.set_request_id(request_id);
  return header;
}

// ---- steps

/// Tells a first-order session what its optimizer asks for.
void TellStep(Server& server, const std::string& session, const optim::testing::StepData& step) {
  v1::TellRequest tell;
  tell.set_session(session);
  auto now = server.Get(session);
  ASSERT_TRUE(now.ok()) << now.status();
  tell.mutable_gradients()->set_base_version(now->head_version());
  const auto add = [](const optim::OwnedTensor& from, v1::Tensor* to) {
    SpecToProto(from.spec, to->mutable_spec());
    to->set_data(from.data.data(), from.data.size());
  };
  for (const auto& grad : step.grads)
    if (grad) add(*grad, tell.mutable_gradients()->add_gradients());
  for (const auto& extra : step.extra) add(extra, tell.mutable_gradients()->add_extra());
  if (step.loss) tell.mutable_gradients()->set_loss(*step.loss);
  auto told = server.Tell(tell);
  ASSERT_TRUE(told.ok()) << told.status();
}

double Loss(const google::protobuf::RepeatedPtrField<v1::Tensor>& point) {
  double sum = 0;
  size_t i = 0;
  for (const v1::Tensor& tensor : point) {
    for (size_t at = 0; at + 4 <= tensor.data().size(); at += 4) {
      float value = 0;
      std::memcpy(&value, tensor.data().data() + at, 4);
      sum += 0.5 * static_cast<double>(++i % 7 + 1) * value * value;
    }
  }
  return sum;
}

/// One step of a zeroth-order session, at the points that the server sends.
void ProbeStep(Server& server, const std::string& session) {
  for (bool updated = false; !updated;) {
    v1::AskRequest ask;
    ask.set_session(session);
    ask.set_count(8);
    ask.set_with_point(true);
    auto asked = server.Ask(ask);
    ASSERT_TRUE(asked.ok()) << asked.status();
    ASSERT_GT(asked->probes_size(), 0);
    v1::TellRequest tell;
    tell.set_session(session);
    for (const v1::Probe& probe : asked->probes()) {
      v1::ProbeResult* result = tell.mutable_losses()->add_results();
      result->set_probe_id(probe.probe_id());
      result->set_loss_plus(Loss(probe.plus()));
      result->set_loss_minus(Loss(probe.minus()));
      if (probe.kind() == v1::Probe::CANDIDATES) result->set_loss(Loss(probe.stay()));
      if (probe.kind() == v1::Probe::DERIVATIVE) result->set_jvp(std::sqrt(Loss(probe.direction())));
    }
    auto told = server.Tell(tell);
    ASSERT_TRUE(told.ok()) << told.status();
    updated = told->updated();
  }
}

class StateFileEveryRow : public ::testing::TestWithParam<std::string> {
 protected:
  /// Three steps; "i" is imported from there, "cold" starts from the same parameters; three more steps of each.
  void GoOn(const std::function<void(const std::string&)>& step) {
    ASSERT_TRUE(server_.Create(Request(GetParam(), "s", Start())).ok());
    for (int t = 0; t < 3; ++t) step("s");
    auto file = Export(server_, "s");
    ASSERT_TRUE(file.ok()) << file.status();
    const auto imported = Import(server_, Bytes(*file), Header("i"));
    ASSERT_TRUE(imported.ok()) << imported.status();
    EXPECT_EQ(CanonicalBytes(imported->optimizer()), CanonicalBytes(server_.Get("s")->optimizer()));
    EXPECT_TRUE(imported->has_values());
    EXPECT_EQ(server_.State("i"), server_.State("s"));
    ASSERT_TRUE(server_.Create(Request(GetParam(), "cold", *server_.Parameters("s"))).ok());
    server_.Crash();  // the import was acknowledged
    for (int t = 0; t < 3; ++t)
      for (const char* session : {"s", "i", "cold"}) step(session);
    EXPECT_EQ(*server_.Parameters("i"), *server_.Parameters("s"));
    EXPECT_EQ(server_.State("i"), server_.State("s"));
    EXPECT_NE(*server_.Parameters("cold"), *server_.Parameters("s"));  // the schedule alone sees to that
  }
  Server server_;
};

class StateFileFirstOrder : public StateFileEveryRow {};
TEST_P(StateFileFirstOrder, GoesOnBitForBit) {
  const RuleInfo& info = **optim::FindRule(GetParam());
  std::map<std::string, Random> randoms;  // the same steps for each session
  std::map<std::string, int> count;
  GoOn([&](const std::string& session) {
    int& t = count.try_emplace(session, session == "s" ? 0 : 3).first->second;
    Random random(static_cast<uint64_t>(100 + t));
    TellStep(server_, session, RandomStep(info, kLayout, random, t == 0 ? 0 : 0.1));
    ++t;
  });
}
INSTANTIATE_TEST_SUITE_P(Rows, StateFileFirstOrder, ::testing::ValuesIn(Names(Family::kFirstOrder)), &CaseName);

class StateFileZerothOrder : public StateFileEveryRow {};
TEST_P(StateFileZerothOrder, GoesOnBitForBit) {
  GoOn([&](const std::string& session) { ProbeStep(server_, session); });
}
INSTANTIATE_TEST_SUITE_P(Rows, StateFileZerothOrder, ::testing::ValuesIn(Names(Family::kZerothOrder)), &CaseName);

// ---- what else a file carries

TEST(StateFile, GoesOnAfterARollbackAndFromAnOlderVersion) {
  Server server;
  ASSERT_TRUE(server.Create(Request("zo-adam", "s", Start())).ok());
  for (int t = 0; t < 4; ++t) ProbeStep(server, "s");
  ASSERT_TRUE(server.Rollback("s", 2).ok());
  const auto file = Export(server, "s"), older = Export(server, "s", 4);
  ASSERT_TRUE(file.ok() && older.ok()) << file.status() << older.status();
  EXPECT_EQ(file->step, 2);
  EXPECT_EQ(file->first_direction, 2u);
  EXPECT_EQ(file->next_direction, 5u);  // version 3 and 4 drew 3 and 4
  ASSERT_TRUE(Import(server, Bytes(*file), Header("i")).ok());
  for (int t = 0; t < 3; ++t)
    for (const char* session : {"s", "i"}) ProbeStep(server, session);
  EXPECT_EQ(*server.Parameters("i"), *server.Parameters("s"));
  ASSERT_TRUE(Import(server, Bytes(*older), Header("o")).ok());
  EXPECT_EQ(*server.Parameters("o"), *server.Parameters("s", 4));
}

TEST(StateFile, OlderFirstOrderVersionsAreRebuilt) {
  Server server;
  ASSERT_TRUE(server.Create(Request("adamw", "s", Start())).ok());
  const RuleInfo& info = **optim::FindRule("adamw");
  for (int t = 0; t < 4; ++t) {
    Random random(static_cast<uint64_t>(t));
    TellStep(server, "s", RandomStep(info, kLayout, random));
  }
  const auto file = Export(server, "s", 2);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->step, 2);
  ASSERT_TRUE(Import(server, Bytes(*file), Header("i")).ok());
  EXPECT_EQ(*server.Parameters("i"), *server.Parameters("s", 2));
  for (int t = 2; t < 4; ++t) {
    Random random(static_cast<uint64_t>(t));
    TellStep(server, "i", RandomStep(info, kLayout, random));
  }
  EXPECT_EQ(*server.Parameters("i"), *server.Parameters("s"));
}

class ImportedState : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(server_.Create(Request("adamw", "s", Start())).ok());
    Random random(1);
    TellStep(server_, "s", RandomStep(**optim::FindRule("adamw"), kLayout, random));
    auto file = Export(server_, "s");
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
  }
  Server server_;
  StateFile file_;
};

TEST_F(ImportedState, ARetryGetsTheFirstAnswer) {
  const std::string bytes = Bytes(file_);
  const auto first = Import(server_, bytes, Header("", "r")), again = Import(server_, bytes, Header("", "r"));
  ASSERT_TRUE(first.ok() && again.ok()) << first.status() << again.status();
  EXPECT_EQ(first->name(), again->name());
  server_.Crash();
  EXPECT_EQ(Import(server_, bytes, Header("", "r"))->name(), first->name());
  EXPECT_NE(Import(server_, bytes, Header("", "r2"))->name(), first->name());
  file_.step = 7;
  EXPECT_EQ(Import(server_, Bytes(file_), Header("", "r")).status().code(), absl::StatusCode::kAborted);
}

TEST_F(ImportedState, TheHeaderMayChangeHyperparameters) {
  v1::ImportStateHeader header = Header("i");
  (*header.mutable_hyperparameters())["lr"].set_number(0.25);
  (*header.mutable_labels())["from"] = "file";
  header.mutable_durability()->set_mode(v1::Durability::ON_CHECKPOINT);
  const auto session = Import(server_, Bytes(file_), header);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->optimizer().hyperparameters().at("lr").number(), 0.25);
  EXPECT_EQ(session->labels().at("from"), "file");
  EXPECT_EQ(session->durability().mode(), v1::Durability::ON_CHECKPOINT);
  EXPECT_TRUE(session->layout().tensors(2).no_decay());
  EXPECT_THAT(server_.Version("i", 0)->note(), HasSubstr("imported from users/local/sessions/s/versions/1"));
}

TEST_F(ImportedState, NanIsLetInWhenAskedFor) {
  auto params = TensorBuffer::Copy(*file_.params);
  const uint32_t nan = 0x7FC00000;
  std::memcpy(params->data() + 4 * 30, &nan, 4);
  file_.params = params;
  v1::ImportStateHeader header = Header("i");
  const auto refused = Import(server_, Bytes(file_), header);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("\"params/l.0.weight\": element 2 is NaN or Inf"));
  header.set_allow_non_finite(true);
  EXPECT_TRUE(Import(server_, Bytes(file_), header).ok());
}

TEST_F(ImportedState, WhatHasNoStateHereIsNotExported) {
  v1::CreateSessionRequest request = Request("zo-sgd", "layout-only", Start());
  request.clear_initial();
  ASSERT_TRUE(server_.Create(request).ok());
  const auto file = Export(server_, "layout-only");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kFailedPrecondition) << file.status();
  EXPECT_EQ(Export(server_, "s", 9).status().code(), absl::StatusCode::kNotFound);
}

// ---- bad files

struct BadFile {
  const char* label;
  std::function<std::string(StateFile)> bytes;
  const char* message;
};
void PrintTo(const BadFile& c, std::ostream* out) { *out << c.label; }
std::string Patched(const StateFile& file, const std::string& from, const std::string& to) {
  std::string bytes = Bytes(file);
  const size_t at = bytes.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  EXPECT_EQ(from.size(), to.size()) << from;
  return bytes.replace(at, from.size(), to);
}
optim::OwnedTensor& StateOf(StateFile& file, const std::string& name) {
  for (optim::OwnedTensor& tensor : file.state)
    if (tensor.spec.name == name) return tensor;
  ADD_FAILURE() << name;
  return file.state[0];
}
const BadFile kBad[] = {
    {"empty", [](StateFile) { return std::string(); }, "0 bytes are no safetensors file"},
    {"not_a_file", [](StateFile) { return std::string(200, 'x'); }, "does not fit a file of 200"},
    {"header_cut", [](StateFile f) { return Bytes(f).substr(0, 100); }, "cut short"},
    {"data_cut", [](StateFile f) { return Bytes(f).substr(0, Bytes(f).size() - 4); }, "lie outside the"},
    {"no_json", [](StateFile f) { return Patched(f, "{\"__metadata__\"", "[\"__metadata__\""); }, "the header cannot be read"},
    {"other_format", [](StateFile f) { return Patched(f, "optod-state", "other-state"); }, "__metadata__.format: \"other-state\""},
    {"other_version", [](StateFile f) { return Patched(f, "\"format_version\":\"1\"", "\"format_version\":\"2\""); }, "format_version: \"2\""},
    {"no_optimizer", [](StateFile f) { return Patched(f, "\"optimizer\":", "\"optimizes\":"); }, "__metadata__.optimizer: missing"},
    {"step_no_number", [](StateFile f) { return Patched(f, "\"step\":\"1\"", "\"step\":\"x\""); }, "__metadata__.step: \"x\""},
    {"rule_step_ahead", [](StateFile f) { return f.rule_step = 5, Bytes(f); }, "__metadata__.rule_step: \"5\""},
    {"unknown_dtype", [](StateFile f) { return Patched(f, "\"dtype\":\"F32\"", "\"dtype\":\"F99\""); }, "unknown dtype \"F99\""},
    {"unknown_optimizer", [](StateFile f) { return f.optimizer.set_name("adamx"), Bytes(f); }, "adamx"},
    {"hyperparameter", [](StateFile f) { return (*f.optimizer.mutable_hyperparameters())["beta1"].set_number(2), Bytes(f); }, "beta1"},
    {"trace_optimizer", [](StateFile f) { return f.optimizer.clear_hyperparameters(), f.optimizer.set_name("optoprime"), Bytes(f); }, "has no tensors"},
    {"other_rule", [](StateFile f) { return f.optimizer.clear_hyperparameters(), f.optimizer.set_name("adafactor"), Bytes(f); }, "state"},
    {"params_shape", [](StateFile f) { return Patched(f, "\"shape\":[6,5]}", "\"shape\":[5,6]}"); }, "tensor \"params/l.0.weight\" is float32 [5, 6]; the layout has float32 [6, 5]"},
    {"params_missing", [](StateFile f) { return Patched(f, "\"params/norm.gain\"", "\"state/snorm.gain\""); }, "tensor \"params/norm.gain\" is missing"},
    {"params_extra", [](StateFile f) { return Patched(f, "\"state/m/norm.gain\"", "\"params/norm.gains\""); }, "tensor \"params/norm.gains\" is not in the layout"},
    {"other_prefix", [](StateFile f) { return Patched(f, "\"state/m/norm.gain\"", "\"statf/m/norm.gain\""); }, "neither \"params/...\" nor \"state/...\""},
    {"state_missing", [](StateFile f) { return f.state.pop_back(), Bytes(f); }, "missing"},
    {"state_extra", [](StateFile f) { f.state.push_back(f.state[0]); f.state.back().spec.name = "q/w"; return Bytes(f); }, "q/w"},
    {"state_shape", [](StateFile f) { StateOf(f, "m/l.0.weight").spec.shape = {30}; return Bytes(f); }, "m/l.0.weight"},
    {"state_nan",
     [](StateFile f) {
       const float nan = std::nanf("");
       std::memcpy(StateOf(f, "v/norm.gain").data.data() + 8, &nan, 4);
       return Bytes(f);
     },
     "\"state/v/norm.gain\": element 2 is NaN or Inf"},
};

class StateFileBad : public ImportedState, public ::testing::WithParamInterface<BadFile> {};
TEST_P(StateFileBad, IsRefusedByName) {
  const auto refused = Import(server_, GetParam().bytes(file_), Header("i"));
  EXPECT_TRUE(refused.status().code() == absl::StatusCode::kInvalidArgument || absl::IsNotFound(refused.status())) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(GetParam().message));
  EXPECT_EQ(server_.Get("i").status().code(), absl::StatusCode::kNotFound);  // nothing was made
}
INSTANTIATE_TEST_SUITE_P(Files, StateFileBad, ::testing::ValuesIn(kBad), [](const auto& info) { return std::string(info.param.label); });

TEST_F(ImportedState, AnotherOptimizerThanExpectedIsRefused) {
  v1::ImportStateHeader header = Header("i");
  header.set_optimizer("sgd");
  EXPECT_THAT(std::string(Import(server_, Bytes(file_), header).status().message()), HasSubstr("the file is of adamw, not of sgd"));
}

// ---- into a session that is there

v1::ImportStateHeader Into(const std::string& session, const std::string& request_id = "") {
  v1::ImportStateHeader header;
  header.set_session(session);
  header.set_request_id(request_id);
  return header;
}

/// A session with steps of its own takes the file and goes on as the file's session does, also after a crash.
TEST_P(StateFileFirstOrder, IsTakenByASessionThatIsThere) {
  const RuleInfo& info = **optim::FindRule(GetParam());
  const auto step = [&](const std::string& session, int t) {
    Random random(static_cast<uint64_t>(100 + t));
    TellStep(server_, session, RandomStep(info, kLayout, random, t == 0 ? 0 : 0.1));
  };
  for (const auto mode : {v1::Durability::EVERY_STEP, v1::Durability::ON_CHECKPOINT}) {
    const std::string mode_name = v1::Durability::Mode_Name(mode);
    const std::string s = mode == v1::Durability::EVERY_STEP ? "s" : "s2", e = mode == v1::Durability::EVERY_STEP ? "e" : "e2";
    ASSERT_TRUE(server_.Create(Request(GetParam(), s, Start())).ok());
    auto request = Request(GetParam(), e, Start());
    request.mutable_durability()->set_mode(mode);
    ASSERT_TRUE(server_.Create(request).ok());
    for (int t = 0; t < 3; ++t) step(s, t);
    for (int t = 7; t < 9; ++t) step(e, t);
    const auto before = *server_.Parameters(e);
    const auto file = Export(server_, s);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto taken = Import(server_, Bytes(*file), Into(e));
    ASSERT_TRUE(taken.ok()) << taken.status();
    EXPECT_EQ(taken->name(), "users/local/sessions/" + e);
    EXPECT_EQ(taken->head_version(), 3);
    EXPECT_EQ(server_.Version(e, 3)->kind(), "set");
    EXPECT_EQ(server_.Version(e, 3)->parent(), 2);
    EXPECT_EQ(server_.Version(e, 3)->step(), 3);
    EXPECT_THAT(server_.Version(e, 3)->note(), HasSubstr("imported from users/local/sessions/" + s + "/versions/3"));
    server_.Crash();
    EXPECT_EQ(server_.State(e), server_.State(s)) << mode_name;
    for (int t = 3; t < 6; ++t)
      for (const std::string& session : {s, e}) step(session, t);
    EXPECT_EQ(*server_.Parameters(e), *server_.Parameters(s)) << mode_name;
    EXPECT_EQ(server_.State(e), server_.State(s)) << mode_name;
    ASSERT_TRUE(server_.Rollback(e, 2).ok());  // what was there before the file
    EXPECT_EQ(*server_.Parameters(e), before) << mode_name;
  }
}

struct IntoCase {
  const char* name;
  std::function<void(StateFile*, v1::ImportStateHeader*)> spoil;
  absl::StatusCode want;
  const char* message;
};
const IntoCase kInto[] = {
    {"optimizer", [](auto* f, auto*) { f->optimizer.set_name("adam"); }, absl::StatusCode::kInvalidArgument,
     "file: it is of adam; session users/local/sessions/s is of adamw"},
    {"expected optimizer", [](auto*, auto* h) { h->set_optimizer("sgd"); }, absl::StatusCode::kInvalidArgument,
     "the file is of adamw, not of sgd"},
    {"a name", [](auto* f, auto*) { f->layout.mutable_tensors(3)->set_name("norm.bias"); },
     absl::StatusCode::kInvalidArgument, "tensor 3 is \"norm.bias\" float32 [9]; session users/local/sessions/s has \"norm.gain\""},
    {"a shape",
     [](auto* f, auto*) {
       f->layout.mutable_tensors(3)->clear_shape();
       f->layout.mutable_tensors(3)->add_shape(3);
       f->layout.mutable_tensors(3)->add_shape(3);
     },
     absl::StatusCode::kInvalidArgument, "[3, 3]"},
    {"state", [](auto* f, auto*) { f->state.pop_back(); }, absl::StatusCode::kInvalidArgument, "file: state."},
    {"session_id", [](auto*, auto* h) { h->set_session_id("x"); }, absl::StatusCode::kInvalidArgument,
     "header.session_id: given together with session"},
    {"hyperparameters", [](auto*, auto* h) { (*h->mutable_hyperparameters())["lr"].set_number(1); },
     absl::StatusCode::kInvalidArgument, "header.hyperparameters: given together with session"},
    {"durability", [](auto*, auto* h) { h->mutable_durability(); }, absl::StatusCode::kInvalidArgument, "header.durability"},
    {"budget", [](auto*, auto* h) { h->mutable_budget(); }, absl::StatusCode::kInvalidArgument, "header.budget"},
    {"labels", [](auto*, auto* h) { (*h->mutable_labels())["a"] = "b"; }, absl::StatusCode::kInvalidArgument, "header.labels"},
    {"display_name", [](auto*, auto* h) { h->set_display_name("x"); }, absl::StatusCode::kInvalidArgument, "header.display_name"},
    {"parent", [](auto*, auto* h) { h->set_parent("users/local"); }, absl::StatusCode::kInvalidArgument, "header.parent"},
    {"etag", [](auto*, auto* h) { h->set_etag("77"); }, absl::StatusCode::kAborted, "etag: \"77\" is stale"},
    {"nowhere", [](auto*, auto* h) { h->set_session("t"); }, absl::StatusCode::kNotFound, "does not exist"},
    {"zeroth order", [](auto*, auto* h) { h->set_session("z"); }, absl::StatusCode::kInvalidArgument, "is of zo-sgd"},
};

TEST_F(ImportedState, WhatDoesNotFitASessionLeavesItAsItWas) {
  ASSERT_TRUE(server_.Create(Request("zo-sgd", "z", Start())).ok());
  const auto before = *server_.Parameters("s");
  const auto state = server_.State("s");
  for (const IntoCase& c : kInto) {
    StateFile file = file_;
    v1::ImportStateHeader header = Into("s");
    c.spoil(&file, &header);
    const auto taken = Import(server_, Bytes(file), header);
    EXPECT_EQ(taken.status().code(), c.want) << c.name << ": " << taken.status();
    EXPECT_THAT(std::string(taken.status().message()), HasSubstr(c.message)) << c.name;
    EXPECT_EQ(server_.Get("s")->version_count(), 2) << c.name;
    EXPECT_EQ(*server_.Parameters("s"), before) << c.name;
    EXPECT_EQ(server_.State("s"), state) << c.name;
  }
}

TEST_F(ImportedState, OfZerothOrderIsNotTakenByASessionThatIsThere) {
  for (const char* id : {"z", "y"}) ASSERT_TRUE(server_.Create(Request("zo-sgd", id, Start())).ok());
  ProbeStep(server_, "z");
  const auto file = Export(server_, "z");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto taken = Import(server_, Bytes(*file), Into("y"));
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kFailedPrecondition) << taken.status();
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr("import it into a new session"));
}

TEST_F(ImportedState, ARetryIntoASessionTakesTheFileOnce) {
  const std::string bytes = Bytes(file_);
  ASSERT_TRUE(Import(server_, bytes, Into("s", "r")).ok());
  server_.Crash();
  ASSERT_TRUE(Import(server_, bytes, Into("s", "r")).ok());
  EXPECT_EQ(server_.Get("s")->version_count(), 3);
}

TEST_F(ImportedState, ZerothOrderStateIsCheckedToo) {
  ASSERT_TRUE(server_.Create(Request("zo-adam", "z", Start())).ok());
  ProbeStep(server_, "z");
  const auto good = Export(server_, "z");
  ASSERT_TRUE(good.ok()) << good.status();
  const auto refusal = [&](auto change) {
    StateFile file = *good;
    change(file);
    return std::string(Import(server_, Bytes(file), Header("zi")).status().message());
  };
  EXPECT_THAT(refusal([](StateFile& f) { f.state.pop_back(); }), HasSubstr("state \"v/norm.gain\" is missing"));
  EXPECT_THAT(refusal([](StateFile& f) { f.state[0].spec.name = "m/q"; }), HasSubstr("state \"m/q\" is not kept"));
  EXPECT_THAT(refusal([](StateFile& f) { StateOf(f, "m/l.0.weight").spec.shape = {30}; }), AllOf(HasSubstr("[30]"), HasSubstr("[6, 5]")));
  EXPECT_THAT(refusal([](StateFile& f) { f.rule_step = 0; }), HasSubstr("state \"t\" is 1"));
  EXPECT_THAT(refusal([](StateFile& f) { f.optimizer.set_name("zo-sgd-mmt"); }), HasSubstr("unknown for zo-sgd-mmt"));
  EXPECT_TRUE(Import(server_, Bytes(*good), Header("zi")).ok());
}

// ---- forks: the same counters without a file

TEST(ZerothOrderFork, GoesOnWithTheDirectionsOfItsSource) {
  Server server;
  ASSERT_TRUE(server.Create(Request("zo-sgd-mmt", "s", Start())).ok());
  for (int t = 0; t < 3; ++t) ProbeStep(server, "s");
  ASSERT_TRUE(server.Fork("s", 3, "f").ok());
  EXPECT_EQ(server.Get("f")->first_direction(), 3u);
  EXPECT_EQ(server.Get("f")->next_direction(), 4u);
  for (int t = 0; t < 3; ++t)
    for (const char* session : {"s", "f"}) ProbeStep(server, session);
  EXPECT_EQ(*server.Parameters("f"), *server.Parameters("s"));
  ASSERT_TRUE(server.Fork("f", 2, "ff").ok());  // a fork of a fork
  EXPECT_EQ(server.Get("ff")->first_direction(), 5u);
  EXPECT_EQ(server.Get("ff")->next_direction(), 7u);
}

TEST(ZerothOrderFork, MayHaveASeedOfItsOwn) {
  Server server;
  ASSERT_TRUE(server.Create(Request("zo-sgd", "s", Start())).ok());
  ProbeStep(server, "s");
  v1::ForkSessionRequest request;
  request.set_session("s");
  request.set_session_id("f");
  request.set_seed(99);
  const auto fork = Await<v1::Session>([&](auto done) { server.engine().ForkSession(server.caller(), request, std::move(done)); });
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->optimizer().seed(), 99u);
  EXPECT_EQ(fork->first_direction(), 0u);
  for (const char* session : {"s", "f"}) ProbeStep(server, session);
  EXPECT_NE(*server.Parameters("f"), *server.Parameters("s"));
  request.set_session_id("g");
  ASSERT_TRUE(server.Create(Request("sgd", "first-order", Start())).ok());
  request.set_session("first-order");
  const auto refused = Await<v1::Session>([&](auto done) { server.engine().ForkSession(server.caller(), request, std::move(done)); });
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("seed: sgd"));
}

}  // namespace
}  // namespace optod::engine
