#pragma once
/// Rows of tables that come by in pieces. Private: LibTorch types.

#include <algorithm>
#include <span>
#include <vector>

#include "optim/nn/aten.h"

namespace optod::train {

inline at::Tensor Indices(const std::vector<int64_t>& values) {
  at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), t.data_ptr<int64_t>());
  return t;
}

/// The rows of `ids` that lie in a piece of a table go to their places in `rows` [ids, width].
inline void CopyRows(const at::Tensor& ids, int64_t first_row, size_t width, std::span<const float> piece, at::Tensor& rows) {
  if (!rows.defined()) rows = at::empty({ids.numel(), static_cast<int64_t>(width)}, at::kFloat);
  const auto count = static_cast<int64_t>(piece.size() / width);
  const int64_t* id = ids.data_ptr<int64_t>();
  float* out = rows.data_ptr<float>();
  for (int64_t t = 0; t < ids.numel(); ++t) {
    const int64_t row = id[t] - first_row;
    if (row >= 0 && row < count)
      std::copy_n(piece.data() + static_cast<size_t>(row) * width, width, out + t * static_cast<int64_t>(width));
  }
}

}  // namespace optod::train
