#include "optim/train/presets.h"

namespace optod::train {
namespace {

/// Rows of a JSONL file, scored over all options.
TaskSpec Classes(const char* prompt, std::vector<std::pair<std::string, std::string>> options) {
  TaskSpec task;
  task.format = "jsonl";
  task.prompt = prompt;
  task.options = std::move(options);
  return task;
}
TaskSpec Continuations(TaskSpec task) { return task.classify = false, task; }
TaskSpec Labelled(TaskSpec task, const char* label) { return task.label = label, task; }
TaskSpec Answered(const char* prompt, const char* field) {
  TaskSpec task = Classes(prompt, {});
  task.classify = false;
  task.answer.field = field;
  return task;
}
TaskSpec Sst2() {
  TaskSpec task = Classes("{sentence} It was", {{"0", " terrible"}, {"1", " great"}});
  task.format = "tsv";
  task.columns = {"sentence", "label"};
  return task;
}
TaskSpec Copa() {
  TaskSpec task = Classes("{premise|clause} {asks_for|connective}",
                          {{"0", " {choice1|lower-first}"}, {"1", " {choice2|lower-first}"}});
  task.format = "tsv";
  task.header = true;
  task.classify = false;
  return task;
}
TaskSpec Text() {
  TaskSpec task;
  task.format = "text";
  task.classify = false;
  return task;
}

struct Preset {
  const char* name;
  TaskSpec task;
};

const std::vector<Preset>& Presets() {
  static const auto* presets = new std::vector<Preset>{
      {"custom", {}},
      {"text", Text()},
      {"sst2", Sst2()},
      {"copa", Copa()},
      {"rte", Classes("{premise}\nDoes this mean that \"{hypothesis}\" is true? Yes or No?\n", {{"0", "Yes"}, {"1", "No"}})},
      {"cb", Classes("Suppose {premise} Can we infer that \"{hypothesis}\"? Yes, No, or Maybe?\n",
                     {{"0", "Yes"}, {"1", "No"}, {"2", "Maybe"}})},
      {"boolq", Classes("{passage} {question|question}\n", {{"1", "Yes"}, {"0", "No"}})},
      {"wic", Classes("Does the word \"{word}\" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n",
                      {{"0", "No"}, {"1", "Yes"}})},
      {"wsc", Classes("{text}\nIn the previous sentence, does the pronoun \"{span2_text|lower}\" refer to {span1_text}? Yes or No?\n",
                      {{"0", "No"}, {"1", "Yes"}})},
      {"multirc", Classes("{paragraph}\nQuestion: {question}\nI found this answer \"{answer}\". Is that correct? Yes or No?\n",
                          {{"0", "No"}, {"1", "Yes"}})},
      {"winogrande", Labelled(Continuations(Classes("{sentence|before-blank}", {{"1", " {option1}{sentence|after-blank}"},
                                                                                {"2", " {option2}{sentence|after-blank}"}})),
                              "answer")},
      {"squad", Answered("Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:", "answers.text")},
      {"drop", Answered("Passage: {passage}\nQuestion: {question}\nAnswer:", "answers_spans.spans")},
  };
  return *presets;
}

}  // namespace

std::vector<std::string> TaskNames() {
  std::vector<std::string> names;
  for (const Preset& preset : Presets()) names.emplace_back(preset.name);
  return names;
}

void ApplyPreset(TaskSpec* task) {
  for (const Preset& preset : Presets()) {
    if (task->name != preset.name || task->name == "custom") continue;
    const std::string name = task->name;
    *task = preset.task;
    task->name = name;
  }
}

}  // namespace optod::train
