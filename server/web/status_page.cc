#include "server/web/status_page.h"

#include "base/status.h"

namespace optod::web {
namespace {

constexpr char kHead[] =
    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
    "content=\"width=device-width\">"
    "<title>optod</title><style>body{font:16px/1.5 sans-serif;max-width:44em;margin:2em auto;padding:0 "
    "1em;color:#222;background:#fff}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3em .8em .3em 0;border-bottom:1px solid "
    "#ddd;"
    "vertical-align:top}th{font-weight:normal;color:#666;width:14em}code{background:#f3f3f3;padding:.1em .3em}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}th{color:#999}th,td{border-color:#333}"
    "code{background:#222}a{color:#8bf}}</style></head><body>\n";

std::string Uptime(int64_t seconds) {
  if (seconds < 60) return Cat(seconds, " s");
  if (seconds < 3600) return Cat(seconds / 60, " min");
  if (seconds < 86400) return Cat(seconds / 3600, " h ", seconds % 3600 / 60, " min");
  return Cat(seconds / 86400, " d ", seconds % 86400 / 3600, " h");
}

std::string Row(const std::string& name, const std::string& html) {
  return "<tr><th>" + name + "</th><td>" + html + "</td></tr>\n";
}

std::string Codes(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) out += (out.empty() ? "<code>" : "<br><code>") + EscapeHtml(item) + "</code>";
  return out.empty() ? "none" : out;
}

}  // namespace

std::string EscapeHtml(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string RenderStatusPage(const StatusPage& page) {
  std::string out = kHead;
  out += "<h1>optod " + EscapeHtml(page.version) + "</h1>\n<table>\n";
  out += Row("state", page.serving ? "serving" : "draining");
  out += Row("up for", Uptime(page.uptime_s));
  out += Row("gRPC", Codes(page.grpc_addresses));
  out += Row("authentication", page.authentication ? "token" : "off");
  out += Row("sessions in memory", Cat(page.sessions_loaded));
  out += Row("memory of the process", Cat(page.resident_bytes >> 20, " MiB"));
  out += Row("calls answered", Cat(page.requests_total));
  if (page.commits_per_second > 0)
    out += Row("synchronous commits/s of the disk", Cat(static_cast<int64_t>(page.commits_per_second)));
  out += Row("LLM endpoints", Codes(page.llm_endpoints));
  std::string services;
  for (const auto& [name, implemented] : page.services) {
    services += (services.empty() ? "" : "<br>") + EscapeHtml(name) + (implemented ? "" : " (not in this release)");
  }
  out += Row("services", services);
  out +=
      "</table>\n<p><a href=\"/metrics\">/metrics</a> for Prometheus, <a href=\"/healthz\">/healthz</a> (the process "
      "lives), "
      "<a href=\"/readyz\">/readyz</a> (it takes calls). <code>optoctl doctor</code> checks the "
      "installation.</p>\n</body></html>\n";
  return out;
}

}  // namespace optod::web
