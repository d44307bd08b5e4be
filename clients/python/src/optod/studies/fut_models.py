"""A LLaMA of a few ten thousand random weights over the characters of a text, as a Hugging Face folder, written without any library."""

from __future__ import annotations

import json
import pathlib
from typing import Dict, Tuple

import numpy as np

__all__ = ["write_llama", "split_text"]


def _byte_letters() -> Dict[int, str]:
    """GPT-2's printable letter of every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(plain))
    return letters


def write_llama(folder: pathlib.Path, text: str, width: int = 32, layers: int = 2, heads: int = 4, inner: int = 86, seed: int = 0) -> int:
    """config.json, model.safetensors (float32, N(0, 0.02), norms 1, own head) and a tokenizer of the text's bytes; returns the parameters."""
    alphabet = sorted({byte for byte in text.encode()})
    letters = _byte_letters()
    config = {"model_type": "llama", "vocab_size": len(alphabet), "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
              "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 256, "tie_word_embeddings": False,
              "rms_norm_eps": 1e-5}
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.02, shape)
    tensors: Dict[str, np.ndarray] = {"model.embed_tokens.weight": draw(len(alphabet), width)}
    for layer in range(layers):
        p = f"model.layers.{layer}."
        tensors[p + "input_layernorm.weight"] = np.ones(width)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{p}self_attn.{name}.weight"] = draw(width, width)
        tensors[p + "post_attention_layernorm.weight"] = np.ones(width)
        tensors[p + "mlp.gate_proj.weight"] = draw(inner, width)
        tensors[p + "mlp.up_proj.weight"] = draw(inner, width)
        tensors[p + "mlp.down_proj.weight"] = draw(width, inner)
    tensors["model.norm.weight"] = np.ones(width)
    tensors["lm_head.weight"] = draw(len(alphabet), width)
    header, data = {}, b""
    for name, value in tensors.items():
        raw = value.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": {letters[byte]: i for i, byte in enumerate(alphabet)}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}))
    return sum(value.size for value in tensors.values())


def split_text(folder: pathlib.Path, text: str, train: int, dev: int) -> Tuple[str, str]:
    """The first characters to train on, the last to judge by: paths of two files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train.txt", text[:train]), ("dev.txt", text[-dev:])):
        (folder / name).write_text(part)
    return str(folder / "train.txt"), str(folder / "dev.txt")
