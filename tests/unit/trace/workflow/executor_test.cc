// Workflows run with scripted models and pages, and with the real sandbox where there is one.
#include "trace/workflow/executor.h"

#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "base/status.h"
#include "gtest/gtest.h"

namespace optod::trace {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;

const Sandbox& Real() {
  static const auto sandbox = Sandbox::Detect("/usr/bin:/bin");
  return *sandbox;
}

class ScriptedPages : public HttpTransport {
 public:
  absl::StatusOr<HttpResponse> Perform(const HttpRequest& request) override {
    std::lock_guard lock(mutex_);
    seen.push_back(request);
    HttpResponse response;
    const bool broken = request.url.find("broken") != std::string::npos;
    response.status = broken && seen.size() < 3 ? 500 : request.url.find("gone") != std::string::npos ? 404 : 200;
    response.body = R"({"url":")" + request.url + "\"}";
    return response;
  }
  std::vector<HttpRequest> seen;

 private:
  std::mutex mutex_;
};

class WorkflowTest : public ::testing::Test {
 protected:
  WorkflowTest() {
    services_.clock = &clock_;
    services_.sandbox = &Real();
    services_.http = &pages_;
    services_.unprotected_commands = true;
    services_.complete = [this](const std::string& endpoint, const ChatRequest& request, milliseconds,
                                const std::atomic<bool>*) -> absl::StatusOr<ChatReply> {
      std::lock_guard lock(mutex_);
      asked_.push_back(endpoint + ": " + request.messages.back().content);
      if (!replies_) return absl::UnavailableError("no model");
      auto text = replies_(request);
      if (!text.ok()) return text.status();
      ChatReply reply;
      reply.text = *text;
      reply.usage = {10, 5, 0.25};
      return reply;
    };
  }

  WorkflowRun Go(const std::string& text, const std::map<std::string, std::string>& parameters = {}) {
    std::set<std::string> names;
    for (const auto& [name, value] : parameters) names.insert(name);
    auto parsed = ParseWorkflowText(text, "f.yaml", names);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    if (!parsed.ok()) return {};
    workflow_ = *parsed;
    input_.parameters = parameters;
    auto run = RunWorkflow(workflow_, input_, services_);
    EXPECT_TRUE(run.ok()) << run.status();
    return run.ok() ? *std::move(run) : WorkflowRun{};
  }

  absl::Status Refused(const std::string& text) {
    auto parsed = ParseWorkflowText(text, "f.yaml", {});
    return parsed.ok() ? RunWorkflow(*parsed, input_, services_).status() : parsed.status();
  }

  static const TraceNode* Find(const RowRun& row, const std::string& base) {
    for (const TraceNode& node : row.nodes)
      if (node.base == base) return &node;
    return nullptr;
  }
  static std::string TextOf(const RowRun& row, const std::string& base) {
    const TraceNode* node = Find(row, base);
    return node == nullptr ? "(none)" : node->text;
  }
  bool NeedsSandbox() const { return Real().features().available; }

  FakeClock clock_;  // waits take no time
  ScriptedPages pages_;
  WorkflowServices services_;
  WorkflowInput input_;
  Workflow workflow_;
  std::function<absl::StatusOr<std::string>(const ChatRequest&)> replies_;
  std::mutex mutex_;
  std::vector<std::string> asked_;
};

TEST_F(WorkflowTest, StepsHandValuesOn) {
  replies_ = [](const ChatRequest& request) { return "Reply to " + request.messages.back().content; };
  const auto run = Go(R"(
steps:
  ask: {template: "{{prompt}}: {{k}}"}
  answer: {llm: {prompt: "{{ask}}", system: short, endpoint: big}}
  loud: {op: upper, arguments: ["{{answer}}"]}
guide: {exact: {got: "{{loud}}", want: "REPLY TO P: 3"}}
)",
                      {{"prompt", "\"P\""}, {"k", "3"}});
  ASSERT_EQ(run.rows.size(), 1u);
  EXPECT_EQ(run.score, 1);
  EXPECT_EQ(run.rows[0].feedback, "correct");
  EXPECT_EQ(asked_, std::vector<std::string>{"big: P: 3"});
  EXPECT_EQ(run.model_calls, 1);
  EXPECT_EQ(run.usage.total_tokens(), 15);
  EXPECT_EQ(run.usage.usd, 0.25);
  const TraceNode* ask = Find(run.rows[0], "ask");
  ASSERT_NE(ask, nullptr);
  ASSERT_EQ(ask->inputs.size(), 2u);
  EXPECT_EQ(ask->inputs[1].parameter, "prompt");
  const TraceNode* loud = Find(run.rows[0], "loud");
  EXPECT_EQ(loud->op, "upper");
  EXPECT_EQ(run.rows[0].nodes[static_cast<size_t>(loud->inputs[0].node)].base, "answer");
}

