#pragma once
/// How near a text is to the right one, as SQuAD's evaluation has it (Rajpurkar et al., 2016): words in lower case,
/// without punctuation and articles.

#include <string>

namespace optod::train {

/// F1 of the words that two texts share; in [0, 1].
double TokenF1(const std::string& prediction, const std::string& truth);

/// Whether the words are the same in the same order.
bool SameWords(const std::string& prediction, const std::string& truth);

}  // namespace optod::train
