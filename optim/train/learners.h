#pragma once
/// The kinds of learners behind MakeLearner. Private to optim/train.

#include "optim/rules/rule.h"
#include "optim/train/exchange.h"
#include "optim/train/learner.h"
#include "optim/train/replay_log.h"

namespace optod::train {

/// What every kind is made from.
struct LearnerArgs {
  const TrainSpec& spec;
  Engine& engine;
  bool classify;
  std::string own, before;
  ScalarExchange* exchange;    ///< null: one worker
  const Answering* answering;  ///< null: nothing is generated
};

/// What a replay log belongs to; a log of another run is refused. `layout`: "name:elements;" of every trained tensor.
std::string LogHeader(const TrainSpec& spec, const std::string& scheme, const std::string& layout);
/// The log in `own`, with what an older attempt in `before` ("" = none) has beyond it; `scalars` a step.
absl::StatusOr<ReplayLog> OpenLog(const std::string& header, size_t scalars, const std::string& own,
                                  const std::string& before);
/// Joins the other workers: what this one's log lacks is added to it, and given to `repeat`.
absl::Status JoinOthers(ScalarExchange& exchange, ReplayLog& log, const std::function<bool()>& stop,
                        const std::function<absl::Status(const ReplayRecord&)>& repeat);
/// UNIMPLEMENTED when there are to be other workers and no way to them.
absl::Status CheckExchange(const TrainSpec& spec, const ScalarExchange* exchange);

absl::StatusOr<std::unique_ptr<Learner>> MakeZerothOrder(const LearnerArgs& args);
absl::StatusOr<std::unique_ptr<Learner>> MakeFirstOrder(const LearnerArgs& args);
absl::StatusOr<std::unique_ptr<Learner>> MakeHybrid(const LearnerArgs& args);

/// A learner whose checkpoint is state.safetensors: the trainable values and what the optimizer holds.
class SnapshotLearner : public Learner {
 public:
  explicit SnapshotLearner(const LearnerArgs& args)
      : engine_(args.engine), classify_(args.classify), clip_(args.spec.clip_norm), own_(args.own) {}

  /// Takes over what this attempt, or the one before, left.
  absl::Status Resume(const std::string& before);
  int64_t done() const override { return done_; }
  absl::Status Checkpoint() override;
  absl::Status KeepBest() override;
  absl::Status GoTo(int64_t step, const std::function<absl::Status()>& reload) override;

 protected:
  virtual std::vector<optim::OwnedTensor> ExportState() const = 0;
  virtual absl::Status ImportState(const std::vector<optim::OwnedTensor>& state) = 0;

  /// Scales `grad` down to the largest norm; false when it is not finite.
  bool Clip(std::span<float> grad) const;
  StepOutcome Done(double loss) { return ++done_, StepOutcome{loss, false, ""}; }
  StepOutcome Skip(double loss, std::string why) { return ++done_, StepOutcome{loss, true, std::move(why)}; }

  Engine& engine_;
  const bool classify_;

 private:
  const double clip_;
  const std::string own_;
  int64_t done_ = 0;
};

}  // namespace optod::train
