#pragma once
/// Zeroth-order sessions: the server hands out perturbations by name (base version, seed, query) and is told losses; a
/// step is a few scalars.
///
///   ask ─► probes of the head that nobody has ─► tell losses
///       ─► all q there: g_i = (L+ - L-) / (2 eps), coefficient_i = fl32(lr g_i / q)
///       ─► version row holding the coefficients; theta itself is touched only when somebody asks for it
///
/// The rules are those of optim/zo: zo-sgd, zo-sgd-sign, zo-sgd-mmt, zo-adam (Zhang et al. 2024) as MeZO (Malladi et al.
/// 2023, Alg. 1) with q queries, two- or one-sided; zo-sgd-cons asks, once all directions are told, for the losses at
/// theta and at both candidates (probe "<base version>.<q>"); forward-grad asks for derivatives along the directions.
/// residue "mezo" is UNIMPLEMENTED: workers that evaluate different queries would keep different rounding.
/// - Momentum and Adam's moments are part of the values: a session with a layout only leaves them to the workers, who
///   rebuild them by replay. Such a session can be forked only where no update was made.
/// - Directions: Philox counter words (element / 4, tensor, query, step), where step is the base version, or what
///   Session.first_direction and next_direction make of it; version numbers are never reused, so two branches share a
///   direction only where they start from the same version. A fork draws what its source would draw after a rollback to
///   that version, or has a seed of its own.
/// - Blocks and masks (optim/zo/support.h) say which elements a direction moves; the workers know them from the settings.
///   Block-wise coordinate: a version updates one block, in turn.
/// - probe_id "<base version>.<number of the direction in its step>". A probe told twice counts once. Results for versions other than the head are
///   ignored; when all of a tell are such, it is ABORTED.
/// - Leases live in memory: after a restart the probes without a result are free. A worker that asks again by name when
///   nothing is free gets the probes again that it holds.
/// - Partial results are durable (observation "probe", a = base version, b = query). Rolling back to a version starts
///   its step anew.
/// - A NaN or Inf loss makes a `skipped` version: no coefficients, no decay, no change of the moments. Of zo-sgd-cons's
///   candidates one that is not finite is only not taken.
/// - Layout-only sessions hold no tensor and may have any size; with values all tensors are float32. ParametersAt
///   replays from the last stored values (zo::ApplyUpdate); values in use are stored again every 1000 steps, with the
///   moments as a snapshot (snapshot.h).

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "optim/zo/projected_gradient.h"
#include "optim/zo/replay.h"
#include "optim/zo/support.h"
#include "server/engine/numeric_family.h"
#include "server/engine/version_tree.h"

namespace optod::engine {

/// The moments as tensors and back: "m/<tensor>", "v/<tensor>" of the tensors' shapes and the counts "t", sorted by name; none for
/// rules without state. FromTensors: INVALID_ARGUMENT naming the tensor that is missing, extra or does not fit.
std::vector<optim::OwnedTensor> MomentsToTensors(const Layout& layout, const zo::ZoLayout& zo_layout, const zo::ZoHyper& hyper,
                                                 const zo::ZoState<float>& state);
absl::StatusOr<zo::ZoState<float>> MomentsFromTensors(const Layout& layout, const zo::ZoLayout& zo_layout, const zo::ZoHyper& hyper,
                                                      const std::vector<optim::OwnedTensor>& tensors);

/// For the map that Engine takes: {"zeroth-order", ZerothOrderFactory()}.
FamilyFactory ZerothOrderFactory();

class ZerothOrder final : public NumericFamily {
 public:
  static absl::StatusOr<std::unique_ptr<Family>> Load(Context& context, LiveSession& session);
  /// Whether the rule keeps moments beside the parameters.
  bool has_state() const { return HasState(hyper_); }
  static bool HasState(const zo::ZoHyper& hyper) { return hyper.base == zo::Base::kAdam || hyper.momentum > 0; }
  /// Gives a fork of `version` its directions.
  void ForkDirections(const LiveSession& session, int64_t version, LiveSession& fork) const;
  /// The blob of a version's values and moments for a fork.
  absl::StatusOr<std::string> Save(LiveSession& session, int64_t version, int64_t step);

  absl::StatusOr<v1::AskResponse> Ask(LiveSession& session, const v1::AskRequest& request,
                                      const Caller& caller) override;
  absl::Status Tell(LiveSession& session, const v1::TellRequest& request, v1::TellResponse* response,
                    Effects* effects) override;
  absl::Status MoveHead(LiveSession& session, const store::VersionRow& version, Effects* effects) override;
  size_t ResidentBytes() const override;

  absl::Status SetInitial(LiveSession& session, std::shared_ptr<TensorBuffer> values, const std::string& sha256,
                          Effects* effects) override;
  absl::StatusOr<std::shared_ptr<const TensorBuffer>> ParametersAt(LiveSession& session, int64_t version) override;
  absl::StatusOr<std::vector<optim::OwnedTensor>> State(LiveSession& session) override;
  absl::StatusOr<StateFile> Export(LiveSession& session, int64_t version) override;
  absl::Status TakeState(LiveSession& session, const StateFile& file, const std::string& note,
                         Effects* effects) override;
  /// State as it is once the head's values are in use; until then nothing of it is allocated.
  void DescribeMemory(v1::MemoryReport* report) const override;

