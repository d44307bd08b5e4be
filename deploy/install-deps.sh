#!/usr/bin/env bash
# Installs what optod needs on Debian 12: build tools, libraries, and a Python environment in build/venv.
#   deploy/install-deps.sh [--build] [--python] [--all]      default: --all
# Debian packages come from the configured mirror, Python packages from PyPI. Idempotent; needs root (or sudo) only when a package is missing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
want_build=0; want_python=0
[ $# -eq 0 ] && set -- --all
for arg in "$@"; do
  case "$arg" in
    --build) want_build=1 ;;
    --python) want_python=1 ;;
    --all) want_build=1; want_python=1 ;;
    -h|--help) sed -n '2,4p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    *) echo "install-deps.sh: unknown option $arg (see --help)" >&2; exit 2 ;;
  esac
done

build_packages=(
  g++ cmake ninja-build ccache mold pkg-config git ca-certificates
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev libre2-dev
  libsqlite3-dev libcurl4-openssl-dev nlohmann-json3-dev libyaml-cpp-dev libcli11-dev
  libspdlog-dev prometheus-cpp-dev libcpp-httplib-dev libsodium-dev zlib1g-dev
  libopenblas-openmp-dev liblapacke-dev libtorch-dev
  bubblewrap libseccomp-dev util-linux
  libgtest-dev libgmock-dev libbenchmark-dev sqlite3
)
python_packages=(python3 python3-venv python3-dev libgomp1 bible-kjv bible-kjv-text graphviz)

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
apt_install() {
  local missing=()
  for p in "$@"; do dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p"); done
  if [ ${#missing[@]} -eq 0 ]; then echo "install-deps: Debian packages present ($# checked)"; return; fi
  echo "install-deps: installing ${#missing[@]} Debian packages: ${missing[*]}"
  as_root apt-get update -q >/dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}

if [ $want_build -eq 1 ]; then
  apt_install "${build_packages[@]}"
  # One OpenBLAS only: the pthread build fights OpenMP's threads, the reference BLAS is 40-80 times slower.
  triplet=$(gcc -dumpmachine)
  for lib in libblas.so.3 liblapack.so.3; do
    target="/usr/lib/$triplet/openblas-openmp/$lib"
    if [ -e "$target" ]; then as_root update-alternatives --set "$lib-$triplet" "$target" >/dev/null 2>&1 || true; fi
  done
fi
if [ $want_python -eq 1 ]; then
  apt_install "${python_packages[@]}"
  venv="$root/build/venv"
  mkdir -p "$root/build"
  [ -x "$venv/bin/python" ] || { echo "install-deps: creating build/venv"; /usr/bin/python3 -m venv "$venv"; }
  echo "install-deps: Python packages (deploy/requirements.txt)"
  "$venv/bin/pip" install -q --disable-pip-version-check -r "$root/deploy/requirements.txt"
  "$venv/bin/pip" install -q --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall "$root/clients/python"
fi
echo "install-deps: done"
