"""Models and their gradients in plain NumPy. Every class: ``start(rng) -> {name: array}``, ``loss(params, batch)``, ``gradients(params, batch) ->
(loss, {name: array})``. The tests hold the gradients against differences of the loss, and against PyTorch's where it is installed."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import numpy as np

__all__ = ["LanguageModel", "Logistic", "Autoencoder", "DigitsCnn"]

Arrays = Dict[str, np.ndarray]


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> Tuple[float, np.ndarray]:
    """Mean negative log likelihood over rows, and d loss / d logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels]))
    d = exp / total
    d[rows, labels] -= 1
    return loss, d / logits.dtype.type(len(labels))


class LanguageModel:
    """LLaMA's shape at character level: RMSNorm, rotary halves, SwiGLU, untied head; batches are (inputs, targets), int [sequences, length].

    Linear weights are [out, in]; names are those of Hugging Face's LLaMA.
    """

    def __init__(self, vocabulary: int, width: int = 64, layers: int = 2, heads: int = 4, inner: int = 172, length: int = 64) -> None:
        self.vocabulary, self.width, self.layers, self.heads, self.inner = vocabulary, width, layers, heads, inner
        self.head = width // heads
        half = self.head // 2
        angle = np.arange(length)[:, None] / 10000.0 ** (np.arange(half) / half)
        self._cos = np.concatenate([np.cos(angle)] * 2, axis=1).astype(np.float32)
        self._sin = np.concatenate([np.sin(angle)] * 2, axis=1).astype(np.float32)
        self._mask = np.triu(np.full((length, length), -1e9, np.float32), 1)

    def start(self, rng: np.random.Generator) -> Arrays:
        d, f = self.width, self.inner

        def normal(*shape: int) -> np.ndarray:
            return (0.02 * rng.standard_normal(shape)).astype(np.float32)
        out = {"model.embed_tokens.weight": normal(self.vocabulary, d)}
        for i in range(self.layers):
            at = f"model.layers.{i}."
            out[at + "input_layernorm.weight"] = np.ones(d, np.float32)
            for name in "qkvo":
                out[f"{at}self_attn.{name}_proj.weight"] = normal(d, d)
            out[at + "post_attention_layernorm.weight"] = np.ones(d, np.float32)
            out[at + "mlp.gate_proj.weight"], out[at + "mlp.up_proj.weight"] = normal(f, d), normal(f, d)
            out[at + "mlp.down_proj.weight"] = normal(d, f)
        out["model.norm.weight"] = np.ones(d, np.float32)
        out["lm_head.weight"] = normal(self.vocabulary, d)
        return out

    # ---- pieces, each with its backward

    @staticmethod
    def _norm(x: np.ndarray, weight: np.ndarray) -> Tuple[np.ndarray, Tuple]:
        r = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(1e-6))
        return x * r * weight, (x, r, weight)

    @staticmethod
    def _norm_back(dy: np.ndarray, kept: Tuple) -> Tuple[np.ndarray, np.ndarray]:
        x, r, weight = kept
        dw = (dy * x * r).reshape(-1, x.shape[-1]).sum(axis=0)
        dxw = dy * weight
        return r * dxw - x * r**3 * np.mean(dxw * x, axis=-1, keepdims=True), dw

    @staticmethod
    def _turn(x: np.ndarray) -> np.ndarray:
        half = x.shape[-1] // 2
        return np.concatenate([-x[..., half:], x[..., :half]], axis=-1)

    def _split(self, x: np.ndarray) -> np.ndarray:
        b, t, _ = x.shape
        return x.reshape(b, t, self.heads, self.head).transpose(0, 2, 1, 3)

    @staticmethod
    def _join(x: np.ndarray) -> np.ndarray:
        b, h, t, e = x.shape
        return x.transpose(0, 2, 1, 3).reshape(b, t, h * e)

    def _attention(self, x: np.ndarray, p: Arrays, at: str) -> Tuple[np.ndarray, Tuple]:
        t = x.shape[1]
        cos, sin = self._cos[:t], self._sin[:t]
        q, k, v = (self._split(x @ p[f"{at}{name}_proj.weight"].T) for name in "qkv")
        q, k = q * cos + self._turn(q) * sin, k * cos + self._turn(k) * sin
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(self.head)) + self._mask[:t, :t]
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = scores / scores.sum(axis=-1, keepdims=True)
        mixed = self._join(weights @ v)
        return mixed @ p[at + "o_proj.weight"].T, (x, q, k, v, weights, mixed)

    def _attention_back(self, dy: np.ndarray, kept: Tuple, p: Arrays, at: str, grads: Arrays) -> np.ndarray:
        x, q, k, v, weights, mixed = kept
        t = x.shape[1]
        cos, sin = self._cos[:t], self._sin[:t]
        grads[at + "o_proj.weight"] = _outer(dy, mixed)
        d_mixed = self._split(dy @ p[at + "o_proj.weight"])
        dv = weights.transpose(0, 1, 3, 2) @ d_mixed
        dw = d_mixed @ v.transpose(0, 1, 3, 2)
        ds = weights * (dw - np.sum(dw * weights, axis=-1, keepdims=True)) / np.float32(np.sqrt(self.head))
        dq, dk = ds @ k, ds.transpose(0, 1, 3, 2) @ q
        dq, dk = dq * cos - self._turn(dq * sin), dk * cos - self._turn(dk * sin)
        dx = np.zeros_like(x)
        for name, d in (("q", dq), ("k", dk), ("v", dv)):
            flat = self._join(d)
            grads[f"{at}{name}_proj.weight"] = _outer(flat, x)
            dx += flat @ p[f"{at}{name}_proj.weight"]
        return dx

    @staticmethod
    def _mlp(x: np.ndarray, p: Arrays, at: str) -> Tuple[np.ndarray, Tuple]:
        gate, up = x @ p[at + "gate_proj.weight"].T, x @ p[at + "up_proj.weight"].T
        sigmoid = 1 / (1 + np.exp(-gate))
        inner = gate * sigmoid * up
        return inner @ p[at + "down_proj.weight"].T, (x, gate, up, sigmoid, inner)

    @staticmethod
    def _mlp_back(dy: np.ndarray, kept: Tuple, p: Arrays, at: str, grads: Arrays) -> np.ndarray:
        x, gate, up, sigmoid, inner = kept
        grads[at + "down_proj.weight"] = _outer(dy, inner)
        d = dy @ p[at + "down_proj.weight"]
        d_gate, d_up = d * up * sigmoid * (1 + gate * (1 - sigmoid)), d * gate * sigmoid
        grads[at + "gate_proj.weight"], grads[at + "up_proj.weight"] = _outer(d_gate, x), _outer(d_up, x)
        return d_gate @ p[at + "gate_proj.weight"] + d_up @ p[at + "up_proj.weight"]

    # ---- the whole

    def _forward(self, p: Arrays, inputs: np.ndarray) -> Tuple[np.ndarray, list]:
        x, kept = p["model.embed_tokens.weight"][inputs], []
        for i in range(self.layers):
            at = f"model.layers.{i}."
            normed, keep1 = self._norm(x, p[at + "input_layernorm.weight"])
            y, keep2 = self._attention(normed, p, at + "self_attn.")
            x = x + y
            normed, keep3 = self._norm(x, p[at + "post_attention_layernorm.weight"])
            y, keep4 = self._mlp(normed, p, at + "mlp.")
            x = x + y
            kept.append((keep1, keep2, keep3, keep4))
        final, keep = self._norm(x, p["model.norm.weight"])
        kept.append((final, keep))
        return final.reshape(-1, self.width) @ p["lm_head.weight"].T, kept

    def loss(self, p: Arrays, batch: Any) -> float:
        inputs, targets = batch
        return _cross_entropy(self._forward(p, inputs)[0], targets.reshape(-1))[0]

    def gradients(self, p: Arrays, batch: Any) -> Tuple[float, Arrays]:
        inputs, targets = batch
        logits, kept = self._forward(p, inputs)
        loss, d_logits = _cross_entropy(logits, targets.reshape(-1))
        final, keep = kept.pop()
        grads: Arrays = {"lm_head.weight": d_logits.T @ final.reshape(-1, self.width)}
        dx, grads["model.norm.weight"] = self._norm_back((d_logits @ p["lm_head.weight"]).reshape(final.shape), keep)
        for i in reversed(range(self.layers)):
            at = f"model.layers.{i}."
            keep1, keep2, keep3, keep4 = kept[i]
            d, grads[at + "post_attention_layernorm.weight"] = self._norm_back(self._mlp_back(dx, keep4, p, at + "mlp.", grads), keep3)
            dx = dx + d
            d, grads[at + "input_layernorm.weight"] = self._norm_back(self._attention_back(dx, keep2, p, at + "self_attn.", grads), keep1)
            dx = dx + d
        embedding = np.zeros_like(p["model.embed_tokens.weight"])
        np.add.at(embedding, inputs.reshape(-1), dx.reshape(-1, self.width))
        grads["model.embed_tokens.weight"] = embedding
        return loss, grads


