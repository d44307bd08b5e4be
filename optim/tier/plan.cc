#include "optim/tier/plan.h"

#include <algorithm>
#include <iomanip>
#include <limits>
#include <sstream>

#include "base/status.h"
#include "optim/tier/direct_file.h"

namespace optod::tier {
namespace {

constexpr int kMostSlots = 3;

std::string MiB(uint64_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << static_cast<double>(bytes) / (1 << 20) << " MiB";
  return out.str();
}

uint64_t Limit(int64_t budget) {
  return budget < 0 ? std::numeric_limits<uint64_t>::max() : static_cast<uint64_t>(budget);
}

/// Chooses units of together at most `budget` bytes, spread evenly over the order of visits, so that what moves keeps
/// coming at one rate.
std::vector<bool> Spread(const std::vector<uint64_t>& bytes, const std::vector<bool>& candidates, uint64_t budget) {
  std::vector<bool> chosen(bytes.size());
  uint64_t total = 0, used = 0, seen = 0;
  for (size_t u = 0; u < bytes.size(); ++u) total += candidates[u] ? bytes[u] : 0;
  const double share = total <= budget ? 1.0 : static_cast<double>(budget) / static_cast<double>(total);
  const auto take = [&](size_t u) {
    if (!candidates[u] || chosen[u] || used + bytes[u] > budget) return;
    chosen[u] = true;
    used += bytes[u];
  };
  for (size_t u = 0; u < bytes.size(); ++u) {
    seen += candidates[u] ? bytes[u] : 0;
    if (static_cast<double>(used + bytes[u]) <= share * static_cast<double>(seen) + 0.5) take(u);
  }
  for (size_t u = 0; u < bytes.size(); ++u) take(u);
  return chosen;
}

class Planner {
 public:
  Planner(const std::vector<Unit>& units, int states, const TierRequest& request, const Rates& rates)
      : units_(units), rates_(rates) {
    plan_.request = request;
    plan_.states = states;
    plan_.direct = !request.separate_device && Lossless(request.codec);
    for (const Unit& unit : units) {
      layouts_.emplace_back(unit, states, request.codec);
      plan_.parameters += unit.floats();
    }
    plan_.homes.assign(units.size(), Home::kDisk);
  }

  absl::StatusOr<Plan> Go() {
    RETURN_IF_ERROR(ChooseSlots());
    RETURN_IF_ERROR(ChooseHomes());
    CountBytes();
    PredictTimes();
    return plan_;
  }

 private:
  uint64_t SlotBytes(size_t u) const {
    return plan_.direct ? kPage + layouts_[u].record_bytes() : RoundUp(layouts_[u].slot_floats() * sizeof(float));
  }
  uint64_t RecordBytes(size_t u) const { return layouts_[u].record_bytes(); }
  template <class Bytes>
  uint64_t Largest(Bytes bytes) {
    uint64_t most = 0;
    for (size_t u = 0; u < units_.size(); ++u) {
      if (bytes(u) <= most) continue;
      most = bytes(u);
      plan_.largest = units_[u].name;
    }
    return most;
  }
  uint64_t CopyBytes() {
    return Largest([&](size_t u) { return units_[u].trainable ? RoundUp(units_[u].floats() * sizeof(float)) : 0; });
  }
  /// A separate device decodes what it was sent, and encodes what it sends, in its own memory.
  uint64_t CodedBytesOfASlot() {
    if (!plan_.request.separate_device || Lossless(plan_.request.codec)) return 0;
    return Largest([&](size_t u) { return units_[u].resident ? 0 : RecordBytes(u); });
  }
  /// Of units that live where they are computed on, whatever the budgets, and of what is held beside them.
  uint64_t ResidentBytes() const {
    uint64_t sum = RoundUp(plan_.request.beside);
    for (size_t u = 0; u < units_.size(); ++u) sum += units_[u].resident ? SlotBytes(u) : 0;
    return sum;
  }
  /// Everything else stays there too.
  bool AllInPlace() const {
    uint64_t sum = 0;
    for (size_t u = 0; u < units_.size(); ++u) sum += units_[u].resident ? 0 : plan_.direct ? RecordBytes(u) : SlotBytes(u);
    if (plan_.direct) return sum <= Limit(plan_.request.host_budget);
    return plan_.request.separate_device && plan_.request.device_budget < 0;
  }

