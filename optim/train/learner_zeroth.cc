// Zeroth order: every step is a few scalars in the replay log, and the update is made from the record, live and
// replayed by the same code.
#include <algorithm>
#include <cmath>

#include "base/fs.h"
#include "base/status.h"
#include "optim/train/groups.h"
#include "optim/train/learners.h"
#include "optim/train/replay_log.h"
#include "optim/train/sparse.h"
#include "optim/zo/zo_optimizer.h"

namespace optod::train {
namespace {

using Batch = std::span<const Example* const>;

std::string LayoutText(const zo::ZoLayout& layout) {
  std::string tensors;
  for (size_t i = 0; i < layout.tensors(); ++i) tensors += Cat(layout.tensor(i).name, ":", layout.tensor(i).size, ";");
  return tensors;
}

class ZerothOrder final : public Learner {
 public:
  ZerothOrder(const LearnerArgs& args, const zo::ZoHyper& hyper, std::vector<std::vector<size_t>> groups, ReplayLog log)
      : spec_(args.spec),
        classify_(args.classify),
        engine_(args.engine),
        exchange_(args.exchange),
        answering_(spec_.objective == "loss" ? nullptr : args.answering),
        hyper_(hyper),
        groups_(std::move(groups)),
        log_(std::move(log)),
        optimizer_(engine_.layout(), hyper),
        masks_(spec_.sparse, spec_.seed, engine_.layout()),
        all_(engine_.layout().All()) {}

  /// Repeats all records on the parameters, and joins the other workers.
  absl::Status Resume() {
    for (const ReplayRecord& record : log_.records()) RETURN_IF_ERROR(Repeat(record));
    if (exchange_ == nullptr) return absl::OkStatus();
    return JoinOthers(*exchange_, log_, engine_.stop, [this](const ReplayRecord& record) { return Repeat(record); });
  }

  /// Wanda's mask, from a file of this attempt or the one before, or from the first batch (kept in a file then).
  absl::Status FixMask(const std::string& own, const std::string& before) {
    mask_file_ = MaskFile(own);
    if (!masks_.fixed()) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::optional<zo::BitMask> mask, FindMask(own, before, engine_.layout().size()));
    if (mask) masks_.SetFixed(*std::move(mask));
    mask_set_ = mask.has_value();
    return absl::OkStatus();
  }

  int64_t done() const override { return static_cast<int64_t>(log_.records().size()); }
  std::optional<double> LossOf(int64_t step) const override { return log_.records()[static_cast<size_t>(step)].loss; }

  absl::StatusOr<StepOutcome> Step(int64_t step, Batch whole, double lr) override {
    const std::vector<const Example*> part = ShareOf(exchange_, spec_.parallel, whole);
    if (masks_.fixed() && !mask_set_) RETURN_IF_ERROR(DrawFixedMask(whole));
    ReplayRecord record{static_cast<uint32_t>(step), 0, lr, 0, {}};
    ASSIGN_OR_RETURN(const auto mask, masks_.At(step, theta_));
    StepOutcome outcome;
    if (!groups_.empty()) {
      ASSIGN_OR_RETURN(outcome, ByGroups(part, mask, &record));
    } else if (hyper_.rule == zo::Rule::kForwardGrad) {
      ASSIGN_OR_RETURN(outcome, ByForwardMode(part, mask, &record));
    } else if (hyper_.rule == zo::Rule::kPlain && hyper_.sides == zo::Sides::kTwo) {
      ASSIGN_OR_RETURN(outcome, ByPairs(part, mask, &record));
    } else {
      ASSIGN_OR_RETURN(outcome, ByProcedure(part, mask, &record));
    }
    record.loss = outcome.loss;
    if (outcome.skipped) record.flags |= ReplayRecord::kSkipped;
    if (exchange_ != nullptr) {
      ASSIGN_OR_RETURN(record, exchange_->Agree(record, engine_.stop));
      const bool skipped = (record.flags & ReplayRecord::kSkipped) != 0;
      outcome = {record.loss, skipped, skipped ? "a worker's losses are not finite" : ""};
    }
    RETURN_IF_ERROR(log_.Append(record));
    if (!applied_) RETURN_IF_ERROR(Repeat(record));
    applied_ = false;
    return outcome;
  }

