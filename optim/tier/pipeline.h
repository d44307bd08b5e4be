#pragma once
/// Training a model that is larger than the memory: the parameters stream through k working slots, once a step (ZO2,
/// Wang et al., 2025), from any mixture of device, host and disk.
///
///   visit m of unit i, slot s = m mod k             events: one edge for every reason to wait, and no other
///
///     read(i)     after free(s), home(i)            home(i): the write of the visit before is done
///     upload(i)   after read(i), free(s)            (one memory, lossless: nothing to do)
///     compute(i)  after upload(i)                   catch up with the steps before; per query: theta + eps z, theta - eps z,
///     offload(i)  after compute(i)                  both forward passes
///     write(i)    after offload(i) -> home(i)       only each K-th step; else compute(i) -> free(s)
///
/// Visit m + k is submitted as soon as that of m is, across steps: the first units of the next step are read while the
/// last ones of this step are computed. An update is applied when its unit comes by the next time, with the learning rate
/// of its own step; theta after Flush has the bytes of ZoOptimizer::Step, whatever the tiers, slots and threads.
///
/// Calls come from one thread. After an error (CANCELLED too) an object is of no more use: a new one resumes from the
/// block file or a snapshot, and the history.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "optim/tier/compute.h"
#include "optim/tier/device.h"
#include "optim/tier/history.h"
#include "optim/tier/unit_pass.h"
#include "optim/tier/unit_store.h"
#include "optim/zo/projected_gradient.h"

namespace optod::tier {

/// Tensors (their numbers in the random stream) that block-wise estimation perturbs alone.
struct TensorGroup {
  std::vector<uint32_t> tensors;
  size_t first_unit = 0;  ///< no earlier unit computes with them (units that are resident apart)
};

struct PipelineOptions {
  zo::ZoHyper hyper;
  int first_query = 0, evaluated = 0;  ///< directions that this worker evaluates, of hyper.queries; evaluated 0 = all
  uint64_t seed = 0;  ///< of the random stream
  std::vector<TensorGroup> groups;   ///< block-wise: disjoint, in the order of first_unit; none = all tensors at once
  bool coordinate = true;            ///< later groups see the updates of earlier ones
  const MaskSource* mask = nullptr;  ///< of sparse estimation; borrowed
  int threads = 1;         ///< of the passes
  ParallelFor parallel;    ///< instead of a team of `threads`: the process's own pool
  bool serial = false;  ///< nothing overlaps: for the ablation
  bool poison = false;  ///< freed slots are filled with NaN: for tests
  Accelerator* accelerator = nullptr;  ///< borrowed; units are computed on in its memory, `device` enqueues there (streams_device.h)
};

struct StepLosses {
  double loss = 0;                     ///< the reported one: of the first plus; zo-sgd-cons: of the descent
  std::vector<double> plus, minus, g;  ///< one a query that was evaluated; block-wise: one a group; forward-grad: g alone
  bool skipped = false;                ///< not finite: the step changes nothing (kMezo: leaves its rounding)
  std::string reason;
  std::optional<zo::Candidate> chosen;  ///< zo-sgd-cons
};

class Pipeline {
 public:
  /// `device` is borrowed. `history`: the steps that are done; units that are behind catch up when they come by.
  /// INVALID_ARGUMENT, UNIMPLEMENTED: hyperparameters that a sweep cannot do; else what UnitStore::Create says.
  static absl::StatusOr<std::unique_ptr<Pipeline>> Create(std::vector<Unit> units, const Plan& plan,
                                                          const PipelineOptions& options, Device* device,
                                                          std::unique_ptr<DirectFile> file, History history,
                                                          const InitialValues& initial);
  ~Pipeline();

  /// Step number history().steps() at learning rate `lr`: Measure, and Finish with what it says.
  absl::StatusOr<StepLosses> Step(double lr, BlockCompute& compute);
  /// The losses of the next step; nothing is applied. zo-sgd-cons: in two sweeps; block-wise: in one a group, which begins
  /// with the first unit of the group before. Only the first of them writes units, as the steps before left them.
  absl::StatusOr<StepLosses> Measure(double lr, BlockCompute& compute);
  /// Ends the step: its own record, or the one that several workers agree on.
  void Finish(StepRecord record) { history_.Add(std::move(record)); }
  /// A forward pass at theta, every finished step in it; the trajectory is as if it had not been.
  absl::StatusOr<std::vector<double>> Evaluate(BlockCompute& compute);
  /// Every finished step applied, written home and synced: the block file alone is a snapshot then.
  absl::Status Flush();
  /// The values with every finished step applied, unit after unit: theta, then m, v.
  using Visitor = std::function<absl::Status(size_t unit, Progress progress, std::span<const float> slot)>;
  absl::Status ForEachUnit(const Visitor& visitor);
  /// As ForEachUnit; and afterwards no unit lacks a step, wherever it lives: masks of those steps are not asked for again.
  absl::Status Settle(const Visitor& visitor) { return Sweep({Kind::kFlush, nullptr, &visitor}); }
  /// All units into `file`, as UnitFile has them.
  absl::Status Snapshot(std::unique_ptr<DirectFile> file);
  const History& history() const { return history_; }
  const Plan& plan() const { return plan_; }
  const std::vector<Unit>& units() const { return units_; }
  QueueTimes times() const { return device_->times(); }

