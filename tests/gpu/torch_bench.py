"""Times torch's fused optimizers on the same card and number of elements as optod-gpu-bench did, and prints the ratios.

    torch_bench.py BENCH.TXT        whose last line is the JSON that optod-gpu-bench prints
"""
import json
import sys

import torch


def milliseconds(body, repeats=15):
    """Median of ``repeats`` after three that are not counted."""
    times = []
    for k in range(repeats + 3):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        body()
        stop.record()
        stop.synchronize()
        if k >= 3:
            times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def main():
    with open(sys.argv[1]) as lines:
        ours = json.loads(lines.read().strip().splitlines()[-1])
    n = ours["elements"]
    subjects = [
        ("sgd", lambda p: torch.optim.SGD(p, lr=1e-3, fused=True), torch.float32),
        ("sgd momentum", lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True), torch.float32),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True), torch.float32),
        ("amsgrad", lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True, fused=True), torch.float32),
        ("adamw bf16", lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True), torch.bfloat16),
    ]
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name(0)}, {n} elements")
    for name, make, dtype in subjects:
        p = torch.nn.Parameter(torch.zeros(n, device="cuda", dtype=dtype))
        p.grad = torch.full_like(p, 1e-3)
        optimizer = make([p])
        ms = milliseconds(optimizer.step)
        print(f"{name:28s} torch {ms:9.3f} ms, ours {ours['ms'][name]:9.3f} ms, torch/ours {ms / ours['ms'][name]:6.2f}")
        del p, optimizer
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
