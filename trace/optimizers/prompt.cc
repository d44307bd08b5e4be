#include "trace/optimizers/prompt.h"

#include <algorithm>

#include "base/status.h"
#include "trace/optimizers/fit.h"
#include "trace/optimizers/python_text.h"

namespace optod::trace {
namespace {

constexpr std::string_view kTitles[kSectionCount] = {"#Instruction", "#Code",        "#Documentation",
                                                     "#Variables",   "#Constraints", "#Inputs",
                                                     "#Others",      "#Outputs",     "#Feedback"};
constexpr std::string_view kMeanings[kSectionCount] = {
    "what you are asked to achieve",
    "the calls that were made, one a line: result = function(argument=value, ...)",
    "what each function does",
    "the values you may change; one that is in no line of code is used inside a function",
    "what a variable's new value must satisfy",
    "values that the program was given; you cannot change them",
    "values computed on the way",
    "the result that was judged",
    "the judgement: what was good or wrong about the result"};

class Renderer {
 public:
  Renderer(const ProblemInstance& problem, const RenderOptions& options) : problem_(problem), options_(options) {}

  Prompt Run(const Cut& cut) {
    cut_ = cut;
    prompt_ = {};
    prompt_.system = System();
    prompt_.user = User();
    return std::move(prompt_);
  }

 private:
  std::string Title(Section s) const {
    for (const auto& [section, title] : options_.titles) {
      if (section == s) return title;
    }
    return std::string(DefaultTitle(s));
  }
  bool Masked(Section s) const {
    return std::find(options_.mask.begin(), options_.mask.end(), s) != options_.mask.end();
  }

  std::string System() const {
    std::string out =
        "You tune a program. It was run once, the run was recorded, and its result was judged. You get the record in "
        "these "
        "sections:\n";
    for (int i = 0; i < kSectionCount; ++i) {
      out += Cat("- ", Title(static_cast<Section>(i)), ": ", kMeanings[i], ".\n");
    }
    out +=
        "Values are written as (type) name=value, source text as (code) name:source. Trace the feedback back through "
        "the code to "
        "the variables, and decide which of them to change and how.\n\n"
        "Answer with one JSON object and nothing else:\n"
        "{\"reasoning\": \"how the feedback leads to your changes\", \"answer\": \"the answer, if the instruction asks "
        "for one, "
        "else empty\", \"suggestion\": {\"variable name\": new value}}\n"
        "Name only variables you change, exactly as written. A new value has the type of the old one; source text is "
        "complete, "
        "keeps the function's name and arguments, and is one JSON string. If nothing should change, answer TERMINATE.";
    return out;
  }

  std::string User() {
    std::string out;
    if (options_.include_example) out += Example();
    out += "The recorded run:\n----------\n" + Instance() + "----------\n";
    if (const auto rounds = NewestRounds(options_.memory, cut_.memory); !rounds.empty()) out += Memory(rounds);
    return out + "Your JSON object:\n";
  }

  std::string Example() const {
    return Cat(
        "An example, to show the form:\n----------\n", Title(Section::kCode),
        "\narea0 = multiply(x=width0, y=height0)\n\n", Title(Section::kVariables), "\n(int) width0=3\n\n",
        Title(Section::kInputs), "\n(int) height0=4\n\n", Title(Section::kOutputs), "\n(int) area0=12\n\n",
        Title(Section::kFeedback), "\nThe area should be 20.\n----------\n",
        R"({"reasoning": "height0 is fixed at 4, so width0 must be 20 / 4 = 5.", "answer": "", "suggestion": {"width0": 5}})",
        "\n\n");
  }

  std::string Instance() {
    std::string out;
    for (int i = 0; i < kSectionCount; ++i) {
      const auto s = static_cast<Section>(i);
      out += Title(s) + "\n";
      if (!Masked(s)) AppendSection(out, s);
      out += "\n";
    }
    return out;
  }

  void AppendSection(std::string& out, Section s) {
    switch (s) {
      case Section::kInstruction:
        out += Instruction() + "\n";
        break;
      case Section::kCode:
        AppendCode(out);
        break;
      case Section::kDocumentation:
        for (const DocumentationEntry& d : problem_.documentation) out += d.function + ": " + d.text + "\n";
        break;
      case Section::kVariables:
        for (const ValueEntry& v : problem_.variables) out += ValueLine(v, 0) + "\n";
        break;
      case Section::kConstraints:
        for (const ValueEntry& v : problem_.variables) {
          if (!v.constraint.empty()) out += Cat("(", v.type, ") ", v.py_name, ": ", v.constraint, "\n");
        }
        break;
      case Section::kInputs:
        AppendValues(out, problem_.inputs);
        break;
      case Section::kOthers:
        AppendValues(out, problem_.others);
        break;
      case Section::kOutputs:
        for (const ValueEntry& v : problem_.outputs) out += ValueLine(v, cut_.value_limit) + "\n";
        break;
      case Section::kFeedback:
        out += CutMiddle(problem_.feedback, cut_.feedback_limit) + "\n";
        break;
    }
  }

  // The default objective names sections: by the titles in use.
  std::string Instruction() const {
    if (problem_.instruction != DefaultInstruction()) return problem_.instruction;
    return Cat("Find values for the variables in ", Title(Section::kVariables), " that move the result in ",
               Title(Section::kOutputs), " where ", Title(Section::kFeedback), " says it should go.");
  }