  Memory memory() const override { return {MemoryOfMoments(engine_.layout(), optimizer_.update().state()), 0}; }
  absl::Status Checkpoint() override { return log_.Sync(); }
  absl::Status KeepBest() override { return absl::OkStatus(); }  // the log has every step

  absl::Status GoTo(int64_t step, const std::function<absl::Status()>& reload) override {
    RETURN_IF_ERROR(reload());
    optimizer_ = zo::ZoOptimizer<float>(engine_.layout(), hyper_);
    masks_.Restart();
    for (int64_t i = 0; i < step; ++i) RETURN_IF_ERROR(Repeat(log_.records()[static_cast<size_t>(i)]));
    return absl::OkStatus();
  }

 private:
  using Mask = std::shared_ptr<const zo::BitMask>;

  double ValueAt(Batch batch, std::span<const double> log_probs) const {
    return ValueOf(Judge(batch, log_probs, classify_), batch.size(), spec_.objective);
  }
  Perturbation Along(uint32_t step, uint32_t query, const Mask& mask) const {
    return {{spec_.seed, step, query}, static_cast<float>(hyper_.eps), mask, {}};
  }
  std::shared_ptr<const zo::DirectionSource<float>> DirectionOf(uint32_t step, const Mask& mask) const {
    auto z = std::make_shared<zo::StreamDirection<float>>(spec_.seed, step, engine_.layout());
    if (mask == nullptr) return z;
    return std::make_shared<zo::MaskedDirection<float>>(std::move(z), mask);
  }
  absl::Status DrawFixedMask(Batch batch) {
    ASSIGN_OR_RETURN(const auto norms, engine_.InputNorms(batch));
    ASSIGN_OR_RETURN(zo::BitMask mask, WandaMask(engine_.layout(), engine_.trainable(), engine_.theta(), norms,
                                                 spec_.sparse.ratio, engine_.stores_in_out()));
    RETURN_IF_ERROR(WriteMask(mask_file_, mask));
    masks_.SetFixed(std::move(mask));
    mask_set_ = true;
    return absl::OkStatus();
  }

  /// Both points of every direction, this worker's or all.
  absl::StatusOr<StepOutcome> ByPairs(Batch batch, const Mask& mask, ReplayRecord* record) {
    const bool mine_only = exchange_ != nullptr && spec_.parallel.share == "queries";
    const int first = mine_only ? exchange_->rank() : 0, count = mine_only ? 1 : hyper_.queries;
    std::vector<double> plus, minus;
    for (int q = first; q < first + count; ++q) {
      ASSIGN_OR_RETURN(const auto pair, answering_ == nullptr ? InOneSweep(batch, mask, record->step, q)
                                                              : OneAfterTheOther(batch, mask, record->step, q));
      plus.push_back(pair.first);
      minus.push_back(pair.second);
    }
    zo::ZoHyper now = hyper_;
    now.lr = record->lr;
    now.queries = count;
    ASSIGN_OR_RETURN(const zo::ProjectedGradients projected, zo::ProjectLosses(now, plus, minus));
    record->g = projected.g;
    return StepOutcome{plus[0], !projected.usable, projected.reason};
  }
  using Pair = absl::StatusOr<std::pair<double, double>>;
  /// In one sweep over the blocks.
  Pair InOneSweep(Batch batch, const Mask& mask, uint32_t step, int q) {
    ASSIGN_OR_RETURN(const ScoredPair pair, engine_.ScorePair(Along(step, static_cast<uint32_t>(q), mask), batch));
    return std::pair(ValueAt(batch, pair.plus), ValueAt(batch, pair.minus));
  }
  /// In a copy of what is trained: answers are many passes over the same values.
  Pair OneAfterTheOther(Batch batch, const Mask& mask, uint32_t step, int q) {
    const auto z = DirectionOf(step, mask);
    std::vector<float> point(engine_.layout().size());
    double value[2] = {};
    for (const int side : {0, 1}) {
      z->AddScaled(q, 0, static_cast<float>(side == 0 ? hyper_.eps : -hyper_.eps), engine_.theta(), point);
      ASSIGN_OR_RETURN(value[side], ValueOfPoint(batch, point));
    }
    return std::pair(value[0], value[1]);
  }
  /// What is minimised, at any point.
  absl::StatusOr<double> ValueOfPoint(Batch batch, std::span<const float> theta) {
    if (answering_ != nullptr) {
      ASSIGN_OR_RETURN(const AnswerScore score, answering_->Score(engine_, theta, batch, batch.size()));
      return -score.f1;
    }
    ASSIGN_OR_RETURN(const std::vector<double> log_probs, engine_.Score(theta, batch));
    return ValueAt(batch, log_probs);
  }

