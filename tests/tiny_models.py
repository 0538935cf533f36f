"""Tiny random models, whose drafts agree with them often enough for acceptance to be tested."""

import copy

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

VOCAB = 61


def tiny_llama(seed: int = 0, num_layers: int = 4) -> PreTrainedModel:
    """A Llama with grouped queries. Later layers add little, so that skipping one often keeps the argmax."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for layer in model.model.layers[1:]:
        layer.self_attn.o_proj.weight.mul_(0.3)
        layer.mlp.down_proj.weight.mul_(0.1)
    return model


def perturbed(model: PreTrainedModel, scale: float = 0.05, seed: int = 1) -> PreTrainedModel:
    """The same model with noise on its weights: an independent drafter that is mostly right."""
    generator = torch.Generator().manual_seed(seed)
    noisy = copy.deepcopy(model)
    noisy.set_attn_implementation("sdpa")
    for weight in noisy.parameters():
        weight.add_(torch.randn(weight.shape, generator=generator) * weight.std().nan_to_num(0.0) * scale)
    return noisy
