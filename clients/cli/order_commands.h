#pragma once
/// optoctl order: questions about a recorded study of the sample order.

namespace CLI {
class App;
}

namespace optod::cli {

class App;
/// Adds its commands to `root`; `app` outlives it.
void AddOrderCommands(CLI::App& root, App& app);

}  // namespace optod::cli