  /// Directional derivatives of the objective, exactly (Baydin et al., 2022).
  absl::StatusOr<StepOutcome> ByForwardMode(Batch batch, const Mask& mask, ReplayRecord* record) {
    StepOutcome outcome;
    for (int q = 0; q < hyper_.queries; ++q) {
      ASSIGN_OR_RETURN(const ScoredSlope slope,
                       engine_.Slope(Along(record->step, static_cast<uint32_t>(q), mask), batch));
      const Objective objective = Judge(batch, slope.log_probs, classify_);
      double derivative = 0;
      for (size_t i = 0; i < slope.slopes.size(); ++i) derivative += objective.gradient[i] * slope.slopes[i];
      record->g.push_back(derivative);
      outcome.loss = objective.loss;
      if (!std::isfinite(derivative)) outcome = {objective.loss, true, Cat("jvp[", q, "] is ", derivative)};
    }
    return outcome;
  }

  /// Every group alone, each with a scalar of its own; a group whose losses are not finite stays as it is. Blocks
  /// before the group are computed once.
  absl::StatusOr<StepOutcome> ByGroups(Batch batch, const Mask& mask, ReplayRecord* record) {
    ASSIGN_OR_RETURN(const auto walk, engine_.StartWalk(batch));
    const bool at_once = spec_.blockwise.schedule == "coordinate";
    StepOutcome outcome{std::nan(""), true, "no group has finite losses"};
    for (const std::vector<size_t>& group : groups_) {
      Perturbation p = Along(record->step, 0, mask);
      p.tensors = group;
      ASSIGN_OR_RETURN(const ScoredPair pair, engine_.ScorePair(p, *walk));
      const double plus = ValueAt(batch, pair.plus), minus = ValueAt(batch, pair.minus);
      const double g = zo::ProjectedGradient(plus, minus, hyper_.eps, hyper_.sides);
      record->g.push_back(g);
      if (outcome.skipped && std::isfinite(g)) outcome = {plus, false, ""};
      if (at_once) MoveGroup(group, g, *record, mask);
    }
    applied_ = at_once;
    return outcome;
  }
  void MoveGroup(const std::vector<size_t>& group, double g, const ReplayRecord& record, const Mask& mask) {
    if (!std::isfinite(g)) return;
    optimizer_.update().set_lr(record.lr);
    optimizer_.update().Apply(engine_.theta(), *DirectionOf(record.step, mask), {&g, 1}, group);
  }

  /// Any other procedure of optim/zo: points are formed there, in a scratch copy, and the update is made there.
  absl::StatusOr<StepOutcome> ByProcedure(Batch batch, const Mask& mask, ReplayRecord* record) {
    absl::Status status;
    const zo::LossFn<float> loss = [&](std::span<const float> theta) {
      if (!status.ok()) return std::nan("");
      const absl::StatusOr<double> value = ValueOfPoint(batch, theta);
      status = value.status();
      return value.value_or(std::nan(""));
    };
    optimizer_.update().set_lr(record->lr);
    const zo::StepResult result = optimizer_.StepByRule(engine_.theta(), *DirectionOf(record->step, mask), loss);
    RETURN_IF_ERROR(status);  // the step was skipped: theta is as it was
    applied_ = true;
    record->g = result.projected_grad;
    if (result.chosen == zo::Candidate::kStay) record->flags |= ReplayRecord::kStay;
    if (result.chosen == zo::Candidate::kDescent) record->flags |= ReplayRecord::kDescent;
    if (result.chosen == zo::Candidate::kAscent) record->flags |= ReplayRecord::kAscent;
    return StepOutcome{result.loss, result.skipped, result.reason};
  }

