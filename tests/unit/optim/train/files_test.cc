// Job files, tasks and the replay log: everything that needs no model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "base/fs.h"
#include "optim/nn/bpe.h"
#include "optim/train/adapters.h"
#include "optim/train/presets.h"
#include "optim/train/replay_log.h"
#include "optim/train/spec.h"
#include "optim/train/task.h"
#include "optim/train/templates.h"
#include "temp_folder.h"

namespace optod::train {
namespace {

using nn::TempFolder;
using testing::ElementsAre;
using testing::HasSubstr;

std::string Job(const std::string& more = "", const std::string& optimizer = R"({"name": "zo-sgd", "lr": 1e-6})") {
  return R"({"kind": "finetune", "model": "/m", "task": {"name": "sst2", "train": "/a", "dev": "/b"}, "optimizer": )" +
         optimizer + more + "}";
}

TEST(Spec, DefaultsAndPresets) {
  auto spec = ParseTrainSpec(Job(R"(, "steps": 1e3, "scheme": "lora")"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->steps, 1000);
  EXPECT_EQ(spec->scheme.name, "lora");
  EXPECT_EQ(spec->scheme.rank, 8);
  EXPECT_TRUE(spec->zeroth_order);
  EXPECT_EQ(spec->task.prompt, "{sentence} It was");
  EXPECT_EQ(std::get<double>(spec->hyper.at("eps")), 1e-3);
  EXPECT_THAT(PathsOf(*spec), ElementsAre("/m", "/a", "/b"));
}

TEST(Spec, MethodsOfZerothOrder) {
  auto spec = ParseTrainSpec(Job(R"(, "objective": "f1", "blockwise": "mlp-attn", "scheme": "prompt",
      "sparse": {"ratio": 0.2, "group": "global", "resample": 1000})"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->objective, "f1");
  EXPECT_EQ(spec->blockwise.level, "mlp-attn");
  EXPECT_EQ(spec->blockwise.schedule, "coordinate");
  EXPECT_EQ(spec->sparse.ratio, 0.2);
  EXPECT_EQ(spec->sparse.resample, 1000);
  EXPECT_EQ(spec->scheme.tokens, 10);
  spec = ParseTrainSpec(Job(R"(, "hybrid": {"blocks": 2, "lr": 1e-3})"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->hybrid.blocks, 2);
  spec = ParseTrainSpec(Job(R"(, "batch": 8, "parallel": {"workers": 4})"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->parallel.share, "examples");
}

struct BadJob {
  const char* name;
  std::string json;
  const char* message;
};
class BadSpec : public testing::TestWithParam<BadJob> {};
TEST_P(BadSpec, IsRefused) {
  auto spec = ParseTrainSpec(GetParam().json);
  ASSERT_FALSE(spec.ok());
  EXPECT_THAT(std::string(spec.status().message()), HasSubstr(GetParam().message));
}
INSTANTIATE_TEST_SUITE_P(
    Jobs, BadSpec,
    testing::Values(
        BadJob{"not_json", "{", "job: not a mapping"}, BadJob{"empty", "{}", "model: missing"},
        BadJob{"steps", Job(R"(, "steps": 0)"), "steps: 0 must be >= 1"},
        BadJob{"half_step", Job(R"(, "steps": 1.5)"), "steps: not a whole number"},
        BadJob{"typo", Job(R"(, "stpes": 5)"), "job: unknown field \"stpes\""},
        BadJob{"kind", R"({"kind": "evaluate"})", "kind: \"evaluate\" is not one of finetune"},
        BadJob{"scheme", Job(R"(, "scheme": "qlora")"),
               "scheme.name: \"qlora\" is not one of full, lora, prefix, prompt, head"},
        BadJob{"rank", Job(R"(, "scheme": {"name": "lora", "rank": 0})"), "scheme.rank: 0 must be >= 1"},
        BadJob{"lr", Job("", R"({"name": "zo-sgd", "lr": -1})"), "optimizer: hyperparameters.lr: -1 is negative"},
        BadJob{"optimizer", Job("", R"({"name": "zo-sdg"})"), "did you mean \"zo-sgd\"?"},
        BadJob{"words", Job("", R"({"name": "optoprime"})"), "reads words, not losses"},
        BadJob{"level", Job(R"(, "blockwise": "layer")"), "blockwise.level: \"layer\" is not one of transformer-block"},
        BadJob{"blockwise_first", Job(R"(, "blockwise": "linear")", R"({"name": "adamw"})"),
               "blockwise: needs a zeroth-order optimizer; optimizer.name is \"adamw\""},
        BadJob{"blockwise_cons", Job(R"(, "blockwise": "linear")", R"({"name": "zo-sgd-cons"})"),
               "blockwise: needs two-sided"},
        BadJob{"blockwise_queries", Job(R"(, "blockwise": "linear")", R"({"name": "zo-sgd", "queries": 2})"),
               "optimizer.queries: must be 1"},
        BadJob{"ratio", Job(R"(, "sparse": {"ratio": 1})"), "sparse.ratio: 1 must be in (0, 1)"},
        BadJob{"no_ratio", Job(R"(, "sparse": {"source": "random"})"), "sparse.ratio: 0 must be in (0, 1)"},
        BadJob{"source", Job(R"(, "sparse": {"ratio": 0.5, "source": "snip"})"),
               "sparse.source: \"snip\" is not one of random, magnitude, wanda"},
        BadJob{"law", Job(R"(, "sparse": {"ratio": 0.5, "source": "magnitude", "law": "normal"})"), "sparse.law"},
        BadJob{"wanda_resample", Job(R"(, "sparse": {"ratio": 0.5, "source": "wanda", "resample": 5})"),
               "sparse.resample"},
        BadJob{"sparse_first", Job(R"(, "sparse": {"ratio": 0.5})", R"({"name": "sgd"})"),
               "sparse: needs a zeroth-order"},
        BadJob{"hybrid", Job(R"(, "hybrid": {"lr": 0.1})"), "hybrid.blocks: missing"},
        BadJob{"hybrid_prompt", Job(R"(, "hybrid": {"blocks": 1}, "scheme": "prompt")"),
               "hybrid: scheme \"prompt\" trains one block"},
        BadJob{"hybrid_sparse", Job(R"(, "hybrid": {"blocks": 1}, "sparse": {"ratio": 0.5})"),
               "hybrid: not together with"},
        BadJob{"objective", Job(R"(, "objective": "bleu")"), "objective: \"bleu\" is not one of loss, accuracy, f1"},
        BadJob{"objective_first", Job(R"(, "objective": "f1")", R"({"name": "adamw"})"),
               "objective: needs a zeroth-order"},
        BadJob{"objective_forward", Job(R"(, "objective": "f1")", R"({"name": "forward-grad"})"), "has no derivative"},
        BadJob{"parallel_batch", Job(R"(, "batch": 4, "parallel": {"workers": 3})"),
               "parallel.workers: 3 does not divide batch 4"},
        BadJob{"parallel_share", Job(R"(, "parallel": {"workers": 2, "share": "layers"})"),
               "parallel.share: \"layers\" is not one of"},
        BadJob{"parallel_queries",
               Job(R"(, "parallel": {"workers": 2, "share": "queries"})", R"({"name": "zo-sgd", "queries": 2})"),
               "optimizer.queries: must be 1 with parallel.share queries"},
        BadJob{"accuracy_of_answers",
               R"({"model": "/m", "optimizer": "zo-sgd", "objective": "accuracy", "task": {"name": "squad", "train": "/a", "dev": "/b"}})",
               "generated answers have f1"},
        BadJob{"blocks_of_answers",
               R"({"model": "/m", "optimizer": "zo-sgd", "objective": "f1", "blockwise": "linear", "task": {"name": "drop", "train": "/a", "dev": "/b"}})",
               "not together with blockwise"},
        BadJob{"tier_of_answers",
               R"({"model": "/m", "optimizer": "zo-sgd", "objective": "f1", "tier": {"disk": "/d"}, "task": {"name": "drop", "train": "/a", "dev": "/b"}})",
               "would read all parameters once a token"},
        BadJob{"gpu_without_tier", Job(R"(, "device": "cuda")"), "device: \"cuda\" without tier"},
        BadJob{"gpu_cons", Job(R"(, "device": "cuda", "tier": {})", R"({"name": "zo-sgd-cons"})"),
               "device: \"cuda\" not together with zo-sgd-cons; must be cpu"},
        BadJob{"gpu_forward", Job(R"(, "device": "cuda", "tier": {})", R"({"name": "forward-grad"})"), "not together with forward-grad"},
        BadJob{"gpu_sparse", Job(R"(, "device": "cuda", "tier": {}, "sparse": {"ratio": 0.5})"), "not together with sparse"},
        BadJob{"gpu_blockwise", Job(R"(, "device": "cuda", "tier": {}, "blockwise": "linear")"), "not together with blockwise"},
        BadJob{"answer_room",
               R"({"model": "/m", "optimizer": "zo-sgd", "task": {"name": "drop", "train": "/a", "dev": "/b", "max_tokens": 50}})",
               "task.answer_tokens: 50 leaves fewer than 8 of task.max_tokens 50"},
        BadJob{"answer_and_options",
               R"({"model": "/m", "optimizer": "zo-sgd", "task": {"name": "sst2", "train": "/a", "dev": "/b", "answer": "x"}})",
               "task.answer: not together with task.options"},
        BadJob{"task",
               R"({"model": "/m", "optimizer": "zo-sgd", "task": {"name": "sst3", "train": "/a", "dev": "/b"}})",
               "task.name: \"sst3\" is not one of custom, text, sst2, copa, rte, cb, boolq"},
        BadJob{"mezo_residue", Job("", R"({"name": "zo-sgd", "residue": "mezo"})"), "must be none"},
        BadJob{"no_train",
               R"({"kind": "finetune", "model": "/m", "optimizer": "sgd", "task": {"name": "sst2", "dev": "/b"}})",
               "task.train: missing"},
        BadJob{"no_prompt",
               R"({"kind": "finetune", "model": "/m", "optimizer": "sgd", "task": {"train": "/a", "dev": "/b"}})",
               "task.prompt: missing"},
        BadJob{
            "options",
            R"({"kind": "finetune", "model": "/m", "optimizer": "sgd", "task": {"train": "/a", "dev": "/b", "options": {"0": "x"}}})",
            "task.options: not a mapping of at least two labels"}),
    [](const auto& info) { return info.param.name; });

TEST(Render, FieldsAndFilters) {
  const std::vector<std::pair<std::string, std::string>> row = {
      {"premise", "The man fell."}, {"asks_for", "cause"}, {"choice", "He tripped."}, {"self", "I ran."}};
  EXPECT_EQ(*Render("{premise|clause} {asks_for|connective} {choice|lower-first}", row),
            "The man fell because he tripped.");
  EXPECT_EQ(*Render("{self|lower-first}", row), "I ran.");
  EXPECT_THAT(std::string(Render("{x}", row).status().message()), HasSubstr("column \"x\" is missing"));
  EXPECT_THAT(std::string(Render("{self|upper}", row).status().message()), HasSubstr("filter \"upper\" is unknown"));
  EXPECT_THAT(std::string(Render("{self", row).status().message()), HasSubstr("without"));
}

TEST(Render, QuestionsAndBlanks) {
  const Row row = {{"q", "is it so"}, {"s", "The trophy did not fit because _ was too large."}, {"first", "_ ran"}};
  EXPECT_EQ(*Render("{q|question}", row), "Is it so?");
  EXPECT_EQ(*Render("{s|before-blank}", row), "The trophy did not fit because");
  EXPECT_EQ(*Render("{s|after-blank}", row), " was too large.");
  EXPECT_EQ(*Render("{first|before-blank}", row), "");
  EXPECT_EQ(*Render("{s|lower}", row), "the trophy did not fit because _ was too large.");
  EXPECT_THAT(std::string(Render("{q|after-blank}", row).status().message()), HasSubstr("no \"_\""));
}

TEST(ListOf, TextsListsAndPaths) {
  const Row row = {{"one", "Denver"}, {"number", "12"}, {"list", R"(["a b", "c"])"}, {"deep", R"({"text": ["x"], "n": {"m": "y"}})"}, {"none", "[]"}};
  EXPECT_THAT(*ListOf("one", row), ElementsAre("Denver"));
  EXPECT_THAT(*ListOf("number", row), ElementsAre("12"));
  EXPECT_THAT(*ListOf("list", row), ElementsAre("a b", "c"));
  EXPECT_THAT(*ListOf("deep.text", row), ElementsAre("x"));
  EXPECT_THAT(*ListOf("deep.n.m", row), ElementsAre("y"));
  for (const char* path : {"none", "absent", "deep.absent", "one.text", "deep.text.more"})
    EXPECT_EQ(ListOf(path, row).status().code(), absl::StatusCode::kInvalidArgument) << path;
}

/// One token a byte, and the blank (256).
std::unique_ptr<nn::Tokenizer> ByteTokenizer() {
  nn::SpmData data;
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", b);
    data.pieces.push_back(name);
    data.kinds.push_back(6);
  }
  data.pieces.push_back("\u2581");
  data.kinds.push_back(1);
  data.dummy_prefix = false;
  data.scores.assign(data.pieces.size(), 0);
  return nn::MakeSpm(std::move(data));
}

nn::ModelConfig Config(const char* family) {
  return *nn::ParseConfig(
      std::string(R"({"model_type": ")") + family +
      R"(", "vocab_size": 300, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 40})");
}

TaskSpec Custom(const TempFolder& folder, const std::string& rows) {
  folder.Write("t.tsv", rows);
  TaskSpec spec;
  spec.columns = {"x", "label"};
  spec.prompt = "{x}:";
  spec.options = {{"0", "n"}, {"1", "yy"}};
  spec.train = spec.dev = folder.path() + "/t.tsv";
  return spec;
}

TEST(Task, OptionsOfSeveralTokensAreSequencesOfTheirOwn) {
  TempFolder folder;
  const auto tokenizer = ByteTokenizer();
  tokenizer->prefix = {299};
  auto data = LoadTask(Custom(folder, "ab\t1\n"), *tokenizer, Config("llama"));
  ASSERT_TRUE(data.ok()) << data.status();
  const Example& example = data->train[0];
  EXPECT_EQ(example.correct, 1);
  ASSERT_EQ(example.sequences.size(), 2u);
  EXPECT_THAT(example.sequences[0].ids, ElementsAre(299, 'a', 'b', ':'));
  EXPECT_THAT(example.sequences[1].ids, ElementsAre(299, 'a', 'b', ':', 'y'));
  ASSERT_EQ(example.sequences[1].picks.size(), 2u);
  EXPECT_EQ(example.sequences[1].picks[0].row, 3);
  EXPECT_EQ(example.sequences[1].picks[1].row, 4);
  EXPECT_EQ(example.sequences[1].picks[1].target, 'y');
}

TEST(Task, SingleTokensShareASequence) {
  TempFolder folder;
  TaskSpec spec = Custom(folder, "ab\t0\n");
  spec.options = {{"0", "n"}, {"1", "y"}};
  auto data = LoadTask(spec, *ByteTokenizer(), Config("llama"));
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->dev[0].sequences.size(), 1u);
  EXPECT_EQ(data->dev[0].sequences[0].picks.size(), 2u);
}

struct PresetCase {
  const char *name, *row, *prompt, *right;
  friend void PrintTo(const PresetCase& c, std::ostream* out) { *out << c.name; }
};
/// Rows as the Hugging Face data sets have them.
class EveryPreset : public testing::TestWithParam<PresetCase> {};
TEST_P(EveryPreset, MakesPromptAndRightOption) {
  TempFolder folder;
  folder.Write("rows", GetParam().row);
  TaskSpec spec;
  spec.name = GetParam().name;
  ApplyPreset(&spec);
  if (spec.format == "tsv" && spec.header) folder.Write("rows", std::string("premise\tasks_for\tchoice1\tchoice2\tlabel\n") + GetParam().row);
  spec.train = spec.dev = folder.path() + "/rows";
  nn::ModelConfig config = Config("llama");
  config.max_positions = spec.max_tokens = 400;
  const auto tokenizer = ByteTokenizer();
  auto data = LoadTask(spec, *tokenizer, config);
  ASSERT_TRUE(data.ok()) << data.status();
  const Example& example = data->train[0];
  std::vector<int64_t> option, whole;
  for (const Sequence& sequence : example.sequences) {
    for (const Pick& pick : sequence.picks) {
      if (pick.candidate != example.correct) continue;
      option.push_back(pick.target);
      whole = sequence.ids;
    }
  }
  ASSERT_FALSE(option.empty());
  whole.push_back(option.back());
  EXPECT_EQ(tokenizer->Decode(whole), std::string(GetParam().prompt) + GetParam().right);
  EXPECT_EQ(tokenizer->Decode(option), GetParam().right);
}
INSTANTIATE_TEST_SUITE_P(
    Tasks, EveryPreset,
    testing::Values(
        PresetCase{"sst2", "a fine film\t1\n", "a fine film It was", " great"},
        PresetCase{"copa", "It rained.\teffect\tThe road got wet.\tI slept.\t0\n", "It rained so", " the road got wet."},
        PresetCase{"rte", R"({"premise": "P.", "hypothesis": "H.", "label": 1})", "P.\nDoes this mean that \"H.\" is true? Yes or No?\n", "No"},
        PresetCase{"cb", R"({"premise": "P.", "hypothesis": "H", "label": 2})", "Suppose P. Can we infer that \"H\"? Yes, No, or Maybe?\n", "Maybe"},
        PresetCase{"boolq", R"({"passage": "P.", "question": "is it", "label": 1})", "P. Is it?\n", "Yes"},
        PresetCase{"wic", R"({"word": "w", "sentence1": "A.", "sentence2": "B.", "label": 0})",
                   "Does the word \"w\" have the same meaning in these two sentences? Yes, No?\nA.\nB.\n", "No"},
        PresetCase{"wsc", R"({"text": "T.", "span1_text": "Ann", "span2_text": "She", "label": 1})",
                   "T.\nIn the previous sentence, does the pronoun \"she\" refer to Ann? Yes or No?\n", "Yes"},
        PresetCase{"multirc", R"({"paragraph": "P.", "question": "Q?", "answer": "A", "label": 0})",
                   "P.\nQuestion: Q?\nI found this answer \"A\". Is that correct? Yes or No?\n", "No"},
        PresetCase{"winogrande", R"({"sentence": "Ann saw Eve because _ looked.", "option1": "Ann", "option2": "Eve", "answer": "2"})",
                   "Ann saw Eve because", " Eve looked."},
        PresetCase{"squad", R"({"title": "T", "context": "C", "question": "Q?", "answers": {"text": ["An answer", "x"], "answer_start": [1, 2]}})",
                   "Title: T\nContext: C\nQuestion: Q?\nAnswer:", " An answer\n"},
        PresetCase{"drop", R"({"passage": "P", "question": "Q?", "answers_spans": {"spans": ["4"], "types": ["number"]}})",
                   "Passage: P\nQuestion: Q?\nAnswer:", " 4\n"}),
    [](const auto& info) { return info.param.name; });

TEST(Task, QuestionsKeepRoomForTheirAnswer) {
  TempFolder folder;
  folder.Write("t", R"({"q": "0123456789", "a": ["xy", "z"]})");
  TaskSpec spec;
  spec.format = "jsonl";
  spec.prompt = "{q}";
  spec.answer = {"a", 6, "\n"};
  spec.train = spec.dev = folder.path() + "/t";
  spec.max_tokens = 14;
  auto data = LoadTask(spec, *ByteTokenizer(), Config("llama"));
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_TRUE(data->asks);
  EXPECT_FALSE(data->choose);
  EXPECT_THAT(data->train[0].answers, ElementsAre("xy", "z"));
  EXPECT_THAT(data->train[0].prompt, ElementsAre('2', '3', '4', '5', '6', '7', '8', '9'));
  spec.answer.field = "b";
  EXPECT_THAT(std::string(LoadTask(spec, *ByteTokenizer(), Config("llama")).status().message()),
              HasSubstr("train: line 1: column \"b\" is missing"));
}

TEST(Task, LongPromptsLoseTheirBeginning) {
  TempFolder folder;
  TaskSpec spec = Custom(folder, "0123456789\t0\n");
  spec.max_tokens = 8;
  spec.options = {{"0", "n"}, {"1", "y"}};
  auto data = LoadTask(spec, *ByteTokenizer(), Config("llama"));
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(data->train[0].sequences[0].ids, ElementsAre('3', '4', '5', '6', '7', '8', '9', ':'));
}

TEST(Task, TellsLineAndReason) {
  TempFolder folder;
  const std::pair<const char*, const char*> cases[] = {
      {"a\t0\nb\t2\n", "task.train: line 2: label \"2\" is not one of 0, 1"},
      {"a\t0\t1\n", "task.train: line 1: 3 cells, not 2"},
      {"", "task.train: no rows"}};
  for (const auto& [rows, message] : cases) {
    auto data = LoadTask(Custom(folder, rows), *ByteTokenizer(), Config("llama"));
    EXPECT_EQ(data.status().message(), message);
  }
  TaskSpec absent = Custom(folder, "a\t0\n");
  absent.dev = "/absent";
  EXPECT_EQ(LoadTask(absent, *ByteTokenizer(), Config("llama")).status().message(), "task.dev: no such file");
  EXPECT_THAT(std::string(LoadTask(Custom(folder, "a\t0\n"), *ByteTokenizer(), Config("roberta")).status().message()),
              HasSubstr("no <mask>"));
}

TEST(BatchOrder, EveryEpochSeesEveryExampleOnce) {
  BatchOrder order(7, 10, 4);
  std::vector<size_t> all;
  for (int64_t step = 0; step < 5; ++step) {
    for (size_t i : order.At(step)) all.push_back(i);
  }
  EXPECT_EQ(std::set<size_t>(all.begin(), all.begin() + 10).size(), 10u);
  EXPECT_EQ(std::set<size_t>(all.begin() + 10, all.end()).size(), 10u);
  EXPECT_NE(std::vector<size_t>(all.begin(), all.begin() + 10), std::vector<size_t>(all.begin() + 10, all.end()));
  BatchOrder again(7, 10, 4);
  EXPECT_EQ(again.At(3), BatchOrder(7, 10, 4).At(3));  // a pure function of the step
}

TEST(Judge, GradientIsTheSlope) {
  Example a{{{{}, {{0, 0, 0}}}, {{}, {{0, 0, 1}, {0, 0, 1}}}}, 2, 1};
  Example b{{{{}, {{0, 0, 0}, {0, 0, 1}}}}, 2, 0};
  const std::vector<const Example*> examples = {&a, &b};
  for (bool classify : {false, true}) {
    std::vector<double> p = {-1.0, -0.5, -2.0, -0.3, -0.7};
    const Objective o = Judge(examples, p, classify);
    for (size_t i = 0; i < p.size(); ++i) {
      std::vector<double> up = p, down = p;
      up[i] += 1e-6;
      down[i] -= 1e-6;
      EXPECT_NEAR(o.gradient[i], (Judge(examples, up, classify).loss - Judge(examples, down, classify).loss) / 2e-6,
                  1e-8);
    }
    EXPECT_EQ(o.right, 1);  // a: -1 beats -1.25, wrong; b: -0.3 beats -0.7, right
  }
}

ReplayRecord Record(uint32_t step) { return {step, 0, 1e-6, 0.5 + step, {0.25 * step}}; }

TEST(ReplayLog, GrowsAndComesBack) {
  TempFolder folder;
  const std::string path = folder.path() + "/replay.log";
  {
    auto log = ReplayLog::Open(path, "{}", 1);
    ASSERT_TRUE(log.ok()) << log.status();
    for (uint32_t s = 0; s < 5; ++s) ASSERT_TRUE(log->Append(Record(s)).ok());
  }
  auto log = ReplayLog::Open(path, "{}", 1);
  ASSERT_EQ(log->records().size(), 5u);
  EXPECT_EQ(log->records()[4].g[0], 1.0);
  EXPECT_EQ(ReplayLog::Open(path, "{other}", 1).status().code(), absl::StatusCode::kDataLoss);
}

TEST(ReplayLog, TwentyThousandStepsAreUnderAMegabyte) {
  TempFolder folder;
  auto log = ReplayLog::Open(folder.path() + "/replay.log", "{}", 1);
  for (uint32_t s = 0; s < 20000; ++s) ASSERT_TRUE(log->Append(Record(s)).ok());
  EXPECT_LT(*PosixFs().FileSize(folder.path() + "/replay.log"), 1'000'000);
}

TEST(ReplayLog, ATornOrBrokenEndIsCutOff) {
  TempFolder folder;
  const std::string path = folder.path() + "/replay.log";
  {
    auto log = ReplayLog::Open(path, "{}", 1);
    for (uint32_t s = 0; s < 3; ++s) ASSERT_TRUE(log->Append(Record(s)).ok());
  }
  const std::string whole = *PosixFs().ReadFile(path);
  for (size_t cut = whole.size(); cut > 3; --cut) {
    size_t valid = 0;
    const auto records = ParseReplayLog(whole.substr(0, cut), 1, nullptr, &valid);
    EXPECT_LE(valid, cut);
    EXPECT_EQ(records.size(), (cut - 3) / 36);
  }
  for (size_t at = 3; at < whole.size(); ++at) {  // one flipped bit ends the log before its record
    std::string bad = whole;
    bad[at] ^= 4;
    EXPECT_EQ(ParseReplayLog(bad, 1, nullptr, nullptr).size(), (at - 3) / 36);
  }
  folder.Write("replay.log", whole.substr(0, whole.size() - 5));
  auto log = ReplayLog::Open(path, "{}", 1);
  ASSERT_EQ(log->records().size(), 2u);
  ASSERT_TRUE(log->Append(Record(2)).ok());
  EXPECT_EQ(*PosixFs().ReadFile(path), whole);
}

TEST(Adapters, NamesAndLimits) {
  const nn::ModelConfig llama = Config("llama");
  auto tensors = AdapterTensors(llama, {.name = "lora", .rank = 2});
  ASSERT_TRUE(tensors.ok());
  EXPECT_EQ((*tensors)[1].name, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
  EXPECT_THAT((*tensors)[1].shape, ElementsAre(8, 2));
  EXPECT_THAT(std::string(AdapterTensors(llama, {.name = "lora", .rank = 9}).status().message()),
              HasSubstr("scheme.rank: 9 is over the smallest projection's 8"));
}

}  // namespace
}  // namespace optod::train
