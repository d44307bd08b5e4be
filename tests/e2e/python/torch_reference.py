"""Slow, obvious optimizers in PyTorch, written from the papers' equations: what RemoteOptimizer is held against."""

import fnmatch
import math

import torch


class Local:
    """named: [(name, parameter)]."""

    def __init__(self, named, lr):
        self.named, self.lr, self.t = list(named), lr, 0
        self.state = {name: {} for name, _ in self.named}

    def zero_grad(self):
        for _, p in self.named:
            p.grad = None

    @torch.no_grad()
    def step(self, **inputs):
        self.t += 1
        self.before(**inputs)
        for name, p in self.named:
            self.one(name, p, p.grad.detach(), self.state[name], **inputs)

    def before(self, **inputs):
        pass


class Scale(Local):
    """Glentis et al. 2025, Alg. 1 with root mean squares; 1-D tensors by Adam at lr * adam_lr / max_lr."""

    def __init__(self, named, lr, adam_lr=2e-2, momentum=0.9):
        super().__init__(named, lr)
        self.ratio, self.momentum = adam_lr / lr, momentum

    def one(self, name, p, g, s):
        if p.ndim < 2:
            m, v = s.setdefault("m", torch.zeros_like(p)), s.setdefault("v", torch.zeros_like(p))
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).add_(g * g, alpha=0.001)
            c = (1 - 0.9**self.t) / math.sqrt(1 - 0.999**self.t)
            p -= self.lr * self.ratio / c * m / (1e-8 + v.sqrt())
            return
        dim = 0 if fnmatch.fnmatch(name, "*embed_tokens*") else 1
        if dim == 1 and not any(fnmatch.fnmatch(name, glob) for glob in ("*attn*", "*attention*", "*mlp*")):
            g = s.setdefault("m", torch.zeros_like(p)).mul_(self.momentum).add_(g, alpha=1 - self.momentum)
        p -= self.lr * g / g.pow(2).mean(dim=dim, keepdim=True).sqrt().clamp(min=1e-8)


class SgdSai(Local):
    """Xu et al. 2024, Alg. 1 as released: the ratio of the first gradient, an averaged buffer that starts at the gradient."""

    def __init__(self, named, lr, weight_decay=1e-2, momentum=0.9):
        super().__init__(named, lr)
        self.weight_decay, self.momentum = weight_decay, momentum

    def one(self, name, p, g, s):
        if "gsnr" not in s:
            std = g.std() if g.numel() > 1 else torch.zeros(())
            s["gsnr"] = g.norm() / (std + 1e-8)
            s["b"] = g.clone()
        else:
            s["b"].mul_(self.momentum).add_(g, alpha=1 - self.momentum)
        p.mul_(1 - self.lr * self.weight_decay)
        p -= self.lr * s["gsnr"] * s["b"]


class AdaHessian(Local):
    """Yao et al. 2021, Alg. 1, image variant; z * Hz is given."""

    def one(self, name, p, g, s, hessian_z=None):
        m, v = s.setdefault("m", torch.zeros_like(p)), s.setdefault("v", torch.zeros_like(p))
        d = hessian_z[name].abs()
        if d.ndim == 4:
            d = d.mean(dim=(2, 3), keepdim=True)
        m.mul_(0.9).add_(g, alpha=0.1)
        v.mul_(0.999).add_(d * d, alpha=0.001)
        denominator = v.sqrt() / math.sqrt(1 - 0.999**self.t) + 1e-4
        p -= self.lr * (m / (1 - 0.9**self.t)) / denominator


class Mkor(Local):
    """Mozaffari et al. 2023 as released: K from I, 0.95 K + 0.05 I, minus a rank-1 term; SGD with momentum behind. One gradient a layer with bias."""

    def __init__(self, named, lr, inv_freq=2, momentum=0.9):
        super().__init__(named, lr)
        self.inv_freq, self.momentum = inv_freq, momentum

    def before(self, statistics=None):
        named = dict(self.named)
        for layer in {name.rsplit(".", 1)[0] for name in named}:
            w, b = named[layer + ".weight"], named[layer + ".bias"]
            s = self.state.setdefault(layer, {})
            flat = torch.cat([w.grad.reshape(w.shape[0], -1), b.grad[:, None]], dim=1)
            if (self.t - 1) % self.inv_freq == 0:
                a = torch.cat([statistics["act/" + layer], torch.ones(1)])
                for key, v in (("A", a), ("G", statistics["pgrad/" + layer])):
                    if key not in s:
                        s[key] = torch.eye(len(v))
                        continue
                    k = 0.95 * s[key] + 0.05 * torch.eye(len(v))
                    kv = k @ v
                    s[key] = k - torch.outer(kv, kv) / (1 + v @ kv)
            d = s["G"] @ flat @ s["A"]
            ratio = (flat[:, :-1].norm() + flat[:, -1].norm()) / (d[:, :-1].norm() + d[:, -1].norm())
            d = d * ratio
            s["weight"], s["bias"] = d[:, :-1].reshape(w.shape), d[:, -1]

    def one(self, name, p, g, s, statistics=None):
        layer, kind = name.rsplit(".", 1)
        g = self.state[layer][kind]
        s["buf"] = g.clone() if "buf" not in s else s["buf"].mul_(self.momentum).add_(g)
        p -= self.lr * s["buf"]
