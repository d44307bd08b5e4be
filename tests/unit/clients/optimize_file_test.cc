#include "clients/cli/optimize/optimize_file.h"

#include <gtest/gtest.h>

namespace optod::cli {
namespace {

constexpr char kWhole[] = R"(name: classify
parameters:
  prompt: {file: prompt.txt, description: "system prompt", constraint: "mentions every label"}
  solve:  {file: solver.py, function: solve}
  k:      {value: 5, type: int, range: [1, 20]}
  mode:   {value: fast, type: enum, choices: [fast, slow]}
  rate:   {value: 0.5, type: float}
  strict: {value: true}
  table:  {value: {a: 1, b: [x, "2"]}, type: json}
evaluate:
  command: python3 eval.py
  score: {json: score}
  direction: maximize
  timeout: 90s
optimizer: {name: optoprime, candidates: 2, memory: 5, llm: default, seed: 1}
budget: {steps: 5, evaluations: 40, llm_tokens: 200000, wall: 10m}
gate: {min_score: 0.9, min_gain: 0.0}
)";

TEST(OptimizeFile, ReadsEverySection) {
  const auto file = ParseOptimizeFile(kWhole, "f.yaml");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->parameters.size(), 7u);
  EXPECT_EQ(file->parameters[0].kind, ParameterEntry::Kind::kFile);
  EXPECT_EQ(file->parameters[1].function, "solve");
  EXPECT_EQ(file->parameters[2].value, "5");
  EXPECT_EQ(*file->parameters[2].max, 20);
  EXPECT_EQ(file->parameters[3].choices.size(), 2u);
  EXPECT_EQ(file->parameters[5].type, ValueType::kBool);
  EXPECT_EQ(file->parameters[6].value, R"({"a":1,"b":["x","2"]})");
  EXPECT_EQ(file->evaluate.timeout.count(), 90'000);
  EXPECT_EQ(*file->optimizer.candidates, 2);
  EXPECT_EQ(file->optimizer.hyperparameters.at("memory").number, 5);
  EXPECT_EQ(file->budget.wall.count(), 600'000);
  EXPECT_EQ(*file->gate.min_score, 0.9);
}

// The file above with one line replaced.
struct ErrorCase {
  const char* name;
  const char* from;
  const char* to;
  const char* message;
};
const ErrorCase kErrors[] = {
    {"unknown_top_key", "budget:", "bugdet:", "f.yaml:16: bugdet: unknown key; did you mean budget?"},
    {"unknown_inner_key", "timeout: 90s", "timeuot: 90s",
     "f.yaml:14: evaluate.timeuot: unknown key; did you mean timeout?"},
    {"unknown_parameter_key", "range: [1, 20]", "rnge: [1, 20]",
     "f.yaml:5: parameters.k.rnge: unknown key; did you mean range?"},
    {"doubled_key", "  direction: maximize", "  command: x", "f.yaml:13: evaluate.command: given twice"},
    {"garbage", "optimizer: {name", "optimizer: }{name", "f.yaml:15: not YAML"},
    {"tab", "  command:", "\tcommand:", "not YAML"},
    {"bad_duration", "timeout: 90s", "timeout: 90x", "f.yaml:14: evaluate.timeout: \"90x\" is not a duration"},
    {"bad_direction", "direction: maximize", "direction: maximise", "did you mean maximize?"},
    {"bad_type", "type: int", "type: integer", "f.yaml:5: parameters.k.type: \"integer\" is not a type"},
    {"value_outside_range", "value: 5,", "value: 50,", "50 is above the range's upper end 20"},
    {"value_no_int", "value: 5,", "value: 5.5,", "\"5.5\" is not a whole number"},
    {"range_reversed", "[1, 20]", "[20, 1]", "must be [lowest, highest]"},
    {"choice_unknown", "value: fast", "value: fasd", "none of the choices; did you mean fast?"},
    {"enum_without_choices", ", choices: [fast, slow]", "", "enum needs `choices: [...]`"},
    {"file_and_value", "{file: prompt.txt,", "{file: prompt.txt, value: 1,", "needs either `file` or `value`"},
    {"function_without_file", "{value: 0.5,", "{value: 0.5, function: f,", "only together with `file`"},
    {"path_outside", "file: prompt.txt", "file: ../prompt.txt", "must be a relative path inside the folder"},
    {"path_absolute", "file: prompt.txt", "file: /etc/passwd", "must be a relative path inside the folder"},
    {"same_file_twice", "file: solver.py, function: solve", "file: prompt.txt", "overlaps with parameter prompt"},
    {"bad_name", "  k:  ", "  k-k:", "a parameter's name consists of"},
    {"bad_score", "score: {json: score}", "score: {json: a, regex: b}", "must hold one of `json` and `regex`"},
    {"bad_regex", "score: {json: score}", "score: {regex: '(a'}", "not a regular expression"},
    {"bad_score_word", "score: {json: score}", "score: exit_code", "must be {json: FIELD}"},
    {"exit_code_minimize", "score: {json: score}\n  direction: maximize", "score: exit-code\n  direction: minimize",
     "it must be maximize"},
    {"no_command", "command: python3 eval.py", "command: ''", "missing or empty"},
    {"steps_zero", "steps: 5", "steps: 0", "f.yaml:16: budget.steps: must be at least 1"},
    {"steps_text", "steps: 5", "steps: five", "must be a whole number"},
    {"candidates_range", "candidates: 2", "candidates: 65", "must be 1 to 64"},
    {"gate_text", "min_score: 0.9", "min_score: high", "must be a number"},
    {"workflow_and_command", "name: classify", "workflow: {steps: {a: {template: x}}}", "command: a `workflow` is evaluated by its guide"},
    {"alias_of_itself", "value: {a: 1,", "value: &v {a: *v,", "nested deeper than 64"},
    {"aliases_that_multiply", "value: {a: 1, b: [x, \"2\"]}",
     "value: [&a [1,1,1,1,1,1,1,1,1,1], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b], &d "
     "[*c,*c,*c,*c,*c,*c,*c,*c,*c,*c], &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d], [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]]",
     "more than 100000 values"},
    {"no_mapping", kWhole, "- a\n- b\n", "f.yaml:1: must be a mapping"},
    {"empty", kWhole, "", "must be a mapping"},
    {"no_parameters", kWhole, "evaluate: {command: a, score: exit-code}", "parameters: missing"},
    {"no_evaluate", kWhole, "parameters: {k: {value: 1}}", "evaluate: missing"},
};
class OptimizeFileError : public testing::TestWithParam<ErrorCase> {};
TEST_P(OptimizeFileError, NamesFileLineAndKey) {
  std::string text = kWhole;
  const size_t at = text.find(GetParam().from);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, std::string(GetParam().from).size(), GetParam().to);
  const auto file = ParseOptimizeFile(text, "f.yaml");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(file.status().message()).find(GetParam().message), std::string::npos) << file.status();
}
INSTANTIATE_TEST_SUITE_P(Rows, OptimizeFileError, testing::ValuesIn(kErrors),
                         [](const auto& info) { return std::string(info.param.name); });

struct DurationCase {
  const char* text;
  int64_t ms;  // 0 = an error
};
const DurationCase kDurations[] = {{"250ms", 250}, {"60s", 60'000}, {"1.5m", 90'000}, {"2h", 7'200'000}, {"30", 30'000},
                                   {"0", 0},       {"-1s", 0},      {"", 0},          {"s", 0},          {"5 m", 0},
                                   {"1d", 0},      {"nan", 0},      {"inf", 0},       {"1e99h", 0}};
TEST(ParseDuration, ReadsUnits) {
  for (const DurationCase& c : kDurations) {
    const auto duration = ParseDuration(c.text);
    EXPECT_EQ(duration.ok() ? duration->count() : 0, c.ms) << c.text;
  }
}

}  // namespace
}  // namespace optod::cli