def _outer(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Weight gradient [out, in] of y = x W' over all leading dimensions."""
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


class Logistic:
    """Two classes without a bias; batches are (x [n, d], labels 0 or 1 [n])."""

    def __init__(self, d: int) -> None:
        self.d = d

    def start(self, rng: np.random.Generator) -> Arrays:
        return {"w": np.zeros(self.d)}

    def loss(self, p: Arrays, batch: Any) -> float:
        x, y = batch
        margin = x @ p["w"]
        return float(np.mean(np.logaddexp(0, margin) - y * margin))

    def gradients(self, p: Arrays, batch: Any) -> Tuple[float, Arrays]:
        x, y = batch
        s = 1 / (1 + np.exp(-(x @ p["w"])))
        return self.loss(p, batch), {"w": x.T @ (s - y) / len(y)}

    def hessian_times(self, p: Arrays, batch: Any, z: np.ndarray) -> np.ndarray:
        x, y = batch
        s = 1 / (1 + np.exp(-(x @ p["w"])))
        return x.T @ (s * (1 - s) * (x @ z)) / len(y)


class Autoencoder:
    """Linear layers with tanh between; loss = mean over rows of the squared distance to the input; batches are x [n, widths[0]]."""

    def __init__(self, widths: Tuple[int, ...] = (64, 48, 16, 48, 64)) -> None:
        self.widths = widths

    def start(self, rng: np.random.Generator) -> Arrays:
        out: Arrays = {}
        for i, (n, m) in enumerate(zip(self.widths, self.widths[1:])):
            bound = 1 / np.sqrt(n)
            out[f"layers.{i}.weight"] = rng.uniform(-bound, bound, (m, n)).astype(np.float32)
            out[f"layers.{i}.bias"] = rng.uniform(-bound, bound, m).astype(np.float32)
        return out

    def _forward(self, p: Arrays, x: np.ndarray) -> list:
        acts = [x]
        last = len(self.widths) - 2
        for i in range(last + 1):
            y = acts[-1] @ p[f"layers.{i}.weight"].T + p[f"layers.{i}.bias"]
            acts.append(y if i == last else np.tanh(y))
        return acts

    def loss(self, p: Arrays, x: np.ndarray) -> float:
        return float(np.mean(np.sum((self._forward(p, x)[-1] - x) ** 2, axis=1)))

    def gradients(self, p: Arrays, x: np.ndarray) -> Tuple[float, Arrays]:
        loss, grads, _ = self.gradients_and_rows(p, x)
        return loss, grads

    def gradients_and_rows(self, p: Arrays, x: np.ndarray) -> Tuple[float, Arrays, Arrays]:
        """Gradients, and {"act/layers.i": inputs [n, in], "pgrad/layers.i": d loss / d outputs [n, out]}."""
        acts = self._forward(p, x)
        error = acts[-1] - x
        d = 2 * error / np.float32(len(x))
        grads: Arrays = {}
        rows: Arrays = {}
        for i in reversed(range(len(self.widths) - 1)):
            grads[f"layers.{i}.weight"], grads[f"layers.{i}.bias"] = d.T @ acts[i], d.sum(axis=0)
            rows[f"act/layers.{i}"], rows[f"pgrad/layers.{i}"] = acts[i], d
            if i:
                d = (d @ p[f"layers.{i}.weight"]) * (1 - acts[i] ** 2)
        return float(np.mean(np.sum(error**2, axis=1))), grads, rows


class DigitsCnn:
    """8x8 images: two 3x3 convolutions (8 and 16 channels, no padding), tanh after each, one linear layer; batches are (x [n, 8, 8], labels [n]).

    Convolution weights are [out, in, 3, 3]. float64, so that differences of gradients give Hessian products.
    """

    def start(self, rng: np.random.Generator) -> Arrays:
        def uniform(fan_in: int, *shape: int) -> np.ndarray:
            return rng.uniform(-1, 1, shape) / np.sqrt(fan_in)
        return {"conv1.weight": uniform(9, 8, 1, 3, 3), "conv1.bias": uniform(9, 8), "conv2.weight": uniform(72, 16, 8, 3, 3),
                "conv2.bias": uniform(72, 16), "fc.weight": uniform(256, 10, 256), "fc.bias": uniform(256, 10)}

    @staticmethod
    def _patches(x: np.ndarray) -> np.ndarray:
        """[n, c, h, w] -> [n, h-2, w-2, c*9]."""
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        n, c, h, w = windows.shape[:4]
        return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, c * 9)

    def _forward(self, p: Arrays, x: np.ndarray) -> Tuple:
        first = self._patches(x[:, None])
        a = np.tanh(first @ p["conv1.weight"].reshape(8, -1).T + p["conv1.bias"])           # [n, 6, 6, 8]
        second = self._patches(a.transpose(0, 3, 1, 2))
        b = np.tanh(second @ p["conv2.weight"].reshape(16, -1).T + p["conv2.bias"])         # [n, 4, 4, 16]
        flat = b.transpose(0, 3, 1, 2).reshape(len(x), -1)
        return first, a, second, b, flat, flat @ p["fc.weight"].T + p["fc.bias"]

    def loss(self, p: Arrays, batch: Any) -> float:
        return _cross_entropy(self._forward(p, batch[0])[-1], batch[1])[0]

    def accuracy(self, p: Arrays, batch: Any) -> float:
        return float(np.mean(self._forward(p, batch[0])[-1].argmax(axis=1) == batch[1]))

    def gradients(self, p: Arrays, batch: Any) -> Tuple[float, Arrays]:
        x, y = batch
        first, a, second, b, flat, logits = self._forward(p, x)
        loss, d = _cross_entropy(logits, y)
        grads = {"fc.weight": d.T @ flat, "fc.bias": d.sum(axis=0)}
        d = (d @ p["fc.weight"]).reshape(len(x), 16, 4, 4).transpose(0, 2, 3, 1) * (1 - b * b)
        grads["conv2.weight"] = _outer(d, second).reshape(16, 8, 3, 3)
        grads["conv2.bias"] = d.reshape(-1, 16).sum(axis=0)
        spread = (d @ p["conv2.weight"].reshape(16, -1)).reshape(len(x), 4, 4, 8, 3, 3)
        d_a = np.zeros_like(a)
        for i in range(3):
            for j in range(3):
                d_a[:, i:i + 4, j:j + 4] += spread[..., i, j]
        d = d_a * (1 - a * a)
        grads["conv1.weight"] = _outer(d, first).reshape(8, 1, 3, 3)
        grads["conv1.bias"] = d.reshape(-1, 8).sum(axis=0)
        return loss, grads
