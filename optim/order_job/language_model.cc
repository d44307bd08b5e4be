#include "optim/order_job/language_model.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "base/sha256.h"
#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/order/parallel.h"
#include "optim/train/engine.h"
#include "optim/train/task.h"

namespace optod::order {
namespace {

constexpr int64_t kSmall =
    size_t{16} << 20;  // parameters; above it a second copy of the model is worth more than a thread

using train::Example;

/// The model's weights and the engine that works on them: one gradient at a time.
struct Seat {
  nn::ModelFiles files;
  std::unique_ptr<train::Engine> engine;
};

struct Data {
  std::vector<std::vector<const Example*>> batches, evaluations;
  train::TaskData task;
};

class LanguageModel final : public Model {
 public:
  LanguageModel(std::unique_ptr<Data> data, std::vector<std::unique_ptr<Seat>> seats, int together, int threads)
      : data_(std::move(data)), seats_(std::move(seats)), together_(together), threads_(threads) {
    for (auto& seat : seats_) free_.push_back(seat.get());
    const std::span<const float> theta = seats_[0]->engine->theta();
    start_.assign(theta.begin(), theta.end());
  }

  size_t size() const override { return start_.size(); }
  int batches() const override { return static_cast<int>(data_->batches.size()); }
  int evaluations() const override { return static_cast<int>(data_->evaluations.size()); }
  Precision precision() const override { return Precision::kFloat32; }
  int concurrency() const override { return static_cast<int>(seats_.size()); }
  std::string fingerprint() const override { return fingerprint_; }
  double length(int batch) const override {
    double tokens = 0.0;
    for (const Example* example : data_->batches[batch]) {
      for (const train::Sequence& sequence : example->sequences) tokens += static_cast<double>(sequence.ids.size());
    }
    return tokens / static_cast<double>(data_->batches[batch].size());
  }

  absl::Status Initial(std::span<double> theta) const override {
    std::copy(start_.begin(), start_.end(), theta.begin());
    return absl::OkStatus();
  }

  absl::StatusOr<double> Loss(DataRef data, std::span<const double> theta) const override {
    const auto& examples = Of(data);
    const Turn turn(*this);
    turn.seat->engine->stop = stop_;
    const std::vector<float> narrow(theta.begin(), theta.end());
    double sum = 0.0;
    for (size_t at = 0; at < examples.size(); at += static_cast<size_t>(together_)) {
      const std::span<const Example* const> some =
          std::span(examples).subspan(at, std::min(static_cast<size_t>(together_), examples.size() - at));
      ASSIGN_OR_RETURN(const std::vector<double> log_probs, turn.seat->engine->Score(narrow, some));
      sum += Judge(some, log_probs, data_->task.classify).loss * static_cast<double>(some.size());
    }
    return sum / static_cast<double>(examples.size());
  }

  absl::StatusOr<double> Gradient(DataRef data, std::span<const double> theta,
                                  std::span<double> gradient) const override {
    const Turn turn(*this);
    train::Engine& engine = *turn.seat->engine;
    engine.stop = stop_;
    const std::span<float> values = engine.theta();
    for (size_t i = 0; i < theta.size(); ++i) values[i] = static_cast<float>(theta[i]);
    std::vector<float> grad(theta.size());
    ASSIGN_OR_RETURN(const train::GradientResult result, engine.Gradient(Of(data), data_->task.classify, {}, grad));
    std::copy(grad.begin(), grad.end(), gradient.begin());
    return result.objective.loss;
  }

  void Describe(const train::SchemeSpec& scheme) {
    Sha256 sha;
    sha.Update(std::as_bytes(std::span(start_)));
    for (const auto* sets : {&data_->batches, &data_->evaluations}) {
      for (const auto& examples : *sets) Add(examples, &sha);
    }
    fingerprint_ = Cat("language model, ", scheme.name, ", ", start_.size(), " parameters, ", batches(), " batches, ",
                       sha.FinishHex().substr(0, 16));
  }
  void SetStop(std::function<bool()> stop) { stop_ = std::move(stop); }

 private:
  /// A seat for the time of one call.
  struct Turn {
    explicit Turn(const LanguageModel& model) : of(model) {
      {
        std::unique_lock lock(of.mutex_);
        of.freed_.wait(lock, [&] { return !of.free_.empty(); });
        seat = of.free_.back();
        of.free_.pop_back();
      }
      nn::SetThreads(of.threads_);  // of this thread
    }
    ~Turn() {
      const std::lock_guard lock(of.mutex_);
      of.free_.push_back(seat);
      of.freed_.notify_one();
    }
    const LanguageModel& of;
    Seat* seat = nullptr;
  };

