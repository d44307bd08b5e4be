// Replies: one table of what the reference library does and what we do, one of outcomes, then the seeded mutation run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "trace/optimizers/reply.h"

namespace optod::trace {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

const char kSource[] = "def policy(obs):\n    return obs + 1\n";

std::vector<ReplyParameter> Parameters() {
  auto make = [](const char* py_name, const char* name, const char* type, const char* text, const char* json) {
    ReplyParameter p;
    p.py_name = py_name;
    p.name = name;
    p.type_name = type;
    p.text = text;
    if (json) p.json = json;
    return p;
  };
  std::vector<ReplyParameter> all = {make("i0", "i:0", "int", "1", "1"),
                                     make("f0", "f:0", "float", "0.5", "0.5"),
                                     make("s0", "s:0", "str", "hi", "\"hi\""),
                                     make("b0", "b:0", "bool", "True", "true"),
                                     make("l0", "l:0", "list", "[1]", "[1]"),
                                     make("d0", "d:0", "dict", "{'k': 1}", "{\"k\":1}"),
                                     make("t0", "t:0", "tuple", "(1,)", "[1]"),
                                     make("z0", "z:0", "int", "3", "3"),
                                     make("__code0", "__code:0", "str", kSource, nullptr)};
  all[7].trainable = false;
  all[8].is_code = true;
  return all;
}

// `name=text` of every changed parameter, joined by '|'.
std::string Changes(const ReplyOutcome& outcome) {
  if (outcome.kind == ReplyKind::kRaises) return "raises " + outcome.reason;
  const std::vector<ReplyParameter> parameters = Parameters();
  std::map<std::string, std::string> changed;
  for (const KeyResult& k : outcome.keys) {
    if (k.outcome == KeyOutcome::kApplied) changed[parameters[static_cast<size_t>(k.parameter)].py_name] = k.new_text;
  }
  std::string out;
  for (const auto& [name, text] : changed) out += (out.empty() ? "" : "|") + name + "=" + text;
  return out;
}
ReplyOutcome Ours(std::string_view reply) { return ParseReply(reply, Parameters()); }
ReplyOutcome Theirs(std::string_view reply) { return ParseReply(reply, Parameters(), {.peer_compat = true}); }

struct Case {
  const char* name;
  const char* reply;
  const char* theirs;      // the reference library's changes
  const char* ours;        // nullptr: the same
  std::string_view fix{};  // the documented reason, where ours differs
};

const Case kCases[] = {
    {"plain", R"({"suggestion":{"i0":5,"f0":"1.25","s0":"hello"}})", "f0=1.25|i0=5|s0=hello", nullptr},
    {"fence", "```json\n{\"suggestion\":{\"i0\":7}}\n```", "i0=7", nullptr},
    {"prose_around", R"(Sure: {"suggestion":{"s0":"new"}} Done.)", "s0=new", nullptr},
    {"terminate", "TERMINATE", "", nullptr},
    {"terminate_after", R"({"suggestion":{"i0":9}} TERMINATE)", "", nullptr},
    {"terminate_in_reasoning", R"({"reasoning":"do not TERMINATE","suggestion":{"i0":9}})", "", nullptr},
    {"int_from_words", R"({"suggestion":{"i0":"abc","s0":"ok"}})", "s0=ok", nullptr},
    {"unknown_key", R"({"suggestion":{"i":5}})", "", nullptr},
    {"no_suggestion", R"({"i0":5})", "", nullptr},
    {"empty", "", "", nullptr},
    {"int_truncates", R"({"suggestion":{"i0":5.9}})", "i0=5", nullptr},
    {"int_truncates_negative", R"({"suggestion":{"i0":-5.9}})", "i0=-5", nullptr},
    {"int_from_decimal_text", R"({"suggestion":{"i0":"5.5"}})", "", nullptr},
    {"int_from_padded_text", R"({"suggestion":{"i0":" 1_0 "}})", "i0=10", nullptr},
    {"int_from_bool", R"({"suggestion":{"i0":false}})", "i0=0", nullptr},
    {"int_huge", R"({"suggestion":{"i0":123456789012345678901234567890}})", "i0=123456789012345678901234567890",
     nullptr},
    {"int_from_large_float", R"({"suggestion":{"i0":1e20}})", "i0=100000000000000000000", nullptr},
    {"int_null", R"({"suggestion":{"i0":null}})", "raises TypeError", "", kFixNull},
    {"int_list", R"({"suggestion":{"i0":[1],"s0":"x"}})", "raises TypeError", "s0=x", kFixTyped},
    {"int_infinity", R"({"suggestion":{"i0":Infinity}})", "raises OverflowError", ""},
    {"float_from_int", R"({"suggestion":{"f0":3}})", "f0=3.0", nullptr},
    {"float_exponent", R"({"suggestion":{"f0":1e16}})", "f0=1e+16", nullptr},
    {"float_small", R"({"suggestion":{"f0":0.00001}})", "f0=1e-05", nullptr},
    {"float_nan_text", R"({"suggestion":{"f0":"nan"}})", "f0=nan", nullptr},
    {"float_hex_text", R"({"suggestion":{"f0":"0x10"}})", "", nullptr},
    {"str_from_number", R"({"suggestion":{"s0":42}})", "s0=42", nullptr},
    {"str_from_list", R"({"suggestion":{"s0":[1,"a",null]}})", "s0=[1, 'a', None]", nullptr},
    {"str_empty", R"({"suggestion":{"s0":""}})", "s0=", nullptr},
    {"str_null", R"({"suggestion":{"s0":null}})", "s0=None", "", kFixNull},
    {"str_prose_with_def", R"({"suggestion":{"s0":"Give a default answer."}})", "", "s0=Give a default answer.",
     kFixPlainText},
    {"str_prose_with_apostrophe", R"({"suggestion":{"s0":"don't use the default"}})", "", "s0=don't use the default",
     kFixPlainText},
    {"bool_false_text", R"({"suggestion":{"b0":"False"}})", "", "b0=False", kFixBool},
    {"bool_false", R"({"suggestion":{"b0":false}})", "b0=False", nullptr},
    {"bool_zero", R"({"suggestion":{"b0":0}})", "b0=False", nullptr},
    {"bool_empty_text", R"({"suggestion":{"b0":""}})", "b0=False", "", kFixBool},
    {"bool_null", R"({"suggestion":{"b0":null}})", "b0=False", "", kFixNull},
    {"list", R"({"suggestion":{"l0":[4,5]}})", "l0=[4, 5]", nullptr},
    {"list_from_text", R"({"suggestion":{"l0":"ab"}})", "l0=['a', 'b']", "", kFixContainer},
    {"list_from_json_text", R"({"suggestion":{"l0":"[4, 5]"}})", "l0=['[', '4', ',', ' ', '5', ']']", "l0=[4, 5]",
     kFixContainer},
    {"list_from_object", R"({"suggestion":{"l0":{"a":1}}})", "l0=['a']", "", kFixContainer},
    {"list_from_number", R"({"suggestion":{"l0":3}})", "raises TypeError", "", kFixContainer},
    {"dict", R"({"suggestion":{"d0":{"a":[true,1.5]}}})", "d0={'a': [True, 1.5]}", nullptr},
    {"dict_from_pairs", R"({"suggestion":{"d0":[["a",1]]}})", "d0={'a': 1}", "", kFixContainer},
    {"dict_from_text", R"({"suggestion":{"d0":"abc"}})", "", ""},
    {"tuple", R"({"suggestion":{"t0":[2]}})", "t0=(2,)", nullptr},
    {"same_value", R"({"suggestion":{"i0":1,"l0":[1],"d0":{"k":1}}})", "", nullptr},
    {"not_trainable", R"({"suggestion":{"z0":9}})", "", nullptr},
    {"duplicate_key_last_wins", R"({"suggestion":{"i0":2,"i0":3}})", "i0=3", nullptr},
    {"colon_key", R"({"suggestion":{"i:0":4}})", "", "i0=4", kFixKeyColon},
    {"code", R"({"suggestion":{"__code0":"def policy(obs):\n    return 7\n"}})",
     "__code0=def policy(obs):\n    return 7\n", nullptr},
    {"code_blank", R"({"suggestion":{"__code0":"  \n"}})", "", nullptr},
    {"code_number", R"({"suggestion":{"__code0":5}})", "raises AttributeError", "", kFixTyped},
    {"code_other_name", R"({"suggestion":{"__code0":"def other(obs):\n    return 7\n"}})",
     "__code0=def other(obs):\n    return 7\n", "", kFixCodeRule},
    {"code_no_function", R"({"suggestion":{"__code0":"return 7"}})", "__code0=return 7", "", kFixCodeRule},
    {"code_broken", R"({"suggestion":{"__code0":"def policy(obs:\n  return"}})", "", nullptr},
    {"code_fenced", "{\"suggestion\":{\"__code0\":\"```python\\ndef policy(obs):\\n    return 8\\n```\"}}", "",
     "__code0=def policy(obs):\n    return 8\n", kFixCodeRule},
    {"two_objects", R"({"suggestion":{"i0":2}} or rather {"suggestion":{"i0":3}})", "", "i0=3", kFixScan},
    {"braces_in_prose", R"(I use {x} here: {"suggestion":{"i0":3}})", "", "i0=3", kFixScan},
    {"think", "<think>maybe {\"suggestion\":{\"i0\":2}}</think>{\"suggestion\":{\"i0\":3}}", "", "i0=3", kFixThink},
    {"think_upper", "<THINK>{}</Think>{\"suggestion\":{\"i0\":3}}", "", "i0=3", kFixThink},
    {"think_only_closed", "so {a}</think>{\"suggestion\":{\"i0\":3}}", "", "i0=3", kFixThink},
    {"think_unclosed", "<think>{\"suggestion\":{\"i0\":2}}", "i0=2", "", kFixThink},
    {"think_terminate", "<think>TERMINATE?</think>{\"suggestion\":{\"i0\":3}}", "", "i0=3", kFixThink},
    {"think_in_value", R"({"suggestion":{"s0":"use <think> tags"}})", "s0=use <think> tags", nullptr},
    {"trailing_comma", R"({"suggestion":{"i0":4,},})", "", "i0=4", kFixLenientJson},
    {"raw_line_break", "{\"suggestion\":{\"s0\":\"a\nb\"}}", "s0=a\nb", nullptr},
    {"single_quotes", "{'suggestion': {'i0': 6, 'b0': False}}", "", "b0=False|i0=6", kFixLenientJson},
    {"comment", "{\"suggestion\":{\"i0\":6 // six\n}}", "", "i0=6", kFixLenientJson},
    {"missing_comma", "{\"suggestion\":{\"i0\":\"6\"\n\"f0\":\"2\"}}", "", "f0=2.0|i0=6", kFixLenientJson},
    {"broken_outside", R"({"reasoning":"say "so", "suggestion":{"s0":"x"}})", "s0=x", nullptr},
    {"broken_outside_two", R"({"reasoning":"say "so", "suggestion":{"i0":2,"s0":"x"}})", "s0=x", "i0=2|s0=x", kFixScan},
    {"unescaped_quotes", R"({"suggestion":{"s0":"say "yes" now"}})", "s0=say \"yes\" now", nullptr},
    {"nested", R"({"response":{"suggestion":{"i0":8}}})", "", "i0=8", kFixScan},
    {"in_list", R"([{"suggestion":{"i0":8}}])", "", "i0=8"},
    {"suggestion_is_text", R"({"suggestion":"i0 = 5"})", "", nullptr},
    {"suggestion_is_null", R"({"suggestion":null})", "", nullptr},
    {"suggestion_is_list", R"({"suggestion":[1]})", "", nullptr},
    {"suggestion_empty", R"({"suggestion":{}})", "", nullptr},
    {"cut", R"({"reasoning":"long", "suggestion":{"i0":)", "", nullptr},
    {"surrogates", R"({"suggestion":{"s0":"\ud83d\ude00 \u00e9"}})", "s0=\xF0\x9F\x98\x80 \xC3\xA9", nullptr},
};

