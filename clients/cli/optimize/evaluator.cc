#include "clients/cli/optimize/evaluator.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/fs.h"
#include "base/random_id.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "clients/cli/optimize/gate.h"
#include "clients/cli/optimize/score.h"
#include "clients/cli/optimize/workflow_runner.h"

namespace optod::cli {
namespace {

namespace fs = std::filesystem;

// An environment string may hold 128 KiB (MAX_ARG_STRLEN); longer values are only in OPTOD_PARAMS_FILE.
constexpr size_t kMaxEnvironmentBytes = 100'000;

// A folder that is gone when this is.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& root) {
    std::error_code error;
    path_ = (root.empty() ? fs::temp_directory_path(error) : fs::path(root)) / ("optod-" + RandomId(12));
  }
  ~TemporaryFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
    if (!error) return;
    // A command may have taken away its own rights.
    for (auto it = fs::recursive_directory_iterator(path_, error); it != fs::recursive_directory_iterator();
         it.increment(error))
      if (it->is_directory(error)) fs::permissions(it->path(), fs::perms::owner_all, fs::perm_options::add, error);
    fs::remove_all(path_, error);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string Upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

// The end of a text, on a line and character boundary, valid UTF-8 for the wire.
std::string Tail(const std::string& text, size_t bytes) {
  std::string out = text;
  if (text.size() > bytes) {
    size_t at = text.size() - bytes;
    if (const size_t line = text.find('\n', at);
        line != std::string::npos && line + 1 < text.size() && line - at < bytes / 2)
      at = line + 1;
    out = "[...]\n" + text.substr(at);
  }
  std::string clean;
  for (const char c : out) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n' || c == '\t' || (byte >= 0x20 && byte != 0x7f)) clean += c;
  }
  // Invalid UTF-8 becomes U+FFFD.
  return nlohmann::json::parse(nlohmann::json(clean).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace))
      .get<std::string>();
}

std::string FailureOf(const SubprocessResult& result, const EvaluateSection& evaluate, size_t max_output) {
  if (result.timed_out)
    return Cat("the command was still running after its timeout of ", NumberText(evaluate.timeout.count() / 1000.0),
               " s and was killed");
  if (result.out_bytes > max_output || result.err_bytes > max_output)
    return Cat("the command printed more than ", max_output >> 10, " KiB");
  if (result.signal != 0) return Cat("the command was ended by signal ", result.signal);
  // The shell reports a command that a signal ended as 128 + its number.
  if (result.exit_code > 128 && result.exit_code <= 128 + 64)
    return Cat("the command was ended by signal ", result.exit_code - 128);
  if (result.exit_code != 0 && evaluate.score.kind != ScoreRule::Kind::kExitCode)
    return Cat("the command exited with code ", result.exit_code);
  return "";
}

}  // namespace

std::string ValuesHash(const Values& values) {
  Sha256 hash;
  for (const auto& [name, value] : values) hash.Update(Cat(name, " ", value.size(), "\n", value));
  return hash.FinishHex();
}

Evaluator::Evaluator(const CandidateTree& tree, const OptimizeFile& file, EvaluatorOptions options)
    : tree_(tree), file_(file), options_(std::move(options)) {}

void Evaluator::SetSession(const std::string& session) {
  if (options_.workflow != nullptr) options_.workflow->SetSession(session);
}

bool Evaluator::IsCached(const Values& values) const {
  std::lock_guard lock(mutex_);
  return cache_.count(ValuesHash(values)) > 0;
}

absl::StatusOr<Evaluation> Evaluator::Evaluate(const Values& values) {
  const std::string hash = ValuesHash(values);
  {
    std::lock_guard lock(mutex_);
    if (const auto found = cache_.find(hash); found != cache_.end()) {
      Evaluation evaluation = found->second;
      evaluation.cached = true;
      return evaluation;
    }
  }
  ASSIGN_OR_RETURN(Evaluation evaluation, Run(values));
  std::lock_guard lock(mutex_);
  if (!evaluation.cancelled) cache_[hash] = evaluation;
  return evaluation;
}

