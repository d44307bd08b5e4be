#include "optim/train/trainer.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/fs.h"
#include "base/sha256.h"
#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/nn/tokenizer_writer.h"
#include "optim/train/answering.h"
#include "optim/train/engine.h"
#include "optim/train/learner.h"
#include "optim/train/task.h"
#include "optim/train/tiered_learner.h"

namespace optod::train {
namespace {

struct Evaluation {
  int64_t step = 0;
  double score = 0, loss = 0;
};

int64_t PeakRss() {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

/// Resident set of now.
int64_t Rss() {
  const std::string statm = PosixFs().ReadFile("/proc/self/statm").value_or("");
  const size_t space = statm.find(' ');
  return space == std::string::npos ? 0 : std::atoll(statm.c_str() + space) * sysconf(_SC_PAGESIZE);
}

class Run {
 public:
  Run(const TrainSpec& spec, std::string folder, int attempt, const TrainHooks& hooks)
      : spec_(spec), folder_(std::move(folder)), attempt_(attempt), hooks_(hooks) {}

  absl::StatusOr<TrainResult> Go() {
    RETURN_IF_ERROR(Load());
    RETURN_IF_ERROR(Resume());
    RETURN_IF_ERROR(Loop());
    return Finish();
  }

 private:
  std::string Own() const { return Cat(folder_, "/attempt-", attempt_); }
  /// The newest older attempt that left something; "" = none.
  std::string Before() const {
    for (int a = attempt_ - 1; a >= 1; --a) {
      const std::string folder = Cat(folder_, "/attempt-", a);
      if (PosixFs().Exists(folder + "/replay.log") || PosixFs().Exists(folder + "/state.safetensors")) return folder;
    }
    return "";
  }

  absl::Status Load() {
    RETURN_IF_ERROR(PosixFs().CreateDirectories(Own()));
    if (spec_.tier.on) {
      const int rank = hooks_.exchange == nullptr ? 0 : hooks_.exchange->rank();
      ASSIGN_OR_RETURN(tiered_, TieredModel::Open(spec_, Cat("units-", Sha256Hex(folder_).substr(0, 16)), hooks_.stop, rank));
      model_.config = tiered_->config();
    } else {
      ASSIGN_OR_RETURN(model_, nn::LoadModel(spec_.model));
    }
    ASSIGN_OR_RETURN(std::shared_ptr<const nn::Tokenizer> tokenizer, nn::LoadTokenizer(spec_.model));
    if (tokenizer->vocab() > model_.config.vocab)
      hooks_.log(Cat("tokenizer has ", tokenizer->vocab(), " tokens, the model ", model_.config.vocab));
    nn::ModelConfig room = model_.config;  // virtual tokens take positions too
    if (spec_.scheme.name == "prefix" || spec_.scheme.name == "prompt") room.max_positions -= spec_.scheme.tokens;
    if (room.max_positions < 8)
      return InvalidArgument("scheme.tokens: ", spec_.scheme.tokens, " leaves fewer than 8 of the model's ",
                             model_.config.max_positions, " positions");
    ASSIGN_OR_RETURN(data_, LoadTask(spec_.task, *tokenizer, room));
    RETURN_IF_ERROR(CheckTargets());
    if (data_.asks && tiered_ == nullptr) answering_.emplace(spec_.task.answer, tokenizer);
    order_ = std::make_unique<BatchOrder>(spec_.seed, data_.train.size(), static_cast<size_t>(spec_.batch));
    if (tiered_ != nullptr) {
      hooks_.log(tier::PlanText(tiered_->plan()));
      LogWhatTrains(tiered_->trainable(), tiered_->parameters());
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(engine_, Engine::Create(&model_, spec_.scheme, spec_.seed));
    engine_->stop = hooks_.stop;
    LogWhatTrains(static_cast<int64_t>(engine_->layout().size()), static_cast<int64_t>(model_.weights.parameters()));
    return absl::OkStatus();
  }

  void LogWhatTrains(int64_t trainable, int64_t parameters) const {
    hooks_.log(Cat(spec_.task.name, ": ", data_.train.size(), " train, ", data_.dev.size(), " dev, ", data_.test.size(),
                   " test examples; ", trainable, " of ", parameters, " parameters train (", spec_.scheme.name, "), ",
                   spec_.optimizer));
  }

  absl::Status CheckTargets() const {
    for (const auto* set : {&data_.train, &data_.dev, &data_.test}) {
      for (const Example& example : *set) {
        for (const Sequence& sequence : example.sequences) {
          RETURN_IF_ERROR(nn::CheckIds(model_.config, sequence.ids));
          for (const Pick& pick : sequence.picks) {
            if (pick.target >= model_.config.vocab)
              return InvalidArgument("tokenizer: token ", pick.target, " is not below the model's vocabulary ",
                                     model_.config.vocab);
          }
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Resume() {
    const std::string before = Before();
    if (tiered_ != nullptr) {
      ASSIGN_OR_RETURN(learner_, MakeTieredLearner(spec_, *tiered_, data_.classify, Own(), before, hooks_.exchange, hooks_.stop));
    } else {
      ASSIGN_OR_RETURN(learner_, MakeLearner(spec_, *engine_, data_.classify, Own(), before, hooks_.exchange,
                                             answering_.has_value() ? &*answering_ : nullptr));
    }
    step_ = learner_->done();
    if (step_ > 0) hooks_.log(Cat("resumed after step ", step_));
    TellAgain();
    for (const std::string& folder : {Own(), before}) {
      if (evaluations_.empty() && !folder.empty()) ReadEvaluations(folder);
    }
    std::erase_if(evaluations_, [&](const Evaluation& e) { return e.step > step_; });
    // At once: an attempt that ends before its first evaluation must not hide those of the attempts before it.
    return evaluations_.empty() ? absl::OkStatus() : WriteEvaluations();
  }

  /// Losses of the log that nobody heard: the attempt before ended with them on the way.
  void TellAgain() const {
    if (!Leads() || hooks_.told_step >= step_) return;
    for (int64_t step = hooks_.told_step + 1; step <= step_; ++step) {
      const std::optional<double> loss = learner_->LossOf(step - 1);
      if (ReportDue(step) && loss.has_value()) hooks_.progress(step, {{"loss", *loss}, {"lr", RateAt(step - 1)}});
    }
  }
  bool ReportDue(int64_t step) const { return step % spec_.log_every == 0 || step == spec_.steps; }

  void ReadEvaluations(const std::string& folder) {
    const auto json =
        nlohmann::json::parse(PosixFs().ReadFile(folder + "/evaluations.json").value_or(""), nullptr, false);
    if (!json.is_array()) return;
    for (const auto& e : json) {
      if (e.is_array() && e.size() == 3 && e[0].is_number_integer() && e[1].is_number() && e[2].is_number())
        evaluations_.push_back({e[0].get<int64_t>(), e[1].get<double>(), e[2].get<double>()});
    }
  }
  absl::Status WriteEvaluations() {
    nlohmann::json json = nlohmann::json::array();
    for (const Evaluation& e : evaluations_) json.push_back({e.step, e.score, e.loss});
    return PosixFs().WriteFileAtomic(Own() + "/evaluations.json", BytesOf(json.dump()));
  }

  /// The other ranks only take part in the steps.
  bool Leads() const { return hooks_.exchange == nullptr || hooks_.exchange->rank() == 0; }
  bool EvaluationDue() const {
    if (!Leads()) return false;
    if (step_ == 0) return spec_.evaluate_before;
    return step_ == spec_.steps || (spec_.eval_every > 0 && step_ % spec_.eval_every == 0);
  }
  bool Evaluated() const { return !evaluations_.empty() && evaluations_.back().step == step_; }

  absl::Status Loop() {
    memory_.before = Rss();
    if (EvaluationDue() && !Evaluated()) RETURN_IF_ERROR(Evaluate());
    while (step_ < spec_.steps) {
      if (hooks_.stop()) return absl::CancelledError("stopped");
      const auto began = std::chrono::steady_clock::now();
      std::vector<const Example*> batch;
      for (size_t i : order_->At(step_)) batch.push_back(&data_.train[i]);
      ASSIGN_OR_RETURN(const StepOutcome outcome, learner_->Step(step_, batch, RateAt(step_)));
      ++step_;
      seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
      ++timed_steps_;
      skipped_ += outcome.skipped ? 1 : 0;
      if (outcome.skipped) hooks_.log(Cat("step ", step_, " skipped: ", outcome.reason));
      if (ReportDue(step_)) {
        std::map<std::string, double> figures;
        if (tiered_ != nullptr) figures = tiered_->Figures();
        figures.insert({{"loss", outcome.loss},
                        {"lr", RateAt(step_ - 1)},
                        {"seconds_per_step", seconds_ / static_cast<double>(timed_steps_)},
                        {"peak_rss_bytes", static_cast<double>(PeakRss())}});
        hooks_.progress(step_, figures);
        TellMemory();
      }
      if (step_ % spec_.checkpoint_every == 0 || step_ == spec_.steps) {
        RETURN_IF_ERROR(learner_->Checkpoint());
        hooks_.checkpoint(step_);
      }
      if (EvaluationDue()) RETURN_IF_ERROR(Evaluate());
    }
    return absl::OkStatus();
  }

  void TellMemory() {
    const int64_t peak = std::max(PeakRss(), memory_.before);  // the kernel counts either by threads: some pages apart
    if (peak == memory_.peak) return;
    memory_.peak = peak;
    if (tiered_ == nullptr) CountMemory();
    hooks_.memory(memory_);
  }
  void CountMemory() {
    const Learner::Memory counted = learner_->memory();
    const std::vector<tier::BlockTensor>& trainable = engine_->trainable();
    memory_.tensors.clear();
    memory_.parameters = 0;
    for (size_t i = 0; i < trainable.size(); ++i) {
      const auto bytes = static_cast<int64_t>(engine_->layout().tensor(i).size * sizeof(float));
      const optim::RuleMemory::Tensor& own = counted.optimizer.tensors[i];
      memory_.tensors.push_back(
          {trainable[i].name, bytes, static_cast<int64_t>(own.state), static_cast<int64_t>(own.transient)});
      memory_.parameters += bytes;
    }
    memory_.frozen = model_.weights.parameters() * static_cast<int64_t>(sizeof(float)) - (OwnWeightsTrain() ? memory_.parameters : 0);
    memory_.state = static_cast<int64_t>(counted.optimizer.state);
    memory_.gradients = static_cast<int64_t>(counted.gradients);
    memory_.transient = static_cast<int64_t>(counted.optimizer.transient);
  }

  bool OwnWeightsTrain() const { return spec_.scheme.name == "full" || spec_.scheme.name == "head"; }

  double RateAt(int64_t step) const {
    const auto it = spec_.hyper.find("lr");
    const double lr = it == spec_.hyper.end() ? 0 : std::get<double>(it->second);
    if (spec_.decay_from == "constant") return lr;
    return lr * (1 - static_cast<double>(step) / static_cast<double>(spec_.steps));
  }

  absl::StatusOr<std::vector<double>> Scores(std::span<const Example* const> batch) {
    return tiered_ != nullptr ? tiered_->Score(batch) : engine_->Score(engine_->theta(), batch);
  }

  absl::StatusOr<Evaluation> Judged(const std::vector<Example>& set) {
    double loss = 0;
    int64_t right = 0, tokens = 0;
    double token_loss = 0;
    const auto together = static_cast<size_t>(spec_.batch);
    for (size_t at = 0; at < set.size(); at += together) {
      std::vector<const Example*> batch;
      for (size_t i = at; i < std::min(set.size(), at + together); ++i) batch.push_back(&set[i]);
      ASSIGN_OR_RETURN(const std::vector<double> log_probs, Scores(batch));
      const Objective o = Judge(batch, log_probs, data_.classify);
      loss += o.loss * static_cast<double>(batch.size());
      right += o.right;
      tokens += o.tokens;
      token_loss += o.token_loss;
    }
    const auto n = static_cast<double>(set.size());
    if (answering_.has_value()) return Answered(set, token_loss / static_cast<double>(tokens));
    if (!data_.choose)
      return Evaluation{step_, -token_loss / static_cast<double>(tokens), token_loss / static_cast<double>(tokens)};
    return Evaluation{step_, static_cast<double>(right) / n, loss / n};
  }

  absl::StatusOr<Evaluation> Answered(const std::vector<Example>& set, double loss) {
    std::vector<const Example*> all;
    for (const Example& example : set) all.push_back(&example);
    ASSIGN_OR_RETURN(const AnswerScore score,
                     answering_->Score(*engine_, engine_->theta(), all, static_cast<size_t>(spec_.batch)));
    hooks_.log(Cat("step ", step_, ": ", set.size(), " answers, exact match ", score.exact, ", F1 ", score.f1));
    return Evaluation{step_, score.f1, loss};
  }
  /// What a score is.
  const char* ScoreName() const { return data_.choose ? "accuracy" : answering_.has_value() ? "f1" : "score"; }

  absl::Status Evaluate() {
    ASSIGN_OR_RETURN(const Evaluation e, Judged(data_.dev));
    const bool best = evaluations_.empty() || e.score > Best().score;
    evaluations_.push_back(e);
    if (best) RETURN_IF_ERROR(learner_->KeepBest());
    RETURN_IF_ERROR(WriteEvaluations());
    hooks_.progress(step_, {{Cat(ScoreName(), "/dev"), e.score},
                            {"loss/dev", e.loss},
                            {"peak_rss_bytes", static_cast<double>(PeakRss())}});
    hooks_.log(Cat("step ", step_, ": dev ", ScoreName(), " ", e.score, ", loss ", e.loss));
    return absl::OkStatus();
  }
  /// The first of the highest scores.
  const Evaluation& Best() const {
    return *std::max_element(evaluations_.begin(), evaluations_.end(),
                             [](const Evaluation& a, const Evaluation& b) { return a.score < b.score; });
  }

  absl::StatusOr<TrainResult> Finish() {
    TrainResult result;
    result.steps = step_;
    result.skipped = skipped_;
    result.seconds_per_step = timed_steps_ == 0 ? 0 : seconds_ / static_cast<double>(timed_steps_);
    result.peak_rss_bytes = PeakRss();
    TellMemory();
    result.memory = memory_;
    if (tiered_ != nullptr) result.tier = tiered_->Figures();
    ASSIGN_OR_RETURN(result.parameters_sha256, ParametersSha256());
    if (!Leads()) return Discard(), result;
    result.best_step = Best().step;
    result.first_score = evaluations_.front().score;
    result.best_score = Best().score;
    result.last_score = evaluations_.back().score;
    RETURN_IF_ERROR(FinishBest(&result));
    return Discard(), result;
  }
  void Discard() {
    if (tiered_ != nullptr) tiered_->Discard();
  }
  absl::StatusOr<std::string> ParametersSha256() {
    return tiered_ != nullptr ? tiered_->Sha256() : Sha256Hex(std::as_bytes(engine_->theta()));
  }
  /// The best version again: its test score, and its files.
  absl::Status FinishBest(TrainResult* result) {
    if (data_.test.empty() && !spec_.save_model) return absl::OkStatus();
    if (result->best_step != step_) RETURN_IF_ERROR(learner_->GoTo(result->best_step, [&] { return Reload(); }));
    if (!data_.test.empty()) {
      ASSIGN_OR_RETURN(const Evaluation e, Judged(data_.test));
      result->test_score = e.score;
    }
    if (!spec_.save_model) return absl::OkStatus();
    const std::string folder = Own() + "/result";
    result->saved = Cat("attempt-", attempt_, "/result");
    RETURN_IF_ERROR(tiered_ != nullptr ? tiered_->Save(folder) : engine_->Save(folder));
    const bool whole = spec_.scheme.name == "full" || spec_.scheme.name == "head";
    return whole ? nn::SaveTokenizer(spec_.model, folder) : absl::OkStatus();
  }
  /// The trainable values as they were before step 1.
  absl::Status Reload() {
    ASSIGN_OR_RETURN(nn::ModelFiles fresh, nn::LoadModel(spec_.model));
    ASSIGN_OR_RETURN(auto engine, Engine::Create(&fresh, spec_.scheme, spec_.seed));
    std::copy(engine->theta().begin(), engine->theta().end(), engine_->theta().begin());
    return absl::OkStatus();
  }

  const TrainSpec& spec_;
  const std::string folder_;
  const int attempt_;
  const TrainHooks& hooks_;
  nn::ModelFiles model_;
  TaskData data_;
  std::unique_ptr<Engine> engine_;       // or
  std::unique_ptr<TieredModel> tiered_;  // parameters over memory tiers
  std::optional<Answering> answering_;   // of tasks whose answers are generated
  std::unique_ptr<BatchOrder> order_;
  std::unique_ptr<Learner> learner_;
  std::vector<Evaluation> evaluations_;
  TrainMemory memory_;
  int64_t step_ = 0, skipped_ = 0, timed_steps_ = 0;
  double seconds_ = 0;
};

}  // namespace

absl::StatusOr<TrainResult> RunTraining(const TrainSpec& spec, const std::string& folder, int attempt,
                                        const TrainHooks& hooks) {
  return Run(spec, folder, attempt, hooks).Go();
}

std::string RankFolder(const std::string& folder, int rank) { return rank == 0 ? folder : Cat(folder, "/rank-", rank); }

std::string ResultJson(const TrainResult& r) {
  nlohmann::ordered_json json{{"steps", r.steps},
                              {"best_step", r.best_step},
                              {"skipped", r.skipped},
                              {"first_score", r.first_score},
                              {"best_score", r.best_score},
                              {"last_score", r.last_score},
                              {"test_score", r.test_score},
                              {"seconds_per_step", r.seconds_per_step},
                              {"peak_rss_bytes", r.peak_rss_bytes},
                              {"parameters_sha256", r.parameters_sha256}};
  if (!r.saved.empty()) json["saved"] = r.saved;
  if (!r.tier.empty()) json["tier"] = r.tier;
  return json.dump();
}

}  // namespace optod::train
