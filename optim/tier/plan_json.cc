#include <nlohmann/json.hpp>

#include "optim/tier/plan.h"

namespace optod::tier {

std::string PlanJson(const Plan& p) {
  nlohmann::ordered_json json = {{"parameters", p.parameters},
                                 {"units", p.homes.size()},
                                 {"units_on_device", p.Count(Home::kDevice)},
                                 {"units_on_host", p.Count(Home::kHost)},
                                 {"units_on_disk", p.Count(Home::kDisk)},
                                 {"codec", CodecName(p.request.codec)},
                                 {"lossless", Lossless(p.request.codec)},
                                 {"slots", p.slots},
                                 {"copies", p.copies},
                                 {"optimizer_states", p.states},
                                 {"largest_unit", p.largest},
                                 {"device_peak_bytes", p.device_peak},
                                 {"host_peak_bytes", p.host_peak},
                                 {"disk_bytes", p.disk_bytes},
                                 {"write_every", p.request.write_every},
                                 {"sweeps", p.request.sweeps},
                                 {"step_bytes", {{"read", p.read}, {"written", p.written}, {"uploaded", p.uploaded}, {"offloaded", p.offloaded}}}};
  if (!p.limit.empty())
    json["step_seconds"] = {{"at_least", p.step_seconds}, {"compute", p.compute_seconds}, {"disk", p.disk_seconds},
                            {"link", p.link_seconds},     {"overlap", p.rho},             {"limit", p.limit}};
  return json.dump();
}

}  // namespace optod::tier
