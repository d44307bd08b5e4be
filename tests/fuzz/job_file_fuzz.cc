// Bytes as a job file (fine-tuning, sample orders) and as a row of a data file under a template: every input must end in
// a value or an error.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "optim/order_job/spec.h"
#include "optim/train/spec.h"
#include "optim/train/templates.h"
#include "optim/train/text_match.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (const auto spec = optod::train::ParseTrainSpec(text); spec.ok()) (void)optod::train::PathsOf(*spec);
  (void)optod::order::ParseSampleOrderSpec(text);
  const size_t cut = text.find('\n');
  const std::string head = text.substr(0, cut), rest = cut == std::string::npos ? "" : text.substr(cut + 1);
  const optod::train::Row row = {{"a", rest}, {"b", "x_y"}};
  (void)optod::train::Render(head, row);
  (void)optod::train::ListOf(head, row);
  const double f1 = optod::train::TokenF1(head, rest);
  if (!(f1 >= 0 && f1 <= 1)) __builtin_trap();
  return 0;
}
