#pragma once
/// A zeroth-order worker: holds the parameters, evaluates the loss where the server says, and follows the session by
/// replay. Only seeds and scalars travel; the directions are regenerated here (optim/zo/stream.h), bit for bit as on
/// every other machine.
///
///   ask   -> probe (step, query, eps)     theta + eps*z and theta - eps*z (or theta) are evaluated; zo-sgd-cons: then both
///                                         candidates and theta; forward-grad: the derivative along z
///   tell  <- the losses
///   ask   -> replay: ReplayStep as its comment says, in float32 (optim/zo/replay.h)
///
/// For one thread; any number of workers may serve one session. Memory: theta and one perturbed copy, 8 bytes a
/// parameter, and the moments of zo-sgd-mmt (4) or zo-adam (8).

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cpp/client.h"
#include "clients/cpp/layout.h"
#include "optim/zo/replay.h"
#include "optim/zo/zo_optimizer.h"

namespace optod::client {

/// The update of the wire as optim/zo applies it.
zo::UpdateScalars ScalarsOf(const v1::ReplayStep& step);
/// The session's settings as optim/zo takes them. INVALID_ARGUMENT, NOT_FOUND: not a zeroth-order optimizer that this
/// library knows.
absl::StatusOr<zo::ZoHyper> HyperOf(const v1::OptimizerSpec& optimizer);

/// out = theta + scale * z(seed, step, query). Sizes equal.
void Perturb(uint64_t seed, uint32_t step, uint32_t query, float scale, const std::vector<Place>& places,
             std::span<const float> theta, std::span<float> out);

class ZeroOrderWorker {
 public:
  /// Loss at a point; the span is the whole flat buffer in layout order. NaN and Inf are told as they are (the server
  /// skips the step).
  using Loss = std::function<absl::StatusOr<double>(std::span<const float>)>;
  /// Loss and its derivative along z, by forward-mode differentiation or any exact means.
  using Derivative = std::function<absl::StatusOr<zo::Jvp>(std::span<const float> theta, std::span<const float> z)>;

  struct Options {
    std::string session;
    /// Parameters of version 0, flat, in layout order. Needed when the session has no values on the server; kept for a
    /// resync.
    std::vector<float> initial;
    Derivative derivative;                  ///< forward-grad needs it
    std::string worker;                     ///< name in leases; "" = the peer's address
    std::chrono::milliseconds wait{5'000};  ///< how long an ask waits when all probes of the step are leased to others
  };
  /// Reads the session; starts from the server's values at the head when it has them, else from `initial`.
  /// INVALID_ARGUMENT: not all tensors are float32, or `initial` has another size. FAILED_PRECONDITION: neither has
  /// values.
  static absl::StatusOr<std::unique_ptr<ZeroOrderWorker>> Attach(Client& client, Options options);

  struct Outcome {
    int probes = 0;            ///< evaluated in this call; 0 = all are with other workers, or the budget is spent
    double loss = 0;           ///< mean of (plus + minus) / 2, or of `minus` when one-sided
    int64_t head_version = 0;  ///< after the tell
    bool budget_spent = false;
  };
  /// One round trip: ask for `count` probes, catch up, evaluate, tell.
  absl::StatusOr<Outcome> Step(const Loss& loss, int count = 1);
  /// Applies what leads to the head without evaluating anything.
  absl::Status CatchUp();

  std::span<const float> theta() const { return theta_; }
  int64_t version() const { return version_; }

 private:
  ZeroOrderWorker(Client& client, Options options) : client_(client), options_(std::move(options)) {}
  absl::StatusOr<v1::AskResponse> AskAndFollow(v1::AskRequest request);
  absl::Status Reload();
  absl::Status ReloadState();
  absl::Status Evaluate(const v1::Probe& probe, const Loss& loss, v1::ProbeResult* result, double* mean);
  absl::StatusOr<double> LossOfCandidate(const v1::Probe& probe, float sign, const Loss& loss);

  Client& client_;
  Options options_;
  v1::Session session_;
  std::vector<Place> places_;
  zo::ZoLayout layout_;
  zo::ZoHyper hyper_;
  zo::ZoState<float> state_;
  std::vector<float> theta_, scratch_;
  int64_t version_ = 0;
};

}  // namespace optod::client
