"""Tiny random configurations of the architectures that the backend verifies, and of those that it refuses."""

import copy
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

VOCAB = 61
WINDOW = 6
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
SLIDING_THEN_FULL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
ALL_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA = {
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}
ROUTED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

SUPPORTED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0, **ALL_SLIDING},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": WINDOW},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, **SLIDING_THEN_FULL},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, **SLIDING_THEN_FULL},
    "phi3": {"sliding_window": WINDOW},
    "olmo2": {},
    "olmo3": SLIDING_THEN_FULL,
    "smollm3": {"no_rope_layers": [1, 0]},
    "granite": {"attention_multiplier": 0.5, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    "cohere": {"logit_scale": 0.5, "use_qk_norm": True},
    "cohere2": {"logit_scale": 0.5, **SLIDING_THEN_FULL},
    "qwen3_moe": {"head_dim": 8, **MOE},
    "qwen2_moe": {"shared_expert_intermediate_size": 16, "use_sliding_window": True, **MOE, **ALL_SLIDING},
    "olmoe": MOE,
    "mixtral": {"sliding_window": WINDOW, **EXPERTS},
    "gpt_oss": {"head_dim": 16, **EXPERTS, **SLIDING_THEN_FULL},
    "gpt_neox": {"rotary_pct": 0.5},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_positions": 128},
    "starcoder2": {"sliding_window": WINDOW},
    "llama4_text": {"head_dim": 8, "attention_chunk_size": 64, "intermediate_size_mlp": 48, **EXPERTS},
    "deepseek_v3": {"first_k_dense_replace": 1, **MLA, **ROUTED},
    "exaone4": {"sliding_window_pattern": 2, **SLIDING_THEN_FULL},
    "exaone_moe": {"first_k_dense_replace": 1, **MOE, **SLIDING_THEN_FULL},
    "glm4": {"head_dim": 8},
    "phi": {},
    "lfm2": {"layer_types": ["full_attention"] * 2},
    "ministral": {"head_dim": 8, **SLIDING_THEN_FULL},
}
# qwen2_moe does not hand its window to the attention function: the module carries it; in exaone* that attribute is not
# what a full layer wants, so None must count as given
WINDOWED = [
    "qwen2-window", "qwen2_moe", "mistral", "gemma2", "gemma3_text", "phi3", "olmo3", "cohere2", "mixtral", "gpt_oss",
    "starcoder2", "exaone4", "exaone_moe", "ministral",
]  # fmt: skip


def config_of(name: str, **overrides: Any) -> Any:
    """A fresh configuration; `overrides` go over the tiny one."""
    values = {**COMMON, **SUPPORTED.get(name, {}), **overrides}
    return AutoConfig.for_model(values.pop("model_type", name), **copy.deepcopy(values))


def random_model(config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """An eager model, with noise on every weight so that norms, biases and sinks count too."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.to(dtype)


def same_model(model: PreTrainedModel, **overrides: Any) -> PreTrainedModel:
    """A second model that shares neither config nor modules with `model`, but has equal weights."""
    config = copy.deepcopy(model.config)
    for name, value in overrides.items():
        setattr(config, name, value)
    copied = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    copied.load_state_dict(model.state_dict())
    return copied.to(model.dtype)


class Refused(NamedTuple):
    """Why an architecture is turned away, as a pattern, and a configuration of it."""

    reason: str
    options: dict[str, Any] = {}  # noqa: RUF012
    auto: Any = AutoModelForCausalLM


RECURRENT = "linear_attention"
OWN_ATTENTION = "does not go through transformers' attention interface"
OWN_POSITIONS = "its logits over a tree are not those of its own attention"
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
REFUSED = {
    "mamba": Refused(RECURRENT),
    "falcon_mamba": Refused(RECURRENT),
    "jamba": Refused(RECURRENT),
    "qwen3_next": Refused(RECURRENT),
    "minimax": Refused(RECURRENT),
    "recurrent_gemma": Refused(RECURRENT),
    "falcon_h1": Refused("hybrid"),
    "rwkv": Refused(OWN_ATTENTION),
    "bloom": Refused(OWN_ATTENTION),  # ALiBi
    "mpt": Refused(OWN_ATTENTION),  # ALiBi
    "falcon": Refused(OWN_ATTENTION),
    "t5": Refused("encoder-decoder", auto=AutoModelForSeq2SeqLM),
    "bart-seq2seq": Refused("encoder-decoder", {"model_type": "bart"}, AutoModelForSeq2SeqLM),
    "bart": Refused(OWN_POSITIONS),
    "mbart": Refused(OWN_POSITIONS),
    "doge": Refused("a mask of its own"),
    "stablelm": Refused("hands no keyword arguments on"),
    "nemotron": Refused("hands no keyword arguments on"),
    "dynamic-rope": Refused("rope_type dynamic", {"model_type": "llama", "rope_parameters": DYNAMIC}),
}