absl::StatusOr<Evaluation> Evaluator::Run(const Values& values) {
  Evaluation evaluation;
  if (auto changes = tree_.Changes(values, false); !changes.ok()) {
    evaluation.failure = std::string(changes.status().message());
    return evaluation;
  }
  TemporaryFolder folder(options_.temporary_root);
  const fs::path copy = folder.path() / "tree";
  RETURN_IF_ERROR(tree_.Materialise(values, copy.string()));
  if (options_.workflow != nullptr) {
    ASSIGN_OR_RETURN(evaluation, options_.workflow->Run(values, copy.string(), options_.cancelled));
    evaluation.out = Tail(Replaced(std::move(evaluation.out), copy.string(), "."), options_.kept_bytes);
    return evaluation;
  }
  const std::string params = nlohmann::json(values).dump();
  RETURN_IF_ERROR(PosixFs().WriteFileAtomic((folder.path() / "params.json").string(),
                                            std::as_bytes(std::span(params.data(), params.size()))));

  SubprocessOptions command;
  command.argv = {"/bin/sh", "-c", file_.evaluate.command};
  command.working_directory = copy.string();
  command.timeout = file_.evaluate.timeout;
  command.max_output_bytes = options_.max_output_bytes;
  command.cancelled = options_.cancelled;
  command.environment = {{"OPTOD_PARAMS_FILE", (folder.path() / "params.json").string()},
                         {"PYTHONDONTWRITEBYTECODE", "1"}};
  for (const auto& [name, value] : values) {
    if (value.size() > kMaxEnvironmentBytes || value.find('\0') != std::string::npos) continue;
    command.environment.emplace_back("OPTOD_PARAM_" + name, value);
    if (Upper(name) != name && !values.count(Upper(name)))
      command.environment.emplace_back("OPTOD_PARAM_" + Upper(name), value);
  }
  ASSIGN_OR_RETURN(const SubprocessResult result, RunSubprocess(command));
  evaluation.wall = result.wall;
  evaluation.cancelled = result.cancelled;
  evaluation.failure = result.cancelled ? "cancelled" : FailureOf(result, file_.evaluate, options_.max_output_bytes);
  // The copy's name differs from run to run; the model (and a recorded conversation) must not see it.
  const auto shown = [&](const std::string& text) {
    return Tail(Replaced(Replaced(text, copy.string() + "/", ""), copy.string(), "."), options_.kept_bytes);
  };
  evaluation.out = shown(result.out);
  evaluation.err = shown(result.err);
  if (!evaluation.failure.empty()) return evaluation;
  auto score = ExtractScore(file_.evaluate.score, result.out, result.exit_code);
  if (score.ok())
    evaluation.score = *score;
  else
    evaluation.failure = std::string(score.status().message());
  return evaluation;
}

absl::StatusOr<std::vector<Evaluation>> Evaluator::EvaluateAll(const std::vector<Values>& candidates, int jobs) {
  std::vector<absl::StatusOr<Evaluation>> results(candidates.size(),
                                                  absl::StatusOr<Evaluation>(absl::UnknownError("")));
  // Equal candidates wait for the first of them and then come from the cache.
  std::map<std::string, size_t> first;
  std::vector<size_t> distinct;
  for (size_t i = 0; i < candidates.size(); ++i)
    if (first.emplace(ValuesHash(candidates[i]), i).second) distinct.push_back(i);
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t at = next++; at < distinct.size(); at = next++)
      results[distinct[at]] = Evaluate(candidates[distinct[at]]);
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < std::min<int>(jobs, static_cast<int>(distinct.size())); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  std::vector<Evaluation> evaluations;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const size_t source = first[ValuesHash(candidates[i])];
    if (!results[source].ok()) return results[source].status();
    evaluations.push_back(*results[source]);
    if (source != i) evaluations.back().cached = true;
  }
  return evaluations;
}

}  // namespace optod::cli
