#!/usr/bin/env bash
# Builds the CUDA kernels and the tiers on a machine with a GPU and runs their tests and benchmarks. Needs nvcc, CMake >= 3.24
# and a C++20 compiler: no gRPC, no Abseil, no test framework, no network. With PyTorch at hand it also times torch's fused
# AdamW, and a tiered OPT on PyTorch's LibTorch.
#   tests/gpu.sh [BUILD_DIR]        default build-gpu
# Exit status 0: every test passed. 2: no nvcc here, or no GPU: then everything is built for sm_80, sm_90 and sm_100 and the
# tests that need no GPU are run.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-"$root/build-gpu"}
python=${PYTHON:-python3}
export PATH="$PATH:/usr/local/cuda/bin"
command -v nvcc >/dev/null || { echo "gpu.sh: nvcc is not on the path"; exit 2; }
architectures=native
command -v nvidia-smi >/dev/null && nvidia-smi -L || architectures="80;90;100"
torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))' 2>/dev/null)
echo "== configure and build for $architectures in $build${torch:+, LibTorch in $torch}"
cmake -S "$root/cuda" -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES="$architectures" \
  -DOPTOD_TORCH_ROOT="$torch" || exit 1
cmake --build "$build" -j "$(nproc)" || exit 1
if [ "$architectures" != native ]; then
  "$build/optod-gpu-tier-test" Host || exit 1
  echo "gpu.sh: no GPU here: built for $architectures, run what needs none"
  exit 2
fi
status=0
echo "== tests of the kernels"
"$build/optod-gpu-test" || status=1
echo "== tests of the tiers"
"$build/optod-gpu-tier-test" || status=1
echo "== benchmark of the kernels"
"$build/optod-gpu-bench" | tee "$build/bench.txt"
if [ -n "$torch" ] && "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "== torch beside it"
  "$python" "$root/tests/gpu/torch_bench.py" "$build/bench.txt"
fi
if [ -x "$build/optod-gpu-tier-bench" ]; then
  echo "== benchmark of the tiers"
  "$build/optod-gpu-tier-bench" --models 1.3b,6.7b,13b | tee "$build/tier_bench.txt"
else
  echo "== benchmark of the tiers: left out, there is no LibTorch with CUDA here"
fi
exit "$status"
