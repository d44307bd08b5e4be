#include "optim/zo/direction.h"

#include <algorithm>
#include <array>
#include <type_traits>

namespace optod::zo {
namespace {

// Splits [first, first + n) of the flat vector at tensor borders: body(tensor, position in the tensor, offset in the
// range, count).
template <class Body>
void ForEachTensorPart(const ZoLayout& layout, size_t first, size_t n, Body body) {
  if (n == 0) return;
  size_t done = 0;
  for (size_t tensor = layout.TensorAt(first); done < n; ++tensor) {
    const size_t begin = first + done - layout.offset(tensor);
    const size_t count = std::min(n - done, layout.tensor(tensor).size - begin);
    if (count > 0) body(tensor, begin, done, count);
    done += count;
  }
}

}  // namespace

template <class T>
void DirectionSource<T>::AddScaled(int query, size_t first, T scale, std::span<const T> in, std::span<T> out) const {
  std::array<T, kChunk> z;
  for (size_t begin = 0; begin < out.size(); begin += kChunk) {
    const size_t count = std::min(kChunk, out.size() - begin);
    Fill(query, first + begin, {z.data(), count});
    for (size_t i = 0; i < count; ++i) out[begin + i] = in[begin + i] + scale * z[i];
  }
}

template <class T>
void ExplicitDirection<T>::Fill(int query, size_t first, std::span<T> z) const {
  std::copy_n(z_[query].begin() + first, z.size(), z.begin());
}

template <class T>
void StreamDirection<T>::Fill(int query, size_t first, std::span<T> z) const {
  const Direction direction{seed_, step_, static_cast<uint32_t>(query)};
  ForEachTensorPart(layout_, first, z.size(), [&](size_t tensor, size_t begin, size_t offset, size_t count) {
    if constexpr (std::is_same_v<T, float>) {
      FillNormal(direction, static_cast<uint32_t>(tensor), begin, z.subspan(offset, count));
    } else {
      std::array<float, kChunk> narrow;
      for (size_t done = 0; done < count; done += kChunk) {
        const size_t part = std::min(kChunk, count - done);
        FillNormal(direction, static_cast<uint32_t>(tensor), begin + done, {narrow.data(), part});
        std::copy_n(narrow.begin(), part, z.begin() + offset + done);
      }
    }
  });
}

template <class T>
void StreamDirection<T>::AddScaled(int query, size_t first, T scale, std::span<const T> in, std::span<T> out) const {
  if constexpr (std::is_same_v<T, float>) {
    const Direction direction{seed_, step_, static_cast<uint32_t>(query)};
    ForEachTensorPart(layout_, first, out.size(), [&](size_t tensor, size_t begin, size_t offset, size_t count) {
      AddScaledNormalTo(direction, static_cast<uint32_t>(tensor), begin, scale, in.subspan(offset, count),
                        out.subspan(offset, count));
    });
  } else {
    DirectionSource<T>::AddScaled(query, first, scale, in, out);
  }
}

template <class T>
void MaskedDirection<T>::Fill(int query, size_t first, std::span<T> z) const {
  inner_->Fill(query, first, z);
  mask_->Zero(first, z);
}

template class DirectionSource<float>;
template class DirectionSource<double>;
template class ExplicitDirection<float>;
template class ExplicitDirection<double>;
template class StreamDirection<float>;
template class StreamDirection<double>;
template class MaskedDirection<float>;
template class MaskedDirection<double>;

}  // namespace optod::zo
