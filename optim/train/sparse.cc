#include "optim/train/sparse.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/crc32c.h"
#include "base/fs.h"
#include "base/status.h"

namespace optod::train {
namespace {

constexpr uint32_t kMaskQuery = 0xfffffffeu;  // no step has so many queries
constexpr size_t kPart = size_t{1} << 16;     // a multiple of 64: parts share no word of a mask

/// The rank-th smallest of `values`, which are reordered.
float Quantile(std::vector<float>& values, double ratio) {
  const size_t rank = std::min(values.size() - 1, static_cast<size_t>(ratio * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(rank), values.end());
  return values[rank];
}

}  // namespace

zo::Direction MaskDirection(uint64_t seed, int64_t draw) { return {seed, static_cast<uint32_t>(draw), kMaskQuery}; }

absl::StatusOr<std::shared_ptr<const zo::BitMask>> Masks::At(int64_t step, const Theta& theta) {
  if (!on()) return std::shared_ptr<const zo::BitMask>();
  if (fixed()) {
    if (mask_ == nullptr) return FailedPrecondition("sparse: wanda's mask is missing");
    return mask_;
  }
  const int64_t draw = step / spec_.resample;
  if (draw == drawn_) return mask_;
  ASSIGN_OR_RETURN(zo::BitMask mask, spec_.source == "random" ? Random(draw, theta) : Magnitude(theta()));
  SetFixed(std::move(mask));
  drawn_ = draw;
  return mask_;
}

absl::StatusOr<zo::BitMask> Masks::Random(int64_t draw, const Theta& theta) const {
  const zo::Direction direction = MaskDirection(seed_, draw);
  std::vector<double> ratios(layout_.tensors(), spec_.ratio);
  if (spec_.group == "global") {
    ASSIGN_OR_RETURN(ratios, zo::GlobalMaskRatios(layout_, theta(), spec_.ratio, direction));
  }
  zo::BitMask mask(layout_.size());
  std::vector<uint8_t> bytes;
  for (size_t tensor = 0; tensor < layout_.tensors(); ++tensor) {
    const size_t size = layout_.tensor(tensor).size;
    for (size_t at = 0; at < size; at += kPart) {
      bytes.resize(std::min(kPart, size - at));
      RETURN_IF_ERROR(zo::FillMask(direction, static_cast<uint32_t>(tensor), at, ratios[tensor], MaskLawOf(spec_), bytes));
      mask.Set(layout_.offset(tensor) + at, bytes);
    }
  }
  return mask;
}

absl::StatusOr<zo::BitMask> Masks::Magnitude(std::span<const float> theta) const {
  zo::BitMask mask(layout_.size());
  const bool global = spec_.group == "global";
  std::vector<float> sizes;
  float tau = 0;
  const auto read = [&](size_t first, size_t n) {
    sizes.assign(theta.begin() + static_cast<ptrdiff_t>(first), theta.begin() + static_cast<ptrdiff_t>(first + n));
    for (float& w : sizes) w = std::fabs(w);
  };
  if (global) {
    read(0, theta.size());
    tau = Quantile(sizes, spec_.ratio);
  }
  std::vector<uint8_t> bytes;
  for (size_t tensor = 0; tensor < layout_.tensors(); ++tensor) {
    const size_t first = layout_.offset(tensor), size = layout_.tensor(tensor).size;
    if (size == 0) continue;
    if (!global) {
      read(first, size);
      tau = Quantile(sizes, spec_.ratio);
    }
    bytes.resize(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = std::fabs(theta[first + i]) < tau;
    mask.Set(first, bytes);
  }
  return mask;
}

absl::StatusOr<std::vector<uint8_t>> WandaBytes(const tier::BlockTensor& tensor, std::span<const float> w,
                                                const std::vector<double>& norm, double ratio, bool in_out) {
  const auto out = static_cast<size_t>(tensor.shape[in_out ? 1 : 0]), in = static_cast<size_t>(tensor.shape[in_out ? 0 : 1]);
  if (norm.size() != in) return Internal("sparse: ", norm.size(), " input norms; must be ", in);
  std::vector<uint8_t> bytes(w.size());
  std::vector<float> scores(in), sorted;
  for (size_t o = 0; o < out; ++o) {
    const auto place = [&](size_t i) { return in_out ? i * out + o : o * in + i; };
    for (size_t i = 0; i < in; ++i) scores[i] = std::fabs(w[place(i)]) * static_cast<float>(norm[i]);
    sorted = scores;
    const float tau = Quantile(sorted, ratio);
    for (size_t i = 0; i < in; ++i) bytes[place(i)] = scores[i] < tau;
  }
  return bytes;
}

absl::StatusOr<zo::BitMask> WandaMask(const zo::ZoLayout& layout, const std::vector<tier::BlockTensor>& tensors,
                                      std::span<const float> theta, const std::map<size_t, std::vector<double>>& norms,
                                      double ratio, bool in_out) {
  if (norms.empty()) return InvalidArgument("sparse.source: wanda needs linear layers among what is trained");
  zo::BitMask mask(layout.size());
  for (const auto& [tensor, norm] : norms) {
    const std::span<const float> w = theta.subspan(layout.offset(tensor), layout.tensor(tensor).size);
    ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes, WandaBytes(tensors[tensor], w, norm, ratio, in_out));
    mask.Set(layout.offset(tensor), bytes);
  }
  return mask;
}

std::string MaskFile(const std::string& own) { return own + "/sparse.mask"; }

absl::StatusOr<std::optional<zo::BitMask>> FindMask(const std::string& own, const std::string& before, size_t size) {
  for (const std::string& folder : {own, before}) {
    if (!PosixFs().Exists(MaskFile(folder))) continue;
    ASSIGN_OR_RETURN(zo::BitMask mask, ReadMask(MaskFile(folder), size));
    if (folder != own) RETURN_IF_ERROR(WriteMask(MaskFile(own), mask));
    return mask;
  }
  return std::optional<zo::BitMask>();
}

absl::Status WriteMask(const std::string& path, const zo::BitMask& mask) {
  const uint64_t size = mask.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof(size));
  bytes.append(reinterpret_cast<const char*>(mask.words().data()), mask.words().size() * sizeof(uint64_t));
  const uint32_t crc = Crc32c(std::as_bytes(std::span(bytes.data(), bytes.size())));
  bytes.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
  return PosixFs().WriteFileAtomic(path, BytesOf(bytes));
}

absl::StatusOr<zo::BitMask> ReadMask(const std::string& path, size_t size) {
  ASSIGN_OR_RETURN(const std::string bytes, PosixFs().ReadFile(path));
  zo::BitMask mask(size);
  const size_t words = mask.words().size() * sizeof(uint64_t);
  uint64_t stored = 0;
  uint32_t crc = 0;
  if (bytes.size() != sizeof(stored) + words + sizeof(crc))
    return DataLoss("sparse mask: of another model, or cut off");
  std::memcpy(&stored, bytes.data(), sizeof(stored));
  std::memcpy(&crc, bytes.data() + sizeof(stored) + words, sizeof(crc));
  if (stored != size || crc != Crc32c(std::as_bytes(std::span(bytes.data(), bytes.size() - sizeof(crc)))))
    return DataLoss("sparse mask: damaged");
  std::vector<uint8_t> part;
  for (size_t at = 0; at < size; at += kPart) {
    part.resize(std::min(kPart, size - at));
    for (size_t i = 0; i < part.size(); ++i)
      part[i] = (static_cast<unsigned char>(bytes[sizeof(stored) + (at + i) / 8]) >> ((at + i) % 8)) & 1;
    mask.Set(at, part);
  }
  return mask;
}

}  // namespace optod::train
