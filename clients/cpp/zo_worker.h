#pragma once
/// A zeroth-order worker: holds the parameters, evaluates the loss where the server says, and follows the session by
/// replay. Only seeds and scalars travel; the directions are regenerated here (optim/zo/stream.h), bit for bit as on
/// every other machine.
///
///   ask   -> probe (step, query, eps)     theta + eps*z and theta - eps*z (or theta) are evaluated
///   tell  <- two losses
///   ask   -> replay: theta <- decay * theta (decayed tensors), then theta <- theta - coefficient * z, query by query,
///   in float32
///
/// For one thread; any number of workers may serve one session. Memory: theta and one perturbed copy, 8 bytes a
/// parameter.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cpp/client.h"
#include "clients/cpp/layout.h"

namespace optod::client {

/// Applies one update to a flat float32 buffer, as the header comment says. Exposed so that others can check it.
void ApplyReplayStep(const v1::ReplayStep& step, uint64_t seed, const std::vector<Place>& places,
                     std::span<float> theta);

/// out = theta + scale * z(seed, step, query). Sizes equal.
void Perturb(uint64_t seed, uint32_t step, uint32_t query, float scale, const std::vector<Place>& places,
             std::span<const float> theta, std::span<float> out);

class ZeroOrderWorker {
 public:
  /// Loss at a point; the span is the whole flat buffer in layout order. NaN and Inf are told as they are (the server
  /// skips the step).
  using Loss = std::function<absl::StatusOr<double>(std::span<const float>)>;

  struct Options {
    std::string session;
    /// Parameters of version 0, flat, in layout order. Needed when the session has no values on the server; kept for a
    /// resync.
    std::vector<float> initial;
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

  Client& client_;
  Options options_;
  v1::Session session_;
  std::vector<Place> places_;
  std::vector<float> theta_, scratch_;
  int64_t version_ = 0;
};

}  // namespace optod::client
