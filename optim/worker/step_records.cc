#include "optim/worker/step_records.h"

namespace optod::worker {

v1::StepRecord ToProto(const train::ReplayRecord& record) {
  v1::StepRecord out;
  out.set_step(record.step);
  out.set_flags(record.flags);
  out.set_lr(record.lr);
  out.set_loss(record.loss);
  out.mutable_g()->Add(record.g.begin(), record.g.end());
  return out;
}

train::ReplayRecord FromProto(const v1::StepRecord& record) {
  return {static_cast<uint32_t>(record.step()), record.flags(), record.lr(), record.loss(), {record.g().begin(), record.g().end()}};
}

}  // namespace optod::worker
