// The parser of workflow files: what it takes, and that every mistake is told with file, line and field.
#include <string>

#include "gtest/gtest.h"
#include "trace/workflow/workflow.h"

namespace optod::trace {
namespace {

const std::set<std::string> kParameters = {"prompt", "solve", "k"};

TEST(WorkflowFile, WholeExample) {
  const auto workflow = ParseWorkflowText(R"(
data: {rows: [{question: q1, label: a}, {question: q2, label: b}]}
parallel: 8
trace_rows: 2
timeout: 5s
steps:
  answer: {llm: {prompt: "{{ask}}", system: be short, temperature: 0, max_tokens: 64, stop: ["\n"]}, retries: 2}
  ask: {template: "{{prompt}}\n{{item.question}}", description: builds the prompt}
  code: {python: {source: "{{solve}}", function: solve, arguments: ["{{item.question}}", 3]}, timeout: 250ms}
  check: {command: {run: "cat $1", arguments: ["{{answer}}"], result: number}, after: [code]}
  short: {op: lower, arguments: ["{{answer}}"], when: "{{item.label}}"}
  all: {map: {over: [1, 2], as: part, step: {template: "{{part}}-{{k}}"}}}
guide: {exact: {got: "{{short}}", want: "{{item.label}}"}}
)",
                                          "flow.yaml", kParameters);
  ASSERT_TRUE(workflow.ok()) << workflow.status();
  std::set<std::string> before;
  for (const Step& step : workflow->steps) {
    for (const std::string& name : step.uses) {
      const bool is_step = name == "ask" || name == "answer" || name == "code";
      EXPECT_TRUE(!is_step || before.count(name)) << step.name << " comes before " << name;
    }
    before.insert(step.name);
  }
  EXPECT_EQ(before.size(), 6u);
  EXPECT_EQ(workflow->parameters, kParameters);
  EXPECT_EQ(workflow->rows[1], R"({"question":"q2","label":"b"})");
  for (const Step& step : workflow->steps) EXPECT_EQ(step.timeout_ms, step.name == "code" ? 250 : 5'000) << step.name;
  EXPECT_TRUE(workflow->UsesModel());
  EXPECT_EQ(workflow->guide.kind, Guide::Kind::kExact);
}

TEST(WorkflowFile, JsonIsTheSame) {
  const auto workflow =
      ParseWorkflowText(R"({"steps": {"a": {"template": "x {{prompt}}"}}})", "flow.json", kParameters);
  ASSERT_TRUE(workflow.ok()) << workflow.status();
  EXPECT_FALSE(workflow->UsesModel());
}

struct Bad {
  const char* name;
  const char* text;
  const char* message;
};
const Bad kBad[] = {
    {"not_yaml", "steps: [", "f.yaml:1: not YAML"},
    {"a_list", "- a", "f.yaml:1: must be a mapping"},
    {"no_steps", "parallel: 2", "f.yaml:1: steps: missing"},
    {"empty_steps", "steps: {}", "f.yaml:1: steps: must hold at least one step"},
    {"unknown_field", "steps:\n  a: {template: x}\ngiude: {}", "f.yaml:3: giude: unknown field; did you mean guide?"},
    {"maps_too_deep",
     "steps:\n  a: {map: {over: [], step: {map: {over: [], step: {map: {over: [], step: {map: {over: [], step: {map: {over: "
     "[], step: {template: x}}}}}}}}}}}",
     "maps nest at most 4 deep"},
    {"twice", "steps:\n  a: {template: x}\n  a: {template: y}", "f.yaml:3: a: given twice"},
    {"no_work", "steps:\n  a: {retries: 1}", "f.yaml:2: steps.a: needs one of template, llm"},
    {"two_works", "steps:\n  a:\n    template: x\n    op: add", "f.yaml:4: steps.a.op: a step does one thing"},
    {"unknown_in_step", "steps:\n  a:\n    template: x\n    retires: 1",
     "f.yaml:4: steps.a.retires: unknown field; did you mean retries?"},
    {"unknown_in_llm", "steps:\n  a:\n    llm:\n      prompt: x\n      tempreture: 1",
     "f.yaml:5: steps.a.llm.tempreture: unknown field; did you mean temperature?"},
    {"no_prompt", "steps:\n  a: {llm: {system: x}}", "f.yaml:2: steps.a.llm.prompt: missing"},
    {"temperature", "steps:\n  a: {llm: {prompt: x, temperature: 3}}", "steps.a.llm.temperature: must be 0 to 2"},
    {"retries", "steps:\n  a: {template: x, retries: 11}", "steps.a.retries: must be a whole number from 0 to 10"},
    {"timeout", "steps:\n  a: {template: x, timeout: soon}", "steps.a.timeout: must be a duration"},
    {"name", "steps:\n  a-b: {template: x}", "f.yaml:2: steps.a-b: a step's name consists of"},
    {"row_name", "steps:\n  item: {template: x}", "steps.item: is the name of the data set's row"},
    {"parameter_name", "steps:\n  prompt: {template: x}", "steps.prompt: is the name of a parameter"},
    {"nothing_has_it", "steps:\n  a: {template: '{{promt}}'}",
     "f.yaml:2: steps.a: {{promt}}: nothing has that name; did you mean prompt?"},
    {"item_without_data", "steps:\n  a: {template: '{{item.x}}'}",
     "{{item}}: nothing has that name; without `data` there are no rows"},
    {"open_hole", "steps:\n  a: {template: 'x {{prompt'}", "steps.a.template: {{ has no }}"},
    {"bad_hole", "steps:\n  a: {template: '{{a b}}'}", "is not a name or a path"},
    {"circle", "steps:\n  a: {template: '{{b}}'}\n  b: {template: '{{a}}'}", "f.yaml:2: steps.a: waits for itself"},
    {"after_itself", "steps:\n  a: {template: x, after: [a]}", "waits for itself"},
    {"operator", "steps:\n  a: {op: ad, arguments: [1, 2]}",
     "f.yaml:2: steps.a.op: \"ad\" is no operator; did you mean add?"},
    {"operator_arguments", "steps:\n  a: {op: add, arguments: [1]}", "steps.a.op: add takes 2 arguments, 1 are given"},
    {"shell_hole", "steps:\n  a: {command: {run: 'echo {{prompt}}'}}", "a value must not become shell"},
    {"shell_hole_short", "steps:\n  a: {command: 'echo {{prompt}}'}", "steps.a.command: is empty or holds {{...}}"},
    {"command_result", "steps:\n  a: {command: {run: x, result: jsn}}", "did you mean json?"},
    {"function_name", "steps:\n  a: {python: {source: x, function: 'a b'}}",
     "steps.a.python.function: must be the name of a function"},
    {"python_map_arguments", "steps:\n  a: {python: {source: x, function: f, arguments: {a: 1}}}", "must be a list"},
    {"method", "steps:\n  a: {http: {url: x, method: FETCH}}", "steps.a.http.method: must be GET"},
    {"schema", "steps:\n  a: {llm: {prompt: x, schema: {type: strin}}}",
     "steps.a.llm.schema: schema.type: \"strin\" is no type"},
    {"schema_keyword", "steps:\n  a: {llm: {prompt: x, schema: {'$ref': y}}}",
     "schema.$ref: is not supported"},
    {"guide_unknown", "steps:\n  a: {template: x}\nguide: {exactt: {got: a}}",
     "f.yaml:3: guide.exactt: unknown field; did you mean exact?"},
    {"guide_empty", "steps:\n  a: {template: x}\nguide: {}", "f.yaml:3: guide: needs one of score"},
    {"guide_two", "steps:\n  a: {template: x}\nguide: {score: 1, exact: {got: 1, want: 1}}", "a guide is one of"},
    {"guide_want", "steps:\n  a: {template: x}\nguide: {exact: {got: 1}}", "guide.exact.want: missing"},
    {"guide_pattern", "steps:\n  a: {template: x}\nguide: {regex: {got: 1, pattern: '('}}",
     "guide.regex.pattern: not a regular expression"},
    {"guide_rubric", "steps:\n  a: {template: x}\nguide: {judge: {got: 1}}", "guide.judge.rubric: missing"},
    {"guide_name", "steps:\n  a: {template: x}\nguide: {score: '{{b}}'}",
     "f.yaml:3: guide: {{b}}: nothing has that name"},
    {"data_both", "data: {file: x, rows: [1]}\nsteps:\n  a: {template: x}",
     "f.yaml:1: data: needs either `file` or `rows`"},
    {"data_rows", "data: {rows: []}\nsteps:\n  a: {template: x}", "data.rows: must be a list with at least one row"},
    {"data_limit", "data: {rows: [1], limit: 0}\nsteps:\n  a: {template: x}",
     "data.limit: must be a whole number from 1"},
    {"parallel", "parallel: 65\nsteps:\n  a: {template: x}", "parallel: must be a whole number from 1 to 64"},
    {"alias_bomb",
     "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
     "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
     "e: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]",
     "more than 100000 values"},
};
class BadWorkflowTest : public ::testing::TestWithParam<Bad> {};
TEST_P(BadWorkflowTest, IsToldWithItsPlace) {
  const auto workflow = ParseWorkflowText(GetParam().text, "f.yaml", kParameters);
  EXPECT_EQ(workflow.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(workflow.status().message()).find(GetParam().message), std::string::npos) << workflow.status();
}
INSTANTIATE_TEST_SUITE_P(All, BadWorkflowTest, ::testing::ValuesIn(kBad),
                         [](const auto& info) { return info.param.name; });

TEST(Rows, LinesAndLists) {
  EXPECT_EQ(*ParseRows("{\"a\":1}\n\n[2]\n", "x.jsonl"), (std::vector<std::string>{"{\"a\":1}", "[2]"}));
  EXPECT_EQ(*ParseRows("[1, {\"a\": 2}]", "x.json"), (std::vector<std::string>{"1", "{\"a\":2}"}));
  EXPECT_EQ(ParseRows("1\n{", "x.jsonl").status().message(), "x.jsonl:2: is not JSON");
  EXPECT_FALSE(ParseRows("{}", "x.json").ok());
  EXPECT_FALSE(ParseRows("\n", "x.jsonl").ok());
}

}  // namespace
}  // namespace optod::trace
