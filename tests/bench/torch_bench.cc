// Which LibTorch is better for training: matrix product, attention, and forward and forward + backward of a 135 M
// parameter LLaMA (SmolLM2's shape) with random weights, float32 and bfloat16. Prints one JSON line; the figures are
// CPU time, the best of the repetitions.
//   torch_bench [--threads N] [--repeats R] [--tokens T]     T tokens in sequences of 64
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <string>

#include "optim/nn/inference.h"
#include "optim/nn/model.h"
#include "optim/nn/views.h"
#include "optim/zo/stream.h"

namespace {

using namespace optod;

double CpuMs() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

/// CPU time: with one thread it is the time on an idle machine, whatever else runs.
double BestMs(int repeats, const std::function<void()>& work) {
  double best = 1e300;
  for (int i = 0; i <= repeats; ++i) {
    const double began = CpuMs();
    work();
    const double ms = CpuMs() - began;
    if (i > 0) best = std::min(best, ms);  // the first one touches memory
  }
  return best;
}

at::Tensor Random(at::IntArrayRef shape, at::ScalarType type) {
  at::Tensor t = at::empty(shape, at::kFloat);
  zo::FillNormal({1, 0, 0}, 0, 0, {t.data_ptr<float>(), static_cast<size_t>(t.numel())});
  return t.mul(0.02).to(type);
}

constexpr char kShape[] = R"({"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
  "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": true})";

at::Tensor Loss(const nn::Model& model, const std::vector<nn::Weights>& blocks, const nn::Batch& batch) {
  const auto ops = [&](size_t block) { return nn::PlainOps(model.config(), blocks[block]); };
  at::Tensor x = model.Embed(at::embedding(blocks[0][0], batch.ids), {}, {}, ops(0));
  for (size_t b = 1; b + 1 < blocks.size(); ++b) x = model.Layer(ops(b), x, batch);
  return nn::Model::Logits(model.Final(ops(blocks.size() - 1), x), blocks[0][0], {}).to(at::kFloat).logsumexp(-1).sum();
}

void Model135(at::ScalarType type, int64_t tokens, int repeats, std::map<std::string, double>* out,
              const std::string& suffix) {
  const nn::ModelConfig config = *nn::ParseConfig(kShape);
  const nn::Model model(config);
  std::vector<nn::Weights> blocks;
  for (const tier::BlockSpec& spec : nn::DescribeBlocks(config)) {
    blocks.emplace_back();
    for (const tier::BlockTensor& tensor : spec.tensors) blocks.back().push_back(Random(tensor.shape, type));
  }
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back(i * 37 % config.vocab);
  const nn::Batch batch(config, ids, std::vector<int64_t>(static_cast<size_t>(tokens / 64), 64));
  {
    at::NoGradGuard no_grad;
    (*out)["forward_ms" + suffix] = BestMs(repeats, [&] { Loss(model, blocks, batch); });
  }
  for (nn::Weights& block : blocks) {
    for (at::Tensor& tensor : block) tensor.set_requires_grad(true);
  }
  (*out)["forward_backward_ms" + suffix] = BestMs(repeats, [&] {
    for (nn::Weights& block : blocks) {
      for (at::Tensor& tensor : block) tensor.mutable_grad() = at::Tensor();
    }
    Loss(model, blocks, batch).backward();
  });
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 1, repeats = 3;
  int64_t tokens = 512;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--threads")) threads = std::atoi(argv[i + 1]);
    if (!std::strcmp(argv[i], "--repeats")) repeats = std::atoi(argv[i + 1]);
    if (!std::strcmp(argv[i], "--tokens")) tokens = std::atoll(argv[i + 1]) / 64 * 64;
  }
  nn::UseCachingAllocator();
  threads = nn::SetThreads(threads);
  std::map<std::string, double> out;
  for (const auto& [type, suffix] :
       {std::pair(at::kFloat, std::string("_fp32")), std::pair(at::kBFloat16, std::string("_bf16"))}) {
    const at::Tensor a = Random({1024, 1024}, type), b = Random({1024, 1024}, type);
    const at::Tensor q = Random({64, 128, 64}, type), k = Random({64, 64, 128}, type);
    at::NoGradGuard no_grad;
    out["mm1024_gflops" + suffix] = 2.147 / BestMs(5 * repeats, [&] { at::matmul(a, b); }) * 1000;
    out["attention_ms" + suffix] = BestMs(5 * repeats, [&] { at::bmm(at::softmax(at::bmm(q, k), -1), q); });
  }
  for (const auto& [type, suffix] :
       {std::pair(at::kFloat, std::string("_fp32")), std::pair(at::kBFloat16, std::string("_bf16"))}) {
    Model135(type, tokens, repeats, &out, suffix);
  }
  std::printf("{\"runtime\": \"%s\", \"threads\": %d, \"tokens\": %lld", nn::RuntimeName().c_str(), threads,
              static_cast<long long>(tokens));
  for (const auto& [name, value] : out) std::printf(", \"%s\": %.3g", name.c_str(), value);
  std::printf("}\n");
}