TEST(Reply, TheirsAndOurs) {
  for (const Case& c : kCases) {
    const ReplyOutcome ours = Ours(c.reply);
    EXPECT_EQ(Changes(Theirs(c.reply)), c.theirs) << c.name;
    EXPECT_EQ(Changes(ours), c.ours ? c.ours : c.theirs) << c.name;
    if (!c.fix.empty()) {
      EXPECT_THAT(ours.fixes, Contains(std::string(c.fix))) << c.name;
    }
  }
}

struct KindCase {
  const char* name;
  const char* reply;
  ReplyKind kind;
  const char* reason;
};

TEST(Reply, WholeReplyOutcomes) {
  const KindCase cases[] = {
      {"applied", R"({"suggestion":{"i0":5}})", ReplyKind::kApplied, ""},
      {"nothing", R"({"suggestion":{"i0":1}})", ReplyKind::kNothingApplied, "no suggested value changes"},
      {"terminate", "Fine. TERMINATE", ReplyKind::kNoUpdateRequested, "TERMINATE"},
      {"blank", " \n", ReplyKind::kEmpty, "blank"},
      {"thought", "<think>hm", ReplyKind::kEmpty, "thought"},
      {"no_keys", R"({"suggestion":{}})", ReplyKind::kEmpty, "names no parameter"},
      {"null", R"({"suggestion":null})", ReplyKind::kEmpty, "no JSON object"},
      {"prose", "I cannot.", ReplyKind::kUnparsable, "no complete JSON object"},
      {"text", R"({"suggestion":"x"})", ReplyKind::kUnparsable, "\"suggestion\" is no JSON object"},
      {"member", R"({"i0":5})", ReplyKind::kUnparsable, "no member \"suggestion\""},
  };
  for (const KindCase& c : cases) {
    const ReplyOutcome outcome = Ours(c.reply);
    EXPECT_EQ(outcome.kind, c.kind) << c.name << ": " << ReplyKindName(outcome.kind);
    EXPECT_THAT(outcome.reason, HasSubstr(c.reason)) << c.name;
  }
}

