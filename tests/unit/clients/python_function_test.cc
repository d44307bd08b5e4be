#include "clients/cli/optimize/python_function.h"

#include <gtest/gtest.h>

namespace optod::cli {
namespace {

struct FindCase {
  const char* name;
  const char* source;
  const char* function;
  const char* want;  // its text
};
const FindCase kFound[] = {
    {"plain", "x = 1\ndef f(a):\n    return a\n\ny = 2\n", "f", "def f(a):\n    return a"},
    {"last_without_line_end", "def f():\n  return 1", "f", "def f():\n  return 1"},
    {"one_line", "def f(): return 1\ndef g(): return 2\n", "f", "def f(): return 1"},
    {"decorators", "@a\n@b(1,\n   2)\ndef f():\n    pass\n", "f", "@a\n@b(1,\n   2)\ndef f():\n    pass"},
    {"async", "async def f():\n    await g()\n", "f", "async def f():\n    await g()"},
    {"method_dedented",
     "class A:\n    @property\n    def f(self):\n        if self:\n            return 1\n        return 2\n    x = 1\n",
     "A.f", "@property\ndef f(self):\n    if self:\n        return 1\n    return 2"},
    {"method_by_last_part", "class A:\n  def f(self):\n    pass\n", "f", "def f(self):\n  pass"},
    {"module_level_wins", "class A:\n  def f(self): pass\ndef f(): return 1\n", "f", "def f(): return 1"},
    {"nested_inside", "def f():\n    def g():\n        return 1\n    return g\nz=1\n", "f",
     "def f():\n    def g():\n        return 1\n    return g"},
    {"nested_qualified", "def f():\n    def g():\n        return 1\n    return g\n", "f.g", "def g():\n    return 1"},
    {"comment_at_column_0_inside", "def f():\n    a = 1\n# note\n    return a\n", "f",
     "def f():\n    a = 1\n# note\n    return a"},
    {"trailing_comment_left_out", "def f():\n    return 1\n    # after\n# more\nx = 1\n", "f",
     "def f():\n    return 1"},
    {"blank_lines_inside", "def f():\n\n    return 1\n\n\ndef g(): pass\n", "f", "def f():\n\n    return 1"},
    {"def_in_string", "s = '''\ndef f():\n    no\n'''\ndef f():\n    yes\n", "f", "def f():\n    yes"},
    {"def_in_docstring", "def g():\n    \"\"\"\n    def f(): x\n    \"\"\"\ndef f():\n    return '#'  # def f():\n",
     "f", "def f():\n    return '#'  # def f():"},
    {"string_lines_keep_their_space", "class A:\n    def f(self):\n        return '''\n    x\n  y'''\n", "f",
     "def f(self):\n    return '''\n    x\n  y'''"},
    {"multi_line_signature", "def f(a,\n      b):\n    return (a +\nb)\nx=1\n", "f",
     "def f(a,\n      b):\n    return (a +\nb)"},
    {"continued_line", "def f():\n    return 1 + \\\n2\nx=1\n", "f", "def f():\n    return 1 + \\\n2"},
    {"inside_if", "if True:\n    def f():\n        pass\nelse:\n    pass\n", "f", "def f():\n    pass"},
    {"tabs", "class A:\n\tdef f(self):\n\t\treturn 1\n", "A.f", "def f(self):\n\treturn 1"},
    {"raw_string_with_quote", "def f():\n    return r'\\'' + \"#'\"\nx = '''a'''\n", "f",
     "def f():\n    return r'\\'' + \"#'\""},
    {"crlf", "def f():\r\n    return 1\r\nx = 1\r\n", "f", "def f():\n    return 1"},
    {"prefix_names_differ", "def ff(): pass\ndef f(): return 1\ndefine = 1\n", "f", "def f(): return 1"},
    {"type_comment_arrow", "def f(x: dict[str, int] = {}) -> 'a':\n    return x['}']\n", "f",
     "def f(x: dict[str, int] = {}) -> 'a':\n    return x['}']"},
};
class Find : public testing::TestWithParam<FindCase> {};
TEST_P(Find, GivesTheText) {
  const auto text = GetFunction(GetParam().source, GetParam().function);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, GetParam().want);
}
TEST_P(Find, PuttingTheSameTextBackChangesNothing) {
  const std::string source = GetParam().source;
  const auto text = GetFunction(source, GetParam().function);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto back = ReplaceFunction(source, GetParam().function, *text);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, source);
}
INSTANTIATE_TEST_SUITE_P(Shapes, Find, testing::ValuesIn(kFound),
                         [](const auto& info) { return std::string(info.param.name); });

