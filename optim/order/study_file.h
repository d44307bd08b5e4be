#pragma once
/// study.txt: the options of a study and what its model was, one `key=value` a line (those of the model with @), with a
/// checksum; and which options may differ when it is opened again.

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "optim/order/model.h"
#include "optim/order/options.h"

namespace optod::order {

struct StudyFile {
  StudyOptions options;
  std::string fingerprint;  // of the model
  size_t parameters = 0;
  int batches = 0;
  Precision precision = Precision::kFloat64;
};

std::string ToText(const StudyFile& file);
/// DATA_LOSS when it is damaged. A file from before probe runs has none.
absl::StatusOr<StudyFile> ParseStudyFile(const std::string& text);

/// FAILED_PRECONDITION "optimizer: sgd was asked, adam is recorded; ..." unless they differ in resources only.
absl::Status SameStudy(const StudyOptions& asked, const StudyOptions& recorded);

/// Every option that terms depend on, one `key=value` a line: all but the resources.
std::string TermsDependOn(const StudyOptions& options);

}  // namespace optod::order
