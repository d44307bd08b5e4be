#include "server/engine/layout.h"

#include <cstring>

#include "base/status.h"
#include "optim/rules/nearest.h"

namespace optod::engine {

optim::DType DTypeFromProto(v1::DType dtype) {
  return v1::DType_IsValid(dtype) ? static_cast<optim::DType>(dtype) : optim::DType::kUnspecified;
}

optim::TensorSpec SpecFromProto(const v1::TensorSpec& spec) {
  return {spec.name(), DTypeFromProto(spec.dtype()), {spec.shape().begin(), spec.shape().end()}, spec.no_decay()};
}

void SpecToProto(const optim::TensorSpec& spec, v1::TensorSpec* out) {
  out->set_name(spec.name);
  out->set_dtype(static_cast<v1::DType>(spec.dtype));
  out->mutable_shape()->Assign(spec.shape.begin(), spec.shape.end());
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

bool GlobMatch(const std::string& glob, const std::string& text) {
  size_t g = 0, t = 0, star = std::string::npos, from = 0;
  while (t < text.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      from = t;
    } else if (g < glob.size() && (glob[g] == '?' || glob[g] == text[t])) {
      ++g, ++t;
    } else if (star != std::string::npos) {
      g = star + 1;  // the last star takes one character more
      t = ++from;
    } else {
      return false;
    }
  }
  while (g < glob.size() && glob[g] == '*') ++g;
  return g == glob.size();
}

Layout::Layout(const v1::TensorIndex& index) {
  specs_.reserve(index.tensors_size());
  for (const v1::TensorSpec& tensor : index.tensors()) {
    optim::TensorSpec spec = SpecFromProto(tensor);
    by_name_.emplace(spec.name, static_cast<int64_t>(specs_.size()));
    offsets_.push_back(total_bytes_);
    no_decay_.push_back(tensor.no_decay());
    const size_t element = optim::DTypeSize(spec.dtype);
    if (element > 0 && total_bytes_ % element != 0) aligned_ = false;
    total_bytes_ += spec.bytes();
    total_elements_ += static_cast<uint64_t>(spec.elements());
    specs_.push_back(std::move(spec));
  }
}

int64_t Layout::Find(const std::string& name) const {
  auto it = by_name_.find(name);
  return it == by_name_.end() ? -1 : it->second;
}

absl::Status Layout::Unknown(const std::string& field, const std::string& name) const {
  std::vector<std::string> names;
  for (size_t i = 0; i < specs_.size() && i < 4096; ++i) names.push_back(specs_[i].name);  // enough for a hint
  const std::string nearest = optim::Nearest(name, names);
  if (nearest.empty()) return InvalidArgument(field, ": \"", name, "\" is not in the layout");
  return InvalidArgument(field, ": \"", name, "\" is not in the layout; did you mean \"", nearest, "\"?");
}

v1::TensorIndex Layout::Index(const std::vector<std::string>& globs, std::vector<size_t>* chosen) const {
  v1::TensorIndex out;
  uint64_t bytes = 0;
  for (size_t i = 0; i < specs_.size(); ++i) {
    bool take = globs.empty();
    for (const std::string& glob : globs) take = take || GlobMatch(glob, specs_[i].name);
    if (!take) continue;
    v1::TensorSpec* spec = out.add_tensors();
    SpecToProto(specs_[i], spec);
    spec->set_no_decay(no_decay_[i]);
    bytes += specs_[i].bytes();
    chosen->push_back(i);
  }
  out.set_total_bytes(bytes);
  return out;
}

absl::StatusOr<size_t> CheckTensor(const Layout& layout, const v1::Tensor& tensor, const std::string& field,
                                   bool allow_f32) {
  const int64_t at = layout.Find(tensor.spec().name());
  if (at < 0) return layout.Unknown(field + ".spec.name", tensor.spec().name());
  const optim::TensorSpec& want = layout.spec(static_cast<size_t>(at));
  const optim::TensorSpec given = SpecFromProto(tensor.spec());
  const std::string who = field + " \"" + want.name + "\"";
  if (given.shape != want.shape)
    return InvalidArgument(who, ": shape ", ShapeText(given.shape), "; the layout has ", ShapeText(want.shape));
  const bool dtype_ok = given.dtype == want.dtype || (allow_f32 && given.dtype == optim::DType::kF32);
  if (!dtype_ok) {
    return InvalidArgument(who, ": dtype ", optim::DTypeName(given.dtype), "; must be ", optim::DTypeName(want.dtype),
                           allow_f32 && want.dtype != optim::DType::kF32 ? " or float32" : "");
  }
  if (tensor.data().size() != given.bytes())
    return InvalidArgument(who, ": ", tensor.data().size(), " bytes of data; ", given.elements(), " elements of ",
                           optim::DTypeName(given.dtype), " take ", given.bytes());
  return static_cast<size_t>(at);
}

absl::StatusOr<std::shared_ptr<TensorBuffer>> FlatFromTensors(
    const Layout& layout, const google::protobuf::RepeatedPtrField<v1::Tensor>& tensors, const std::string& field) {
  // Everything is checked before memory is taken: a layout may claim more than there is.
  std::vector<const v1::Tensor*> of(layout.size(), nullptr);
  for (int i = 0; i < tensors.size(); ++i) {
    const std::string name = Cat(field, "[", i, "]");
    ASSIGN_OR_RETURN(const size_t at, CheckTensor(layout, tensors[i], name, /*allow_f32=*/false));
    if (of[at] != nullptr) return InvalidArgument(name, " \"", layout.spec(at).name, "\": given twice");
    of[at] = &tensors[i];
  }
  for (size_t i = 0; i < layout.size(); ++i) {
    if (of[i] == nullptr) return InvalidArgument(field, ": tensor \"", layout.spec(i).name, "\" is missing");
  }
  auto flat = TensorBuffer::Make(layout.total_bytes());
  if (flat == nullptr) return ResourceExhausted(field, ": no memory for ", layout.total_bytes(), " bytes");
  for (size_t i = 0; i < layout.size(); ++i)
    std::memcpy(flat->data() + layout.offset(i), of[i]->data().data(), of[i]->data().size());
  return flat;
}

void TensorsFromFlat(const Layout& layout, const std::byte* flat, google::protobuf::RepeatedPtrField<v1::Tensor>* out) {
  for (size_t i = 0; i < layout.size(); ++i) {
    v1::Tensor* tensor = out->Add();
    SpecToProto(layout.spec(i), tensor->mutable_spec());
    tensor->mutable_spec()->set_no_decay(layout.no_decay(i));
    tensor->set_data(flat + layout.offset(i), layout.spec(i).bytes());
  }
}

}  // namespace optod::engine
