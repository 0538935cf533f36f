"""Tree-masked forwards over any Hugging Face causal LM: the one operation behind drafting and verifying."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from backend.attention import NAME, use_tree_attention
from backend.errors import TreebenchError
from backend.fusion import fuse, matrix_product_for
from backend.kv_cache import KVCache, LayerShape, PlannedCache
from backend.layers import FeatureTap
from backend.memory import memory_of_forward
from backend.plan import ForwardPlan, place_of, prompt_plan, tree_plan
from backend.timing import Stopwatch
from backend.tree import Accepted, TokenTree

SUPPORTED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
TRIAL = [1, 2, 3, 4]  # a token each for a committed prefix, a root and two children


class TreeModel:
    """A causal LM with a cache that scores tree nodes. The target is one; model-based drafters hold one each.

    `expand` may be called several times on a growing tree; each call adds its nodes to the cache behind the committed
    prefix, and `commit` keeps the accepted ones. Every ancestor of an expanded node must have been expanded before or
    with it, and no node twice; `backend.drafters.draft_model.DraftModel` lifts both conditions.
    """

    def __init__(self, model: PreTrainedModel, shapes: dict[int, LayerShape] | None = None) -> None:
        own_logits = trial_logits(model) if shapes is None else None
        self.model = model
        self.shapes = shapes if shapes is not None else probe(model)
        fuse(model)
        self._reset()
        if own_logits is not None:
            check_trial(self, own_logits)
            self._reset()

    def _reset(self) -> None:
        self.cache: KVCache | None = None
        self.entries = torch.empty(0, 0, dtype=torch.int64)
        self.clock = Stopwatch(self.model.device)
        self.tap: FeatureTap | None = None
        self.num_rows = 0

    def tap_features(self, layers: Sequence[int]) -> None:
        """From now on keep what enters these layers (their number: what the LM head reads) for `features`."""
        if self.tap is not None and self.tap.layers != tuple(layers):
            raise TreebenchError(f"features of layers {self.tap.layers} are kept already, not of {tuple(layers)}")
        self.tap = self.tap or FeatureTap(self.model, layers)

    @property
    def features(self) -> Float[Tensor, "batch row feature"]:
        """Hidden states of the tapped layers, side by side, at the nodes of the last `expand`, or the whole prompt."""
        if self.tap is None:
            raise RuntimeError("call tap_features() first")
        return self.tap.features(self.num_rows)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocab_size(self) -> int:
        return self.model.config.get_text_config().vocab_size

    @property
    def max_context(self) -> int:
        return max_context(self.model.config)

    def allocate(self, batch: int, capacity: int) -> None:
        """Make room for `capacity` tokens per row, committed ones and those of the current tree together."""
        cache = self.cache
        if cache is not None and cache.lengths.shape[0] == batch and cache.capacity >= capacity:
            return
        limit = self.max_context
        if capacity > limit:
            raise TreebenchError(f"{capacity} tokens per sequence are needed but the model's context holds {limit}")
        self.cache = KVCache(self.shapes, batch, capacity, self.model.dtype, self.device)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        """Cache right-padded prompts, of `lengths` real tokens each, as the committed prefix of every row."""
        cache = self._cache()
        cache.require(prompts.shape[1])
        if prompts.shape[1]:
            self._forward(prompts, prompt_plan(prompts.shape[0], prompts.shape[1], self.device), 1, "prefill")
        cache.start(lengths)
        self.entries = lengths.new_empty(prompts.shape[0], 0)

    def score_text(self, tokens: Int[Tensor, "batch text"], last: int) -> Float[Tensor, "batch last vocab"]:
        """Logits after each of the `last` tokens, from one causal pass; forgets what was cached."""
        self.allocate(tokens.shape[0], tokens.shape[1])
        logits = self._forward(tokens, prompt_plan(tokens.shape[0], tokens.shape[1], self.device), keep=last)
        self._cache().start(torch.zeros_like(tokens[:, 0]))
        return logits

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        """Logits after each node (`NO_NODE`: unspecified but finite); one forward for all of them."""
        cache = self._cache()
        plan = tree_plan(tree, nodes, self.entries, cache.lengths, cache.longest)
        return self._score(tree.tokens.gather(1, nodes.clamp(min=0)), nodes, plan)

    def commit(self, tree: TokenTree, accepted: Accepted) -> None:
        """Keep the accepted path behind the prefix and forget the rest of the tree."""
        self._cache().keep(place_of(accepted.path, self.entries))
        self.entries = self.entries[:, :0]

    def settle(self) -> None:
        """Read the lengths back from the device, so that later forwards read no more of the cache than they need."""
        self._cache().settle()

    def _score(self, tokens: Tensor, nodes: Tensor, plan: ForwardPlan) -> Tensor:
        self._cache().require(plan.used)
        logits = self._forward(tokens, plan, keep=nodes.shape[1])
        self.entries = torch.cat([self.entries, nodes], 1)
        return logits

    def _forward(self, tokens: Tensor, plan: ForwardPlan, keep: int, stage: str = "forward") -> Tensor:
        self.num_rows = tokens.shape[1] if stage == "prefill" else keep
        around = (memory_of_forward(*tokens.shape), matrix_product_for(tokens.numel(), self.model))
        with self.clock.stage(stage), around[0], around[1], self.tap or nullcontext():
            output = self.model(
                input_ids=tokens,
                position_ids=plan.positions,
                past_key_values=PlannedCache(self._cache(), plan),
                use_cache=True,
                logits_to_keep=self._last(keep, tokens.shape[1]),
                tree_plan=plan,
            )
        return output.logits

    def _last(self, keep: int, length: int) -> int | Tensor:
        """Indices rather than a count: the product with a strided slice is several times slower in bf16 on a CPU."""
        return 0 if keep == length else torch.arange(length - keep, length, device=self.device)

    def _cache(self) -> KVCache:
        if self.cache is None:
            raise RuntimeError("call allocate() first")
        return self.cache


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
    """Records what each layer stores, and returns it unchanged."""

    def __init__(self) -> None:
        self.layers = []
        self.shapes: dict[int, LayerShape] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object):
        self.shapes[layer_idx] = LayerShape(key_states.shape[1], key_states.shape[3], value_states.shape[3])
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def check_config(config: Any) -> None:
    """Refuse what a configuration alone shows to be impossible."""
    if config.is_encoder_decoder:
        raise _refused(config, "it is an encoder-decoder")
    unknown = sorted(set(getattr(config, "layer_types", None) or []) - SUPPORTED_LAYERS)
    if unknown:
        raise _refused(config, f"its layers of type {', '.join(unknown)} carry state that a tree cannot share")
    if any(rope.get("rope_type") == "dynamic" for rope in _rope_parameters(config)):
        raise _refused(config, "its rotary scaling changes with the current length (rope_type dynamic)")


def probe(model: PreTrainedModel) -> dict[int, LayerShape]:
    """Switch the model to tree attention and learn its cache layout from a two-token forward.

    Raises TreebenchError, by architecture name, for what cannot be verified as a tree: recurrent or hybrid layers,
    attention that bypasses transformers' attention interface, rotary scaling that depends on the current length.
    """
    config = model.config
    check_config(config)
    cache, plan = _ProbeCache(), prompt_plan(1, 2, model.device)
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    try:
        use_tree_attention(model)
        with torch.inference_mode():
            model(input_ids=tokens, position_ids=plan.positions, past_key_values=cache, use_cache=True, tree_plan=plan)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError, TreebenchError) as error:
        raise _refused(config, " ".join(str(error).split())) from error
    if not cache.shapes or config._attn_implementation != NAME:
        raise _refused(config, "its attention does not go through transformers' attention interface")
    if "sliding_attention" in (getattr(config, "layer_types", None) or []) and not plan.windows:
        raise _refused(config, "its attention function is not told the sliding window")
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


def check_trial(model: "TreeModel", own: Float[Tensor, "child vocab"]) -> None:
    """Refuse a model whose logits over a tree of the same two texts are not those of its own attention.

    Positions taken from slots, masks or features that never reach our attention would be silently wrong otherwise.
    """
    prefix, root, first, second = torch.tensor(TRIAL, device=model.device)[:, None]
    tree = TokenTree.root(root)
    children = torch.stack([first, second], 1)
    tree = tree.add(torch.zeros_like(children), children, torch.zeros_like(children).float())
    with torch.inference_mode():
        TreeModel.allocate(model, 1, len(TRIAL))  # of this class: a drafter under construction is no drafter yet
        TreeModel.prefill(model, prefix[None], torch.ones_like(prefix))
        found = TreeModel.expand(model, tree, torch.arange(3, device=model.device)[None])[0, 1:].float()
    if (found - own).norm() > 1e-3 * own.norm():  # beyond rounding: another function
        raise _refused(model.model.config, "its logits over a tree are not those of its own attention on each path")


def _refused(config: Any, reason: str) -> TreebenchError:
    return TreebenchError(f"the architecture {config.model_type!r} cannot be tree-verified: {reason}")


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """One set for all layers, or one per type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [parameters, *(nested for nested in parameters.values() if isinstance(nested, dict))]
