#pragma once
/// A sample_order job from its spec to its result: the reference run, the terms, and the parts that the spec asks for.
///
///   FOLDER/spec.json        the job file: what opens the study again
///   FOLDER/study/           the study (optim/order/study.h): study.txt, reference.bin, terms-*.bin
///   FOLDER/parts/*.json     parts that are done, or how far the search and the trainings are
///   FOLDER/result/          orders.npy int32 [N, T], estimates.npy [N], retrained.npy [K], matrix.npy [T, T]
///
/// A run goes on where an earlier one of the same folder ended, however that ended: finished term files, generations,
/// trainings and parts are not made again. What is written depends on the spec alone (bit for bit when the model
/// computes the same bits, as it does with one thread), and every file appears whole: a stale run beside a new one
/// writes the same bytes.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "optim/order_job/spec.h"

namespace optod::order {

struct RunHooks {
  /// Units done of TotalUnits(spec), with figures: reference_steps, terms, seconds_left, generation, best, trainings
  /// ...
  std::function<void(int64_t units, const std::map<std::string, double>& metrics)> progress = [](int64_t, const auto&) {
  };
  std::function<void(const std::string& line)> log = [](const std::string&) {};
  /// What is done up to here survives the end of this process.
  std::function<void(int64_t units)> checkpoint = [](int64_t) {};
  std::function<bool()> stop = [] { return false; };  ///< asked about 20 times a second; true ends with CANCELLED
};

/// The study of a folder: opened when it is there, else created. FAILED_PRECONDITION when another spec made it.
absl::StatusOr<std::unique_ptr<Study>> OpenOrCreate(Fs& fs, const std::string& folder, const SampleOrderSpec& spec,
                                                    std::shared_ptr<const Model> model);

/// The result as one JSON object: parameters, batches, positions, terms_bytes, record_seconds, precompute_seconds (of
/// this run), reference, estimate, search, matrix, retrain_checks. Errors are the job's reason: what Study says,
/// CANCELLED.
absl::StatusOr<std::string> RunSampleOrder(Fs& fs, const std::string& folder, const std::string& spec_json,
                                           const SampleOrderSpec& spec, std::shared_ptr<const Model> model,
                                           const RunHooks& hooks);

}  // namespace optod::order
