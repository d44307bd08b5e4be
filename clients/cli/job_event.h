#pragma once
/// One line of `optoctl job watch`.

#include <string>

#include "optod/v1/job.pb.h"

namespace optod::cli {

/// "succeeded".
std::string StateText(const v1::Job& job);

/// "step 12  running  40 %  loss 0.6931  1.2 s/step", and for a job with tiers "  overlap 0.98  read 391.6 MiB  written
/// 48.9 MiB" (of computing and moving; bytes since the worker's start). What an event does not say is left out.
std::string EventText(const v1::JobEvent& event);

}  // namespace optod::cli