 private:
  enum class Kind { kStep, kCandidates, kGroup, kTangent, kEvaluate, kFlush, kVisit };
  struct Task {
    Kind kind = Kind::kStep;
    BlockCompute* compute = nullptr;
    const Visitor* visitor = nullptr;
    size_t group = 0, from_unit = 0;  // kGroup
  };
  Pipeline(std::vector<Unit> units, const Plan& plan, const PipelineOptions& options, Device* device, History history);
  absl::Status Begin(std::unique_ptr<DirectFile> file, const InitialValues& initial);
  absl::Status CheckHyper() const;
  absl::Status MakeCopies(size_t floats);

  // scheduling
  Event Submit(Queue queue, std::vector<Event> after, size_t unit, size_t visit, uint64_t bytes,
               absl::AnyInvocable<absl::Status()> run, bool on_host = false);
  void Issue(size_t visit);
  absl::Status Sweep(const Task& task);
  /// Whether the unit comes by in this sweep.
  bool Comes(size_t unit, const Task& task) const {
    return task.kind != Kind::kGroup || unit >= task.from_unit || units_[unit].resident;
  }
  size_t FirstUnit(const Task& task) const { return options_.groups[task.group].first_unit; }
  Event VisitInPlace(size_t unit, const Task& task);
  Event VisitMoving(size_t unit, const Task& task);
  void WriteBack(size_t unit, size_t visit, Event computed, Progress now);
  absl::Status MaybePoison(size_t slot, Queue queue) {
    return options_.poison ? store_->Poison(slot, queue) : absl::OkStatus();
  }
  bool WriteDue(size_t unit, const Task& task, Progress now) const;
  Progress After(size_t unit, const Task& task) const;

  // computing
  absl::Status Show(size_t unit, std::span<const float> slot, Progress progress, const Visitor& visitor);
  absl::Status Carry(size_t unit, std::span<float> slot, Progress from, const Task& task);
  bool Conservative() const { return options_.hyper.rule == zo::Rule::kConservative; }
  int Evaluated() const { return options_.evaluated > 0 ? options_.evaluated : options_.hyper.queries; }
  /// Copies that a sweep carries.
  int CopiesOf(Kind kind) const;
  absl::StatusOr<std::vector<double>> LossesOf(Kind kind, BlockCompute& compute);
  absl::StatusOr<StepLosses> MeasureSlopes(BlockCompute& compute);
  absl::Status Tangents(size_t unit, std::span<float> slot, Progress from, BlockCompute& compute);
  absl::StatusOr<StepLosses> MeasureGroups(double lr, BlockCompute& compute);
  absl::Status Grouped(size_t unit, std::span<float> slot, Progress from, const Task& task);
  absl::Status MeasureCandidates(double lr, BlockCompute& compute, double stay, StepLosses* losses);
  /// body(values, offset in the unit) for every part.
  template <class Body>
  void ForParts(size_t unit, std::span<float> slot, Body body) const;
  absl::Status Perturbed(size_t unit, std::span<float> slot, Progress from, BlockCompute& compute);
  absl::Status FormedPair(size_t unit, std::span<float> slot, Progress from, int query, BlockCompute& compute);
  absl::Status Candidates(size_t unit, std::span<float> slot, Progress from, BlockCompute& compute);
  absl::Status Gather(const Task& task);
  absl::Status GatherNow(const std::vector<Slice>& slices, const std::vector<Progress>& from, const Task& task);
  std::pair<size_t, size_t> PartOf(const Slice& slice) const;
  int GroupOf(const UnitPart& part) const {
    const auto at = group_.find(part.number());
    return at == group_.end() ? -1 : at->second;
  }
  Values ValuesOf(size_t unit, size_t part, size_t offset, std::span<float> slot) const;

  const std::vector<Unit> units_;
  const Plan plan_;
  const PipelineOptions options_;
  Device* const device_;
  History history_;
  ParallelFor team_;
  UnitPass pass_, pass_here_;
  std::unique_ptr<UnitStore> store_;
  std::vector<float> copies_here_;  // without an accelerator
  DeviceBuffer copies_there_;
  std::span<float> plus_, minus_;

  std::vector<size_t> moving_;     // units that come by a slot, in order
  std::deque<size_t> upcoming_;    // of visits that are not submitted yet, as far as they are known
  std::map<uint32_t, int> group_;  // of a tensor
  size_t visits_ = 0;                // moving visits whose compute is submitted
  std::vector<Progress> home_progress_;
  std::vector<Event> home_ready_;                          // a unit
  std::vector<Event> slot_free_, staging_free_, uploaded_;  // a slot
  std::vector<Progress> slot_progress_;
  Event last_compute_ = kDone;
};

}  // namespace optod::tier