struct ErrorCase {
  const char* name;
  const char* source;
  const char* function;
  absl::StatusCode code;
  const char* message;
};
const ErrorCase kErrors[] = {
    {"absent_nearest", "def solve(): pass\n", "slove", absl::StatusCode::kNotFound, "did you mean solve?"},
    {"absent_none", "x = 1\n", "f", absl::StatusCode::kNotFound, "\"f\" is not defined here"},
    {"twice_at_top", "def f(): pass\ndef f(): pass\n", "f", absl::StatusCode::kInvalidArgument,
     "f at line 1, f at line 2"},
    {"two_methods", "class A:\n  def f(s): pass\nclass B:\n  def f(s): pass\n", "f", absl::StatusCode::kInvalidArgument,
     "A.f at line 2, B.f at line 4"},
    {"open_bracket", "x = (\ndef f(): pass\n", "f", absl::StatusCode::kInvalidArgument,
     "line 1: a bracket is not closed"},
    {"open_string", "x = 1\ny = 'a\n", "f", absl::StatusCode::kInvalidArgument, "line 2: a string is not closed"},
    {"open_triple", "y = '''a\n", "f", absl::StatusCode::kInvalidArgument, "line 1: a string is not closed"},
    {"only_mentioned", "f = lambda: 1  # def f\nprint('def f():')\n", "f", absl::StatusCode::kNotFound, "not defined"},
};
class FindError : public testing::TestWithParam<ErrorCase> {};
TEST_P(FindError, SaysWhy) {
  const auto text = GetFunction(GetParam().source, GetParam().function);
  EXPECT_EQ(text.status().code(), GetParam().code);
  EXPECT_NE(std::string(text.status().message()).find(GetParam().message), std::string::npos) << text.status();
}
INSTANTIATE_TEST_SUITE_P(Errors, FindError, testing::ValuesIn(kErrors),
                         [](const auto& info) { return std::string(info.param.name); });

struct ReplaceCase {
  const char* name;
  const char* source;
  const char* function;
  const char* text;
  const char* want;  // nullptr = an error
};
const ReplaceCase kReplaced[] = {
    {"plain", "a\ndef f(): pass\nb\n", "f", "def f():\n  return 2\n", "a\ndef f():\n  return 2\nb\n"},
    {"method_is_indented", "class A:\n    def f(self):\n        pass\n\n    x = 1\n", "A.f",
     "def f(self):\n    y = '''\nz'''\n\n    return y",
     "class A:\n    def f(self):\n        y = '''\nz'''\n\n        return y\n\n    x = 1\n"},
    {"import_before", "def f(): pass\n", "f", "import re\n\ndef f():\n    return re",
     "import re\n\ndef f():\n    return re\n"},
    {"crlf_kept", "def f():\r\n  pass\r\nx\r\n", "f", "def f():\n  return 1", "def f():\r\n  return 1\r\nx\r\n"},
    {"decorator_dropped", "@a\ndef f(): pass\n", "f", "def f(): return 1", "def f(): return 1\n"},
    {"other_name", "def f(): pass\n", "f", "def g(): pass", nullptr},
    {"not_outermost", "def f(): pass\n", "f", "def g():\n  def f(): pass", nullptr},
    {"not_python", "def f(): pass\n", "f", "def f(: '", nullptr},
    {"empty", "def f(): pass\n", "f", "", nullptr},
};
class Replace : public testing::TestWithParam<ReplaceCase> {};
TEST_P(Replace, ChangesOnlyTheFunction) {
  const auto out = ReplaceFunction(GetParam().source, GetParam().function, GetParam().text);
  if (GetParam().want) {
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_EQ(*out, GetParam().want);
  } else {
    EXPECT_EQ(out.status().code(), absl::StatusCode::kInvalidArgument) << *out;
  }
}
INSTANTIATE_TEST_SUITE_P(Texts, Replace, testing::ValuesIn(kReplaced),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ListFunctions, SurvivesEveryTruncationOfASource) {
  std::string source;
  for (const FindCase& c : kFound) source += c.source;
  for (size_t n = 0; n <= source.size(); ++n) (void)ListFunctions(source.substr(0, n));
}

}  // namespace
}  // namespace optod::cli
