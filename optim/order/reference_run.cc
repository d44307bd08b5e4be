#include "optim/order/reference_run.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "base/crc32c.h"
#include "base/status.h"
#include "optim/order/kernels.h"

namespace optod::order {
namespace {

constexpr char kMagic[8] = {'o', 'p', 't', 'o', 'd', 't', 'r', '1'};
struct FileHeader {
  char magic[8];
  uint64_t n;
  uint32_t positions;
  uint32_t width;
  uint32_t checksum;
  uint32_t reserved;
};

}  // namespace

Trajectory::Trajectory(size_t n, int positions, Precision precision)
    : n_(n), positions_(positions), precision_(precision) {
  const size_t count = n * (static_cast<size_t>(positions) + 1);
  if (precision == Precision::kFloat32) {
    narrow_.resize(count);
  } else {
    wide_.resize(count);
  }
}

void Trajectory::Read(int t, size_t begin, std::span<double> out) const {
  const size_t at = static_cast<size_t>(t) * n_ + begin;
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = precision_ == Precision::kFloat32 ? static_cast<double>(narrow_[at + i]) : wide_[at + i];
  }
}

std::vector<double> Trajectory::Row(int t) const {
  std::vector<double> row(n_);
  Read(t, 0, row);
  return row;
}

void Trajectory::SetRow(int t, std::span<const double> theta) {
  for (size_t i = 0; i < n_; ++i) {
    if (precision_ == Precision::kFloat32) {
      narrow_[static_cast<size_t>(t) * n_ + i] = static_cast<float>(theta[i]);
    } else {
      wide_[static_cast<size_t>(t) * n_ + i] = theta[i];
    }
  }
}

uint32_t Trajectory::Checksum() const {
  return Crc32c(std::as_bytes(std::span(wide_)), Crc32c(std::as_bytes(std::span(narrow_))));
}

absl::Status Trajectory::Save(Fs& fs, const std::string& path) const {
  FileHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.n = n_;
  header.positions = static_cast<uint32_t>(positions_);
  header.width = precision_ == Precision::kFloat32 ? 4 : 8;
  header.checksum = Checksum();
  ASSIGN_OR_RETURN(const auto file, fs.Stage(path.substr(0, path.rfind('/'))));
  RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(&header, 1))));
  RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(narrow_))));
  RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(wide_))));
  return file->Commit(path);
}

absl::StatusOr<Trajectory> Trajectory::Load(Fs& fs, const std::string& path, size_t n, int positions,
                                            Precision precision) {
  FileHeader header;
  RETURN_IF_ERROR(fs.ReadRange(path, 0, std::as_writable_bytes(std::span(&header, 1))));
  const uint32_t width = precision == Precision::kFloat32 ? 4 : 8;
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.n != n || header.width != width ||
      header.positions != static_cast<uint32_t>(positions)) {
    return DataLoss("reference: the file does not hold ", positions, " positions of ", n, " parameters");
  }
  // Before anything is allocated by what a damaged file claims.
  ASSIGN_OR_RETURN(const int64_t size, fs.FileSize(path));
  const auto rows = static_cast<uint64_t>(positions) + 1,
             numbers = (static_cast<uint64_t>(size) - sizeof header) / width;
  if (numbers / rows != n || numbers % rows != 0 || numbers * width + sizeof header != static_cast<uint64_t>(size)) {
    return DataLoss("reference: ", size, " bytes do not hold ", positions, " positions of ", n, " parameters");
  }
  Trajectory out(n, positions, precision);
  RETURN_IF_ERROR(fs.ReadRange(path, sizeof header, std::as_writable_bytes(std::span(out.narrow_))));
  RETURN_IF_ERROR(fs.ReadRange(path, sizeof header, std::as_writable_bytes(std::span(out.wide_))));
  if (out.Checksum() != header.checksum) return DataLoss("reference: the checksum of the parameters does not match");
  return out;
}

namespace {

absl::Status CheckFinite(double loss, std::span<const double> gradient, int t, int batch) {
  bool finite = std::isfinite(loss);
  for (const double g : gradient) finite = finite && std::isfinite(g);
  if (finite) return absl::OkStatus();
  return FailedPrecondition("training: loss or gradient of batch ", batch, " at position ", t,
                            " is not finite; a smaller lr may help");
}

void RoundTo(Precision precision, std::span<double> theta) {
  if (precision == Precision::kFloat64) return;
  for (double& value : theta) value = static_cast<float>(value);
}

}  // namespace

absl::Status Training::Start() {
  RETURN_IF_ERROR(model_.Initial(theta_));
  RoundTo(model_.precision(), theta_);
  return absl::OkStatus();
}

absl::Status Training::Step(int batch) {
  const int t = position_;
  ASSIGN_OR_RETURN(loss_, model_.Gradient(Batch(batch), theta_, gradient_));
  RETURN_IF_ERROR(CheckFinite(loss_, gradient_, t, batch));
  const kernels::Step step = kernels::MakeStep(optimizer_, lr_[static_cast<size_t>(t)], t);
  kernels::Best().direct_double(step, gradient_.data(), theta_.data(), m_.data(), v_.data(), direction_.data(),
                                theta_.size());
  for (size_t i = 0; i < theta_.size(); ++i) theta_[i] -= step.lr * (direction_[i] + step.decoupled_decay * theta_[i]);
  RoundTo(model_.precision(), theta_);
  ++position_;
  return absl::OkStatus();
}

absl::StatusOr<TrainingRun> Train(const Model& model, const Optimizer& optimizer, std::span<const double> lr,
                                  std::span<const int> order, const Control& control, Trajectory* trajectory) {
  const auto begin = std::chrono::steady_clock::now();
  Training training(model, optimizer, lr);
  RETURN_IF_ERROR(training.Start());
  if (trajectory != nullptr) trajectory->SetRow(0, training.parameters());
  TrainingRun run;
  for (size_t t = 0; t < order.size(); ++t) {
    if (control.stop.stop_requested()) return absl::CancelledError("stopped on request");
    RETURN_IF_ERROR(training.Step(order[t]));
    if (trajectory != nullptr) trajectory->SetRow(static_cast<int>(t) + 1, training.parameters());
    run.losses.push_back(training.loss());
    if (control.progress) {
      control.progress(static_cast<int64_t>(t) + 1, static_cast<int64_t>(order.size()),
                       std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
  }
  run.parameters = training.parameters();
  return run;
}

}  // namespace optod::order
