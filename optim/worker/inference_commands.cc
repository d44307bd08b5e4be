#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/nn/safetensors.h"
#include "optim/nn/tokenizer.h"
#include "optim/nn/tokenizer_writer.h"
#include "optim/worker/commands.h"

namespace optod::worker {
namespace {

struct Options {
  std::string model, input, output, prompt, dtype = "float32";
  int threads = 0;
  nn::SamplingOptions sampling;
  bool ids = false, add_special = true;
};

absl::StatusOr<std::vector<std::vector<int64_t>>> ReadIds(const std::string& path) {
  ASSIGN_OR_RETURN(std::string text, PosixFs().ReadFile(path));
  const auto parsed = nlohmann::json::parse(text, nullptr, false);
  if (!parsed.is_array()) return InvalidArgument("input: not a JSON list of lists of token ids");
  std::vector<std::vector<int64_t>> lists;
  for (const auto& list : parsed) {
    if (!list.is_array()) return InvalidArgument("input[", lists.size(), "]: not a list of token ids");
    lists.emplace_back();
    for (const auto& id : list) {
      if (!id.is_number_integer()) return InvalidArgument("input[", lists.size() - 1, "]: not a list of token ids");
      lists.back().push_back(id.get<int64_t>());
    }
  }
  return lists;
}

absl::StatusOr<nn::Precision> ReadPrecision(const std::string& dtype) {
  if (dtype == "float32") return nn::Precision::kFloat32;
  if (dtype == "bfloat16") return nn::Precision::kBFloat16;
  return InvalidArgument("--dtype: \"", dtype, "\" is not one of float32, bfloat16");
}

absl::Status Logits(const Options& o) {
  ASSIGN_OR_RETURN(const nn::Precision precision, ReadPrecision(o.dtype));
  ASSIGN_OR_RETURN(const auto lists, ReadIds(o.input));
  ASSIGN_OR_RETURN(const nn::ModelFiles files, nn::LoadModel(o.model));
  ASSIGN_OR_RETURN(const auto inference, nn::Inference::Create(files, precision));
  std::vector<std::vector<float>> all;
  std::vector<nn::TensorToWrite> tensors;
  for (size_t i = 0; i < lists.size(); ++i) {
    auto logits = inference->Logits(lists[i]);
    if (!logits.ok())
      return absl::Status(logits.status().code(), Cat("input[", i, "]: ", std::string(logits.status().message())));
    all.push_back(*std::move(logits));
    tensors.push_back(
        {Cat("logits.", i), nn::FileType::kF32, {static_cast<int64_t>(lists[i].size()), files.config.vocab}, {}});
  }
  for (size_t i = 0; i < all.size(); ++i) tensors[i].data = std::as_bytes(std::span(all[i]));
  return nn::WriteSafetensors(o.output, tensors, {{"runtime", nn::RuntimeName()}});
}

absl::Status Generate(Options o) {
  ASSIGN_OR_RETURN(const nn::Precision precision, ReadPrecision(o.dtype));
  ASSIGN_OR_RETURN(const auto tokenizer, nn::LoadTokenizer(o.model));
  ASSIGN_OR_RETURN(const nn::ModelFiles files, nn::LoadModel(o.model));
  ASSIGN_OR_RETURN(const auto inference, nn::Inference::Create(files, precision));
  std::vector<int64_t> ids = tokenizer->EncodeWhole(o.prompt);
  if (ids.empty()) ids = {files.config.bos >= 0 ? files.config.bos : 0};
  o.sampling.stop_token = files.config.eos;
  const auto began = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const auto made, inference->Generate(ids, o.sampling));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  std::vector<int64_t> whole = tokenizer->Encode(o.prompt);
  whole.insert(whole.end(), made.begin(), made.end());
  std::printf("%s\n", tokenizer->Decode(whole).c_str());
  std::fprintf(stderr, "%zu tokens in %.2f s\n", made.size(), seconds);
  return absl::OkStatus();
}

absl::Status Tokens(const Options& o) {
  ASSIGN_OR_RETURN(const auto tokenizer, nn::LoadTokenizer(o.model));
  ASSIGN_OR_RETURN(const std::string text, PosixFs().ReadFile(o.input));
  nlohmann::json lines = nlohmann::json::array();
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    lines.push_back(o.add_special ? tokenizer->EncodeWhole(line) : tokenizer->Encode(line));
    at = end + 1;
  }
  std::printf("%s\n", lines.dump().c_str());
  return absl::OkStatus();
}

absl::Status Convert(const Options& o) {
  ASSIGN_OR_RETURN(const nn::ModelFiles files, nn::LoadModel(o.model));
  for (const std::string& name : files.ignored) std::fprintf(stderr, "ignored: %s\n", name.c_str());
  RETURN_IF_ERROR(nn::SaveModel(o.output, files.config, files.weights));
  const absl::Status tokenizer = nn::SaveTokenizer(o.model, o.output);
  if (!absl::IsNotFound(tokenizer)) return tokenizer;
  std::fprintf(stderr, "no tokenizer written: none is there\n");
  return absl::OkStatus();
}

}  // namespace

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "optod-worker: %s\n", std::string(status.message()).c_str());
  return 1;
}

std::string VersionText() { return Cat("optod-worker ", OPTOD_VERSION, ", ", nn::RuntimeName()); }

void AddInferenceCommands(CLI::App& app, int* code) {
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* help, auto run) {
    auto* command = app.add_subcommand(name, help);
    command->add_option("--model", o->model, "Hugging Face folder or .gguf file")->required();
    command->callback([o, code, run] {
      nn::UseCachingAllocator();
      nn::SetThreads(o->threads);
      *code = ExitCode(run(*o));
    });
    return command;
  };
  auto* logits = add("logits", "logits of token-id lists", [](const Options& x) { return Logits(x); });
  logits->add_option("--input", o->input, "JSON: a list of lists of token ids")->required();
  logits->add_option("--output", o->output, "safetensors: logits.0, logits.1, ... [tokens, vocab] float32")->required();
  auto* generate = add("generate", "continues a text", [](const Options& x) { return Generate(x); });
  generate->add_option("--prompt", o->prompt, "the text")->required();
  generate->add_option("--max-tokens", o->sampling.max_tokens, "at most so many more tokens")
      ->check(CLI::Range(1, 1 << 20));
  generate->add_option("--temperature", o->sampling.temperature, "0 = the likeliest token")
      ->check(CLI::Range(0.0, 100.0));
  generate->add_option("--seed", o->sampling.seed, "of the draws");
  for (CLI::App* command : {logits, generate}) {
    command->add_option("--dtype", o->dtype, "float32 or bfloat16");
    command->add_option("--threads", o->threads, "0 = all CPUs");
  }
  auto* tokens =
      add("tokens", "token ids of every line of a file, as JSON", [](const Options& x) { return Tokens(x); });
  tokens->add_option("--input", o->input, "text file")->required();
  tokens->add_flag("--special,!--no-special", o->add_special, "with the ids the model wants around a text");
  auto* convert = add("convert", "writes a Hugging Face folder: weights, configuration, tokenizer", [](const Options& x) { return Convert(x); });
  convert->add_option("--output", o->output, "folder")->required();
}

}  // namespace optod::worker
