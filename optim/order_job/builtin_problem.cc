#include "optim/order_job/builtin_problem.h"

#include <charconv>
#include <cmath>
#include <string_view>

#include "base/status.h"

namespace optod::order {
namespace {

absl::StatusOr<std::vector<double>> Numbers(std::string_view line, int number) {
  std::vector<double> values;
  while (true) {
    const size_t comma = line.find(',');
    std::string_view cell = line.substr(0, comma);
    while (!cell.empty() && (cell.front() == ' ' || cell.front() == '+')) cell.remove_prefix(1);
    while (!cell.empty() && (cell.back() == ' ' || cell.back() == '\r')) cell.remove_suffix(1);
    double value = 0.0;
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (error != std::errc() || end != cell.data() + cell.size() || !std::isfinite(value))
      return InvalidArgument("table: line ", number, ": column ", values.size() + 1, " is no number");
    values.push_back(value);
    if (comma == std::string_view::npos) return values;
    line.remove_prefix(comma + 1);
  }
}

/// Sets of `rows` rows each, from the front of `rest`.
std::vector<LabelledRows> Split(std::vector<LabelledRows>& all, size_t* at, int sets, size_t rows) {
  std::vector<LabelledRows> out;
  for (int s = 0; s < sets; ++s) {
    LabelledRows& set = out.emplace_back();
    for (size_t i = 0; i < rows; ++i, ++*at) {
      set.x.insert(set.x.end(), all[*at].x.begin(), all[*at].x.end());
      set.label.push_back(all[*at].label[0]);
    }
  }
  return out;
}

/// One set of held-out rows as `parts` consecutive ones.
std::vector<LabelledRows> Parts(const LabelledRows& set, int parts, size_t features) {
  std::vector<LabelledRows> out;
  const size_t rows = set.label.size();
  for (int p = 0; p < parts; ++p) {
    const auto begin = static_cast<ptrdiff_t>(rows * p / parts), end = static_cast<ptrdiff_t>(rows * (p + 1) / parts);
    const auto wide = static_cast<ptrdiff_t>(features);
    out.push_back({{set.x.begin() + begin * wide, set.x.begin() + end * wide},
                   {set.label.begin() + begin, set.label.begin() + end}});
  }
  return out;
}

}  // namespace

absl::StatusOr<LabelledData> ReadTable(const std::string& text, const SampleOrderSpec& spec) {
  const BuiltinSpec& b = *spec.builtin;
  const size_t rows = static_cast<size_t>(b.data.rows), held_out = static_cast<size_t>(b.data.evaluation_rows);
  const size_t needed = rows * static_cast<size_t>(spec.batches) + held_out;
  std::vector<LabelledRows> all;
  LabelledData data;
  data.classes = 2;
  std::string_view rest = text;
  for (int number = 1; !rest.empty() && all.size() < needed; ++number) {
    const size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (line.empty() || line == "\r") continue;
    ASSIGN_OR_RETURN(std::vector<double> values, Numbers(line, number));
    if (all.empty()) data.features = values.size() - 1;
    if (values.size() != data.features + 1 || data.features == 0)
      return InvalidArgument("table: line ", number, ": ", values.size(), " numbers; line 1 has ", data.features + 1,
                             ", and at least 2 are needed");
    const double label = values.back();
    if (label != std::floor(label) || label < 0.0 || label >= 1e6)
      return InvalidArgument("table: line ", number, ": label ", label, " is no class; must be 0, 1, ...");
    values.pop_back();
    for (double& value : values) value /= b.divide_by;
    data.classes = std::max(data.classes, static_cast<int>(label) + 1);
    all.push_back({std::move(values), {static_cast<int>(label)}});
  }
  if (all.size() < needed)
    return InvalidArgument("table: ", all.size(), " lines; ", needed, " are needed (", spec.batches, " batches of ",
                           rows, " rows, and ", held_out, " held out)");
  size_t at = 0;
  data.batches = Split(all, &at, spec.batches, rows);
  data.evaluations = Parts(Split(all, &at, 1, held_out)[0], spec.evaluations, data.features);
  return data;
}

absl::StatusOr<std::shared_ptr<const Model>> MakeBuiltinProblem(const SampleOrderSpec& spec, Fs& fs) {
  const BuiltinSpec& b = *spec.builtin;
  LabelledData data;
  if (spec.evaluations > b.data.evaluation_rows)
    return InvalidArgument("evaluations: ", spec.evaluations, " of ", b.data.evaluation_rows, " held-out rows");
  if (b.table.empty()) {
    SyntheticOptions options = b.data;
    options.batches = spec.batches;
    ASSIGN_OR_RETURN(data, MakeSynthetic(options));
    data.evaluations = Parts(data.evaluations.at(0), spec.evaluations, data.features);
  } else {
    auto text = fs.ReadFile(b.table);
    if (!text.ok()) return NotFound("model.table: no such file");
    ASSIGN_OR_RETURN(data, ReadTable(*text, spec));
  }
  if (b.name == "logistic" && data.classes != 2)
    return InvalidArgument("model.table: ", data.classes, " classes; logistic has 2");
  if (b.name == "mlp") return MakeTanhMlp(std::move(data), b.hidden, b.start);
  return MakeLogistic(std::move(data), b.start);
}

}  // namespace optod::order
