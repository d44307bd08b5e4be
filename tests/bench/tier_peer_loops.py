"""The peers of tier_peer.py, each a process of its own: PYTHON tier_peer_loops.py zo2|disk JSON. Prints one JSON line.

zo2   The published code of ZO2 (github.com/liangyuwang/zo2, checkout in OPTOD_ZO2), its nanoGPT, unaltered. It is written for CUDA: three streams, the
      generator of the device. Here torch.cuda's streams are stand-ins that do nothing and its generator is the CPU's, so the algorithm and its order of work
      are theirs, and their upload and offload, of one memory to itself, cost nothing: their best case. All parameters stay in memory; their path to a
      disk raises ValueError in the published version.
disk  The paper's algorithm in plain PyTorch with the blocks in files: a thread reads block i + 1 and another writes block i - 1 while block i is updated with
      the last step's scalar, perturbed +1, -2, +1 and run twice. Files are read and written through the page cache, without checksums."""
import concurrent.futures
import contextlib
import json
import os
import resource
import statistics
import sys
import time
import types

import numpy
import torch


class NoStream:
    def synchronize(self):
        pass


def use_cpu_for_cuda():
    torch.cuda.Stream = torch.cuda.current_stream = NoStream
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.synchronize = lambda *unused: None
    torch.cuda.get_rng_state, torch.cuda.set_rng_state, torch.cuda.manual_seed = torch.get_rng_state, torch.set_rng_state, torch.manual_seed


def zo2_nanogpt():
    """Their modules, without the package's __init__, which imports models of transformers that this does not need."""
    root = os.environ["OPTOD_ZO2"]
    for name in ("zo2", "zo2.model"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(root, *name.split("."))]
        sys.modules[name] = package
    from zo2.config.mezo_sgd import MeZOSGDConfig
    from zo2.model.nanogpt.mezo_sgd.zo2 import GPT
    from zo2.model.nanogpt.model import GPTConfig
    return GPT, GPTConfig, MeZOSGDConfig


def zo2_step(a):
    use_cpu_for_cuda()
    GPT, GPTConfig, MeZOSGDConfig = zo2_nanogpt()
    with contextlib.redirect_stdout(sys.stderr):
        model = GPT(GPTConfig(block_size=a["positions"], vocab_size=a["vocab"], n_layer=a["layers"], n_head=a["heads"], n_embd=a["width"]),
                    MeZOSGDConfig(lr=1e-6, weight_decay=0.0, eps=1e-3, working_device="cpu", offloading_device="cpu"))
    model.zo_train()
    ids, positions = torch.randint(0, 26, (a["batch"], a["tokens"])), torch.arange(a["tokens"])
    return lambda: model(ids, positions, ids)


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, nn = heads, torch.nn
        self.ln_1, self.c_attn, self.c_proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ln_2, self.c_fc, self.out = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(c, 2))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.out(torch.nn.functional.gelu(self.c_fc(self.ln_2(x))))


class OnDisk:
    """Blocks in files; three in memory: one coming, one at work, one going."""
    def __init__(self, folder, blocks, make):
        self.folder, self.blocks, self.pool, self.slots = folder, blocks, concurrent.futures.ThreadPoolExecutor(2), [make() for _ in range(3)]
        self.going = [None] * 3
        for i in range(blocks):
            self.write(i, self.slots[0])

    def flat(self, module):
        return torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()

    def read(self, i, module):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(numpy.fromfile(f"{self.folder}/{i}", dtype=numpy.float32)), module.parameters())

    def write(self, i, module):
        self.flat(module).tofile(f"{self.folder}/{i}")

    def sweep(self, visit):
        def fetch(i):
            if self.going[i % 3] is not None:
                self.going[i % 3].result()
            return self.pool.submit(self.read, i, self.slots[i % 3])
        coming = fetch(0)
        for i in range(self.blocks):
            coming.result()
            if i + 1 < self.blocks:
                coming = fetch(i + 1)
            visit(self.slots[i % 3])
            self.going[i % 3] = self.pool.submit(self.write, i, self.slots[i % 3])
        for write in self.going:
            write.result()


def disk_step(a):
    torch.set_grad_enabled(False)
    eps, lr = 1e-3, 1e-6
    blocks = OnDisk(a["disk"], a["layers"], lambda: Block(a["width"], a["heads"]))
    tokens, places = torch.nn.Embedding(a["vocab"], a["width"]), torch.nn.Embedding(a["positions"], a["width"])
    norm, head = torch.nn.LayerNorm(a["width"]), torch.nn.Linear(a["width"], a["vocab"], bias=False)
    ids, positions = torch.randint(0, 26, (a["batch"], a["tokens"])), torch.arange(a["tokens"])
    state = {"g": 0.0, "seed": None, "step": 0}

    def passes(module, last, now):
        """Update with the last step's direction, then the two perturbed forwards of both lanes; cursors of the generator as ZO2 keeps them."""
        def along(cursor, use):
            torch.set_rng_state(cursor[0])
            for p in module.parameters():
                use(p, torch.normal(mean=0, std=1, size=p.size()))
            return torch.get_rng_state()
        if state["g"]:
            last[0] = along(last, lambda p, z: p.sub_(lr * (state["g"] * z)))
        along(now, lambda p, z: p.add_(z * eps))
        yield
        along(now, lambda p, z: p.add_(-2 * z * eps))
        yield
        now[0] = along(now, lambda p, z: p.add_(z * eps))
        yield

    def both(module, lanes, last, now, forward):
        step = passes(module, last, now)
        out = []
        for lane in lanes:
            next(step)
            out.append(forward(module, lane))
        next(step)
        return out

    def cursor(seed):
        torch.manual_seed(seed)
        return [torch.get_rng_state()]

    def one_step():
        now, last = cursor(state["step"] + 1), cursor(state["step"] or 1)
        state["step"] += 1
        lanes = both(tokens, [ids, ids], last, now, lambda m, x: m(x))
        places2 = both(places, [positions, positions], last, now, lambda m, x: m(x))
        hidden = [x + p for x, p in zip(lanes, places2)]
        def visit(block):
            hidden[:] = both(block, hidden, last, now, lambda m, x: m(x))
        blocks.sweep(visit)
        hidden[:] = both(norm, hidden, last, now, lambda m, x: m(x))
        logits = both(head, hidden, last, now, lambda m, x: m(x))
        losses = [float(torch.nn.functional.cross_entropy(y[:, :-1].reshape(-1, a["vocab"]), ids[:, 1:].reshape(-1))) for y in logits]
        state["g"] = (losses[0] - losses[1]) / (2 * eps)
    return one_step


def main():
    a = json.loads(sys.argv[2])
    torch.set_num_threads(a["threads"])
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    base = peak()
    step = {"zo2": zo2_step, "disk": disk_step}[sys.argv[1]](a)
    times = []
    for _ in range(a["steps"] + 1):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    print(json.dumps({"seconds": statistics.median(times[1:]), "peak_mib": peak(), "base_mib": base}))


if __name__ == "__main__":
    main()
