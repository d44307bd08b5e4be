#include "optim/rules/registry.h"

#include <algorithm>
#include <set>

#include "base/status.h"
#include "optim/rules/nearest.h"
#include "optim/rules/registry_rows.h"

namespace optod::optim {
namespace {

struct Table {
  std::vector<RuleInfo> infos;
  std::vector<RuleFactory> factories;
};

Table MakeTable() {
  std::vector<Row> rows = FirstOrderRows();
  for (std::vector<Row> more : {ZerothOrderRows(), TraceRows()}) {
    rows.insert(rows.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  }
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.info.name < b.info.name; });
  Table table;
  for (Row& row : rows) {
    if (row.info.family == Family::kFirstOrder) row.info.implemented = row.factory != nullptr;
    table.infos.push_back(std::move(row.info));
    table.factories.push_back(row.factory);
  }
  return table;
}

const Table& TheTable() {
  static const Table* table = new Table(MakeTable());
  return *table;
}

absl::Status CheckLayout(std::span<const TensorSpec> layout) {
  std::set<std::string> names;
  for (const TensorSpec& spec : layout) {
    if (!names.insert(spec.name).second)
      return InvalidArgument("parameters.", spec.name, ": named twice; names must be unique");
    if (spec.dtype != DType::kF32 && spec.dtype != DType::kF64 && spec.dtype != DType::kF16 &&
        spec.dtype != DType::kBF16) {
      return InvalidArgument("parameters.", spec.name, ": dtype ", DTypeName(spec.dtype),
                             " cannot be optimized; must be float32, float64, float16 or bfloat16");
    }
    for (int64_t size : spec.shape) {
      if (size < 0) return InvalidArgument("parameters.", spec.name, ": size ", size, " in its shape is negative");
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::span<const RuleInfo> AllRules() { return TheTable().infos; }

absl::StatusOr<const RuleInfo*> FindRule(const std::string& name) {
  std::vector<std::string> names;
  for (const RuleInfo& info : AllRules()) {
    if (info.name == name) return &info;
    names.push_back(info.name);
  }
  const std::string near = Nearest(name, names);
  if (near.empty()) return NotFound("optimizer: \"", name, "\" is unknown");
  return NotFound("optimizer: \"", name, "\" is unknown; did you mean \"", near, "\"?");
}

absl::StatusOr<std::unique_ptr<Rule>> MakeRule(const std::string& name, const Hyper& hyper,
                                               std::span<const TensorSpec> layout, uint64_t seed) {
  ASSIGN_OR_RETURN(const RuleInfo* info, FindRule(name));
  const RuleFactory factory = TheTable().factories[info - AllRules().data()];
  if (factory == nullptr) {
    const bool first_order = info->family == Family::kFirstOrder;
    return Unimplemented("optimizer: \"", name,
                         first_order ? "\" is not implemented" : "\" does not step on gradients");
  }
  RuleArgs args;
  args.info = info;
  ASSIGN_OR_RETURN(args.hyper, CheckHyper(*info, hyper));
  RETURN_IF_ERROR(CheckLayout(layout));
  args.layout.assign(layout.begin(), layout.end());
  args.seed = seed;
  return factory(std::move(args));
}

int EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::vector<int>> d(a.size() + 1, std::vector<int>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = static_cast<int>(i);
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

std::string Nearest(const std::string& wrong, std::span<const std::string> names) {
  constexpr size_t kLongest = 64;  // the distance costs length times length
  if (wrong.empty() || wrong.size() > kLongest) return "";
  const std::string* best = nullptr;
  int best_distance = 0;
  for (const std::string& name : names) {
    const int distance = EditDistance(wrong, name);
    const bool same_length = name.size() == wrong.size();
    if (best == nullptr || distance < best_distance ||
        (distance == best_distance && same_length && best->size() != wrong.size())) {
      best = &name;
      best_distance = distance;
    }
  }
  return best != nullptr && 2 * best_distance <= static_cast<int>(wrong.size()) ? *best : "";
}

}  // namespace optod::optim
