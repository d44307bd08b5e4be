// Expressions, operators, and results that come out of a sandbox.
#include <map>

#include "gtest/gtest.h"
#include "trace/workflow/expression.h"
#include "trace/workflow/operators.h"
#include "trace/workflow/python_call.h"

namespace optod::trace {
namespace {

const std::map<std::string, std::string> kValues = {
    {"a", "1"}, {"t", "\"text {{a}}\""}, {"m", R"({"x":{"y":[10,20]},"n":null})"}, {"l", "[1,[2]]"}};

absl::StatusOr<std::string> Evaluate(const std::string& json) {
  auto expression = Expression::Parse(json);
  if (!expression.ok()) return expression.status();
  return expression->Evaluate([](const std::string& name) -> const std::string* {
    const auto found = kValues.find(name);
    return found == kValues.end() ? nullptr : &found->second;
  });
}

struct Case {
  const char* name;
  const char* input;
  const char* want;  ///< value, or an error's message after '!'
};

class ExpressionTest : public ::testing::TestWithParam<Case> {};
TEST_P(ExpressionTest, Evaluates) {
  const auto value = Evaluate(GetParam().input);
  EXPECT_EQ(value.ok() ? *value : "!" + std::string(value.status().message()), GetParam().want);
}
const Case kExpressions[] = {
    {"plain", "\"x\"", "\"x\""},
    {"number", "5", "5"},
    {"whole_value", "\"{{m}}\"", R"({"x":{"y":[10,20]},"n":null})"},
    {"whole_value_spaces", "\"{{ a }}\"", "1"},
    {"in_text", "\"<{{a}}|{{l}}>\"", "\"<1|[1,[2]]>\""},
    {"path", "\"{{m.x.y.1}}\"", "20"},
    {"nested", R"({"k":["{{a}}",{"z":"{{a}}!"}],"b":true})", R"({"k":[1,{"z":"1!"}],"b":true})"},
    {"escaped", R"("\\{{a}} {{a}}")", R"("{{a}} 1")"},
    {"a_value_is_not_expanded_again", "\"{{t}}.\"", "\"text {{a}}.\""},
    {"unknown", "\"{{q}}\"", "!{{q}}: there is no value named q"},
    {"no_member", "\"{{m.z}}\"", "!{{m.z}}: has no member z"},
    {"no_entry", "\"{{l.2}}\"", "!{{l.2}}: has no entry 2"},
    {"open", "\"{{a\"", "!{{ has no }} (write \\{{ for plain braces)"},
    {"empty", "\"{{}}\"", "!{{}}: is not a name or a path like {{item.label}}"},
};
INSTANTIATE_TEST_SUITE_P(All, ExpressionTest, ::testing::ValuesIn(kExpressions),
                         [](const auto& info) { return info.param.name; });

struct OpCase {
  const char* name;
  const char* op;
  std::vector<std::string> arguments;
  const char* want;
};
class OperatorTest : public ::testing::TestWithParam<OpCase> {};
TEST_P(OperatorTest, Applies) {
  const auto value = ApplyOperator(GetParam().op, GetParam().arguments);
  EXPECT_EQ(value.ok() ? *value : "!" + std::string(value.status().message()), GetParam().want);
}
const OpCase kOps[] = {
    {"add", "add", {"1", "2"}, "3"},
    {"add_real", "add", {"1", "0.5"}, "1.5"},
    {"add_text", "add", {"\"a\"", "\"b\""}, "\"ab\""},
    {"add_lists", "add", {"[1]", "[2]"}, "[1,2]"},
    {"add_overflow", "add", {"9223372036854775807", "1"}, "9.223372036854776e+18"},
    {"add_mixed", "add", {"1", "\"b\""}, "!add: \"b\" is not a number"},
    {"sub", "sub", {"1", "2"}, "-1"},
    {"mul", "mul", {"3", "4"}, "12"},
    {"div", "div", {"1", "2"}, "0.5"},
    {"div_zero", "div", {"1", "0"}, "!div: 1 / 0"},
    {"mod_negative", "mod", {"-7", "3"}, "2"},
    {"mod_least", "mod", {"-9223372036854775808", "-1"}, "0"},
    {"neg", "neg", {"5"}, "-5"},
    {"round_even", "round", {"2.5"}, "2"},
    {"round_digits", "round", {"2.345", "1"}, "2.3"},
    {"eq", "eq", {"{\"a\":1}", "{\"a\":1}"}, "true"},
    {"lt_text", "lt", {"\"a\"", "\"b\""}, "true"},
    {"lt_mixed", "lt", {"1", "\"b\""}, "!lt: cannot compare 1 with \"b\""},
    {"ge", "ge", {"2", "2"}, "true"},
    {"le", "le", {"3", "2"}, "false"},
    {"and", "and", {"1", "\"\""}, "false"},
    {"or", "or", {"0", "[0]"}, "true"},
    {"not", "not", {"null"}, "true"},
    {"getitem_list", "getitem", {"[1,2]", "-1"}, "2"},
    {"getitem_map", "getitem", {"{\"a\":3}", "\"a\""}, "3"},
    {"getitem_none", "getitem", {"[1]", "1"}, "!getitem: [1] has no 1"},
    {"len", "len", {"\"abc\""}, "3"},
    {"contains", "contains", {"[1,2]", "2"}, "true"},
    {"lower", "lower", {"\"AbC\""}, "\"abc\""},
    {"strip", "strip", {"\" x\\n\""}, "\"x\""},
    {"split", "split", {"\"a,b,\"", "\",\""}, "[\"a\",\"b\",\"\"]"},
    {"join", "join", {"[\"a\",1]", "\"-\""}, "\"a-1\""},
    {"replace", "replace", {"\"aa\"", "\"a\"", "\"aa\""}, "\"aaaa\""},
    {"number_text", "number", {"\" 1.5 \""}, "1.5"},
    {"number_none", "number", {"\"x\""}, "!number: \"x\" is not a number"},
    {"int", "int", {"\"-2.7\""}, "-2"},
    {"json_parse", "json_parse", {"\"[1]\""}, "[1]"},
    {"if_true", "if", {"1", "\"y\"", "\"n\""}, "\"y\""},
    {"sum_list", "sum", {"[1,2,3]"}, "6"},
    {"mean", "mean", {"1", "2"}, "1.5"},
    {"mean_of_nothing", "mean", {"[]"}, "!mean: of nothing"},
    {"max", "max", {"[1,5,3]"}, "5"},
    {"sorted", "sorted", {"[3,1,2]"}, "[1,2,3]"},
    {"sorted_mixed", "sorted", {"[3,\"a\"]"}, "!sorted: cannot compare 3 with \"a\""},
    {"concat", "concat", {"\"a\"", "1", "null"}, "\"a1null\""},
    {"none", "frobnicate", {}, "!\"frobnicate\" is no operator"},
};
INSTANTIATE_TEST_SUITE_P(All, OperatorTest, ::testing::ValuesIn(kOps),
                         [](const auto& info) { return info.param.name; });

TEST(Operators, AreSortedAndUsable) {
  for (size_t i = 1; i < Operators().size(); ++i) EXPECT_LT(std::string(Operators()[i - 1].name), Operators()[i].name);
  for (const OperatorRow& row : Operators())
    EXPECT_TRUE(CheckOperator(row.name, static_cast<size_t>(row.min_arguments)).ok());
}

const Case kResults[] = {
    {"length_that_does_not_fit", "0000001300000000", "!"},
    {"empty", "", "!"},
    {"short", "0000", "!"},
    {"no_length", "zzzzzzzz{}", "!"},
    {"upper_case", "0000000A{\"ok\":true}", "!"},
    {"no_object",
     "00000001"
     "1",
     "!"},
    {"ok_is_no_flag", "00000008{\"ok\":1}", "!"},
    {"followed", "0000000b{\"ok\":true}x", "!"},
    {"value", "00000015{\"ok\":true,\"value\":7}", "7"},
};
class PythonResultTest : public ::testing::TestWithParam<Case> {};
TEST_P(PythonResultTest, IsReadWithSuspicion) {
  const PythonOutcome outcome = ReadPythonResult(GetParam().input);
  EXPECT_EQ(outcome.ok ? outcome.value : "!", GetParam().want);
  EXPECT_EQ(outcome.error_type, outcome.ok ? "" : "BadResult");
}
INSTANTIATE_TEST_SUITE_P(All, PythonResultTest, ::testing::ValuesIn(kResults),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace optod::trace
