"""all-MiniLM-L6-v2 as a PyTorch module: the published weights in, the same names out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from minilm_onnx import DIM as WIDTH
from minilm_onnx import EPSILON, HEADS, LAYERS, TOKENS_MAX


class Layer(nn.Module):
    """Attention and feed-forward, each followed by its norm (BERT: Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mixed = nn.Linear(WIDTH, WIDTH)
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.after_attention, self.after_inner = nn.LayerNorm(WIDTH, EPSILON), nn.LayerNorm(WIDTH, EPSILON)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        split = (batch, length, HEADS, WIDTH // HEADS)
        q, k, v = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        drop = self.dropout if self.training else 0.0
        # Written out: on a CPU faster than the fused form for sequences this short.
        odds = F.dropout((q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1), drop)
        mixed = (odds @ v).transpose(1, 2).reshape(x.shape)
        x = self.after_attention(x + F.dropout(self.mixed(mixed), drop))
        inner = self.outer(F.gelu(self.inner(x)))
        return self.after_inner(x + F.dropout(inner, drop))


NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mixed": "attention.output.dense",
    "after_attention": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "after_inner": "output.LayerNorm",
}


class MiniLM(nn.Module):
    """Token ids and their segment (0 or 1), both (batch, length) without padding, to hidden states (…, 384).

    The table of words is not trained: it is half of the parameters, and a few thousand examples say little about it.
    """

    def __init__(self, weights: dict[str, np.ndarray], *, dropout: float = 0.1) -> None:
        super().__init__()
        given = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
        self.register_buffer("words", given["embeddings.word_embeddings.weight"])
        self.places = nn.Parameter(given["embeddings.position_embeddings.weight"][:TOKENS_MAX].clone())
        self.segments = nn.Parameter(given["embeddings.token_type_embeddings.weight"].clone())
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.norm.load_state_dict({part: given[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")})
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(LAYERS))
        for index, layer in enumerate(self.layers):
            for own, name in NAMES.items():
                full = f"encoder.layer.{index}.{name}"
                getattr(layer, own).load_state_dict({part: given[f"{full}.{part}"] for part in ("weight", "bias")})
        self.dropout = dropout

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        x = F.embedding(tokens, self.words) + self.places[: tokens.shape[1]] + F.embedding(segments, self.segments)
        x = F.dropout(self.norm(x), self.dropout if self.training else 0.0)
        for layer in self.layers:
            x = layer(x)
        return x

    def weights(self) -> dict[str, np.ndarray]:
        """All weights by their published names, float32."""
        found = {
            "embeddings.word_embeddings.weight": self.words,
            "embeddings.position_embeddings.weight": self.places,
            "embeddings.token_type_embeddings.weight": self.segments,
            "embeddings.LayerNorm.weight": self.norm.weight,
            "embeddings.LayerNorm.bias": self.norm.bias,
        }
        for index, layer in enumerate(self.layers):
            for own, name in NAMES.items():
                for part in ("weight", "bias"):
                    found[f"encoder.layer.{index}.{name}.{part}"] = getattr(getattr(layer, own), part)
        return {name: value.detach().float().numpy() for name, value in found.items()}
