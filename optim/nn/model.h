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
  /// (one sequence only). `shift`: positions begin so much later, behind virtual tokens. `lanes`: the whole batch
  /// repeated so many times, for as many versions of the parameters; the first T tokens belong to lane 0.
  Batch(const ModelConfig& config, std::vector<int64_t> ids, std::vector<int64_t> lengths, int64_t past = 0,
        int64_t shift = 0, int lanes = 1);
  /// One more token of several sequences: ids[i] after the past[i] tokens of sequence i, each a run of its own.
  static Batch Next(const ModelConfig& config, std::vector<int64_t> ids, const std::vector<int64_t>& past,
                    int64_t shift = 0);

  struct Run {
    int64_t begin = 0, sequences = 0, length = 0;
    int lane = 0;
    at::Tensor mask;  ///< [length, past + length], 0 or -inf; undefined when nothing is hidden
  };
  at::Tensor ids;        ///< [T] int64
  at::Tensor positions;  ///< [T] int64, rows of the table of learned positions
  at::Tensor cos, sin;   ///< [T, 1, head_dim], rotary families
  std::vector<Run> runs;
  int64_t tokens = 0;
  /// The tensors on another device.
  void MoveTo(const at::Device& device);

 private:
  Batch() = default;
  void Place(const ModelConfig& config, std::vector<int64_t> token_ids, std::vector<int64_t> places);
};

/// Projections that low-rank adapters may add to.
enum class Projection { kQuery, kValue };

/// How the tensors of one block are applied: the seam where a caller perturbs them, records what passes through them,
/// or shares them among lanes. Slots are positions in the block; a bias slot of -1 = none.
class BlockOps {
 public:
  virtual ~BlockOps() = default;
  /// x W' + bias, x [T, in] -> [T, out].
  virtual at::Tensor Linear(const at::Tensor& x, int weight, int bias) const = 0;
  /// The family's norm over the last dimension.
  virtual at::Tensor Norm(const at::Tensor& x, int weight, int bias) const = 0;
  /// What is added to a projection of x; undefined = nothing.
  virtual at::Tensor LowRank(const at::Tensor& x, Projection projection) const = 0;
  /// Prefix keys and values of a lane [virtual tokens, kv_heads * head_dim]; undefined = none.
  virtual KeyValues Prefix(int lane) const = 0;
};

/// The tensors as they are. Borrows what it is given.
class PlainOps : public BlockOps {
 public:
  PlainOps(const ModelConfig& config, const Weights& w, const LayerExtra* extra = nullptr)
      : config_(config), w_(w), extra_(extra) {}
  at::Tensor Linear(const at::Tensor& x, int weight, int bias) const override;
  at::Tensor Norm(const at::Tensor& x, int weight, int bias) const override;
  at::Tensor LowRank(const at::Tensor& x, Projection projection) const override;
  KeyValues Prefix(int lane) const override;

  /// x W' + b for a weight as the family stores it ([in, out] for GPT-2's layers); `bias` may be undefined.
  static at::Tensor ApplyLinear(const ModelConfig& config, const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& bias);
  /// The family's norm: RMS, or layer norm with a bias. Undefined: no gain, no bias.
  static at::Tensor ApplyNorm(const ModelConfig& config, const at::Tensor& x, const at::Tensor& gain,
                              const at::Tensor& bias);
  /// x / RMS(x), row by row: the RMS norm before its gain.
  static at::Tensor RmsScaled(const ModelConfig& config, const at::Tensor& x);

 protected:
  const ModelConfig& config_;
  const Weights& w_;
  const LayerExtra* extra_;
};

class Model {
 public:
  explicit Model(const ModelConfig& config);
  const ModelConfig& config() const { return config_; }

  /// Rows already gathered: tokens [T, hidden]; positions, types [T, hidden] or undefined.
  at::Tensor Embed(const at::Tensor& tokens, const at::Tensor& positions, const at::Tensor& types,
                   const BlockOps& embed) const;
  /// `cache`: of every run of the batch, keys and values of its earlier tokens, replaced by all; nullptr = none kept.
  at::Tensor Layer(const BlockOps& ops, const at::Tensor& x, const Batch& batch, KeyValues* cache = nullptr) const;
  /// Final norm, or RoBERTa's transform: what the vocabulary matrix is applied to.
  at::Tensor Final(const BlockOps& head, const at::Tensor& x) const;
  /// [rows, vocab]; `matrix` [vocab, hidden], `bias` [vocab] or undefined.
  static at::Tensor Logits(const at::Tensor& hidden, const at::Tensor& matrix, const at::Tensor& bias);

  const LayerSlots& layer_slots() const { return layer_; }
  const EmbedSlots& embed_slots() const { return embed_; }
  const HeadSlots& head_slots() const { return head_; }

 private:
  at::Tensor Attention(const BlockOps& ops, const at::Tensor& x, const Batch& batch, KeyValues* cache) const;
  at::Tensor AttendRuns(const BlockOps& ops, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const Batch& batch, KeyValues* cache) const;
  at::Tensor AttendRun(const at::Tensor& q, at::Tensor k, at::Tensor v, const Batch::Run& run, const KeyValues& prefix,
                       KeyValues* cache) const;
  at::Tensor Mlp(const BlockOps& ops, const at::Tensor& x) const;
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
/// Has BLAS take the work areas of all threads now.
void TouchBlas();

}  // namespace optod::nn
