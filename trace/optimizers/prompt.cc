#include "trace/optimizers/prompt.h"

#include <algorithm>

#include "base/status.h"
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
constexpr uint32_t kAllLines = UINT32_MAX;
constexpr uint32_t kSmallestLimit = 40, kFewestLines = 8;

class Renderer {
 public:
  Renderer(const ProblemInstance& problem, const RenderOptions& options) : problem_(problem), options_(options) {}

  Prompt Run(uint32_t value_limit, uint32_t lines) {
    limit_ = value_limit;
    lines_ = lines;
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
    if (!options_.memory.empty()) out += Memory();
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
        out += problem_.instruction + "\n";
        break;
      case Section::kCode:
        AppendSome(out, problem_.code.size(), "lines", [&](size_t i) { return problem_.code[i].text; });
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
        for (const ValueEntry& v : problem_.outputs) out += ValueLine(v, limit_) + "\n";
        break;
      case Section::kFeedback:
        out += problem_.feedback + "\n";
        break;
    }
  }

  void AppendValues(std::string& out, const std::vector<ValueEntry>& values) {
    AppendSome(out, values.size(), "values", [&](size_t i) { return ValueLine(values[i], limit_); });
  }

  // All lines, or the first and last halves of lines_ with a note of how many are left out between.
  template <typename F>
  void AppendSome(std::string& out, size_t count, std::string_view what, F line) {
    const size_t head = count <= lines_ ? count : lines_ / 2;
    const size_t tail = count <= lines_ ? count : count - (lines_ - head);
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

  std::string Memory() const {
    std::string out = "Earlier values and what was said about them, oldest first:\n";
    int number = 1;
    for (const MemoryRound& round : options_.memory) {
      out += Cat(number++, ". ");
      if (round.score) out += "score " + FloatRepr(*round.score) + "; ";
      for (const auto& [name, value] : round.variables) out += name + "=" + value + "; ";
      out += "feedback: " + round.feedback + "\n";
    }
    return out + "\n";
  }

  const ProblemInstance& problem_;
  const RenderOptions& options_;
  uint32_t limit_ = 0;
  uint32_t lines_ = kAllLines;
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
  uint32_t limit = options.value_limit;
  uint32_t lines = kAllLines;
  Prompt prompt = renderer.Run(limit, lines);
  if (options.max_prompt_tokens == 0) return prompt;
  auto fits = [&] { return EstimateTokens(prompt.system) + EstimateTokens(prompt.user) <= options.max_prompt_tokens; };
  // First shorter values, then fewer lines.
  if (limit == 0 && !fits()) prompt = renderer.Run(limit = 4096, lines);
  while (!fits() && limit > kSmallestLimit) prompt = renderer.Run(limit = std::max(limit / 2, kSmallestLimit), lines);
  const size_t most = std::max({problem.code.size(), problem.others.size(), problem.inputs.size()});
  lines = static_cast<uint32_t>(std::min<size_t>(most, kAllLines));
  while (!fits() && lines > kFewestLines) prompt = renderer.Run(limit, lines = std::max(lines / 2, kFewestLines));
  prompt.over_limit = !fits();
  return prompt;
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
