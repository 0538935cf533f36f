"""Tree-masked forwards over any Hugging Face causal LM: the one operation behind drafting and verifying."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from backend.attention import everywhere
from backend.errors import TreebenchError
from backend.fusion import fuse, matrix_product_for
from backend.graphs import Graphs
from backend.kv_cache import KVCache, LayerShape, PlannedCache, is_spread
from backend.layers import FeatureTap
from backend.memory import memory_of_forward
from backend.ops import Ops
from backend.ops.select import create_ops
from backend.plan import ForwardPlan, place_of, prompt_plan, tree_plan
from backend.probe import TRIAL, max_context, probe, refused, trial_logits
from backend.timing import Stopwatch
from backend.tree import Accepted, TokenTree


class TreeModel:
    """A causal LM with a cache that scores tree nodes. The target is one; model-based drafters hold one each.

    `expand` may be called several times on a growing tree; each call adds its nodes to the cache behind the committed
    prefix, and `commit` keeps the accepted ones. Every ancestor of an expanded node must have been expanded before or
    with it, and no node twice; `backend.drafters.draft_model.DraftModel` lifts both conditions.
    """

    def __init__(
        self, model: PreTrainedModel, shapes: dict[int, LayerShape] | None = None, ops: Ops | None = None
    ) -> None:
        own_logits = trial_logits(model) if shapes is None else None
        self.model = model
        self.ops = ops or create_ops("auto", model.device)
        self.shapes = shapes if shapes is not None else probe(model, self.ops)
        self.is_spread = is_spread(self.shapes, model.device)
        self.layer_ops = everywhere(self.ops) if self.is_spread else self.ops
        fuse(model)
        self._reset()
        if own_logits is not None:
            check_trial(self, own_logits)
            self._reset()

    def _reset(self) -> None:
        self.cache: KVCache | None = None
        self.entries = torch.empty(0, 0, dtype=torch.int64)
        self.graphs: Graphs | None = None
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
        return self.tap.features(self.num_rows, self.device)

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
        cache, width = self._cache(), nodes.shape[1]
        nodes = self._padded(nodes)
        plan = tree_plan(tree, nodes, self.entries, cache.lengths, cache.longest)
        return self._score(tree.tokens.gather(1, nodes.clamp(min=0)), plan)[:, :width]

    def commit(self, tree: TokenTree, accepted: Accepted) -> None:
        """Keep the accepted path behind the prefix and forget the rest of the tree."""
        self._cache().keep(place_of(accepted.path, self.entries), self.ops)
        self.entries = self.entries[:, :0]

    def settle(self) -> None:
        """Read the lengths back from the device, so that later forwards read no more of the cache than they need."""
        self._cache().settle()

    def _score(self, tokens: Tensor, plan: ForwardPlan) -> Tensor:
        assert plan.layout is not None
        self._cache().require(plan.used)
        logits = self._replay_or_run(tokens, plan, keep=plan.layout.num_nodes)
        self.entries = plan.layout.shown
        return logits

    def _padded(self, nodes: Tensor) -> Tensor:
        return self.graphs.padded(nodes) if self.graphs is not None and self.tap is None else nodes

    def _replay_or_run(self, tokens: Tensor, plan: ForwardPlan, keep: int) -> Tensor:
        if self.graphs is None or self.tap is not None:  # a replay passes by the hooks that keep features
            return self._forward(tokens, plan, keep)
        return self.graphs.run(partial(self._forward, keep=keep), tokens, plan, self._cache())

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
                tree_ops=self.layer_ops,
            )
        return output.logits

    def _last(self, keep: int, length: int) -> int | Tensor:
        """Indices rather than a count: the product with a strided slice is several times slower in bf16 on a CPU.

        Not where layers lie on several devices: the head may be on another one than the indices.
        """
        if keep == length or self.is_spread:
            return keep % length
        return torch.arange(length - keep, length, device=self.device)

    def _cache(self) -> KVCache:
        if self.cache is None:
            raise RuntimeError("call allocate() first")
        return self.cache


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
        raise refused(model.model.config, "its logits over a tree are not those of its own attention on each path")
