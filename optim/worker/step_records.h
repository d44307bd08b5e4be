#pragma once
/// A record of the replay log as it travels between workers and server (worker.proto).

#include "optim/train/replay_log.h"
#include "optod/v1/worker.pb.h"

namespace optod::worker {

v1::StepRecord ToProto(const train::ReplayRecord& record);
train::ReplayRecord FromProto(const v1::StepRecord& record);

}  // namespace optod::worker
