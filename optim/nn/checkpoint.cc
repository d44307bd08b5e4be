#include "optim/nn/checkpoint.h"

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/import.h"
#include "optim/nn/safetensors.h"

namespace optod::nn {
namespace {

using nlohmann::json;

std::string ShapeText(const std::vector<int64_t>& shape) { return json(shape).dump(); }

/// All tensors of a Hugging Face folder, over its shards.
class Shards {
 public:
  absl::Status Open(const std::string& folder) {
    Fs& fs = PosixFs();
    if (fs.Exists(folder + "/model.safetensors")) return Add(folder, "model.safetensors");
    absl::StatusOr<std::string> index = fs.ReadFile(folder + "/model.safetensors.index.json");
    if (!index.ok()) return NotFound("weights: neither model.safetensors nor model.safetensors.index.json is there");
    const json parsed = json::parse(*index, nullptr, false);
    if (!parsed.is_object() || !parsed.contains("weight_map") || !parsed["weight_map"].is_object())
      return InvalidArgument("model.safetensors.index.json: weight_map: missing");
    std::set<std::string> names;
    for (const auto& [tensor, file] : parsed["weight_map"].items()) {
      if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos)
        return InvalidArgument("model.safetensors.index.json: weight_map.", tensor, ": not a file of the folder");
      names.insert(file.get<std::string>());
    }
    for (const std::string& name : names) RETURN_IF_ERROR(Add(folder, name));
    return absl::OkStatus();
  }

  struct Place {
    const Safetensors* file = nullptr;
    const FileTensor* tensor = nullptr;
    std::string file_name;
  };
  const std::map<std::string, Place>& places() const { return places_; }

 private:
  absl::Status Add(const std::string& folder, const std::string& name) {
    ASSIGN_OR_RETURN(Safetensors file, Safetensors::Open(folder + "/" + name));
    files_.push_back(std::make_unique<Safetensors>(std::move(file)));
    for (const FileTensor& tensor : files_.back()->header().tensors) {
      if (!places_.emplace(tensor.name, Place{files_.back().get(), &tensor, name}).second)
        return InvalidArgument(name, ": tensor \"", tensor.name, "\" is in another shard too");
    }
    return absl::OkStatus();
  }
  std::vector<std::unique_ptr<Safetensors>> files_;
  std::map<std::string, Place> places_;
};

/// Files saved from the bare model leave out "model.", "transformer." or "roberta."; the oldest OPT files only
/// "model.".
const Shards::Place* Find(const Shards& shards, const std::string& name, std::set<std::string>* used) {
  for (const char* prefix : {"", "model.", "transformer.", "roberta."}) {
    if (!name.starts_with(prefix)) continue;
    const auto it = shards.places().find(name.substr(std::string(prefix).size()));
    if (it == shards.places().end()) continue;
    used->insert(it->first);
    return &it->second;
  }
  return nullptr;
}

class HuggingFaceReader final : public WeightReader {
 public:
  absl::Status Open(const std::string& folder, ModelConfig config) {
    source_ = "huggingface";
    config_ = std::move(config);
    blocks_ = DescribeBlocks(config_);
    RETURN_IF_ERROR(shards_.Open(folder));
    std::set<std::string> used;
    for (const tier::BlockSpec& block : blocks_) {
      for (const tier::BlockTensor& tensor : block.tensors) {
        const Shards::Place* place = Find(shards_, tensor.name, &used);
        if (place == nullptr) return InvalidArgument("weights: tensor \"", tensor.name, "\" is missing");
        if (place->tensor->shape != tensor.shape)
          return InvalidArgument(Where(*place), ": shape ", ShapeText(place->tensor->shape), " is not ",
                                 ShapeText(tensor.shape), ", which config.json asks for");
        places_.push_back(place);
      }
    }
    for (const auto& [name, place] : shards_.places()) {
      if (!used.contains(name)) ignored_.push_back(name);
    }
    return absl::OkStatus();
  }

  absl::Status Read(size_t uid, uint64_t first, std::span<float> out) override {
    const Shards::Place& place = *places_[uid];
    const size_t element = ElementBytes(place.tensor->type);
    if (!ToFloat32(place.tensor->type, place.file->bytes(*place.tensor).subspan(first * element, out.size() * element),
                   out))
      return InvalidArgument(Where(place), ": dtype ", FileTypeName(place.tensor->type), " is not a weight's");
    place.file->Drop();  // at once: the peak is one model, not two
    return CheckFinite(Where(place), out);
  }

