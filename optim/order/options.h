#pragma once
/// What a study of the sample order is made of: the optimizer and schedule of the reference run, what is stored at its
/// points, and how much memory, disk and how many threads that may take. Plain values, written and read as text (one
/// `key=value` a line), which is what a job specification, a Python wrapper and the study's own file hold.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::order {

/// Position t sees batch order[t]. T numbers: the same order in every epoch; epochs * T numbers: one order an epoch.
using Order = std::vector<int>;

enum class Rule { kSgd, kAdam };
/// kHvp: exact product at estimate time (needs the model: one H v a position). kDiag: Hutchinson's mean of z * (H z).
/// kSecant: (g(theta_t) - g(theta_{t-1})) / (theta_t - theta_{t-1}), elementwise (the paper). kSpan: least squares of
/// the deviation over theta_s - theta_t, answered by the stored gradient differences. kMultisecant: the same over the
/// deviations of probe runs, trainings of other orders (multisecant.h; ours). kNone: gradients only.
///
/// With probe runs, diag, secant and span answer only for what the probe runs do not span, scaled by the trust that
/// those runs show they deserve (0 .. 1): on a network whose curvature is mostly off the diagonal that is about 0, and
/// the paper's diagonals, taken plainly (probe_runs = 0), then err more than the zeroth order does.
enum class Curvature { kNone, kHvp, kDiag, kSecant, kSpan, kMultisecant };
enum class Storage { kExact, kFp16, kBf16, kSketchSign, kSketchHadamard };
enum class Schedule { kConstant, kLinear, kCosine };
/// Whose moments (Adam's m and v, SGD's momentum) the estimate uses: rebuilt along the new order, or the reference's.
enum class Moments { kReplay, kReference };

/// theta <- theta - lr (Gamma + [decoupled] weight_decay theta); g includes weight_decay theta when not decoupled.
/// SGD: b <- momentum b + g, Gamma = b, or g + momentum b with nesterov. Adam: bias-corrected m / (sqrt(v) + eps).
struct Optimizer {
  Rule rule = Rule::kAdam;
  double momentum = 0.0;              // [0, 1); SGD
  bool nesterov = false;              // SGD; needs momentum > 0
  double beta1 = 0.9, beta2 = 0.999;  // [0, 1); Adam
  double eps = 1e-8;                  // > 0; Adam
  double weight_decay = 0.0;          // >= 0
  bool decoupled = false;             // AdamW
};

struct StudyOptions {
  // --- the reference run: key `optimizer` is sgd, adam or adamw
  Optimizer optimizer;
  std::vector<double> lr = {1e-3};          // one number, shaped by the schedule, or one a position; >= 0
  Schedule schedule = Schedule::kConstant;  // by position, after the warm-up: constant, linear or cosine
  int warmup = 0;                           // positions; lr grows linearly over them
  double lr_final = 0.0;                    // [0, 1]: share of lr at the last position (linear, cosine)
  int epochs = 1;                           // >= 1
  Order reference_order;                    // of the reference run; empty: 0 .. T-1 in every epoch

  // --- what is stored
  Curvature curvature = Curvature::kMultisecant;
  bool second_order = false;          // FUT++: also the secant of the diagonal; diag and secant only
  int probes = 4;                     // Hutchinson draws a term, 1 .. 4096; diag
  uint64_t seed = 0;                  // of probes and sketches
  double curvature_cap = 0.0;         // |h| is clipped to it; 0: 1 / greatest lr; diag and secant
  double secant_guard = 1e-12;        // a smaller |theta_t - theta_{t-1}| gives h = 0
  double span_ridge = 1e-6;           // relative to the mean square of theta_s - theta_t; > 0; span
  int probe_runs = -1;                // K trainings of other orders, 0 .. 1024; 0: the paper's plain definitions; -1:
                                      // min(16, T) where the curvature uses them (not none, hvp). Costs K trainings
                                      // (twice that with lossy storage) and 2 K P n stored numbers
  double probe_ridge = 1e-2;          // relative to the mean square of their deviations; > 0
  Storage storage = Storage::kExact;  // exact: 4 bytes a number for float32 models, 8 for float64
  int sketch_ratio = 8;               // numbers in for one number out, 1 .. 4096
  bool sketch_shrink = false;         // decode by the least-squares scale, not by the unbiased one

  // --- resources; these alone may change when a study is opened again
  int threads = 0;                            // 0: all CPUs; never more than the model's concurrency() for its calls
  int64_t memory_budget = int64_t{1} << 30;   // bytes of decoded terms held at once
  int64_t disk_budget = 0;                    // bytes of the study's files; 0: no limit
  int64_t segment_bytes = int64_t{16} << 20;  // of term files: what a kill can lose; fixed when a study is created
};

/// One `key=value` a line, sorted by key; every field; numbers in 17 digits. Read back equal.
std::string ToText(const StudyOptions& options);
/// Missing keys keep their defaults; blank lines and lines that begin with # are skipped. INVALID_ARGUMENT names the
/// key and the rule: "lr: -1 is negative; must be >= 0", "optmizer: no such option; did you mean optimizer?".
absl::StatusOr<StudyOptions> ParseStudyOptions(const std::string& text);
absl::StatusOr<StudyOptions> ParseStudyOptions(const std::map<std::string, std::string>& values);
/// The checks that need no model; those that do are made when a study is created.
absl::Status CheckStudyOptions(const StudyOptions& options);
/// Probe runs of a study of T = `batches`: probe_runs with -1 resolved.
int ProbeRuns(const StudyOptions& options, int batches);

/// Learning rate of each of `positions` positions. INVALID_ARGUMENT when lr has neither 1 nor `positions` numbers.
absl::StatusOr<std::vector<double>> LearningRates(const StudyOptions& options, int positions);

const char* NameOf(Curvature curvature);
const char* NameOf(Storage storage);
const char* NameOf(Moments moments);

}  // namespace optod::order