  absl::Status ChooseSlots() {
    copy_ = CopyBytes();
    const bool in_place = AllInPlace();
    const uint64_t coded = CodedBytesOfASlot();
    slot_ = Largest([&](size_t u) { return units_[u].resident ? 0 : SlotBytes(u); }) + coded;
    const uint64_t resident = ResidentBytes();
    const uint64_t budget = Limit(plan_.request.device_budget);
    const int asked = plan_.request.slots;
    const int most = in_place ? 0 : asked > 0 ? asked : kMostSlots, least = in_place ? 0 : asked > 0 ? asked : 1;
    for (int copies : {2, 1}) {
      if (copies == 2 && !plan_.request.fused && !plan_.request.both) continue;
      if (copies == 1 && plan_.request.both) continue;
      for (int slots = most; slots >= (copies == 2 ? std::min(most, std::max(least, 2)) : least); --slots) {
        if (resident + static_cast<uint64_t>(slots) * slot_ + static_cast<uint64_t>(copies) * copy_ > budget) continue;
        plan_.slots = slots;
        plan_.copies = copies;
        return absl::OkStatus();
      }
    }
    const uint64_t smallest = resident + static_cast<uint64_t>(plan_.request.both ? std::min(most, std::max(least, 2)) : least) * slot_ +
                              (plan_.request.both ? 2 : 1) * copy_;
    return ResourceExhausted("tier.device_budget: ", MiB(budget), " is below ", MiB(smallest), " (", smallest,
                             " bytes), ", least <= 1 ? "a slot" : Cat(least, " slots"),
                             " and a perturbed copy of the largest unit, \"", plan_.largest, "\"");
  }

  absl::Status ChooseHomes() {
    std::vector<uint64_t> slots(units_.size()), records(units_.size());
    for (size_t u = 0; u < units_.size(); ++u) slots[u] = SlotBytes(u), records[u] = RecordBytes(u);
    std::vector<bool> left(units_.size(), true);
    uint64_t device =
        ResidentBytes() + static_cast<uint64_t>(plan_.slots) * slot_ + static_cast<uint64_t>(plan_.copies) * copy_;
    for (size_t u = 0; u < units_.size(); ++u) {
      if (!units_[u].resident) continue;
      plan_.homes[u] = Home::kDevice;
      left[u] = false;
    }
    if (plan_.request.separate_device) {
      const uint64_t room = Limit(plan_.request.device_budget) - device;
      device += Settle(slots, room, Home::kDevice, &left);
    }
    const uint64_t host_limit = Limit(plan_.request.host_budget);
    const uint64_t staging = plan_.direct ? 0 : static_cast<uint64_t>(plan_.slots) * (kPage + *std::max_element(records.begin(), records.end()));
    uint64_t host = Settle(records, host_limit, Home::kHost, &left);
    if (std::find(left.begin(), left.end(), true) != left.end()) {
      if (!plan_.request.disk) return NoDisk(records);
      if (staging > 0) {  // once more, with room for it
        if (staging > host_limit)
          return ResourceExhausted("tier.host_budget: ", MiB(host_limit), " is below ", MiB(staging), " (", staging,
                                   " bytes), the staging of ", plan_.slots, " slots for the disk");
        for (size_t u = 0; u < units_.size(); ++u) left[u] = plan_.homes[u] != Home::kDevice;
        host = staging + Settle(records, host_limit - staging, Home::kHost, &left);
      }
    }
    // More slots than units that move would read a unit before it is written.
    uint64_t moving = 0;
    for (size_t u = 0; u < units_.size(); ++u) {
      const bool in_place = plan_.homes[u] == Home::kDevice || (plan_.direct && plan_.homes[u] == Home::kHost);
      moving += left[u] || !in_place;
    }
    const uint64_t idle = static_cast<uint64_t>(plan_.slots) - std::min(static_cast<uint64_t>(plan_.slots), moving);
    const bool staged = std::find(left.begin(), left.end(), true) != left.end();
    plan_.device_peak = device - idle * slot_;
    plan_.host_peak = host - (staged ? idle * (staging / std::max(1, plan_.slots)) : 0);
    plan_.slots -= static_cast<int>(idle);
    for (size_t u = 0; u < units_.size(); ++u) {
      if (left[u]) plan_.homes[u] = Home::kDisk;
      if (plan_.homes[u] == Home::kDisk) plan_.disk_bytes += 2 * (kPage + records[u]);
    }
    if (plan_.disk_bytes > 0) plan_.disk_bytes += kPage;
    return absl::OkStatus();
  }
  uint64_t Settle(const std::vector<uint64_t>& bytes, uint64_t budget, Home home, std::vector<bool>* left) {
    const std::vector<bool> chosen = Spread(bytes, *left, budget);
    uint64_t used = 0;
    for (size_t u = 0; u < units_.size(); ++u) {
      if (!chosen[u]) continue;
      plan_.homes[u] = home;
      (*left)[u] = false;
      used += bytes[u];
    }
    return used;
  }
  absl::Status NoDisk(const std::vector<uint64_t>& records) const {
    uint64_t all = 0;
    for (size_t u = 0; u < units_.size(); ++u) all += plan_.homes[u] == Home::kDevice ? 0 : records[u];
    return ResourceExhausted("tier.host_budget: ", MiB(Limit(plan_.request.host_budget)), " is below the ", MiB(all), " (", all,
                             " bytes) of the parameters, and tier.disk names no folder");
  }

