// JSON, Python text and the light source check.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "trace/optimizers/builtin_ops.h"
#include "trace/optimizers/constraint_check.h"
#include "trace/optimizers/json_value.h"
#include "trace/optimizers/python_syntax.h"
#include "trace/optimizers/python_text.h"

namespace optod::trace {
namespace {

using ::testing::HasSubstr;

TEST(Json, StrictAndLenient) {
  struct Row {
    const char* text;
    bool strict, lenient;
  };
  const Row rows[] = {
      {"1", true, true},           {" [1, 2.5e-3, \"a\"] ", true, true},
      {"{\"a\": {}}", true, true}, {"NaN", true, true},
      {"-Infinity", true, true},   {"[1,]", false, true},
      {"{'a': 1}", false, true},   {"\"a\nb\"", false, true},
      {"True", false, true},       {"None", false, true},
      {"\"\\d\"", false, true},    {"[1 // c\n, 2]", false, true},
      {"[1\n2]", false, true},     {"[1 2]", false, false},
      {"01", false, false},        {"1.", false, false},
      {"-", false, false},         {"+1", false, false},
      {"\"a", false, false},       {"[", false, false},
      {"{\"a\"}", false, false},   {"", false, false},
      {"1 2", false, false},       {"\"\\u12g4\"", false, false},
      {"/* x", false, false},      {"{1: 2}", false, false},
      {".5", false, false},        {"[,]", false, false},
  };
  for (const Row& row : rows) {
    EXPECT_EQ(ParseJson(row.text).has_value(), row.strict) << row.text;
    EXPECT_EQ(ParseJson(row.text, {.lenient = true}).has_value(), row.lenient) << row.text;
  }
  EXPECT_FALSE(ParseJson(std::string(100000, '[')).has_value());
  EXPECT_TRUE(ParseJson(std::string(200, '[') + std::string(200, ']')).has_value());
}

TEST(Json, RoundTripsAndRenders) {
  struct Row {
    const char *json, *repr, *back;
  };
  const Row rows[] = {
      {"[1, 2.50, true, null]", "[1, 2.5, True, None]", "[1,2.5,true,null]"},
      {R"({"b": 1, "a": {"c": []}, "b": 2})", "{'b': 2, 'a': {'c': []}}", R"({"b":2,"a":{"c":[]}})"},
      {R"("it's")", "\"it's\"", R"("it's")"},
      {R"("a'b\"c")", "'a\\'b\"c'", R"("a'b\"c")"},
      {R"("tab\tnl\n\u0001\u0085")", "'tab\\tnl\\n\\x01\\x85'", "\"tab\\tnl\\n\\u0001\xC2\x85\""},
      {"-0", "0", "0"},
      {"-0.0", "-0.0", "-0.0"},
  };
  for (const Row& row : rows) {
    const auto v = ParseJson(row.json);
    ASSERT_TRUE(v) << row.json;
    EXPECT_EQ(PythonRepr(*v), row.repr);
    EXPECT_EQ(ToJson(*v), row.back);
  }
  EXPECT_EQ(ToJson(*ParseJson("[NaN]")), std::nullopt);
}

TEST(PythonText, FloatRepr) {
  struct Row {
    double value;
    const char* text;
  };
  const Row rows[] = {{0, "0.0"},
                      {1, "1.0"},
                      {-2.5, "-2.5"},
                      {0.1, "0.1"},
                      {1e15, "1000000000000000.0"},
                      {1e16, "1e+16"},
                      {0.0001, "0.0001"},
                      {0.00001, "1e-05"},
                      {1.5e300, "1.5e+300"},
                      {123456.789, "123456.789"},
                      {INFINITY, "inf"},
                      {-INFINITY, "-inf"},
                      {243.35999999999999, "243.35999999999999"}};
  for (const Row& row : rows) EXPECT_EQ(FloatRepr(row.value), row.text);
  EXPECT_EQ(FloatRepr(NAN), "nan");
}

TEST(PythonText, NumbersFromText) {
  EXPECT_EQ(ParsePythonInt(" +0012 "), "12");
  EXPECT_EQ(ParsePythonInt("-0"), "0");
  EXPECT_EQ(ParsePythonInt("1_000"), "1000");
  for (const char* bad : {"", "-", "1__0", "_1", "1_", "1.0", "0x1", "1 2"})
    EXPECT_EQ(ParsePythonInt(bad), std::nullopt) << bad;
  EXPECT_EQ(ParsePythonFloat(" 1_0.5e1 "), 105.0);
  EXPECT_EQ(ParsePythonFloat("-INF"), -INFINITY);
  EXPECT_TRUE(std::isnan(*ParsePythonFloat("NaN")));
  for (const char* bad : {"", "0x1p3", "nan(1)", "1e", "1,5", "in"})
    EXPECT_EQ(ParsePythonFloat(bad), std::nullopt) << bad;
}

TEST(PythonSyntax, AcceptsPrograms) {
  const char* sources[] = {
      "def f(a, *, b=1, **kw):\n    \"\"\"Doc 'x'.\"\"\"\n    return a[:, 0] if b else -a\n",
      "@decorate(1)\ndef f(x: int = 3) -> str:\n\n    # note\n    if x > 1: return 'a' 'b'\n    elif not x:\n        "
      "pass\n    else:\n        return f\"{x!r}\"\n",
      "import a.b as c\nfrom . import d\nfrom ..e import (f, g)\nfrom ...h import i\nx = lambda a, *b: a\n",
      "class A(B):\n    x: int = 1\n    async def f(self):\n        async with a as b:\n            await b.g(*c, "
      "**d)\n",
      "def f():\n    try:\n        x = yield\n    except (A, B) as e:\n        raise C from e\n    finally:\n        "
      "del x\n",
      "match x:\n    case 1:\n        y = 2\nmatch = 3\n",
      "x = [i for i in range(3) if i not in y and i is not None]\ny = {1: 2, **z}\nprint(a, end='')\n",
      "x = 1_000 + 0xFF + 1.5e-3 + 2j\ns = r'\\d' + b'x'\nx **= 2; y = ...\n",
      "def f(a):\n\tif a:\n\t\treturn 1\n\treturn (\n  a +\n      b)\n",
      "default\n",
      "a = b \\\n    + c\n",
      "match default:\n  case 1: pass\n  case x if x > 2: y = 1 if x else 2\n",
      "if (a := f()) and a not in b: c = [i for i in x if i]\nwhile x := g(): break; pass\n",
      "for a in b: print(a)\nasync def f(x) -> int: return x in y\nz = a if b is not c else d\n",
      "global_x = x.def_ if False else x.type\n",
  };
  for (const char* source : sources) EXPECT_EQ(CheckPythonSource(source), "") << source;
}

TEST(PythonSyntax, RefusesProseAndBrokenCode) {
  struct Row {
    const char *source, *says;
  };
  const Row rows[] = {
      {"a default answer", "line 1: 'default' follows a value"},
      {"Give the default.", "follows a value"},
      {"Default?", "'?' is no Python"},
      {"don't default", "never closed"},
      {"use default: $x", "'$' is no Python"},
      {"def f(:\n  pass", "'(' is never closed"},
      {"def f()\n    pass", "needs a ':'"},
      {"def f():\nreturn 1", "is not indented"},
      {"def f():\n    return 1\n  x = 2", "matches no block"},
      {"x = 1\n    y = 2", "unexpected indentation"},
      {"def f():", "block is missing"},
      {"def (x):\n  pass", "needs a name"},
      {"x = (1]", "']' closes nothing"},
      {"x = ", "nothing follows '='"},
      {"x = 5apples", "is no number"},
      {"'''abc", "line 1: a string is never closed"},
      {"x = return 1", "'return' cannot stand here"},
      {"foo(a=)", "a value is missing"},
      {"the def is here", "'def' cannot stand here"},
      {"```python\ndef f(): pass\n```", "is no Python"},
      {"print:\n  x", "opens no block"},
      {"x and", "nothing follows 'and'"},
      {"pass default", "'pass' cannot stand here"},
      {"/default", "'/' cannot stand here"},
      {"and default", "'and' cannot stand here"},
      {"in default", "'in' cannot stand here"},
      {"x if default", "'if' cannot stand here"},
      {"x else default", "'else' cannot stand here"},
      {"default -> x", "'->' cannot stand here"},
      {"** default", "'**' cannot stand here"},
      {"default := 3", "':=' cannot stand here"},
  };
  for (const Row& row : rows) EXPECT_THAT(CheckPythonSource(row.source), HasSubstr(row.says)) << row.source;
}

TEST(PythonSyntax, FindsFunctions) {
  EXPECT_EQ(FirstFunctionName("# def no\n'def no2'\nasync def yes(a): pass\ndef other(): pass"), "yes");
  EXPECT_EQ(FirstFunctionName("default = 1"), "");
  EXPECT_TRUE(DefinesFunction("def a(): pass\ndef b(): pass", "b"));
  EXPECT_FALSE(DefinesFunction("x = 'def b'", "b"));
}

TEST(ConstraintCheck, RefusesWhatCannotHold) {
  EXPECT_TRUE(ValidateConstraint({.min = 1, .max = 1, .regex = "a.*"}).ok());
  EXPECT_THAT(std::string(ValidateConstraint({.min = 2, .max = 1}).message()), HasSubstr("constraint.min"));
  EXPECT_THAT(std::string(ValidateConstraint({.regex = "("}).message()), HasSubstr("constraint.regex"));
  EXPECT_FALSE(ValidateConstraint({.min = NAN}).ok());
}

TEST(BuiltinOps, TableIsSearchable) {
  for (const char* op : {"abs", "add", "eval", "len_", "set_symmetric_difference_update", "xor", "trunc", "getitem"}) {
    EXPECT_NE(BuiltinOpText(op), "") << op;
  }
  EXPECT_EQ(BuiltinOpText("no_such"), "");
}

}  // namespace
}  // namespace optod::trace
