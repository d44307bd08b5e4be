#pragma once
/// A tiered run of the small model beside the resident one, and devices and files that misbehave.

#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "mlp_model.h"
#include "optim/tier/pipeline.h"
#include "optim/tier/streams_device.h"
#include "optim/tier/threads_device.h"
#include "optim/zo/stream.h"
#include "optim/zo/zo_optimizer.h"
#include "thread_accelerator.h"

namespace optod::tier {

/// A folder that goes with the object: in memory where that can be had, since these tests make thousands of small reads
/// and writes; or on a disk, past the page cache.
class TempFolder {
 public:
  explicit TempFolder(bool on_disk = false) {
    const bool memory = !on_disk && access("/dev/shm", W_OK) == 0;
    const std::filesystem::path parent = memory ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string name = (parent / "optod-tier-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline constexpr uint64_t kSeed = 4711;

/// A learning rate that changes every step, so that a late update with another step's rate shows.
inline double RateAt(double lr, uint32_t step) { return lr / (1.0 + 0.1 * step); }

/// ZoOptimizer over one vector in memory: what every tiered run must equal.
class Resident {
 public:
  Resident(const MlpModel& model, const zo::ZoHyper& hyper)
      : model_(model), hyper_(hyper), optimizer_(model.layout(), hyper), theta_(model.Start()) {}
  zo::StepResult Step(double factor = 1, const MaskSource* mask = nullptr) {
    MlpCompute compute(model_, step_);
    compute.factor = factor;
    std::shared_ptr<const zo::DirectionSource<float>> z = std::make_shared<zo::StreamDirection<float>>(kSeed, step_, model_.layout());
    if (mask != nullptr) z = std::make_shared<zo::MaskedDirection<float>>(z, BitsOf(*mask));
    optimizer_.update().set_lr(RateAt(hyper_.lr, step_++));
    return optimizer_.StepByRule(std::span<float>(theta_), *z,
                                 [&](std::span<const float> theta) { return compute.LossAt(theta); });
  }
  /// Block-wise.
  zo::StepResult Step(const std::vector<std::vector<size_t>>& groups, zo::BlockSchedule schedule) {
    MlpCompute compute(model_, step_);
    const zo::StreamDirection<float> z(kSeed, step_, model_.layout());
    optimizer_.update().set_lr(RateAt(hyper_.lr, step_++));
    return optimizer_.StepBlockwise(std::span<float>(theta_), z, [&](std::span<const float> theta) { return compute.LossAt(theta); },
                                    groups, schedule);
  }
  const std::vector<float>& theta() const { return theta_; }
  const zo::ZoState<float>& state() const { return optimizer_.update().state(); }

 private:
  std::shared_ptr<const zo::BitMask> BitsOf(const MaskSource& source) const {
    const zo::ZoLayout layout = model_.layout();
    auto mask = std::make_shared<zo::BitMask>(layout.size());
    for (size_t t = 0; t < layout.tensors(); ++t) {
      for (size_t i = 0; i < layout.tensor(t).size; ++i) {
        float z = 1;
        source.Zero(static_cast<uint32_t>(t), i, step_, {&z, 1});
        const uint8_t masked = z == 0;
        mask->Set(layout.offset(t) + i, {&masked, 1});
      }
    }
    return mask;
  }

  const MlpModel& model_;
  zo::ZoHyper hyper_;
  zo::ZoOptimizer<float> optimizer_;
  std::vector<float> theta_;
  uint32_t step_ = 0;
};

/// Waits a random while before and after every piece of work.
class DelayedDevice final : public Device {
 public:
  explicit DelayedDevice(uint32_t seed) : seed_(seed) {}
  Event Submit(Work work) override {
    uint32_t words[2];
    zo::FillBits({seed_, 0, 0}, 0, 2 * count_++, words);
    work.run = [run = std::move(work.run), before = words[0] % 400, after = words[1] % 400]() mutable {
      std::this_thread::sleep_for(std::chrono::microseconds(before));
      absl::Status status = run();
      std::this_thread::sleep_for(std::chrono::microseconds(after));
      return status;
    };
    return inner_.Submit(std::move(work));
  }
  absl::Status Wait(Event event) override { return inner_.Wait(event); }
  absl::Status Drain() override { return inner_.Drain(); }
  QueueTimes times() const override { return inner_.times(); }

 private:
  uint32_t seed_;
  uint64_t count_ = 0;
  ThreadsDevice inner_;
};

/// A file whose calls may be made to fail: the hook sees "read", "write", "reserve" or "sync" and may return an error.
/// ABORTED for a write: half of it is done, then the process is killed.
class FaultyFile final : public DirectFile {
 public:
  using Hook = std::function<absl::Status(const std::string& call)>;
  FaultyFile(std::unique_ptr<DirectFile> inner, Hook hook) : inner_(std::move(inner)), hook_(std::move(hook)) {}
  absl::Status Read(uint64_t offset, std::span<std::byte> out) override {
    const absl::Status status = hook_("read");
    return status.ok() ? inner_->Read(offset, out) : status;
  }
  absl::Status Write(uint64_t offset, std::span<const std::byte> data) override {
    const absl::Status status = hook_("write");
    if (absl::IsAborted(status)) {
      (void)inner_->Write(offset, data.first(data.size() / 2 / kPage * kPage));
      kill(getpid(), SIGKILL);
    }
    return status.ok() ? inner_->Write(offset, data) : status;
  }
  absl::Status Reserve(uint64_t bytes) override {
    const absl::Status status = hook_("reserve");
    return status.ok() ? inner_->Reserve(bytes) : status;
  }
  absl::Status Sync() override {
    const absl::Status status = hook_("sync");
    return status.ok() ? inner_->Sync() : status;
  }
  absl::StatusOr<uint64_t> Size() override { return inner_->Size(); }

 private:
  std::unique_ptr<DirectFile> inner_;
  Hook hook_;
};

/// How a tiered run is set up.
struct TierCase {
  std::string name;
  TierRequest request;
  double host_share = -1;  ///< of the parameters' bytes as host_budget; -1 = request's
  double device_share = -1;
  zo::ZoHyper hyper{};
  bool tied = true;
  int threads = 1;
  bool serial = false;
  int first_query = 0, evaluated = 0;
  std::vector<TensorGroup> groups{};
  bool coordinate = true;
  const MaskSource* mask = nullptr;
  bool accelerated = false;  ///< on a device with a memory of its own, for which the request asks
  Accelerator* accelerator = nullptr;  ///< this one (borrowed), the model on the host; else a ThreadAccelerator
};

inline uint64_t AllBytes(const std::vector<Unit>& units, int states, Codec codec) {
  uint64_t bytes = 0;
  for (const Unit& unit : units) bytes += RecordLayout(unit, states, codec).record_bytes();
  return bytes;
}

inline absl::StatusOr<Plan> PlanOf(const TierCase& c, const MlpModel& model) {
  TierRequest request = c.request;
  const int states = UnitPass::StatesOf(c.hyper);
  const auto share = [&](double part) {
    return static_cast<int64_t>(part * static_cast<double>(AllBytes(model.units(), states, request.codec)));
  };
  request.both = !c.groups.empty();
  if (c.host_share >= 0) request.host_budget = share(c.host_share);
  if (c.device_share >= 0) request.device_budget = share(c.device_share);
  return MakePlan(model.units(), states, c.hyper.residue == zo::Residue::kMezo, request);
}

/// The small model on the host, beside any accelerator: weights are copied out, unit by unit.
class CopiedCompute final : public BlockCompute {
 public:
  CopiedCompute(Accelerator* accelerator, MlpCompute* inner) : accelerator_(accelerator), inner_(inner) {}
  absl::Status Begin(int copies) override { return inner_->Begin(copies); }
  std::vector<Slice> Wanted() override { return inner_->Wanted(); }
  absl::Status Gathered(int copy, std::span<const float> values) override { return inner_->Gathered(copy, values); }
  absl::Status Forward(size_t unit, int copy, std::span<const float> weights) override {
    std::vector<float> here(weights.size());
    const absl::Status status = accelerator_->CopyToHost(std::as_bytes(weights), std::as_writable_bytes(std::span(here)));
    return status.ok() ? inner_->Forward(unit, copy, here) : status;
  }
  absl::StatusOr<std::vector<double>> Losses() override { return inner_->Losses(); }

 private:
  Accelerator* const accelerator_;
  MlpCompute* const inner_;
};

/// A pipeline with what it borrows.
struct TierRun {
  std::unique_ptr<ThreadAccelerator> accelerator;
  Accelerator* given = nullptr;
  std::unique_ptr<Device> device;
  std::unique_ptr<Pipeline> pipeline;
  absl::StatusOr<StepLosses> Step(const MlpModel& model, double lr, double factor = 1) {
    const uint32_t step = pipeline->history().steps();
    MlpCompute compute(model, step);
    compute.factor = factor;
    if (given != nullptr) {
      CopiedCompute copied(given, &compute);
      return pipeline->Step(RateAt(lr, step), copied);
    }
    if (accelerator == nullptr) return pipeline->Step(RateAt(lr, step), compute);
    EnqueuedCompute there(accelerator.get(), &compute);
    return pipeline->Step(RateAt(lr, step), there);
  }
  absl::StatusOr<std::vector<double>> Evaluate(const MlpModel& model, uint32_t batch) {
    MlpCompute compute(model, batch);
    if (given != nullptr) {
      CopiedCompute copied(given, &compute);
      return pipeline->Evaluate(copied);
    }
    if (accelerator == nullptr) return pipeline->Evaluate(compute);
    EnqueuedCompute there(accelerator.get(), &compute);
    return pipeline->Evaluate(there);
  }
};

/// `path`: of the block file. `initial`: nullptr = the model's start. `delays`: seed of an accelerator's.
inline absl::StatusOr<TierRun> StartRun(const TierCase& c, const MlpModel& model, const std::string& path,
                                        History history = {}, InitialValues initial = nullptr,
                                        std::unique_ptr<Device> device = nullptr,
                                        FaultyFile::Hook hook = nullptr, uint32_t delays = 17) {
  absl::StatusOr<Plan> plan = PlanOf(c, model);
  if (!plan.ok()) return plan.status();
  TierRun run;
  if (c.accelerator != nullptr) {
    run.given = c.accelerator;
    device = std::make_unique<StreamsDevice>(c.accelerator);
  } else if (c.accelerated) {
    run.accelerator = std::make_unique<ThreadAccelerator>(delays, 400);
    device = std::make_unique<StreamsDevice>(run.accelerator.get());
  }
  run.device = device == nullptr ? std::make_unique<ThreadsDevice>() : std::move(device);
  std::unique_ptr<DirectFile> file;
  if (plan->disk_bytes > 0) {
    auto opened = OpenDirectFile(path, 2);
    if (!opened.ok()) return opened.status();
    file = *std::move(opened);
    if (hook != nullptr) file = std::make_unique<FaultyFile>(std::move(file), std::move(hook));
  }
  if (initial == nullptr) {
    initial = [&model](size_t unit, std::span<float> slot) -> absl::StatusOr<Progress> {
      model.CopyUnit(unit, model.Start(), slot);
      return Progress{};
    };
  }
  PipelineOptions options;
  options.hyper = c.hyper;
  options.seed = kSeed;
  options.threads = c.threads;
  options.serial = c.serial;
  options.first_query = c.first_query;
  options.evaluated = c.evaluated;
  options.groups = c.groups;
  options.coordinate = c.coordinate;
  options.mask = c.mask;
  options.poison = true;
  options.accelerator = c.accelerator != nullptr ? c.accelerator : run.accelerator.get();
  auto pipeline = Pipeline::Create(model.units(), *plan, options, run.device.get(), std::move(file), std::move(history), initial);
  if (!pipeline.ok()) return pipeline.status();
  run.pipeline = *std::move(pipeline);
  return run;
}

/// Units whose bytes differ from `theta` (and m, v from `state`).
inline std::vector<std::string> Different(TierRun& run, const MlpModel& model, std::span<const float> theta,
                                          const zo::ZoState<float>* state = nullptr) {
  std::vector<std::string> names;
  const absl::Status status = run.pipeline->ForEachUnit([&](size_t unit, Progress, std::span<const float> slot) {
    const size_t floats = model.units()[unit].floats();
    bool same = model.SameBytes(unit, slot, theta);
    if (state != nullptr && !state->m.empty()) same = same && model.SameBytes(unit, slot.subspan(floats), state->m);
    if (state != nullptr && !state->v.empty()) same = same && model.SameBytes(unit, slot.subspan(2 * floats), state->v);
    if (!same) names.push_back(model.units()[unit].name);
    return absl::OkStatus();
  });
  if (!status.ok()) names.push_back(status.ToString());
  return names;
}

}  // namespace optod::tier
