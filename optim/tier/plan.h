#pragma once
/// What a tiered run will hold and move, decided before it starts: which unit lives where, how many slots, how many
/// bytes a step moves, what limits the speed. A run that cannot fit is refused here, with the smallest budget that works.
///
///   device   | slot 0 | slot 1 | .. | plus | minus | resident units, others that live there   <= device_budget
///            (a slot of a separate device with a lossy codec: the coded bytes too)
///   host     | units that live there (coded) | staging of the disk, one a slot    <= host_budget
///   disk     | the rest, twice |
///
/// On one memory (a CPU) with a lossless codec host units are computed on in place and the disk is read straight into the
/// slots: no staging, no copies. Time: a step takes at least the longest of computing and of each link (ZO2, Wang et
/// al., 2025: overlap); rho = computing / the longest link, at most 1 (1 = moving is free). Pure functions.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/tier/record.h"

namespace optod::tier {

enum class Home { kDevice, kHost, kDisk };

/// What is asked. Bytes; -1 = no limit.
struct TierRequest {
  int64_t device_budget = -1, host_budget = -1;
  bool disk = false;     ///< there is a disk to put units on
  int slots = 0;         ///< working slots; 0 = as many as fit, 3 at most (uploading, computing, offloading)
  Codec codec = Codec::kNone;
  int write_every = 1;   ///< a unit on disk is written each so many steps, and catches up when it is read
  bool separate_device = false;  ///< the device has a memory of its own (a GPU, or its rehearsal)
  bool fused = true;     ///< both perturbed copies in one pass; false: one buffer, two passes
  uint64_t beside = 0;   ///< bytes that the run holds on the device beside the units: bits of masks
  bool both = false;     ///< both copies must be there at once: block-wise estimation
  double sweeps = 1;     ///< how often a step has every unit come by: 2 for zo-sgd-cons; block-wise: about half the groups
};

/// Measured on the machine; 0 = unknown, and then no times are predicted.
struct Rates {
  double disk_read = 0, disk_write = 0;  ///< bytes a second
  double link = 0;                       ///< bytes a second, each way, between host and device
  double compute = 0;                    ///< seconds a parameter and step: passes, and both forwards of all queries
};

struct Plan {
  TierRequest request;
  std::vector<Home> homes;  ///< one a unit
  bool direct = true;       ///< one memory and lossless: the disk is read into the slots
  int slots = 0, copies = 2;
  int states = 0;
  std::string largest;                                         ///< name of the largest unit that moves, or is perturbed
  uint64_t device_peak = 0, host_peak = 0, disk_bytes = 0;     ///< bytes, activations apart
  uint64_t parameters = 0;                                     ///< floats
  uint64_t read = 0, written = 0, uploaded = 0, offloaded = 0; ///< bytes a step
  double compute_seconds = 0, disk_seconds = 0, link_seconds = 0, step_seconds = 0;  ///< a step; 0 = unknown
  double rho = 0;                                              ///< 0 = unknown
  std::string limit;                                           ///< "compute", "disk" or "link"; "" = unknown

  bool moves() const { return slots > 0; }
  size_t Count(Home home) const { return static_cast<size_t>(std::count(homes.begin(), homes.end(), home)); }
};

/// `states`: floats of optimizer state beside a parameter. `mezo`: Residue::kMezo. RESOURCE_EXHAUSTED: `tier.device_budget:
/// 20.0 MiB is below 29.7 MiB, a slot and a perturbed copy of the largest unit, "layers.0"`, `tier.host_budget: ... and no
/// disk is named`. INVALID_ARGUMENT: `tier.write_every: 4 with optimizer.residue "mezo"; must be 1`.
absl::StatusOr<Plan> MakePlan(const std::vector<Unit>& units, int states, bool mezo, const TierRequest& request,
                              const Rates& rates = {});

/// Several lines for people.
std::string PlanText(const Plan& plan);
/// One JSON object: bytes as numbers, homes counted.
std::string PlanJson(const Plan& plan);

/// Rates of the disk under `folder`: 64 MiB written and read past the page cache with `threads` threads.
absl::StatusOr<Rates> MeasureDisk(const std::string& folder, int threads);

}  // namespace optod::tier
