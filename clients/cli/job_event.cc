#include "clients/cli/job_event.h"

#include <algorithm>
#include <cctype>
#include <cstdio>

#include "base/status.h"
#include "clients/cli/output.h"

namespace optod::cli {
namespace {

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

}  // namespace

std::string StateText(const v1::Job& job) {
  std::string text = v1::Job::State_Name(job.state());
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

std::string EventText(const v1::JobEvent& event) {
  std::string text = Cat("step ", event.step(), "  ", StateText(event.job()), "  ",
                         static_cast<int>(event.job().progress() * 100), " %");
  const auto add = [&](const char* name, auto show) {
    if (const auto it = event.metrics().find(name); it != event.metrics().end()) text += "  " + show(it->second);
  };
  const auto bytes = [](const char* what) {
    return [what](double value) { return Cat(what, " ", BytesText(static_cast<int64_t>(value))); };
  };
  add("loss", [](double value) { return "loss " + Number(value); });
  add("seconds_per_step", [](double value) { return Number(value) + " s/step"; });
  add("tier/overlap", [](double value) { return "overlap " + Number(value); });
  add("tier/read_bytes", bytes("read"));
  add("tier/written_bytes", bytes("written"));
  return text;
}

}  // namespace optod::cli
