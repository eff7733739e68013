"""The Llama of a GGUF file as a PyTorch module whose frozen weights carry trainable low-rank additions (LoRA).

The weights are used as llama.cpp stores them: query and key rows in the interleaved order of its rotary embedding, so
the adapter needs no permutation on its way back. LoRA: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, slots=True)
class Lora:
    """Size and strength of the additions; ``dropout``: share of what enters them that is left out in training."""

    rank: int
    alpha: float
    dropout: float = 0.0


class LoraLinear(nn.Module):
    """``x W^T + (x A^T) B^T * scale`` for one or several stacked outputs of the same input; W is frozen.

    ``parts``: (GGUF tensor name, weight (out, in)) of each.
    """

    def __init__(self, parts: list[tuple[str, Tensor]], lora: Lora, dtype: torch.dtype) -> None:
        super().__init__()
        self.names = [name for name, _ in parts]
        self.scale, self.rank, self.dropout = lora.alpha / lora.rank, lora.rank, lora.dropout
        self.register_buffer("weight", torch.cat([weight for _, weight in parts]).to(dtype), persistent=False)
        inner = parts[0][1].shape[1]
        self.a = nn.ParameterList(nn.Parameter(torch.empty(lora.rank, inner)) for _ in parts)
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(weight.shape[0], lora.rank)) for _, weight in parts)
        for a in self.a:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        frozen = F.linear(x, self.weight)
        dropped = F.dropout(x, self.dropout) if self.training and self.dropout else x
        low = F.linear(dropped, torch.cat(list(self.a)).to(x.dtype)).split(self.rank, dim=-1)
        added = [F.linear(part, (b * self.scale).to(x.dtype)) for part, b in zip(low, self.b, strict=True)]
        return frozen + (added[0] if len(added) == 1 else torch.cat(added, dim=-1))


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind its norm and beside its residual."""

    def __init__(self, index: int, weights: dict[str, Tensor], shape: Shape, additions: Lora) -> None:
        super().__init__()
        self.shape = shape

        def lora(*names: str) -> LoraLinear:
            full = [f"blk.{index}.{name}.weight" for name in names]
            return LoraLinear([(name, weights[name]) for name in full], additions, shape.dtype)

        self.qkv, self.out = lora("attn_q", "attn_k", "attn_v"), lora("attn_output")
        self.gate_up, self.down = lora("ffn_gate", "ffn_up"), lora("ffn_down")
        for name in ("attn_norm", "ffn_norm"):
            self.register_buffer(name, weights[f"blk.{index}.{name}.weight"].float(), persistent=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        x = x + self.out(self._attend(_norm(x, self.attn_norm, self.shape.epsilon), rope, mask))
        gate, up = self.gate_up(_norm(x, self.ffn_norm, self.shape.epsilon)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def _attend(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        shape = self.shape
        batch, length, _ = x.shape
        sizes = [shape.heads * shape.width, shape.kv_heads * shape.width, shape.kv_heads * shape.width]
        q, k, v = (
            part.view(batch, length, -1, shape.width).transpose(1, 2) for part in self.qkv(x).split(sizes, dim=-1)
        )
        q, k = _rotate(q, rope), _rotate(k, rope)
        share = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return mixed.transpose(1, 2).reshape(batch, length, -1)


class Shape:
    """Sizes of the model, read from the file."""

    def __init__(self, reader: gguf.GGUFReader, dtype: torch.dtype) -> None:
        def value(name: str) -> float:
            return reader.fields[f"llama.{name}"].contents()

        self.dtype = dtype
        self.layers = int(value("block_count"))
        self.heads = int(value("attention.head_count"))
        self.kv_heads = int(value("attention.head_count_kv"))
        self.width = int(value("rope.dimension_count"))
        self.base = float(value("rope.freq_base"))
        self.epsilon = float(value("attention.layer_norm_rms_epsilon"))


class Llama(nn.Module):
    """Token ids, shape (batch, length), to hidden states, shape (batch, length, width of the model)."""

    def __init__(self, path: Path, additions: Lora, *, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        reader = gguf.GGUFReader(path)
        weights = {t.name: torch.from_numpy(dequantised(t)) for t in reader.tensors}
        self.shape, self.additions = Shape(reader, dtype), additions
        self.register_buffer("embedding", weights["token_embd.weight"].to(dtype), persistent=False)
        self.register_buffer("norm", weights["output_norm.weight"].float(), persistent=False)
        self.blocks = nn.ModuleList(Block(index, weights, self.shape, additions) for index in range(self.shape.layers))
        half = self.shape.width // 2
        self.register_buffer("frequencies", self.shape.base ** (-torch.arange(half) / half), persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """``positions`` (batch, length); ``mask`` (batch, 1, length, length), True where attended; None: causal."""
        angles = positions[..., None].float() * self.frequencies
        rope = angles.cos()[:, None].to(self.shape.dtype), angles.sin()[:, None].to(self.shape.dtype)
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x, rope, mask)
        return _norm(x, self.norm, self.shape.epsilon)

    def logits(self, hidden: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        """Scores of all tokens, or of those in ``vocabulary``, in 32 bit; hidden has shape (n, width)."""
        head = self.embedding if vocabulary is None else self.embedding[vocabulary]
        return F.linear(hidden, head).float()

    def adapter(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(GGUF tensor name, A (rank, in), B (out, rank))."""
        for module in self.modules():
            if isinstance(module, LoraLinear):
                yield from zip(module.names, module.a, module.b, strict=True)


def dequantised(tensor: gguf.ReaderTensor) -> np.ndarray:
    """The weights in 32 bit, (out, in)."""
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return np.ascontiguousarray(values, dtype=np.float32)


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight).to(x.dtype)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of neighbouring pairs (llama.cpp's NORM type)."""
    cosine, sine = rope
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1).flatten(-2)


def write_adapter(model: Llama, path: Path) -> None:
    """The adapter as a GGUF file that llama.cpp applies to the same base."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", model.additions.alpha)
    for name, a, b in model.adapter():
        writer.add_tensor(f"{name}.lora_a", a.detach().cpu().numpy().astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", b.detach().cpu().numpy().astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_adapter(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter by name, in 32 bit; A is (rank, in), B (out, rank)."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        found[tensor.name] = torch.from_numpy(np.array(tensor.data, dtype=np.float32).reshape(shape))
    return found
