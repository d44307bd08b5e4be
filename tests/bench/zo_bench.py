"""Normals per second: optod's stream (C++ paths, NumPy twin) beside NumPy's and PyTorch's generators, in one run on one machine.

    PYTHONPATH=clients/python/src python3 tests/bench/zo_bench.py [--bin build/bin] [--millions 16] [--repetitions 9]

Prints medians in million float32 values per second and the ratio to NumPy's standard_normal.
"""
import argparse
import os
import platform
import statistics
import subprocess
import time

import numpy as np

from optod import zo


def rates(n, repetitions, run):
    """Median and best M/s after one call that does not count."""
    run()
    seconds = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return n / 1e6 / statistics.median(seconds), n / 1e6 / min(seconds)


def others(n, repetitions):
    generator, out = np.random.default_rng(1), np.empty(n, np.float32)
    theta, scale = np.full(n, 0.5, np.float32), np.float32(1e-3)

    def fused():
        generator.standard_normal(dtype=np.float32, out=out)
        np.multiply(out, scale, out=out)
        np.add(theta, out, out=theta)

    yield "numpy standard_normal(float32, out)", 1, *rates(n, repetitions, lambda: generator.standard_normal(dtype=np.float32, out=out))
    yield "numpy theta += scale * z", 1, *rates(n, repetitions, fused)
    few = n // 8
    yield "optod.zo.normal (NumPy twin)", 1, *rates(few, 3, lambda: zo.normal(1, 0, 0, 0, 0, few))
    try:
        import torch
    except ImportError:
        print("torch: not importable here, not measured")
        return
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tensor = torch.empty(n)
        yield "torch.randn", threads, *rates(n, repetitions, lambda: torch.randn(n))
        yield "torch normal_ in place", threads, *rates(n, repetitions, tensor.normal_)
        yield "torch add_(randn_like, alpha)", threads, *rates(n, repetitions, lambda: tensor.add_(torch.randn_like(tensor), alpha=1e-3))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.environ.get("OPTOD_BIN_DIR", "build/bin"))
    parser.add_argument("--millions", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    n = options.millions << 20
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, numpy {np.__version__}; "
          f"{n} float32, median of {options.repetitions}")
    rows = list(others(n, options.repetitions))
    done = subprocess.run([os.path.join(options.bin, "zo_bench"), str(options.millions), str(options.repetitions)],
                          capture_output=True, text=True, check=True)
    names = {"fill": "optod FillNormal", "add": "optod AddScaledNormal"}
    for line in done.stdout.splitlines():
        name, threads, median, best = line.split()
        kind, path = name.split("-")
        rows.append((f"{names[kind]} {path}", int(threads), float(median), float(best)))
    base = rows[0][2]
    print(f"{'':38} {'threads':>7} {'median M/s':>11} {'best M/s':>9} {'x numpy':>8}")
    for name, threads, median, best in rows:
        print(f"{name:38} {threads:7d} {median:11.0f} {best:9.0f} {median / base:8.2f}")


if __name__ == "__main__":
    main()
