"""What a model is like before it is verified: its cache layout, its longest context, and why it is refused."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from backend.attention import NAME, everywhere, use_tree_attention
from backend.errors import TreebenchError
from backend.kv_cache import LayerShape
from backend.ops import Ops
from backend.ops.select import TORCH
from backend.plan import prompt_plan

SUPPORTED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
TRIAL = [1, 2, 3, 4]  # a token each for a committed prefix, a root and two children


def max_context(config: Any) -> int:
    """Longest sequence the model can be verified on.

    Chunked attention only within its first chunk; LongRoPE only where it rotates every cached key by its short factors.
    """
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30
    if "chunked_attention" in (getattr(config, "layer_types", None) or []):
        limit = min(limit, config.attention_chunk_size)
    for rope in _rope_parameters(config):
        if rope.get("rope_type") == "longrope":
            limit = min(limit, rope["original_max_position_embeddings"])
    return limit


class _ProbeCache(Cache):
    """Records what each layer stores, and returns it unchanged; refuses what the operations have no kernel for."""

    def __init__(self, ops: Ops) -> None:
        self.layers = []
        self.ops = ops
        self.shapes: dict[int, LayerShape] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object):
        self.ops.check(key_states.dtype, max(key_states.shape[3], value_states.shape[3]))
        sizes = key_states.shape[1], key_states.shape[3], value_states.shape[3]
        self.shapes[layer_idx] = LayerShape(*sizes, device=key_states.device)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def check_config(config: Any) -> None:
    """Refuse what a configuration alone shows to be impossible."""
    if config.is_encoder_decoder:
        raise refused(config, "it is an encoder-decoder")
    unknown = sorted(set(getattr(config, "layer_types", None) or []) - SUPPORTED_LAYERS)
    if unknown:
        raise refused(config, f"its layers of type {', '.join(unknown)} carry state that a tree cannot share")
    if any(rope.get("rope_type") == "dynamic" for rope in _rope_parameters(config)):
        raise refused(config, "its rotary scaling changes with the current length (rope_type dynamic)")


def probe(model: PreTrainedModel, ops: Ops) -> dict[int, LayerShape]:
    """Switch the model to tree attention and learn its cache layout from a two-token forward.

    Raises TreebenchError, by architecture name, for what cannot be verified as a tree: recurrent or hybrid layers,
    attention that bypasses transformers' attention interface, rotary scaling that depends on the current length, and
    head sizes without a kernel.
    """
    config = model.config
    check_config(config)
    cache, plan = _ProbeCache(ops), prompt_plan(1, 2, model.device)
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    try:
        use_tree_attention(model)
        with torch.inference_mode():
            model(
                input_ids=tokens,
                position_ids=plan.positions,
                past_key_values=cache,
                use_cache=True,
                tree_plan=plan,
                tree_ops=everywhere(TORCH),
            )
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError, TreebenchError) as error:
        raise refused(config, " ".join(str(error).split())) from error
    if not cache.shapes or config._attn_implementation != NAME:
        raise refused(config, "its attention does not go through transformers' attention interface")
    if "sliding_attention" in (getattr(config, "layer_types", None) or []) and not plan.windows:
        raise refused(config, "its attention function is not told the sliding window")
    return dict(sorted(cache.shapes.items()))


def trial_logits(model: PreTrainedModel) -> Float[Tensor, "child vocab"] | None:
    """What the model's own attention says after two texts that differ in their last token.

    None where it is replaced already, and in half precision: on unusual tokens rounding alone can turn the logits over
    (SmolLM2 in bf16 is off by twice their size), so the trial would say nothing.
    """
    check_config(model.config)
    if model.config._attn_implementation == NAME or model.dtype.itemsize < 4:
        return None
    with torch.inference_mode():
        texts = torch.tensor([TRIAL[:3], [*TRIAL[:2], TRIAL[3]]], device=model.device)
        return model(input_ids=texts, use_cache=False).logits[:, -1].float()


def refused(config: Any, reason: str) -> TreebenchError:
    return TreebenchError(f"the architecture {config.model_type!r} cannot be tree-verified: {reason}")


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """One set for all layers, or one per type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [parameters, *(nested for nested in parameters.values() if isinstance(nested, dict))]
