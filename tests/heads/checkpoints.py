"""Heads with random weights in the public key layouts, and a plain implementation of what they compute."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, HEADS, KV_HEADS, MLP, VOCAB, DRAFT = 32, 4, 2, 48, 61, 40
SIZE = HIDDEN // HEADS
EPSILON = 1e-6
Weights = dict[str, Tensor]


def random_head(eagle3: bool, seed: int = 0, **options: Any) -> tuple[dict[str, Any], Weights]:
    """config.json and tensors as the public EAGLE-1/2 and EAGLE-3 checkpoints have them."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    layer, wide = ("midlayer", 2 * HIDDEN) if eagle3 else ("layers.0", HIDDEN)
    weights = {
        f"{layer}.self_attn.q_proj.weight": matrix(HEADS * SIZE, wide),
        f"{layer}.self_attn.k_proj.weight": matrix(KV_HEADS * SIZE, wide),
        f"{layer}.self_attn.v_proj.weight": matrix(KV_HEADS * SIZE, wide),
        f"{layer}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * SIZE),
        f"{layer}.mlp.gate_proj.weight": matrix(MLP, HIDDEN),
        f"{layer}.mlp.up_proj.weight": matrix(MLP, HIDDEN),
        f"{layer}.mlp.down_proj.weight": matrix(HIDDEN, MLP),
        f"{layer}.post_attention_layernorm.weight": 1 + matrix(HIDDEN),
        "fc.weight": matrix(HIDDEN, 3 * HIDDEN if eagle3 else 2 * HIDDEN),
    }
    if eagle3:
        weights |= {f"midlayer.{name}.weight": 1 + matrix(HIDDEN) for name in ("input_layernorm", "hidden_norm")}
        tokens = torch.randperm(VOCAB, generator=generator)[:DRAFT].sort().values
        weights |= {"norm.weight": 1 + matrix(HIDDEN), "lm_head.weight": matrix(DRAFT, HIDDEN)}
        weights |= {"d2t": tokens - torch.arange(DRAFT), "t2d": torch.zeros(VOCAB).bool().index_fill(0, tokens, True)}
    else:
        weights |= {"fc.bias": matrix(HIDDEN), "embed_tokens.weight": matrix(VOCAB, HIDDEN)}
    config = {
        "architectures": ["LlamaForCausalLMEagle3" if eagle3 else "LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": EPSILON,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
    } | ({"draft_vocab_size": DRAFT, "eagle_feature_layers": [0, 2, 3]} if eagle3 else {})
    return config | options, weights


def write_head(folder: Path, config: dict[str, Any], weights: Weights) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def plain_log_probs(weights: Weights, target: Any, features: Tensor, tokens: list[int], eagle3: bool) -> Tensor:
    """After the last of `tokens`: rows pair features[i] with tokens[i + 1]; past the features, with the last output.

    Row by row, without a cache, written from the description of the method alone. Shape (vocabulary,).
    """
    embeddings = target.get_input_embeddings().weight
    keys: list[Tensor] = []
    values: list[Tensor] = []
    output = torch.empty(0)
    for row in range(len(tokens) - 1):
        true = row < len(features)
        state = features[row] if true else output
        if eagle3 and true:
            state = weights["fc.weight"] @ state
        output = _layer(weights, embeddings[tokens[row + 1]], state, row, keys, values, eagle3)
    if not eagle3:
        return (target.get_output_embeddings().weight @ output).log_softmax(0)
    drafted = (weights["lm_head.weight"] @ _norm(output, weights["norm.weight"])).log_softmax(0)
    return torch.full((VOCAB,), -torch.inf).index_copy(0, torch.arange(DRAFT) + weights["d2t"], drafted)


def _layer(weights: Weights, token: Tensor, state: Tensor, position: int, keys: list, values: list, eagle3: bool):
    if eagle3:
        own = {name.removeprefix("midlayer."): w for name, w in weights.items()}
        read = torch.cat([_norm(token, own["input_layernorm.weight"]), _norm(state, own["hidden_norm.weight"])])
    else:
        own = {name.removeprefix("layers.0."): w for name, w in weights.items()}
        state = read = own["fc.weight"] @ torch.cat([token, state]) + own["fc.bias"]
    query = _rotated((own["self_attn.q_proj.weight"] @ read).view(HEADS, SIZE), position)
    keys.append(_rotated((own["self_attn.k_proj.weight"] @ read).view(KV_HEADS, SIZE), position))
    values.append((own["self_attn.v_proj.weight"] @ read).view(KV_HEADS, SIZE))
    heads = []
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        scores = torch.stack([query[head] @ key[group] for key in keys]) / SIZE**0.5
        heads.append(scores.softmax(0) @ torch.stack([value[group] for value in values]))
    state = state + own["self_attn.o_proj.weight"] @ torch.cat(heads)
    normed = _norm(state, own["post_attention_layernorm.weight"])
    gate, up = own["mlp.gate_proj.weight"] @ normed, own["mlp.up_proj.weight"] @ normed
    return state + own["mlp.down_proj.weight"] @ (gate * gate.sigmoid() * up)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + EPSILON).sqrt() * weight


def _rotated(x: Tensor, position: int) -> Tensor:
    angles = position / 10000 ** (torch.arange(0, SIZE, 2) / SIZE)
    cos, sin = angles.cos().repeat(2), angles.sin().repeat(2)
    turned = torch.cat([-x[:, SIZE // 2 :], x[:, : SIZE // 2]], 1)
    return x * cos + turned * sin
