"""An EAGLE head as a drafter: its first pass reads the target's true features, later passes its own outputs."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from backend.drafters.registry import register
from backend.fusion import fuse, matrix_product_for
from backend.head_loading import load_head
from backend.heads import EagleHead, Rows
from backend.kv_cache import KVCache, LayerShape
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.plan import ForwardPlan, place_of, prompt_plan, tree_plan
from backend.timing import Stopwatch
from backend.top_k import top_k
from backend.tree import NO_NODE, Accepted, TokenTree, Verified


class EagleHeadDrafter:
    """Row i of its cache pairs the target's feature at i with token i + 1, at position i (EAGLE, section 3.1).

    Only rows made from true features outlive a step: those of committed tokens, and the root's. Accepted tokens are
    owed until the next expansion, where they ride in front of the root with the features that the target has computed
    meanwhile. In the tree, a node reads what the head put out at its parent.
    """

    def __init__(self, name: str, head: EagleHead, target: TreeModel, layers: Sequence[int]) -> None:
        self.name = name
        self.head = head.to(target.device, target.model.dtype).eval().requires_grad_(False)
        self.target = target
        fuse(self.head)
        self.draft_tokens = head.draft_tokens
        self.embeddings = head.embeddings or target.model.get_input_embeddings()
        target.tap_features(layers)
        size = head.config.head_dim
        self.clock = Stopwatch(target.device)
        self.shape = LayerShape(head.config.num_key_value_heads, size, size)
        self.cache: KVCache | None = None
        self.entries = torch.empty(0, 0, dtype=torch.int64)
        self.outputs: Tensor = torch.empty(0)  # (batch, entry, hidden): what the head put out at each entry
        self.owed = torch.empty(0, dtype=torch.int64)
        self.owed_tokens = torch.empty(0, 0, dtype=torch.int64)
        self.owed_states: Tensor = torch.empty(0)  # the state before each owed token
        self.no_debt = self.owed, self.owed_tokens, self.owed_states
        self.root_state: Tensor = torch.empty(0)  # (batch, 1, hidden): the state before the root

    def allocate(self, batch: int, capacity: int) -> None:
        cache = self.cache
        if cache is None or cache.lengths.shape[0] != batch or cache.capacity < capacity:
            dtype = self.target.model.dtype
            self.head.reserve(capacity, dtype)
            self.cache = KVCache({0: self.shape}, batch, capacity, dtype, self.target.device)

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        """Reads the features that the target kept of the same prompts just before; of empty ones, nothing."""
        batch, width = prompts.shape
        states = self._fused(self.target.features) if width else self._nothing(batch, 1)
        last = (lengths - 1).clamp(min=0, max=states.shape[1] - 1)[:, None, None]
        self.root_state = states.gather(1, last.expand(-1, -1, states.shape[2])) * (lengths > 0)[:, None, None]
        cache = self._cache()
        if width > 1:
            plan = prompt_plan(batch, width - 1, prompts.device)
            self._forward(prompts[:, 1:], states[:, :-1], plan)
        cache.start((lengths - 1).clamp(min=0))
        self._forget(batch)

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        drafted = self.expand_drafted(tree, nodes)
        if self.draft_tokens is None:
            return drafted
        everything = drafted.new_full((*drafted.shape[:2], self.target.vocab_size), -torch.inf)
        return everything.scatter_(2, self.draft_tokens.expand_as(drafted), drafted)  # index_copy_ is slower on a CPU

    def likeliest(
        self, tree: TokenTree, nodes: Int[Tensor, "batch new"], width: int
    ) -> tuple[Float[Tensor, "batch new few"], Int[Tensor, "batch new few"]]:
        """Found among the tokens that can be drafted."""
        values, places = top_k(self.expand_drafted(tree, nodes), width)
        return values, places if self.draft_tokens is None else self.draft_tokens[places]

    def expand_drafted(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new draft"]:
        """One pass per level of the tree that the nodes lie on; ancestors that the head has not seen come first."""
        parents, places = self._parents(tree, nodes)
        if ((parents == NO_NODE) | (places != NO_NODE)).all():
            states = self._expand_level(tree, nodes, parents, places)
        else:
            for level in self._unseen_levels(tree, nodes):
                self._expand_level(tree, level, *self._parents(tree, level))
            states = self._of_nodes(self.outputs, place_of(nodes, self.entries))
        with self.clock.stage("forward"), matrix_product_for(nodes.numel(), self.target.model):
            logits = self.head.logits(states)
        return logits.log_softmax(2, dtype=torch.float32)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified) -> None:
        """Keep the root's row; owe the accepted tokens, and the root of a row where it was never expanded."""
        features = self._fused(self._of_nodes(self.target.features, place_of(accepted.path, verified.nodes)))
        states = torch.cat([self.root_state, features], 1)
        tokens = tree.tokens.gather(1, accepted.path.clamp(min=0))
        count = accepted.num_nodes
        last = count[:, None, None].expand(-1, 1, states.shape[2])
        self.root_state = states.gather(1, last)
        places = place_of(accepted.path[:, :1], self.entries)
        if self.entries.shape[1]:
            self._cache().keep(places, self.target.ops)
            self._cache().settle()
        self._owe(tokens, states[:, :-1], (places[:, 0] != NO_NODE).long(), count)
        self.entries = self.entries[:, :0]
        self.outputs = self.outputs[:, :0]

    def _parents(self, tree: TokenTree, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Each node's parent and where that lies among the entries; `NO_NODE` for none."""
        parents = tree.parents.gather(1, nodes.clamp(min=0)).masked_fill(nodes == NO_NODE, NO_NODE)
        return parents, place_of(parents, self.entries)

    def _unseen_levels(self, tree: TokenTree, nodes: Tensor) -> list[Tensor]:
        every = torch.arange(tree.num_nodes, device=nodes.device).expand(nodes.shape[0], -1)
        wanted = tree.is_ancestor(every, nodes).any(1) & (place_of(every, self.entries) == NO_NODE)
        levels = [wanted & (tree.depths == depth) for depth in range(tree.height + 1)]
        return [_columns(every, level) for level in levels if level.any()]

    def _expand_level(self, tree: TokenTree, nodes: Tensor, parents: Tensor, places: Tensor) -> Tensor:
        """Of nodes whose parents have been expanded, or the root: one forward, the owed tokens in front."""
        cache, num_owed = self._cache(), self.owed_tokens.shape[1]
        owed = self.owed if num_owed else None
        plan = tree_plan(tree, nodes, self.entries, cache.lengths, cache.longest, owed, num_owed)
        tokens = torch.cat([self.owed_tokens, tree.tokens.gather(1, nodes.clamp(min=0))], 1)
        states = torch.cat([self.owed_states, self._states_before(parents, places)], 1)
        output = self._forward(tokens, states, plan)[:, num_owed:]
        self.outputs = torch.cat([self.outputs, output], 1)
        assert plan.layout is not None
        self.entries = plan.layout.shown
        if owed is not None:
            cache.extend(owed)
            self._owe_nothing()
        return output

    def _states_before(self, parents: Tensor, places: Tensor) -> Tensor:
        if not self.entries.shape[1]:  # only the root has no parent to wait for
            return self.root_state.expand(-1, parents.shape[1], -1)
        own = self._of_nodes(self.outputs, places)
        return torch.where((parents == NO_NODE)[:, :, None], self.root_state, own)

    def _forward(
        self, tokens: Int[Tensor, "batch row"], states: Float[Tensor, "batch row hidden"], plan: ForwardPlan
    ) -> Float[Tensor, "batch row hidden"]:
        cache = self._cache()
        cache.require(plan.used)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.write(0, key, value, plan)
            return self.target.ops.attention(query, keys, values, plan, query.shape[3] ** -0.5, None, None, None)

        with self.clock.stage("forward"), matrix_product_for(plan.positions.numel(), self.target.model):
            return self.head(Rows(self.embeddings(tokens), states, plan.positions), attend)

    def _fused(self, features: Tensor) -> Tensor:
        with self.clock.stage("forward"):
            return self.head.fuse(features.to(self.target.model.dtype))

    def _of_nodes(self, values: Tensor, places: Tensor) -> Tensor:
        return values[self._cache().rows[0], places.clamp(min=0)]

    def _owe(self, tokens: Tensor, states: Tensor, start: Tensor, stop: Tensor) -> None:
        """Tokens from `start` to `stop`, behind what a row owes already: it may not have expanded for some steps."""
        known, starts = self.owed_tokens.shape[1], start.tolist()
        owed, self.owed = self.owed[:, None], self.owed + (stop - start).clamp(min=0)
        longest = int(self.owed.max())
        if not known and min(starts) == max(starts):
            new = slice(starts[0], starts[0] + longest)
            self.owed_tokens, self.owed_states = tokens[:, new], states[:, new]
            return
        order = torch.arange(longest, device=tokens.device)
        place = torch.where(order < owed, order, known + start[:, None] + order - owed)
        place = place.clamp(max=known + tokens.shape[1] - 1)
        self.owed_tokens = torch.cat([self.owed_tokens, tokens], 1).gather(1, place)
        self.owed_states = self._of_nodes(torch.cat([self.owed_states, states], 1), place)

    def _forget(self, batch: int) -> None:
        self.entries = self.root_state.new_empty(batch, 0, dtype=torch.int64)
        self.outputs = self._nothing(batch, 0)
        nobody = torch.zeros(batch, dtype=torch.int64, device=self.target.device)
        self.no_debt = nobody, self.entries, self.outputs
        self._owe_nothing()

    def _owe_nothing(self) -> None:
        self.owed, self.owed_tokens, self.owed_states = self.no_debt

    def _nothing(self, batch: int, width: int) -> Tensor:
        shape = (batch, width, self.head.config.hidden_size)
        return torch.zeros(shape, dtype=self.target.model.dtype, device=self.target.device)

    def _cache(self) -> KVCache:
        if self.cache is None:
            raise RuntimeError("call allocate() first")
        return self.cache


def _columns(every: Tensor, wanted: Tensor) -> Int[Tensor, "batch width"]:
    """The wanted nodes of each row, ascending, `NO_NODE` behind them."""
    last = every.shape[1]
    chosen = every.masked_fill(~wanted, last).sort(1).values[:, : int(wanted.sum(1).max())]
    return chosen.masked_fill(chosen == last, NO_NODE)


@register("eagle_head")
def build(target: TreeModel, loaded: LoadedModel, *, path: str, revision: str | None) -> EagleHeadDrafter:
    """Load a head of ours or in a public layout; it must have been made for this target."""
    head, layers = load_head(path, target.model, revision)
    return EagleHeadDrafter("eagle_head", head, target, layers)
