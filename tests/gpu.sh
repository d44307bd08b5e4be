#!/usr/bin/env bash
# Builds the CUDA kernels on a machine with a GPU and runs their tests and benchmarks. Needs nvcc, CMake >= 3.24 and a
# C++20 compiler: no gRPC, no test framework, no network. With PyTorch at hand it also times torch's fused AdamW.
#   tests/gpu.sh [BUILD_DIR]        default build-gpu
# Exit status 0: every test passed. 2: no nvcc here, or no GPU: then the kernels are built for sm_80, sm_90 and sm_100
# and nothing is run.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-"$root/build-gpu"}
python=${PYTHON:-python3}
export PATH="$PATH:/usr/local/cuda/bin"
command -v nvcc >/dev/null || { echo "gpu.sh: nvcc is not on the path"; exit 2; }
architectures=native
command -v nvidia-smi >/dev/null && nvidia-smi -L || architectures="80;90;100"
echo "== configure and build for $architectures in $build"
cmake -S "$root/cuda" -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES="$architectures" || exit 1
cmake --build "$build" -j "$(nproc)" || exit 1
[ "$architectures" = native ] || { echo "gpu.sh: no GPU here: built, nothing run"; exit 2; }
echo "== tests"
"$build/optod-gpu-test"
status=$?
echo "== benchmark"
"$build/optod-gpu-bench" | tee "$build/bench.txt"
if "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "== torch beside it"
  "$python" "$root/tests/gpu/torch_bench.py" "$build/bench.txt"
fi
exit "$status"