  const std::vector<const Example*>& Of(DataRef data) const {
    return data.part == DataRef::Part::kBatch ? data_->batches[data.index] : data_->evaluations[data.index];
  }
  static void Add(const std::vector<const Example*>& examples, Sha256* sha) {
    for (const Example* example : examples) {
      for (const train::Sequence& sequence : example->sequences) {
        sha->Update(std::as_bytes(std::span(sequence.ids)));
        for (const train::Pick& pick : sequence.picks) {
          const int64_t numbers[] = {pick.row, pick.target, pick.candidate, example->correct};
          sha->Update(std::as_bytes(std::span(numbers)));
        }
      }
    }
  }

  const std::unique_ptr<Data> data_;
  const std::vector<std::unique_ptr<Seat>> seats_;
  const int together_, threads_;
  std::function<bool()> stop_;
  std::vector<float> start_;
  std::string fingerprint_;
  mutable std::mutex mutex_;
  mutable std::condition_variable freed_;
  mutable std::vector<Seat*> free_;
};

absl::StatusOr<std::unique_ptr<Seat>> MakeSeat(const SampleOrderSpec& spec) {
  auto seat = std::make_unique<Seat>();
  ASSIGN_OR_RETURN(seat->files, nn::LoadModel(spec.model));
  ASSIGN_OR_RETURN(seat->engine, train::Engine::Create(&seat->files, spec.scheme, spec.seed));
  return seat;
}

absl::Status CheckIds(const train::TaskData& task, const nn::ModelConfig& config) {
  for (const auto* set : {&task.train, &task.dev}) {
    for (const Example& example : *set) {
      for (const train::Sequence& sequence : example.sequences) {
        RETURN_IF_ERROR(nn::CheckIds(config, sequence.ids));
        for (const train::Pick& pick : sequence.picks) {
          if (pick.target >= config.vocab)
            return InvalidArgument("tokenizer: token ", pick.target, " is not below the model's vocabulary ",
                                   config.vocab);
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Data>> MakeData(const SampleOrderSpec& spec, const nn::ModelConfig& config) {
  auto data = std::make_unique<Data>();
  ASSIGN_OR_RETURN(const auto tokenizer, nn::LoadTokenizer(spec.model));
  ASSIGN_OR_RETURN(data->task, train::LoadTask(spec.task, *tokenizer, config));
  RETURN_IF_ERROR(CheckIds(data->task, config));
  const auto needed = static_cast<size_t>(spec.batches) * static_cast<size_t>(spec.batch);
  if (data->task.train.size() < needed)
    return InvalidArgument("batches: ", spec.batches, " of ", spec.batch, " examples are ", needed, "; task.train has ",
                           data->task.train.size());
  if (data->task.dev.size() < static_cast<size_t>(spec.evaluations))
    return InvalidArgument("evaluations: ", spec.evaluations, "; task.dev has ", data->task.dev.size(), " examples");
  for (size_t i = 0; i < needed; ++i) {
    if (i % static_cast<size_t>(spec.batch) == 0) data->batches.emplace_back();
    data->batches.back().push_back(&data->task.train[i]);
  }
  const size_t all = data->task.dev.size(), parts = static_cast<size_t>(spec.evaluations);
  for (size_t e = 0; e < parts; ++e) {
    data->evaluations.emplace_back();
    for (size_t i = all * e / parts; i < all * (e + 1) / parts; ++i)
      data->evaluations.back().push_back(&data->task.dev[i]);
  }
  return data;
}

}  // namespace

absl::StatusOr<LanguageProblem> MakeLanguageProblem(const SampleOrderSpec& spec, const std::function<bool()>& stop,
                                                    const std::function<void(const std::string&)>& log) {
  std::vector<std::unique_ptr<Seat>> seats;
  ASSIGN_OR_RETURN(seats.emplace_back(), MakeSeat(spec));
  const nn::ModelFiles& files = seats[0]->files;
  ASSIGN_OR_RETURN(std::unique_ptr<Data> data, MakeData(spec, files.config));
  const int threads = ThreadCount(spec.threads);
  const int together = files.weights.parameters() <= kSmall ? std::min(threads, spec.batches) : 1;
  while (static_cast<int>(seats.size()) < together) {
    ASSIGN_OR_RETURN(seats.emplace_back(), MakeSeat(spec));
  }
  LanguageProblem problem;
  for (const tier::BlockTensor& tensor : seats[0]->engine->trainable())
    problem.tensors.push_back({tensor.name, {tensor.shape.begin(), tensor.shape.end()}});
  log(Cat(spec.task.name, ": ", data->task.train.size(), " train, ", data->task.dev.size(), " held-out examples; ",
          seats[0]->engine->layout().size(), " of ", files.weights.parameters(), " parameters train (",
          spec.scheme.name, "); ", together, " gradients at a time"));
  auto model =
      std::make_shared<LanguageModel>(std::move(data), std::move(seats), spec.batch, std::max(1, threads / together));
  model->Describe(spec.scheme);
  model->SetStop(stop);
  problem.model = std::move(model);
  return problem;
}

}  // namespace optod::order
