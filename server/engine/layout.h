#pragma once
/// A session's layout in the form that numeric work wants: where each tensor lies in the flat buffer, and which tensor
/// has which name. Built once a session; read-only afterwards.

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "optim/rules/tensor.h"
#include "optod/v1/tensor.pb.h"
#include "server/engine/tensor_buffer.h"

namespace optod::engine {

class Layout {
 public:
  /// `index` has passed CheckLayout.
  explicit Layout(const v1::TensorIndex& index);

  size_t size() const { return specs_.size(); }
  const std::vector<optim::TensorSpec>& specs() const { return specs_; }
  const optim::TensorSpec& spec(size_t i) const { return specs_[i]; }
  uint64_t offset(size_t i) const { return offsets_[i]; }
  uint64_t total_bytes() const { return total_bytes_; }
  uint64_t total_elements() const { return total_elements_; }
  bool no_decay(size_t i) const { return no_decay_[i]; }
  /// Every tensor starts at a multiple of its element size.
  bool aligned() const { return aligned_; }
  /// Position of a tensor, or -1.
  int64_t Find(const std::string& name) const;
  /// `FIELD: "w2" is not in the layout; did you mean "w1"?`
  absl::Status Unknown(const std::string& field, const std::string& name) const;
  /// The layout as the wire has it, tensors matching one of `globs` (`*` any run, `?` one character; empty list = all);
  /// `chosen` gets their positions.
  v1::TensorIndex Index(const std::vector<std::string>& globs, std::vector<size_t>* chosen) const;

 private:
  std::vector<optim::TensorSpec> specs_;
  std::vector<uint64_t> offsets_;
  std::vector<bool> no_decay_;
  std::unordered_map<std::string, int64_t> by_name_;
  uint64_t total_bytes_ = 0, total_elements_ = 0;
  bool aligned_ = true;
};

/// "[3, 4]".
std::string ShapeText(const std::vector<int64_t>& shape);
/// Whether `text` matches a glob: `*` any run of characters, `?` one; everything else stands for itself.
bool GlobMatch(const std::string& glob, const std::string& text);
/// A number that the enum does not know (clients may send any) becomes kUnspecified.
optim::DType DTypeFromProto(v1::DType dtype);
optim::TensorSpec SpecFromProto(const v1::TensorSpec& spec);
void SpecToProto(const optim::TensorSpec& spec, v1::TensorSpec* out);

/// Checks one tensor of a message against its place in the layout (`field` = "initial[2]"): name known, shape equal,
/// dtype the layout's or, with `allow_f32`, float32; data of exactly that many bytes. Returns its position.
/// INVALID_ARGUMENT says which rule is broken.
absl::StatusOr<size_t> CheckTensor(const Layout& layout, const v1::Tensor& tensor, const std::string& field,
                                   bool allow_f32);
/// The flat buffer of a complete set of tensors in any order. INVALID_ARGUMENT names what is missing, doubled or wrong.
absl::StatusOr<std::shared_ptr<TensorBuffer>> FlatFromTensors(
    const Layout& layout, const google::protobuf::RepeatedPtrField<v1::Tensor>& tensors, const std::string& field);
/// All tensors with their bytes, in layout order.
void TensorsFromFlat(const Layout& layout, const std::byte* flat, google::protobuf::RepeatedPtrField<v1::Tensor>* out);

}  // namespace optod::engine