struct KeyCase {
  const char* key;
  const char* value;
  KeyOutcome outcome;
  const char* reason;
};

TEST(Reply, KeyOutcomes) {
  const KeyCase cases[] = {
      {"i0", "5", KeyOutcome::kApplied, ""},
      {"i0", "1", KeyOutcome::kUnchanged, "equals"},
      {"i0", "\"one\"", KeyOutcome::kCastFailed, "'one' is no int"},
      {"b0", "\"maybe\"", KeyOutcome::kCastFailed, "no bool"},
      {"d0", "\"text\"", KeyOutcome::kCastFailed, "no JSON object"},
      {"q0", "1", KeyOutcome::kUnknownKey, "names no parameter"},
      {"z0", "1", KeyOutcome::kNotTrainable, "not trainable"},
      {"__code0", "\"\"", KeyOutcome::kSkippedBlankCode, "blank"},
      {"__code0", "\"def f(): pass\"", KeyOutcome::kConstraintRejected, "does not define the function policy"},
      {"__code0", "\"def policy(o):\\n  retur x y\"", KeyOutcome::kConstraintRejected, "line 2"},
  };
  for (const KeyCase& c : cases) {
    const ReplyOutcome outcome = Ours(std::string("{\"suggestion\":{\"") + c.key + "\":" + c.value + "}}");
    ASSERT_EQ(outcome.keys.size(), 1u) << c.key << c.value;
    EXPECT_EQ(outcome.keys[0].outcome, c.outcome)
        << c.key << c.value << ": " << KeyOutcomeName(outcome.keys[0].outcome);
    EXPECT_THAT(outcome.keys[0].reason, HasSubstr(c.reason));
    EXPECT_EQ(outcome.keys[0].new_json.has_value(),
              c.outcome == KeyOutcome::kApplied || c.outcome == KeyOutcome::kUnchanged);
  }
}