  void AppendCode(std::string& out) {
    std::vector<std::string> lines;
    for (const CodeLine& line : problem_.code) {
      if (cut_.collapse && line.collapsed) {
        ++prompt_.collapsed_lines;
        continue;
      }
      lines.push_back(line.text);
      if (!cut_.collapse) continue;
      auto note = std::lower_bound(problem_.collapse_notes.begin(), problem_.collapse_notes.end(),
                                   std::pair(line.node, std::string()));
      for (; note != problem_.collapse_notes.end() && note->first == line.node; ++note) lines.push_back(note->second);
    }
    AppendSome(out, lines.size(), "lines", [&](size_t i) { return lines[i]; });
  }

  void AppendValues(std::string& out, const std::vector<ValueEntry>& values) {
    std::vector<const ValueEntry*> shown;
    for (const ValueEntry& v : values) {
      if (!cut_.collapse || !v.collapsed) shown.push_back(&v);
    }
    AppendSome(out, shown.size(), "values", [&](size_t i) { return ValueLine(*shown[i], cut_.value_limit); });
    if (shown.size() < values.size())
      out += Cat("...[", values.size() - shown.size(), " values of the calls left out]\n");
  }

  // All lines, or the first and last halves of cut_.lines with a note of how many are left out between.
  template <typename F>
  void AppendSome(std::string& out, size_t count, std::string_view what, F line) {
    const size_t head = count <= cut_.lines ? count : cut_.lines / 2;
    const size_t tail = count <= cut_.lines ? count : count - (cut_.lines - head);
    for (size_t i = 0; i < head; ++i) out += line(i) + "\n";
    if (tail > head) {
      out += Cat("...[", tail - head, " more ", what, "]\n");
      prompt_.omitted_lines += static_cast<uint32_t>(tail - head);
    }
    for (size_t i = tail; i < count; ++i) out += line(i) + "\n";
  }

  std::string ValueLine(const ValueEntry& v, uint32_t limit) {
    std::string out = "(" + v.type + ") " + v.py_name + (v.type == "code" ? ":" : "=");
    if (limit == 0) return out + v.text;
    bool cut = false;
    out += TruncateValue(v.text, limit, &cut);
    prompt_.truncated_values += cut;
    return out;
  }

  static std::string Memory(std::span<const MemoryRound> rounds) {
    std::string out = "Earlier values and what was said about them, oldest first:\n";
    int number = 1;
    for (const MemoryRound& round : rounds) {
      out += Cat(number++, ". ");
      if (round.score) out += "score " + FloatRepr(*round.score) + "; ";
      for (const auto& [name, value] : round.variables) out += name + "=" + value + "; ";
      out += "feedback: " + round.feedback + "\n";
    }
    return out + "\n";
  }

  const ProblemInstance& problem_;
  const RenderOptions& options_;
  Cut cut_;
  Prompt prompt_;
};

}  // namespace

std::string_view DefaultTitle(Section section) { return kTitles[static_cast<int>(section)]; }

std::optional<Section> ParseSection(std::string_view title) {
  if (!title.empty() && title[0] == '#') title.remove_prefix(1);
  for (int i = 0; i < kSectionCount; ++i) {
    const std::string_view known = kTitles[i].substr(1);
    const bool same = std::equal(known.begin(), known.end(), title.begin(), title.end(),
                                 [](char a, char b) { return (a | 0x20) == (b | 0x20); });
    if (same) return static_cast<Section>(i);
  }
  return std::nullopt;
}

Prompt Render(const ProblemInstance& problem, const RenderOptions& options) {
  if (options.form == PromptForm::kBrief) return RenderBrief(problem, options);
  Renderer renderer(problem, options);
  const size_t lines = std::max({problem.code.size(), problem.others.size(), problem.inputs.size()});
  return FitPrompt(options.max_prompt_tokens, options.value_limit, options.memory.size(), lines,
                   problem.feedback.size(), [&](const Cut& cut) { return renderer.Run(cut); });
}

uint64_t EstimateTokens(std::string_view text) {
  uint64_t tokens = 0;
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<unsigned char>(text[i]);
    const size_t begin = i;
    auto run = [&](auto same) {
      while (i < text.size() && same(static_cast<unsigned char>(text[i]))) ++i;
      return i - begin;
    };
    auto letter = [](unsigned char x) { return (x | 0x20) >= 'a' && (x | 0x20) <= 'z'; };
    auto digit = [](unsigned char x) { return x >= '0' && x <= '9'; };
    if (letter(c)) {
      tokens += 1 + (run(letter) - 1) / 6;  // common words are one token, longer ones split
    } else if (digit(c)) {
      tokens += (run(digit) + 2) / 3;
    } else if (c == ' ') {
      tokens += run([](unsigned char x) { return x == ' '; }) > 1;  // a single space joins the next word
    } else {
      tokens += c < 0x80 || (c & 0xC0) != 0x80;  // punctuation, line breaks, and code points beyond ASCII
      ++i;
    }
  }
  return tokens;
}

std::string TruncateValue(std::string_view text, uint32_t limit, bool* cut) {
  auto starts = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  size_t end = 0;
  for (uint32_t points = 0; end < text.size(); ++end) {
    if (starts(text[end]) && points++ == limit) break;
  }
  const auto left = std::count_if(text.begin() + static_cast<std::ptrdiff_t>(end), text.end(), starts);
  if (cut) *cut = left > 0;
  std::string out(text.substr(0, end));
  if (left > 0) out += Cat("...[", left, " more characters]");
  return out;
}

}  // namespace optod::trace
