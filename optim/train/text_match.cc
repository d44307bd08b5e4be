#include "optim/train/text_match.h"

#include <cctype>
#include <map>
#include <vector>

namespace optod::train {
namespace {

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isspace(byte)) {
      words.emplace_back();
    } else if (!std::ispunct(byte)) {
      words.back() += static_cast<char>(std::tolower(byte));
    }
  }
  std::erase_if(words, [](const std::string& w) { return w.empty() || w == "a" || w == "an" || w == "the"; });
  return words;
}

}  // namespace

double TokenF1(const std::string& prediction, const std::string& truth) {
  const std::vector<std::string> a = Words(prediction), b = Words(truth);
  std::map<std::string, int> left;
  for (const std::string& word : b) ++left[word];
  int common = 0;
  for (const std::string& word : a) common += left[word]-- > 0 ? 1 : 0;
  if (a.empty() || b.empty()) return a.empty() && b.empty() ? 1 : 0;
  return 2.0 * common / static_cast<double>(a.size() + b.size());
}

bool SameWords(const std::string& prediction, const std::string& truth) { return Words(prediction) == Words(truth); }

}  // namespace optod::train