TEST(Reply, KeepsTheModelsWords) {
  const ReplyOutcome o = Ours(R"({"reasoning":"because","answer":42,"suggestion":{"i0":5}})");
  EXPECT_EQ(o.reasoning, "because");
  EXPECT_EQ(o.answer, "42");
  EXPECT_EQ(o.keys[0].old_text, "1");
  EXPECT_EQ(o.keys[0].new_json, "5");
}

TEST(Reply, TerminateInsideAValueThatHadIt) {
  std::vector<ReplyParameter> p = Parameters();
  p[2].text = "Say TERMINATE when done";
  const char reply[] = R"({"suggestion":{"s0":"Say TERMINATE at the end"}})";
  EXPECT_EQ(ParseReply(reply, p).kind, ReplyKind::kApplied);
  EXPECT_EQ(ParseReply(std::string(reply) + " TERMINATE", p).kind, ReplyKind::kNoUpdateRequested);
  EXPECT_EQ(Ours(reply).kind, ReplyKind::kNoUpdateRequested);
}

TEST(Reply, BareObjectOnlyOnRequest) {
  const ReplyOutcome o = ParseReply(R"({"note":"x","i0":5})", Parameters(), {.accept_bare_object = true});
  EXPECT_EQ(Changes(o), "i0=5");
}

