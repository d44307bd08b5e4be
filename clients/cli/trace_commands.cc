// optoctl graph SESSION [--svg]
#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/fs.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "clients/cli/app.h"
#include "clients/cli/output.h"

namespace optod::cli {
namespace {

struct Flags {
  std::string session, output;
  bool svg = false, subgraph = false, simple = false, reverse = false;
  int print_limit = 0;
};

absl::StatusOr<std::string> Svg(const std::string& dot) {
  SubprocessOptions options;
  options.argv = {"dot", "-Tsvg"};
  options.stdin_data = dot;
  options.timeout = std::chrono::minutes(2);
  options.max_output_bytes = 256u << 20;
  auto result = RunSubprocess(options);
  if (!result.ok())
    return FailedPrecondition(
        "--svg needs graphviz's program `dot`, which is not in PATH; without --svg the DOT text is printed");
  if (result->exit_code != 0) return Internal("dot: ", result->timed_out ? "no result after 2 min" : result->err);
  return result->out;
}

int Graph(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::GetGraphRequest request;
  request.set_session(flags.session);
  request.set_subgraph(flags.subgraph);
  request.set_simple(flags.simple);
  request.set_reverse(flags.reverse);
  request.set_print_limit(flags.print_limit);
  RUN_OR_FAIL(v1::GetGraphResponse response, client->GetGraph(request));
  if (app.json && !flags.svg) return app.Print(response, "");
  std::string text = response.dot();
  if (flags.svg) {
    auto svg = Svg(text);
    if (!svg.ok()) return app.Usage(std::string(svg.status().message()));
    text = *std::move(svg);
  }
  if (flags.output.empty() || flags.output == "-") return std::fputs(text.c_str(), stdout) < 0 ? kExitUsage : kExitDone;
  const absl::Status written =
      PosixFs().WriteFileAtomic(flags.output, std::as_bytes(std::span(text.data(), text.size())));
  return written.ok() ? kExitDone : app.Usage(flags.output + ": cannot be written");
}

}  // namespace

void AddTraceCommands(CLI::App& root, App& app) {
  auto* graph = root.add_subcommand("graph", "the recorded trace as Graphviz DOT, or drawn");
  auto f = std::make_shared<Flags>();
  graph->add_option("session", f->session)->required();
  graph->add_flag("--svg", f->svg, "drawn by graphviz's `dot`");
  graph->add_flag("--subgraph", f->subgraph, "only what the current feedback reaches");
  graph->add_flag("--simple", f->simple, "skip identity and clone chains");
  graph->add_flag("--reverse", f->reverse, "arrows from outputs to inputs");
  graph->add_option("--print-limit", f->print_limit, "characters of a value shown (default 100)")
      ->check(CLI::Range(1, 100'000));
  graph->add_option("-o,--output", f->output, "file (default: stdout)");
  graph->callback([&app, f] { app.command = [&app, f] { return Graph(app, *f); }; });
}

}  // namespace optod::cli
