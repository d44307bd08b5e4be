#include "optim/order/study_file.h"

#include <cstdlib>
#include <cstring>
#include <sstream>

#include "base/crc32c.h"
#include "base/status.h"

namespace optod::order {
namespace {

constexpr const char* kHead = "optod-order-study 1\n";

/// The lines by key.
absl::StatusOr<std::map<std::string, std::string>> ReadLines(const std::string& text) {
  const size_t mark = text.rfind("@checksum=");
  const std::string checksum = mark == std::string::npos ? "" : text.substr(mark + 10);
  if (!text.starts_with(kHead) || mark == std::string::npos || checksum != Cat(Crc32c(text.substr(0, mark)), "\n")) {
    return DataLoss("study.txt: the checksum does not match; the file is damaged");
  }
  std::map<std::string, std::string> values;
  std::istringstream in(text.substr(std::strlen(kHead), mark - std::strlen(kHead)));
  for (std::string line; std::getline(in, line);) {
    const size_t equals = line.find('=');
    if (equals == std::string::npos) return DataLoss("study.txt: a line has no '='");
    values[line.substr(0, equals)] = line.substr(equals + 1);
  }
  return values;
}

/// Options that may differ when a study is opened again.
bool IsResource(const std::string& key) {
  return key == "threads" || key == "memory_budget" || key == "disk_budget" || key == "segment_bytes";
}
bool OfProbeRuns(const std::string& key) { return key == "probe_runs" || key == "probe_ridge"; }

std::map<std::string, std::string> Lines(const StudyOptions& options) {
  std::map<std::string, std::string> values;
  std::istringstream in(ToText(options));
  for (std::string line; std::getline(in, line);)
    values[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
  return values;
}

}  // namespace

std::string ToText(const StudyFile& file) {
  std::string text =
      Cat(kHead, ToText(file.options), "@batches=", file.batches, "\n@fingerprint=", file.fingerprint,
          "\n@parameters=", file.parameters, "\n@precision=", file.precision == Precision::kFloat32 ? 32 : 64, "\n");
  return Cat(text, "@checksum=", Crc32c(text), "\n");
}

absl::StatusOr<StudyFile> ParseStudyFile(const std::string& text) {
  ASSIGN_OR_RETURN(auto values, ReadLines(text));
  StudyFile file;
  file.fingerprint = values["@fingerprint"];
  file.parameters = std::strtoull(values["@parameters"].c_str(), nullptr, 10);
  file.batches = std::atoi(values["@batches"].c_str());
  file.precision = values["@precision"] == "32" ? Precision::kFloat32 : Precision::kFloat64;
  std::erase_if(values, [](const auto& line) { return line.first.starts_with('@'); });
  values.try_emplace("probe_runs", "0");
  ASSIGN_OR_RETURN(file.options, ParseStudyOptions(values));
  return file;
}

absl::Status SameStudy(const StudyOptions& asked, const StudyOptions& recorded) {
  const auto want = Lines(asked), have = Lines(recorded);
  const auto check = [&](const std::string& key) -> absl::Status {
    if (want.at(key) == have.at(key)) return absl::OkStatus();
    return FailedPrecondition(key, ": ", want.at(key), " was asked, ", have.at(key),
                              " is recorded; another optimizer, schedule or store needs a study of its own");
  };
  RETURN_IF_ERROR(check("optimizer"));
  for (const auto& [key, value] : want) {
    if (!IsResource(key)) RETURN_IF_ERROR(check(key));
  }
  return absl::OkStatus();
}

std::string TermsDependOn(const StudyOptions& options) {
  std::string text;
  for (const auto& [key, value] : Lines(options)) {
    if (IsResource(key) || (options.probe_runs == 0 && OfProbeRuns(key))) continue;
    text += Cat(key, "=", value, "\n");
  }
  return text;
}

}  // namespace optod::order