TEST(Reply, ConstraintsAreEnforced) {
  struct Row {
    const char* name;
    int parameter;
    Constraint constraint;
    const char* value;
    const char* reason;  // empty: applied
  };
  const Row rows[] = {
      {"min", 0, {.min = 2}, "1.5", "1 is below the minimum 2.0"},
      {"min_ok", 0, {.min = 2}, "2", ""},
      {"max", 1, {.max = 1}, "1.5", "above the maximum 1.0"},
      {"nan", 1, {.max = 1}, "\"nan\"", "no number in a range"},
      {"enum", 2, {.enum_values = {"a", "b"}}, "\"c\"", "is none of a, b"},
      {"enum_ok", 2, {.enum_values = {"a", "b"}}, "\"b\"", ""},
      {"regex", 2, {.regex = "[a-z]+"}, "\"ab1\"", "does not match"},
      {"regex_ok", 2, {.regex = "[a-z]+"}, "\"ab\"", ""},
      {"regex_bad", 2, {.regex = "("}, "\"ab\"", "invalid"},
      {"length", 2, {.max_length = 2}, "\"\\u00e9\\u00e9\\u00e9\"", "has 3 characters; at most 2"},
      {"length_ok", 2, {.max_length = 2}, "\"\\u00e9\\u00e9\"", ""},
  };
  for (const Row& row : rows) {
    std::vector<ReplyParameter> p = Parameters();
    p[static_cast<size_t>(row.parameter)].constraint = row.constraint;
    const std::string reply =
        "{\"suggestion\":{\"" + p[static_cast<size_t>(row.parameter)].py_name + "\":" + row.value + "}}";
    const ReplyOutcome o = ParseReply(reply, p);
    ASSERT_EQ(o.keys.size(), 1u);
    EXPECT_EQ(o.keys[0].outcome, *row.reason ? KeyOutcome::kConstraintRejected : KeyOutcome::kApplied) << row.name;
    EXPECT_THAT(o.keys[0].reason, HasSubstr(row.reason)) << row.name;
  }
}

