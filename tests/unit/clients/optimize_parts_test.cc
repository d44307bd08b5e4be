// Scores, gates, diffs, reports, copies of the folder, evaluations.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "base/random_id.h"
#include "base/subprocess.h"
#include "clients/cli/nearest.h"
#include "clients/cli/optimize/candidate_tree.h"
#include "clients/cli/optimize/evaluator.h"
#include "clients/cli/optimize/feedback.h"
#include "clients/cli/optimize/run_record.h"
#include "clients/cli/optimize/score.h"
#include "clients/cli/optimize/unified_diff.h"
#include "clients/cli/output.h"

namespace optod::cli {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Folder {
 public:
  Folder() : path_(fs::path(testing::TempDir()) / ("optod-test-" + RandomId(10))) { fs::create_directories(path_); }
  ~Folder() { fs::remove_all(path_); }
  void Write(const std::string& name, const std::string& text) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  std::string Read(const std::string& name) const {
    std::ostringstream out;
    out << std::ifstream(path_ / name, std::ios::binary).rdbuf();
    return out.str();
  }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

// ---- scores

struct ScoreCase {
  const char* name;
  ScoreRule rule;
  const char* out;
  int exit_code;
  double want;
  const char* error;  // nullptr = a score
};
using Kind = ScoreRule::Kind;
const ScoreCase kScores[] = {
    {"json_last_line", {Kind::kJson, "score"}, "{\"score\": 1}\nnoise\n{\"score\": 0.5}\nbye\n", 0, 0.5, nullptr},
    {"json_nested", {Kind::kJson, "a.b"}, "{\"a\":{\"b\":2}}", 0, 2, nullptr},
    {"json_dotted_key", {Kind::kJson, "a.b"}, "{\"a.b\":3}", 0, 3, nullptr},
    {"json_bool", {Kind::kJson, "ok"}, "{\"ok\":true}", 0, 1, nullptr},
    {"json_no_line_end", {Kind::kJson, "s"}, "x\n{\"s\":-1e-3}", 0, -1e-3, nullptr},
    {"json_missing_field", {Kind::kJson, "s"}, "{\"t\":1}\n", 0, 0, "no field \"s\""},
    {"json_text", {Kind::kJson, "s"}, "{\"s\":\"high\"}\n", 0, 0, "not a number"},
    {"json_none", {Kind::kJson, "s"}, "hello\n[1]\n{broken\n", 0, 0, "no line of the output"},
    {"json_empty", {Kind::kJson, "s"}, "", 0, 0, "no line of the output"},
    {"json_overflow", {Kind::kJson, "s"}, "{\"s\":1e999}\n", 0, 0, "no "},
    {"regex_last", {Kind::kRegex, "acc=([0-9.]+)"}, "acc=0.1\nacc=0.2 acc=0.3\nend\n", 0, 0.3, nullptr},
    {"regex_whole", {Kind::kRegex, "[0-9]+"}, "a 12 b", 0, 12, nullptr},
    {"regex_none", {Kind::kRegex, "acc=(.*)"}, "loss=1\n", 0, 0, "no line of the output matches"},
    {"regex_no_number", {Kind::kRegex, "acc=(.*)"}, "acc=high\n", 0, 0, "which is not a number"},
    {"regex_nan", {Kind::kRegex, "acc=(.*)"}, "acc=nan\n", 0, 0, "not finite"},
    {"exit_0", {Kind::kExitCode, ""}, "", 0, 1, nullptr},
    {"exit_7", {Kind::kExitCode, ""}, "", 7, 0, nullptr},
};
class Score : public testing::TestWithParam<ScoreCase> {};
TEST_P(Score, IsReadFromTheOutput) {
  const auto score = ExtractScore(GetParam().rule, GetParam().out, GetParam().exit_code);
  if (GetParam().error)
    EXPECT_THAT(std::string(score.status().message()), HasSubstr(GetParam().error));
  else
    EXPECT_TRUE(score.ok() && *score == GetParam().want) << score.status();
}
INSTANTIATE_TEST_SUITE_P(Rules, Score, testing::ValuesIn(kScores),
                         [](const auto& info) { return std::string(info.param.name); });

// ---- gate

struct GateCase {
  const char* name;
  std::optional<double> min_score, min_gain;
  bool maximize;
  std::optional<double> start, best;
  bool passed;
};
const GateCase kGates[] = {
    {"no_gate", {}, {}, true, 0.5, 0.5, true},
    {"no_score", {}, {}, true, {}, {}, false},
    {"reached", 0.9, {}, true, 0.5, 0.9, true},
    {"missed", 0.9, {}, true, 0.5, 0.89, false},
    {"minimize_reached", 0.1, {}, false, 0.5, 0.1, true},
    {"minimize_missed", 0.1, {}, false, 0.5, 0.11, false},
    {"gain_reached", {}, 0.25, true, 0.5, 0.75, true},
    {"gain_missed", {}, 0.26, true, 0.5, 0.75, false},
    {"gain_of_decimals", {}, 0.1, true, 0.6, 0.7, true},
    {"gain_zero_kept", {}, 0.0, true, 0.5, 0.5, true},
    {"minimize_gain", {}, 0.25, false, 0.5, 0.25, true},
    {"minimize_gain_missed", {}, 0.3, false, 0.5, 0.25, false},
    {"start_failed", {}, 0.3, true, {}, 0.1, true},
    {"score_reached_gain_missed", 0.9, 0.1, true, 0.95, 0.97, false},
};
class Gate : public testing::TestWithParam<GateCase> {};
TEST_P(Gate, Judges) {
  const GateCase& c = GetParam();
  EXPECT_EQ(JudgeGate({c.min_score, c.min_gain}, c.maximize, c.start, c.best).passed, c.passed);
}
INSTANTIATE_TEST_SUITE_P(Rules, Gate, testing::ValuesIn(kGates),
                         [](const auto& info) { return std::string(info.param.name); });

// ---- diffs: what `patch` makes of them is what we meant

void ExpectPatchGives(const std::string& before, const std::string& after) {
  Folder folder;
  folder.Write("a/file.txt", before);
  SubprocessOptions options;
  options.argv = {"patch", "-p1", "--batch", "--silent", "--no-backup-if-mismatch"};
  options.working_directory = folder.path();
  options.stdin_data = UnifiedDiff("a/file.txt", before, after);
  const auto result = RunSubprocess(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->exit_code, 0) << result->out << options.stdin_data;
  // patch removes a file that becomes empty.
  EXPECT_EQ(folder.Read("a/file.txt"), after) << options.stdin_data;
}

struct DiffCase {
  const char* name;
  const char* before;
  const char* after;
};
const DiffCase kDiffs[] = {
    {"one_line", "a\nb\nc\n", "a\nX\nc\n"},
    {"first", "a\nb\n", "X\nb\n"},
    {"insert_at_end", "a\n", "a\nb\n"},
    {"delete_at_start", "a\nb\nc\n", "b\nc\n"},
    {"no_line_end_before", "a\nb", "a\nb\n"},
    {"no_line_end_after", "a\nb\n", "a\nb"},
    {"no_line_end_both", "a\nb", "a\nc"},
    {"from_empty", "", "a\nb\n"},
    {"to_one_line", "a\nb\nc\nd\n", "z\n"},
    {"two_hunks", "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n",
     "1\nX\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\nY\n16\n"},
    {"touching_hunks", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "X\n2\n3\n4\n5\n6\n7\nY\n9\n"},
    {"moved", "a\nb\nc\nd\ne\n", "d\ne\na\nb\nc\n"},
    {"blank_lines", "\n\n\na\n\n", "\na\n\n\n"},
    {"utf8", "Grün\nß\n", "Grün\nẞ\n"},
    {"looks_like_a_diff", "--- a\n+++ b\n@@ -1 +1 @@\n", "--- a\n+++ c\n@@ -1 +1 @@\n"},
};
class Diff : public testing::TestWithParam<DiffCase> {};
TEST_P(Diff, AppliesWithPatch) { ExpectPatchGives(GetParam().before, GetParam().after); }
INSTANTIATE_TEST_SUITE_P(Texts, Diff, testing::ValuesIn(kDiffs),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Diff, RandomTextsApplyWithPatch) {
  std::mt19937 random(7);
  for (int round = 0; round < 60; ++round) {
    std::vector<std::string> lines(random() % 40);
    for (std::string& line : lines) line = std::string(1, static_cast<char>('a' + random() % 5)) + "\n";
    std::vector<std::string> edited = lines;
    for (size_t edit = random() % 8; edit > 0; --edit) {
      const size_t at = edited.empty() ? 0 : random() % edited.size();
      if (random() % 2 || edited.empty())
        edited.insert(edited.begin() + static_cast<std::ptrdiff_t>(at), "z\n");
      else
        edited.erase(edited.begin() + static_cast<std::ptrdiff_t>(at));
    }
    std::string before, after;
    for (const std::string& line : lines) before += line;
    for (const std::string& line : edited) after += line;
    if (before != after && !after.empty()) ExpectPatchGives(before, after);
  }
}

TEST(Diff, VeryDifferentTextsBecomeOneReplacement) {
  std::string before, after;
  for (int i = 0; i < 3000; ++i) before += "a" + std::to_string(i) + "\n", after += "b" + std::to_string(i) + "\n";
  ExpectPatchGives("head\n" + before + "tail\n", "head\n" + after + "tail\n");
}

TEST(Diff, EqualTextsGiveNothing) { EXPECT_EQ(UnifiedDiff("f", "a\n", "a\n"), ""); }

// ---- reports

RunRecord ExampleRecord() {
  RunRecord record;
  record.name = "a<b>&\"c\"";
  record.session = "users/local/sessions/s1";
  record.stopped = "all 5 steps are done";
  record.start_score = 0.5;
  record.best_score = 0.75;
  record.best_version = 3;
  record.gate = {false, "best 0.75 < 0.9"};
  record.evaluated = {{0, 0, 0, 0.5, "", 0.1, false},
                      {1, 1, 1, {}, "exited with code 1 | <boom>\n\x01", 0.1, false},
                      {1, 2, 3, 0.75, "", 0.2, false}};
  record.usage.steps = 1;
  record.patch = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-```\n+b\n";
  return record;
}

TEST(Report, LastJsonLineHasItsFixedFieldsInOrder) {
  EXPECT_THAT(
      ResultJson(ExampleRecord()),
      testing::StartsWith(
          R"({"best_score":0.75,"start_score":0.5,"gate":"failed","session":"users/local/sessions/s1","version":3,"usage":{"steps":1,)"));
  RunRecord nothing;
  EXPECT_THAT(ResultJson(nothing), testing::StartsWith(R"({"best_score":null,"start_score":null,"gate":"failed")"));
}

TEST(Report, JUnitEscapesWhatTheRunPrinted) {
  const std::string xml = JUnitXml(ExampleRecord());
  EXPECT_THAT(xml, HasSubstr("a&lt;b&gt;&amp;&quot;c&quot;"));
  EXPECT_THAT(xml, HasSubstr("<skipped message=\"exited with code 1 | &lt;boom&gt;&#10;?\"/>"));
  EXPECT_THAT(xml, HasSubstr("<failure message=\"best 0.75 &lt; 0.9\"/>"));
  EXPECT_THAT(xml, HasSubstr("tests=\"4\" failures=\"1\" errors=\"0\" skipped=\"1\""));
  EXPECT_EQ(xml.find('\x01'), std::string::npos);
}

TEST(Report, MarkdownTableSurvivesBarsAndFences) {
  const std::string text = SummaryMarkdown(ExampleRecord(), OptimizeFile{});
  EXPECT_THAT(text, HasSubstr("exited with code 1 \\| <boom>"));
  EXPECT_THAT(text, HasSubstr("````diff"));
  EXPECT_THAT(text, HasSubstr("| 1 | 2 | 3 | 0.75 | 0.2 | best |"));
}

// ---- the folder and its copies

constexpr char kYaml[] = R"(parameters:
  prompt: {file: prompt.txt}
  solve: {file: solver.py, function: solve}
  k: {value: 5, type: int, range: [1, 20]}  # neighbours
  mood: {value: "calm", type: text}
evaluate:
  command: sh eval.sh
  score: {json: score}
  timeout: 20s
  exclude: [data, "*.bin"]
)";

struct Project {
  Folder folder;
  OptimizeFile file;
  Project(const std::string& eval, const std::string& yaml = kYaml) {
    folder.Write("opt.yaml", yaml);
    folder.Write("prompt.txt", "Say hello.\n");
    folder.Write("solver.py", "import os\n\ndef solve(x):\n    return x\n\nprint(1)\n");
    folder.Write("eval.sh", eval);
    auto parsed = ParseOptimizeFile(yaml, "opt.yaml");
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    file = *parsed;
  }
  absl::StatusOr<CandidateTree> Tree(TreeLimits limits = {}) const {
    return CandidateTree::Open(folder.path(), "opt.yaml", folder.Read("opt.yaml"), file, limits);
  }
};

TEST(CandidateTree, CopiesAllButExcludedAndWritesTheValuesIn) {
  Project project("");
  project.folder.Write(".git/config", "x");
  project.folder.Write("data/big", "x");
  project.folder.Write("sub/a.bin", "x");
  project.folder.Write("sub/keep.txt", "x");
  fs::create_symlink("prompt.txt", project.folder.path() + "/link");
  const auto tree = project.Tree();
  ASSERT_TRUE(tree.ok()) << tree.status();
  Values values = tree->start();
  EXPECT_EQ(values.at("solve"), "def solve(x):\n    return x");
  values["prompt"] = "Say bye.\n";
  values["solve"] = "def solve(x):\n    return x + 1";
  Folder out;
  ASSERT_TRUE(tree->Materialise(values, out.path() + "/copy").ok());
  EXPECT_EQ(out.Read("copy/prompt.txt"), "Say bye.\n");
  EXPECT_EQ(out.Read("copy/solver.py"), "import os\n\ndef solve(x):\n    return x + 1\n\nprint(1)\n");
  EXPECT_EQ(out.Read("copy/sub/keep.txt"), "x");
  EXPECT_TRUE(fs::is_symlink(out.path() + "/copy/link"));
  for (const char* gone : {"/copy/.git", "/copy/data", "/copy/sub/a.bin"})
    EXPECT_FALSE(fs::exists(out.path() + gone)) << gone;
  EXPECT_EQ(project.folder.Read("prompt.txt"), "Say hello.\n");
}

TEST(CandidateTree, RefusesAFolderThatIsTooLargeAndNamesTheLargestEntry) {
  Project project("");
  project.folder.Write("huge/blob", std::string(3 << 20, 'x'));
  const auto tree = project.Tree({2 << 20, 1000});
  Folder out;
  const absl::Status status = tree->Materialise(tree->start(), out.path() + "/copy");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("huge, 3 MiB"));
}

TEST(CandidateTree, WritesBackIntoFilesFunctionsAndTheYamlFile) {
  Project project("");
  const auto tree = project.Tree();
  Values values = tree->start();
  values["k"] = "12";
  values["mood"] = "a \"wild\" one";
  values["solve"] = "def solve(x):\n    return 2 * x";
  ASSERT_TRUE(tree->WriteBack(values).ok());
  EXPECT_THAT(project.folder.Read("opt.yaml"), HasSubstr("k: {value: 12, type: int, range: [1, 20]}  # neighbours"));
  EXPECT_THAT(project.folder.Read("opt.yaml"), HasSubstr(R"(mood: {value: "a \"wild\" one", type: text})"));
  EXPECT_THAT(project.folder.Read("solver.py"), HasSubstr("return 2 * x\n\nprint(1)"));
  const auto again = ParseOptimizeFile(project.folder.Read("opt.yaml"), "opt.yaml");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->parameters[3].value, "a \"wild\" one");
}

TEST(CandidateTree, DoesNotWriteOverAFileThatChangedMeanwhile) {
  Project project("");
  const auto tree = project.Tree();
  Values values = tree->start();
  values["prompt"] = "x";
  project.folder.Write("prompt.txt", "somebody else\n");
  EXPECT_EQ(tree->WriteBack(values).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(project.folder.Read("prompt.txt"), "somebody else\n");
}

struct OpenCase {
  const char* name;
  const char* remove;
  const char* write;
  const char* message;
};
TEST(CandidateTree, NamesTheParameterWhoseFileIsWrong) {
  const OpenCase cases[] = {
      {"absent", "prompt.txt", "", "parameters.prompt: file: prompt.txt cannot be read"},
      {"binary", "prompt.txt", "\xff\xfe", "parameters.prompt: file: prompt.txt is not UTF-8"},
      {"no_function", "solver.py", "def slove(): pass\n",
       "parameters.solve: solver.py: function: \"solve\" is not defined here; did you mean slove?"}};
  for (const OpenCase& c : cases) {
    Project project("");
    fs::remove(project.folder.path() + "/" + c.remove);
    if (*c.write) project.folder.Write(c.remove, c.write);
    EXPECT_THAT(std::string(project.Tree().status().message()), HasSubstr(c.message)) << c.name;
  }
}

// ---- evaluations

struct EvaluateCase {
  const char* name;
  const char* script;
  std::optional<double> score;
  const char* failure;
  const char* out;
};
const EvaluateCase kEvaluations[] = {
    {"reads_files_and_values", "grep -q hello prompt.txt && echo \"{\\\"score\\\": $OPTOD_PARAM_k}\"", 5, "", ""},
    {"upper_case_too", "echo \"{\\\"score\\\": $OPTOD_PARAM_K}\"", 5, "", ""},
    {"params_file", "grep -q '\"mood\":\"calm\"' $OPTOD_PARAMS_FILE && echo '{\"score\": 1}'", 1, "", ""},
    {"dies", "echo oops >&2; exit 3", {}, "the command exited with code 3", ""},
    {"killed", "kill -9 $$", {}, "ended by signal 9", ""},
    {"no_score", "echo hello", {}, "no line of the output is a JSON object", "hello\n"},
    {"path_is_hidden", "echo at $PWD/eval.sh in $PWD; echo '{\"score\": 1}'", 1, "", "at eval.sh in .\n"},
    {"not_utf8", "printf '\\377\\n{\"score\": 1}\\n'", 1, "", "\xEF\xBF\xBD"},
    {"cannot_touch_the_original", "echo x > prompt.txt; rm solver.py; echo '{\"score\": 1}'", 1, "", ""},
};
class Evaluate : public testing::TestWithParam<EvaluateCase> {};
TEST_P(Evaluate, GivesScoreOrReason) {
  Project project(GetParam().script);
  const auto tree = project.Tree();
  ASSERT_TRUE(tree.ok()) << tree.status();
  Folder temporary;
  EvaluatorOptions options;
  options.temporary_root = temporary.path();
  Evaluator evaluator(*tree, project.file, options);
  const auto result = evaluator.Evaluate(tree->start());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->score, GetParam().score) << result->failure;
  EXPECT_THAT(result->failure, HasSubstr(GetParam().failure));
  EXPECT_THAT(result->out, HasSubstr(GetParam().out));
  EXPECT_EQ(project.folder.Read("prompt.txt"), "Say hello.\n");
  EXPECT_TRUE(fs::is_empty(temporary.path())) << "the copy was left behind";
}
INSTANTIATE_TEST_SUITE_P(Commands, Evaluate, testing::ValuesIn(kEvaluations),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Evaluator, ACommandThatHangsIsKilledWithItsChildren) {
  Project project("sleep 1000 & sleep 1000");
  project.file.evaluate.timeout = std::chrono::milliseconds(300);
  const auto tree = project.Tree();
  Evaluator evaluator(*tree, project.file, {});
  const auto result = evaluator.Evaluate(tree->start());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->score);
  EXPECT_THAT(result->failure, HasSubstr("still running after its timeout of 0.3 s"));
}

TEST(Evaluator, ACommandThatFloodsHasFailed) {
  Project project("yes | head -c 3000000; echo '{\"score\": 1}'");
  const auto tree = project.Tree();
  Evaluator evaluator(*tree, project.file, {});
  const auto result = evaluator.Evaluate(tree->start());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->score);
  EXPECT_THAT(result->failure, HasSubstr("printed more than 1024 KiB"));
  EXPECT_LE(result->out.size(), 4200u);
}

TEST(Evaluator, EqualValuesRunOnceAlsoInParallel) {
  Project project("echo x >> \"$COUNT_FILE\"; echo \"{\\\"score\\\": $OPTOD_PARAM_k}\"");
  Folder counter;
  setenv("COUNT_FILE", (counter.path() + "/count").c_str(), 1);
  const auto tree = project.Tree();
  Evaluator evaluator(*tree, project.file, {});
  Values other = tree->start();
  other["k"] = "7";
  const auto results = evaluator.EvaluateAll({tree->start(), other, tree->start(), other}, 4);
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ(counter.Read("count"), "x\nx\n");
  EXPECT_EQ((*results)[1].score, 7);
  EXPECT_EQ((*results)[3].score, 7);
  EXPECT_FALSE((*results)[0].cached);
  EXPECT_TRUE((*results)[2].cached);
  EXPECT_TRUE(evaluator.IsCached(other));
}

TEST(Evaluator, ATextThatDoesNotDefineTheFunctionIsAFailedEvaluation) {
  Project project("echo '{\"score\": 1}'");
  const auto tree = project.Tree();
  Evaluator evaluator(*tree, project.file, {});
  Values values = tree->start();
  values["solve"] = "I think that x is better.";
  const auto result = evaluator.Evaluate(values);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->failure, HasSubstr("does not define solve"));
}

// ---- what the model is told

TEST(Feedback, SaysScoreDirectionAndOutputs) {
  Evaluation good, bad;
  good.score = 0.5;
  good.out = "line";
  bad.failure = "the command exited with code 3";
  bad.err = "Traceback\n";
  EXPECT_EQ(FeedbackText(good, true), "Score: 0.5 (higher is better).\nOutput:\nline\n");
  EXPECT_EQ(FeedbackText(good, false), "Score: 0.5 (lower is better).\nOutput:\nline\n");
  EXPECT_EQ(FeedbackText(bad, true),
            "The evaluation failed: the command exited with code 3.\nError output:\nTraceback\n");
}

TEST(Feedback, TheNodeHasTheParametersAsInputsAndCutsOnCharacters) {
  OptimizeFile file;
  file.evaluate.command = "sh eval.sh";
  file.parameters.resize(1);
  file.parameters[0].name = "k";
  Evaluation evaluation;
  evaluation.score = 1;
  for (int i = 0; i < 200; ++i) evaluation.out += "ü";
  evaluation.out += "x";
  const v1::Node node = EvaluationNode(file, {{"k", 4}}, evaluation);
  EXPECT_EQ(node.kind(), v1::Node::MESSAGE);
  EXPECT_EQ(node.inputs(0).node(), 4);
  std::string tail;
  for (int i = 0; i < 149; ++i) tail += "ü";
  EXPECT_EQ(node.text(), "score = 1\n..." + tail + "x");
  EXPECT_EQ(EvaluationNode(file, {{"k", 4}}, Evaluation{}).kind(), v1::Node::EXCEPTION);
}

TEST(Feedback, TriedKeepsTheLastThreeDistinctChanges) {
  Tried tried;
  Evaluation evaluation;
  evaluation.score = 0.25;
  const Values best = {{"k", "1"}, {"p", "a"}};
  tried.Add(best, best, evaluation);
  EXPECT_EQ(tried.Text(), "");
  for (const char* k : {"2", "3", "3", "4", "5"}) tried.Add({{"k", k}, {"p", "a"}}, best, evaluation);
  EXPECT_EQ(tried.Text(),
            "Tried from here and not better:\n- k = 3 (score 0.25)\n- k = 4 (score 0.25)\n- k = 5 (score 0.25)\n");
  tried.Clear();
  EXPECT_EQ(tried.Text(), "");
}

// ---- small things

TEST(DidYouMean, NearestOrList) {
  EXPECT_EQ(DidYouMean("timeuot", {"timeout", "command"}), "; did you mean timeout?");
  EXPECT_EQ(DidYouMean("xyz", {"timeout", "command"}), "; known: timeout, command");
  EXPECT_EQ(DidYouMean("x", {}), "");
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
  EXPECT_EQ(EditDistance("slove", "solve"), 1u);
  EXPECT_EQ(EditDistance("", "abc"), 3u);
}

TEST(MatchesPattern, StarsStayInsideAFolder) {
  EXPECT_TRUE(MatchesPattern("*.bin", "a.bin"));
  EXPECT_FALSE(MatchesPattern("*.bin", "a/b.bin"));
  EXPECT_TRUE(MatchesPattern("a/*/c?", "a/b/cd"));
  EXPECT_FALSE(MatchesPattern("a", "ab"));
}

TEST(Table, AlignsByCharacters) {
  EXPECT_EQ(Table({"A", "B"}, {{"ü", "x"}, {"long", "y"}}), "A     B\nü     x\nlong  y\n");
}

}  // namespace
}  // namespace optod::cli
