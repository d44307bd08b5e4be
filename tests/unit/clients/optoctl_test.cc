// The built program: exit codes, what goes to stdout and what to stderr, and the files it reads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/random_id.h"
#include "base/subprocess.h"
#include "clients/cli/session_file.h"

namespace optod::cli {
namespace {

using testing::HasSubstr;

SubprocessResult RunOptoctl(std::vector<std::string> arguments) {
  SubprocessOptions options;
  options.argv = {std::string(OPTOD_BIN_DIR) + "/optoctl"};
  options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
  options.timeout = std::chrono::seconds(60);
  options.environment = {{"OPTOD_ADDRESS", "unix:" + testing::TempDir() + "nobody-listens-here"},
                         {"OPTOD_TOKEN", ""},
                         {"OPTOD_PYTHON", "/no/such/python"}};
  auto result = RunSubprocess(options);
  EXPECT_TRUE(result.ok()) << result.status();
  return *result;
}

struct ExitCase {
  const char* name;
  std::vector<std::string> arguments;
  int code;
  const char* out;  // contained in stdout
  const char* err;  // contained in stderr
};
const ExitCase kExits[] = {
    {"version", {"version"}, 0, "optoctl 0.", ""},
    {"version_json", {"version", "--json"}, 0, "{\"version\":\"0.", ""},
    {"help", {"--help"}, 0, "Exit codes: 0 done, 1 gate not met", ""},
    {"sub_help", {"session", "create", "--help"}, 0, "--tensor", ""},
    {"no_command", {}, 2, "", "subcommand is required"},
    {"unknown_command", {"bogus"}, 2, "", ""},
    {"unknown_flag", {"optimizers", "--bogus"}, 2, "", "--bogus"},
    {"missing_argument", {"session", "show"}, 2, "", "session is required"},
    {"bad_number", {"session", "rollback", "s", "x"}, 2, "", "version"},
    {"bad_address", {"--address", "nowhere", "optimizers"}, 4, "", "neither HOST:PORT nor unix:PATH"},
    {"unreachable", {"session", "list"}, 3, "", "no answer from optod at unix:"},
    {"unreachable_json", {"--json", "session", "list"}, 3, "", "no answer from optod"},
    {"unreachable_job", {"job", "list"}, 3, "", "no answer from optod"},
    {"unreachable_search", {"search", "list", "s1"}, 3, "", "no answer from optod"},
    {"search_nothing", {"search"}, 2, "", "search: give a FILE, or one of start"},
    {"search_no_file", {"search", "start", "absent.yaml"}, 2, "", "absent.yaml: cannot be read"},
    {"unreachable_doctor", {"doctor"}, 3, "FAIL  server", ""},
    {"doctor_json", {"doctor", "--json"}, 3, "\"reachable\":false", ""},
    {"optimize_no_file", {"optimize", "absent.yaml"}, 2, "", "absent.yaml: cannot be read"},
    {"create_without_optimizer", {"session", "create"}, 2, "", "--optimizer: missing"},
    {"create_bad_tensor",
     {"session", "create", "--optimizer", "sgd", "--tensor", "w:f31:2"},
     2,
     "",
     "\"f31\" is no dtype; did you mean f32?"},
    {"create_bad_direction",
     {"session", "create", "--optimizer", "sgd", "--direction", "up"},
     2,
     "",
     "must be maximize or minimize"},
    {"artifact_absent", {"artifact", "put", "absent.bin"}, 2, "", "absent.bin: cannot be read"},
    {"reproduce_unknown", {"reproduce", "digts"}, 2, "", "did you mean digits?"},
    {"reproduce_no_program", {"reproduce", "scale", "--quick"}, 2, "", "/no/such/python: No such file or directory"},
    {"reproduce_list", {"reproduce", "nothing-like-it"}, 2, "", "STUDY"},
    {"reproduce_alone", {"reproduce"}, 2, "", "sgd-sai"},
    {"reproduce_help", {"reproduce", "--help"}, 0, "optoctl reproduce STUDY --help", ""},
    {"cassette_and_address",
     {"optimize", "x.yaml", "--cassette", "c", "--address", "h:1"},
     2,
     "",
     "exclude each other"},
    {"bad_cassette_mode", {"optimize", "x.yaml", "--cassette-mode", "play"}, 2, "", "--cassette-mode"},
};
class ExitCode : public testing::TestWithParam<ExitCase> {};
TEST_P(ExitCode, IsFixed) {
  const SubprocessResult result = RunOptoctl(GetParam().arguments);
  EXPECT_EQ(result.exit_code, GetParam().code) << result.err;
  EXPECT_THAT(result.out, HasSubstr(GetParam().out));
  EXPECT_THAT(result.err, HasSubstr(GetParam().err));
  if (*GetParam().out == '\0') {
    EXPECT_EQ(result.out, "");
  }
}
INSTANTIATE_TEST_SUITE_P(Commands, ExitCode, testing::ValuesIn(kExits),
                         [](const auto& info) { return std::string(info.param.name); });

struct FileCase {
  const char* name;
  const char* yaml;
  int code;
  const char* err;
};
const FileCase kFiles[] = {
    {"garbage", "parameters: {a: [\n", 2, "not YAML"},
    {"unknown_key", "parameters: {k: {value: 1}}\nevaluate: {comand: x, score: exit-code}\n", 2,
     ":2: evaluate.comand: unknown key; did you mean command?"},
    {"absent_file", "parameters: {p: {file: p.txt}}\nevaluate: {command: x, score: exit-code}\n", 2,
     "parameters.p: file: p.txt cannot be read"},
    {"unreachable", "parameters: {k: {value: 1}}\nevaluate: {command: x, score: exit-code}\n", 3,
     "no answer from optod"},
};
TEST(Optimize, ExitsWithUsageBeforeItAsksAServer) {
  for (const FileCase& c : kFiles) {
    const std::string folder = testing::TempDir() + "optoctl-" + RandomId(8);
    std::filesystem::create_directories(folder);
    std::ofstream(folder + "/o.yaml") << c.yaml;
    const SubprocessResult result = RunOptoctl({"optimize", folder + "/o.yaml"});
    EXPECT_EQ(result.exit_code, c.code) << c.name << result.err;
    EXPECT_THAT(result.err, HasSubstr(c.err)) << c.name;
    std::filesystem::remove_all(folder);
  }
}

// ---- the file of `session create`

TEST(SessionFile, ReadsEverySection) {
  const auto request = ParseSessionFile(R"(id: digits
optimizer: {name: adamw, lr: 0.01, amsgrad: true, seed: 3, clip_norm: 1.5, schedule: {kind: cosine, warmup_steps: 10, total_steps: 100, floor: 0.1}}
layout: [{name: w, shape: [64, 10]}, {name: b, shape: [], dtype: f64, no_decay: true}]
parameters: {k: {value: 5, range: [1, 9]}}
direction: minimize
budget: {steps: 100, wall: 90s}
durability: {mode: every-n, n: 10}
labels: {team: vision}
display_name: first try
)",
                                        "s.yaml");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->session_id(), "digits");
  EXPECT_EQ(request->optimizer().hyperparameters().at("lr").number(), 0.01);
  EXPECT_TRUE(request->optimizer().hyperparameters().at("amsgrad").flag());
  EXPECT_EQ(request->optimizer().hyperparameters().count("candidates"), 0u);
  EXPECT_EQ(request->optimizer().hyperparameters().count("schedule"), 0u);
  EXPECT_EQ(request->optimizer().clip_norm(), 1.5);
  EXPECT_EQ(request->optimizer().schedule().kind(), v1::Schedule::COSINE);
  EXPECT_EQ(request->layout().tensors(0).shape(1), 10);
  EXPECT_EQ(request->layout().tensors(1).dtype(), v1::DTYPE_F64);
  EXPECT_EQ(request->parameters(0).initial().integer(), 5);
  EXPECT_EQ(request->parameters(0).max(), 9);
  EXPECT_EQ(request->direction(), v1::MINIMIZE);
  EXPECT_EQ(request->budget().max_wall().seconds(), 90);
  EXPECT_EQ(request->durability().n(), 10);
  EXPECT_EQ(request->labels().at("team"), "vision");
}

