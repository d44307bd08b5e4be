#pragma once
/// One attempt of a job: dials the server, gets the task, runs it, tells what happens. Knows gRPC and the trainer's
/// plain interface; LibTorch stays behind that.

#include <string>

#include "absl/status/status.h"

namespace optod::worker {

struct AttemptOptions {
  std::string server, job, token, version;
  int attempt = 0, rank = 0;
};

/// OK when the job's end was told, whatever it was. UNAVAILABLE: the server is gone; ABORTED, UNAUTHENTICATED: this
/// attempt is over.
absl::Status RunAttempt(const AttemptOptions& options);

}  // namespace optod::worker
