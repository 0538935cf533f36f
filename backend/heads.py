"""EAGLE drafting heads: one decoder layer that reads the target's hidden states (Li et al. 2024; 2025, section 3).

Parameters carry the names of the public checkpoints. Caching and masking are the caller's: a head is given a function
that attends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    rotate_half,
)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, key, value as (batch, head, row, size) to the like


class Rows(NamedTuple):
    """What a head reads: a token, and the state before it (fused features, or the head's output at its parent)."""

    embeddings: Float[Tensor, "batch row hidden"]
    states: Float[Tensor, "batch row hidden"]
    positions: Int[Tensor, "batch row"]


class HeadAttention(nn.Module):
    """Llama attention whose input may be wider than the model."""

    def __init__(self, config: Any, input_size: int, bias: bool) -> None:
        super().__init__()
        self.size = config.head_dim
        heads, kv_heads = config.num_attention_heads * self.size, config.num_key_value_heads * self.size
        self.q_proj = nn.Linear(input_size, heads, bias=bias)
        self.k_proj = nn.Linear(input_size, kv_heads, bias=bias)
        self.v_proj = nn.Linear(input_size, kv_heads, bias=bias)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        heads = query.shape[2] // self.size
        both = torch.cat([query, key], 2).unflatten(2, (-1, self.size)).transpose(1, 2)
        query, key = _rotated(both, *rotary).tensor_split((heads,), 1)
        value = value.unflatten(2, (-1, self.size)).transpose(1, 2)
        return self.o_proj(attend(query, key, value).transpose(1, 2).flatten(2))


class HeadLayer(nn.Module):
    """One decoder layer. EAGLE-1/2 leave the first norm out; EAGLE-3 attends from token and state side by side."""

    input_layernorm: nn.Module
    hidden_norm: nn.Module
    post_attention_layernorm: nn.Module

    def __init__(self, config: LlamaConfig, eagle3: bool) -> None:
        super().__init__()
        self.eagle3 = eagle3
        width = config.hidden_size * (2 if eagle3 else 1)
        self.self_attn = HeadAttention(config, width, getattr(config, "qkv_bias", False))
        self.mlp = LlamaMLP(config)
        norms = ("input_layernorm", "hidden_norm", "post_attention_layernorm")[0 if eagle3 else 2 :]
        for name in norms:
            setattr(self, name, LlamaRMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, embeddings: Tensor, states: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        attended = states
        if self.eagle3:
            attended = torch.cat([self.input_layernorm(embeddings), self.hidden_norm(states)], 2)
        states = states + self.self_attn(attended, rotary, attend)
        return states + self.mlp(self.post_attention_layernorm(states))


class EagleHead(nn.Module):
    """`fuse` true features once, call for the next state, ask `logits` of a state.

    Embeddings are the target's unless `embeddings` is set. `draft_tokens` are the target ids that can be drafted, None
    for all of them.
    """

    embeddings: nn.Embedding | None = None
    draft_tokens: Tensor | None = None

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.rotary = LlamaRotaryEmbedding(config)
        self.angles: Tensor | None = None  # cosines and sines by position, side by side

    def reserve(self, capacity: int, dtype: torch.dtype) -> None:
        """Look the rotary angles of positions below `capacity` up from now on, where they do not depend on the text."""
        if self.rotary.rope_type in ("dynamic", "longrope"):
            return
        if self.angles is None or len(self.angles) < capacity or self.angles.dtype != dtype:
            places = torch.arange(capacity, device=self.rotary.inv_freq.device)[None]
            self.angles = torch.cat(self.rotary(places.to(dtype), places), 2)[0]

    def _rotary(self, stream: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.angles is None:
            return self.rotary(stream, positions)
        cosines, sines = F.embedding(positions, self.angles).chunk(2, 2)
        return cosines, sines

    @property
    def layer(self) -> HeadLayer:
        raise NotImplementedError

    def fuse(self, features: Float[Tensor, "batch row feature"]) -> Float[Tensor, "batch row hidden"]:
        """The state before each token, from what the target computed."""
        raise NotImplementedError

    def join(self, rows: Rows) -> Float[Tensor, "batch row hidden"]:
        """The residual stream that enters the layer."""
        raise NotImplementedError

    def logits(self, states: Float[Tensor, "batch row hidden"]) -> Float[Tensor, "batch row draft"]:
        """Over `draft_tokens`."""
        raise NotImplementedError

    def forward(self, rows: Rows, attend: Attend) -> Float[Tensor, "batch row hidden"]:
        stream = self.join(rows)
        rotary = self._rotary(stream, rows.positions)
        return self.layer(rows.embeddings, stream, rotary, attend)


class Eagle3Head(EagleHead):
    """Three fused feature levels, own reduced vocabulary. What it outputs before its norm is the next state.

    `d2t` holds offsets: target id = draft id + d2t[draft id]; `t2d` is a mask over the target's vocabulary.
    """

    d2t: Int[Tensor, " draft"]
    t2d: Bool[Tensor, " vocab"]

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        hidden, feature = config.hidden_size, getattr(config, "target_hidden_size", None) or config.hidden_size
        drafts = getattr(config, "draft_vocab_size", None) or config.vocab_size
        self.fc = nn.Linear(3 * feature, hidden, bias=False)
        self.midlayer = HeadLayer(config, eagle3=True)
        self.norm = LlamaRMSNorm(hidden, config.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, drafts, bias=False)
        if drafts < config.vocab_size:
            self.register_buffer("d2t", torch.zeros(drafts, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))

    @property
    def layer(self) -> HeadLayer:
        return self.midlayer

    @property
    def draft_tokens(self) -> Tensor | None:  # type: ignore[override]
        if not hasattr(self, "d2t"):
            return None
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    def fuse(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def join(self, rows: Rows) -> Tensor:
        return rows.states

    def logits(self, states: Tensor) -> Tensor:
        return self.lm_head(self.norm(states))


class Eagle1Head(EagleHead):
    """EAGLE-1 and EAGLE-2: regresses the target's last hidden state; the target's LM head reads what it says."""

    def __init__(self, config: LlamaConfig, target_lm_head: nn.Module) -> None:
        super().__init__(config)
        object.__setattr__(self, "target_lm_head", target_lm_head)  # not a part of this module
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=getattr(config, "bias", True))
        self.layers = nn.ModuleList([HeadLayer(config, eagle3=False)])

    @property
    def layer(self) -> HeadLayer:
        return self.layers[0]  # type: ignore[return-value]

    def fuse(self, features: Tensor) -> Tensor:
        return features

    def join(self, rows: Rows) -> Tensor:
        return self.fc(torch.cat([rows.embeddings, rows.states], 2))

    def logits(self, states: Tensor) -> Tensor:
        return self.target_lm_head(states).to(states.device)  # type: ignore[operator]


def _rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    return heads * cosines[:, None] + rotate_half(heads) * sines[:, None]


def feature_layers(config: Any, eagle3: bool) -> tuple[int, ...]:
    """Which hidden states of the target the head reads: EAGLE-3's low, middle and high one, or the last."""
    layers = config.num_hidden_layers
    return (2, layers // 2, layers - 3) if eagle3 else (layers,)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A head's attention over rows that all precede each other, as in prefill."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
