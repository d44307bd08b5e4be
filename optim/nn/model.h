#pragma once
/// The forward pass of a model, block by block, on LibTorch tensors. Sequences are packed one after another without
/// padding: T tokens in all, hidden states [T, hidden]. Nothing here owns weights: every function takes those of its
/// block, so that a caller may hand in the parameters, a perturbed copy of them, or tensors that record gradients.
///
///   Batch -> Embed -> Layer(0) .. Layer(L-1) -> Final -> Logits of chosen rows
///
/// Private to optim/nn, optim/train and optim/worker. Errors of LibTorch are exceptions here; callers catch them.

#include <cstdint>
#include <memory>
#include <vector>

#include "optim/nn/aten.h"
#include "optim/nn/model_config.h"

namespace optod::nn {

/// Tensors of one block, in its order.
using Weights = std::vector<at::Tensor>;

/// Keys and values of one layer: [sequences, tokens, kv_heads, head_dim].
struct KeyValues {
  at::Tensor k, v;
};

/// What is added to a layer by parameter-efficient fine-tuning; undefined tensors = nothing.
struct LayerExtra {
  at::Tensor q_a, q_b, v_a, v_b;  ///< LoRA (Hu et al., 2021): W x + scale B (A x); A [r, in], B [out, r]
  double scale = 0;
  at::Tensor prefix_k, prefix_v;  ///< prefix tuning (Li & Liang, 2021): [virtual tokens, kv_heads * head_dim]
};

/// Packed sequences and what follows from their lengths.
class Batch {
 public:
  /// `lengths` sum to ids.size(). Runs of equal lengths are computed together. `past`: tokens already in the cache
  /// (one sequence only). `shift`: positions begin so much later, behind virtual tokens.
  Batch(const ModelConfig& config, std::vector<int64_t> ids, std::vector<int64_t> lengths, int64_t past = 0,
        int64_t shift = 0);

  struct Run {
    int64_t begin = 0, sequences = 0, length = 0;
    at::Tensor mask;  ///< [length, past + length], 0 or -inf; undefined when nothing is hidden
  };
  at::Tensor ids;        ///< [T] int64
  at::Tensor positions;  ///< [T] int64, rows of the table of learned positions
  at::Tensor cos, sin;   ///< [T, 1, head_dim], rotary families
  std::vector<Run> runs;
  int64_t tokens = 0, past = 0;
};

class Model {
 public:
  explicit Model(const ModelConfig& config);
  const ModelConfig& config() const { return config_; }

  /// Rows already gathered: tokens [T, hidden]; positions, types [T, hidden] or undefined.
  at::Tensor Embed(const at::Tensor& tokens, const at::Tensor& positions, const at::Tensor& types,
                   const Weights& embed) const;
  /// `cache`: keys and values of earlier tokens, replaced by all; nullptr = none kept.
  at::Tensor Layer(const Weights& w, const at::Tensor& x, const Batch& batch, const LayerExtra& extra = {},
                   KeyValues* cache = nullptr) const;
  /// Final norm, or RoBERTa's transform: what the vocabulary matrix is applied to.
  at::Tensor Final(const Weights& head, const at::Tensor& x) const;
  /// [rows, vocab]; `matrix` [vocab, hidden], `bias` [vocab] or undefined.
  static at::Tensor Logits(const at::Tensor& hidden, const at::Tensor& matrix, const at::Tensor& bias);

  const LayerSlots& layer_slots() const { return layer_; }
  const EmbedSlots& embed_slots() const { return embed_; }
  const HeadSlots& head_slots() const { return head_; }

 private:
  at::Tensor Norm(const at::Tensor& x, const Weights& w, int weight, int bias) const;
  at::Tensor Linear(const at::Tensor& x, const Weights& w, int weight, int bias) const;
  at::Tensor Attention(const Weights& w, const at::Tensor& x, const Batch& batch, const LayerExtra& extra,
                       KeyValues* cache) const;
  at::Tensor AttendRun(const at::Tensor& q, at::Tensor k, at::Tensor v, const Batch::Run& run, const LayerExtra& extra,
                       KeyValues* cache) const;
  at::Tensor Mlp(const Weights& w, const at::Tensor& x) const;
  at::Tensor Activate(const at::Tensor& x) const;

  ModelConfig config_;
  LayerSlots layer_;
  EmbedSlots embed_;
  HeadSlots head_;
};

/// Keeps and reuses large buffers under LibTorch's CPU tensors: fresh pages cost more than kernels. Once a process.
void UseCachingAllocator();
/// One OpenMP pool for LibTorch, OpenBLAS and the rules; `threads` <= 0 = all CPUs this process may use. Returns the
/// number.
int SetThreads(int threads);

}  // namespace optod::nn