// Inputs made to cost much: each must end quickly (quadratic behaviour would take minutes here).
TEST(Reply, HostileInputsStayLinear) {
  auto repeat = [](std::string_view text, size_t times) {
    std::string out;
    out.reserve(text.size() * times);
    for (size_t i = 0; i < times; ++i) out += text;
    return out;
  };
  const size_t n = 200000;
  std::string keys = "{\"suggestion\":{";
  for (size_t i = 0; i < 100000; ++i) keys += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":1";
  keys += "}}";
  const std::string replies[] = {repeat("{", n),
                                 repeat("[", n),
                                 repeat("{\"a\":", n),
                                 repeat("{//", n),
                                 repeat("<think>", n),
                                 repeat("</think>", n),
                                 repeat("\"suggestion\":{", n / 4),
                                 repeat("{\"a", n),
                                 repeat("{'", n),
                                 repeat("}", n),
                                 repeat("</", n),
                                 keys,
                                 std::string(9u << 20, 'x')};
  for (const std::string& reply : replies) {
    Ours(reply);
    if (reply.size() < (1u << 20)) Theirs(reply);
  }
  EXPECT_EQ(Ours(keys).keys.size(), 100000u);
  EXPECT_EQ(Ours(replies[12]).kind, ReplyKind::kUnparsable);
}

// 10,000 replies made from good ones by random edits: nothing crashes, and outcomes stay consistent.
TEST(Reply, MutatedRepliesAreHarmless) {
  std::mt19937_64 random(20240624);
  const std::string pieces[] = {
      "{",        "}",   "\"",        "'",  "[",    "]",   ":",     ",", "\\",   "\\u12",          "null", "<think>",
      "</think>", "```", "TERMINATE", "\n", "\xFF", "\0x", "1e999", "-", "def ", "\"suggestion\"", "NaN",  "\xF0\x9F"};
  const std::vector<ReplyParameter> parameters = Parameters();
  for (int i = 0; i < 10000; ++i) {
    std::string reply = kCases[random() % std::size(kCases)].reply;
    for (uint64_t edits = 1 + random() % 6; edits > 0; --edits) {
      const size_t at = random() % (reply.size() + 1);
      switch (random() % 4) {
        case 0:
          reply.insert(at, pieces[random() % std::size(pieces)]);
          break;
        case 1:
          reply.erase(at, random() % 5);
          break;
        case 2:
          if (at < reply.size()) reply[at] = static_cast<char>(random());
          break;
        default:
          reply += kCases[random() % std::size(kCases)].reply;
      }
    }
    for (const bool peer : {false, true}) {
      const ReplyOutcome o = ParseReply(reply, parameters, {.peer_compat = peer});
      bool applied = false;
      for (const KeyResult& k : o.keys) {
        applied = applied || k.outcome == KeyOutcome::kApplied;
        ASSERT_LT(k.parameter, static_cast<int>(parameters.size()));
        if (k.outcome == KeyOutcome::kApplied) {
          ASSERT_GE(k.parameter, 0);
          ASSERT_TRUE(parameters[static_cast<size_t>(k.parameter)].trainable);
          ASSERT_NE(k.new_text, k.old_text);
        } else if (!peer) {
          ASSERT_FALSE(k.reason.empty()) << reply;
        }
      }
      ASSERT_EQ(applied, o.kind == ReplyKind::kApplied) << reply;
    }
  }
}

TEST(Reply, NamesAreDistinct) {
  EXPECT_EQ(ReplyKindName(ReplyKind::kNoUpdateRequested), "no_update_requested");
  EXPECT_EQ(ReplyKindName(ReplyKind::kRaises), "raises");
  EXPECT_EQ(KeyOutcomeName(KeyOutcome::kConstraintRejected), "constraint_rejected");
  EXPECT_EQ(KeyOutcomeName(KeyOutcome::kSkippedBlankCode), "skipped_blank_code");
}

}  // namespace
}  // namespace optod::trace
