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

/// As CopyRows, of a piece that is on another device.
inline void CopyRowsThere(const at::Tensor& ids, int64_t first_row, const at::Tensor& piece, at::Tensor& rows) {
  if (!rows.defined()) rows = at::empty({ids.numel(), piece.size(1)}, piece.options());
  std::vector<int64_t> to, from;
  const int64_t* id = ids.data_ptr<int64_t>();
  for (int64_t t = 0; t < ids.numel(); ++t) {
    const int64_t row = id[t] - first_row;
    if (row < 0 || row >= piece.size(0)) continue;
    to.push_back(t);
    from.push_back(row);
  }
  if (to.empty()) return;
  const at::Device device = piece.device();
  rows.index_copy_(0, Indices(to).to(device), at::index_select(piece, 0, Indices(from).to(device)));
}

}  // namespace optod::train
