#include "optim/train/state_file.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "optim/nn/safetensors.h"

namespace optod::train {
namespace {

constexpr std::pair<nn::FileType, optim::DType> kTypes[] = {
    {nn::FileType::kF32, optim::DType::kF32},   {nn::FileType::kF64, optim::DType::kF64},
    {nn::FileType::kF16, optim::DType::kF16},   {nn::FileType::kBF16, optim::DType::kBF16},
    {nn::FileType::kI64, optim::DType::kI64},   {nn::FileType::kI32, optim::DType::kI32},
    {nn::FileType::kI8, optim::DType::kI8},     {nn::FileType::kU8, optim::DType::kU8},
    {nn::FileType::kBool, optim::DType::kBool},
};

optim::DType DTypeOf(nn::FileType type) {
  for (const auto& [file, memory] : kTypes) {
    if (file == type) return memory;
  }
  return optim::DType::kF32;
}
nn::FileType FileTypeOf(optim::DType type) {
  for (const auto& [file, memory] : kTypes) {
    if (memory == type) return file;
  }
  return nn::FileType::kF32;
}

}  // namespace

absl::Status WriteStateFile(const std::string& path, std::span<const float> theta,
                            const std::vector<optim::OwnedTensor>& state, int64_t step) {
  std::vector<nn::TensorToWrite> tensors = {
      {"theta", nn::FileType::kF32, {static_cast<int64_t>(theta.size())}, std::as_bytes(theta)}};
  for (const optim::OwnedTensor& tensor : state)
    tensors.push_back(
        {tensor.spec.name, FileTypeOf(tensor.spec.dtype), tensor.spec.shape, std::as_bytes(std::span(tensor.data))});
  return nn::WriteSafetensors(path, tensors, {{"step", Cat(step)}});
}

absl::StatusOr<StateFile> ReadStateFile(const std::string& path, size_t size) {
  ASSIGN_OR_RETURN(const nn::Safetensors file, nn::Safetensors::Open(path));
  StateFile result;
  for (const nn::FileTensor& tensor : file.header().tensors) {
    const auto bytes = file.bytes(tensor);
    if (tensor.name == "theta") {
      if (tensor.type != nn::FileType::kF32 || bytes.size() != size * sizeof(float)) break;
      result.theta.resize(size);
      std::memcpy(result.theta.data(), bytes.data(), bytes.size());
      continue;
    }
    optim::OwnedTensor owned;
    owned.spec = {tensor.name, DTypeOf(tensor.type), tensor.shape};
    owned.data.assign(bytes.begin(), bytes.end());
    result.state.push_back(std::move(owned));
  }
  if (result.theta.size() != size) return DataLoss(path.substr(path.rfind('/') + 1), ": of another model");
  const auto step = file.header().metadata.find("step");
  if (step != file.header().metadata.end()) result.step = std::atoll(step->second.c_str());
  return result;
}

}  // namespace optod::train