  void CountBytes() {
    const auto again = [&](uint64_t bytes) { return static_cast<uint64_t>(plan_.request.sweeps * static_cast<double>(bytes)); };
    for (size_t u = 0; u < units_.size(); ++u) {
      const bool disk = plan_.homes[u] == Home::kDisk, host = plan_.homes[u] == Home::kHost;
      const uint64_t back = units_[u].trainable ? RecordBytes(u) : 0;
      if (disk) {
        plan_.read += again(kPage + RecordBytes(u));
        plan_.written += back == 0 ? 0 : (kPage + back) / static_cast<uint64_t>(plan_.request.write_every);
      }
      if (plan_.direct || !(disk || host)) continue;
      plan_.uploaded += again(RecordBytes(u));
      plan_.offloaded += disk ? back / static_cast<uint64_t>(plan_.request.write_every) : back;
    }
  }
  void PredictTimes() {
    if (rates_.compute <= 0) return;
    plan_.compute_seconds = rates_.compute * static_cast<double>(plan_.parameters);
    if (rates_.disk_read > 0) plan_.disk_seconds += static_cast<double>(plan_.read) / rates_.disk_read;
    if (rates_.disk_write > 0) plan_.disk_seconds += static_cast<double>(plan_.written) / rates_.disk_write;
    if (rates_.link > 0)
      plan_.link_seconds = static_cast<double>(std::max(plan_.uploaded, plan_.offloaded)) / rates_.link;
    const double slowest = std::max(plan_.disk_seconds, plan_.link_seconds);
    plan_.step_seconds = std::max(plan_.compute_seconds, slowest);
    plan_.rho = slowest > 0 ? std::min(1.0, plan_.compute_seconds / slowest) : 1.0;
    plan_.limit = plan_.compute_seconds >= slowest ? "compute" : plan_.disk_seconds >= plan_.link_seconds ? "disk" : "link";
  }

  const std::vector<Unit>& units_;
  const Rates rates_;
  std::vector<RecordLayout> layouts_;
  uint64_t slot_ = 0, copy_ = 0;
  Plan plan_;
};

}  // namespace

absl::StatusOr<Plan> MakePlan(const std::vector<Unit>& units, int states, bool mezo, const TierRequest& request,
                              const Rates& rates) {
  if (units.empty()) return InvalidArgument("units: none");
  if (request.slots < 0) return InvalidArgument("tier.slots: ", request.slots, " must be >= 0");
  if (request.write_every < 1) return InvalidArgument("tier.write_every: ", request.write_every, " must be >= 1");
  if (mezo && request.write_every > 1)
    return InvalidArgument("tier.write_every: ", request.write_every, " with optimizer.residue \"mezo\"; must be 1");
  if (mezo && !Lossless(request.codec))
    return InvalidArgument("tier.codec: \"", CodecName(request.codec), "\" with optimizer.residue \"mezo\"; must be none");
  return Planner(units, states, request, rates).Go();
}

std::string PlanText(const Plan& p) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(3);
  out << "parameters  " << p.parameters << " in " << p.homes.size() << " units: " << p.Count(Home::kDevice)
      << " on the device, " << p.Count(Home::kHost) << " on the host, " << p.Count(Home::kDisk) << " on disk; codec "
      << CodecName(p.request.codec) << "\n";
  out << "device      " << MiB(p.device_peak) << " at most: " << p.slots << " slots, " << p.copies
      << " perturbed copies (largest unit: " << p.largest << ")\n";
  out << "host        " << MiB(p.host_peak) << " at most\n";
  if (p.disk_bytes > 0)
    out << "disk        " << MiB(p.disk_bytes) << " of space; a step reads " << MiB(p.read) << ", writes " << MiB(p.written)
        << " (every " << p.request.write_every << ")\n";
  if (p.request.sweeps > 1)
    out << "sweeps      every unit comes by " << p.request.sweeps << " times a step\n";
  if (p.uploaded > 0)
    out << "link        a step uploads " << MiB(p.uploaded) << ", offloads " << MiB(p.offloaded) << "\n";
  if (!p.limit.empty())
    out << "step        " << p.step_seconds << " s at least, limited by " << p.limit << ": computing "
        << p.compute_seconds << " s, disk " << p.disk_seconds << " s, link " << p.link_seconds << " s; overlap " << p.rho
        << "\n";
  return out.str();
}

}  // namespace optod::tier
