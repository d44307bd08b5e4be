#pragma once
/// First-order sessions: parameters and a rule (optim/rules) in memory, gradients told, a new version with every tell.
///
///   tell ─► check ─► clip ─► record ─► Rule::Step ─► version row (+ snapshot every `snapshot_every` steps)
///
/// Durable form
/// - EVERY_STEP: the told gradient (observation "gradient", a = version made; beyond 64 KiB as a blob) commits with its
///   version row. A session is loaded from the latest snapshot on its branch by running the rule over the gradients
///   since: bit for bit what it was. Gradients are dropped once two snapshots lie after them.
/// - EVERY_N, ON_CHECKPOINT: nothing is written between snapshots (every n, every `snapshot_every` steps);
///   `durable_version` says which version is safe.
/// - The answers of the last 64 updates are kept (observation "answer", a = seq): a told seq can be told again.
///
/// A version can be rebuilt (rollback, pull, fork) while the gradients since the snapshot before it are kept; snapshots
/// are always kept.
/// Errors of Tell: see GradientTell and TellRequest.seq; a NaN or Inf gradient is INVALID_ARGUMENT naming the tensor
/// and changes nothing, or with non_finite SKIP makes a `skipped` version: parameters, state and t as they were, one step
/// of the schedule used, the gradient not kept.

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "optim/rules/rule.h"
#include "server/engine/gradients.h"
#include "server/engine/numeric_family.h"

namespace optod::engine {

/// For the map that Engine takes: {"first-order", FirstOrderFactory()}.
FamilyFactory FirstOrderFactory();

class FirstOrder final : public NumericFamily {
 public:
  static absl::StatusOr<std::unique_ptr<Family>> Load(Context& context, LiveSession& session);

  absl::StatusOr<v1::AskResponse> Ask(LiveSession& session, const v1::AskRequest& request,
                                      const Caller& caller) override;
  absl::Status Tell(LiveSession& session, const v1::TellRequest& request, v1::TellResponse* response,
                    Effects* effects) override;
  absl::Status MoveHead(LiveSession& session, const store::VersionRow& version, Effects* effects) override;
  size_t ResidentBytes() const override;
  absl::Status Flush(LiveSession& session, Effects* effects) override;

  absl::Status SetInitial(LiveSession& session, std::shared_ptr<TensorBuffer> values, const std::string& sha256,
                          Effects* effects) override;
  absl::StatusOr<std::shared_ptr<const TensorBuffer>> ParametersAt(LiveSession& session, int64_t version) override;
  absl::StatusOr<std::vector<optim::OwnedTensor>> State(LiveSession& session) override;
  absl::StatusOr<StateFile> Export(LiveSession& session, int64_t version) override;
  absl::Status TakeState(LiveSession& session, const StateFile& file, const std::string& note,
                         Effects* effects) override;
  void DescribeMemory(v1::MemoryReport* report) const override;

  /// A step whose gradients arrived as one flat buffer.
  struct FlatStep {
    int64_t seq = 0, base_version = 0;
    std::optional<double> loss;
    std::shared_ptr<TensorBuffer> gradients;  ///< FlatBytes(layout, form)
    FlatForm form;
    std::string blob;  ///< its hash when it is in the blob store already
    bool finite = false;  ///< every number was seen to be finite as it arrived (flat_numbers.h)
  };
  absl::Status TellFlat(LiveSession& session, const FlatStep& step, v1::TellResponse* response, Effects* effects);
  /// Whether a flat gradient of `bytes` goes into the blob store: a stream may put it there before it comes to the
  /// strand.
  static bool RecordsAsBlob(const LiveSession& session, uint64_t bytes);

  /// A version as a fork starts from it: its snapshot, made when there is none yet. What is pending becomes durable
  /// with `effects`.
  struct Saved {
    std::string blob;  ///< "" without values
    int64_t step = 0;
  };
  absl::StatusOr<Saved> Save(LiveSession& session, int64_t version, Effects* effects);

 private:
  /// Parameters and optimizer state at one version, and where they come from.
  struct Point {
    std::shared_ptr<TensorBuffer> params;
    std::unique_ptr<optim::Rule> rule;
    int64_t snapshot = 0;        ///< newest version with a blob on the way from version 0
    int64_t since_snapshot = 0;  ///< steps after it
    int64_t step = 0;            ///< VersionRow::step
  };
  /// One step's inputs beside the gradients.
  struct Told {
    int64_t seq = 0, base_version = 0;
    std::optional<double> loss;
    bool return_values = false;
    int64_t fingerprint = 0;  ///< of the gradients: tells a retry of a seq from another writer's tell
  };

  FirstOrder(Context& context, const LiveSession& session);
  absl::StatusOr<std::unique_ptr<optim::Rule>> NewRule() const;
  absl::StatusOr<Point> Rebuild(int64_t uid, int64_t version) const;
  /// A version other than the head, for a reader; the errors are the reader's.
  absl::StatusOr<Point> RebuildForReader(LiveSession& session, int64_t version) const;
  absl::Status Replay(const store::VersionRow& version, const store::ObservationRow& gradient, Point* point) const;
  absl::Status StepOnce(Point* point, const Gradients& gradients, std::optional<double> loss,
                        std::map<std::string, double>* figures) const;
  /// The rate of step number `step`: told, else scheduled, else absent (the rule's own).
  std::optional<double> LrOfStep(int64_t step, const std::vector<double>& told) const;
  double BaseLr() const;
  /// OK to apply; answered = `response` holds the stored answer of a step told before.
  absl::Status Precheck(LiveSession& session, const Told& told, v1::TellResponse* response, Effects* effects,
                        bool* answered);
  absl::Status Apply(LiveSession& session, const Told& told, const Gradients& gradients,
                     const std::function<absl::StatusOr<store::ObservationRow>()>& record, v1::TellResponse* response,
                     Effects* effects);
  absl::StatusOr<std::string> PutSnapshot(const Point& point, int64_t version, int64_t step) const;
  absl::Status ApplySkipped(LiveSession& session, const Told& told, const std::vector<double>& told_lr,
                            v1::TellResponse* response, Effects* effects);
  void Publish(LiveSession& session, store::VersionRow row, std::optional<store::ObservationRow> gradient,
               int64_t fingerprint, v1::TellResponse* response, Effects* effects);
  int64_t DurableVersion(const LiveSession& session) const;
  void LoadAnswers(int64_t uid);
  bool every_step() const { return mode_ == v1::Durability::EVERY_STEP; }

  Context& context_;
  v1::OptimizerSpec spec_;
  v1::Durability::Mode mode_;
  int64_t cadence_;                                      ///< steps from snapshot to snapshot
  std::optional<Point> head_;                            ///< absent until there are values
  struct StoredAnswer {
    int64_t seq = 0, fingerprint = 0;  ///< fingerprint 0: unknown
    std::string response;              ///< serialized TellResponse
  };
  std::deque<StoredAnswer> answers_;  ///< oldest first
  std::vector<store::Mutation> pending_;                 ///< made and not durable by choice
  int64_t durable_before_ = 0;  ///< durable version before the one whose commit may be in flight
  std::pair<int64_t, std::shared_ptr<TensorBuffer>> pulled_{-1, nullptr};  ///< the last rebuilt version
};

}  // namespace optod::engine
