// optod-zo-dump normal|add|masked PATH SEED STEP QUERY TENSOR FIRST N [SCALE [RATIO uniform|normal EVERY]]: a slice of the random stream as raw
// little-endian float32 on stdout, for comparison with other implementations. PATH: scalar, avx2, avx512 or best. `add`
// reads N floats from stdin and writes theta + SCALE * z; `masked` leaves those still that the mask of step / EVERY
// holds (support.h; the best path). Exit 2: usage; 3: this CPU lacks PATH.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "optim/zo/stream_slices.h"
#include "optim/zo/support.h"

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (!(mode == "normal" && argc == 9) && !(mode == "add" && argc == 10) && !(mode == "masked" && argc == 13)) {
    std::fprintf(stderr,
                 "usage: optod-zo-dump normal|add|masked scalar|avx2|avx512|best SEED STEP QUERY TENSOR FIRST N "
                 "[SCALE [RATIO uniform|normal EVERY]]\n");
    return 2;
  }
  const std::string path = argv[2];
  namespace kernels = optod::zo::kernels;
  const kernels::Kernels* kernel = path == "scalar"   ? &kernels::Scalar()
                                   : path == "avx2"   ? kernels::Avx2()
                                   : path == "avx512" ? kernels::Avx512()
                                                      : &kernels::Best();
  if (kernel == nullptr) return 3;
  auto number = [&](int i) { return std::strtoull(argv[i], nullptr, 0); };
  const optod::zo::Direction direction{number(3), static_cast<uint32_t>(number(4)), static_cast<uint32_t>(number(5))};
  const uint32_t tensor = static_cast<uint32_t>(number(6));
  std::vector<float> values(number(8));
  if (mode != "normal" && std::fread(values.data(), sizeof(float), values.size(), stdin) != values.size()) return 2;
  if (mode == "masked") {
    optod::zo::ZoHyper hyper;
    hyper.mask_law = std::string(argv[11]) == "normal" ? optod::zo::MaskLaw::kNormal : optod::zo::MaskLaw::kUniform;
    hyper.mask_every = std::atoi(argv[12]);
    optod::zo::AddScaledMasked(direction, tensor, number(7), hyper, std::strtod(argv[10], nullptr), std::strtof(argv[9], nullptr), values);
  } else if (mode == "add") {
    kernels::AddSlice(*kernel, 2, direction, tensor, number(7), std::strtof(argv[9], nullptr), values, values);
  } else {
    kernels::FillSlice(*kernel, 2, direction, tensor, number(7), values);
  }
  return std::fwrite(values.data(), sizeof(float), values.size(), stdout) == values.size() ? 0 : 1;
}
