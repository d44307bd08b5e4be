#pragma once
/// The parameters of a model as a list of blocks, each one piece of memory. A block is the unit that computing,
/// perturbing and (later) moving between memory tiers work on; resident training is the case of one tier. Tensors are
/// float32, row-major, contiguous, in the order of their block, without gaps.
///
///   block 0: embeddings   block 1..L: layers   block L+1: final norm and head     one arena, one uid a tensor
///
/// A uid is the tensor's number over the whole list: its tensor number in the random stream (optim/zo/stream.h), so a
/// direction does not depend on how blocks are visited. Not thread-safe for writing.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::tier {

struct BlockTensor {
  std::string name;            ///< as in the model's files: "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  ///< row-major; {} = scalar
  bool decay = true;           ///< weight decay applies
  int64_t elements() const;
};

struct BlockSpec {
  std::string name;  ///< "embed", "layers.0", ..., "head"
  std::vector<BlockTensor> tensors;
};

class BlockList {
 public:
  BlockList() = default;
  /// Reserves the memory (zero filled). INVALID_ARGUMENT: a negative or absurd shape; RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<BlockList> Create(std::vector<BlockSpec> blocks);
  BlockList(BlockList&& other) noexcept;
  BlockList& operator=(BlockList&& other) noexcept;
  BlockList(const BlockList&) = delete;
  BlockList& operator=(const BlockList&) = delete;
  ~BlockList();

  size_t blocks() const { return blocks_.size(); }
  const BlockSpec& block(size_t b) const { return blocks_[b]; }
  size_t tensors() const { return tensors_.size(); }
  const BlockTensor& tensor(size_t uid) const { return *tensors_[uid]; }
  /// uids of block b are first_uid(b) .. first_uid(b + 1) - 1.
  size_t first_uid(size_t b) const { return first_uid_[b]; }
  /// All values of a tensor.
  std::span<float> values(size_t uid) { return {data_ + offsets_[uid], Size(uid)}; }
  std::span<const float> values(size_t uid) const { return {data_ + offsets_[uid], Size(uid)}; }
  /// The whole arena: tensor after tensor, as a zo::ZoLayout of the same tensors sees it.
  std::span<float> arena() { return {data_, size_}; }
  std::span<const float> arena() const { return {data_, size_}; }
  size_t offset(size_t uid) const { return offsets_[uid]; }
  int64_t parameters() const { return static_cast<int64_t>(size_); }
  /// Floats of the largest block.
  size_t largest_block() const;
  /// Number of the tensor of this name, or tensors() when there is none.
  size_t Find(const std::string& name) const;

 private:
  size_t Size(size_t uid) const { return static_cast<size_t>(tensors_[uid]->elements()); }

  std::vector<BlockSpec> blocks_;
  std::vector<const BlockTensor*> tensors_;
  std::vector<size_t> first_uid_ = {0}, offsets_;
  float* data_ = nullptr;
  size_t size_ = 0, mapped_ = 0;
};

}  // namespace optod::tier
