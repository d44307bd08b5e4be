#include "clients/cli/job_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace optod::cli {
namespace {

absl::StatusOr<std::string> Expand(const std::string& field, const std::string& text,
                                   const std::function<const char*(const char*)>& lookup) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = text.find("${", at);
    out += text.substr(at, begin - at);
    if (begin == std::string::npos) break;
    const size_t end = text.find('}', begin);
    if (end == std::string::npos) return InvalidArgument(field, ": \"${\" without \"}\"");
    const std::string name = text.substr(begin + 2, end - begin - 2);
    const char* value = lookup(name.c_str());
    if (value == nullptr || *value == '\0') return InvalidArgument(field, ": ", name, " is not set");
    out += value;
    at = end + 1;
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> ExpandJobPaths(const std::string& spec_json,
                                           const std::function<const char*(const char*)>& lookup) {
  auto spec = nlohmann::ordered_json::parse(spec_json, nullptr, /*allow_exceptions=*/false);
  for (const char* place : {"/model", "/task/train", "/task/dev", "/task/test"}) {
    const nlohmann::ordered_json::json_pointer pointer(place);
    if (!spec.contains(pointer) || !spec[pointer].is_string()) continue;  // the server says what is wrong with it
    std::string field = std::string(place).substr(1);
    std::replace(field.begin(), field.end(), '/', '.');
    ASSIGN_OR_RETURN(spec[pointer], Expand(field, spec[pointer].get<std::string>(), lookup));
  }
  return spec.dump();
}

}  // namespace optod::cli
