// Names and hyperparameters: what is refused, with which words.
#include <gtest/gtest.h>

#include <cmath>

#include "optim/rules/glob.h"
#include "optim/rules/nearest.h"
#include "optim/rules/registry.h"

namespace optod::optim {
namespace {

struct HyperCase {
  const char* name;
  const char* rule;
  const char* hyper;
  HyperValue value;
  const char* message;
};

const HyperCase kHyperCases[] = {
    {"negative", "adamw", "lr", -1.0, "hyperparameters.lr: -1 is negative; must be > 0"},
    {"zero", "adamw", "lr", 0.0, "hyperparameters.lr: 0 is out of range; must be > 0"},
    {"fraction", "adamw", "beta1", 1.0, "hyperparameters.beta1: 1 is out of range; must be in [0, 1)"},
    {"negative_fraction", "adamw", "beta1", -0.5, "hyperparameters.beta1: -0.5 is negative; must be in [0, 1)"},
    {"nan", "adamw", "lr", std::nan(""), "hyperparameters.lr: nan is not finite; must be > 0"},
    {"infinite", "adamw", "lr", INFINITY, "hyperparameters.lr: inf is not finite; must be > 0"},
    {"unknown", "adamw", "lrr", 1.0, "hyperparameters.lrr: unknown for adamw; did you mean lr?"},
    {"unknown_far", "sgd", "temperature", 1.0,
     "hyperparameters.temperature: unknown for sgd; known are lr, momentum, dampening, nesterov, weight_decay, stochastic_rounding"},
    {"text_for_number", "adamw", "lr", std::string("x"), "hyperparameters.lr: \"x\" is text; must be a number"},
    {"switch_for_number", "adamw", "lr", true, "hyperparameters.lr: true is a switch; must be a number"},
    {"number_for_switch", "sgd", "nesterov", 1.0, "hyperparameters.nesterov: 1 is a number; must be true or false"},
    {"number_for_choice", "adahessian", "variant", 1.0, "hyperparameters.variant: 1 is a number; must be text"},
    {"choice", "adahessian", "variant", std::string("imge"),
     "hyperparameters.variant: \"imge\" is unknown; must be one of image, block, fairseq, lazy; did you mean image?"},
    {"not_integer", "zo-sgd", "queries", 1.5, "hyperparameters.queries: 1.5 is not an integer; must be in [1, 1024]"},
    {"too_many", "zo-sgd", "queries", 1025.0, "hyperparameters.queries: 1025 is out of range; must be in [1, 1024]"},
    {"candidates", "optoprime", "candidates", 0.0, "hyperparameters.candidates: 0 is out of range; must be in [1, 64]"},
    {"long_text", "adamw", "lr", std::string(100, 'a'),
     "hyperparameters.lr: \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...\" is text; must be a "
     "number"},
};

class Hypers : public ::testing::TestWithParam<HyperCase> {};
TEST_P(Hypers, AreRefusedInTheseWords) {
  const auto checked = CheckHyper(**FindRule(GetParam().rule), {{GetParam().hyper, GetParam().value}});
  EXPECT_EQ(checked.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(checked.status().message()), GetParam().message);
}
INSTANTIATE_TEST_SUITE_P(Cases, Hypers, ::testing::ValuesIn(kHyperCases),
                         [](const auto& info) { return info.param.name; });

TEST(Hypers, AreCompletedByDefaults) {
  const auto hyper = CheckHyper(**FindRule("adamw"), {{"lr", 0.5}});
  ASSERT_TRUE(hyper.ok());
  EXPECT_EQ(hyper->size(), 7u);
  EXPECT_EQ(std::get<double>(hyper->at("lr")), 0.5);
  EXPECT_EQ(std::get<double>(hyper->at("weight_decay")), 1e-2);
  EXPECT_FALSE(std::get<bool>(hyper->at("amsgrad")));
}

struct NameCase {
  const char* wrong;
  const char* message;
};
const NameCase kNames[] = {
    {"adamv", "optimizer: \"adamv\" is unknown; did you mean \"adamw\"?"},
    {"Adam", "optimizer: \"Adam\" is unknown; did you mean \"adam\"?"},
    {"zosgd", "optimizer: \"zosgd\" is unknown; did you mean \"zo-sgd\"?"},
    {"optoprim", "optimizer: \"optoprim\" is unknown; did you mean \"optoprime\"?"},
    {"", "optimizer: \"\" is unknown"},
    {"quasinewton", "optimizer: \"quasinewton\" is unknown"},
};
TEST(Names, UnknownOnesSuggestTheNearest) {
  for (const NameCase& c : kNames) {
    const auto found = FindRule(c.wrong);
    EXPECT_EQ(found.status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(std::string(found.status().message()), c.message);
  }
}

TEST(Names, EditDistanceCountsSwapsOnce) {
  EXPECT_EQ(EditDistance("adam", "adam"), 0);
  EXPECT_EQ(EditDistance("adam", "adma"), 1);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
}

TEST(Layouts, AreRefusedInTheseWords) {
  const std::vector<TensorSpec> twice = {{"w", DType::kF32, {1}}, {"w", DType::kF32, {1}}},
                                integer = {{"w", DType::kI32, {1}}}, negative = {{"w", DType::kF32, {-1}}};
  EXPECT_EQ(MakeRule("sgd", {}, twice, 0).status().message(), "parameters.w: named twice; names must be unique");
  EXPECT_EQ(MakeRule("sgd", {}, integer, 0).status().message(),
            "parameters.w: dtype int32 cannot be optimized; must be float32, float64, float16 or bfloat16");
  EXPECT_EQ(MakeRule("sgd", {}, negative, 0).status().message(), "parameters.w: size -1 in its shape is negative");
}

TEST(Globs, Match) {
  EXPECT_TRUE(GlobMatch("*attn*", "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(GlobMatch("l.?", "l.0"));
  EXPECT_FALSE(GlobMatch("l.?", "l.10"));
  EXPECT_TRUE(GlobMatch("*a*b", "aab"));
  EXPECT_FALSE(GlobMatch("", "x"));
  EXPECT_TRUE(MatchesAny("embed, *head*", "lm_head"));
  EXPECT_FALSE(MatchesAny("", "lm_head"));
  EXPECT_FALSE(MatchesAny(",,", ""));
}

}  // namespace
}  // namespace optod::optim
