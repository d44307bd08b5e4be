// optod-golden KIND DIR [--path scalar|avx2|avx512]: replays the golden files of DIR through the code that serves,
// prints each failure with the first number that differs, and closes with "N passed, N failed". Exit 0 all passed, 1
// some failed, 2 usage.
// optod-golden trace DIR --server own              through an optod of its own, with a canned model behind it
// optod-golden trace DIR --server ADDRESS --llm PORT    through a server whose OPTOD_LLM_URL is
// http://127.0.0.1:PORT/v1
#include <cstdio>
#include <map>
#include <string>

#include "golden_replay/optim_replay.h"
#include "optim/rules/kernels.h"
#ifdef OPTOD_GOLDEN_ZO
#include "golden_replay/zo_replay.h"
#endif
#ifdef OPTOD_GOLDEN_TRACE
#include "golden_replay/trace_replay.h"
#include "golden_replay/trace_server_replay.h"
#endif

namespace {

using Replay = std::vector<optod::CaseResult> (*)(const std::string& dir);

const std::map<std::string, Replay>& Kinds() {
  static const std::map<std::string, Replay> kinds = {
      {"optim", [](const std::string& dir) { return optod::ReplayOptimGolden(dir); }},
#ifdef OPTOD_GOLDEN_ZO
      {"zo", [](const std::string& dir) { return optod::ReplayZoGolden(dir); }},
#endif
#ifdef OPTOD_GOLDEN_TRACE
      {"trace", [](const std::string& dir) { return optod::ReplayTraceGolden(dir); }},
#endif
  };
  return kinds;
}

int Usage() {
  std::string kinds;
  for (const auto& [kind, replay] : Kinds()) kinds += (kinds.empty() ? "" : "|") + kind;
  std::fprintf(stderr,
               "usage: optod-golden %s DIR [--path scalar|avx2|avx512]\n"
               "       optod-golden trace DIR --server own|ADDRESS [--llm PORT]\n",
               kinds.c_str());
  return 2;
}

int Report(const std::vector<optod::CaseResult>& results) {
  int passed = 0, failed = 0;
  for (const optod::CaseResult& result : results) {
    ++(result.passed ? passed : failed);
    if (!result.passed) std::printf("FAILED %s: %s\n", result.name.c_str(), result.first_difference.c_str());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

#ifdef OPTOD_GOLDEN_TRACE
int ThroughServer(int argc, char** argv) {
  const std::string address = argv[4];
  if (address == "own") return argc == 5 ? Report(optod::ReplayTraceThroughOwnServer(argv[2])) : Usage();
  if (argc != 7 || std::string(argv[5]) != "--llm") return Usage();
  optod::CannedModel model(std::atoi(argv[6]));
  if (!model.listening()) {
    std::fprintf(stderr, "port %s: cannot listen\n", argv[6]);
    return 2;
  }
  return Report(optod::ReplayTraceThroughServer(argv[2], address, model));
}
#endif

}  // namespace

int main(int argc, char** argv) {
#ifdef OPTOD_GOLDEN_TRACE
  if (argc >= 5 && std::string(argv[1]) == "trace" && std::string(argv[3]) == "--server")
    return ThroughServer(argc, argv);
#endif
  if (argc != 3 && argc != 5) return Usage();
  const auto kind = Kinds().find(argv[1]);
  if (kind == Kinds().end()) return Usage();
  if (argc == 5 && (std::string(argv[3]) != "--path" || !optod::optim::SelectKernels(argv[4]))) return Usage();
  return Report(kind->second(argv[2]));
}