  /// The update of a record.
  absl::Status Repeat(const ReplayRecord& record) {
    ASSIGN_OR_RETURN(const Mask mask, masks_.At(record.step, theta_));
    if ((record.flags & (ReplayRecord::kSkipped | ReplayRecord::kStay)) != 0) return absl::OkStatus();
    zo::ZoUpdate<float>& update = optimizer_.update();
    update.set_lr(record.lr);
    if (!groups_.empty()) {
      for (size_t b = 0; b < groups_.size(); ++b) MoveGroup(groups_[b], record.g[b], record, mask);
    } else if ((record.flags & (ReplayRecord::kAscent | ReplayRecord::kDescent)) != 0) {
      const double factor = (record.flags & ReplayRecord::kAscent) != 0 ? -1 : 1;
      update.ApplyPlain(engine_.theta(), *DirectionOf(record.step, mask), record.g, factor, all_);
    } else if (zo::NeedsRule(hyper_)) {
      update.Apply(engine_.theta(), *DirectionOf(record.step, mask), record.g, all_);
    } else {
      engine_.Defer(PlainUpdate(record, mask));
    }
    return absl::OkStatus();
  }
  /// As ZoUpdate::ApplyPlain has it, for the next pass over the parameters.
  PendingUpdate PlainUpdate(const ReplayRecord& record, const Mask& mask) const {
    PendingUpdate pending{spec_.seed, {}, mask};
    pending.scalars.decay_rate = static_cast<float>(record.lr * hyper_.weight_decay);
    for (size_t q = 0; q < record.g.size(); ++q) {
      const double sign = static_cast<double>((record.g[q] > 0) - (record.g[q] < 0));
      const double direction = hyper_.sign == zo::Sign::kScalar ? sign : record.g[q];
      pending.scalars.terms.push_back(
          {record.step, static_cast<uint32_t>(q),
           static_cast<float>(record.lr * direction / static_cast<double>(record.g.size()))});
    }
    return pending;
  }

  const TrainSpec spec_;
  const bool classify_;
  Engine& engine_;
  ScalarExchange* const exchange_;
  const Answering* const answering_;  // null: the objective is taken of the options' log-probabilities
  const zo::ZoHyper hyper_;
  const std::vector<std::vector<size_t>> groups_;
  ReplayLog log_;
  zo::ZoOptimizer<float> optimizer_;
  Masks masks_;
  const std::vector<size_t> all_;
  const Masks::Theta theta_ = [this] { return std::span<const float>(engine_.theta()); };
  std::string mask_file_;
  bool mask_set_ = false;
  bool applied_ = false;  // the step under way has made its update already
};

}  // namespace

absl::StatusOr<std::unique_ptr<Learner>> MakeZerothOrder(const LearnerArgs& args) {
  ASSIGN_OR_RETURN(zo::ZoHyper hyper, ZoHyperOf(args.spec));
  if (args.exchange != nullptr && args.spec.parallel.share == "queries")
    hyper.queries = static_cast<int>(args.spec.parallel.workers);
  std::vector<std::vector<size_t>> groups;
  if (!args.spec.blockwise.level.empty()) {
    std::vector<size_t> block_of;
    for (size_t i : args.engine.layout().All()) block_of.push_back(args.engine.block_of(i));
    ASSIGN_OR_RETURN(groups,
                     GroupTensors(args.engine.trainable(), block_of, args.engine.blocks(), args.spec.blockwise.level));
  }
  const std::string header = LogHeader(args.spec, args.spec.scheme.name, LayoutText(args.engine.layout()));
  const size_t scalars = groups.empty() ? static_cast<size_t>(hyper.queries) : groups.size();
  ASSIGN_OR_RETURN(ReplayLog log, OpenLog(header, scalars, args.own, args.before));
  auto learner = std::make_unique<ZerothOrder>(args, hyper, std::move(groups), std::move(log));
  RETURN_IF_ERROR(learner->FixMask(args.own, args.before));
  RETURN_IF_ERROR(learner->Resume());
  return learner;
}

}  // namespace optod::train