 private:
  static std::string Where(const Shards::Place& place) { return Cat(place.file_name, ": ", place.tensor->name); }

  Shards shards_;
  std::vector<const Shards::Place*> places_;  // a tensor
};

struct Found {
  enum Kind { kHuggingFace, kGguf, kLlama2c } kind = kHuggingFace;
  std::string path;
};

/// The one file of the folder that ends so, or "".
std::string OnlyFile(const std::string& folder, const std::string& ending) {
  absl::StatusOr<std::vector<std::string>> names = PosixFs().ListDirectory(folder);
  std::string found;
  for (const std::string& name : names.value_or(std::vector<std::string>())) {
    if (!name.ends_with(ending)) continue;
    if (!found.empty()) return "";
    found = folder + "/" + name;
  }
  return found;
}

absl::StatusOr<Found> FindModel(const std::string& path) {
  if (path.ends_with(".gguf")) return Found{Found::kGguf, path};
  if (!PosixFs().Exists(path)) return NotFound("model: no such folder");
  if (PosixFs().Exists(path + "/config.json")) return Found{Found::kHuggingFace, path};
  if (std::string file = OnlyFile(path, ".gguf"); !file.empty()) return Found{Found::kGguf, file};
  if (std::string file = OnlyFile(path, ".safetensors"); !file.empty()) return Found{Found::kLlama2c, file};
  return NotFound("config.json: missing");
}

}  // namespace

absl::StatusOr<ModelConfig> LoadConfig(const std::string& path) {
  ASSIGN_OR_RETURN(Found found, FindModel(path));
  if (found.kind == Found::kGguf) {
    ASSIGN_OR_RETURN(Gguf file, Gguf::Open(found.path));
    return GgufConfig(file.header());
  }
  if (found.kind == Found::kLlama2c) {
    ASSIGN_OR_RETURN(Safetensors file, Safetensors::Open(found.path));
    return Llama2cConfig(file.header());
  }
  ASSIGN_OR_RETURN(std::string text, PosixFs().ReadFile(path + "/config.json"));
  return ParseConfig(text);
}

absl::StatusOr<std::unique_ptr<WeightReader>> OpenModel(const std::string& path) {
  ASSIGN_OR_RETURN(Found found, FindModel(path));
  if (found.kind == Found::kGguf) return OpenGguf(found.path);
  if (found.kind == Found::kLlama2c) return OpenLlama2c(found.path);
  ASSIGN_OR_RETURN(std::string text, PosixFs().ReadFile(path + "/config.json"));
  ASSIGN_OR_RETURN(ModelConfig config, ParseConfig(text));
  auto reader = std::make_unique<HuggingFaceReader>();
  RETURN_IF_ERROR(reader->Open(path, std::move(config)));
  return reader;
}

absl::StatusOr<ModelFiles> LoadModel(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<WeightReader> reader, OpenModel(path));
  ModelFiles model;
  model.config = reader->config();
  model.source = reader->source();
  model.ignored = reader->ignored();
  ASSIGN_OR_RETURN(model.weights, tier::BlockList::Create(reader->blocks()));
  for (size_t uid = 0; uid < model.weights.tensors(); ++uid)
    RETURN_IF_ERROR(reader->Read(uid, 0, model.weights.values(uid)));
  return model;
}

absl::Status SaveModel(const std::string& folder, const ModelConfig& config, const tier::BlockList& weights) {
  RETURN_IF_ERROR(PosixFs().CreateDirectories(folder));
  std::vector<TensorToWrite> tensors;
  for (size_t uid = 0; uid < weights.tensors(); ++uid) {
    const tier::BlockTensor& tensor = weights.tensor(uid);
    tensors.push_back({tensor.name, FileType::kF32, tensor.shape, std::as_bytes(weights.values(uid))});
  }
  RETURN_IF_ERROR(WriteSafetensors(folder + "/model.safetensors", tensors, {{"format", "pt"}}));
  return SaveConfig(folder, config);
}

absl::Status SaveConfig(const std::string& folder, const ModelConfig& config) {
  auto described = nlohmann::ordered_json::parse(ConfigJson(config), nullptr, false);
  if (!described.is_object()) return Internal("config.json: no description to write");
  for (const char* key : {"torch_dtype", "dtype"}) {
    if (described.contains(key)) described[key] = "float32";
  }
  return PosixFs().WriteFileAtomic(folder + "/config.json", BytesOf(described.dump(2) + "\n"));
}

}  // namespace optod::nn
