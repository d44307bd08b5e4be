"""Time of an optimizer step: AdamW of PyTorch in this process beside RemoteOptimizer over TCP, a Unix socket and shared memory, in one run.

    OPTOD_TORCH_PYTHON tests/bench/remote_optimizer_bench.py [--sizes 1 10 100] [--ways "shared memory" ...] [--bin build/bin]
    (an interpreter with torch and optod)

A "model" is layers of 1000 x 1000 float32 with fixed gradients; a step is opt.step() alone, so what is shown is the
whole cost of stepping elsewhere; none of it is hidden behind a backward pass. Durability on-checkpoint: PyTorch's own step is not durable either.
The ways take turns, round after round; medians. Rows "server" are the server's own time for the rule, of the shared-memory rounds.
"""
import argparse
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import torch

import optod
import optod.torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def model(millions):
    out = [(f"layers.{i}.weight", torch.nn.Parameter(torch.randn(1000, 1000) * 0.02)) for i in range(millions)]
    for _, p in out:
        p.grad = torch.randn_like(p) * 1e-3
    return out


class Server:
    def __init__(self, binary, folder, listen):
        command = [str(binary), "--data-dir", os.path.join(folder, "data-" + listen.replace("/", "_").replace(":", "_")), "--listen", listen,
                   "--http", "off"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = self.process.stdout.readline().split("grpc=")[1].split()[0]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def measure(millions, rounds, tcp, unix, chosen):
    """Medians in seconds by way."""
    durability = optod.Durability("on-checkpoint", snapshot_every=1_000_000)

    def remote(address, **options):
        return lambda named: optod.torch.RemoteOptimizer(named, "adamw", lr=1e-3, address=address, durability=durability, **options)
    ways = {
        "torch AdamW (foreach)": lambda named: torch.optim.AdamW([p for _, p in named], lr=1e-3, foreach=True),
        "torch AdamW (fused)": lambda named: torch.optim.AdamW([p for _, p in named], lr=1e-3, fused=True),
        "TCP": remote(tcp, shared_memory=False),
        "TCP, bf16": remote(tcp, shared_memory=False, wire="bf16"),
        "Unix socket": remote(unix, shared_memory=False),
        "Unix socket, bf16": remote(unix, shared_memory=False, wire="bf16"),
        "shared memory": remote(unix, shared_memory=True),
    }
    ways = {name: way for name, way in ways.items() if not chosen or name.startswith("torch AdamW (foreach)") or name in chosen}
    found, server = {}, []
    # Large ones one after the other: seven copies of 100 M parameters and their states would not fit beside each other.
    groups = [list(ways)] if millions <= 10 else [[name] for name in ways]
    for group in groups:
        named = model(millions)
        opts = {name: ways[name](named if len(group) == 1 else model(millions)) for name in group}
        for name in group:
            opts[name].step()                  # session, first touch
            opts[name].step()
            found[name] = []
        for _ in range(rounds):
            for name in group:
                begin = time.perf_counter()
                opts[name].step()
                found[name].append(time.perf_counter() - begin)
                if name == "shared memory":
                    server.append(opts[name].results[0].compute_us / 1e6)
        for opt in opts.values():
            if hasattr(opt, "close"):
                for session in opt.sessions:
                    session.delete()
                opt.close()
    medians = {name: statistics.median(times) for name, times in found.items()}
    if server:
        medians["  of it the server's rule"] = statistics.median(server)
    return medians


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.environ.get("OPTOD_BIN_DIR", str(ROOT / "build" / "bin")))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100], help="million parameters")
    parser.add_argument("--rounds", type=int, default=0, help="0 = 30, 10 and 5 for 1, 10 and 100 million")
    parser.add_argument("--ways", nargs="+", default=[], help="only these beside torch AdamW (foreach); a short window splits a large size so")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    folder = tempfile.mkdtemp(prefix="optod-bench-")
    servers = [Server(pathlib.Path(args.bin) / "optod", folder, listen) for listen in ("127.0.0.1:0", f"unix:{folder}/sock")]
    try:
        for millions in args.sizes:
            rounds = args.rounds or (30 if millions <= 1 else 10 if millions <= 10 else 5)
            medians = measure(millions, rounds, servers[0].address, servers[1].address, args.ways)
            local = medians["torch AdamW (foreach)"]
            moved = 8 * millions * 1e6
            print(f"\n{millions} M float32 parameters, {rounds} rounds, load {os.getloadavg()[0]:.1f}\n"
                  f"{'WAY':<28}{'MS A STEP':>11}{'OVERHEAD MS':>13}{'OF LOCAL':>10}{'GB/S MOVED':>12}")
            for name, seconds in medians.items():
                remote = not name.startswith(("torch", " "))
                rate = f"{moved / (2 if 'bf16' in name else 1) / seconds / 1e9:.2f}" if remote else ""
                print(f"{name:<28}{1e3 * seconds:>11.2f}{1e3 * (seconds - local) if remote else 0:>13.2f}{seconds / local:>9.2f}x{rate:>12}", flush=True)
    finally:
        for server in servers:
            server.stop()
        subprocess.run(["rm", "-rf", folder], check=False)


if __name__ == "__main__":
    sys.exit(main())