struct SessionErrorCase {
  const char* yaml;
  const char* message;
};
TEST(SessionFile, NamesLineAndKey) {
  const SessionErrorCase cases[] = {
      {"optimizer: {lr: 1}\n", "optimizer.name: missing"},
      {"optimizer: {name: sgd}\nlayuot: []\n", "s.yaml:2: layuot: unknown key; did you mean layout?"},
      {"optimizer: {name: sgd}\nlayout: [{name: w, shape: [-1]}]\n", "layout[0].shape: \"-1\" is no size"},
      {"optimizer: {name: sgd}\nlayout: [w]\n", "layout[0]. must be a mapping"},
      {"optimizer: {name: sgd, schedule: {kind: cosin}}\n", "did you mean cosine?"},
      {"optimizer: {name: sgd}\nparameters: {p: {file: a.txt}}\n", "files are for `optoctl optimize`"},
      {"optimizer: {name: sgd}\ndurability: {mode: never}\n", "must be every-step, every-n or on-checkpoint"},
  };
  for (const SessionErrorCase& c : cases)
    EXPECT_THAT(std::string(ParseSessionFile(c.yaml, "s.yaml").status().message()), HasSubstr(c.message));
}

TEST(SessionFlags, TensorsAndParameters) {
  EXPECT_EQ(ParseTensorFlag("w:bf16:64x10:no-decay")->shape_size(), 2);
  EXPECT_TRUE(ParseTensorFlag("w:bf16:64x10:no-decay")->no_decay());
  EXPECT_EQ(ParseTensorFlag("s:f32:")->shape_size(), 0);
  for (const char* bad : {"w", "w:f32", "w:f32:2x", "w:f32:2xx3", "w:f32:a", "w:f32:2:decay"})
    EXPECT_FALSE(ParseTensorFlag(bad).ok()) << bad;
  EXPECT_EQ(ParseParameterFlag("k=5")->initial().integer(), 5);
  EXPECT_EQ(ParseParameterFlag("k=5.5")->initial().number(), 5.5);
  EXPECT_EQ(ParseParameterFlag("k=true")->initial().flag(), true);
  EXPECT_EQ(ParseParameterFlag("k=a=b")->initial().text(), "a=b");
  EXPECT_FALSE(ParseParameterFlag("k").ok());
}

}  // namespace
}  // namespace optod::cli
