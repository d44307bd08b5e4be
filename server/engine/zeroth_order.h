#pragma once
/// Zeroth-order sessions: the server hands out perturbations by name (base version, seed, query) and is told losses; a
/// step is a few scalars.
///
///   ask ─► probes of the head that nobody has ─► tell losses
///       ─► all q there: g_i = (L+ - L-) / (2 eps), coefficient_i = fl32(lr g_i / q)
///       ─► version row holding the coefficients; theta itself is touched only when somebody asks for it
///
/// MeZO (Malladi et al. 2023, Alg. 1) with q queries, two- or one-sided; `zo-sgd`, and `zo-sgd-sign` with sign "code".
/// Other names: UNIMPLEMENTED.
/// - Directions: Philox counter words (element / 4, tensor, query, base version); version numbers are never reused, so
///   two branches share a direction only where they start from the same version.
/// - probe_id "<base version>.<query>". A probe told twice counts once. Results for versions other than the head are
///   ignored; when all of a tell are such, it is ABORTED.
/// - Leases live in memory: after a restart the probes without a result are free. A worker that asks again by name when
///   nothing is free gets the probes again that it holds.
/// - Partial results are durable (observation "probe", a = base version, b = query). Rolling back to a version starts
///   its step anew.
/// - A NaN or Inf loss makes a `skipped` version: no coefficients, no decay.
/// - Layout-only sessions hold no tensor and may have any size; with values all tensors are float32. ParametersAt
///   replays from the last stored values (theta <- fl(factor * theta) on decayed tensors, then
///   theta <- fl(theta - fl(c_i z_i)) for each query in order); values in use are stored again every 1000 steps.

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "server/engine/numeric_family.h"
#include "server/engine/version_tree.h"

namespace optod::engine {

/// For the map that Engine takes: {"zeroth-order", ZerothOrderFactory()}.
FamilyFactory ZerothOrderFactory();

class ZerothOrder final : public NumericFamily {
 public:
  static absl::StatusOr<std::unique_ptr<Family>> Load(Context& context, LiveSession& session);

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

  static constexpr int64_t kReplaySteps = 10'000;     ///< of one answer
  static constexpr int64_t kReplayQueries = 100'000;  ///< of one answer: keeps it below gRPC's message limit

 private:
  /// One query of the step that is under way.
  struct Query {
    bool told = false;
    double plus = 0, minus = 0;
    std::string worker;
    int64_t lease_until_ns = INT64_MIN;
  };
  struct Result {
    uint32_t query;
    double plus, minus;
  };
  struct Values {
    int64_t version = -1;
    std::shared_ptr<TensorBuffer> flat;
  };

  ZerothOrder(Context& context, const LiveSession& session);
  int64_t q() const { return static_cast<int64_t>(queries_.size()); }
  void StartStep();
  double LrOfStep(int64_t step) const;
  float DecayFactor(double lr) const;

  absl::Status AddProbes(LiveSession& session, const v1::AskRequest& request, v1::AskResponse* out);
  absl::Status FillProbe(LiveSession& session, uint32_t query, bool with_point, v1::AskResponse* out);
  absl::Status AddReplay(LiveSession& session, int64_t known, v1::AskResponse* out);
  /// Steps on the way to `to`, after `from` (an ancestor), oldest first, from the store; stops after the limits.
  absl::StatusOr<std::vector<v1::ReplayStep>> ReadSteps(int64_t uid, int64_t from, int64_t to, int64_t max_steps,
                                                        int64_t max_queries) const;
  v1::ReplayStep StepOf(int64_t number, const v1::Version& version) const;

  /// Results for the head that are new; counts how many of the tell were for other versions.
  absl::StatusOr<std::vector<Result>> Accept(LiveSession& session, const v1::LossTell& tell) const;
  absl::Status Complete(LiveSession& session, v1::TellResponse* response, Effects* effects);
  void FillScalars(v1::Version* version, v1::TellResponse* response) const;
  void Remember(LiveSession& session, v1::ReplayStep step);
  void ChooseDurability(LiveSession& session, v1::TellResponse* response, Effects* effects) const;

  absl::Status ApplyStep(const v1::ReplayStep& step, TensorBuffer* flat) const;
  absl::StatusOr<Values> NearestValues(int64_t uid, int64_t version) const;

  Context& context_;
  v1::OptimizerSpec spec_;
  v1::Durability durability_;
  double eps_ = 1e-3, weight_decay_ = 0;
  bool two_side_ = true, sign_ = false;

  std::vector<Query> queries_;  ///< of the head
  int64_t told_ = 0;
  size_t next_ = 0;        ///< where the search for a free query starts
  int64_t head_step_ = 0;  ///< VersionRow::step of the head
  VersionTree tree_;
  std::deque<v1::ReplayStep> tail_;  ///< the newest steps of the head's branch, oldest first
  int64_t tail_base_ = 0;            ///< version before the first of them
  int64_t tail_queries_ = 0;
  Values theta_;                 ///< at or behind the head, once asked for
  Values pulled_;                ///< of another version, the last that was asked for
  int64_t stored_version_ = -1;  ///< newest version whose values went into the blob store while theta_ was in use
};

}  // namespace optod::engine
