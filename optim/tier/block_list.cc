#include "optim/tier/block_list.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace optod::tier {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 40;  // 4 TiB of float32; the random stream ends at 2^42

absl::Status CheckShape(const BlockTensor& tensor) {
  int64_t count = 1;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    if (tensor.shape[i] <= 0) return InvalidArgument(tensor.name, ".shape[", i, "]: ", tensor.shape[i], " must be > 0");
    if (count > kMaxElements / tensor.shape[i]) return InvalidArgument(tensor.name, ".shape: too many elements");
    count *= tensor.shape[i];
  }
  return absl::OkStatus();
}

}  // namespace

int64_t BlockTensor::elements() const {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

absl::StatusOr<BlockList> BlockList::Create(std::vector<BlockSpec> blocks) {
  BlockList list;
  list.blocks_ = std::move(blocks);
  for (const BlockSpec& block : list.blocks_) {
    for (const BlockTensor& tensor : block.tensors) {
      RETURN_IF_ERROR(CheckShape(tensor));
      list.tensors_.push_back(&tensor);
      list.offsets_.push_back(list.size_);
      list.size_ += static_cast<size_t>(tensor.elements());
    }
    list.first_uid_.push_back(list.tensors_.size());
  }
  if (list.size_ == 0) return list;
  list.mapped_ = list.size_ * sizeof(float);
  void* memory = mmap(nullptr, list.mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return ResourceExhausted("parameters: no memory for ", list.mapped_, " bytes");
  if (list.mapped_ > (4u << 20))
    madvise(memory, list.mapped_, MADV_HUGEPAGE);  // a hint; first touch is four times cheaper
  list.data_ = static_cast<float*>(memory);
  return list;
}

BlockList::BlockList(BlockList&& other) noexcept { *this = std::move(other); }

BlockList& BlockList::operator=(BlockList&& other) noexcept {
  std::swap(blocks_, other.blocks_);  // a moved vector keeps its elements' addresses: tensors_ stays right
  std::swap(tensors_, other.tensors_);
  std::swap(first_uid_, other.first_uid_);
  std::swap(offsets_, other.offsets_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

BlockList::~BlockList() {
  if (data_ != nullptr) munmap(data_, mapped_);
}

size_t BlockList::largest_block() const {
  size_t largest = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    size_t floats = 0;
    for (const BlockTensor& tensor : blocks_[b].tensors) floats += static_cast<size_t>(tensor.elements());
    largest = std::max(largest, floats);
  }
  return largest;
}

size_t BlockList::Find(const std::string& name) const {
  for (size_t uid = 0; uid < tensors_.size(); ++uid) {
    if (tensors_[uid]->name == name) return uid;
  }
  return tensors_.size();
}

}  // namespace optod::tier
