// optoctl graph SESSION [--svg]: DOT, or SVG drawn by graphviz's `dot`; where that is not installed the DOT text comes
// all the same, and stderr says so.
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

/// NOT_FOUND: there is no `dot` here.
absl::StatusOr<std::string> Svg(const std::string& dot) {
  SubprocessOptions options;
  options.argv = {"dot", "-Tsvg"};
  options.stdin_data = dot;
  options.timeout = std::chrono::minutes(2);
  options.max_output_bytes = 256u << 20;
  auto result = RunSubprocess(options);
  if (!result.ok()) return result.status();
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
  std::string text = response.dot(), output = flags.output;
  const bool to_file = !output.empty() && output != "-";
  if (flags.svg) {
    auto svg = Svg(text);
    if (!svg.ok() && !absl::IsNotFound(svg.status())) return app.Usage(std::string(svg.status().message()));
    if (svg.ok()) {
      text = *std::move(svg);
    } else {
      // The text form, under a name that does not lie.
      if (output.ends_with(".svg")) output = output.substr(0, output.size() - 4) + ".dot";
      std::fprintf(stderr, "graphviz's program `dot` is not in PATH: this is DOT text%s\n",
                   to_file ? (", in " + output).c_str() : "");
    }
  }
  if (!to_file) return std::fputs(text.c_str(), stdout) < 0 ? kExitUsage : kExitDone;
  const absl::Status written = PosixFs().WriteFileAtomic(output, std::as_bytes(std::span(text.data(), text.size())));
  return written.ok() ? kExitDone : app.Usage(output + ": cannot be written");
}

}  // namespace

void AddTraceCommands(CLI::App& root, App& app) {
  auto* graph = root.add_subcommand("graph", "the recorded trace as Graphviz DOT, or drawn");
  auto f = std::make_shared<Flags>();
  graph->add_option("session", f->session)->required();
  graph->add_flag("--svg", f->svg, "drawn by graphviz's `dot` where that is installed");
  graph->add_flag("--subgraph", f->subgraph, "only what the current feedback reaches");
  graph->add_flag("--simple", f->simple, "skip identity and clone chains");
  graph->add_flag("--reverse", f->reverse, "arrows from outputs to inputs");
  graph->add_option("--print-limit", f->print_limit, "characters of a value shown (default 100)")
      ->check(CLI::Range(1, 100'000));
  graph->add_option("-o,--output", f->output, "file (default: stdout)");
  graph->callback([&app, f] { app.command = [&app, f] { return Graph(app, *f); }; });
}

}  // namespace optod::cli