TEST_F(WorkflowTest, RowsAreScoredSinglyAndTheWorstAreShown) {
  const auto run = Go(R"(
data: {rows: [{x: 1, y: 2}, {x: 2, y: 4}, {x: 3, y: 7}, {x: "a", y: 0}]}
trace_rows: 2
steps:
  twice: {op: mul, arguments: ["{{item.x}}", "{{k}}"]}
guide: {numeric: {got: "{{twice}}", want: "{{item.y}}"}}
)",
                      {{"k", "2"}});
  ASSERT_EQ(run.rows.size(), 4u);
  EXPECT_EQ(run.score, 0.5);
  EXPECT_EQ(run.failed_rows, 1);
  EXPECT_EQ(run.failure, "");
  EXPECT_EQ(run.rows[2].feedback, "wrong: got 6, expected 7");
  EXPECT_TRUE(run.rows[3].failed);
  EXPECT_EQ(run.rows[3].feedback, "(ValueError) mul: \"a\" is not a number");
  const WorkflowTrace trace = TraceOf(workflow_, run);
  EXPECT_EQ(trace.feedback, "row 2: wrong: got 6, expected 7\nrow 3: (ValueError) mul: \"a\" is not a number\n");
  Graph graph;
  std::vector<NodeInput> parameters(1);
  parameters[0].base_name = "k";
  parameters[0].kind = NodeKind::kParameter;
  parameters[0].type_name = "int";
  parameters[0].value_text = "2";
  parameters[0].trainable = true;
  const auto k = graph.AddNodes(parameters);
  ASSERT_TRUE(k.ok());
  const auto ids = AddToGraph(trace, {{"k", (*k)[0]}}, &graph);
  ASSERT_TRUE(ids.ok()) << ids.status();
  const NodeId output = (*ids)[static_cast<size_t>(trace.output)];
  EXPECT_EQ(graph.Name(output), "result:0");
  ASSERT_EQ(graph.Parents(output).size(), 2u);
  EXPECT_EQ(graph.Kind(graph.Parents(output)[1]), NodeKind::kException);
  EXPECT_EQ(graph.Name(graph.Parents(graph.Parents(output)[1])[1]), "k:0");
  EXPECT_EQ(AddToGraph(trace, {}, &graph).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(WorkflowTest, WhatUsesAFailedStepDoesNotRun) {
  const auto run = Go(R"(
steps:
  bad: {op: div, arguments: [1, 0]}
  after_bad: {template: "{{bad}}"}
  further: {template: "{{after_bad}}"}
  other: {template: fine}
guide: {exact: {got: "{{further}}", want: x}}
)");
  EXPECT_EQ(TextOf(run.rows[0], "exception_bad"), "(ValueError) div: 1 / 0");
  EXPECT_EQ(TextOf(run.rows[0], "other"), "fine");
  EXPECT_EQ(Find(run.rows[0], "after_bad"), nullptr);
  EXPECT_TRUE(run.rows[0].failed);
  EXPECT_EQ(run.rows[0].nodes[static_cast<size_t>(run.rows[0].output)].base, "exception_bad");
}

TEST_F(WorkflowTest, ConditionsSkip) {
  const auto run = Go(R"(
data: {rows: [{go: true}, {go: false}]}
steps:
  maybe: {template: went, when: "{{item.go}}"}
  result: {op: if, arguments: ["{{maybe}}", "{{maybe}}", stayed]}
guide: {regex: {got: "{{result}}", pattern: "^went$"}}
)");
  EXPECT_EQ(TextOf(run.rows[0], "result"), "went");
  EXPECT_EQ(TextOf(run.rows[1], "result"), "stayed");
  EXPECT_EQ(Find(run.rows[1], "maybe")->op, "skip");
  EXPECT_EQ(run.score, 0.5);
}

TEST_F(WorkflowTest, MapKeepsTheOrder) {
  const auto run = Go(R"(
steps:
  all: {map: {over: [3, 1, 2], as: n, step: {op: mul, arguments: ["{{n}}", 10]}}}
  bad: {map: {over: [1, x], step: {op: neg, arguments: ["{{each}}"]}}}
)");
  EXPECT_EQ(TextOf(run.rows[0], "all"), "[30,10,20]");
  EXPECT_EQ(TextOf(run.rows[0], "exception_bad"), "(ValueError) entry 1: sub: \"x\" is not a number");
}

TEST_F(WorkflowTest, AnEntryOfAMapMayBeSkipped) {
  const auto run = Go(R"(
data: {rows: [[1, 0, 3], [0]]}
steps:
  some: {map: {over: "{{item}}", as: n, step: {op: mul, arguments: ["{{n}}", 10], when: "{{n}}"}}}
  broken: {map: {over: "{{item}}", step: {template: x, when: "{{each.there}}"}}}
)");
  EXPECT_EQ(TextOf(run.rows[0], "some"), "[10,null,30]");
  EXPECT_EQ(TextOf(run.rows[1], "some"), "[null]");
  EXPECT_NE(TextOf(run.rows[0], "exception_broken").find("entry 0: "), std::string::npos);
}

TEST_F(WorkflowTest, MapsNest) {
  const auto run = Go(R"(
parallel: 2
data: {rows: [[[1, 2], [], [3, 0]]]}
steps:
  pairs: {map: {over: "{{item}}", as: row, step: {map: {over: "{{row}}", as: n, step: {template: ["{{n}}", "{{row.0}}"], when: "{{n}}"}}}}}
  same_name: {map: {over: [[1], [2]], step: {map: {over: "{{each}}", step: {op: neg, arguments: ["{{each}}"]}}}}}
  bad: {map: {over: [[1], [x]], step: {map: {over: "{{each}}", step: {op: neg, arguments: ["{{each}}"]}}}}}
)");
  EXPECT_EQ(TextOf(run.rows[0], "pairs"), "[[[1,1],[2,1]],[],[[3,3],null]]");
  EXPECT_EQ(TextOf(run.rows[0], "same_name"), "[[-1],[-2]]");
  EXPECT_EQ(TextOf(run.rows[0], "exception_bad"), "(ValueError) entry 1: entry 0: sub: \"x\" is not a number");
}

TEST_F(WorkflowTest, RetriesOfWhatMayPass) {
  std::atomic<int> calls{0};
  replies_ = [&](const ChatRequest&) -> absl::StatusOr<std::string> {
    if (++calls < 3) return absl::UnavailableError("not yet");
    return "ok";
  };
  const auto run = Go("steps:\n  a: {llm: {prompt: x}, retries: 2}");
  EXPECT_EQ(TextOf(run.rows[0], "a"), "ok");
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(clock_.NowMonotonicNs(), 300'000'000);  // 0.1 s and 0.2 s
  calls = -100;
  const auto failed = Go("steps:\n  a: {llm: {prompt: x}, retries: 1}");
  EXPECT_EQ(TextOf(failed.rows[0], "exception_a"), "(ConnectionError) not yet (2 attempts)");
  EXPECT_EQ(calls, -98);
}

TEST_F(WorkflowTest, RepliesWithASchema) {
  replies_ = [](const ChatRequest& request) -> absl::StatusOr<std::string> {
    EXPECT_TRUE(request.json_schema.has_value());
    return request.messages.back().content;
  };
  const std::string step =
      "{llm: {prompt: '{{p}}', schema: {type: object, properties: {n: {type: integer}}, required: [n]}}}";
  EXPECT_EQ(TextOf(Go("steps:\n  a: " + step, {{"p", R"("so: {\"n\": 3}.")"}}).rows[0], "a"), "{\"n\":3}");
  EXPECT_EQ(TextOf(Go("steps:\n  a: " + step, {{"p", R"("{\"n\": 3.5}")"}}).rows[0], "exception_a"),
            "(ValueError) the reply does not follow the schema: $.n: 3.5 is not of type integer");
  EXPECT_EQ(TextOf(Go("steps:\n  a: " + step, {{"p", "\"no\""}}).rows[0], "exception_a"),
            "(ValueError) the reply is not JSON: no");
}

TEST_F(WorkflowTest, Pages) {
  const auto run = Go(R"(
steps:
  page: {http: {url: "http://h/{{k}}", headers: {X-A: "{{k}}"}, body: {v: "{{k}}"}, json: true}}
  again: {http: {url: "http://h/broken"}, retries: 3, after: [page]}
  gone: {http: {url: "http://h/gone"}, retries: 3, after: [again]}
)",
                      {{"k", "7"}});
  EXPECT_EQ(TextOf(run.rows[0], "page"), "{\"url\":\"http://h/7\"}");
  EXPECT_EQ(pages_.seen[0].method, "POST");
  EXPECT_EQ(pages_.seen[0].body, "{\"v\":7}");
  EXPECT_EQ(TextOf(run.rows[0], "again"), "{\"url\":\"http://h/broken\"}");
  EXPECT_EQ(TextOf(run.rows[0], "exception_gone").substr(0, 23), "(HttpError) status 404\n");
  EXPECT_EQ(pages_.seen.size(), 4u);  // page, broken twice, gone once: a 404 stays
}

TEST_F(WorkflowTest, CommandsInTheSandbox) {
  if (!NeedsSandbox()) GTEST_SKIP() << Real().features().reason;
  const auto run = Go(R"y(
steps:
  text: {command: {run: 'echo "$1 $E $(cat)"; id -u', arguments: ["{{p}}"], input: in, environment: {E: env}}}
  number: {command: {run: 'echo some words; echo 4.5', result: number}}
  json: {command: {run: 'echo x; echo [1]', result: json}}
  code: {command: {run: 'exit 3', result: exit_code}}
  all: {command: {run: 'echo o; echo e >&2; exit 1', result: all}}
  fails: {command: 'echo why >&2; exit 9'}
  hangs: {command: 'sleep 1000', timeout: 300ms}
  floods: {command: yes}
)y",
                      {{"p", "\"$(reboot); `id`\""}});
  EXPECT_EQ(TextOf(run.rows[0], "text"), "$(reboot); `id` env in\n65534");
  EXPECT_EQ(TextOf(run.rows[0], "number"), "4.5");
  EXPECT_EQ(TextOf(run.rows[0], "json"), "[1]");
  EXPECT_EQ(TextOf(run.rows[0], "code"), "3");
  EXPECT_EQ(TextOf(run.rows[0], "all"), R"({"exit_code":1,"out":"o\n","err":"e\n"})");
  EXPECT_EQ(TextOf(run.rows[0], "exception_fails"), "(CommandError) exit code 9\nwhy\n");
  EXPECT_EQ(TextOf(run.rows[0], "exception_hangs"), "(TimeoutError) it was still running after 300 ms and was killed");
  EXPECT_EQ(TextOf(run.rows[0], "exception_floods"), "(CommandError) it wrote more than 1048576 bytes");
}

TEST_F(WorkflowTest, CommandsWithoutTheSandboxOnlyWhereAllowed) {
  EXPECT_EQ(TextOf(Go("steps:\n  a: {command: {run: 'echo $$', sandbox: false}}").rows[0], "exception_a"), "(none)");
  services_.unprotected_commands = false;
  const absl::Status refused = Refused("steps:\n  a: {command: {run: 'echo x', sandbox: false}}");
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(refused.message(), "step a: `sandbox: false` is not allowed here");
}

TEST_F(WorkflowTest, PythonInTheSandbox) {
  if (!NeedsSandbox()) GTEST_SKIP() << Real().features().reason;
  const std::string step =
      "steps:\n  a: {python: {source: '{{s}}', function: f, arguments: [2, [1]], keywords: {k: 5}}, timeout: 5s}";
  const auto text = [&](const std::string& source) {
    const RowRun row = Go(step, {{"s", Json(source).dump()}}).rows[0];
    return Find(row, "a") != nullptr ? TextOf(row, "a") : TextOf(row, "exception_a");
  };
  EXPECT_EQ(text("def f(x, y, k):\n    print('noise')\n    return {'r': x * k + len(y)}"), "{\"r\":11}");
  EXPECT_EQ(text("def f(x, y, k):\n    return x / 0").substr(0, 36), "(ZeroDivisionError) division by zero");
  EXPECT_NE(text("def f(x, y, k):\n    return x / 0").find("return x / 0"), std::string::npos);
  EXPECT_EQ(text("def g(): pass").substr(0, 46), "(NameError) the source defines no function f");
  EXPECT_EQ(text("def f(x, y, k)\n    return").substr(0, 13), "(SyntaxError)");
  EXPECT_EQ(text("def f(*a, **k): return f").substr(0, 41), "(TypeError) the result has no JSON form: ");
  EXPECT_EQ(text("def f(*a, **k): return float('nan')").substr(0, 41), "(TypeError) the result has no JSON form: ");
  EXPECT_EQ(text("import os\ndef f(*a, **k): os._exit(3)"), "(BadResult) no result came (exit code 3)");
  EXPECT_EQ(text("import os\ndef f(*a, **k):\n    os.write(3, b'00000015{\"ok\":true,\"value\":7}')\n    return 1"),
            "(BadResult) the result is cut or followed by something");
  EXPECT_EQ(text("def f(*a, **k):\n    while True: pass").substr(0, 33), "(SandboxLimit) the wall clock of ");
  EXPECT_EQ(text("import socket\ndef f(*a, **k): socket.create_connection(('127.0.0.1', 22))").substr(0, 17),
            "(PermissionError)");
}

TEST_F(WorkflowTest, Guides) {
  const auto verdict = [&](const std::string& guide) {
    const RowRun row = Go("steps:\n  a: {template: '{{v}}'}\nguide: " + guide, {{"v", "\" Yes \""}}).rows[0];
    return row.failed ? row.feedback : Cat(*row.score, " ", row.feedback);
  };
  EXPECT_EQ(verdict("{exact: {got: '{{a}}', want: 'yes'}}"), "0 wrong: got \" Yes \", expected \"yes\"");
  EXPECT_EQ(verdict("{exact: {got: '{{a}}', want: 'yes', ignore_case: true}}"), "1 correct");
  EXPECT_EQ(verdict("{exact: {got: '3', want: 3}}"), "1 correct");
  EXPECT_EQ(verdict("{regex: {got: '{{a}}', pattern: 'Y.s'}}"), "1 matches");
  EXPECT_EQ(verdict("{numeric: {got: 1.05, want: 1, tolerance: 0.1}}"), "1 correct");
  EXPECT_EQ(verdict("{numeric: {got: '{{a}}', want: 1}}"), "0 wrong: got \" Yes \", which is not a number; expected 1");
  EXPECT_EQ(verdict("{numeric: {got: 1, want: '{{a}}'}}"), "(ValueError) want: number: \" Yes \" is not a number");
  EXPECT_EQ(verdict("{schema: {got: '{\"n\": 1}', schema: {required: [m]}}}"),
            "0 does not follow the schema: $: member m is missing");
  EXPECT_EQ(verdict("{score: 0.25, feedback: 'said {{a}}'}"), "0.25 said  Yes ");
  EXPECT_EQ(verdict("{score: '{{a}}'}"), "(ValueError) number: \" Yes \" is not a number");
  replies_ = [](const ChatRequest& request) -> absl::StatusOr<std::string> {
    EXPECT_NE(request.messages[1].content.find("Rubric:\nbe polite"), std::string::npos);
    return R"(Sure: {"feedback": "too short", "score": 0.4})";
  };
  EXPECT_EQ(verdict("{judge: {got: '{{a}}', rubric: be polite}}"), "0.4 too short");
  replies_ = [](const ChatRequest&) -> absl::StatusOr<std::string> { return R"({"feedback": "", "score": 4})"; };
  EXPECT_EQ(verdict("{judge: {got: '{{a}}', rubric: x}}").substr(0, 60),
            "(ValueError) the judge's reply holds no score from 0 to 1: {");
  if (!NeedsSandbox()) return;
  EXPECT_EQ(verdict("{command: {run: 'test \"$1\" = x', arguments: ['{{a}}']}}"), "0 wrong: exit code 1");
  EXPECT_EQ(verdict("{command: {run: 'grep Yes', input: '{{a}}'}}"), "1  Yes \n");
}

TEST_F(WorkflowTest, AScoreGuideHasNoScoreWhenARowFails) {
  const auto run =
      Go("data: {rows: [1, 0]}\nsteps:\n  a: {op: div, arguments: [1, '{{item}}']}\nguide: {score: '{{a}}'}");
  EXPECT_EQ(run.failure, "row 1: (ValueError) div: 1 / 0");
}

TEST_F(WorkflowTest, StepsThatDoNotUseEachOtherRunAtOnce) {
  std::atomic<int> inside{0};
  replies_ = [&](const ChatRequest&) -> absl::StatusOr<std::string> { return "x"; };
  services_.complete = [&](const std::string&, const ChatRequest&, milliseconds,
                           const std::atomic<bool>*) -> absl::StatusOr<ChatReply> {
    // Each waits until all four are inside: with less at once this would not end.
    ++inside;
    while (inside < 4) std::this_thread::yield();
    ChatReply reply;
    reply.text = "x";
    return reply;
  };
  const auto run = Go("parallel: 4\ndata: {rows: [1, 2]}\nsteps:\n  a: {llm: {prompt: x}}\n  b: {llm: {prompt: y}}");
  EXPECT_EQ(run.failed_rows, 0);
}

TEST_F(WorkflowTest, NeverMoreAtOnceThanParallel) {
  std::atomic<int> inside{0}, most{0};
  services_.complete = [&](const std::string&, const ChatRequest&, milliseconds,
                           const std::atomic<bool>*) -> absl::StatusOr<ChatReply> {
    const int now = ++inside;
    for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
    }
    std::this_thread::yield();
    --inside;
    ChatReply reply;
    reply.text = "x";
    return reply;
  };
  const auto run =
      Go("parallel: 3\ndata: {rows: [[1,2,3,4,5,6], [1,2,3,4,5,6], [1,2,3]]}\nsteps:\n  a: {map: {over: '{{item}}', "
         "step: {llm: {prompt: '{{each}}'}}}}");
  EXPECT_EQ(run.failed_rows, 0);
  EXPECT_LE(most, 3);
}

TEST_F(WorkflowTest, CancellationEndsEverything) {
  std::atomic<bool> cancelled{false};
  input_.cancelled = &cancelled;
  services_.complete = [&](const std::string&, const ChatRequest&, milliseconds,
                           const std::atomic<bool>* stop) -> absl::StatusOr<ChatReply> {
    cancelled = true;
    while (!stop->load()) std::this_thread::yield();
    return absl::CancelledError("cancelled");
  };
  const auto run = Go("data: {rows: [1, 2, 3, 4, 5, 6, 7, 8]}\nsteps:\n  a: {llm: {prompt: x}, retries: 5}");
  EXPECT_TRUE(run.cancelled);
  EXPECT_EQ(run.failure, "cancelled");
  for (const RowRun& row : run.rows) EXPECT_EQ(row.output, -1);
}

TEST_F(WorkflowTest, WallClockOfTheWholeRun) {
  input_.wall = milliseconds(1);
  services_.complete = [&](const std::string&, const ChatRequest&, milliseconds,
                           const std::atomic<bool>* stop) -> absl::StatusOr<ChatReply> {
    clock_.SleepFor(milliseconds(2));
    while (!stop->load()) std::this_thread::yield();
    return absl::CancelledError("cancelled");
  };
  EXPECT_EQ(Go("steps:\n  a: {llm: {prompt: x}}").failure, "the workflow was still running after 1 ms");
}

TEST_F(WorkflowTest, AThousandRowsGiveTheSameTraceEveryTime) {
  std::string rows = "[0";
  for (int i = 1; i < 1000; ++i) rows += "," + std::to_string(i);
  const std::string text = "parallel: 8\ntrace_rows: 100\ndata: {rows: " + rows +
                           "]}\nsteps:\n  a: {op: mod, arguments: ['{{item}}', 7]}\n  b: {op: add, arguments: "
                           "['{{a}}', '{{index}}']}\nguide: {exact: {got: '{{a}}', want: 3}}";
  const auto shown = [&] {
    std::string all;
    const WorkflowRun run = Go(text);
    for (const TraceNode& node : TraceOf(workflow_, run).nodes) all += node.base + "=" + node.text + ";";
    return all + Cat(run.score);
  };
  const std::string first = shown();
  EXPECT_EQ(first, shown());
  EXPECT_NE(first.find("0.143"), std::string::npos);
}

TEST_F(WorkflowTest, WhatIsNotThereIsRefusedBeforeAnythingRuns) {
  const auto none = Sandbox::Detect("/nonexistent");
  services_.sandbox = none.get();
  const absl::Status python =
      Refused("steps:\n  a: {python: {source: x, function: f}}\n  b: {http: {url: 'http://h/'}}");
  EXPECT_EQ(python.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::string(python.message()).substr(0, 46), "step a: needs a sandbox: bwrap is not in PATH ");
  EXPECT_TRUE(pages_.seen.empty());
  services_.complete = nullptr;
  EXPECT_EQ(Refused("steps:\n  a: {llm: {prompt: x}}").message(), "step a: needs a language model and there is none");
  EXPECT_EQ(Refused("steps:\n  a: {template: x}\nguide: {judge: {got: x, rubric: y}}").message(),
            "step guide: needs a language model and there is none");
  services_.http = nullptr;
  EXPECT_EQ(Refused("steps:\n  a: {map: {over: [1], step: {http: {url: x}}}}").code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Refused("data: {file: x.jsonl}\nsteps:\n  a: {template: x}").message(),
            "workflow: data: the rows of x.jsonl are not given");
}

}  // namespace
}  // namespace optod::trace