  static constexpr int64_t kReplaySteps = 10'000;     ///< of one answer
  static constexpr int64_t kReplayQueries = 100'000;  ///< of one answer: keeps it below gRPC's message limit

 private:
  /// One query of the step that is under way.
  struct Query {
    bool told = false;
    double plus = 0, minus = 0;  ///< forward-grad: plus = the derivative
    double loss = 0;             ///< at theta, where it was told; NaN elsewhere
    std::string worker;
    int64_t lease_until_ns = INT64_MIN;
  };
  struct Result {
    uint32_t query;
    double plus, minus, loss;
  };
  struct Values {
    int64_t version = -1;
    std::shared_ptr<TensorBuffer> flat;
    zo::ZoState<float> state;
    std::span<float> span() const { return {reinterpret_cast<float*>(flat->data()), flat->size() / sizeof(float)}; }
  };

  ZerothOrder(Context& context, const LiveSession& session);
  int64_t directions() const { return zo::DirectionsOfStep(zo_layout_, hyper_); }  ///< of a step: q, or q a block
  int64_t probes() const { return static_cast<int64_t>(queries_.size()); }  ///< of a step: directions, and cons's candidates
  /// Query number in the stream of the i-th direction of the step under way.
  uint32_t DirectionNumber(uint32_t i) const { return zo::FirstDirection(zo_layout_, hyper_, head_rule_step_) + i; }
  bool conservative() const { return hyper_.rule == zo::Rule::kConservative; }
  bool forward() const { return hyper_.rule == zo::Rule::kForwardGrad; }
  void StartStep();
  double LrOfStep(int64_t step) const;
  /// Philox counter of the directions at a version.
  int64_t DirectionOf(int64_t version) const { return version == 0 ? first_direction_ : next_direction_ + version - 1; }

  absl::Status AddProbes(LiveSession& session, const v1::AskRequest& request, v1::AskResponse* out);
  absl::Status FillProbe(LiveSession& session, uint32_t query, bool with_point, v1::AskResponse* out);
  absl::Status FillPoint(LiveSession& session, v1::Probe* probe);
  absl::Status AddReplay(LiveSession& session, int64_t known, v1::AskResponse* out);
  /// Steps on the way to `to`, after `from` (an ancestor), oldest first, from the store; stops after the limits.
  absl::StatusOr<std::vector<v1::ReplayStep>> ReadSteps(int64_t uid, int64_t from, int64_t to, int64_t max_steps,
                                                        int64_t max_queries) const;
  v1::ReplayStep StepOf(int64_t number, const v1::Version& version) const;

  /// Results for the head that are new; counts how many of the tell were for other versions.
  absl::StatusOr<std::vector<Result>> Accept(LiveSession& session, const v1::LossTell& tell) const;
  absl::Status Complete(LiveSession& session, v1::TellResponse* response, Effects* effects);
  /// Whether the step can be ended with what is told: all probes, or all directions of which one is not usable.
  bool Completes() const;
  /// g of every query, from the losses told; false when one is not finite.
  bool Project(std::vector<double>* g) const;
  /// The update that descends: terms, rate or rule. False when a coefficient is not finite.
  bool Descent(const std::vector<double>& g, double lr, v1::Version* version) const;
  void FillScalars(v1::Version* version, v1::TellResponse* response) const;
  void Choose(v1::Version* version) const;
  v1::ReplayStep CandidateStep() const;
  void Remember(LiveSession& session, v1::ReplayStep step);
  void ChooseDurability(LiveSession& session, v1::TellResponse* response, Effects* effects) const;

  absl::Status ApplyStep(const v1::ReplayStep& step, Values* values) const;
  absl::StatusOr<std::string> PutValues(const Values& values, int64_t step) const;
  absl::StatusOr<Values> ValuesAt(LiveSession& session, int64_t version);
  absl::StatusOr<Values> NearestValues(int64_t uid, int64_t version) const;

  Context& context_;
  v1::OptimizerSpec spec_;
  v1::Durability durability_;
  zo::ZoHyper hyper_;
  zo::ZoHyper plain_;  ///< under which an update is terms and a rate, whatever the session's own rule
  zo::ZoLayout zo_layout_;
  int64_t first_direction_, next_direction_;  ///< Session's

  std::vector<Query> queries_;  ///< of the head; zo-sgd-cons: the candidates are the last
  int64_t told_ = 0;
  size_t next_ = 0;        ///< where the search for a free query starts
  int64_t head_step_ = 0;       ///< VersionRow::step of the head
  int64_t head_rule_step_ = 0;  ///< Version::rule_step of the head
  int64_t tree_head_ = 0;       ///< number of the head
  VersionTree tree_;
  std::deque<v1::ReplayStep> tail_;  ///< the newest steps of the head's branch, oldest first
  int64_t tail_base_ = 0;            ///< version before the first of them
  int64_t tail_queries_ = 0;
  Values theta_;                 ///< at or behind the head, once asked for
  Values pulled_;                ///< of another version, the last that was asked for
  int64_t stored_version_ = -1;  ///< newest version whose values went into the blob store while theta_ was in use
};

}  // namespace optod::engine
